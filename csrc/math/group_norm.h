// The scalars of a group norm: coefficients of a channel, and what the gradient in x is made of.
//
// u = shift + (weight x_hat + bias) (1 + scale), x_hat = (x - m) rstd with m the mean, or 0 where not centred. With du
// the gradient in u, k = (1 + scale) weight, A = sum du, E = sum du x_hat over positions of a channel and n = numbers
// of a group:  dx = rstd (k du - centred sum_c k A / n - (x - mean) rstd sum_c k E / n).  (Design page, section 1.)
#pragma once

#include "common/group_plan.h"
#include "common/half.h"

namespace fokker::math {

FK_HD FK_INLINE double group_parameter(const GroupParameter& q, std::int64_t b, std::int64_t i, double otherwise) {
  if (!q.data) return otherwise;
  const std::int64_t at = b * q.batch_stride + i * q.stride;
  switch (q.dtype) {
    case DType::f16:
      return static_cast<double>(to_float(static_cast<const Half*>(q.data)[at]));
    case DType::bf16:
      return static_cast<double>(to_float(static_cast<const BFloat16*>(q.data)[at]));
    case DType::f64:
      return static_cast<const double*>(q.data)[at];
    default:
      return static_cast<double>(static_cast<const float*>(q.data)[at]);
  }
}

// (1 + scale) weight of a channel.
FK_HD FK_INLINE double group_gain(const GroupPlan& p, std::int64_t b, std::int64_t c) {
  return (1 + group_parameter(p.scale, b, c, 0)) * group_parameter(p.weight, 0, c, 1);
}

template <typename T> FK_HD FK_INLINE GroupChannel<T> group_channel(const GroupPlan& p, std::int64_t b, std::int64_t c,
                                                                    double mean, double rstd) {
  const double gain = 1 + group_parameter(p.scale, b, c, 0);
  const double factor = rstd * (gain * group_parameter(p.weight, 0, c, 1));
  const double m = p.centred ? mean : 0, rest = m - static_cast<double>(static_cast<T>(m));
  const double addend = group_parameter(p.shift, b, c, 0) + gain * group_parameter(p.bias, 0, c, 0) - factor * rest;
  return {static_cast<T>(m), static_cast<T>(factor), static_cast<T>(addend)};
}

// E from the sum of du (x - mean as rounded to T).
template <typename T>
FK_HD FK_INLINE double group_second(const GroupPlan& p, double mean, double rstd, double a, double e) {
  const double m = p.centred ? mean : 0;
  return rstd * (e - (m - static_cast<double>(static_cast<T>(m))) * a);
}

// From the sums over the group of k A and k E.
template <typename T>
FK_HD FK_INLINE GroupSlope<T> group_slope(const GroupPlan& p, double mean, double rstd, double ka, double ke) {
  if (p.std.data) return {T(0), T(0), T(0)};
  const T pivot = static_cast<T>(mean);
  const double slope = rstd * rstd * ke / p.count();
  const double offset = (p.centred ? rstd * ka / p.count() : 0) - slope * (mean - static_cast<double>(pivot));
  return {pivot, static_cast<T>(slope), static_cast<T>(offset)};
}

}  // namespace fokker::math
