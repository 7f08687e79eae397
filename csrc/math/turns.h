// sin and cos of 2 pi u for a double u, in float: what is left of u after its quarter turns, at most 1/8, is rounded.
//
// Error 1e-7 whatever u (2^-28 of a turn, and the polynomial's); for doubles it is `sincos_2pi` of u less its turns.
#pragma once

#include "math/elementary.h"

namespace fokker::math {

// u less its turns, as quarters -2 .. 2 and what is left of a turn.
struct Turns {
  float quarters, rest;
};
FK_HD FK_INLINE Turns turns_of(double u) {
  const double part = u - detail::round_to_integer(u), quarters = detail::round_to_integer(4.0 * part);
  return {static_cast<float>(quarters), static_cast<float>(part - 0.25 * quarters)};
}
FK_HD FK_INLINE SinCos<float> sincos_of(Turns t) {
  const auto s = sincos_2pi(t.rest);
  const bool odd = abs(t.quarters) == 1.0f;
  const float sine = odd ? s.cos : s.sin, cosine = odd ? s.sin : s.cos;
  return {t.quarters < 0.0f || t.quarters > 1.0f ? -sine : sine,
          t.quarters == 0.0f || t.quarters == -1.0f ? cosine : -cosine};
}

template <typename T> FK_HD FK_INLINE SinCos<T> sincos_turns(double u) {
  if constexpr (sizeof(T) == 8) return sincos_2pi(u - detail::round_to_integer(u));
  else return sincos_of(turns_of(u));
}

// N of them, each loop of one width, so that gcc vectorises it.
template <int N, typename T> inline void sincos_turns(const double* u, T* sin, T* cos) {
  if constexpr (sizeof(T) == 8) {
    for (int l = 0; l < N; ++l) {
      const auto both = sincos_turns<T>(u[l]);
      sin[l] = both.sin, cos[l] = both.cos;
    }
  } else {
    float quarters[N], rest[N];
    for (int l = 0; l < N; ++l) {
      const Turns t = turns_of(u[l]);
      quarters[l] = t.quarters, rest[l] = t.rest;
    }
    for (int l = 0; l < N; ++l) {
      const auto both = sincos_of({quarters[l], rest[l]});
      sin[l] = both.sin, cos[l] = both.cos;
    }
  }
}

}  // namespace fokker::math
