// The launcher of sinusoidal embeddings.
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct WavesPlan;
}

namespace fokker::cuda {

void waves(const WavesPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
