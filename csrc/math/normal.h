// Standard normal numbers from Philox words by Box and Muller's transform (1958), the same bits on every build and
// device.
//
//   u = uniform(w), r = sqrt(-2 ln u), theta = 2 pi (w' - 2^29) / 2^32,  z = r cos(theta), z' = r sin(theta)
// Every product-sum is math::fma and no other pattern can be contracted, so compilers have no choice to make; the
// offset 2^29 makes the top two bits of w' the quadrant and the rest an angle in [-pi/4, pi/4). float: about 7e-7 from
// the exact transform of the rounded u, |z| <= 6.8; double: 1e-15, |z| <= 8.7.
#pragma once

#include "math/elementary.h"
#include "math/philox.h"

namespace fokker::math {

template <typename T> struct NormalPair {
  T first, second;
};
struct NormalBlock {
  float z0, z1, z2, z3;
};

namespace detail {

template <int N> FK_HD FK_INLINE float exact_horner(const float (&c)[N], float x) { return polynomial<true, 0>(c, x); }

// ln u for a normal u; polynomial and two-word ln 2 of the Cephes library's logf (Moshier, 1989).
FK_HD FK_INLINE float normal_log(float u) {
  constexpr float c[] = {3.3333331174e-1f,  -2.4999993993e-1f, 2.0000714765e-1f,  -1.6668057665e-1f, 1.4249322787e-1f,
                         -1.2420140846e-1f, 1.1676998740e-1f,  -1.1514610310e-1f, 7.0376836292e-2f};
  const auto p = log_parts(u);
  const float x = p.f, z = x * x;
  const float y = fma(-0.5f, z, fma(p.k, -2.12194440e-4f, (exact_horner(c, x) * x) * z));
  return fma(p.k, 0.693359375f, x + y);
}

// (r cos theta, r sin theta) turned by the quadrant in the top two bits of w.
template <typename T> FK_HD FK_INLINE NormalPair<T> turn(T r, T cosine, T sine, uint32_t w) {
  const bool odd = (w & 0x40000000u) != 0, upper = (w & 0x80000000u) != 0;
  const T c = odd ? -sine : cosine, s = odd ? cosine : sine;
  return {r * (upper ? -c : c), r * (upper ? -s : s)};
}

}  // namespace detail

// Two floats from two words; sin and cos polynomials of Cephes' sinf and cosf.
FK_HD FK_INLINE NormalPair<float> normal_pair(uint32_t w_radius, uint32_t w_angle) {
  constexpr float sin_c[] = {-1.6666654611e-1f, 8.3321608736e-3f, -1.9515295891e-4f};
  constexpr float cos_c[] = {4.166664568298827e-2f, -1.388731625493765e-3f, 2.443315711809948e-5f};
  const float r = sqrt(-2.0f * detail::normal_log(uniform(w_radius)));
  const int32_t part = static_cast<int32_t>(w_angle & 0x3fffffffu) - 0x20000000;
  const float x = static_cast<float>(part) * 1.4629180792671596e-9f, z = x * x;  // 2 pi / 2^32
  const float sine = fma(detail::exact_horner(sin_c, z) * z, x, x);
  const float cosine = fma(detail::exact_horner(cos_c, z), z * z, fma(-0.5f, z, 1.0f));
  return detail::turn(r, cosine, sine, w_angle);
}

// The four floats of one block: elements 4 b .. 4 b + 3 of its sample.
FK_HD FK_INLINE NormalBlock normal_block(Words w) {
  const auto a = normal_pair(w.w0, w.w1), b = normal_pair(w.w2, w.w3);
  return {a.first, a.second, b.first, b.second};
}

// The two doubles of one block: elements 2 b and 2 b + 1. (w0, w1) make the radius, (w2, w3) the angle, high word
// first.
FK_HD FK_INLINE NormalPair<double> normal_pair(Words w) {
  const double r = sqrt(-2.0 * detail::log_normal<true>(uniform(w.w0, w.w1)));
  const double part = to_double(w.w2 & 0x3fffffffu) - 0x1p29;
  const auto s = detail::sincos_2pi<true>(fma(to_double(w.w3), 0x1p-64, part * 0x1p-32));
  return detail::turn(r, s.cos, s.sin, w.w2);
}

}  // namespace fokker::math
