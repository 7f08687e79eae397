// The kernel functions of density sums: weight, gradient weight and exponent of a pair at scaled distance.
//
// With z = |x - y| / h (L1 distance for laplace), a pair weighs w = F e^E, and its gradient weight is
//   G e^E = -(w / z) d log(w) / dz,   so that  dw/dx = (G e^E / h^2) (y - x)  and  dw / dlog h = G e^E z^2
// (laplace: dw/dx = (G e^E / h) sign(y - x), dw / dlog h = G e^E z). Written as a product of a bounded exponential and
// a factor, no kernel needs a logarithm per pair, and compact ones no exponential.
#pragma once

#include "math/elementary.h"

namespace fokker::math {

enum class Kernel : int {
  gaussian,
  laplace,
  exponential,
  matern32,
  matern52,
  student_t,
  epanechnikov,
  tophat,
  linear,
  cosine
};
constexpr int kKernelCount = 10;

// Kernels that vanish outside z < 1: their sums are of F and G alone, E is 0 throughout.
FK_HD FK_INLINE constexpr bool is_compact(Kernel k) { return k >= Kernel::epanechnikov; }

template <typename T> struct Pair {
  T exponent, weight, slope;
};  // E, F, G

// q = z^2 (laplace: z); p = (nu + d) / 2 and nu for student_t. E is natural.
template <Kernel kernel, typename T> FK_HD FK_INLINE Pair<T> kernel_pair(T q, T nu, T p) {
  if constexpr (kernel == Kernel::gaussian) return {T(-0.5) * q, T(1), T(1)};
  else if constexpr (kernel == Kernel::laplace) return {-q, T(1), T(1)};
  else if constexpr (kernel == Kernel::student_t) return {-p * log1p(q / nu), T(1), T(2) * p / (nu + q)};
  else if constexpr (kernel == Kernel::epanechnikov) return {T(0), q < T(1) ? T(1) - q : T(0), q < T(1) ? T(2) : T(0)};
  else if constexpr (kernel == Kernel::tophat) return {T(0), q < T(1) ? T(1) : T(0), T(0)};
  else {
    const T z = sqrt(q);
    const T inverse = z > T(0) ? T(1) / z : T(0);  // not smooth at 0: there the gradient is 0
    if constexpr (kernel == Kernel::exponential) return {-z, T(1), inverse};
    else if constexpr (kernel == Kernel::matern32) {
      const T u = T(1.7320508075688772935) * z;
      return {-u, T(1) + u, T(3)};
    } else if constexpr (kernel == Kernel::matern52) {
      const T u = T(2.2360679774997896964) * z;
      return {-u, T(1) + u + u * u * T(0.33333333333333333333), T(1.6666666666666666667) * (T(1) + u)};
    } else if constexpr (kernel == Kernel::linear) {
      return {T(0), z < T(1) ? T(1) - z : T(0), z < T(1) ? inverse : T(0)};
    } else {
      const SinCos<T> a = sincos_2pi((z < T(1) ? z : T(1)) * T(0.25));
      return {T(0), z < T(1) ? a.cos : T(0), z < T(1) ? T(1.5707963267948966192) * a.sin * inverse : T(0)};
    }
  }
}

}  // namespace fokker::math
