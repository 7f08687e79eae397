// log K_v(x), K_{v+1}/K_v and their derivatives for small x, v < 25.5 (float: 10.5), by Temme's formula.
//
// With l = log(2/x), y = x^2/4 and G(mu) = sum_k y^k / (k! Gamma(1 + mu + k)), that is I_mu = (x/2)^mu G(mu), G split
// into Ge(mu^2) + mu Go(mu^2), DLMF 10.27.4 becomes Temme's formula (J. Comput. Phys. 19, 1975) with its series summed:
//   k_0 = (x/2)^mu K_mu = pi mu / sin(pi mu) (A Ge - C Go),  A = (1 - E) / (2 mu), C = (1 + E) / 2, E = e^(-2 mu l),
//   k_1 = (x/2)^(mu+1) K_{mu+1} = (1/2 - y dG/dy k_0) / G  (the Wronskian 10.28.2).
// G is entire in mu and y, so Ge and Go are short polynomials, whose derivatives in mu are at hand; mu = 0 is nothing
// special. It holds up to x = 2, but k_0 is a difference that loses digits as x grows: see k_uses_series.
#pragma once

#include "math/bessel_fn.h"
#include "math/bessel_k_coefficients.h"
#include "math/bessel_k_recurrence.h"
#include "math/bessel_log.h"

namespace fokker::math {
namespace detail {

// Moments m_j = int_0^1 t^j e^(s t) dt, j = 1, 2, and e^s; m_0 = 1 + s / 2 + rest for |s| <= 1. Large positive s is cut
// off: it arises only for mu < 0 and x so small that y removes what it enters.
template <typename T> struct ExpMoments {
  T exp, rest, m1, m2;
};
template <typename T> FK_HD FK_INLINE ExpMoments<T> exp_moments(DoubleWord<T> s2) {
  constexpr T lowest = sizeof(T) == 8 ? T(-700) : T(-85), highest = sizeof(T) == 8 ? T(300) : T(28);
  const T s = s2.hi;
  const auto p = exp_parts(min(max(s, lowest), highest));
  const T scale = pow2(p.n), exp_hi = mad(scale, p.r + p.tail, scale), exp = mad(exp_hi, s2.lo, exp_hi);
  const bool series = abs(s) <= T(2);
  const T m2_series = second_moment(min(max(s, T(-2)), T(2)));
  const T r = T(1) / (series ? T(1) : s), m0 = (exp - T(1)) * r;
  const T m1 = series ? T(0.5) * mad(-s, m2_series, exp) : (exp - m0) * r;
  return {exp, s * s * exp_tail(min(max(s, T(-1)), T(1))), m1, series ? m2_series : mad(T(-2), m1, exp) * r};
}

// log(2 / x) in two words, relatively accurate next to x = 2 and for subnormal x.
template <typename T> FK_HD FK_INLINE DoubleWord<T> log_two_over(T x) {
  const bool subnormal = x < Format<T>::min_normal;
  const auto p = log_parts(subnormal ? x * Format<T>::rescale : x);
  const T k = T(1) - (subnormal ? p.k - T(54) : p.k);
  return two_sum(k * Format<T>::ln2_hi, mad(k, Format<T>::ln2_lo, -log_sum<false>(T(0), p.f, T(0))));
}

// A in two words: l m_0 while |s| <= 1, s = -2 mu l, beyond that the quotient as it stands.
template <typename T> FK_HD FK_INLINE DoubleWord<T> temme_a(T mu, DoubleWord<T> l, DoubleWord<T> s, ExpMoments<T> m) {
  const bool near = abs(s.hi) <= T(1);
  const auto linear = two_prod(l.hi, T(0.5) * s.hi), head = two_sum(l.hi, linear.hi);
  const T head_lo = (head.lo + linear.lo) + mad(l.hi, mad(T(0.5), s.lo, m.rest), l.lo);
  const T width = near ? T(1) : mu + mu, top = T(1) - m.exp, top_lo = (T(1) - top) - m.exp, q = top / width;
  const auto back = two_prod(q, width);
  return {near ? head.hi : q, near ? head_lo : (((top - back.hi) - back.lo) + top_lo) / width};
}

template <typename T> struct TemmeStart {
  Jet<T> k0, k1;
  T k0_lo, k1_lo;  // the words below k0.f, k1.f
  T slope, mixed;  // d/dmu log K_mu and x d2/dmudx log K_mu, exactly odd in mu
};
template <typename T> FK_HD FK_INLINE TemmeStart<T> temme_start(T mu, T y, DoubleWord<T> log_term) {
  constexpr double euler_64 = 0.57721566490153286;
  constexpr T euler = T(euler_64), euler_lo = sizeof(T) == 8 ? T(-4.9429151524310644e-18) : T(euler_64 - double(euler));
  const T z = mu * mu, l = log_term.hi;
  const auto s = mul(log_term, T(-2) * mu);
  const auto m = exp_moments(s);
  // Ge = 1 + ge_rest, Go = euler + go_rest, pi mu / sin(pi mu) = 1 + sine_rest: in each the constant carries most
  // digits
  const auto even = temme_even(y, z), odd = temme_odd(y, z);
  const Jet<T> ge_rest = even_in(mu, z, even.f), ge = {T(1) + ge_rest.f, ge_rest.d1, ge_rest.d2};
  const Jet<T> go_rest = even_in(mu, z, odd.f), go = {euler + go_rest.f, go_rest.d1, go_rest.d2};
  const Jet<T> sine_rest = reciprocal_sinc(z), sine = even_in(mu, z, {T(1) + sine_rest.f, sine_rest.d1, sine_rest.d2});

  const auto a_pair = temme_a(mu, log_term, s, m);
  const Jet<T> a = {a_pair.hi + a_pair.lo, T(-2) * l * l * m.m1, T(4) * l * l * l * m.m2};
  const Jet<T> c = {mad(T(0.5), m.exp, T(0.5)), -l * m.exp, T(2) * l * l * m.exp};
  const Jet<T> difference = a * ge - c * go;
  const T small = mad(a.f, ge_rest.f, -mad(c.f, euler, c.f * (go_rest.f + euler_lo)));
  auto inner = two_sum(a_pair.hi, a_pair.lo + small);
  if constexpr (sizeof(T) == 4) {  // the constant half of C Go apart: the rest is small, and so are its roundings
    const T half_e = T(0.5) * m.exp, apart = mad(a.f, ge_rest.f, -mad(half_e, go.f, T(0.5) * (go_rest.f + euler_lo)));
    const auto head = two_sum(a_pair.hi, T(-0.5) * euler);
    inner = two_sum(head.hi, apart + (head.lo + a_pair.lo));
  }
  const Jet<T> k0 = sine * Jet<T>{inner.hi, difference.d1, difference.d2};
  const T k0_lo = mad(inner.hi, sine_rest.f - (sine.f - T(1)), mad(inner.lo, sine.f, two_prod(inner.hi, sine.f).lo));

  // l + k_0'/k_0, where all that is not a multiple of mu has cancelled by hand; _x stands for x d/dx = -d/dl + 2 y d/dy
  const T cube = l * l * l * (m.m1 - m.m2),
          change = mad(cube, ge.f, a.f * even.f.d1) - mad(T(0.5) * l * a.f, go.f, c.f * odd.f.d1);
  const T change_l =
      mad(l * l * m.m1, ge.f, m.exp * even.f.d1) - mad(T(0.5) * mad(l, m.exp, a.f), go.f, -(mu * m.exp * odd.f.d1));
  const T change_y =
      mad(cube, even.slope.f, a.f * even.slope.d1) - mad(T(0.5) * l * a.f, odd.slope.f, c.f * odd.slope.d1);
  const T inner_x = mad(y + y, mad(a.f, even.slope.f, -(c.f * odd.slope.f)), -(m.exp * mad(mu, go.f, ge.f)));
  const T change_x = mad(y + y, change_y, -change_l),
          mixed = T(2) * mu * (change_x - change * inner_x / inner.hi) / inner.hi;
  const T slope = T(2) * mu * (sine_rest.d1 / sine.f + change / inner.hi);
  const Jet<T> k0_fine = {k0.f, s.hi < T(-4) ? k0.d1 : k0.f * (slope - l), k0.d2};

  const Jet<T> g = {mad(mu, go.f, ge.f), mad(mu, go.d1, go.f) + ge.d1, mad(mu, go.d2, T(2) * go.d1) + ge.d2};
  const Jet<T> g_next = even_in(mu, z, even.slope) + odd_in(mu, z, odd.slope), product = (g_next * k0_fine) * -y;
  const T top = T(0.5) + product.f, top_lo = product.f - (top - T(0.5));
  const Jet<T> k1 = Jet<T>{top, product.d1, product.d2} / g;
  const auto slant = two_prod(mu, euler), g_sum = two_sum(T(1), slant.hi);
  const T g_lo = (g_sum.lo + slant.lo) + mad(mu, go_rest.f + euler_lo, ge_rest.f) - (g.f - g_sum.hi);
  const auto back = two_prod(k1.f, g.f);
  const T k1_lo = (((top - back.hi) - back.lo) + mad(-k1.f, g_lo, top_lo)) / g.f;
  return {k0_fine, k1, k0_lo, k1_lo, slope, mixed};
}

}  // namespace detail

// Writes the derivatives of order Order of F at 0 < x <= 2; see bessel_k_small.h.
template <Fn F, int Order, typename T, int Steps = detail::k_max_steps<T>>
FK_HD FK_INLINE void k_temme(T v, T x, T* out) {
  using namespace detail;
  constexpr bool precise = Order == 0 && sizeof(T) == 4 && F != Fn::kv_ratio;
  const T n = round_to_integer(v), mu = v - n, half = T(0.5) * x, y = half * half;
  const auto l = log_two_over(x);
  const auto start = temme_start(mu, y, l);
  const auto s =
      k_advance<Steps, precise>(k_state(start.k0, start.k1, T(0), start.k0_lo, start.k1_lo), {mu, n, y, T(1), T(0)});
  const bool first = n < T(0.5);
  const T k = first ? s.before : s.k;
  // rho = x K_{v+1} / (2 K_v) = v + tau, tau = x K_{v-1} / (2 K_v)
  const T tail = y * s.before / k, rho0 = s.k / k;
  const T rho = first ? rho0 : v + tail, tau = first ? rho0 - v : tail;
  if constexpr (Order == 0 && F == Fn::kv_ratio) {
    // Next to order 0 K_v is a difference: there the quotients keep what its first word lost.
    T low = T(0);
    if constexpr (sizeof(T) == 4)
      low = first ? (residual(s.k, rho0, k) + mad(-rho0, start.k0_lo, start.k1_lo)) / k : T(0);
    const T twice = rho + rho, ratio = twice / x;
    const bool fine = sizeof(T) == 4 && ratio < T(1e30);  // beyond, a product in two words without fma overflows
    out[0] = fine ? ratio + (residual(twice, ratio, x) + (low + low)) / x : ratio;
    return;
  } else if constexpr (Order == 0) {
    // v log(2 / x) + log k_n, in two words up to the last sum
    const auto p = log_parts(k);
    const auto power = two_prod(v, l.hi), sum = two_sum(power.hi, p.k * Format<T>::ln2_hi);
    T low = mad(v, l.lo, power.lo) + mad(p.k, Format<T>::ln2_lo, sum.lo);
    if constexpr (precise) low += (first ? s.before_lo : s.k_lo) / k;
    const T rest = log_sum<false>(T(0), p.f, T(0)) + low;
    out[0] = sum.hi + (F == Fn::log_kve ? rest + x : rest);
    return;
  }
  const T slope = (first ? s.before_d1 : s.d1) / k, inverse_square = T(1) / (k * k);
  const T one_less = y * s.casoratian * inverse_square;  // 1 - d rho / dv for n > 0
  const T rho_v = first ? s.casoratian * inverse_square : T(1) - one_less;
  const T ratio_xx = mad(rho + rho, tau + tau - T(1), T(-4) * y);  // x^2 d(K_{v+1} / K_v)/dx
  // Powers of x divide last: 1 / x is infinite for subnormal x, and what it multiplies may be zero or cancel.
  if constexpr (Order == 1 && F == Fn::kv_ratio) {
    out[0] = (rho_v + rho_v) / x, out[1] = ratio_xx / x / x;
  } else if constexpr (Order == 1) {
    const T slope_x = (v - (rho + rho)) / x;
    out[0] = first ? start.slope : l.hi + slope;
    out[1] = F == Fn::log_kve ? slope_x + T(1) : slope_x;
  } else if constexpr (F == Fn::kv_ratio) {
    const T curve = mad(T(2) * slope, s.casoratian, -s.casoratian_d1) * inverse_square;
    const T order = v + v + T(1), factor = T(4) * rho - order;
    out[0] = first ? T(-2) * curve / x : half * curve;
    out[1] = mad(factor, rho_v + rho_v, T(-4) * rho) / x / x;
    out[2] = mad(factor, ratio_xx, order * (rho + rho)) / x / x / x;
  } else {
    out[0] = (first ? s.before_w : s.w) * inverse_square;
    out[1] = (first ? start.mixed : one_less + one_less - T(1)) / x;
    out[2] = -(v + ratio_xx) / x / x;
  }
}

}  // namespace fokker::math
