// log I_v, log K_v, their exponentially scaled forms, ratios of neighbouring orders, and derivatives in v and x: one
// element.
//
// The plane v >= 0, x > 0 falls into regimes, each with a branch-free kernel of its own:
//   hypot(v, x) >= 25 (float: 10)   Debye's expansion, fewer terms the larger r          bessel_debye.h
//   below, I                        the ascending series, fewer terms the smaller x      bessel_series.h
//   below, K                        Temme's series, or polynomials for larger x         bessel_k_small.h
//   the rim and outside             limits, nan                                          bessel_edge.h
// A CPU kernel sorts its elements by `bessel_regime` and calls `bessel_kernel<R>`; a GPU thread calls `bessel_element`.
// The choice depends on the element alone, so results do not depend on how a tensor is cut.
#pragma once

#include "math/bessel_debye.h"
#include "math/bessel_edge.h"
#include "math/bessel_fn.h"
#include "math/bessel_k_small.h"
#include "math/bessel_series.h"

namespace fokker::math {

// Debye tiers, largest r first: for hypot(v, x) >= debye_radius(tier), debye_terms(tier) terms leave less than 1e-16
// (float: 3e-8).
template <typename T> inline constexpr int kDebyeTiers = sizeof(T) == 8 ? 3 : 2;
template <typename T> FK_HD constexpr int debye_radius(int tier) {
  constexpr int f64[] = {200, 40, 25}, f32[] = {60, 10};
  return sizeof(T) == 8 ? f64[tier] : f32[tier];
}
FK_HD constexpr int debye_terms(int tier, bool is_double) {
  constexpr int f64[] = {7, 12, 17}, f32[] = {3, 9};
  return is_double ? f64[tier] : f32[tier];
}
// The tier of r = hypot(v, x); kDebyeTiers<T> where no expansion holds.
template <typename T> FK_HD FK_INLINE constexpr int debye_tier(T r) {
  int tier = 0;
  for (int i = 0; i < kDebyeTiers<T>; ++i) tier += r < T(debye_radius<T>(i)) ? 1 : 0;
  return tier;
}

// Tiers of K below the Debye region: by x, and by the order, which bounds the length of a recurrence.
inline constexpr int kKSmallTiers = 4;
template <typename T> FK_HD FK_INLINE int k_small_tier(T v, T x) {
  return (k_uses_series(v, x) ? 0 : 2) + (v > T(5.5) ? 1 : 0);
}
template <Fn F, int Order, int Tier, typename T> FK_HD FK_INLINE void k_small(T v, T x, T* out) {
  constexpr int steps = Tier % 2 == 0 ? 6 : detail::k_max_steps<T>;
  if constexpr (Tier < 2) k_temme<F, Order, T, steps>(v, x, out);
  else k_large<F, Order, T, steps>(v, x, out);
}

// Regimes in order: the Debye tiers, Debye with scaling, the small tiers of the function, the edges.
template <Fn F, typename T> inline constexpr int kSmallTiers = is_k(F) ? kKSmallTiers : kSeriesTiers<T>;
template <typename T> inline constexpr int kScaledRegime = kDebyeTiers<T>;
template <typename T> inline constexpr int kSmallRegime = kScaledRegime<T> + 1;
template <Fn F, typename T> inline constexpr int kEdgeRegime = kSmallRegime<T> + kSmallTiers<F, T>;
template <Fn F, typename T> inline constexpr int kRegimes = kEdgeRegime<F, T> + 1;

template <Fn F, typename T> FK_HD FK_INLINE int bessel_regime(T v, T x) {
  using S = detail::DebyeScale<T>;
  constexpr T huge = detail::power_of_two<T>(S::huge), tiny = detail::power_of_two<T>(S::tiny);
  const T r2 = v * v + x * x;
  int tier = 0;
  for (int i = 0; i < kDebyeTiers<T>; ++i) tier += r2 < T(debye_radius<T>(i)) * T(debye_radius<T>(i)) ? 1 : 0;
  int small;
  if constexpr (is_k(F)) small = k_small_tier(v, x);
  else small = iv_series_tier(x);
  const bool scaled = (max(v, x) > huge) | (x < tiny);
  const int large = scaled ? kScaledRegime<T> : tier;
  const int regime = tier == kDebyeTiers<T> ? kSmallRegime<T> + small : large;
  return bessel_is_edge(v, x) ? kEdgeRegime<F, T> : regime;
}

// F (Order 0), (d/dv, d/dx) (Order 1) or (d2/dv2, d2/dvdx, d2/dx2) (Order 2) of an element of regime R.
template <Fn F, int Order, int R, typename T> FK_HD FK_INLINE void bessel_kernel(T v, T x, T* out) {
  constexpr bool is_double = sizeof(T) == 8;
  if constexpr (R < kDebyeTiers<T>) debye<F, Order, debye_terms(R, is_double)>(v, x, out);
  else if constexpr (R == kScaledRegime<T>)
    debye<F, Order, debye_terms(kDebyeTiers<T> - 1, is_double), true>(v, x, out);
  else if constexpr (R == kEdgeRegime<F, T>) bessel_edge<F, Order>(v, x, out);
  else if constexpr (is_k(F)) k_small<F, Order, R - kSmallRegime<T>>(v, x, out);
  else iv_series<F, Order, R - kSmallRegime<T>>(v, x, out);
}

namespace detail {
template <Fn F, int Order, int R, typename T> FK_HD FK_INLINE void bessel_dispatch(int regime, T v, T x, T* out) {
  if constexpr (R + 1 == kRegimes<F, T>) bessel_kernel<F, Order, R>(v, x, out);
  else if (regime == R) bessel_kernel<F, Order, R>(v, x, out);
  else bessel_dispatch<F, Order, R + 1>(regime, v, x, out);
}
}  // namespace detail

// One element, whatever its regime. out holds Order + 1 values.
template <Fn F, int Order, typename T> FK_HD FK_INLINE void bessel_element(T v, T x, T* out) {
  detail::bessel_dispatch<F, Order, 0>(bessel_regime<F>(v, x), v, x, out);
}

}  // namespace fokker::math
