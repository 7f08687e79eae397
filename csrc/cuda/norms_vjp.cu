// Gradients of modulated norms and gated residuals: with v = x + gate branch, n = norm(v), g = grad factor the gradient
// in x is d = grad_sum + rstd (g - mean g - n mean(g n)), in the branch gate d, in the gate d branch.
//
// Bytes: x, branch and gradients once, results once; sums over tokens by rows of a block of tokens, then in double. A
// row is held in registers up to kHeld columns; a longer one, and its rows of sums, live in the caches.
#include <algorithm>

#include "cuda/norms.cuh"
#include "cuda/norms.h"

namespace fokker::cuda {
namespace {

template <typename T> inline constexpr std::int64_t kHeld = kNormThreads<T> * kLotColumns;

// What a thread holds of a row and of its columns.
template <typename T> struct Held {
  Eight<T> v, dy, gate, factor;
};
template <typename T> __device__ __forceinline__ void read_columns(const NormPlan& p, bool packed, std::int64_t b,
                                                                   std::int64_t t, std::int64_t c, Held<T>& h) {
  if (p.branch) h.gate = gate_of<T>(p, packed, b, t, c);
  if (p.norm == Norm::none || !p.grad) return;
  const Eight<T> w = row_or<T>(p, packed, p.weight, c, T(1)), s = modulation<T>(p, packed, p.scale, b, t, c, T(1));
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) h.factor.v[j] = w.v[j] * s.v[j];
}
template <typename T> __device__ __forceinline__ void read_row(const NormPlan& p, bool packed, std::int64_t b,
                                                               std::int64_t t, std::int64_t c, Held<T>& h) {
  h.v = input_eight(p, packed, b, t, c, h.gate);
  h.dy = read_eight<T>(p, packed, p.grad, b, t, c);
}

// The sums that both passes over a row add up: (v, g), then with d = v - mean (d, d^2, g d).
template <typename T> __device__ __forceinline__ void add_first(const Held<T>& h, T (&sums)[2]) {
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) {
    sums[0] += h.v.v[j];
    sums[1] = math::mad(h.dy.v[j], h.factor.v[j], sums[1]);
  }
}
template <typename T>
__device__ __forceinline__ void add_second(const Held<T>& h, T mean, std::int64_t left, T (&sums)[3]) {
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) {
    const T d = j < left ? h.v.v[j] - mean : T(0);
    sums[0] += d;
    sums[1] = math::mad(d, d, sums[1]);
    sums[2] = math::mad(h.dy.v[j] * h.factor.v[j], d, sums[2]);
  }
}
template <typename T> struct RowMeans {
  RowStatistics<T> s;
  T g, gn;
};
template <typename T>
__device__ __forceinline__ RowMeans<T> row_means(const NormPlan& p, T mean, T sum_g, const T (&sums)[3]) {
  const RowStatistics<T> s = row_statistics(p, mean, sums[0], sums[1]);
  const T count = static_cast<T>(p.columns), rest = p.norm == Norm::layer ? sums[0] / count : T(0);
  return {s, p.norm == Norm::layer ? sum_g / count : T(0), s.rstd * (sums[2] - rest * sum_g) / count};
}

// Writes a row's results and adds to the sums of its columns: p, p n, d branch.
template <typename T> __device__ __forceinline__ void finish(const NormPlan& p, bool packed, std::int64_t b,
                                                             std::int64_t t, std::int64_t c, const Held<T>& h,
                                                             const RowMeans<T>& m, bool normed, Eight<T> (&sums)[3]) {
  Eight<T> d{};
  if (p.grad_sum) d = read_eight<T>(p, packed, p.grad_sum, b, t, c);
  if (normed) {
    Eight<T> hat, times = h.dy;
    if (p.weighted) {
      const Eight<T> scale = modulation<T>(p, packed, p.scale, b, t, c, T(1));
#pragma unroll
      for (int j = 0; j < kLotColumns; ++j) times.v[j] *= scale.v[j];
    }
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j) {
      hat.v[j] = m.s(h.v.v[j]);
      const T inner = math::mad(-hat.v[j], m.gn, h.dy.v[j] * h.factor.v[j] - m.g);
      d.v[j] = math::mad(m.s.rstd, inner, d.v[j]);
      sums[0].v[j] += times.v[j];
      sums[1].v[j] = math::mad(times.v[j], hat.v[j], sums[1].v[j]);
    }
    if (p.to_scale) {
      const Eight<T> w = row_or<T>(p, packed, p.weight, c, T(1)), bias = row_or<T>(p, packed, p.bias, c, T(0));
#pragma unroll
      for (int j = 0; j < kLotColumns; ++j) hat.v[j] = h.dy.v[j] * math::mad(hat.v[j], w.v[j], bias.v[j]);
      write_eight(p, packed, p.to_scale, b, t, c, hat);
    }
  }
  if (p.branch) {
    Eight<T> product = read_eight<T>(p, packed, p.branch, b, t, c);
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j) {
      product.v[j] *= d.v[j];
      sums[2].v[j] += product.v[j];
    }
    if (p.to_gate) write_eight(p, packed, p.to_gate, b, t, c, product);
    if (p.to_branch) {
#pragma unroll
      for (int j = 0; j < kLotColumns; ++j) product.v[j] = h.gate.v[j] * d.v[j];
      write_eight(p, packed, p.to_branch, b, t, c, product);
    }
  }
  if (p.to_x) write_eight(p, packed, p.to_x, b, t, c, d);
}

// The rows of sums of this block of tokens.
template <typename T>
__device__ __forceinline__ void put_sums(const NormPlan& p, std::int64_t c, bool add, const Eight<T> (&sums)[3]) {
  const int count = p.sum_count();
  T* const row = static_cast<T*>(p.partial) + std::int64_t(blockIdx.x) * count * p.columns + c;
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    if (k == 2 ? !p.sum_gate : !p.sum_p) continue;
    T* const to = row + (k == 2 ? count - 1 : k) * p.columns;
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j)
      if (c + j < p.columns) to[j] = add ? to[j] + sums[k].v[j] : sums[k].v[j];
  }
}

// One block of threads a block of tokens; eight columns a thread, in registers.
template <typename T> __global__ void __launch_bounds__(kNormThreads<T>)
    norm_vjp_kernel(const __grid_constant__ NormPlan p, bool packed) {
  const std::int64_t blocks = token_blocks(p), b = blockIdx.x / blocks, from = blockIdx.x % blocks * p.token_block;
  const std::int64_t to = from + p.token_block < p.tokens ? from + p.token_block : p.tokens;
  const bool again = p.gate.per_token() || p.scale.per_token(), normed = p.norm != Norm::none && p.grad;
  const std::int64_t c = std::int64_t(threadIdx.x) * kLotColumns, left = p.columns - c;
  Held<T> h{};
  Eight<T> sums[3] = {};
  for (std::int64_t t = from; t < to; ++t) {
    if (again || t == from) read_columns(p, packed, b, t, c, h);
    RowMeans<T> m{};
    if (normed) {
      read_row(p, packed, b, t, c, h);
      T first[2] = {T(0), T(0)}, second[3] = {T(0), T(0), T(0)};
      add_first(h, first);
      row_sums(first);
      const T mean = p.norm == Norm::layer ? first[0] / static_cast<T>(p.columns) : T(0);
      add_second(h, mean, left, second);
      row_sums(second);
      m = row_means(p, mean, first[1], second);
    }
    finish(p, packed, b, t, c, h, m, normed, sums);
  }
  if (p.sum_count()) put_sums(p, c, false, sums);
}

// Rows of any length.
template <typename T> __global__ void __launch_bounds__(kNormThreads<T>)
    norm_vjp_long_kernel(const __grid_constant__ NormPlan p, bool packed) {
  const std::int64_t blocks = token_blocks(p), b = blockIdx.x / blocks, from = blockIdx.x % blocks * p.token_block;
  const std::int64_t to = from + p.token_block < p.tokens ? from + p.token_block : p.tokens;
  const bool normed = p.norm != Norm::none && p.grad;
  const std::int64_t step = std::int64_t(blockDim.x) * kLotColumns, begin = std::int64_t(threadIdx.x) * kLotColumns;
  for (std::int64_t t = from; t < to; ++t) {
    RowMeans<T> m{};
    Held<T> h{};
    if (normed) {
      T first[2] = {T(0), T(0)}, second[3] = {T(0), T(0), T(0)};
      for (std::int64_t c = begin; c < p.columns; c += step) {
        read_columns(p, packed, b, t, c, h);
        read_row(p, packed, b, t, c, h);
        add_first(h, first);
      }
      row_sums(first);
      const T mean = p.norm == Norm::layer ? first[0] / static_cast<T>(p.columns) : T(0);
      for (std::int64_t c = begin; c < p.columns; c += step) {
        read_columns(p, packed, b, t, c, h);
        read_row(p, packed, b, t, c, h);
        add_second(h, mean, p.columns - c, second);
      }
      row_sums(second);
      m = row_means(p, mean, first[1], second);
    }
    for (std::int64_t c = begin; c < p.columns; c += step) {
      read_columns(p, packed, b, t, c, h);
      if (normed) read_row(p, packed, b, t, c, h);
      Eight<T> sums[3] = {};
      finish(p, packed, b, t, c, h, m, normed, sums);
      if (p.sum_count()) put_sums(p, c, t != from, sums);
    }
  }
}

// One thread a column of a sample's sum: the rows of its blocks in order.
template <typename T> __global__ void __launch_bounds__(kSdeThreads)
    norm_add_blocks_kernel(const __grid_constant__ NormPlan p) {
  const int count = p.sum_count();
  const std::int64_t i = std::int64_t(blockIdx.x) * kSdeThreads + threadIdx.x, blocks = token_blocks(p);
  if (i >= p.batch * count * p.columns) return;
  const std::int64_t b = i / (count * p.columns), k = i / p.columns % count, c = i % p.columns;
  const T* row = static_cast<const T*>(p.partial) + (b * blocks * count + k) * p.columns + c;
  double total = 0;
  for (std::int64_t block = 0; block < blocks; ++block, row += count * p.columns) total += static_cast<double>(*row);
  void* const to = p.sum_gate && k == count - 1 ? p.sum_gate : k == 0 ? p.sum_p : p.sum_pn;
  static_cast<T*>(to)[b * p.columns + c] = static_cast<T>(total);
}

template <typename T> void launch(const NormPlan& p, cudaStream_t stream) {
  const NormWalk w = norm_walk<T>(p, 1);
  const unsigned blocks = all_blocks(p.batch * token_blocks(p));
  if (p.columns <= kHeld<T>) FK_LAUNCH((norm_vjp_kernel<T>), blocks, w.threads, 0, stream, p, w.packed);
  else FK_LAUNCH((norm_vjp_long_kernel<T>), blocks, w.threads, 0, stream, p, w.packed);
  if (p.sum_count())
    FK_LAUNCH((norm_add_blocks_kernel<T>), blocks_for(p.batch * p.sum_count() * p.columns, kSdeThreads), kSdeThreads, 0,
              stream, p);
  check_launch("norm_modulate_vjp");
}

}  // namespace

void norm_backward(const NormPlan& p, cudaStream_t stream) {
  if (p.wide) launch<double>(p, stream);
  else launch<float>(p, stream);
}

}  // namespace fokker::cuda
