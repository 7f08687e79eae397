// Launchers of modulated norms and gated residuals.
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct NormPlan;
}

namespace fokker::cuda {

void norm_forward(const NormPlan& p, cudaStream_t stream);
void norm_backward(const NormPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
