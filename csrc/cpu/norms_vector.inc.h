// Vectors of rows that lie in memory as numbers of type T or as half-precision ones, and rows that are needed next.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/half_vector.inc.h"
#include "cpu/sde_tile.inc.h"
#include "math/arithmetic.h"

namespace fokker::cpu::FK_ISA {
namespace {

// Whether vectors of S are read as vectors of T, and written, without a copy between.
template <typename S, typename T> constexpr bool kReadAs = std::is_same_v<S, T>;
template <> inline constexpr bool kReadAs<BFloat16, float> = true;
#if defined(__AVX512F__)
template <> inline constexpr bool kReadAs<Half, float> = true;
#endif

// A vector from memory, or one element, for loops whose rest is done by elements.
template <typename V, typename S> inline V get(const S* p) {
  if constexpr (std::is_same_v<V, S>) return *p;
  else if constexpr (std::is_arithmetic_v<V>) return number(*p);
  else return load(p);
}
template <typename S, typename V> inline void put(S* p, V v) {
  if constexpr (!std::is_arithmetic_v<V>) store(p, v);
  else set(*p, v);
}
// The same past the cache where `streamed`: then p lies as a vector does.
template <typename S, typename V> inline void put(S* p, V v, bool streamed) {
  if constexpr (!std::is_arithmetic_v<V>)
    if (streamed) return stream(p, v);
  put(p, v);
}
template <typename V, typename T> inline V spread(T x) {
  if constexpr (std::is_same_v<V, T>) return x;
  else return all(x);
}
inline float fma(float a, float b, float c) { return math::mad(a, b, c); }
inline double fma(double a, double b, double c) { return math::mad(a, b, c); }

// f(i, zero) over [0, n): at(i, a vector of zeros), then elements.
template <typename T, typename F> inline void each(std::int64_t n, F&& at) {
  std::int64_t i = 0;
  for (; i + kLanesOf<T> <= n; i += kLanesOf<T>) at(i, Vec<T>{});
  for (; i < n; ++i) at(i, T(0));
}

// What the cache will need next: rows whose lines are asked for while the row at hand is worked on; `to` will be
// written.
template <typename S> struct Ahead {
  const S *first = nullptr, *second = nullptr;
  S* to = nullptr;
  void fetch(std::int64_t i) const {
    if (first) __builtin_prefetch(first + i);
    if (second) __builtin_prefetch(second + i);
    if (to) __builtin_prefetch(to + i, 1);
  }
};

}  // namespace
}  // namespace fokker::cpu::FK_ISA
