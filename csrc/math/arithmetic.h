// The few scalar operations every formula is written in; branch-free, so that loops over them vectorise.
//
// All of fokker is built without contraction (-ffp-contract=off, --fmad=false): a product is fused with a sum
// only where the source says so.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/config.h"

namespace fokker::math {

// Correctly rounded a*b + c on every build; a slow library call where the hardware has none.
FK_HD FK_INLINE float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FK_HD FK_INLINE double fma(double a, double b, double c) { return ::fma(a, b, c); }

// a*b + c, fused where that is free. For polynomials: last bits may differ between instruction sets.
template <typename T> FK_HD FK_INLINE T mad(T a, T b, T c) {
#if FK_HAS_FMA
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

FK_HD FK_INLINE float sqrt(float x) { return ::sqrtf(x); }
FK_HD FK_INLINE double sqrt(double x) { return ::sqrt(x); }
FK_HD FK_INLINE float abs(float x) { return ::fabsf(x); }
FK_HD FK_INLINE double abs(double x) { return ::fabs(x); }
template <typename T> FK_HD FK_INLINE T min(T a, T b) { return b < a ? b : a; }
template <typename T> FK_HD FK_INLINE T max(T a, T b) { return a < b ? b : a; }

template <typename To, typename From> FK_HD FK_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T> FK_HD FK_INLINE constexpr T infinity() { return std::numeric_limits<T>::infinity(); }
template <typename T> FK_HD FK_INLINE constexpr T quiet_nan() { return std::numeric_limits<T>::quiet_NaN(); }

namespace detail {
template <int I, int N, typename T> struct Horner {
  static FK_HD FK_INLINE T eval(const T (&c)[N], T x) { return mad(Horner<I + 1, N, T>::eval(c, x), x, c[I]); }
};
template <int N, typename T> struct Horner<N, N, T> {
  static FK_HD FK_INLINE T eval(const T (&)[N], T) { return T(0); }
};
}  // namespace detail

// c[0] + c[1] x + ... + c[N-1] x^(N-1), unrolled at compile time: gcc does not vectorise a loop over coefficients.
template <int N, typename T> FK_HD FK_INLINE T horner(const T (&c)[N], T x) {
  if constexpr (N == 1) return c[0];
  else return mad(detail::Horner<1, N, T>::eval(c, x), x, c[0]);
}

}  // namespace fokker::math
