// Launchers of the Gaussian mixture kernels (common/gaussian_plan.h).
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct GaussianJoint;
struct GaussianPull;
struct GaussianMoments;
}  // namespace fokker

namespace fokker::cuda {

template <typename T> void gaussian_joint(const GaussianJoint& p, cudaStream_t stream);
template <typename T> void gaussian_pull(const GaussianPull& p, cudaStream_t stream);
template <typename T> void gaussian_moments(const GaussianMoments& p, cudaStream_t stream);

}  // namespace fokker::cuda
