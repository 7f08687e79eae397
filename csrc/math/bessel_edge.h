// Limits of the log-Bessel functions and their derivatives on the rim of the domain: x = 0, x = inf, v = inf; nan
// outside it.
#pragma once

#include "math/bessel_debye.h"
#include "math/bessel_series.h"

namespace fokker::math {

// True for every (v, x) but 0 <= v < inf, 0 < x < inf.
template <typename T> FK_HD FK_INLINE bool bessel_is_edge(T v, T x) {
  constexpr T inf = infinity<T>();
  return !(v >= T(0) && v < inf && x > T(0) && x < inf);
}

namespace detail {

template <Fn F, typename T> FK_HD FK_INLINE T edge_value_at_zero(T v) {
  constexpr T inf = infinity<T>();
  if constexpr (F == Fn::iv_ratio) return T(0);
  else if constexpr (is_k(F)) return inf;
  else return v == T(0) ? T(0) : -inf;
}
template <Fn F, typename T> FK_HD FK_INLINE T edge_value_at_infinity(bool v_infinite) {
  constexpr T inf = infinity<T>();
  if constexpr (F == Fn::iv_ratio) return v_infinite ? T(0) : T(1);
  else if constexpr (F == Fn::kv_ratio) return v_infinite ? inf : T(1);
  else if constexpr (F == Fn::log_ive) return -inf;
  else return (F == Fn::log_iv) != v_infinite ? inf : -inf;
}

template <Fn F, typename T> FK_HD FK_INLINE void edge_gradient(T v, T x, T* out) {
  constexpr T inf = infinity<T>();
  if (x == T(0)) {
    if constexpr (F == Fn::iv_ratio) out[0] = T(0), out[1] = T(0.5) / (v + T(1));
    else if constexpr (F == Fn::kv_ratio) out[0] = inf, out[1] = -inf;
    else if constexpr (is_k(F)) out[0] = v == T(0) ? T(0) : inf, out[1] = -inf;
    else out[0] = -inf, out[1] = v > T(0) ? inf : (F == Fn::log_ive ? T(-1) : T(0));
  } else if (v == inf) {
    if constexpr (F == Fn::iv_ratio) out[0] = T(0), out[1] = T(0);
    else if constexpr (F == Fn::kv_ratio) out[0] = T(2) / x, out[1] = -inf;
    else out[0] = is_k(F) ? inf : -inf, out[1] = is_k(F) ? -inf : inf;
  } else {
    out[0] = T(0), out[1] = F == Fn::log_iv ? T(1) : (F == Fn::log_kv ? T(-1) : T(0));
  }
}

template <Fn F, typename T> FK_HD FK_INLINE void edge_hessian(T v, T x, T* out) {
  constexpr T inf = infinity<T>();
  out[0] = out[1] = out[2] = T(0);
  if (x == T(0)) {
    if constexpr (F == Fn::iv_ratio) {
      out[1] = T(-0.5) / ((v + T(1)) * (v + T(1)));
    } else if constexpr (F == Fn::kv_ratio) {
      out[0] = v > T(0.5) ? T(0) : inf, out[1] = -inf, out[2] = inf;  // K_{v-1}/K_v ~ x^(2v-1)
    } else {
      // log I ~ v log(x/2) - log Gamma(v+1), log K ~ -v log(x/2) + log Gamma(v).
      const T w = is_k(F) ? v : v + T(1);
      T shift = T(0), z = w;
      for (int k = 0; k < 9; ++k, z += T(1)) shift += T(1) / (z * z);
      const T psi1 = (w < inf ? trigamma(z) : T(0)) + shift;
      out[0] = is_k(F) ? psi1 : -psi1;  // v = 0: log K_v is even in v and d2/dv2 ~ log(x)^2 / 3
      if constexpr (is_k(F)) out[1] = v > T(0) ? -inf : T(0), out[2] = inf;
      else out[1] = inf, out[2] = v > T(0) ? -inf : T(0.5);
    }
  } else if (v == inf) {
    if constexpr (F == Fn::kv_ratio) out[1] = T(-2) / (x * x), out[2] = inf;
    else if constexpr (is_k(F)) out[1] = T(-1) / x, out[2] = inf;
    else if constexpr (F != Fn::iv_ratio) out[1] = T(1) / x, out[2] = -inf;
  }
}

}  // namespace detail

// F and its derivatives where bessel_is_edge(v, x). With v and x both infinite only log(I e^-x) has a limit.
template <Fn F, int Order, typename T> FK_HD FK_INLINE void bessel_edge(T v, T x, T* out) {
  constexpr T inf = infinity<T>(), nan = quiet_nan<T>();
  constexpr int count = Order + 1;
  const bool inside = v >= T(0) && x >= T(0), both = v == inf && x == inf;
  if (!inside || (both && !(Order == 0 && F == Fn::log_ive))) {
    for (int i = 0; i < count; ++i) out[i] = nan;
  } else if constexpr (Order == 0) {
    out[0] = x == T(0) ? detail::edge_value_at_zero<F>(v) : detail::edge_value_at_infinity<F, T>(v == inf);
  } else if constexpr (Order == 1) {
    detail::edge_gradient<F>(v, x, out);
  } else {
    detail::edge_hessian<F>(v, x, out);
  }
}

}  // namespace fokker::math
