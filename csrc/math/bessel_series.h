// log I_v, its ratio and their derivatives for small hypot(v, x), by the ascending series.
//
//   I_v(x) = (x/2)^v / Gamma(v+1) S,  S = sum_k y^k / (k! (v+1)_k),  y = x^2/4            DLMF 10.25.2
//
// S = A_1 / B_1 by the division-free pair B_k = k (v+k) B_{k+1}, A_k = B_k + y A_{k+1}; every term is positive.
// Derivatives of S ride along as derivatives of the pair, and psi(v+1) + d log B/dv = psi(v+N+1) leaves digamma only
// where its expansion is short.
#pragma once

#include "math/bessel_fn.h"
#include "math/bessel_log.h"

namespace fokker::math {
namespace detail {

// A and B with their partial derivatives (v: order, y: argument).
template <typename T> struct SeriesSums {
  DoubleWord<T> a, b, excess;  // excess = a - b without cancellation
  DoubleWord<T> ay;
  T ayy, ayyy;
  T av, avv, ayv, ayvv, ayyv;
};

// The float sums would overflow: both recurrences are multiplied by `scale`, which all quotients are free of.
template <typename T> FK_HD constexpr T series_scale() { return sizeof(T) == 8 ? T(1) : T(0.0625); }

// In single precision the last step, whose roundings weigh most, keeps its low parts; without fma there are more of
// them.
template <typename T> inline constexpr int kSeriesLowSteps = sizeof(T) == 8 ? 0 : (FK_HAS_FMA ? 1 : 3);

template <int N, typename T> FK_HD FK_INLINE SeriesSums<T> iv_series_sums(T v, DoubleWord<T> square) {
  constexpr T scale = series_scale<T>();
  const T y = square.hi * scale, y_lo = square.lo * scale;
  T a = T(1), b = T(1), a_lo = T(0), b_lo = T(0), ay = T(0), ay_lo = T(0), ayy = T(0), ayyy = T(0);
  T av = T(0), bv = T(0), avv = T(0), bvv = T(0), ayv = T(0), ayvv = T(0), ayyv = T(0);
  DoubleWord<T> excess = {T(0), T(0)};
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 64
#endif
  for (int k = N; k >= 1; --k) {
    const T kc = T(k) * scale, kk = T(k) * kc, t = mad(kc, v, kk);
    if (k == kSeriesLowSteps<T>) a_lo = y_lo * ay, ay_lo = y_lo * ayy;
    bvv = mad(t, bvv, T(2) * kc * bv);
    bv = mad(t, bv, kc * b);
    ayyv = mad(y, ayyv, T(2) * ayv);
    ayvv = mad(y, ayvv, avv);
    ayv = mad(y, ayv, av);
    avv = mad(y, avv, bvv);
    av = mad(y, av, bv);
    ayyy = mad(y, ayyy, T(3) * ayy);
    ayy = mad(y, ayy, T(2) * ay);
    if (k <= kSeriesLowSteps<T>) {
      const auto kv = two_prod(kc, v), t2 = two_sum(kv.hi, kk);  // k (v + k)
      const auto p = two_prod(t2.hi, b), q = two_prod(y, a), s = two_sum(q.hi, p.hi);
      const auto r = two_prod(y, ay), u = two_sum(r.hi, a);
      ay_lo = (u.lo + r.lo) + mad(y, ay_lo, mad(y_lo, ay, a_lo));
      b_lo = p.lo + mad(t2.hi, b_lo, (t2.lo + kv.lo) * b);
      excess = {q.hi, q.lo + mad(y, a_lo, y_lo * a)};
      b = p.hi, a = s.hi, ay = u.hi, a_lo = s.lo + (excess.lo + b_lo);
    } else {
      excess.hi = y * a;
      ay = mad(y, ay, a);
      b = t * b, a = mad(y, a, b);
    }
  }
  ay *= scale, ay_lo *= scale, ayy *= scale * scale, ayyy *= scale * scale * scale, ayv *= scale, ayvv *= scale,
      ayyv *= scale * scale;
  return {{a, a_lo}, {b, b_lo}, excess, {ay, ay_lo}, ayy, ayyy, av, avv, ayv, ayvv, ayyv};
}

// log(Gamma(1 + v)) / v on [0, 1/4].
template <typename T> FK_HD FK_INLINE T log_gamma1p_over_v(T v) {
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {-0.577215664901532709, 0.822467033423938126,  -0.400685634353012461,  0.270580805906176735,
                       -0.207385452633226677, 0.169554900116075458,  -0.144016263164178606,  0.125179245416448552,
                       -0.109133182277264841, 0.0901359179267493515, -0.0607120147368503745, 0.0233389205109973962};
    return horner(c, v);
  } else {
    constexpr T c[] = {T(-0.57721565549578873), T(0.822464316464711365),  T(-0.400556879788910285),
                       T(0.268312364223654636), T(-0.188785569815725678), T(0.0943169169015925601)};
    return horner(c, v);
  }
}

// log Gamma is Stirling's at z = v + 1 + shift. In single precision a product (v+1) ... (v+shift) would cost too many
// digits.
template <typename T> inline constexpr int kGammaShift = sizeof(T) == 8 ? 8 : 0;

// Stirling's sum S = log Gamma(z) - (z - 1/2) log z + z - log(2 pi)/2, iz = 1/z: the expansion (DLMF 5.11.1) for z >=
// 9, in single precision a fit in Chebyshev nodes for 1.25 <= z <= 11.2.
template <typename T> FK_HD FK_INLINE T stirling(T iz) {
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {1.0 / 12, -1.0 / 360, 1.0 / 1260, -1.0 / 1680, 1.0 / 1188, -691.0 / 360360, 1.0 / 156};
    return iz * horner(c, iz * iz);
  } else {
    constexpr T c[] = {T(0.0833333721642869819),     T(-1.1550193147731333e-6), T(-0.00276396942133596276),
                       T(-0.0000876013136406057365), T(0.00111728499310867596), T(-0.000698379381447609621),
                       T(0.000162155589128493277)};
    return iz * horner(c, iz);
  }
}

// log((v+1) ... (v+shift)) - (shift + 1/2) log z as hi + lo, hi an exact multiple of ln2_hi.
template <typename T> FK_HD FK_INLINE DoubleWord<T> log_product_over_power(T v, T z, T iz) {
  using C = LogConstants<T>;
  T inside, rest;
  if constexpr (kGammaShift<T> == 8) {
    const T c = v * z, p = ((c + T(8)) * (c + T(20))) * ((c + T(14)) * (c + T(18)));
    const T i2 = iz * iz, i4 = i2 * i2, q = p * (i4 * i4);
    inside = (q * q) * iz, rest = T(8.5) * residual(T(1), z, iz);  // the last for the rounding of iz
  } else {
    inside = z, rest = T(0);
  }
  const auto l = split_log(inside);
  const T half = kGammaShift<T> == 8 ? T(0.5) : T(-0.5), k = half * l.k;
  return {k * C::ln2_hi, mad(k, C::ln2_lo, mad(half, l.rest, rest))};
}

// v log(x/2) - log Gamma(v+1) as hi + lo; x = x1 2^kx.
template <typename T> FK_HD FK_INLINE DoubleWord<T> log_power_over_gamma(T v, T x1, T kx) {
  using C = LogConstants<T>;
  const bool small = v < T(0.25);  // there a factor v comes off exactly
  const T z = v + T(kGammaShift<T> + 1), iz = T(1) / z;
  auto q = ratio_log(x1, small ? T(2) : T(2) * z);
  q.k += kx;
  DoubleWord<T> by_v;
  if constexpr (sizeof(T) == 8) {
    by_v = {v * (q.value() - log_gamma1p_over_v(v)), T(0)};
  } else {
    const auto s = two_sum(q.k * C::ln2_hi, T(2) * q.s.hi), t = two_sum(s.hi, -log_gamma1p_over_v(v));
    const auto p = two_prod(v, t.hi);
    by_v = {p.hi, mad(v, (s.lo + t.lo) + mad(q.k, C::ln2_lo, mad(T(2), q.s.lo, q.tail())), p.lo)};
  }
  const auto a = two_prod(v, q.k * C::ln2_hi), b = two_prod(v, T(2) * q.s.hi);
  const auto g = log_product_over_power(v, z, iz);
  const auto s1 = two_sum(a.hi, z), s2 = two_sum(s1.hi, g.hi - C::half_log_2pi_hi), s3 = two_sum(s2.hi, b.hi);
  const T rest = v * mad(q.k, C::ln2_lo, mad(T(2), q.s.lo, q.tail())) + (g.lo - stirling(iz) - C::half_log_2pi_lo);
  const T lo = (s1.lo + s2.lo + s3.lo) + ((a.lo + b.lo) + rest);
  return {small ? by_v.hi : s3.hi, small ? by_v.lo : lo};
}

// log(a / b), a >= b, excess = a - b, as hi + lo with hi an exact multiple of ln2_hi; relatively accurate near a = b.
template <typename T>
FK_HD FK_INLINE DoubleWord<T> log_quotient(DoubleWord<T> a, DoubleWord<T> b, DoubleWord<T> excess) {
  using C = LogConstants<T>;
  const auto p = ratio_scale(a.hi, b.hi);
  const T m = a.hi * p.inverse, lo = sizeof(T) == 8 ? T(0) : mad(a.lo, p.inverse, -b.lo);
  const T num = p.k == T(0) ? excess.hi + excess.lo : (m - b.hi) + lo;
  // s^2 and s^3 by themselves would be subnormal, and slow, at small x.
  const T s = num / (m + b.hi), t = max(abs(s), T(1e-15)), z = t * t;
  return {p.k * C::ln2_hi, mad(p.k, C::ln2_lo, mad(s * atanh_tail(z), z, s + s))};
}

// log(x/2) - psi(z) for z >= 9; x = x1 2^kx.                                               DLMF 5.11.2
template <typename T> FK_HD FK_INLINE T log_half_x_minus_digamma(T x1, T kx, T z) {
  const T iz = T(1) / z, w = iz * iz;
  auto q = ratio_log(x1, T(2) * z);
  q.k += kx;
  T sum;  // psi(z) - log z + 1/(2z), over -1/z^2
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {1.0 / 12,  -1.0 / 120,     1.0 / 252, -1.0 / 240,
                       1.0 / 132, -691.0 / 32760, 1.0 / 12,  -3617.0 / 8160};
    sum = horner(c, w);
  } else {
    constexpr T c[] = {T(1.0 / 12), T(-1.0 / 120), T(1.0 / 252)};
    sum = horner(c, w);
  }
  return q.value() + mad(w, sum, T(0.5) * iz);
}

// psi'(z) for z >= 9.                                                                      DLMF 5.15.8
template <typename T> FK_HD FK_INLINE T trigamma(T z) {
  const T iz = T(1) / z, w = iz * iz;
  constexpr T c[] = {T(1.0 / 6), T(-1.0 / 30), T(1.0 / 42), T(-1.0 / 30), T(5.0 / 66), T(-691.0 / 2730), T(7.0 / 6)};
  return iz + w * mad(iz, horner(c, w), T(0.5));
}

}  // namespace detail

// Tiers by x: how many terms the series wants (v = 0 is the slowest order). Tier 0 is for x near the least normal
// number.
template <typename T> inline constexpr int kSeriesTiers = sizeof(T) == 8 ? 4 : 3;
template <typename T> FK_HD FK_INLINE int iv_series_tier(T x) {
  if constexpr (sizeof(T) == 8) return (x > T(1e-290) ? 1 : 0) + (x > T(4) ? 1 : 0) + (x > T(12) ? 1 : 0);
  else return (x > T(1e-30) ? 1 : 0) + (x > T(4) ? 1 : 0);
}
FK_HD constexpr int iv_series_terms(int tier, bool is_double) {
  constexpr int f64[] = {10, 16, 26, 40}, f32[] = {8, 10, 18};
  return is_double ? f64[tier] : f32[tier];
}

// F in {log_iv, log_ive, iv_ratio} for x of a tier.
template <Fn F, int Order, int Tier, typename T> FK_HD FK_INLINE void iv_series(T v, T x, T* out) {
  constexpr int N = iv_series_terms(Tier, sizeof(T) == 8);
  constexpr bool Lift = Tier == 0;
  constexpr int up = Lift ? (sizeof(T) == 8 ? 200 : 54) : 0;
  constexpr T lift = detail::power_of_two<T>(up), kx = T(-up);
  const T half = T(0.5) * x, y = half * half;
  const auto m = detail::iv_series_sums<N>(v, two_prod(half, half));
  if constexpr (F != Fn::iv_ratio && Order == 0) {
    const auto head = detail::log_power_over_gamma(v, x * lift, kx);
    const auto sum = detail::log_quotient(m.a, m.b, m.excess);
    auto s = two_sum(head.hi, sum.hi);
    T lo = s.lo + (head.lo + sum.lo);
    if constexpr (F == Fn::log_ive) {
      s = two_sum(s.hi, -x);
      lo += s.lo;
    }
    out[0] = s.hi + lo;
    return;
  }
  const T ia = T(1) / m.a.hi, ly = m.ay.hi * ia, lv = m.av * ia, q = T(0.5) * ly;
  T rest = detail::residual(m.ay.hi, ly, m.a.hi);
  if constexpr (detail::kSeriesLowSteps<T> > 0) rest += m.ay.lo - ly * m.a.lo;
  const T ratio = mad(half, ly, half * (rest * ia));  // I_{v+1}/I_v = x q(v, y), q = (log S)_y / 2
  if constexpr (F == Fn::iv_ratio && Order == 0) {
    out[0] = ratio;
    return;
  }
  const T qv = T(0.5) * (m.ayv * ia - ly * lv), qy = T(0.5) * (m.ayy * ia - ly * ly);
  const T ratio_x = mad(T(2) * y, qy, q);
  if constexpr (Order == 1) {
    if constexpr (F == Fn::iv_ratio) {
      out[0] = x * qv;
      out[1] = ratio_x;
    } else {
      out[0] = detail::log_half_x_minus_digamma(x * lift, kx, v + T(N + 1)) + lv;
      out[1] = v / x + (F == Fn::log_ive ? ratio - T(1) : ratio);
    }
  } else if constexpr (F != Fn::iv_ratio) {
    out[0] = m.avv * ia - lv * lv - detail::trigamma(v + T(N + 1));
    out[1] = T(1) / x + x * qv;
    out[2] = ratio_x - v / x / x;
  } else {
    const T qvv = T(0.5) * (m.ayvv * ia - ly * (m.avv * ia)) - T(2) * lv * qv;
    const T qyv = T(0.5) * (m.ayyv * ia - m.ayy * ia * lv) - T(2) * ly * qv;
    const T qyy = T(0.5) * (m.ayyy * ia - ly * (m.ayy * ia)) - T(2) * ly * qy;
    out[0] = x * qvv;
    out[1] = mad(T(2) * y, qyv, qv);
    out[2] = half * mad(T(2) * y, qyy, T(3) * qy);
  }
}

}  // namespace fokker::math
