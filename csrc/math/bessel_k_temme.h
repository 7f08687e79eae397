// log K_v(x), K_{v+1}/K_v and their derivatives for 0 < x <= 2, v < 25.5 (float: 10.5).
//
// With l = log(2/x), y = x^2/4 and G(mu) = sum_k y^k / (k! Gamma(1 + mu + k)), that is I_mu = (x/2)^mu G(mu), G split
// into Ge(mu^2) + mu Go(mu^2), DLMF 10.27.4 becomes Temme's formula (J. Comput. Phys. 19, 1975) with its series summed:
//   k_0 = (x/2)^mu K_mu = pi mu / sin(pi mu) (A Ge - (1 + E)/2 Go),  E = e^(-2 mu l),  A = (1 - E) / (2 mu),
//   k_1 = (x/2)^(mu+1) K_{mu+1} = (1/2 - y dG/dy k_0) / G  (the Wronskian 10.28.2).
// G is entire in mu and y, so Ge and Go are short polynomials and derivatives in mu are theirs; mu = 0 is no special case.
#pragma once

#include "math/bessel_fn.h"
#include "math/bessel_k_coefficients.h"
#include "math/bessel_k_recurrence.h"

namespace fokker::math {
namespace detail {

// Moments int_0^1 t^j e^(s t) dt, j = 0, 1, 2, and e^s. Large positive s is cut off: it arises only for mu < 0 and
// x so small that y = 0 removes what it enters.
template <typename T> struct ExpMoments {
  T exp, m0, m1, m2;
};
template <typename T> FK_HD FK_INLINE ExpMoments<T> exp_moments(T s) {
  constexpr T lowest = sizeof(T) == 8 ? T(-700) : T(-85), highest = sizeof(T) == 8 ? T(600) : T(50);
  const auto p = exp_parts(min(max(s, lowest), highest));
  const T scale = pow2(p.n), e = p.r + p.tail;
  const T exp = mad(scale, e, scale), r = T(1) / s;
  const T m0 = s == T(0) ? T(1) : mad(scale, e, scale - T(1)) / s;
  const bool series = abs(s) <= T(2);
  const T m2_series = second_moment(series ? s : T(0));
  const T m1 = series ? T(0.5) * mad(-s, m2_series, exp) : (exp - m0) * r;
  return {exp, m0, m1, series ? m2_series : mad(T(-2), m1, exp) * r};
}

// log(2 / x), relatively accurate next to x = 2 and for subnormal x.
template <typename T> FK_HD FK_INLINE T log_two_over(T x) {
  const bool subnormal = x < Format<T>::min_normal;
  const auto p = log_parts(subnormal ? x * Format<T>::rescale : x);
  const T k = (subnormal ? p.k - T(54) : p.k) - T(1);
  return -log_sum<false>(k, p.f, k * Format<T>::ln2_lo);
}

template <typename T> struct TemmeStart {
  Jet<T> k0, k1;
  T slope0;  // d/dmu log K_mu, exactly odd in mu
};
template <typename T> FK_HD FK_INLINE TemmeStart<T> temme_start(T mu, T y, T log_term) {
  const T z = mu * mu, l = log_term;
  const auto m = exp_moments(T(-2) * mu * l);
  const auto even = temme_even(y, z), odd = temme_odd(T(1) - y, z);
  const Jet<T> sine_z = reciprocal_sinc(z), sine = even_in(mu, z, sine_z);
  const Jet<T> ge = even_in(mu, z, even.f), go = even_in(mu, z, odd.f);
  const Jet<T> a = {l * m.m0, T(-2) * l * l * m.m1, T(4) * l * l * l * m.m2};
  const Jet<T> c = {mad(T(0.5), m.exp, T(0.5)), -l * m.exp, T(2) * l * l * m.exp};
  const Jet<T> inner = a * ge - c * go;
  const T top = mad(l * l * l * (m.m1 - m.m2), even.f.f, a.f * even.f.d1) -
                mad(T(0.5) * l * a.f, odd.f.f, c.f * odd.f.d1);
  const T slope0 = T(2) * mu * (sine_z.d1 / sine_z.f + top / inner.f);
  const Jet<T> product0 = sine * inner, k0 = {product0.f, product0.f * (slope0 - l), product0.d2};
  const Jet<T> g = ge + odd_in(mu, z, odd.f);
  const Jet<T> g_next = even_in(mu, z, even.slope) - odd_in(mu, z, odd.slope);
  const Jet<T> product = g_next * k0;
  const Jet<T> k1 = Jet<T>{mad(-y, product.f, T(0.5)), -y * product.d1, -y * product.d2} / g;
  return {k0, k1, slope0};
}

}  // namespace detail

// Writes the derivatives of order Order of F at 0 < x <= 2; see bessel_k_small.h.
template <Fn F, int Order, typename T, int Steps = detail::k_max_steps<T>>
FK_HD FK_INLINE void k_temme(T v, T x, T* out) {
  using namespace detail;
  const T n = round_to_integer(v), mu = v - n, half = T(0.5) * x, y = half * half, l = log_two_over(x);
  const auto start = temme_start(mu, y, l);
  const auto s = k_advance<1, Steps>(k_state(start.k0, start.k1, T(0), T(0), T(0)), {mu, n, y, T(1), T(0)});
  const bool first = n < T(0.5);
  const T k = first ? s.before : s.k;
  // rho = x K_{v+1} / (2 K_v) = v + tau, tau = x K_{v-1} / (2 K_v)
  const T tail = y * s.before / k, rho0 = s.k / k;
  const T rho = first ? rho0 : v + tail, tau = first ? rho0 - v : tail;
  if constexpr (Order == 0) {
    const T log_k = mad(v, l, log_normal(k));
    out[0] = F == Fn::kv_ratio ? (rho + rho) / x : F == Fn::log_kve ? log_k + x : log_k;
    return;
  }
  const T r = T(1) / x, slope = (first ? s.before_d1 : s.d1) / k, inverse_square = T(1) / (k * k);
  const T one_less = y * s.casoratian * inverse_square;  // 1 - d rho / dv for n > 0
  const T rho_v = first ? s.casoratian * inverse_square : T(1) - one_less;
  const T ratio_xx = mad(rho + rho, tau + tau - T(1), T(-4) * y);  // x^2 d(K_{v+1} / K_v)/dx
  const T ratio = (rho + rho) / x, ratio_v = (rho_v + rho_v) / x, ratio_x = ratio_xx / x / x;
  if constexpr (Order == 1 && F == Fn::kv_ratio) {
    out[0] = ratio_v, out[1] = ratio_x;
  } else if constexpr (Order == 1) {
    const T slope_x = (v - (rho + rho)) / x;
    out[0] = first ? start.slope0 : l + slope;
    out[1] = F == Fn::log_kve ? slope_x + T(1) : slope_x;
  } else if constexpr (F == Fn::kv_ratio) {
    const T curve = mad(T(2) * slope, s.casoratian, -s.casoratian_d1) * y * inverse_square;
    const T curve0 = mad(T(-2) * slope, s.casoratian, s.casoratian_d1) * inverse_square;
    const T factor = (T(4) * rho - (v + v + T(1))) * r;
    out[0] = T(2) * (first ? curve0 : curve) * r;
    out[1] = mad(factor, ratio_v, T(-2) * ratio * r);
    out[2] = mad(factor, ratio_x, (v + v + T(1)) * ratio * r * r);
  } else {
    out[0] = (first ? s.before_w : s.w) * inverse_square;
    out[1] = (first ? T(1) - (rho_v + rho_v) : one_less + one_less - T(1)) * r;
    out[2] = -(v + ratio_xx) * r * r;
  }
}

}  // namespace fokker::math
