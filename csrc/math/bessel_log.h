// Logarithms as the Bessel kernels need them: of a ratio, and with the large exact part kept apart from the rest.
//
// log(a / b) = k ln 2 + 2 atanh(s), s = (m - b) / (m + b), m = a 2^-k, 2/3 <= m / b <= 3/2. The difference is exact
// (Sterbenz), so one division serves for quotient and logarithm, and s carries twice the working precision when a and b
// do.
#pragma once

#include "math/double_word.h"
#include "math/elementary.h"

namespace fokker::math {
namespace detail {

// Each constant is hi + lo with hi a multiple of 2^-40 (double) or 2^-15 (float), so that k ln2_hi and sums of them are
// exact.
template <typename T> struct LogConstants;
template <> struct LogConstants<double> {
  static constexpr double ln2_hi = 0.6931471805601177038624883, ln2_lo = -1.7239444525614834773e-13;
  static constexpr double half_log_2pi_hi = 0.9189385332047095289453864, half_log_2pi_lo = -3.6787165056673353904e-14;
  static constexpr double half_log_half_pi_hi = 0.2257913526445918250828981,
                          half_log_half_pi_lo = 1.3560728019947499383e-13;
  static constexpr double log_16_53_hi = -1.197703191312029957771301, log_16_53_lo = -3.106387042393836651e-13;
};
template <> struct LogConstants<float> {
  static constexpr float ln2_hi = 0.693145751953125f, ln2_lo = 1.4286068203094172321e-6f;
  static constexpr float half_log_2pi_hi = 0.9189453125f, half_log_2pi_lo = -6.7792953272582196703e-6f;
  static constexpr float half_log_half_pi_hi = 0.225799560546875f, half_log_half_pi_lo = -8.2079021475676369024e-6f;
  static constexpr float log_16_53_hi = -1.19769287109375f, log_16_53_lo = -0.000010320218590596475541f;
};

template <typename T> FK_HD constexpr T power_of_two(int n) {
  T p = T(1);
  for (; n > 0; --n) p *= T(2);
  for (; n < 0; ++n) p *= T(0.5);
  return p;
}

// a - b c with one rounding, or nearly: far better than the rounding of b c.
template <typename T> FK_HD FK_INLINE T residual(T a, T b, T c) {
#if FK_HAS_FMA
  return fma(-b, c, a);
#else
  const auto p = two_prod(b, c);
  return (a - p.hi) - p.lo;
#endif
}

// (2 atanh(s) - 2 s) / s^3 as a polynomial in z = s^2 for |s| <= 1/5, interpolated in Chebyshev nodes.
template <typename T> FK_HD FK_INLINE T atanh_tail(T z) {
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {0.666666666666666642, 0.400000000000078145, 0.285714285673329005, 0.22222223038856737,
                       0.181817383721763181, 0.153888379824873658, 0.132102953470532358, 0.136045170627203226};
    return horner(c, z);
  } else {
    constexpr T c[] = {T(0.666667134146768496), T(0.399790069669468317), T(0.299559635271592001)};
    return horner(c, z);
  }
}

template <typename T> struct RatioLog {
  T k;
  DoubleWord<T> s;
  FK_HD FK_INLINE T tail() const { return (s.hi * s.hi) * s.hi * atanh_tail(s.hi * s.hi); }  // 2 atanh(s) - 2 s
  FK_HD FK_INLINE T value() const {
    using C = LogConstants<T>;
    return mad(k, C::ln2_hi, mad(T(2), s.hi, mad(k, C::ln2_lo, mad(T(2), s.lo, tail()))));
  }
};

// k with 2/3 <= (a / b) 2^-k <= 3/2, and 2^-k, which must be normal: the difference of the bit patterns, read as a
// number, is log2(a/b) but for mantissas taken as linear. No comparison: gcc makes branches of nested ones and the loop
// stays scalar.
template <typename T> struct RatioScale {
  T k, inverse;
};
template <typename T> FK_HD FK_INLINE RatioScale<T> ratio_scale(T a, T b) {
  using F = Format<T>;
  using B = typename F::Bits;
  constexpr B offset = 2 * B(F::bias) + 1;
  constexpr B implicit = static_cast<B>(F::bias + F::mantissa) << F::mantissa;  // the bits of 2^mantissa
  constexpr T base = T(B(1) << F::mantissa) + T(offset);
  const B d = bit_cast<B>(a) - bit_cast<B>(b) + ((offset << F::mantissa) + (B(1) << (F::mantissa - 1)));
  const B e = d >> F::mantissa;
  return {bit_cast<T>(e | implicit) - base, bit_cast<T>(static_cast<B>((B(F::bias) + offset - e) << F::mantissa))};
}

// log(a / b) for positive a, b whose hi are normal and whose ratio is.
template <typename T> FK_HD FK_INLINE RatioLog<T> ratio_log(DoubleWord<T> a, DoubleWord<T> b) {
  const auto p = ratio_scale(a.hi, b.hi);
  const T a_hi = a.hi * p.inverse, a_lo = a.lo * p.inverse, num = a_hi - b.hi, num_lo = a_lo - b.lo;
  const auto den = two_sum(a_hi, b.hi);
  const T reciprocal = T(1) / den.hi;
  const T s = (num + num_lo) * reciprocal;
  const T rest = residual(num, s, den.hi) + (num_lo - s * (den.lo + (a_lo + b.lo)));
  return {p.k, {s, rest * reciprocal}};
}

// As above for a and b without low parts.
template <typename T> FK_HD FK_INLINE RatioLog<T> ratio_log(T a, T b) {
  const auto p = ratio_scale(a, b);
  const T m = a * p.inverse, num = m - b;
  const auto den = two_sum(m, b);
  const T reciprocal = T(1) / den.hi, s = num * reciprocal;
  return {p.k, {s, (residual(num, s, den.hi) - s * den.lo) * reciprocal}};
}

// log(a) = k ln 2 + rest for positive normal a.
template <typename T> struct SplitLog {
  T k, rest;
};
template <typename T> FK_HD FK_INLINE SplitLog<T> split_log(T a) {
  const auto p = log_parts(a);
  const T s = p.f / (T(2) + p.f), z = s * s;
  return {p.k, mad(z * s, atanh_tail(z), s + s)};
}

}  // namespace detail
}  // namespace fokker::math
