// Vectors of a group norm: parts of vectors at the ends of rows, activations and their slopes, tiles as numbers of type
// T.
#pragma once

#include <cmath>

#include "cpu/groups.h"
#include "cpu/sde_tile.inc.h"
#include "math/group_norm.h"

namespace fokker::cpu::FK_ISA {
namespace {

#if defined(__AVX512F__)
inline VecF min(VecF a, VecF b) { return _mm512_min_ps(a, b); }
inline VecD min(VecD a, VecD b) { return _mm512_min_pd(a, b); }
#elif defined(__AVX2__)
inline VecF min(VecF a, VecF b) { return _mm256_min_ps(a, b); }
inline VecD min(VecD a, VecD b) { return _mm256_min_pd(a, b); }
#else
template <typename V> inline V min(V a, V b) { return a < b ? a : b; }
#endif

// The first n lanes of a vector; those past them are 0 when read, and not written.
template <typename T> struct Lanes {
  int n;
  Vec<T> load(const T* p) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
    else return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
#else
    Vec<T> v{};
    for (int l = 0; l < n; ++l) v[l] = p[l];
    return v;
#endif
  }
  void store(T* p, Vec<T> v) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
    else _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
#else
    for (int l = 0; l < n; ++l) p[l] = v[l];
#endif
  }
};
template <typename T, bool kStreamed> struct AllLanes {
  Vec<T> load(const T* p) const { return FK_ISA::load(p); }
  void store(T* p, Vec<T> v) const {
    if constexpr (kStreamed) stream(p, v);
    else FK_ISA::store(p, v);
  }
};

// f(i, lanes) over [0, n), a vector at a time; what is stored may go past the cache.
template <typename T, bool kStreamed = false, typename F> inline void each_vector(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + kLanesOf<T> <= n; i += kLanesOf<T>) f(i, AllLanes<T, kStreamed>{});
  if (i < n) f(i, Lanes<T>{static_cast<int>(n - i)});
}

// 1 + e^-u, finite: below that u the sigmoid is 0 to every digit that matters.
template <typename T> inline Vec<T> one_plus_exp(Vec<T> u) {
  constexpr T most = sizeof(T) == 4 ? T(127.5) : T(1023.5);
  return exp2(min(Vec<T>(u * T(-1.4426950408889634)), all(most))) + T(1);  // nan: the bound, and u stays nan
}
template <Activation A, typename T> inline Vec<T> activated(Vec<T> u) {
  if constexpr (A == Activation::silu) return u / one_plus_exp<T>(u);
  else if constexpr (A == Activation::relu) return max(Vec<T>{}, u);  // nan stays
  else return u;
}
// The gradient before the activation.
template <Activation A, typename T> inline Vec<T> through(Vec<T> u, Vec<T> grad) {
  if constexpr (A == Activation::silu) {
    const Vec<T> sigmoid = all(T(1)) / one_plus_exp<T>(u);
    return grad * (sigmoid * fma(u, Vec<T>(T(1) - sigmoid), all(T(1))));
  } else if constexpr (A == Activation::relu) {
    return u > 0 ? grad : Vec<T>{};
  } else {
    return grad;
  }
}

// f(std::integral_constant of the plan's activation).
template <typename F> inline void with_activation(Activation a, F&& f) {
  switch (a) {
    case Activation::none:
      return f(std::integral_constant<Activation, Activation::none>{});
    case Activation::silu:
      return f(std::integral_constant<Activation, Activation::silu>{});
    case Activation::relu:
      return f(std::integral_constant<Activation, Activation::relu>{});
  }
}

template <typename T> inline bool native(const GroupPlan& p) {
  return p.dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
}
// f(whether results are written past the cache): those that no cache would hold until they are read, in whole vectors.
template <typename T, typename F> inline void with_streams(const GroupPlan& p, F&& f) {
  const std::int64_t bytes = p.batch * p.channels * p.positions * std::int64_t(sizeof(T));
  const auto placed = [](std::int64_t number) { return number * std::int64_t(sizeof(T)) % kVectorBytes == 0; };
  const bool fits = reinterpret_cast<std::uintptr_t>(p.out.data) % kVectorBytes == 0 && placed(p.out.batch_stride) &&
                    placed(p.out.row_stride);
  if (!native<T>(p) || bytes < kStreamBytes || !fits || p.out.data == p.x.data) return f(std::false_type{});
  f(std::true_type{});
  finish_streams();
}
// Numbers [at, at + n) of a tensor, where they lie or converted into `buffer`.
template <typename T>
inline const T* numbers(const GroupPlan& p, const GroupMap& m, std::int64_t at, std::int64_t n, T* buffer) {
  if (native<T>(p)) return static_cast<const T*>(m.data) + at;
  take_any(m.data, p.dtype, at, 1, static_cast<int>(n), buffer);
  return buffer;
}
// Where n numbers at `at` are to be computed, and what brings them there.
template <typename T> inline T* destination(const GroupPlan& p, const GroupMap& m, std::int64_t at, T* buffer) {
  return native<T>(p) ? static_cast<T*>(m.data) + at : buffer;
}
template <typename T>
inline void deliver(const GroupPlan& p, const GroupMap& m, std::int64_t at, std::int64_t n, const T* from) {
  if (!native<T>(p)) give_any(from, m.data, p.dtype, at, 1, static_cast<int>(n));
}
// x, or x + residual as rounded to its dtype, which also goes where it is wanted.
template <typename T> inline const T* summed(const GroupPlan& p, std::int64_t x_at, std::int64_t residual_at,
                                             std::int64_t sum_at, std::int64_t n, T* buffer, T* other) {
  const T* x = numbers(p, p.x, x_at, n, buffer);
  if (!p.residual.data) return x;
  const T* r = numbers(p, p.residual, residual_at, n, other);
  T* sum = destination(p, p.sum, sum_at, buffer);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) sum[i] = x[i] + r[i];
  deliver(p, p.sum, sum_at, n, sum);
  return numbers(p, p.sum, sum_at, n, buffer);
}

// Mean and rstd of a group of `count` numbers with sum of squares `squares` about the mean, or those of a given std.
struct GroupStatistics {
  double mean, rstd;
};
inline GroupStatistics settle(const GroupPlan& p, std::int64_t b, std::int64_t g, double mean, double squares) {
  const bool given = p.std.data;
  const double rstd = given ? 1 / math::group_parameter(p.std, b, g, 1) : 1 / std::sqrt(squares / p.count() + p.eps);
  double* const to = p.stats + (b * p.groups + g) * 2;
  to[0] = given ? 0 : mean, to[1] = rstd;
  return {to[0], to[1]};
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
