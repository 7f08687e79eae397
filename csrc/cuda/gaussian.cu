// Gaussian mixtures: weighted distances, their log-sum-exp, weighted sums over components and over queries.
//
// Bytes: joint (k, n) is written once and read twice by its log-sum-exp, or read once a panel of the pull; x and the
// matrices come from the caches. A thread holds queries, whose numbers lie side by side; a matrix is read uniformly.
#include "cuda/gaussian.h"

#include "common/gaussian_plan.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128, kPer = 2, kRows = kGaussianRows;  // kPer queries a thread
constexpr unsigned kMostRows = 65535;                           // of a grid

inline unsigned grid_rows(std::int64_t n) { return static_cast<unsigned>(n < kMostRows ? n : kMostRows); }

template <typename T> __device__ __forceinline__ const T* of(const void* p) { return static_cast<const T*>(p); }

// Index of a thread's query u; past the end the last one again.
struct Queries {
  std::int64_t first, n;
  __device__ __forceinline__ explicit Queries(std::int64_t count)
      : first(std::int64_t(blockIdx.x) * kThreads * kPer + threadIdx.x), n(count) {}
  __device__ __forceinline__ std::int64_t at(int u) const { return first + std::int64_t(u) * kThreads; }
  __device__ __forceinline__ std::int64_t clamped(int u) const { return at(u) < n ? at(u) : n - 1; }
};

template <typename T, bool kDiagonal> __global__ void __launch_bounds__(kThreads)
    gaussian_joint_kernel(GaussianJoint p) {
  const Queries q(p.n);
  for (std::int64_t c = blockIdx.y; c < p.k; c += gridDim.y) {
    const T *mean = of<T>(p.mean) + c * p.d, *root = of<T>(p.root) + c * p.matrix.stride;
    T sum[kPer] = {};
    if constexpr (kDiagonal) {
      for (std::int64_t j = 0; j < p.d; ++j) {
        const T m = mean[j], a = root[j];
#pragma unroll
        for (int u = 0; u < kPer; ++u) {
          const T t = (of<T>(p.x)[j * p.n + q.clamped(u)] - m) * a;
          sum[u] = math::fma(t, t, sum[u]);
        }
      }
    } else {
      for (std::int64_t panel = 0; panel < p.matrix.panels(); ++panel, root += p.d * kRows) {
        const std::int64_t columns = p.matrix.columns(panel, p.d);
        T acc[kPer][kRows] = {};
        for (std::int64_t j = 0; j < columns; ++j) {
          const T m = mean[j];
#pragma unroll
          for (int u = 0; u < kPer; ++u) {
            const T t = of<T>(p.x)[j * p.n + q.clamped(u)] - m;
#pragma unroll
            for (int r = 0; r < kRows; ++r) acc[u][r] = math::fma(root[j * kRows + r], t, acc[u][r]);
          }
        }
#pragma unroll
        for (int u = 0; u < kPer; ++u)
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[u] = math::fma(acc[u][r], acc[u][r], sum[u]);
      }
    }
    const T bias = of<T>(p.bias)[c];
#pragma unroll
    for (int u = 0; u < kPer; ++u)
      if (q.at(u) < p.n) static_cast<T*>(p.joint)[c * p.n + q.at(u)] = math::fma(T(-0.5), sum[u], bias);
  }
}

template <typename T> __global__ void __launch_bounds__(kThreads) gaussian_log_sum_kernel(GaussianJoint p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  T* joint = static_cast<T*>(p.joint) + i;
  T top = -math::infinity<T>(), sum = 0;
  for (std::int64_t c = 0; c < p.k; ++c) top = Max{}(top, joint[c * p.n]);
  const T shift = top - top == T(0) ? top : T(0);  // all -inf: the sum below is 0 and its log -inf
  for (std::int64_t c = 0; c < p.k; ++c) sum += math::exp(joint[c * p.n] - shift);
  static_cast<T*>(p.log_sum)[i] = shift + math::log(sum);
  if (!p.shares) return;
  const T scale = sum == T(0) ? T(0) : T(1) / sum;
  for (std::int64_t c = 0; c < p.k; ++c) joint[c * p.n] = math::exp(joint[c * p.n] - shift) * scale;
}

// A grid row is a panel, or where diagonal a coordinate.
template <typename T, bool kDiagonal> __global__ void __launch_bounds__(kThreads) gaussian_pull_kernel(GaussianPull p) {
  constexpr int rows = kDiagonal ? 1 : kRows;
  const std::int64_t parts = kDiagonal ? p.d : p.matrix.panels();
  const Queries q(p.n);
  for (std::int64_t part = blockIdx.y; part < parts; part += gridDim.y) {
    T acc[kPer][rows] = {};
    for (std::int64_t c = 0; c < p.k; ++c) {
      T w[kPer];
      bool some = false;
#pragma unroll
      for (int u = 0; u < kPer; ++u) {
        w[u] = of<T>(p.weight)[c * p.n + q.clamped(u)];
        some |= w[u] != T(0);
      }
      if (!some) continue;
      const T *mean = of<T>(p.mean) + c * p.d, *pull = of<T>(p.pull) + c * p.matrix.stride + part * p.d * kRows;
      if constexpr (kDiagonal) {
        const T m = mean[part], b = of<T>(p.pull)[c * p.matrix.stride + part];
#pragma unroll
        for (int u = 0; u < kPer; ++u) {
          const T delta = of<T>(p.x)[part * p.n + q.clamped(u)] - m;
          acc[u][0] = math::fma(w[u] == T(0) ? T(0) : w[u] * delta, b, acc[u][0]);
        }
      } else {
        const std::int64_t columns = p.matrix.columns(part, p.d);
        for (std::int64_t j = 0; j < columns; ++j) {
          const T m = mean[j];
#pragma unroll
          for (int u = 0; u < kPer; ++u) {
            const T delta = of<T>(p.x)[j * p.n + q.clamped(u)] - m, s = w[u] == T(0) ? T(0) : w[u] * delta;
#pragma unroll
            for (int r = 0; r < rows; ++r) acc[u][r] = math::fma(pull[j * kRows + r], s, acc[u][r]);
          }
        }
      }
      if (!p.offset) continue;
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const std::int64_t row = part * rows + r;
        const T offset = row < p.matrix.rows ? of<T>(p.offset)[c * p.matrix.rows + row] : T(0);
#pragma unroll
        for (int u = 0; u < kPer; ++u) acc[u][r] = math::fma(w[u], offset, acc[u][r]);
      }
    }
#pragma unroll
    for (int u = 0; u < kPer; ++u)
#pragma unroll
      for (int r = 0; r < rows; ++r)
        if (q.at(u) < p.n && part * rows + r < p.matrix.rows)
          static_cast<T*>(p.out)[(part * rows + r) * p.n + q.at(u)] = acc[u][r];
  }
}

// A block takes a component and a coordinate.
template <typename T> __global__ void __launch_bounds__(kThreads) gaussian_moments_kernel(GaussianMoments p) {
  for (std::int64_t c = blockIdx.x; c < p.k; c += gridDim.x)
    for (std::int64_t j = blockIdx.y; j < p.d; j += gridDim.y) {
      const T* weight = of<T>(p.weight) + c * p.n;
      const double mean = static_cast<double>(of<T>(p.mean)[c * p.d + j]);
      double mass = 0, first = 0, second = 0;
      for (std::int64_t i = threadIdx.x; i < p.n; i += kThreads) {
        const double w = static_cast<double>(weight[i]);
        if (w == 0) continue;
        const double delta = static_cast<double>(of<T>(p.x)[j * p.n + i]) - mean, s = w * delta;
        mass += w;
        first += s;
        second = math::fma(s, delta, second);
      }
      first = block_reduce<kThreads>(first, Sum{});
      second = block_reduce<kThreads>(second, Sum{});
      mass = block_reduce<kThreads>(mass, Sum{});
      if (threadIdx.x != 0) continue;
      static_cast<T*>(p.first)[c * p.d + j] = static_cast<T>(first);
      static_cast<T*>(p.second)[c * p.d + j] = static_cast<T>(second);
      if (j == 0) static_cast<T*>(p.mass)[c] = static_cast<T>(mass);
    }
}

}  // namespace

template <typename T> void gaussian_log_sum(const GaussianJoint& p, cudaStream_t stream) {
  FK_LAUNCH((gaussian_log_sum_kernel<T>), blocks_for(p.n, kThreads), kThreads, 0, stream, p);
}

template <typename T> void gaussian_joint(const GaussianJoint& p, cudaStream_t stream) {
  if (p.n == 0) return;
  const dim3 grid(blocks_for(p.n, kThreads * kPer), grid_rows(p.k));
  if (p.matrix.diagonal) FK_LAUNCH((gaussian_joint_kernel<T, true>), grid, kThreads, 0, stream, p);
  else FK_LAUNCH((gaussian_joint_kernel<T, false>), grid, kThreads, 0, stream, p);
  if (p.log_sum) gaussian_log_sum<T>(p, stream);
  check_launch("gaussian_joint");
}

template <typename T> void gaussian_pull(const GaussianPull& p, cudaStream_t stream) {
  if (p.n == 0) return;
  const dim3 grid(blocks_for(p.n, kThreads * kPer), grid_rows(p.matrix.diagonal ? p.d : p.matrix.panels()));
  if (p.matrix.diagonal) FK_LAUNCH((gaussian_pull_kernel<T, true>), grid, kThreads, 0, stream, p);
  else FK_LAUNCH((gaussian_pull_kernel<T, false>), grid, kThreads, 0, stream, p);
  check_launch("gaussian_pull");
}

template <typename T> void gaussian_moments(const GaussianMoments& p, cudaStream_t stream) {
  const dim3 grid(blocks_for(p.k, 1), grid_rows(p.d));
  FK_LAUNCH((gaussian_moments_kernel<T>), grid, kThreads, 0, stream, p);
  check_launch("gaussian_moments");
}

#define FK_INSTANTIATE(T)                                                         \
  template void gaussian_log_sum<T>(const GaussianJoint& p, cudaStream_t stream); \
  template void gaussian_joint<T>(const GaussianJoint& p, cudaStream_t stream);   \
  template void gaussian_pull<T>(const GaussianPull& p, cudaStream_t stream);     \
  template void gaussian_moments<T>(const GaussianMoments& p, cudaStream_t stream);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cuda
