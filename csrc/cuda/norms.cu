// Modulated norms and gated residuals: sum = x + gate branch, out = (norm(sum) weight + bias) (1 + scale) + shift.
//
// Bytes: x, branch and per-token modulations once, results once; those of a sample once for kRows rows. A row is held
// in registers up to 16,384 columns (float64: 8,192); a longer one is read again from the caches for its statistics.
#include "cuda/norms.h"

#include <algorithm>

#include "cuda/norms.cuh"

namespace fokker::cuda {
namespace {

constexpr int kLots = 4;                          // of a thread, of longer rows
constexpr int kRows = 4;                          // rows of a sample that a block takes one after the other
constexpr std::int64_t kManyRows = 4 * 132 * 12;  // from here on there are blocks enough for that

template <typename T> struct Coefficients {
  Eight<T> gate, factor, addend;
};
template <typename T> __device__ __forceinline__ Coefficients<T> coefficients_of(const NormPlan& p, bool packed,
                                                                                 std::int64_t b, std::int64_t t,
                                                                                 std::int64_t c) {
  Coefficients<T> to;
  if (p.branch) to.gate = gate_of<T>(p, packed, b, t, c);
  if (p.norm == Norm::none) return to;
  const Eight<T> scale = modulation<T>(p, packed, p.scale, b, t, c, T(1));
  const Eight<T> bias = row_or<T>(p, packed, p.bias, c, T(0));
  to.addend = modulation<T>(p, packed, p.shift, b, t, c, T(0));
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) to.addend.v[j] = math::mad(bias.v[j], scale.v[j], to.addend.v[j]);
  const Eight<T> w = row_or<T>(p, packed, p.weight, c, T(1));
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) to.factor.v[j] = w.v[j] * scale.v[j];
  return to;
}
template <typename T>
__device__ __forceinline__ Eight<T> normed(const RowStatistics<T>& s, const Eight<T>& v, const Coefficients<T>& k) {
  Eight<T> y;
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) y.v[j] = math::mad(s(v.v[j]), k.factor.v[j], k.addend.v[j]);
  return y;
}
// Adds (v - mean) and its square, of the columns that are there.
template <typename T>
__device__ __forceinline__ void add_deviations(const Eight<T>& v, T mean, std::int64_t left, T (&sums)[2]) {
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) {
    const T d = j < left ? v.v[j] - mean : T(0);
    sums[0] += d;
    sums[1] = math::mad(d, d, sums[1]);
  }
}
template <typename T> __device__ __forceinline__ T sum_of(const Eight<T>& v) {
  return ((v.v[0] + v.v[1]) + (v.v[2] + v.v[3])) + ((v.v[4] + v.v[5]) + (v.v[6] + v.v[7]));
}

// Rows of K lots a thread, in registers; with one lot the coefficients of a sample are kept there too, in the 64
// registers that let two blocks share a multiprocessor.
template <typename T, int K> __global__ void __launch_bounds__(kNormThreads<T>, K == 1 && sizeof(T) == 4 ? 2 : 1)
    norm_forward_kernel(const __grid_constant__ NormPlan p, bool packed, int rows) {
  const std::int64_t blocks = (p.tokens + rows - 1) / rows, b = blockIdx.x / blocks, from = blockIdx.x % blocks * rows;
  const std::int64_t to = from + rows < p.tokens ? from + rows : p.tokens;
  const bool again = p.gate.per_token() || p.scale.per_token() || p.shift.per_token();
  const auto column = [](int i) { return (std::int64_t(i) * blockDim.x + threadIdx.x) * kLotColumns; };
  Coefficients<T> kept;
  for (std::int64_t t = from; t < to; ++t) {
    if (K == 1 && (again || t == from)) kept = coefficients_of<T>(p, packed, b, t, column(0));
    Eight<T> v[K];
    T total[1] = {T(0)};
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const std::int64_t c = column(i);
      v[i] = input_eight(p, packed, b, t, c, K == 1 || !p.branch ? kept.gate : gate_of<T>(p, packed, b, t, c));
      if (p.branch) write_eight(p, packed, p.sum, b, t, c, v[i]);
      total[0] += sum_of(v[i]);  // 0 past the end
    }
    if (p.norm == Norm::none) continue;
    T mean = T(0), sums[2] = {T(0), T(0)};
    if (p.norm == Norm::layer) {
      row_sums(total);
      mean = total[0] / static_cast<T>(p.columns);
    }
#pragma unroll
    for (int i = 0; i < K; ++i) add_deviations(v[i], mean, p.columns - column(i), sums);
    row_sums(sums);
    const RowStatistics<T> s = row_statistics(p, mean, sums[0], sums[1]);
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const std::int64_t c = column(i);
      write_eight(p, packed, p.out, b, t, c, normed(s, v[i], K == 1 ? kept : coefficients_of<T>(p, packed, b, t, c)));
    }
  }
}

// Rows of any length, read three times; results are written in the last pass alone, since they may lie where x does.
template <typename T> __global__ void __launch_bounds__(kNormThreads<T>, 1)
    norm_forward_long_kernel(const __grid_constant__ NormPlan p, bool packed) {
  const std::int64_t b = blockIdx.x / p.tokens, t = blockIdx.x % p.tokens;
  const std::int64_t step = std::int64_t(blockDim.x) * kLotColumns, first = std::int64_t(threadIdx.x) * kLotColumns;
  const auto input = [&](std::int64_t c) {
    return input_eight(p, packed, b, t, c, p.branch ? gate_of<T>(p, packed, b, t, c) : Eight<T>{});
  };
  T mean = T(0), sums[2] = {T(0), T(0)};
  if (p.norm == Norm::layer) {
    T total[1] = {T(0)};
    for (std::int64_t c = first; c < p.columns; c += step) total[0] += sum_of(input(c));
    row_sums(total);
    mean = total[0] / static_cast<T>(p.columns);
  }
  if (p.norm != Norm::none) {
    for (std::int64_t c = first; c < p.columns; c += step) add_deviations(input(c), mean, p.columns - c, sums);
    row_sums(sums);
  }
  const RowStatistics<T> s = row_statistics(p, mean, sums[0], sums[1]);
  for (std::int64_t c = first; c < p.columns; c += step) {
    const Eight<T> v = input(c);
    if (p.branch) write_eight(p, packed, p.sum, b, t, c, v);
    if (p.norm != Norm::none)
      write_eight(p, packed, p.out, b, t, c, normed(s, v, coefficients_of<T>(p, packed, b, t, c)));
  }
}

template <typename T> void launch(const NormPlan& p, cudaStream_t stream) {
  constexpr std::int64_t held = kNormThreads<T> * kLotColumns;  // columns of a lot a thread
  const NormWalk w = norm_walk<T>(p, p.columns <= held ? 1 : kLots);
  const int rows = p.columns <= held && p.batch * p.tokens >= kManyRows ? kRows : 1;
  const auto blocks = static_cast<unsigned>(p.batch * ((p.tokens + rows - 1) / rows));
  if (p.columns <= held) FK_LAUNCH((norm_forward_kernel<T, 1>), blocks, w.threads, 0, stream, p, w.packed, rows);
  else if (p.columns <= kLots * held)
    FK_LAUNCH((norm_forward_kernel<T, kLots>), blocks, w.threads, 0, stream, p, w.packed, rows);
  else FK_LAUNCH((norm_forward_long_kernel<T>), blocks, w.threads, 0, stream, p, w.packed);
  check_launch("norm_modulate");
}

}  // namespace

void norm_forward(const NormPlan& p, cudaStream_t stream) {
  if (p.wide) launch<double>(p, stream);
  else launch<float>(p, stream);
}

}  // namespace fokker::cuda
