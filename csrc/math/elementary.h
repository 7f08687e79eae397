// exp, expm1, log, log1p and sincos_2pi for float and double, branch-free, so that loops over them vectorise.
//
// Worst error in ulp, over every float and over stratified doubles (tests/test_elementary.py holds these figures):
//                exp   expm1  log   log1p  sincos_2pi
//   float        0.9   1.0    0.9   0.9    1.0 (1.7 where there is no hardware fma)
//   double       0.9   1.1    0.9   0.9    1.0 (1.7)
// nan gives nan, overflow inf; results of exp below the least normal number are 0; subnormal arguments keep the bound.
// sincos_2pi is for |u| <= 2^20 (float), 2^49 (double). No float version touches a double.
// Polynomials: Remez fits of the functions named beside them (tests/cpp/fit_polynomials.py).
//
// Exact = true asks for math::fma in every product-sum: the same bits on every build, contraction on or off.
#pragma once

#include "math/arithmetic.h"

namespace fokker::math {
namespace detail {

template <typename T> struct Format;
template <> struct Format<float> {
  using Bits = uint32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float ln2_hi = 0.693145751953125f, ln2_lo = 1.428606765330187e-06f;  // ln2_hi * k is exact
  static constexpr float min_normal = 1.17549435e-38f, rescale = 18014398509481984.0f;  // 2^-126, 2^54
  static constexpr float tiny = 2.9802322387695312e-08f;                                // 2^-25
  static constexpr float exp_lowest = -87.33654022216797f, exp_highest = 88.72283172607422f;
  static constexpr Bits sqrt_half = 0x3f3504f3u;
};
template <> struct Format<double> {
  using Bits = uint64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double to_integer = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_hi = 0.6931471805598903, ln2_lo = 5.497923018708371e-14;
  static constexpr double min_normal = 2.2250738585072014e-308, rescale = 18014398509481984.0;
  static constexpr double tiny = 5.5511151231257827e-17;  // 2^-54
  static constexpr double exp_lowest = -708.3964185322641, exp_highest = 709.782712893384;
  static constexpr Bits sqrt_half = 0x3fe6a09e667f3bcdull;
};

template <bool Exact, typename T> FK_HD FK_INLINE T fused(T a, T b, T c) {
  if constexpr (Exact) return fma(a, b, c);
  else return mad(a, b, c);
}
template <bool Exact, int I, int N, typename T> FK_HD FK_INLINE T polynomial(const T (&c)[N], T x) {
  if constexpr (I + 1 == N) return c[I];
  else return fused<Exact>(polynomial<Exact, I + 1>(c, x), x, c[I]);
}

// 2^n for an integer-valued n in the range of normal exponents; int64 <-> double conversions do not exist on AVX2.
template <typename T> FK_HD FK_INLINE T pow2(T n) {
  using F = Format<T>;
  const auto bits = bit_cast<typename F::Bits>(n + (F::to_integer + T(F::bias)));
  return bit_cast<T>(static_cast<typename F::Bits>(bits << F::mantissa));
}
template <typename T> FK_HD FK_INLINE T round_to_integer(T x) {
  return (x + Format<T>::to_integer) - Format<T>::to_integer;
}

// x = n ln 2 + r + r_lo, and tail = e^r - 1 - r (r_lo included) for |r| <= ln(2) / 2.
template <typename T> struct ExpParts {
  T n, r, tail;
};
template <typename T> FK_HD FK_INLINE ExpParts<T> exp_parts(T x) {
  using F = Format<T>;
  const T n = mad(x, T(1.4426950408889634074), F::to_integer) - F::to_integer;
  const T hi = mad(-n, F::ln2_hi, x);
  const T r = mad(-n, F::ln2_lo, hi);
  const T r_lo = mad(-n, F::ln2_lo, hi - r);
  T q;  // (e^r - 1 - r) / r^2
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {0.5,
                       0.16666666666666685,
                       0.04166666666666673,
                       0.008333333333316739,
                       0.0013888888888858623,
                       0.00019841269897059047,
                       2.4801587373399124e-05,
                       2.7557234236906983e-06,
                       2.7557233643259204e-07,
                       2.5112239749814175e-08,
                       2.0926857773632753e-09};
    q = horner(c, r);
  } else {
    constexpr T c[] = {T(0.5),
                       T(0.1666666686035011),
                       T(0.041666270416484436),
                       T(0.008333264430845321),
                       T(0.0013946046828053975),
                       T(0.0001991834511120707)};
    q = horner(c, r);
  }
  return {n, r, mad(r * r, q, r_lo)};
}

// x * 2^n in two steps, so that n may leave the range of normal exponents; one rounding.
template <typename T> FK_HD FK_INLINE T scale(T x, T n) {
  const T half = mad(n, T(0.5), Format<T>::to_integer) - Format<T>::to_integer;
  return x * pow2(half) * pow2(n - half);
}

// The power of two is added to the exponent bits; results below the least normal number become 0.
template <typename T> FK_HD FK_INLINE T exp(T x) {
  using F = Format<T>;
  using B = typename F::Bits;
  const auto p = exp_parts(x);
  const B bits = bit_cast<B>(T(1) + (p.r + p.tail)) + static_cast<B>(bit_cast<B>(p.n + F::to_integer) << F::mantissa);
  const T y = x < F::exp_lowest ? T(0) : bit_cast<T>(bits);
  return x <= F::exp_highest ? y : x + infinity<T>();
}

// 2^n (1 + r + tail) - 1 with the rounding error of (2^n - 1) + 2^n r carried along.
template <typename T> FK_HD FK_INLINE T expm1(T x0) {
  constexpr T lowest = sizeof(T) == 8 ? T(-40) : T(-20), highest = sizeof(T) == 8 ? T(709.79) : T(88.73);
  T x = x0 < lowest ? lowest : x0;
  x = x > highest ? highest : x;
  const auto p = exp_parts(x);
  const bool large = p.n > T(64);  // 2^1024 is no double: work with half of everything
  const T s = pow2(large ? p.n - T(1) : p.n);
  const T one = large ? T(0.5) : T(1), a = s - one, b = s * p.r;
  const T h = a + b, bb = h - a;
  const T e = ((a - (h - bb)) + (b - bb)) + ((s - a) - one);
  const T y = (h + mad(s, p.tail, e)) * (large ? T(2) : T(1));
  return abs(x0) < Format<T>::tiny ? x0 : y;
}

// x = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), for a positive normal x; inverse_scale = 2^-k.
template <typename T> struct LogParts {
  T k, f, inverse_scale;
};
template <typename T> FK_HD FK_INLINE LogParts<T> log_parts(T x) {
  using F = Format<T>;
  using B = typename F::Bits;
  constexpr B one = static_cast<B>(F::bias) << F::mantissa, mask = (B(1) << F::mantissa) - 1;
  constexpr B implicit = static_cast<B>(F::bias + F::mantissa) << F::mantissa;  // the bits of 2^mantissa
  const B bits = bit_cast<B>(x) + (one - F::sqrt_half);
  const B exponent = bits >> F::mantissa;
  const T k = bit_cast<T>(exponent | implicit) - (T(mask) + T(1) + T(F::bias));
  const T f = bit_cast<T>((bits & mask) + F::sqrt_half) - T(1);
  return {k, f, bit_cast<T>(static_cast<B>((B(2 * F::bias) - exponent) << F::mantissa))};
}

// k ln 2 + log(1 + f) + tail, where tail carries k ln2_lo and whatever f lost.
template <bool Exact, typename T> FK_HD FK_INLINE T log_sum(T k, T f, T tail) {
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {0.6666666666666734, 0.3999999999941436,  0.2857142874246712, 0.22222198564254322,
                       0.1818356482720359, 0.15314036844228912, 0.14796095293137473};  // (2 atanh(s) - 2 s) / s^3
    const T s = f / (T(2) + f), z = s * s, half_square = (T(0.5) * f) * f;
    const T sum = fused<Exact>(polynomial<Exact, 0>(c, z), z, half_square);
    const T rest = fused<Exact>(T(0.5) * f, f, -fused<Exact>(s, sum, tail));
    return fused<Exact>(k, Format<T>::ln2_hi, f - rest);
  } else {
    constexpr T c[] = {T(0.33333314022771754),  T(-0.24999983831289102), T(0.20002188805782603),
                       T(-0.16669485555474006), T(0.14217083623070106),  T(-0.12377431891662166),
                       T(0.11889016368151613),  T(-0.11847163198037548), T(0.06937298139882009)};
    const T square = f * f;  // log(1 + f) = f - f^2 / 2 + f^3 c(f)
    const T rest = fused<Exact>(square * f, polynomial<Exact, 0>(c, f), tail);
    return fused<Exact>(k, Format<T>::ln2_hi, f + fused<Exact>(T(-0.5), square, rest));
  }
}

// log of a positive normal number; anything else gives nonsense.
template <bool Exact, typename T> FK_HD FK_INLINE T log_normal(T x) {
  const auto p = log_parts(x);
  return log_sum<Exact>(p.k, p.f, p.k * Format<T>::ln2_lo);
}

template <typename T> FK_HD FK_INLINE T log(T x) {
  using F = Format<T>;
  const bool subnormal = x < F::min_normal;
  const auto p = log_parts(subnormal ? x * F::rescale : x);
  const T k = subnormal ? p.k - T(54) : p.k;
  const T y = log_sum<false>(k, p.f, k * F::ln2_lo);
  const T upper = x < infinity<T>() ? y : x;
  return x > T(0) ? upper : (x == T(0) ? -infinity<T>() : quiet_nan<T>());
}

// 1 + x = u + u_lo exactly; u_lo joins the reduced argument.
template <typename T> FK_HD FK_INLINE T log1p(T x) {
  const T u = T(1) + x, xx = u - T(1);
  const T u_lo = (T(1) - (u - xx)) + (x - xx);
  const auto p = log_parts(u);
  const T c = x < T(1e18) ? u_lo * p.inverse_scale : T(0), f = p.f + c, f_lo = (p.f - f) + c;
  const T y = log_sum<false>(p.k, f, mad(p.k, Format<T>::ln2_lo, mad(-f, f_lo, f_lo)));
  const T middle = abs(x) < Format<T>::tiny ? x : y;
  const T upper = x < infinity<T>() ? middle : x;
  return x > T(-1) ? upper : (x == T(-1) ? -infinity<T>() : quiet_nan<T>());
}

// sin and cos of 2 pi u. The nearest quarter turn is taken off exactly; 2 pi and 2 pi^2 have two words.
template <typename T> struct SinCos {
  T sin, cos;
};
template <bool Exact, typename T> FK_HD FK_INLINE SinCos<T> sincos_2pi(T u) {
  using F = Format<T>;
  using B = typename F::Bits;
  const T quarter = fused<Exact>(u, T(4), F::to_integer), q = quarter - F::to_integer;
  const T r = fused<Exact>(q, T(-0.25), u), z = r * r;
  T s, c;  // (sin(2 pi r) / r - 2 pi) / r^2 and (cos(2 pi r) - 1 + 2 pi^2 r^2) / r^4
  T pi_hi, pi_lo, square_hi, square_lo;
  if constexpr (sizeof(T) == 8) {
    constexpr T sc[] = {-41.34170224039976, 81.60524927607497,  -76.70585975300862, 42.058693930279375,
                        -15.09464047680047, 3.8197896427628484, -0.7116347006186882};
    constexpr T cc[] = {64.9393940226683,  -85.4568172066937,   60.24464137185823, -26.42625677826818,
                        7.903535637801509, -1.7143338009652236, 0.2797403919581455};
    s = polynomial<Exact, 0>(sc, z), c = polynomial<Exact, 0>(cc, z);
    pi_hi = T(6.283185307179586), pi_lo = T(2.4492935982947064e-16);
    square_hi = T(19.739208802178716), square_lo = T(1.2530591017479423e-15);
  } else {
    constexpr T sc[] = {T(-41.34170218467663), T(81.60521004068174), T(-76.69809267181118), T(41.47277461017152)};
    constexpr T cc[] = {T(64.93937528574776), T(-85.44921840967407), T(59.42406231903932)};
    s = polynomial<Exact, 0>(sc, z), c = polynomial<Exact, 0>(cc, z);
    pi_hi = T(6.2831854820251465), pi_lo = T(-1.748455600074497e-07);
    square_hi = T(19.739208221435547), square_lo = T(5.80743170362669e-07);
  }
  const T sine = fused<Exact>(r, pi_hi, r * fused<Exact>(z, s, pi_lo));
  const T head = fused<Exact>(-square_hi, z, T(1)), rest = fused<Exact>(-square_hi, z, T(1) - head);
  const T cosine = head + fused<Exact>(z, fused<Exact>(z, c, -square_lo), rest);
  const B turn = bit_cast<B>(quarter);  // low two bits: the quadrant
  const bool odd = (turn & 1) != 0;
  constexpr int to_sign = 8 * sizeof(T) - 2;
  const T sin_value = odd ? cosine : sine, cos_value = odd ? sine : cosine;
  const B sin_sign = static_cast<B>((turn & 2) << to_sign), cos_sign = static_cast<B>(((turn + 1) & 2) << to_sign);
  return {bit_cast<T>(bit_cast<B>(sin_value) ^ sin_sign), bit_cast<T>(bit_cast<B>(cos_value) ^ cos_sign)};
}

}  // namespace detail

FK_HD FK_INLINE float exp(float x) { return detail::exp(x); }
FK_HD FK_INLINE double exp(double x) { return detail::exp(x); }
FK_HD FK_INLINE float expm1(float x) { return detail::expm1(x); }
FK_HD FK_INLINE double expm1(double x) { return detail::expm1(x); }
FK_HD FK_INLINE float log(float x) { return detail::log(x); }
FK_HD FK_INLINE double log(double x) { return detail::log(x); }
FK_HD FK_INLINE float log1p(float x) { return detail::log1p(x); }
FK_HD FK_INLINE double log1p(double x) { return detail::log1p(x); }

using detail::SinCos;
FK_HD FK_INLINE SinCos<float> sincos_2pi(float u) { return detail::sincos_2pi<false>(u); }
FK_HD FK_INLINE SinCos<double> sincos_2pi(double u) { return detail::sincos_2pi<false>(u); }

// log(x) for a positive, normal, finite x only: about a quarter cheaper.
FK_HD FK_INLINE float log_normal(float x) { return detail::log_normal<false>(x); }
FK_HD FK_INLINE double log_normal(double x) { return detail::log_normal<false>(x); }

// x * 2^n for an integer-valued n, |n| <= 2 * bias; one rounding.
FK_HD FK_INLINE float ldexp(float x, float n) { return detail::scale(x, n); }
FK_HD FK_INLINE double ldexp(double x, double n) { return detail::scale(x, n); }

}  // namespace fokker::math
