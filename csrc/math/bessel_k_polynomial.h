// Truncated Taylor arithmetic and the bivariate polynomials that yield K_mu(x), K_{mu+1}(x) with derivatives in mu.
//
// Derivatives nobody reads cost nothing: all of this is inlined and unrolled, so the compiler drops them.
#pragma once

#include "math/arithmetic.h"

namespace fokker::math::detail {

// A function value with its first and second derivative.
template <typename T> struct Jet {
  T f, d1, d2;
};
template <typename T> FK_HD FK_INLINE Jet<T> operator+(Jet<T> a, Jet<T> b) {
  return {a.f + b.f, a.d1 + b.d1, a.d2 + b.d2};
}
template <typename T> FK_HD FK_INLINE Jet<T> operator-(Jet<T> a, Jet<T> b) {
  return {a.f - b.f, a.d1 - b.d1, a.d2 - b.d2};
}
template <typename T> FK_HD FK_INLINE Jet<T> operator*(Jet<T> a, T b) { return {a.f * b, a.d1 * b, a.d2 * b}; }
template <typename T> FK_HD FK_INLINE Jet<T> operator*(Jet<T> a, Jet<T> b) {
  return {a.f * b.f, mad(a.f, b.d1, a.d1 * b.f), mad(a.f, b.d2, mad(T(2) * a.d1, b.d1, a.d2 * b.f))};
}
template <typename T> FK_HD FK_INLINE Jet<T> operator/(Jet<T> a, Jet<T> b) {
  const T r = T(1) / b.f, f = a.f / b.f;
  const T d1 = mad(-f, b.d1, a.d1) * r;
  return {f, d1, mad(-f, b.d2, mad(T(-2) * d1, b.d1, a.d2)) * r};
}
template <typename T> FK_HD FK_INLINE Jet<T> select(bool c, Jet<T> a, Jet<T> b) {
  return {c ? a.f : b.f, c ? a.d1 : b.d1, c ? a.d2 : b.d2};
}

// f(mu^2) as a function of mu, from its jet in z = mu^2.
template <typename T> FK_HD FK_INLINE Jet<T> even_in(T mu, T z, Jet<T> f) {
  return {f.f, T(2) * mu * f.d1, T(2) * mad(T(2) * z, f.d2, f.d1)};
}
// mu f(mu^2) as a function of mu.
template <typename T> FK_HD FK_INLINE Jet<T> odd_in(T mu, T z, Jet<T> f) {
  return {mu * f.f, mad(T(2) * z, f.d1, f.f), T(2) * mu * mad(T(2) * z, f.d2, T(3) * f.d1)};
}

// c0 + c1 z + ..., with derivatives in z.
template <typename T> FK_HD FK_INLINE Jet<T> polynomial_jet(T, T c0) { return {c0, T(0), T(0)}; }
template <typename T, typename... Rest> FK_HD FK_INLINE Jet<T> polynomial_jet(T z, T c0, Rest... rest) {
  const Jet<T> p = polynomial_jet(z, rest...);
  return {mad(p.f, z, c0), mad(p.d1, z, p.f), mad(p.d2, z, T(2) * p.d1)};
}
template <int I, int N, typename T> FK_HD FK_INLINE Jet<T> row_jet_from(const T (&c)[N], T z) {
  if constexpr (I + 1 == N) {
    return {c[I], T(0), T(0)};
  } else {
    const Jet<T> p = row_jet_from<I + 1>(c, z);
    return {mad(p.f, z, c[I]), mad(p.d1, z, p.f), mad(p.d2, z, T(2) * p.d1)};
  }
}
template <int N, typename T> FK_HD FK_INLINE Jet<T> row_jet(const T (&c)[N], T z) { return row_jet_from<0>(c, z); }

// A function of (y, z) and its y derivative, both with derivatives in z.
template <typename T> struct JetPair {
  Jet<T> f, slope;
};
template <typename T> FK_HD FK_INLINE Jet<T> mad_jet(Jet<T> a, T b, Jet<T> c) {
  return {mad(a.f, b, c.f), mad(a.d1, b, c.d1), mad(a.d2, b, c.d2)};
}
template <typename T> FK_HD FK_INLINE JetPair<T> outer_jet(T, Jet<T> c0) { return {c0, {T(0), T(0), T(0)}}; }
template <typename T, typename... Rest> FK_HD FK_INLINE JetPair<T> outer_jet(T y, Jet<T> c0, Rest... rest) {
  const JetPair<T> p = outer_jet(y, rest...);
  return {mad_jet(p.f, y, c0), mad_jet(p.slope, y, p.f)};
}

}  // namespace fokker::math::detail
