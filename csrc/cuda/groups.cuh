// What the kernels of group norms share: packs of 16 bytes, activations, and where a thread is among them.
#pragma once

#include "cuda/groups.h"
#include "cuda/reduce.cuh"
#include "math/group_norm.h"

namespace fokker::cuda {

template <typename S> struct GroupWide {
  using type = float;
};
template <> struct GroupWide<double> {
  using type = double;
};

FK_HD FK_INLINE float widen(Half h) { return to_float(h); }
FK_HD FK_INLINE float widen(BFloat16 h) { return to_float(h); }
FK_HD FK_INLINE float widen(float x) { return x; }
FK_HD FK_INLINE double widen(double x) { return x; }
FK_HD FK_INLINE void narrow(float x, Half& to) { to = to_half(x); }
FK_HD FK_INLINE void narrow(float x, BFloat16& to) { to = to_bfloat16(x); }
FK_HD FK_INLINE void narrow(float x, float& to) { to = x; }
FK_HD FK_INLINE void narrow(double x, double& to) { to = x; }

// V numbers as they lie in memory: 16 bytes, or one.
template <typename S, int V> struct alignas(V * sizeof(S)) Pack {
  using T = typename GroupWide<S>::type;
  S v[V];
  __device__ __forceinline__ T at(int j) const { return widen(v[j]); }
  __device__ __forceinline__ void set(int j, T x) { narrow(x, v[j]); }
};
template <typename S> constexpr int kPackOf = 16 / static_cast<int>(sizeof(S));
template <typename S, int V> __device__ __forceinline__ Pack<S, V> read(const GroupMap& m, std::int64_t at) {
  return load_pack<Pack<S, V>>(static_cast<const S*>(m.data) + at);
}
template <typename S, int V>
__device__ __forceinline__ void write(const GroupMap& m, std::int64_t at, const Pack<S, V>& pack) {
  store_pack(static_cast<S*>(m.data) + at, pack);
}
// x, or x + residual as rounded to its dtype.
template <typename S, int V> __device__ __forceinline__ Pack<S, V> read_summed(const GroupPlan& p, std::int64_t b,
                                                                               std::int64_t row, std::int64_t i) {
  Pack<S, V> x = read<S, V>(p.x, p.x.row(b, row) + i);
  if (!p.residual.data) return x;
  const Pack<S, V> other = read<S, V>(p.residual, p.residual.row(b, row) + i);
#pragma unroll
  for (int j = 0; j < V; ++j) x.set(j, x.at(j) + other.at(j));
  return x;
}

template <typename T> __device__ __forceinline__ T activated(Activation a, T u) {
  if (a == Activation::silu) return u / (T(1) + math::exp(-u));
  if (a == Activation::relu) return u <= T(0) ? T(0) : u;  // nan stays
  return u;
}
// The gradient before the activation.
template <typename T> __device__ __forceinline__ T through(Activation a, T u, T grad) {
  if (a == Activation::silu) {
    const T sigmoid = T(1) / (T(1) + math::exp(-u));
    return grad * (sigmoid * math::fma(u, T(1) - sigmoid, T(1)));
  }
  if (a == Activation::relu) return u > T(0) ? grad : T(0);
  return grad;
}
template <typename T> __device__ __forceinline__ T before(const GroupChannel<T>& c, T x) {
  return math::fma(x - c.mean, c.factor, c.addend);
}
template <typename T>
__device__ __forceinline__ T gradient(const GroupChannel<T>& c, const GroupSlope<T>& s, T x, T du) {
  return math::fma(c.factor, du, -math::fma(s.slope, x - s.pivot, s.offset));
}

// Whether packs of `pack` numbers lie whole in the rows of every tensor of the plan.
inline bool packs_fit(const GroupPlan& p, int pack) {
  if ((p.last ? p.channels : p.positions) % pack) return false;
  for (const GroupMap* m : {&p.x, &p.residual, &p.sum, &p.out, &p.grad, &p.grad_sum})
    if (reinterpret_cast<std::uintptr_t>(m->data) % 16 || m->batch_stride % pack || m->row_stride % pack) return false;
  return true;
}
// f(S{}, std::integral_constant of the numbers in a pack).
template <typename F> void with_packs(const GroupPlan& p, F&& f) {
  const auto choose = [&](auto s) {
    using S = decltype(s);
    if (packs_fit(p, kPackOf<S>)) f(s, std::integral_constant<int, kPackOf<S>>{});
    else f(s, std::integral_constant<int, 1>{});
  };
  switch (p.dtype) {
    case DType::f16:
      return choose(Half{});
    case DType::bf16:
      return choose(BFloat16{});
    case DType::f64:
      return choose(double{});
    default:
      return choose(float{});
  }
}

}  // namespace fokker::cuda
