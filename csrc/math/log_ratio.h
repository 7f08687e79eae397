// log(x / x0) for the losses: of floats to 2e-8 relative in a third of the time of a double's logarithm.
//
// The quotient q = 2^k (1 + f) and k ln 2 + f - f^2 / 2 are doubles; what is left of log(1 + f), at most 0.03, is a
// float's polynomial. x and x0 of one sign, and nan, -inf and inf as log has them.
#pragma once

#include "math/elementary.h"

namespace fokker::math {

// log(1 + f) - f + f^2 / 2 for |f| below 0.42, to 2e-7 of itself.
FK_HD FK_INLINE float log_rest(float f) {
  constexpr float c[] = {0.33333314022771754f,  -0.24999983831289102f, 0.20002188805782603f,
                         -0.16669485555474006f, 0.14217083623070106f,  -0.12377431891662166f,
                         0.11889016368151613f,  -0.11847163198037548f, 0.06937298139882009f};
  return f * f * f * horner(c, f);
}
FK_HD FK_INLINE double with_edges(double q, double log_q) {
  const double upper = q < infinity<double>() ? log_q : q;
  return q > 0.0 ? upper : (q == 0.0 ? -infinity<double>() : quiet_nan<double>());
}
FK_HD FK_INLINE double log_ratio(float x, float x0) {
  const double q = static_cast<double>(x) / static_cast<double>(x0);  // of floats: never subnormal
  const auto parts = detail::log_parts(q);
  const double head = mad(-0.5 * parts.f, parts.f, parts.f);
  return with_edges(q, mad(parts.k, 0.6931471805599453, head) + log_rest(static_cast<float>(parts.f)));
}
FK_HD FK_INLINE double log_ratio(double x, double x0) { return log(x / x0); }

// N of them at once: in loops that gcc vectorises, each of one width.
template <int N, typename T> inline void log_ratios(const T* x, const T* x0, double* to) {
  if constexpr (sizeof(T) == 8) {
    for (int l = 0; l < N; ++l) to[l] = x[l] / x0[l];
    for (int l = 0; l < N; ++l) to[l] = log(to[l]);
  } else {
    double q[N], head[N];
    float f[N];
    for (int l = 0; l < N; ++l) q[l] = static_cast<double>(x[l]) / static_cast<double>(x0[l]);
    for (int l = 0; l < N; ++l) {
      const auto parts = detail::log_parts(q[l]);
      head[l] = mad(parts.k, 0.6931471805599453, mad(-0.5 * parts.f, parts.f, parts.f));
      f[l] = static_cast<float>(parts.f);
    }
    for (int l = 0; l < N; ++l) f[l] = log_rest(f[l]);
    for (int l = 0; l < N; ++l) to[l] = with_edges(q[l], head[l] + static_cast<double>(f[l]));
  }
}

}  // namespace fokker::math
