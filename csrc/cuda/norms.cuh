// Device side of modulated norms: a block of threads takes a row, a thread eight neighbouring columns of it at a time.
#pragma once

#include "common/half.h"
#include "common/norm_plan.h"
#include "cuda/reduce.cuh"
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

constexpr int kLotColumns = 8, kNormWarps = 16;
template <typename T> inline constexpr int kNormThreads = sizeof(T) == 8 ? 256 : 512;  // at most

template <typename T> struct Eight {
  T v[kLotColumns];
};

template <typename T, typename S>
__device__ __forceinline__ Eight<T> read_eight_as(const S* from, std::int64_t stride, std::int64_t left, bool packed) {
  constexpr int each = 16 / sizeof(S);
  Eight<T> to;
  if (packed) {
#pragma unroll
    for (int j = 0; j < kLotColumns; j += each) {
      const auto pack = load_pack<Packed<S, each>>(from + j);
#pragma unroll
      for (int i = 0; i < each; ++i) to.v[j + i] = number<T>(pack.v[i]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j) to.v[j] = j < left ? number<T>(from[j * stride]) : T(0);
  }
  return to;
}
template <typename S, typename T>
__device__ __forceinline__ void write_eight_as(S* to, std::int64_t left, bool packed, const Eight<T>& from) {
  constexpr int each = 16 / sizeof(S);
  if (packed) {
#pragma unroll
    for (int j = 0; j < kLotColumns; j += each) {
      Packed<S, each> pack;
#pragma unroll
      for (int i = 0; i < each; ++i) pack.v[i] = stored<S>(from.v[j + i]);
      store_pack(to + j, pack);
    }
  } else {
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j)
      if (j < left) to[j] = stored<S>(from.v[j]);
  }
}

// Columns [c, c + 8) of row (b, t), 0 past the end.
template <typename T> __device__ __forceinline__ Eight<T> read_eight(const NormPlan& p, bool packed,
                                                                     const RowOperand& o, std::int64_t b,
                                                                     std::int64_t t, std::int64_t c) {
  const std::int64_t at = o.at(b, t) + c * o.column, left = p.columns - c;
  if (left <= 0) return Eight<T>{};
  switch (o.dtype) {
    case DType::f16:
      return read_eight_as<T>(static_cast<const Half*>(o.data) + at, o.column, left, packed);
    case DType::bf16:
      return read_eight_as<T>(static_cast<const BFloat16*>(o.data) + at, o.column, left, packed);
    case DType::f64:
      return read_eight_as<T>(static_cast<const double*>(o.data) + at, o.column, left, packed);
    default:
      return read_eight_as<T>(static_cast<const float*>(o.data) + at, o.column, left, packed);
  }
}
// To a contiguous result.
template <typename T> __device__ __forceinline__ void write_eight(const NormPlan& p, bool packed, const RowOperand& o,
                                                                  std::int64_t b, std::int64_t t, std::int64_t c,
                                                                  const Eight<T>& from) {
  const std::int64_t at = o.at(b, t) + c, left = p.columns - c;
  if (left <= 0) return;
  switch (o.dtype) {
    case DType::f16:
      return write_eight_as(static_cast<Half*>(o.data) + at, left, packed, from);
    case DType::bf16:
      return write_eight_as(static_cast<BFloat16*>(o.data) + at, left, packed, from);
    case DType::f64:
      return write_eight_as(static_cast<double*>(o.data) + at, left, packed, from);
    default:
      return write_eight_as(static_cast<float*>(o.data) + at, left, packed, from);
  }
}

// `one` plus the modulation's tensor and table.
template <typename T> __device__ __forceinline__ Eight<T> modulation(const NormPlan& p, bool packed,
                                                                     const Modulation& m, std::int64_t b,
                                                                     std::int64_t t, std::int64_t c, T one) {
  Eight<T> to;
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) to.v[j] = one;
  if (m.main) {
    const Eight<T> main = read_eight<T>(p, packed, m.main, b, t, c);
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j) to.v[j] += main.v[j];
  }
  if (m.table) {
    const Eight<T> table = read_eight<T>(p, packed, m.table, 0, 0, c);
#pragma unroll
    for (int j = 0; j < kLotColumns; ++j) to.v[j] += table.v[j];
  }
  return to;
}
// The gate, 1 where there is none.
template <typename T> __device__ __forceinline__ Eight<T> gate_of(const NormPlan& p, bool packed, std::int64_t b,
                                                                  std::int64_t t, std::int64_t c) {
  return modulation<T>(p, packed, p.gate, b, t, c, p.gate ? T(0) : T(1));
}
// weight or bias, 1 or 0 where there is none.
template <typename T> __device__ __forceinline__ Eight<T> row_or(const NormPlan& p, bool packed, const RowOperand& o,
                                                                 std::int64_t c, T none) {
  if (o) return read_eight<T>(p, packed, o, 0, 0, c);
  Eight<T> to;
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) to.v[j] = none;
  return to;
}
// x + gate branch, or x.
template <typename T> __device__ __forceinline__ Eight<T> input_eight(const NormPlan& p, bool packed, std::int64_t b,
                                                                      std::int64_t t, std::int64_t c,
                                                                      const Eight<T>& gate) {
  Eight<T> v = read_eight<T>(p, packed, p.x, b, t, c);
  if (!p.branch) return v;
  const Eight<T> h = read_eight<T>(p, packed, p.branch, b, t, c);
#pragma unroll
  for (int j = 0; j < kLotColumns; ++j) v.v[j] = math::mad(gate.v[j], h.v[j], v.v[j]);
  return v;
}

// Sums over the block, by a tree that depends on nothing but the number of threads; every thread gets them.
template <int N, typename T> __device__ __forceinline__ void row_sums(T (&v)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] = warp_reduce(v[k], Sum{});
  const int warps = static_cast<int>(blockDim.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  if (warps == 1) return;
  FK_SHARED(T, partial, N * kNormWarps);
  __syncthreads();  // the last call's readers are done
  if (lane == 0)
#pragma unroll
    for (int k = 0; k < N; ++k) partial[k * kNormWarps + static_cast<int>(threadIdx.x) / kWarp] = v[k];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < N; ++k) v[k] = warp_reduce(lane < warps ? partial[k * kNormWarps + lane] : T(0), Sum{});
}

// norm(x) = (x - mean) rstd + offset: see csrc/cpu/norms_row.inc.h.
template <typename T> struct RowStatistics {
  T mean, rstd, offset;
  __device__ __forceinline__ T operator()(T x) const { return math::mad(x - mean, rstd, offset); }
};
// From the sums of d = x - mean and of d^2.
template <typename T>
__device__ __forceinline__ RowStatistics<T> row_statistics(const NormPlan& p, T mean, T sum_d, T sum_dd) {
  const T count = static_cast<T>(p.columns);
  const T rest = p.norm == Norm::layer ? sum_d / count : T(0), variance = sum_dd / count - rest * rest;
  const T rstd = T(1) / math::sqrt((variance < T(0) ? T(0) : variance) + static_cast<T>(p.eps));
  return {mean, rstd, -rest * rstd};
}

// How rows are cut up and whether every lot of every operand lies whole and aligned; worked out on the host.
struct NormWalk {
  bool packed = false;
  int threads = kWarp;
};
template <typename T> inline NormWalk norm_walk(const NormPlan& p, int lots) {
  NormWalk w;
  w.packed = p.columns % kLotColumns == 0;
  const RowOperand* all[] = {&p.x,          &p.branch,      &p.weight,     &p.bias,        &p.gate.main, &p.gate.table,
                             &p.shift.main, &p.shift.table, &p.scale.main, &p.scale.table, &p.sum,       &p.out,
                             &p.grad_sum,   &p.grad,        &p.to_x,       &p.to_branch,   &p.to_gate,   &p.to_scale};
  for (const RowOperand* o : all) {
    if (!*o) continue;
    const std::int64_t size = o->dtype == DType::f64 ? 8 : o->dtype == DType::f32 ? 4 : 2;
    w.packed = w.packed && o->column == 1 && o->batch * size % 16 == 0 && o->token * size % 16 == 0 &&
               reinterpret_cast<std::uintptr_t>(o->data) % 16 == 0;
  }
  const std::int64_t wanted = (p.columns + kLotColumns * lots - 1) / (kLotColumns * lots);
  w.threads = static_cast<int>(std::min<std::int64_t>(kNormThreads<T>, (wanted + kWarp - 1) / kWarp * kWarp));
  return w;
}

}  // namespace
}  // namespace fokker::cuda
