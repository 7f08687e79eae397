// From orders mu, mu + 1 to order v = mu + n: masked forward recurrences, the same bits whatever the trip count.
#pragma once

#include "math/bessel_k_polynomial.h"
#include "math/double_word.h"
#include "math/elementary.h"

namespace fokker::math {

// Where K is computed by Temme's series rather than by the polynomials of bessel_k_large.h: where the first has the
// smaller error. Both hold around the border, so that nothing but the last digit depends on it.
template <typename T> FK_HD FK_INLINE bool k_uses_series(T v, T x) {
  if constexpr (sizeof(T) == 8) return x <= T(1);
  else return x <= ((v > T(0.3)) & (v < T(0.58)) ? T(0.16) : T(0.28));
}

namespace detail {

// Orders below the Debye seam, r < 25 (float: r < 10), need at most this many steps.
template <typename T> inline constexpr int k_max_steps = sizeof(T) == 8 ? 25 : 10;

// k_{j+1} = b k_{j-1} + c (mu + j) k_j is DLMF 10.29.1 with b = 1, c = 2 / x for k_j = K_{mu+j}, and with b = x^2 / 4,
// c = 1 for k_j = K_{mu+j} (x/2)^j: positive terms, and no overflow at tiny x.
template <typename T> struct KCoefficients {
  T mu, n, b, c, c_lo;  // c_lo: what c lost, for Precise steps
};

// The state at j = max(n, 1). Everything nonlinear in k below obeys a recurrence of its own, which saves the digits
// that forming it from k, k', k'' would cancel: k' / k grows like log v, while W / k^2 falls like 1 / v.
template <typename T> struct KState {
  T before, k;        // k_{j-1}, k_j
  T before_d1, d1;    // derivatives in mu
  T casoratian;       // P = k_{j-1} k_j' - k_j k_{j-1}':        P_j = c k_j^2 - b P_{j-1}
  T casoratian_d1;    // dP/dmu
  T before_w, w;      // W = k k'' - k'^2, at j - 1 and j
  T cross;            // k_{j-1} k_j'' + k_j k_{j-1}'' - 2 k_j' k_{j-1}'
  T excess;           // b = 1: k_{j+1} - (1 + a_j) k_j, a_j = (mu + j + 1/2) / x: small for x >> v
  T before_lo, k_lo;  // Precise: the words below k_{j-1}, k_j
};
template <typename T> FK_HD FK_INLINE KState<T> k_state(Jet<T> k0, Jet<T> k1, T excess, T k0_lo, T k1_lo) {
  return {k0.f,
          k1.f,
          k0.d1,
          k1.d1,
          mad(k1.d1, k0.f, -(k1.f * k0.d1)),
          mad(k1.d2, k0.f, -(k1.f * k0.d2)),
          mad(k0.f, k0.d2, -(k0.d1 * k0.d1)),
          mad(k1.f, k1.d2, -(k1.d1 * k1.d1)),
          mad(k0.f, k1.d2, mad(k1.f, k0.d2, T(-2) * k0.d1 * k1.d1)),
          excess,
          k0_lo,
          k1_lo};
}

template <bool Precise, typename T> FK_HD FK_INLINE KState<T> k_step(KState<T> s, KCoefficients<T> q, T j) {
  const bool go = j < q.n;
  const T b = q.b, c = q.c, t = q.mu + j, a = c * t;
  T next, next_lo = T(0);
  if constexpr (Precise) {
    const T a_lo = mad(c, q.mu - (t - j), mad(q.c_lo, t, two_prod(c, t).lo));
    const auto p = two_prod(a, s.k), sum = two_sum(p.hi, b * s.before);
    next = sum.hi;
    next_lo = (p.lo + sum.lo) + mad(a, s.k_lo, mad(a_lo, s.k, b * s.before_lo));
  } else {
    next = mad(a, s.k, b * s.before);
  }
  const T next_d1 = mad(a, s.d1, mad(b, s.before_d1, c * s.k));
  const T casoratian = mad(c * s.k, s.k, -(b * s.casoratian));
  const T casoratian_d1 = mad((c + c) * s.k, s.d1, -(b * s.casoratian_d1));
  const T next_w =
      mad(a, mad(a, s.w, b * s.cross), mad(b * b, s.before_w, c * mad(b + b, s.casoratian, -(c * s.k * s.k))));
  const T cross = mad(a + a, s.w, b * s.cross);
  const T half = (T(0.5) * c) * (q.mu + (j + T(0.5)));
  const T excess = mad(half * half, s.k, (half - T(1)) * s.excess);
  return {go ? s.k : s.before,
          go ? next : s.k,
          go ? s.d1 : s.before_d1,
          go ? next_d1 : s.d1,
          go ? casoratian : s.casoratian,
          go ? casoratian_d1 : s.casoratian_d1,
          go ? s.w : s.before_w,
          go ? next_w : s.w,
          go ? cross : s.cross,
          go ? excess : s.excess,
          go ? s.k_lo : s.before_lo,
          go ? next_lo : s.k_lo};
}

// A GPU thread loops as long as it has to; a vector of lanes steps together and masks.
template <int Steps, bool Precise, int J = 1, typename T>
FK_HD FK_INLINE KState<T> k_advance(KState<T> s, KCoefficients<T> q) {
#ifdef __CUDA_ARCH__
  for (T j = T(1); j < min(q.n, T(Steps)); j += T(1)) s = k_step<Precise>(s, q, j);
  return s;
#else
  if constexpr (J >= Steps) return s;
  else return k_advance<Steps, Precise, J + 1>(k_step<Precise>(s, q, T(J)), q);
#endif
}

}  // namespace detail
}  // namespace fokker::math
