// Launcher of the sums of distances (common/distance_plan.h).
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct DistanceSums;
}

namespace fokker::cuda {

void distance_sums(const DistanceSums& p, cudaStream_t stream);

}  // namespace fokker::cuda
