// log K_v(x), K_{v+1}/K_v and their derivatives for 1 <= x <= 25 (float: 0.16 <= x <= 10), v < 25.5 (10.5), by
// polynomials.
//
// With z = mu^2, g = sqrt(2 x / pi) e^x K_mu(x) = 1 + (z - 1/4) h(z, x) / x, where h and x^2 g'/(z - 1/4) are
// polynomials in z and 1 / (x + shift): exact at half-integer orders, and eta = K_{mu+1}/K_mu - 1 - (mu + 1/2)/x =
// -g'/g comes without cancellation.
#pragma once

#include "math/bessel_fn.h"
#include "math/bessel_k_coefficients.h"
#include "math/bessel_k_recurrence.h"
#include "math/bessel_log.h"

namespace fokker::math {

// Writes the derivatives of order Order of F at x >= 1 (float: 0.16); see bessel_k_small.h.
template <Fn F, int Order, typename T, int Steps = detail::k_max_steps<T>>
FK_HD FK_INLINE void k_large(T v, T x, T* out) {
  using namespace detail;
  constexpr double half_pi_64 = 1.5707963267948966;
  constexpr T half_pi = T(half_pi_64),
              half_pi_lo = sizeof(T) == 8 ? T(6.123233995736766e-17) : T(half_pi_64 - double(half_pi));
  constexpr bool precise = Order == 0 && sizeof(T) == 4 && F != Fn::kv_ratio;
  const T n = round_to_integer(v), mu = v - n, z = mu * mu, w = T(1) / x, c = w + w;
  const T t = k_large_variable(x);
  const Jet<T> quarter = {(mu - T(0.5)) * (mu + T(0.5)), T(1), T(0)};
  const Jet<T> g = (quarter * k_large_value(t, z)) * w, m = (quarter * k_large_slope(t, z)) * (w * w);
  const Jet<T> k0 = even_in(mu, z, Jet<T>{T(1) + g.f, g.d1, g.d2}), m0 = even_in(mu, z, m);
  const T a0 = (mu + T(0.5)) * w;
  const Jet<T> k1 = k0 + (Jet<T>{a0, w, T(0)} * k0 + m0);
  const bool first = n < T(0.5);
  const T m1 = mad(a0 * a0, k0.f, (a0 - T(1)) * m0.f);
  auto start = k_state(k0, k1, first ? m0.f : m1, T(0), T(0));
  T c_lo = T(0);
  DoubleWord<T> factor = {w * half_pi, T(0)};  // pi / (2 x)
  if constexpr (precise) {
    const auto unit = two_prod(w, x);
    const T w_lo = ((T(1) - unit.hi) - unit.lo) * w, t0 = mu + T(0.5), t0_lo = mu - (t0 - T(0.5));
    const T a0_lo = mad(w, t0_lo, mad(w_lo, t0, two_prod(w, t0).lo));
    const auto p = two_prod(a0, k0.f), sum = two_sum(k0.f, p.hi), total = two_sum(sum.hi, m0.f);
    c_lo = w_lo + w_lo;
    factor.lo = mad(w_lo, half_pi, mad(w, half_pi_lo, two_prod(w, half_pi).lo));
    start.before_lo = g.f - (k0.f - T(1));
    start.k = total.hi;
    start.k_lo = (sum.lo + total.lo) + (p.lo + mad(a0_lo, k0.f, mad(a0, start.before_lo, start.before_lo)));
  }
  const auto s = k_advance<Steps, precise>(start, {mu, n, T(1), c, c_lo});
  const T k = first ? s.before : s.k, k_lo = first ? s.before_lo : s.k_lo;
  const T a = (v + T(0.5)) * w, eta = s.excess / k;
  const T tau = s.before / k;  // K_{v-1} / K_v for n > 0
  const T ratio = first ? T(1) + (a + eta) : mad(v, c, tau);
  if constexpr (Order == 0 && F == Fn::kv_ratio && sizeof(T) == 4) {
    const T t = v + T(0.5), a_lo = (residual(t, a, x) + (v - (t - T(0.5)))) * w;
    const auto sum = two_sum(T(1), a);
    out[0] = first ? sum.hi + (eta + (a_lo + sum.lo)) : ratio;
    return;
  } else if constexpr (Order == 0) {
    // log(k^2 pi / (2 x)) / 2 - x, the last sum the only large one
    const T square = k * k, q = square * factor.hi;
    const auto p = log_parts(q);
    T tail = p.k * Format<T>::ln2_lo;
    if constexpr (precise) {
      const T square_lo = mad(k + k, k_lo, two_prod(k, k).lo);
      tail += mad(square, factor.lo, mad(square_lo, factor.hi, two_prod(square, factor.hi).lo)) / q;
    }
    const auto head = two_sum((T(0.5) * p.k) * Format<T>::ln2_hi, F == Fn::log_kve ? T(0) : -x);
    const T log_k = head.hi + mad(T(0.5), log_sum<false>(T(0), p.f, tail), head.lo);
    out[0] = F == Fn::kv_ratio ? ratio : log_k;
    return;
  }
  const T inverse = T(1) / k, slope = (first ? s.before_d1 : s.d1) * inverse, inverse_square = inverse * inverse;
  const Jet<T> eta0 = m0 / k0;
  const T p = s.casoratian * inverse_square;
  const T ratio_v = first ? w + eta0.d1 : c - p;
  const T ratio_x = (first | (a < T(0.75))) ? mad(eta, T(2) + eta, -(a * a)) : mad(ratio, tau - w, T(-1));
  if constexpr (Order == 1 && F == Fn::kv_ratio) {
    out[0] = ratio_v, out[1] = ratio_x;
  } else if constexpr (Order == 1) {
    const T slope_x = mad(T(0.5), w, eta);
    out[0] = slope, out[1] = F == Fn::log_kve ? -slope_x : T(-1) - slope_x;
  } else if constexpr (F == Fn::kv_ratio) {
    out[0] = first ? eta0.d2 : mad(slope + slope, p, -(s.casoratian_d1 * inverse_square));
    out[1] = T(2) * mad(T(1) + eta, ratio_v, -(ratio * w));
    out[2] = mad(T(2) * (T(1) + eta), ratio_x, (v + v + T(1)) * ratio * w * w);
  } else {
    out[0] = (first ? s.before_w : s.w) * inverse_square;
    out[1] = first ? -eta0.d1 : p - w;
    out[2] = -mad(v, w * w, ratio_x);
  }
}

}  // namespace fokker::math
