// The von Mises-Fisher functions for hypot(v, k) >= 32 (float: 16), by Debye's expansion in polar form.
//
//   r = hypot(v, k), w = 1/r, s = (v/r)^2, P = sum D_n(s) w^n (bessel_debye.h),   DLMF 10.41.3-4, 10.41.7
//   log C = v log(v+r) - r + log(r)/2 - (v + 1/2) log 2 pi - P
//   A     = k/(v+r) + (P - log(r)/2)'        1 - A = (v + v^2/(r+k))/(v+r) - (P - log(r)/2)'
//   A'    = v/(r (v+r)) + (P - log(r)/2)''
// v log k has cancelled against log I's own, so all is regular at k = 0, and no two large terms are left that cancel
// but in log C, which is summed in double-word arithmetic: it crosses zero while its terms are of the size of v log v.
#pragma once

#include "math/bessel_debye.h"
#include "math/double_word_log.h"
#include "math/vmf_constants.h"

namespace fokker::math {
namespace detail {

template <int K, typename T> struct VmfDebye {
  const VmfConstants<T>& c;
  T k, r, w, vw, kw, s;
  T r_lo;  // r + r_lo is hypot(v, k) to twice the precision

  FK_HD FK_INLINE VmfDebye(const VmfConstants<T>& constants, T concentration) : c(constants) {
    constexpr T big = VmfRanges<T>::big;
    k = min(std::numeric_limits<T>::max(), concentration);
    const bool huge = k > big;
    const auto kk = two_prod(huge ? big : k, huge ? big : k), sum = two_sum(c.v_square.hi, kk.hi);
    const T root = sqrt(sum.hi);
    r = huge ? k : root;
    w = T(1) / r;
    r_lo = huge ? T(0) : T(0.5) * w * (residual(sum.hi, root, root) + (sum.lo + (c.v_square.lo + kk.lo)));
    vw = c.v * w, kw = k * w, s = vw * vw;
  }
  // The Order-th derivative of P - log(r)/2 in k without its prefix in k and w; P itself for Order 0.
  template <int Order> FK_HD FK_INLINE T sum() const { return debye_sum<0, Order, K>(s, w); }

  FK_HD FK_INLINE T lead() const { return k / (c.v + r); }
  FK_HD FK_INLINE T a(T lead, T sum1) const { return mad(kw * w, sum1, lead); }
  FK_HD FK_INLINE T complement(T sum1) const { return mad(-(kw * w), sum1, (c.v + c.v * (c.v / (r + k))) / (c.v + r)); }
  FK_HD FK_INLINE T first_over_w() const { return mad(w, sum<2>(), vw / (T(1) + vw)); }
  FK_HD FK_INLINE T second_over_w2(T lead) const {
    return mad(kw * w, sum<3>(), -lead * vw * (T(1) + T(1) / (T(1) + vw)));
  }

  FK_HD FK_INLINE T log_c() const {
    const auto t = fast_two_sum(r, c.v);
    const T top = std::numeric_limits<T>::max() / T(4);
    const auto u = fast_two_sum(min(t.hi, top), t.lo + r_lo);
    const auto l = mul(log_dw(u), c.v);
    const auto x = two_sum(l.hi, -r), y = two_sum(x.hi, c.log_2pi.hi);
    const auto lr = split_log(r);
    const auto z = two_sum(y.hi, T(0.5) * lr.k * LogConstants<T>::ln2_hi);
    const T rest = mad(T(0.5), mad(lr.k, LogConstants<T>::ln2_lo, lr.rest), -sum<0>());
    return z.hi + (rest + (z.lo + (y.lo + (x.lo + ((l.lo - r_lo) + c.log_2pi.lo)))));
  }
  // v log((v+r)/(2 pi e)) + log(r/(2 pi))/2 + k (P - log(r)/2)' - P, every logarithm positive.
  FK_HD FK_INLINE T entropy() const {
    const T l = math::log_normal((c.v + r) * T(0.058549831524319168)), h = math::log_normal(r * T(0.15915494309189534));
    return -mad(c.v, l, mad(T(0.5), h, mad(kw * kw, sum<1>(), -sum<0>())));
  }
  FK_HD FK_INLINE T kl_uniform() const {
    const T t = k * lead();  // r - v
    const T relative = t * c.inverse_v, shifted = r - T(1), u = c.v > T(0) ? relative : shifted;
    const T rest = mad(kw * kw, sum<1>(), c.stirling - sum<0>());
    return mad(c.v, math::log1p(t * c.half_inverse_v), mad(T(0.5), math::log1p(u), rest));
  }
};

}  // namespace detail
}  // namespace fokker::math
