// What the von Mises-Fisher functions need of the dimension alone: computed once a call on the host, in long double.
#pragma once

#include <cmath>
#include <cstdint>

#include "math/double_word.h"

namespace fokker::math {

// Below hypot(v, k) = radius the power series, above it Debye's expansion. The radius is larger than for log I itself:
// differentiating the expansion three times multiplies its n-th term by about n^3.
template <typename T> struct VmfRanges;
template <> struct VmfRanges<double> {
  static constexpr double radius = 32, middle = 100, far = 1000;  // from each: so many terms of Debye's expansion
  static constexpr int near_terms = 16, middle_terms = 10, far_terms = 5;
  static constexpr int series_terms = 48, product_terms = 78, taylor_terms = 10;
  static constexpr double big = 1e150;  // k above it: k^2 would overflow, and hypot(v, k) is k
};
template <> struct VmfRanges<float> {
  static constexpr float radius = 16, middle = 40, far = 200;
  static constexpr int near_terms = 9, middle_terms = 6, far_terms = 3;
  static constexpr int series_terms = 25, product_terms = 40, taylor_terms = 5;
  static constexpr float big = 1e18f;
};

// v = dim/2 - 1. The series run in q = (k / radius)^2, their coefficients are all positive:
//   B = 0F1(; v+1; k^2/4) = sum b q^n,     A = k sum a q^n / B,
//   1 - A^2 = sum e q^n / B^2,   A' = sum m q^n / B^2,   A'' + 2 A A' = k sum dm q^n / B^2  (vmf_series.h).
template <typename T> struct VmfConstants {
  using R = VmfRanges<T>;
  std::int64_t dim;
  T v, n;                  // dim/2 - 1, dim - 1
  DoubleWord<T> v_square;  // v^2 exactly
  DoubleWord<T> log_2pi;   // -(v + 1/2) log 2 pi
  DoubleWord<T> log_c0;    // log C(0), minus the logarithm of the sphere's area
  T half_inverse_v, inverse_v;
  T stirling;      // v log v - v + log(2 pi v)/2 - log Gamma(v + 1); for v = 0 log(2 pi)/2
  T kl_lead;       // KL to the uniform at r = radius, but for rest (vmf_bregman.h)
  T edge[4];       // the k at which each regime but the last ends (vmf.h)
  T taylor_scale;  // 1 / sqrt((v + 1)(v + 5)); the zeros of I_v are at least this far from 0, inverted
  T taylor[R::taylor_terms];
  T b[R::series_terms], a[R::series_terms], e[R::product_terms], m[R::product_terms], dm[R::product_terms];
};

namespace detail {
// log Gamma(z + 1) - (z log z - z + log(2 pi z)/2) for z >= 19, DLMF 5.11.1.
FK_INLINE long double stirling_remainder(long double z) {
  const long double y = 1 / (z * z);
  constexpr long double c[] = {1.0L / 12,   -1.0L / 360,      1.0L / 1260, -1.0L / 1680,
                               1.0L / 1188, -691.0L / 360360, 1.0L / 156,  -3617.0L / 122400};
  long double s = 0;
  for (int i = 7; i >= 0; --i) s = s * y + c[i];
  return s / z;
}
FK_INLINE long double log_gamma1(long double v) {
  long double product = 1, z = v;
  while (z < 20) product *= z += 1;
  return (z * (std::log(z) - 1) + std::log(6.283185307179586476925286766559L * z) / 2 + stirling_remainder(z)) -
         std::log(product);
}
// A long double would not do: this is multiplied by up to 5e5 and what is left of the product must be good to 1e-17.
template <typename T> FK_INLINE DoubleWord<T> words_log_2pi() {
  if constexpr (sizeof(T) == 8) return {T(1.8378770664093456), T(-7.7565883161344832e-17)};
  else return {T(1.8378770351409912), T(3.12683542726e-8)};
}
template <typename T> FK_INLINE DoubleWord<T> split(long double x) {
  const T hi = static_cast<T>(x);
  return {hi, static_cast<T>(x - static_cast<long double>(hi))};
}
}  // namespace detail

// Host only. Inlined, as all of csrc/math: units of different instruction sets must not share a copy.
template <typename T> FK_INLINE void fill_vmf_constants(std::int64_t dim, VmfConstants<T>* c) {
  using R = VmfRanges<T>;
  constexpr long double log_2pi = 1.8378770664093454835606594728112L;
  const long double v = static_cast<long double>(dim) / 2 - 1, gamma = detail::log_gamma1(v);
  c->dim = dim;
  c->v = static_cast<T>(v), c->n = static_cast<T>(dim - 1);
  c->v_square = detail::split<T>(v * v);
  c->log_2pi = mul(detail::words_log_2pi<T>(), -c->n / T(2));
  c->log_c0 = detail::split<T>(gamma + v * 0.69314718055994530941723212145818L - (v + 1) * log_2pi);
  c->inverse_v = static_cast<T>(v > 0 ? 1 / v : 1), c->half_inverse_v = static_cast<T>(v > 0 ? 1 / (2 * v) : 0);
  c->stirling = static_cast<T>(v >= 20 ? -detail::stirling_remainder(v)
                               : v > 0 ? v * std::log(v) - v + (log_2pi + std::log(v)) / 2 - gamma
                                       : log_2pi / 2);

  const long double radius = R::radius;
  c->kl_lead = static_cast<T>(v > 0 ? v * std::log((v + radius) / (2 * v)) + std::log(radius / v) / 2 + c->stirling
                                    : (std::log(radius) + log_2pi) / 2);

  const long double ends[] = {0, R::radius, R::middle, R::far};
  for (int g = 1; g < 4; ++g) c->edge[g] = static_cast<T>(v < ends[g] ? std::sqrt(ends[g] * ends[g] - v * v) : 0);
  c->edge[0] = static_cast<T>(std::sqrt((v + 1) * (v + 5)) / 8);

  // A = sum (-1)^n t[n] k^(2n+1) from A' = 1 - A^2 - (2v+1) A / k; KL to the uniform is the integral of k A'.
  const long double scale = (v + 1) * (v + 5);
  long double t[R::taylor_terms], sign = 1;
  c->taylor_scale = static_cast<T>(1 / std::sqrt(scale));
  for (int n = 0; n < R::taylor_terms; ++n) {  // t[n] carries scale^(n+1)
    t[n] = n == 0 ? scale / (2 * v + 2) : 0;
    for (int i = 0; i < n; ++i) t[n] += t[i] * t[n - 1 - i] / (2 * (n + v + 1));
    c->taylor[n] = static_cast<T>(sign * t[n] * (2 * n + 1) / (2 * n + 2));
    sign = -sign;
  }

  if (v >= R::radius) return;  // no concentration reaches the series
  const long double y = static_cast<long double>(R::radius) * R::radius / 4;
  long double b = 1, p = 1;
  for (int n = 0; n < R::series_terms; ++n) {
    if (n > 0) b *= y / (n * (v + n));
    c->b[n] = static_cast<T>(b), c->a[n] = static_cast<T>(b / (2 * (v + 1 + n)));
  }
  for (int n = 0; n < R::product_terms; ++n) {
    if (n > 0) p *= y * 2 * (2 * v + 2 * n - 1) / ((2 * v + n) * n * (v + n));  // B^2 = sum p q^n, DLMF 10.31.3
    const long double e = p * (2 * v + 1) / (2 * v + n + 1), m = e / (2 * (v + n + 1));
    c->e[n] = static_cast<T>(e), c->m[n] = static_cast<T>(m);
    if (n > 0) c->dm[n - 1] = static_cast<T>(m * n / (2 * y));
  }
  c->dm[R::product_terms - 1] = T(0);
}

}  // namespace fokker::math
