// Gaussian mixtures whose queries each have their noise level: densities, and sums over components.
//
// As gaussian.cu: joint (k, n) is written once, read by its log-sum-exp, then once a coordinate by the sums. A thread
// holds queries, whose numbers lie side by side. Isotropic and diagonal covariances; a quotient a number, and one
// logarithm a pair, of a product of mantissas.
#include "common/gaussian_plan.h"
#include "cuda/gaussian.h"
#include "cuda/launch.h"
#include "math/elementary.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kMostRows = 65535;  // of a grid

template <typename T> __device__ __forceinline__ const T* of(const void* p) { return static_cast<const T*>(p); }

template <typename T> struct Level {
  T alpha, square, noise;
  __device__ __forceinline__ Level(const GaussianLevels& p, std::int64_t i)
      : alpha(of<T>(p.alpha)[p.one_alpha ? 0 : i]), square(alpha * alpha), noise(of<T>(p.noise)[p.one_noise ? 0 : i]) {}
  __device__ __forceinline__ T variance(T v) const { return math::fma(square, v, noise); }
};

// A product of positive normal numbers, as a mantissa and a sum of exponents.
template <typename T> struct LogProduct {
  using F = math::detail::Format<T>;
  using B = typename F::Bits;
  static constexpr B fraction = (B(1) << F::mantissa) - 1, one = B(F::bias) << F::mantissa;
  T mantissa = 1;
  std::int64_t exponent = 0;
  __device__ __forceinline__ void times(T c) {
    const B bits = math::bit_cast<B>(c),
            both = math::bit_cast<B>(mantissa * math::bit_cast<T>((bits & fraction) | one));
    exponent +=
        static_cast<std::int64_t>(bits >> F::mantissa) + static_cast<std::int64_t>(both >> F::mantissa) - 2 * F::bias;
    mantissa = math::bit_cast<T>((both & fraction) | one);
  }
  __device__ __forceinline__ T log() const {
    return math::fma(static_cast<T>(exponent), T(0.69314718055994530942), math::log(mantissa));
  }
};

template <typename T, bool kIsotropic> __global__ void __launch_bounds__(kThreads)
    gaussian_levels_joint_kernel(GaussianLevels p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  const Level<T> level(p, i);
  for (std::int64_t c = blockIdx.y; c < p.k; c += gridDim.y) {
    const T *mean = of<T>(p.mean) + c * p.d, *variance = of<T>(p.variance) + p.at(c) * p.rank;
    T squared = 0, log_det, least = math::infinity<T>();
    LogProduct<T> determinant;
    for (std::int64_t j = 0; j < p.d; ++j) {
      const T delta = math::fma(-level.alpha, mean[j], of<T>(p.x)[j * p.n + i]);
      if constexpr (kIsotropic) {
        squared = math::fma(delta, delta, squared);
      } else {
        const T spread = level.variance(variance[j]);
        squared = math::fma(delta / spread, delta, squared);
        determinant.times(spread);
        least = spread >= least ? least : spread;  // a NaN stays
      }
    }
    if constexpr (kIsotropic) {
      least = level.variance(variance[0]);
      squared /= least;
      log_det = static_cast<T>(p.d) * math::log(least);
    } else {
      log_det = determinant.log();
    }
    const T logit = math::fma(T(-0.5), squared + log_det, of<T>(p.bias)[c]);
    static_cast<T*>(p.joint)[c * p.n + i] = least >= math::detail::Format<T>::min_normal ? logit : math::quiet_nan<T>();
    if (p.squared) static_cast<T*>(p.squared)[c * p.n + i] = squared;
  }
}

// A grid row is a coordinate.
template <typename T> __global__ void __launch_bounds__(kThreads) gaussian_levels_pull_kernel(GaussianLevels p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  const Level<T> level(p, i);
  for (std::int64_t j = blockIdx.y; j < p.d; j += gridDim.y) {
    const T x = of<T>(p.x)[j * p.n + i];
    T score = 0, posterior = 0;
    for (std::int64_t c = 0; c < p.k; ++c) {
      const T w = of<T>(p.joint)[c * p.n + i];
      if (w == T(0)) continue;
      const T mean = of<T>(p.mean)[c * p.d + j], v = of<T>(p.variance)[p.at(c) * p.rank + (p.rank == 1 ? 0 : j)];
      const T solved = math::fma(-level.alpha, mean, x) / level.variance(v);
      score = math::fma(w, solved, score);
      posterior = math::fma(w, math::fma(level.alpha * v, solved, mean), posterior);
    }
    if (p.score) static_cast<T*>(p.score)[j * p.n + i] = -score;
    if (p.posterior) static_cast<T*>(p.posterior)[j * p.n + i] = posterior;
  }
}

inline unsigned grid_rows(std::int64_t n) { return static_cast<unsigned>(n < kMostRows ? n : kMostRows); }

}  // namespace

template <typename T> void gaussian_levels(const GaussianLevels& p, cudaStream_t stream) {
  if (p.n == 0) return;
  const unsigned blocks = blocks_for(p.n, kThreads);
  const bool isotropic = p.kind == GaussianLevels::kIsotropic;
  const dim3 pairs(blocks, grid_rows(p.k));
  if (isotropic) FK_LAUNCH((gaussian_levels_joint_kernel<T, true>), pairs, kThreads, 0, stream, p);
  else FK_LAUNCH((gaussian_levels_joint_kernel<T, false>), pairs, kThreads, 0, stream, p);
  GaussianJoint sums;
  sums.n = p.n, sums.k = p.k, sums.joint = p.joint, sums.log_sum = p.log_sum;
  sums.shares = p.shares || p.score || p.posterior;
  gaussian_log_sum<T>(sums, stream);
  const dim3 coordinates(blocks, grid_rows(p.d));
  if (p.score || p.posterior) FK_LAUNCH((gaussian_levels_pull_kernel<T>), coordinates, kThreads, 0, stream, p);
  check_launch("gaussian_levels");
}

template void gaussian_levels<float>(const GaussianLevels& p, cudaStream_t stream);
template void gaussian_levels<double>(const GaussianLevels& p, cudaStream_t stream);

}  // namespace fokker::cuda
