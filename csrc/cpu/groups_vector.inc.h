// Vectors of a group norm: parts of vectors at the ends of rows, activations and their slopes, numbers as they lie.
#pragma once

#include <cmath>

#include "cpu/groups.h"
#include "cpu/half_vector.inc.h"
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

// The first n lanes of a vector; those past them are 0 when read, and not written. Numbers lie in memory as S, of T or
// half its width.
template <typename T> struct Lanes {
  int n;
  template <typename S> Vec<T> load(const S* p) const {
#if defined(__AVX512F__)
    const auto mask = static_cast<__mmask16>((1u << n) - 1);
    if constexpr (sizeof(S) == 8) {
      return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
    } else if constexpr (sizeof(S) == 4) {
      return _mm512_maskz_loadu_ps(mask, p);
    } else {
      S held[kLanesOf<T>];
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(held), _mm256_maskz_loadu_epi16(mask, p));
      return FK_ISA::load(held);
    }
#else
    Vec<T> v{};
    for (int l = 0; l < n; ++l) v[l] = number(p[l]);
    return v;
#endif
  }
  template <typename S> void store(S* p, Vec<T> v) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == 4) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
    else if constexpr (sizeof(S) == 8) return _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
#endif
    for (int l = 0; l < n; ++l) set(p[l], v[l]);
  }
};
template <typename T, bool kStreamed> struct AllLanes {
  template <typename S> Vec<T> load(const S* p) const { return FK_ISA::load(p); }
  template <typename S> void store(S* p, Vec<T> v) const {
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

// f(a number of the type that the plan's tensors hold).
template <typename F> inline void with_numbers(const GroupPlan& p, F&& f) {
  switch (p.dtype) {
    case DType::f64:
      return f(double{});
    case DType::bf16:
      return f(BFloat16{});
    case DType::f16:
      return f(Half{});
    default:
      return f(float{});
  }
}
// What they are computed in.
template <typename S> using Computed = std::conditional_t<std::is_same_v<S, double>, double, float>;

// f(whether results are written past the cache): those that no cache would hold until they are read, in whole vectors.
template <typename S, typename F> inline void with_streams(const GroupPlan& p, F&& f) {
  constexpr std::int64_t vector = std::int64_t(kLanesOf<Computed<S>>) * sizeof(S);
  const std::int64_t bytes = p.batch * p.channels * p.positions * std::int64_t(sizeof(S));
  const auto placed = [](std::int64_t number) { return number * std::int64_t(sizeof(S)) % vector == 0; };
  const bool fits = reinterpret_cast<std::uintptr_t>(p.out.data) % vector == 0 && placed(p.out.batch_stride) &&
                    placed(p.out.row_stride);
  if (bytes < kStreamBytes || !fits || p.out.data == p.x.data) return f(std::false_type{});
  f(std::true_type{});
  finish_streams();
}
template <typename S> inline S* at(const GroupMap& m, std::int64_t number) { return static_cast<S*>(m.data) + number; }

// x, or x + residual, which also goes where it is wanted and counts as rounded there.
template <typename S> inline const S* summed(const GroupPlan& p, std::int64_t x_at, std::int64_t residual_at,
                                             std::int64_t sum_at, std::int64_t n) {
  const S* const x = at<S>(p.x, x_at);
  if (!p.residual.data) return x;
  const S* const r = at<S>(p.residual, residual_at);
  S* const sum = at<S>(p.sum, sum_at);
  each_vector<Computed<S>>(n, [&](std::int64_t i, auto lanes) {
    lanes.store(sum + i, Vec<Computed<S>>(lanes.load(x + i) + lanes.load(r + i)));
  });
  return sum;
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
