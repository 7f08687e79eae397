// The launchers of pixel norms and weighted concatenations.
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct PixelsPlan;
struct CatPlan;
}  // namespace fokker

namespace fokker::cuda {

void pixels(const PixelsPlan& p, cudaStream_t stream);
void weighted_cat(const CatPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
