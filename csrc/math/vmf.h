// The von Mises-Fisher functions of a dimension and a concentration k >= 0, one element at a time.
//
//   C_d(k) = k^v / ((2 pi)^(v+1) I_v(k)), v = d/2 - 1,   A = I_{v+1}/I_v = E[mu.x],   entropy = -(log C + k A).
// k = 0 is the uniform distribution, k = inf a point mass; k < 0 and nan give nan. Dimensions 2 to 1e6.
#pragma once

#include "math/vmf_debye.h"
#include "math/vmf_series.h"

namespace fokker::math {

enum class VmfFn : int {
  log_normalizer,
  mean_resultant,        // A
  complement,            // 1 - A
  resultant_derivative,  // A'
  resultant_second,      // A''
  entropy,
  kl_uniform,                    // of the distribution to the uniform one
  concentration_from_resultant,  // the k with A(k) = R, from R
  concentration_from_complement  // the same from 1 - R
};
constexpr int kVmfFnCount = 9;

constexpr bool is_inverse(VmfFn f) {
  return f == VmfFn::concentration_from_resultant || f == VmfFn::concentration_from_complement;
}

enum class VmfRegime : int { taylor, series, near, middle, far };
constexpr int kVmfRegimeCount = 5;

// By the element alone; nan falls into the last. The taylor regime, k^2 < (v+1)(v+5)/64, is for kl_uniform only.
template <bool WithTaylor, typename T> FK_HD FK_INLINE VmfRegime vmf_regime(const VmfConstants<T>& c, T k) {
  const int above = (k < c.edge[1] ? 0 : 1) + (k < c.edge[2] ? 0 : 1) + (k < c.edge[3] ? 0 : 1);
  return static_cast<VmfRegime>(WithTaylor && k < c.edge[0] ? 0 : 1 + above);
}

// A, 1 - A, k A', k^2 A'': what a step of the inverse needs, scaled so that neither end of k's range underflows.
template <typename T> struct VmfMoments {
  T a, complement, first, second;
};

namespace detail {

template <VmfRegime G, typename T> struct VmfTerms {
  using R = VmfRanges<T>;
  static constexpr int value = G == VmfRegime::near     ? R::near_terms
                               : G == VmfRegime::middle ? R::middle_terms
                                                        : R::far_terms;
};

template <VmfRegime G, typename T> FK_HD FK_INLINE VmfMoments<T> vmf_moments(const VmfConstants<T>& c, T k) {
  VmfMoments<T> out;
  if constexpr (G == VmfRegime::series) {
    const VmfSeries<T> p(c, k);
    const T first = p.first();
    out.a = p.a(), out.complement = p.complement(out.a);
    out.first = k * first, out.second = k * k * p.second(out.a, first);
  } else {
    const VmfDebye<VmfTerms<G, T>::value, T> p(c, k);
    const T lead = p.lead(), sum1 = p.template sum<1>();
    out.a = p.a(lead, sum1), out.complement = p.complement(sum1);
    out.first = p.kw * p.first_over_w(), out.second = p.kw * p.kw * p.second_over_w2(lead);
  }
  return out;
}

// k >= 0, finite, in regime G.
template <VmfFn F, VmfRegime G, typename T> FK_HD FK_INLINE T vmf_body(const VmfConstants<T>& c, T k) {
  if constexpr (G == VmfRegime::taylor) {
    return vmf_kl_taylor(c, k);
  } else if constexpr (G == VmfRegime::series) {
    const VmfSeries<T> p(c, k);
    if constexpr (F == VmfFn::log_normalizer) return p.log_c();
    else if constexpr (F == VmfFn::mean_resultant) return p.a();
    else if constexpr (F == VmfFn::complement) return p.complement(p.a());
    else if constexpr (F == VmfFn::resultant_derivative) return p.first();
    else if constexpr (F == VmfFn::resultant_second) return p.second(p.a(), p.first());
    else if constexpr (F == VmfFn::entropy) return -c.log_c0.hi - p.kl_uniform();
    else return p.kl_uniform();
  } else {
    const VmfDebye<VmfTerms<G, T>::value, T> p(c, k);
    if constexpr (F == VmfFn::log_normalizer) return p.log_c();
    else if constexpr (F == VmfFn::mean_resultant) return p.a(p.lead(), p.template sum<1>());
    else if constexpr (F == VmfFn::complement) return p.complement(p.template sum<1>());
    else if constexpr (F == VmfFn::resultant_derivative) return p.w * p.first_over_w();
    else if constexpr (F == VmfFn::resultant_second) return p.w * p.w * p.second_over_w2(p.lead());
    else if constexpr (F == VmfFn::entropy) return p.entropy();
    else return p.kl_uniform();
  }
}

// The limits at k = inf, and nan outside the domain.
template <VmfFn F, typename T> FK_HD FK_INLINE T vmf_edges(T k, T value) {
  constexpr T inf = infinity<T>();
  constexpr T limit = F == VmfFn::log_normalizer || F == VmfFn::entropy ? -inf
                      : F == VmfFn::kl_uniform                          ? inf
                      : F == VmfFn::mean_resultant                      ? T(1)
                                                                        : T(0);
  const T upper = k < inf ? value : limit;
  return k >= T(0) ? upper : quiet_nan<T>();
}

}  // namespace detail

// The log density at k = inf: inf where every coordinate is within four roundings of the mean's, else -inf. (Four: the
// direction of a single point is that point divided by its length.)
template <typename T> FK_HD FK_INLINE T vmf_point_mass(const T* x, const T* mean, std::int64_t dim) {
  T furthest = T(0);
  for (std::int64_t j = 0; j < dim; ++j) {
    const T gap = abs(x[j] - mean[j]);
    furthest = gap <= furthest ? furthest : gap;  // nan too
    if (furthest != furthest) return furthest;
  }
  return furthest <= T(4) * std::numeric_limits<T>::epsilon() ? infinity<T>() : -infinity<T>();
}
}  // namespace fokker::math

#include "math/vmf_inverse.h"

namespace fokker::math {

// F at one element, for a GPU: the regime is a branch. `c` is from fill_vmf_constants on the host.
template <VmfFn F, typename T> FK_HD FK_INLINE T vmf_element(const VmfConstants<T>& c, T k) {
  if constexpr (is_inverse(F)) {
    return vmf_inverse<F>(c, k);
  } else {
    constexpr bool taylor = F == VmfFn::kl_uniform;
    T value;
    switch (vmf_regime<taylor>(c, k)) {
      case VmfRegime::taylor:
        value = taylor ? detail::vmf_kl_taylor(c, k) : T(0);
        break;
      case VmfRegime::series:
        value = detail::vmf_body<F, VmfRegime::series>(c, k);
        break;
      case VmfRegime::near:
        value = detail::vmf_body<F, VmfRegime::near>(c, k);
        break;
      case VmfRegime::middle:
        value = detail::vmf_body<F, VmfRegime::middle>(c, k);
        break;
      default:
        value = detail::vmf_body<F, VmfRegime::far>(c, k);
    }
    return detail::vmf_edges<F>(k, value);
  }
}

}  // namespace fokker::math
