// Launchers of particle resampling and of the absorbing step.
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct ResamplePlan;
struct AbsorbPlan;
}  // namespace fokker

namespace fokker::cuda {

void resample(const ResamplePlan& p, cudaStream_t stream);
void absorb(const AbsorbPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
