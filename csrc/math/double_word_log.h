// Logarithm of a double-word number to nearly twice the working precision.
//
// a = 2^k (1 + f), s = f / (2 + f), |s| <= 0.172:  log a = k ln 2 + 2 s (1 + s^2/3 + s^4/5 + ...)
// (DLMF 4.6.1, 4.37.24). The first terms are summed in double-word, the rest (a Remez fit of what remains) in plain
// arithmetic; k ln 2 has three words. Relative error, also next to a = 1: at most 2^-90 (double), 2^-42 (float);
// tests/test_elementary.py holds it. About 100 FMA-type instructions and one division; no double is touched by the
// float version.
#pragma once

#include "math/double_word.h"
#include "math/elementary.h"

namespace fokker::math {
namespace detail {

// c + z t, not renormalised; |z t| must be well below |c|. The chain of hi words, on which speed depends (a vector unit
// holds barely two iterations of log_dw in flight), is one operation long, and so is that of lo words.
template <typename T> FK_HD FK_INLINE DoubleWord<T> step(DoubleWord<T> c, DoubleWord<T> z, DoubleWord<T> t) {
  const T hi = mad(z.hi, t.hi, c.hi);
  const auto p = two_prod(z.hi, t.hi);
  const T error = ((c.hi - hi) + p.hi) + p.lo;
  return {hi, mad(z.hi, t.lo, mad(z.lo, t.hi, error + c.lo))};
}
// c[0] + ... + c[7] x^7, even and odd powers side by side.
template <typename T> FK_HD FK_INLINE T split_horner(const T (&c)[8], T x) {
  const T even[] = {c[0], c[2], c[4], c[6]}, odd[] = {c[1], c[3], c[5], c[7]}, square = x * x;
  return mad(horner(odd, square), x, horner(even, square));
}

// 1 / n in two words of T; lo is the third word's worth of digits that double lacks.
template <typename T> FK_HD FK_INLINE constexpr DoubleWord<T> words(double hi, double lo) {
  if constexpr (sizeof(T) == 8) return {hi, lo};
  else return {T(hi), T(hi - static_cast<double>(T(hi)))};
}

// (atanh(s) / s - 1) / s^2 from z = s^2.
template <typename T> FK_HD FK_INLINE DoubleWord<T> atanh_series(DoubleWord<T> z) {
  constexpr auto third = words<T>(0.3333333333333333, 1.850371707708594e-17);
  constexpr auto fifth = words<T>(0.2, -1.1102230246251566e-17);
  constexpr auto seventh = words<T>(0.14285714285714285, 7.93016446160826e-18);
  DoubleWord<T> t;
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {0.06666666666666667, 0.05882352941176744, 0.05263157894542826, 0.047619048144058526,
                       0.04347819117824279, 0.0400050132494927,  0.03683811202305819, 0.03854811636619727};
    t = {split_horner(c, z.hi), T(0)};
    t = step(words<T>(0.07692307692307693, -4.270088556250602e-18), z, t);
    t = step(words<T>(0.09090909090909091, -2.523234146875356e-18), z, t);
    t = step(words<T>(0.1111111111111111, 6.1679056923619804e-18), z, t);
  } else {
    constexpr T c[] = {T(0.11111111074209583), T(0.09090948934990034), T(0.07685594418105406), T(0.07026590813583218)};
    t = {horner(c, z.hi), T(0)};
  }
  t = step(seventh, z, t);
  t = step(fifth, z, t);
  return step(third, z, t);
}

}  // namespace detail

// log(a) for a normalised double-word, a.hi a positive normal number below half the largest; anything else is nonsense.
template <typename T> FK_HD FK_INLINE DoubleWord<T> log_dw(DoubleWord<T> a) {
  const auto p = detail::log_parts(a.hi);
  const auto f = fast_two_sum(p.f, a.lo * p.inverse_scale);
  const auto d = fast_two_sum(T(2), f.hi);
  const T reciprocal = T(1) / (T(2) + p.f);

  // s = f / (2 + f): a quotient, good to two units, and its remainder.
  const T q = f.hi * reciprocal;
  const auto qd = two_prod(q, d.hi);
  const T remainder = (f.hi - qd.hi) - qd.lo + mad(-q, d.lo + f.lo, f.lo);
  const DoubleWord<T> s = {q, remainder * reciprocal};

  const auto square = two_prod(s.hi, s.hi);
  const DoubleWord<T> z = {square.hi, mad(s.hi + s.hi, s.lo, square.lo)};
  const auto series = detail::atanh_series(z);
  const auto cube = two_prod(s.hi + s.hi, z.hi);  // 2 s^3
  const DoubleWord<T> two_s = {s.hi + s.hi, s.lo + s.lo};
  const DoubleWord<T> two_cube = {cube.hi, mad(two_s.hi, z.lo, mad(two_s.lo, z.hi, cube.lo))};
  const auto y = detail::step(two_s, two_cube, series);

  // Largest first; k times each of the first two words is exact.
  constexpr T ln2_a = sizeof(T) == 8 ? T(0.6931471805598903) : T(0.693145751953125);
  constexpr T ln2_b = sizeof(T) == 8 ? T(5.4979230187085024e-14) : T(1.4286197256296873e-06);
  constexpr T ln2_c = sizeof(T) == 8 ? T(-1.3124698417785255e-27) : T(-1.2905320270077144e-11);
  const auto head = fast_two_sum(p.k * ln2_a, y.hi);
  const auto middle = two_sum(p.k * ln2_b, head.lo);
  const auto top = fast_two_sum(head.hi, middle.hi);
  return fast_two_sum(top.hi, top.lo + (middle.lo + mad(p.k, ln2_c, y.lo)));
}

}  // namespace fokker::math
