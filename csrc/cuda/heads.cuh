// Device side of attention heads: a team of lanes takes a row (one head of one token) and holds it in registers, in
// units of two pairs: four neighbours (interleaved), or two and their partners rotary / 2 further on (half-split; what
// is not turned is paired with its neighbours).
#pragma once

#include "cuda/heads_launch.h"
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

constexpr int kHeadThreads = 256;

// How rows are walked; worked out on the host.
struct HeadWalk {
  int lanes = 32;       // of a team, a power of two
  bool packed = false;  // units lie whole and aligned in every tensor
};

template <typename T> struct Unit {
  T v[4];
};

__device__ __forceinline__ int unit_element(const HeadsPlan& p, int u, int e) {
  if (p.interleaved) return 4 * u + e;
  const int pair = 2 * u + (e & 1), half = p.rotary / 2;
  return pair < half ? pair + (e >> 1) * half : 2 * pair + (e >> 1);
}
__device__ __forceinline__ bool unit_holds(const HeadsPlan& p, int u, int e) {
  return p.interleaved ? 4 * u + e < p.dim : 2 * u + (e & 1) < p.dim / 2;
}
// A unit of half-split pairs lies in two packs of two: firsts and seconds, or pair by pair where it is not turned.
__device__ __forceinline__ int second_pack(const HeadsPlan& p, int u) {
  return 2 * u < p.rotary / 2 ? 2 * u + p.rotary / 2 : 4 * u + 2;
}
template <typename P> __device__ __forceinline__ void swap_inner(P& a, P& b) {
  const auto v = a.v[1];
  a.v[1] = b.v[0], b.v[0] = v;
}
__device__ __forceinline__ bool leads(const HeadsPlan& p, int e) { return p.interleaved ? !(e & 1) : e < 2; }

template <typename T, typename S, bool kPacked>
__device__ __forceinline__ Unit<T> read_unit(const HeadsPlan& p, const HeadTensor& t, std::int64_t at, int u) {
  const S* const from = static_cast<const S*>(t.data) + at;
  Unit<T> x{};
  if constexpr (kPacked) {
    if (4 * u >= p.dim) return x;
    Packed<S, 2> a, b;
    if (p.interleaved) {
      const auto four = load_pack<Packed<S, 4>>(from + 4 * u);
      a = {{four.v[0], four.v[1]}}, b = {{four.v[2], four.v[3]}};
    } else {
      a = load_pack<Packed<S, 2>>(from + unit_element(p, u, 0));
      b = load_pack<Packed<S, 2>>(from + second_pack(p, u));
      if (2 * u >= p.rotary / 2) swap_inner(a, b);
    }
    x = {{number<T>(a.v[0]), number<T>(a.v[1]), number<T>(b.v[0]), number<T>(b.v[1])}};
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (unit_holds(p, u, e)) x.v[e] = number<T>(from[unit_element(p, u, e) * t.element]);
  }
  return x;
}
template <typename S, bool kPacked, typename T>
__device__ __forceinline__ void write_unit(const HeadsPlan& p, const HeadTensor& t, std::int64_t at, int u,
                                           const Unit<T>& x) {
  S* const to = static_cast<S*>(t.data) + at;
  if constexpr (kPacked) {
    if (4 * u >= p.dim) return;
    if (p.interleaved) {
      const Packed<S, 4> four = {{stored<S>(x.v[0]), stored<S>(x.v[1]), stored<S>(x.v[2]), stored<S>(x.v[3])}};
      store_pack(to + 4 * u, four);
    } else {
      Packed<S, 2> a = {{stored<S>(x.v[0]), stored<S>(x.v[1])}}, b = {{stored<S>(x.v[2]), stored<S>(x.v[3])}};
      if (2 * u >= p.rotary / 2) swap_inner(a, b);
      store_pack(to + unit_element(p, u, 0), a);
      store_pack(to + second_pack(p, u), b);
    }
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (unit_holds(p, u, e)) to[unit_element(p, u, e) * t.element] = stored<S>(x.v[e]);
  }
}
// Numbers of a vector (dim,), or `otherwise` where there is none.
template <typename T>
__device__ __forceinline__ Unit<T> read_vector(const HeadsPlan& p, const void* from, int u, T otherwise) {
  Unit<T> x{};
#pragma unroll
  for (int e = 0; e < 4; ++e)
    if (unit_holds(p, u, e)) x.v[e] = from ? static_cast<const T*>(from)[unit_element(p, u, e)] : otherwise;
  return x;
}
// Cosines and signed sines of a token.
template <typename T> __device__ __forceinline__ void read_angles(const HeadsPlan& p, std::int64_t b, std::int64_t t,
                                                                  int u, Unit<T>& cos, Unit<T>& sin) {
  const std::int64_t at = b * p.table_batch + t * p.width;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    cos.v[e] = T(1), sin.v[e] = T(0);
    const int j = unit_element(p, u, e);
    if (j >= p.rotary) continue;  // also past the end
    const std::int64_t from = at + p.entry(j);
    const T s = static_cast<const T*>(p.sin)[from];
    cos.v[e] = static_cast<const T*>(p.cos)[from];
    sin.v[e] = leads(p, e) ? -s : s;
  }
}

// Over a team; every lane gets the same bits. Whole warps must call.
template <typename T> __device__ __forceinline__ T team_sum(T v, int lanes) {
  for (int flip = lanes / 2; flip > 0; flip /= 2) v += shuffle_xor(v, flip);
  return v;
}

template <typename T, int kUnits> struct HeadRow {
  Unit<T> x[kUnits];
  T rstd;

  // x becomes what the norm makes of it, but for its weight: (x - mean) rstd.
  __device__ __forceinline__ void normalize(const HeadsPlan& p, int lane, int lanes) {
    rstd = T(1);
    if (p.norm == HeadNorm::none) return;
    if (p.norm == HeadNorm::layer) {
      T sum = T(0);
#pragma unroll
      for (int k = 0; k < kUnits; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum += x[k].v[e];
      const T mean = team_sum(sum, lanes) / T(p.dim);
#pragma unroll
      for (int k = 0; k < kUnits; ++k)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (unit_holds(p, lane + k * lanes, e)) x[k].v[e] -= mean;
    }
    T square = T(0);
#pragma unroll
    for (int k = 0; k < kUnits; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) square = math::mad(x[k].v[e], x[k].v[e], square);
    rstd = T(1) / math::sqrt(team_sum(square, lanes) / T(p.dim) + T(p.eps));
#pragma unroll
    for (int k = 0; k < kUnits; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e) x[k].v[e] *= rstd;
  }
};

__device__ __forceinline__ std::int64_t place_of(const HeadTensor& t, std::int64_t b, std::int64_t h,
                                                 std::int64_t token) {
  return b * t.batch + h * t.head + token * t.token;
}

inline HeadWalk head_walk(const HeadsPlan& p) {
  HeadWalk w;
  w.lanes = 4;
  while (w.lanes < kWarp && w.lanes * 4 < p.dim) w.lanes *= 2;
  const int size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2, per = p.interleaved ? 4 : 2;
  w.packed = p.dim % 4 == 0 && (p.interleaved || p.rotary % 4 == 0);
  const auto whole = [&](const HeadTensor& t) {
    if (!t.data) return true;
    return t.element == 1 && t.batch % per == 0 && t.head % per == 0 && t.token % per == 0 &&
           reinterpret_cast<std::uintptr_t>(t.data) % static_cast<std::size_t>(per * size) == 0;
  };
  for (int i = 0; i < p.parts; ++i)
    w.packed = w.packed && whole(p.part[i].x) && whole(p.part[i].out) && whole(p.part[i].grad);
  return w;
}

// f(T{}, S{}, units a lane, packed) of a plan: arithmetic and storage types, and compile-time constants.
template <typename F> void dispatch_heads(const HeadsPlan& p, const HeadWalk& w, F&& f) {
  const auto shape = [&](auto t, auto s) {
    using One = std::integral_constant<int, 1>;
    using Four = std::integral_constant<int, 4>;
    const bool one = w.lanes * 4 >= p.dim;
    if (w.packed && one) f(t, s, One{}, std::true_type{});
    else if (w.packed) f(t, s, Four{}, std::true_type{});
    else if (one) f(t, s, One{}, std::false_type{});
    else f(t, s, Four{}, std::false_type{});
  };
  if (p.dtype == DType::f64) shape(double{}, double{});
  else if (p.dtype == DType::f32) shape(float{}, float{});
  else if (p.dtype == DType::f16) shape(float{}, Half{});
  else shape(float{}, BFloat16{});
}

// A warp a column of the workspace.
__global__ void __launch_bounds__(kHeadThreads)
    heads_sums_kernel(const double* partial, std::int64_t rows, int columns, double* sums) {
  const int column = static_cast<int>(blockIdx.x * (kHeadThreads / kWarp) + threadIdx.x / kWarp);
  if (column >= columns) return;  // whole warps
  double sum = 0.0;
  for (std::int64_t r = threadIdx.x % kWarp; r < rows; r += kWarp) sum += partial[r * columns + column];
  sum = warp_reduce(sum, Sum{});
  if (threadIdx.x % kWarp == 0) sums[column] = sum;
}

inline void add_partial(const double* partial, std::int64_t rows, int columns, double* sums, cudaStream_t stream) {
  FK_LAUNCH((heads_sums_kernel), blocks_for(columns, kHeadThreads / kWarp), kHeadThreads, 0, stream, partial, rows,
            columns, sums);
}

}  // namespace
}  // namespace fokker::cuda
