// Random numbers of every kind from Philox words, the same bits on every build and device.
//
//   exponential  E = -ln(1 - u), u = uniform(w): below 1/2 from u, above from 1 - u = uniform(~w), so that both tails
//                have all the word's bits (float: E from 1.2e-10 to 22.9; double: from 5.6e-17 to 37.4)
//   gumbel       -ln E
//   rademacher   -1 where the word's top bit is set, else 1; one word an element in every dtype
// uniform: math/philox.h; normal: math/normal.h. Every product-sum is math::fma. Relative error of E and absolute error
// of the gumbel number (relative above 1): float 3e-7 of the exact function of the word, double 1e-15 of that of u.
#pragma once

#include "math/normal.h"

namespace fokker::math {

enum class RandomKind : int { bits, uniform, normal, gumbel, exponential, rademacher };
constexpr int random_kind_count = 6;

// Elements that one block of four words makes: a double takes two words, except for a sign.
FK_HD FK_INLINE constexpr int elements_per_block(RandomKind kind, bool is_double) {
  return is_double && kind != RandomKind::bits && kind != RandomKind::rademacher ? 2 : 4;
}

namespace detail {

// -ln x for x = 1 - u: near 1 from u itself, which has the digits that x has lost.
template <typename T> FK_HD FK_INLINE T exponential_of(T u, bool upper) {
  const T x = upper ? u : T(1) - u;
  const auto p = log_parts(x);
  const T f = !upper && p.k == T(0) ? -u : p.f;
  return -log_sum<true>(p.k, f, p.k * Format<T>::ln2_lo);
}

}  // namespace detail

FK_HD FK_INLINE float exponential(uint32_t w) {
  const bool upper = (w & 0x80000000u) != 0;
  return detail::exponential_of(uniform(upper ? ~w : w), upper);
}
FK_HD FK_INLINE double exponential(uint32_t high, uint32_t low) {
  const bool upper = (high & 0x80000000u) != 0;
  return detail::exponential_of(uniform(upper ? ~high : high, upper ? ~low : low), upper);
}
FK_HD FK_INLINE float gumbel(uint32_t w) { return -detail::log_normal<true>(exponential(w)); }
FK_HD FK_INLINE double gumbel(uint32_t high, uint32_t low) { return -detail::log_normal<true>(exponential(high, low)); }
FK_HD FK_INLINE float rademacher(uint32_t w) { return bit_cast<float>(0x3f800000u | (w & 0x80000000u)); }

// The element of one word.
template <RandomKind kind> FK_HD FK_INLINE float random_element(uint32_t w) {
  if constexpr (kind == RandomKind::uniform) return uniform(w);
  else if constexpr (kind == RandomKind::gumbel) return gumbel(w);
  else if constexpr (kind == RandomKind::exponential) return exponential(w);
  else return rademacher(w);
}
// Two elements from two words.
template <RandomKind kind> FK_HD FK_INLINE NormalPair<float> random_pair(uint32_t w0, uint32_t w1) {
  if constexpr (kind == RandomKind::normal) return normal_pair(w0, w1);
  else return {random_element<kind>(w0), random_element<kind>(w1)};
}
// Two double elements from the four words of a block.
template <RandomKind kind> FK_HD FK_INLINE NormalPair<double> random_pair(Words w) {
  if constexpr (kind == RandomKind::uniform) return {uniform(w.w0, w.w1), uniform(w.w2, w.w3)};
  else if constexpr (kind == RandomKind::normal) return normal_pair(w);
  else if constexpr (kind == RandomKind::gumbel) return {gumbel(w.w0, w.w1), gumbel(w.w2, w.w3)};
  else return {exponential(w.w0, w.w1), exponential(w.w2, w.w3)};
}

}  // namespace fokker::math
