// The Bregman divergence of -log C, which is KL(vMF(mu, k1) || vMF(mu, k2)), and its derivatives.
//
//   B(k1, k2) = log C(k1) - log C(k2) + A(k1) (k1 - k2) = int_k1^k2 (k2 - t) A'(t) dt >= 0
//   dB/dk1 = A'(k1) (k1 - k2),   dB/dk2 = A(k2) - A(k1) = int_k1^k2 A'(t) dt
// Full KL = B + A(k1) k2 |mu1 - mu2|^2 / 2. Near pairs take the integrals by Gauss and Legendre's rule, all of whose
// terms are positive. A' has its poles at +-i times the zeros of I_v, the least of which is above sqrt((v+1)(v+5));
// within 0.75 times the distance to that, ten nodes (float: five) reach full precision. Far pairs do not cancel by more
// than one digit in
//   B = KL(k1) - KL(k2) + k2 (A(k2) - A(k1)),   KL(k) to the uniform distribution,
// with 1 - A in place of A where that is the smaller, and the logarithms in KL(k1) - KL(k2) taken of quotients.
#pragma once

#include "math/vmf.h"

namespace fokker::math {

template <typename T> struct VmfNodes;
template <> struct VmfNodes<double> {
  static constexpr int count = 10;
  static FK_HD FK_INLINE double node(int i) {
    constexpr double x[] = {0.14887433898163122, 0.4333953941292472, 0.6794095682990244, 0.8650633666889845,
                            0.9739065285171717};
    return i < 5 ? -x[4 - i] : x[i - 5];
  }
  static FK_HD FK_INLINE double weight(int i) {
    constexpr double w[] = {0.295524224714752870, 0.269266719309996355, 0.219086362515982044, 0.149451349150580593,
                            0.0666713443086881376};
    return i < 5 ? w[4 - i] : w[i - 5];
  }
};
template <> struct VmfNodes<float> {
  static constexpr int count = 5;
  static FK_HD FK_INLINE float node(int i) {
    constexpr float x[] = {-0.906179845938663993f, -0.538469310105683091f, 0.0f, 0.538469310105683091f,
                           0.906179845938663993f};
    return x[i];
  }
  static FK_HD FK_INLINE float weight(int i) {
    constexpr float w[] = {0.236926885056189088f, 0.478628670499366468f, 0.568888888888888889f, 0.478628670499366468f,
                           0.236926885056189088f};
    return w[i];
  }
};

// What a far pair needs of each end: KL(k) = v log(v+r) + log(r)/2 + rest + a constant of v.
template <typename T> struct VmfPotential {
  T a, complement, r, rest;
};

namespace detail {

template <VmfRegime G, typename T> FK_HD FK_INLINE VmfPotential<T> vmf_potential(const VmfConstants<T>& c, T k) {
  VmfPotential<T> out;
  if constexpr (G == VmfRegime::series) {  // any r will do, if rest is made to match
    const VmfSeries<T> p(c, k);
    out.a = p.a(), out.complement = p.complement(out.a);
    out.r = VmfRanges<T>::radius, out.rest = p.kl_uniform() - c.kl_lead;
  } else {
    const VmfDebye<VmfTerms<G, T>::value, T> p(c, k);
    const T sum1 = p.template sum<1>();
    out.a = p.a(p.lead(), sum1), out.complement = p.complement(sum1);
    out.r = p.r, out.rest = mad(p.kw * p.kw, sum1, -p.template sum<0>());
  }
  return out;
}

template <typename T> FK_HD FK_INLINE bool vmf_is_near(const VmfConstants<T>& c, T k1, T k2) {
  const T x = min(k1, k2) * c.taylor_scale, d = abs(k2 - k1) * c.taylor_scale;
  return d * d <= T(0.5625) * (T(1) + x * x) && d < infinity<T>();
}

template <typename T>
FK_HD FK_INLINE T vmf_far_difference(T k1, T k2, const VmfPotential<T>& p1, const VmfPotential<T>& p2) {
  const T value = p1.a + p2.a < T(1) ? p2.a - p1.a : p1.complement - p2.complement;
  return k1 >= T(0) && k2 >= T(0) ? value : quiet_nan<T>();
}
template <typename T> FK_HD FK_INLINE T vmf_far_divergence(const VmfConstants<T>& c, T k1, T k2,
                                                           const VmfPotential<T>& p1, const VmfPotential<T>& p2) {
  const T logs = mad(c.v, math::log((c.v + p1.r) / (c.v + p2.r)), T(0.5) * math::log(p1.r / p2.r));
  const T value = logs + ((p1.rest - p2.rest) + k2 * vmf_far_difference(k1, k2, p1, p2));
  const bool infinite = (k1 == infinity<T>()) != (k2 == infinity<T>());
  const T upper = infinite ? infinity<T>() : value;
  return k1 >= T(0) && k2 >= T(0) ? upper : quiet_nan<T>();
}

template <typename T> FK_HD FK_INLINE VmfPotential<T> vmf_potential(const VmfConstants<T>& c, T k) {
  switch (vmf_regime<false>(c, k)) {
    case VmfRegime::series:
      return vmf_potential<VmfRegime::series>(c, k);
    case VmfRegime::near:
      return vmf_potential<VmfRegime::near>(c, k);
    case VmfRegime::middle:
      return vmf_potential<VmfRegime::middle>(c, k);
    default:
      return vmf_potential<VmfRegime::far>(c, k);
  }
}

}  // namespace detail

// out[0] = B, out[1] = dB/dk1, out[2] = dB/dk2, for a GPU.
template <typename T> FK_HD FK_INLINE void vmf_bregman_element(const VmfConstants<T>& c, T k1, T k2, T* out) {
  if (detail::vmf_is_near(c, k1, k2)) {
    const T h = T(0.5) * (k2 - k1);
    T b = T(0), a = T(0);
    for (int i = 0; i < VmfNodes<T>::count; ++i) {
      const T x = VmfNodes<T>::node(i), w = VmfNodes<T>::weight(i);
      const T f = w * vmf_element<VmfFn::resultant_derivative>(c, mad(h, T(1) + x, k1));
      b = mad(T(1) - x, f, b), a += f;
    }
    out[0] = h * (h * b), out[2] = h * a;
  } else {
    const auto p1 = detail::vmf_potential(c, k1), p2 = detail::vmf_potential(c, k2);
    out[0] = detail::vmf_far_divergence(c, k1, k2, p1, p2);
    out[2] = detail::vmf_far_difference(k1, k2, p1, p2);
  }
  out[1] = vmf_element<VmfFn::resultant_derivative>(c, k1) * (k1 - k2);
}

}  // namespace fokker::math
