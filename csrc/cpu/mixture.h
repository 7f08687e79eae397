// Row kernels behind fits and mixtures: resultant vectors and row-wise log-sum-exp.
#pragma once

#include <cstdint>

#define FK_DECLARE(isa)                                                                                               \
  namespace fokker::cpu::isa {                                                                                        \
  /* Weighted column sums of n rows in double, the sum of weights, and max | |x_i|^2 - 1 |, into out[d + 2]. */       \
  template <typename T>                                                                                               \
  void resultant(const T* x, std::int64_t row_stride, const T* weights, std::int64_t n, std::int64_t d, double* out); \
  /* out[i] = log sum_k exp(logits[i, k] + bias[k]); with `softmax` the logits become exp(. - out[i]). */             \
  template <typename T>                                                                                               \
  void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax);                 \
  /* Inner product of two rows, summed in double. */                                                                  \
  template <typename T> double row_dot(const T* a, const T* b, std::int64_t d);                                       \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
