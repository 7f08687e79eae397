// The launcher of pixel norms.
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct PixelsPlan;
}

namespace fokker::cuda {

void pixels(const PixelsPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
