// Double-word arithmetic: an unevaluated sum hi + lo with |lo| <= ulp(hi)/2, about twice the digits of T.
// Algorithms: Dekker 1971, Knuth 1998 4.2.2, Joldes, Muller and Popescu 2017 (names as in the last).
#pragma once

#include "math/arithmetic.h"

namespace fokker::math {

template <typename T> struct DoubleWord {
  T hi, lo;
};

// a + b = hi + lo exactly, any a and b.
template <typename T> FK_HD FK_INLINE DoubleWord<T> two_sum(T a, T b) {
  const T s = a + b, bb = s - a;
  return {s, (a - (s - bb)) + (b - bb)};
}
// a + b = hi + lo exactly when |a| >= |b| or a == 0.
template <typename T> FK_HD FK_INLINE DoubleWord<T> fast_two_sum(T a, T b) {
  const T s = a + b;
  return {s, b - (s - a)};
}
// a * b = hi + lo exactly, barring underflow (and, without a hardware fma, overflow of a * 2^27).
template <typename T> FK_HD FK_INLINE DoubleWord<T> two_prod(T a, T b) {
  const T p = a * b;
#if FK_HAS_FMA
  return {p, fma(a, b, -p)};
#else
  constexpr T split = sizeof(T) == 8 ? T(134217729.0) : T(4097.0);  // 2^27 + 1, 2^12 + 1
  const T ca = split * a, ah = ca - (ca - a), al = a - ah;
  const T cb = split * b, bh = cb - (cb - b), bl = b - bh;
  return {p, ((ah * bh - p) + ah * bl + al * bh) + al * bl};
#endif
}

template <typename T> FK_HD FK_INLINE DoubleWord<T> add(DoubleWord<T> a, T b) {
  const auto s = two_sum(a.hi, b);
  return fast_two_sum(s.hi, a.lo + s.lo);
}
template <typename T> FK_HD FK_INLINE DoubleWord<T> add(DoubleWord<T> a, DoubleWord<T> b) {
  const auto s = two_sum(a.hi, b.hi), t = two_sum(a.lo, b.lo);
  const auto v = fast_two_sum(s.hi, s.lo + t.hi);
  return fast_two_sum(v.hi, t.lo + v.lo);
}
template <typename T> FK_HD FK_INLINE DoubleWord<T> neg(DoubleWord<T> a) { return {-a.hi, -a.lo}; }
template <typename T> FK_HD FK_INLINE DoubleWord<T> mul(DoubleWord<T> a, T b) {
  const auto p = two_prod(a.hi, b);
  return fast_two_sum(p.hi, mad(a.lo, b, p.lo));
}
template <typename T> FK_HD FK_INLINE DoubleWord<T> mul(DoubleWord<T> a, DoubleWord<T> b) {
  const auto p = two_prod(a.hi, b.hi);
  return fast_two_sum(p.hi, p.lo + mad(a.hi, b.lo, a.lo * b.hi));
}
// a / b to about twice the working precision.
template <typename T> FK_HD FK_INLINE DoubleWord<T> div(DoubleWord<T> a, DoubleWord<T> b) {
  const T q = a.hi / b.hi;
  const auto p = mul(b, q);
  return fast_two_sum(q, ((a.hi - p.hi) + (a.lo - p.lo)) / b.hi);
}
// sqrt(a), a.hi > 0.
template <typename T> FK_HD FK_INLINE DoubleWord<T> sqrt(DoubleWord<T> a) {
  const T s = sqrt(a.hi);
  const auto p = two_prod(s, s);
  return fast_two_sum(s, ((a.hi - p.hi) - p.lo + a.lo) / (s + s));
}

}  // namespace fokker::math
