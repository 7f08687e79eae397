// Launchers of the sums of distances (common/distance_plan.h).
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct DistanceSums;
struct NearestData;
}  // namespace fokker

namespace fokker::cuda {

void distance_sums(const DistanceSums& p, cudaStream_t stream);
template <typename T> void nearest_data(const NearestData& p, cudaStream_t stream);

}  // namespace fokker::cuda
