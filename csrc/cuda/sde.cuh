// Device side of the SDE steps: a thread's four (double: two) neighbouring elements of every operand, and their noise.
//
// A thread makes one Philox block whole; neighbouring threads take neighbouring elements, or, where samples lie
// channels_last, the channels of the same four pixels. Bytes: each operand once.
#pragma once

#include "common/affine_plan.h"
#include "common/half.h"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/sde_launch.h"
#include "math/normal.h"
#include "math/sde_update.h"

namespace fokker::cuda {
namespace {

constexpr int kSdeThreads = 256;
constexpr int kSdeRounds = kSdeTileBlocks / kSdeThreads;  // Philox blocks a thread makes of a tile
template <typename T> inline constexpr int kPer = sizeof(T) == 8 ? 2 : 4;

template <typename T> struct Lot {
  T v[kPer<T>];
};
template <typename S, int N> struct alignas(sizeof(S) * N) Packed {
  S v[N];
};

// How a plan is walked; worked out on the host.
struct SdeWalk {
  std::int64_t blocks = 0;  // Philox blocks of a sample, those it shares with what lies around it included
  std::int64_t lead = 0;    // elements of the first one that lie before the sample
  bool packed = false;      // every lot lies whole and aligned in every operand
  bool turned = false;      // blocks are counted pixel first, so that threads run along the channels
};

// A walk whose packing the compiler knows.
template <bool kPacked> __device__ __forceinline__ SdeWalk fixed(const SdeWalk& walk) {
  SdeWalk w = walk;
  w.packed = kPacked;
  if (kPacked) w.turned = false;
  return w;
}

// Where a thread works: sample, first element of the sample's noise, and the places of its elements in memory order.
template <typename T> struct Spot {
  std::int64_t b, i, at[kPer<T>];
};
template <typename T>
__device__ __forceinline__ Spot<T> spot(const AffinePlan& p, const SdeWalk& w, std::int64_t b, std::int64_t q) {
  if (w.turned) q = q % p.channels * (w.blocks / p.channels) + q / p.channels;
  Spot<T> s{b, q * kPer<T> - w.lead, {}};
  s.at[0] = s.i;
  if (w.packed) return s;
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    const std::int64_t e = s.i + j;
    s.at[j] = e < 0 || e >= p.n ? -1 : p.channels ? e % p.pixels * p.channels + e / p.pixels : e;
  }
  return s;
}

template <typename T, typename S> __device__ __forceinline__ T number(S x) {
  if constexpr (sizeof(S) == 2) return static_cast<T>(to_float(x));
  else return static_cast<T>(x);
}
template <typename S, typename T> __device__ __forceinline__ S stored(T x) {
  if constexpr (std::is_same_v<S, Half>) return to_half(static_cast<float>(x));
  else if constexpr (std::is_same_v<S, BFloat16>) return to_bfloat16(static_cast<float>(x));
  else return static_cast<S>(x);
}
// Places of a spot's elements in one operand, -1 for none; of packed ones the first only.
template <typename T>
__device__ __forceinline__ Spot<T> places(const AffinePlan& p, const SdeWalk& w, const Operand& o, const Spot<T>& s) {
  Spot<T> to = s;
  const std::int64_t base = s.b * o.batch_stride;
  to.at[0] = s.at[0] + base;
  if (w.packed) return to;
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j)
    to.at[j] = s.at[j] < 0 ? -1 : base + (p.adjacent(o) ? s.at[j] : p.offset(o, s.at[j]));
  return to;
}
template <typename T, typename S>
__device__ __forceinline__ Lot<T> read_as(const void* data, bool packed, const Spot<T>& s) {
  const S* const from = static_cast<const S*>(data);
  Lot<T> lot;
  if (packed) {
    const auto pack = load_pack<Packed<S, kPer<T>>>(from + s.at[0]);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) lot.v[j] = number<T>(pack.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) lot.v[j] = s.at[j] < 0 ? T(0) : number<T>(from[s.at[j]]);
  }
  return lot;
}
template <typename T>
__device__ __forceinline__ Lot<T> read(const AffinePlan& p, const SdeWalk& w, const Operand& o, const Spot<T>& spot) {
  const Spot<T> s = places(p, w, o, spot);
  switch (o.dtype) {
    case DType::f16:
      return read_as<T, Half>(o.data, w.packed, s);
    case DType::bf16:
      return read_as<T, BFloat16>(o.data, w.packed, s);
    case DType::f64:
      return read_as<T, double>(o.data, w.packed, s);
    default:
      return read_as<T, float>(o.data, w.packed, s);
  }
}
template <typename S, typename T>
__device__ __forceinline__ void write_as(void* data, bool packed, const Spot<T>& s, const Lot<T>& lot) {
  S* const to = static_cast<S*>(data);
  if (packed) {
    Packed<S, kPer<T>> pack;
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) pack.v[j] = stored<S>(lot.v[j]);
    store_pack(to + s.at[0], pack);
  } else {
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j)
      if (s.at[j] >= 0) to[s.at[j]] = stored<S>(lot.v[j]);
  }
}
template <typename T> __device__ __forceinline__ void write(const AffinePlan& p, const SdeWalk& w, const Operand& o,
                                                            const Spot<T>& spot, const Lot<T>& lot) {
  const Spot<T> s = places(p, w, o, spot);
  switch (o.dtype) {
    case DType::f16:
      return write_as<Half>(o.data, w.packed, s, lot);
    case DType::bf16:
      return write_as<BFloat16>(o.data, w.packed, s, lot);
    case DType::f64:
      return write_as<double>(o.data, w.packed, s, lot);
    default:
      return write_as<float>(o.data, w.packed, s, lot);
  }
}

// The noise of a spot; 0 outside the sample, where it would enter sums.
template <typename T>
__device__ __forceinline__ Lot<T> noise_at(const AffinePlan& p, const SdeWalk& w, const Spot<T>& s) {
  const std::uint64_t id = p.id(s.b), key = p.key();
  const auto block = static_cast<std::uint32_t>((p.element_offset + s.i) / kPer<T>);
  const math::Words words =
      math::philox({block, p.counter1(), static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32)},
                   static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32));
  Lot<T> z;
  if constexpr (sizeof(T) == 8) {
    const auto pair = math::normal_pair(words);
    z = {{pair.first, pair.second}};
  } else {
    const auto four = math::normal_block(words);
    z = {{four.z0, four.z1, four.z2, four.z3}};
  }
  if (!w.packed) {
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) z.v[j] = s.at[j] < 0 ? T(0) : z.v[j];
  }
  return z;
}

template <typename T>
__device__ __forceinline__ T coefficient(const AffinePlan& p, bool has_row, std::int64_t b, int r, int column) {
  return has_row ? static_cast<const T*>(p.coefficients)[p.coefficient(b, r, column)] : math::quiet_nan<T>();
}

// f(b, q) over all Philox blocks of all samples, spread over the grid.
template <typename F> __device__ __forceinline__ void each_block(const AffinePlan& p, const SdeWalk& w, F&& f) {
  const std::int64_t total = p.batch * w.blocks;
  for (std::int64_t t = std::int64_t(blockIdx.x) * kSdeThreads + threadIdx.x; t < total;
       t += std::int64_t(gridDim.x) * kSdeThreads) {
    if (total <= 0x7fffffff) {
      const auto blocks = static_cast<std::uint32_t>(w.blocks), small = static_cast<std::uint32_t>(t);
      f(std::int64_t(small / blocks), std::int64_t(small % blocks));
    } else {
      f(t / w.blocks, t % w.blocks);
    }
  }
}
// The same for one tile of a sample, that of this block of threads.
template <typename F> __device__ __forceinline__ void each_of_tile(const SdeWalk& w, F&& f) {
  const std::int64_t tiles = (w.blocks + kSdeTileBlocks - 1) / kSdeTileBlocks;
  const std::int64_t b = blockIdx.x / tiles, first = blockIdx.x % tiles * kSdeTileBlocks;
  for (int round = 0; round < kSdeRounds; ++round) {
    const std::int64_t q = first + round * kSdeThreads + threadIdx.x;
    if (q < w.blocks) f(b, q);
  }
}

// sum[k] += the products of two lots.
template <typename T> __device__ __forceinline__ void add_product(const Lot<T>& a, const Lot<T>& b, double& sum) {
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) sum = math::fma(static_cast<double>(a.v[j]), static_cast<double>(b.v[j]), sum);
}
inline SdeWalk walk_of(const AffinePlan& p, const Operand* const* operands, int count) {
  SdeWalk w;
  const int per = p.per_block();
  w.lead = p.noisy ? p.element_offset % per : 0;
  w.blocks = (w.lead + p.n + per - 1) / per;
  const bool whole = w.lead == 0 && p.n % per == 0;
  w.packed = whole && !p.channels;
  for (int k = 0; w.packed && k < count; ++k) {
    const Operand& o = *operands[k];
    const int size = o.dtype == DType::f64 ? 8 : o.dtype == DType::f32 ? 4 : 2;
    w.packed = p.adjacent(o) && (p.batch == 1 || o.batch_stride % per == 0) &&
               reinterpret_cast<std::uintptr_t>(o.data) % (static_cast<std::size_t>(per) * size) == 0;
  }
  w.turned = whole && p.channels && p.pixels % per == 0;
  return w;
}
inline std::int64_t tiles_of(const AffinePlan& p, const SdeWalk& w) {
  return p.batch * ((w.blocks + kSdeTileBlocks - 1) / kSdeTileBlocks);
}

}  // namespace
}  // namespace fokker::cuda
