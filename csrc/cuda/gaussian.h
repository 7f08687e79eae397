// Launchers of the Gaussian mixture kernels (common/gaussian_plan.h).
#pragma once

#include <cuda_runtime_api.h>

namespace fokker {
struct GaussianJoint;
struct GaussianPull;
struct GaussianMoments;
struct GaussianLevels;
}  // namespace fokker

namespace fokker::cuda {

template <typename T> void gaussian_joint(const GaussianJoint& p, cudaStream_t stream);
template <typename T> void gaussian_pull(const GaussianPull& p, cudaStream_t stream);
template <typename T> void gaussian_moments(const GaussianMoments& p, cudaStream_t stream);
template <typename T> void gaussian_levels(const GaussianLevels& p, cudaStream_t stream);
// The log-sum-exp over k of joint (k, n), and with `shares` its softmax in its place.
template <typename T> void gaussian_log_sum(const GaussianJoint& p, cudaStream_t stream);

}  // namespace fokker::cuda
