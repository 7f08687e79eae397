// The scalar updates of SDE steps, the same on the CPU and on CUDA.
//
//   affine        y = a x + sum_k b_k m_k + c z, term by term in this order
//   exponential   y = x exp(s), s = a + sum_k b_k m_k + c z
//   clipped       m_1 := clamp(p x + q m_1, -r, r), before either
#pragma once

#include "math/elementary.h"

namespace fokker::math {

// One more term of a sum.
template <typename T> FK_HD FK_INLINE T plus_term(T sum, T coefficient, T vector) {
  return mad(coefficient, vector, sum);
}

// A clipped prediction of the data; nan stays nan.
template <typename T> FK_HD FK_INLINE T clipped(T x, T m, T p, T q, T range) {
  const T raw = mad(q, m, p * x);
  const T low = raw < -range ? -range : raw;
  return low > range ? range : low;
}
// Whether a gradient passes through the clip.
template <typename T> FK_HD FK_INLINE bool unclipped(T x, T m, T p, T q, T range) {
  const T raw = mad(q, m, p * x);
  return raw >= -range && raw <= range;
}

}  // namespace fokker::math
