// The six log-Bessel functions and their derivatives for hypot(v, x) >= 25 (float: 10), by Debye's expansion in polar
// form.
//
//   r = hypot(v, x), w = 1/r, s = (v/r)^2, L = r + v log(x / (v + r)),   DLMF 10.41.3-4, 10.41.7
//   log I_v(x) =  L - log(2 pi r)/2   + sum_k D_k(s) w^k
//   log K_v(x) = -L + log(pi/(2 r))/2 + sum_k D_k(s) (-w)^k
//
// Derivatives differentiate every part by itself, L in closed form and the sum term by term, so nothing large cancels:
//   L_v = -asinh(v/x), L_x = r/x,  d/dx (v^2j r^-n) = -n x w^2 (v^2j r^-n),  d/dv likewise (DebyeRows).
// L itself cancels against the rest where log I or log K crosses zero, x = 0.6627 v: it is summed in double-word
// arithmetic around x / (v + r) = 16/53, whose logarithm is a constant, so that what is left to compute is small there.
#pragma once

#include "math/bessel_fn.h"
#include "math/bessel_log.h"
#include "math/debye_coefficients.h"

namespace fokker::math {

constexpr bool is_k(Fn f) { return f == Fn::log_kv || f == Fn::log_kve || f == Fn::kv_ratio; }
constexpr bool is_ratio(Fn f) { return f == Fn::iv_ratio || f == Fn::kv_ratio; }
constexpr bool is_scaled(Fn f) { return f == Fn::log_ive || f == Fn::log_kve; }

namespace detail {

// Coefficients c[k][j] of s^j w^k in d^(Dv+Dx)/dv^Dv dx^Dx of -log(r)/2 + sum D_k w^k, a prefix apart:
// (v w)^(Dv mod 2) (x w)^(Dx mod 2) w^ceil(Dv/2) w^ceil(Dx/2), each w^ceil squared when the order is even.
struct DebyeRows {
  double c[kDebyeTerms + 1][kDebyeTerms + 4];
};
template <int Dv, int Dx> FK_HD constexpr DebyeRows make_debye_rows() {
  DebyeRows p{}, q{};
  for (int k = 1; k <= kDebyeTerms; ++k)
    for (int j = 0; j <= k; ++j) p.c[k][j] = math::debye_coefficient(k, j);
  int extra = 0;  // power of w in the prefix
  for (int step = 0; step < Dv + Dx; ++step) {
    const bool by_v = step < Dv, odd = by_v ? step % 2 == 1 : (step - Dv) % 2 == 1;
    q = DebyeRows{};
    for (int k = 0; k <= kDebyeTerms; ++k) {
      if (step == 0 && k == 0) {
        q.c[0][0] = -0.5;  // d/dv and d/dx of -log(r)/2 are -v w^2/2 and -x w^2/2
        continue;
      }
      for (int j = 0; j <= kDebyeTerms + 2; ++j) {
        const double c = p.c[k][j], n = k + extra + 2 * j;
        if (c == 0) continue;
        if (by_v && !odd) {
          if (j > 0) q.c[k][j - 1] += 2 * j * c;
          q.c[k][j] -= n * c;
        } else if (by_v) {
          q.c[k][j] += (1 + 2 * j) * c;
          q.c[k][j + 1] -= n * c;
        } else if (!odd) {
          q.c[k][j] -= n * c;
        } else {
          q.c[k][j] += (1 - n) * c;
          q.c[k][j + 1] += n * c;
        }
      }
    }
    if (!odd) extra += 2;
    p = q;
  }
  return p;
}
template <int Dv, int Dx> inline constexpr DebyeRows debye_rows = make_debye_rows<Dv, Dx>();

template <int Dv, int Dx> FK_HD constexpr int debye_degree(int k) {
  int degree = 0;
  for (int j = 0; j < kDebyeTerms + 4; ++j)
    if (debye_rows<Dv, Dx>.c[k][j] != 0) degree = j;
  return degree;
}

template <int Dv, int Dx, int k, int j, typename T> FK_HD FK_INLINE T debye_row(T s) {
  constexpr T c = T(debye_rows<Dv, Dx>.c[k][j]);
  if constexpr (j >= debye_degree<Dv, Dx>(k)) return c;
  else return mad(debye_row<Dv, Dx, k, j + 1>(s), s, c);
}
template <int Dv, int Dx, int k, int K, typename T> FK_HD FK_INLINE T debye_rows_sum(T s, T w) {
  if constexpr (k == K) return debye_row<Dv, Dx, k, 0>(s);
  else return mad(debye_rows_sum<Dv, Dx, k + 1, K>(s, w), w, debye_row<Dv, Dx, k, 0>(s));
}
// The sum over k <= K terms; pass -w for K_v.
template <int Dv, int Dx, int K, typename T> FK_HD FK_INLINE T debye_sum(T s, T w) {
  if constexpr (Dv + Dx == 0) return w * debye_rows_sum<0, 0, 1, K>(s, w);
  else return debye_rows_sum<Dv, Dx, 0, K>(s, w);
}

// Where v^2 + x^2 or a low part could leave the range of T: scale by powers of two.
template <typename T> struct DebyeScale {
  static constexpr int huge = sizeof(T) == 8 ? 500 : 60;    // v or x above 2^huge
  static constexpr int down = sizeof(T) == 8 ? 600 : 68;    // is multiplied by 2^-down
  static constexpr int tiny = sizeof(T) == 8 ? -500 : -60;  // x below 2^tiny
  static constexpr int up = sizeof(T) == 8 ? 560 : 100;     // is multiplied by 2^up
};

// Everything the formulas share. With Scaled, v, xs, r, r_lo are the true ones times `down`, x the true one times `up`:
// where v is huge and x is not, xs would be too small.
template <bool Scaled, typename T> struct Polar {
  T v, xs, x, down, up, k;  // x / (v + r) in terms of the true ones: 2^k times that of the scaled ones
  T r, r_lo, w, vw, xw, s;  // w = 1/r of the true r

  FK_HD FK_INLINE Polar(T v0, T x0) {
    v = v0, xs = x = x0, down = up = T(1), k = T(0);
    if constexpr (Scaled) {
      using S = DebyeScale<T>;
      constexpr T high = power_of_two<T>(S::huge), low = power_of_two<T>(S::tiny);
      constexpr T shrink = power_of_two<T>(-S::down), grow = power_of_two<T>(S::up);
      const bool huge = max(v0, x0) > high;
      down = huge ? shrink : T(1);
      up = x0 > high ? shrink : (x0 < low ? grow : T(1));
      v = v0 * down, xs = x0 * down, x = x0 * up;
      k = (huge ? T(-S::down) : T(0)) - (x0 > high ? T(-S::down) : (x0 < low ? T(S::up) : T(0)));
    }
    const auto vv = two_prod(v, v), xx = two_prod(xs, xs), sum = two_sum(vv.hi, xx.hi);
    r = sqrt(sum.hi);
    const T inverse = T(1) / r;
    r_lo = T(0.5) * inverse * (residual(sum.hi, r, r) + (sum.lo + (vv.lo + xx.lo)));
    vw = v * inverse, xw = xs * inverse, s = vw * vw;
    w = Scaled ? inverse * down : inverse;
  }
  FK_HD FK_INLINE DoubleWord<T> v_plus_r() const {
    const auto t = fast_two_sum(r, v);
    return {t.hi, t.lo + r_lo};
  }
  // a / x for an a that is true to size, and for one that has been scaled down as r has.
  FK_HD FK_INLINE T over_x(T a) const { return Scaled ? a / x * up : a / x; }
  FK_HD FK_INLINE T scaled_over_x(T a) const { return Scaled ? a / x * up / down : a / x; }
  FK_HD FK_INLINE SplitLog<T> log_r() const {
    auto l = split_log(r);
    if constexpr (Scaled) l.k += down < T(1) ? T(DebyeScale<T>::down) : T(0);
    return l;
  }
};

// asinh(v/x) = k ln 2 + 2 atanh(s); for v << x, s = v / (r + x) = tau keeps the relative precision of v.
template <bool Scaled, typename T>
FK_HD FK_INLINE RatioLog<T> debye_asinh(const Polar<Scaled, T>& p, DoubleWord<T> tau) {
  auto q = ratio_log(p.v_plus_r(), DoubleWord<T>{p.x, T(0)});
  q.k -= p.k;
  return {q.k, {q.k == T(0) ? tau.hi : q.s.hi, q.k == T(0) ? tau.lo : q.s.lo}};
}
// tau = v / (r + x)
template <bool Scaled, typename T> FK_HD FK_INLINE DoubleWord<T> debye_tau(const Polar<Scaled, T>& p) {
  const auto d = fast_two_sum(p.r, p.xs);
  const T reciprocal = T(1) / d.hi, tau = p.v * reciprocal;
  return {tau, (residual(p.v, tau, d.hi) - tau * (d.lo + p.r_lo)) * reciprocal};
}

// (v + r) / x = exp(asinh(v/x)), or its inverse, to little more than the final rounding.
template <bool Positive, bool Scaled, typename T> FK_HD FK_INLINE T debye_exp_asinh(const Polar<Scaled, T>& p) {
  const auto t = p.v_plus_r();
  if constexpr (Positive) {
    const T reciprocal = T(1) / p.x, q = t.hi * reciprocal;
    const T value = q + (residual(t.hi, q, p.x) + t.lo) * reciprocal;
    return Scaled ? value * p.up / p.down : value;
  } else {
    const T reciprocal = T(1) / t.hi, q = p.xs * reciprocal;
    return q + (residual(p.xs, q, t.hi) - q * t.lo) * reciprocal;
  }
}

// With Scaled the logarithm may leave the range of T; its low parts are nan then.
template <bool Scaled, typename T> FK_HD FK_INLINE T finite_or(T value, T big) {
  if constexpr (Scaled) return abs(big) < infinity<T>() ? value : big;
  else return value;
}

// sign L - log(r)/2 + hi + lo + sum, all of it in about twice the working precision but `sum`.
template <bool Scaled, typename T> FK_HD FK_INLINE T debye_log(const Polar<Scaled, T>& p, T sign, T hi, T lo, T sum) {
  using C = LogConstants<T>;
  const auto q = ratio_log(two_prod(p.x, T(3.3125)), p.v_plus_r());  // x / (v + r) over 16/53
  const T k = q.k + p.k;
  const auto a = two_prod(p.v, mad(k, C::ln2_hi, C::log_16_53_hi)), b = two_prod(p.v, T(2) * q.s.hi);
  const T small = p.v * (mad(k, C::ln2_lo, C::log_16_53_lo) + mad(T(2), q.s.lo, q.tail()));
  const auto l = p.log_r();
  const auto ra = two_sum(p.r, a.hi), rab = two_sum(ra.hi, b.hi);
  T big = sign * rab.hi, rest = sign * ((ra.lo + rab.lo) + ((a.lo + b.lo) + (p.r_lo + small)));
  if constexpr (Scaled) big = big / p.down, rest = rest / p.down;
  const auto total = two_sum(big, mad(T(-0.5) * l.k, C::ln2_hi, hi));
  const T half = mad(T(-0.5), mad(l.k, C::ln2_lo, l.rest), mad(T(-0.5) * p.r_lo, p.w / p.down, lo));
  return finite_or<Scaled>(total.hi + (total.lo + (rest + (sum + half))), big);
}

// sign (L - x) - log(r)/2 + hi + lo + sum; L - x = -v (asinh(v/x) - tau). The leading terms have two words because
// log(K e^x) crosses zero.
template <bool Scaled, typename T>
FK_HD FK_INLINE T debye_log_scaled(const Polar<Scaled, T>& p, T sign, T hi, T lo, T sum) {
  using C = LogConstants<T>;
  const auto tau = debye_tau(p);
  const auto q = debye_asinh(p, tau);
  const auto d = two_sum(T(2) * q.s.hi, -tau.hi);
  const auto a = two_prod(p.v, q.k * C::ln2_hi), b = two_prod(p.v, d.hi);
  const T small = p.v * (mad(q.k, C::ln2_lo, q.tail()) + (d.lo + mad(T(2), q.s.lo, -tau.lo)));
  const auto l = p.log_r();
  const auto ab = two_sum(a.hi, b.hi);
  T big = -sign * ab.hi, rest = -sign * (ab.lo + ((a.lo + b.lo) + small));
  if constexpr (Scaled) big = big / p.down, rest = rest / p.down;
  const auto total = two_sum(big, mad(T(-0.5) * l.k, C::ln2_hi, hi));
  const T value = total.hi + (total.lo + (rest + (sum + mad(T(-0.5), mad(l.k, C::ln2_lo, l.rest), lo))));
  return finite_or<Scaled>(value, big);
}

}  // namespace detail

// Value (Order 0), (d/dv, d/dx) (Order 1) or (d2/dv2, d2/dvdx, d2/dx2) (Order 2) of F with K terms of the sum.
// Scaled: for v or x above 2^500 (float 2^60) or x below 2^-500 (2^-60).
template <Fn F, int Order, int K, bool Scaled = false, typename T> FK_HD FK_INLINE void debye(T v, T x, T* out) {
  using C = detail::LogConstants<T>;
  using detail::debye_sum;
  const detail::Polar<Scaled, T> p(v, x);
  const T sign = is_k(F) ? T(-1) : T(1);  // of L
  const T w = p.w, sw = sign * w, s = p.s, vw = p.vw, xw = p.xw;
  if constexpr (Order == 0 && !is_ratio(F)) {
    const T sum = debye_sum<0, 0, K>(s, sw);
    const T hi = is_k(F) ? C::half_log_half_pi_hi : -C::half_log_2pi_hi;
    const T lo = is_k(F) ? C::half_log_half_pi_lo : -C::half_log_2pi_lo;
    if constexpr (is_scaled(F)) out[0] = detail::debye_log_scaled(p, sign, hi, lo, sum);
    else out[0] = detail::debye_log(p, sign, hi, lo, sum);
  } else if constexpr (!is_ratio(F) && Order == 1) {
    const auto tau = detail::debye_tau(p);
    out[0] = mad(vw * w, debye_sum<1, 0, K>(s, sw), -sign * detail::debye_asinh(p, tau).value());
    const T lx = p.scaled_over_x(is_scaled(F) ? p.v * tau.hi : p.r);  // L_x, or L_x - 1 = v^2 / (x (r + x))
    out[1] = mad(xw * w, debye_sum<0, 1, K>(s, sw), sign * lx);
  } else if constexpr (!is_ratio(F)) {
    const T u = p.scaled_over_x(p.v);  // v / x
    out[0] = w * mad(w, debye_sum<2, 0, K>(s, sw), -sign);
    out[1] = w * (vw * xw * w * debye_sum<1, 1, K>(s, sw)) + sign * p.over_x(vw);
    out[2] = w * w * debye_sum<0, 2, K>(s, sw) - sign * p.over_x(vw * u);
  } else {
    // (v + r)/x = exp(asinh(v/x)) for K, its inverse for I; the sum enters with the sign of L.
    const T lead = detail::debye_exp_asinh<is_k(F)>(p), one_vw = T(1) + vw;
    if constexpr (Order == 0) {
      out[0] = mad(sign * xw * w, debye_sum<0, 1, K>(s, sw), lead);
    } else if constexpr (Order == 1) {
      const T lv = is_k(F) ? p.over_x(one_vw) : -lead * w, lx = is_k(F) ? -lead * p.over_x(vw) : vw * w / one_vw;
      out[0] = mad(sign * vw * xw * w * w, debye_sum<1, 1, K>(s, sw), lv);
      out[1] = mad(sign * w * w, debye_sum<0, 2, K>(s, sw), lx);
    } else {
      T vv, vx, xx;
      if constexpr (is_k(F)) {
        vv = xw * w * w;
        vx = -p.over_x(p.over_x(mad(xw, xw, vw) * one_vw));
        xx = p.over_x(p.over_x(lead * vw * mad(xw, xw, one_vw)));
      } else {
        vv = lead * w * w * one_vw;
        vx = w * w * (xw * xw - vw) / one_vw;
        xx = -lead * w * w * vw * (T(1) + T(1) / one_vw);
      }
      out[0] = mad(sign * xw * w * w * w, debye_sum<2, 1, K>(s, sw), vv);
      out[1] = mad(sign * vw * w * w * w, debye_sum<1, 2, K>(s, sw), vx);
      out[2] = mad(sign * xw * w * w * w, debye_sum<0, 3, K>(s, sw), xx);
    }
  }
}

}  // namespace fokker::math
