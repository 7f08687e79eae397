// The von Mises-Fisher functions for hypot(v, k) < 32 (float: 16), by power series whose terms are all positive.
//
// With B = 0F1(; v+1; y), y = k^2/4, and the product series of DLMF 10.31.3, B^2 = sum p_n y^n,
//   p_n = (2v+n+1)_n / (n! (v+1)_n^2),
//   A         = k sum b_n y^n / (2 (v+1+n)) / B
//   1 - A^2   = sum e_n y^n / B^2,   e_n = p_n (2v+1) / (2v+n+1)
//   A'        = sum m_n y^n / B^2,   m_n = e_n / (2 (v+n+1))
//   A''       = (k/2) sum n m_n y^(n-1) / B^2 - 2 A A'
// (the last three follow from p_n and the same series of 0F1(; v+2; y)), so 1 - A and A' keep their digits at every k.
#pragma once

#include "math/bessel_log.h"
#include "math/vmf_constants.h"

namespace fokker::math {
namespace detail {

// Even and odd powers side by side: the sum is as long as a chain of dependent operations may be.
template <int I, int N, typename T> FK_HD FK_INLINE T stride_two(const T* c, T x) {
  if constexpr (I + 2 >= N) return c[I];
  else return mad(stride_two<I + 2, N>(c, x), x, c[I]);
}
template <int N, typename T> FK_HD FK_INLINE T power_series(const T* c, T q) {
  const T square = q * q;
  return mad(stride_two<1, N>(c, square), q, stride_two<0, N>(c, square));
}

template <typename T> struct VmfSeries {
  using R = VmfRanges<T>;
  const VmfConstants<T>& c;
  T k, q, u, b;  // B = 1 + u

  FK_HD FK_INLINE VmfSeries(const VmfConstants<T>& constants, T concentration) : c(constants), k(concentration) {
    const T scaled = k * (T(1) / R::radius);
    q = scaled * scaled;
    u = q * power_series<R::series_terms - 1>(c.b + 1, q);
    b = T(1) + u;
  }
  FK_HD FK_INLINE T a() const { return k * power_series<R::series_terms>(c.a, q) / b; }
  FK_HD FK_INLINE T complement(T a) const { return power_series<R::product_terms>(c.e, q) / (b * b * (T(1) + a)); }
  FK_HD FK_INLINE T first() const { return power_series<R::product_terms>(c.m, q) / (b * b); }
  FK_HD FK_INLINE T second(T a, T first) const {
    return k * power_series<R::product_terms>(c.dm, q) / (b * b) - T(2) * a * first;
  }
  // k A - log B; where A is near 1 both are near k, and that is taken out.
  FK_HD FK_INLINE T kl_uniform() const {
    const T a = this->a(), low = k * a - math::log1p(u);
    const T high = -k * complement(a) - math::log_normal(b * math::exp(-k));
    return a > T(0.5) ? high : low;
  }
  FK_HD FK_INLINE T log_c() const {
    const auto l = split_log(b);
    const auto total = two_sum(c.log_c0.hi, -l.k * LogConstants<T>::ln2_hi);
    return total.hi + (total.lo + (c.log_c0.lo - mad(l.k, LogConstants<T>::ln2_lo, l.rest)));
  }
};

// KL to the uniform at small k, where k A - log B cancels.
template <typename T> FK_HD FK_INLINE T vmf_kl_taylor(const VmfConstants<T>& c, T k) {
  const T scaled = k * c.taylor_scale, q = scaled * scaled;
  return q * horner(c.taylor, q);
}

}  // namespace detail
}  // namespace fokker::math
