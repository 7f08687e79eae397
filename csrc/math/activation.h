// Activations of gated layers with their derivatives, branch-free: silu, GELU by tanh and by erf, EDM2's silu / 0.596.
//
//   silu       x s,  s = sigmoid(x)                        derivative  s (1 + x (1 - s))
//   GELU tanh  x s,  s = sigmoid(2 r (x + a x^3)),         derivative  s (1 + x (1 - s) 2 r (1 + 3 a x^2))
//              r = sqrt(2 / pi), a = 0.044715 (the same as 0.5 x (1 + tanh(r (x + a x^3))), without its cancellation)
//   GELU       x Phi(x)                                    derivative  Phi(x) + x phi(x)
#pragma once

#include "math/elementary.h"

namespace fokker::math {

enum class Activation : int { silu, gelu_tanh, gelu, mp_silu };
constexpr int kActivationCount = 4;

template <typename T> struct Activated {
  T value, slope;
};

namespace detail {

template <typename T> FK_HD FK_INLINE T sigmoid(T x) { return T(1) / (T(1) + math::exp(-x)); }

// exp(-x^2 / 2) with the rounding error of the square made good.
template <typename T> FK_HD FK_INLINE T gauss(T x) {
  using B = typename Format<T>::Bits;
  constexpr B mask = ~((B(1) << (sizeof(T) == 8 ? 27 : 12)) - 1);
  const T square = x * x, high = bit_cast<T>(static_cast<B>(bit_cast<B>(x) & mask)), low = x - high;
  const T error = ((high * high - square) + T(2) * high * low) + low * low;
  const T e = math::exp(T(-0.5) * square);
  return e == T(0) ? e : mad(e, T(-0.5) * error, e);
}

// exp(z^2 / 2) (1 - Phi(z)) (1 + z) for 0 <= z <= 14 (38), a polynomial in t = (z - 4) / (z + 4): relative error
// 2.3e-9 (5.5e-17), Chebyshev nodes.
template <typename T> FK_HD FK_INLINE T mills(T t) {
  if constexpr (sizeof(T) == 8) {
    constexpr T c[] = {
        0.47205320650984467042,   -0.096703477326525381546,  0.013999634724428892513,   0.028600364053505494518,
        -0.032197837428283090597, 0.01793609748107815471,    -0.0050023785865798547952, -0.00028562311770235676143,
        0.0006948970517556370979, -9.4430103939480043423e-5, -8.7852813885295428968e-5, 2.1249380968267437094e-5,
        1.3625238441129698e-5,    -3.4304145328046226989e-6, -2.608255853187153021e-6,  4.0176734524103035202e-7,
        5.4344105814634967855e-7, 3.2686804949770532613e-9,  -1.0119494760026601281e-7, -1.9238134933652708248e-8,
        1.1284365545767842934e-8, 4.4630550944359418677e-9,  2.4345278475385341821e-10};
    return horner(c, t);
  } else {
    constexpr T c[] = {T(0.47205320654),    T(-0.096703467992),  T(0.013999623554),   T(0.028600026226),
                       T(-0.032197625729),  T(0.017939629014),   T(-0.0050030000566), T(-0.00030111531255),
                       T(0.00069179583211), T(-6.4484069978e-5), T(-7.341340565e-5)};
    return horner(c, t);
  }
}

template <typename T> FK_HD FK_INLINE Activated<T> gelu(T x) {
  constexpr T root = T(0.39894228040143267794);  // 1 / sqrt(2 pi)
  constexpr T far = sizeof(T) == 8 ? T(38) : T(14);
  const T z = abs(x), near = z < far ? z : far, density = gauss(near);
  const T upper = density * mills((near - T(4)) / (near + T(4))) / (T(1) + near);
  const T below = x < T(0) ? upper : T(1) - upper;
  const T phi = z < far ? density * root : T(0);
  const T value = x * below;
  return {value, x == x ? mad(x < far && x > -far ? x : T(0), phi, below) : x};
}

template <typename T> FK_HD FK_INLINE Activated<T> gelu_tanh(T x) {
  constexpr T r = T(1.5957691216057307117), a = T(0.044715);                                      // 2 sqrt(2 / pi)
  const T low = x < T(-40) ? T(-40) : x, near = low > T(40) ? T(40) : low, square = near * near;  // s is 0 or 1 beyond
  const T s = sigmoid(r * mad(a * square, near, near));
  return {x * s, s * mad(near * (T(1) - s), r * mad(T(3) * a, square, T(1)), T(1))};
}

}  // namespace detail

template <Activation A, typename T> FK_HD FK_INLINE Activated<T> activate(T x) {
  if constexpr (A == Activation::gelu) {
    return detail::gelu(x);
  } else if constexpr (A == Activation::gelu_tanh) {
    return detail::gelu_tanh(x);
  } else {
    constexpr T scale = A == Activation::mp_silu ? T(1) / T(0.596) : T(1);
    const T s = detail::sigmoid(x);
    return {x * s * scale, s * mad(x, T(1) - s, T(1)) * scale};
  }
}

}  // namespace fokker::math
