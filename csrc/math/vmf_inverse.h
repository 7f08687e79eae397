// The concentration from a mean resultant length R, or from 1 - R: A_d(k) = R.
//
// Start R (d - R^2) / (1 - R^2) (Banerjee, Dhillon, Ghosh and Sra 2005), at most 6.4% off, then two steps of Halley's
// method with A', A'' in full. The residual is A - R below R = 1/2 and (1 - R) - (1 - A) above, so that it keeps its
// digits at both ends; steps are relative to k, so that A' may underflow. Included by vmf.h.
#pragma once

#include "math/vmf.h"

namespace fokker::math {
namespace detail {

template <typename T> struct VmfTarget {
  T r, complement;
};
template <VmfFn F, typename T> FK_HD FK_INLINE VmfTarget<T> vmf_target(T x) {
  // 1 - x is exact where it is used: for x >= 1/2 (Sterbenz), or as the larger of the two
  if constexpr (F == VmfFn::concentration_from_resultant) return {x, T(1) - x};
  else return {T(1) - x, x};
}

template <typename T> FK_HD FK_INLINE T vmf_start(const VmfConstants<T>& c, VmfTarget<T> t) {
  const T k = t.r * (c.n + t.complement * (T(1) + t.r)) / (T(1) + t.r) / t.complement;
  return max(T(0), min(std::numeric_limits<T>::max(), k));
}

template <typename T> FK_HD FK_INLINE T vmf_halley(VmfTarget<T> t, T k, const VmfMoments<T>& m) {
  constexpr T small = sizeof(T) == 8 ? T(1e-9) : T(1e-5);  // there the start is exact
  const T f = t.r < T(0.5) ? m.a - t.r : t.complement - m.complement;
  const T x = f / m.first, y = x / (T(1) - T(0.5) * x * (m.second / m.first));
  return t.r < small ? k : mad(-k, y, k);
}

// R = 0 gives 0, R = 1 inf, anything outside nan.
template <typename T> FK_HD FK_INLINE T vmf_inverse_edges(VmfTarget<T> t, T k) {
  const T upper = t.complement > T(0) && k < std::numeric_limits<T>::max() ? k : infinity<T>();
  const T inside = t.r > T(0) ? upper : T(0);
  return t.r >= T(0) && t.complement >= T(0) ? inside : quiet_nan<T>();
}

template <typename T> FK_HD FK_INLINE VmfMoments<T> vmf_moments(const VmfConstants<T>& c, T k) {
  switch (vmf_regime<false>(c, k)) {
    case VmfRegime::series:
      return vmf_moments<VmfRegime::series>(c, k);
    case VmfRegime::near:
      return vmf_moments<VmfRegime::near>(c, k);
    case VmfRegime::middle:
      return vmf_moments<VmfRegime::middle>(c, k);
    default:
      return vmf_moments<VmfRegime::far>(c, k);
  }
}

}  // namespace detail

constexpr int kVmfHalleySteps = 2;

template <VmfFn F, typename T> FK_HD FK_INLINE T vmf_inverse(const VmfConstants<T>& c, T x) {
  const auto t = detail::vmf_target<F>(x);
  T k = detail::vmf_start(c, t);
  for (int step = 0; step < kVmfHalleySteps; ++step) k = detail::vmf_halley(t, k, detail::vmf_moments(c, k));
  return detail::vmf_inverse_edges(t, k);
}

}  // namespace fokker::math
