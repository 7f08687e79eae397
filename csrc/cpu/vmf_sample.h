// Row kernels of von Mises-Fisher sampling and of its gradient.
#pragma once

#include <cstdint>

#define FK_DECLARE(isa)                                                                                               \
  namespace fokker::cpu::isa {                                                                                        \
  /* Samples [begin, end) into rows of out. Sample i has mean row (i % batch) * mean_stride and concentration element \
     (i % batch) * concentration_stride (batch 0: no wrap), its id is sample_ids[i] or first_id + i; w and            \
     one_minus_w (null: not wanted) receive mu.x and 1 - mu.x. step < 2^24. */                                        \
  template <typename T> void vmf_sample(const T* mean, std::int64_t mean_stride, const T* concentration,              \
                                        std::int64_t concentration_stride, const std::int64_t* sample_ids,            \
                                        std::int64_t first_id, std::uint64_t seed, std::uint32_t step,                \
                                        std::int64_t dim, T* out, T* w, T* one_minus_w, std::int64_t begin,           \
                                        std::int64_t end, std::int64_t batch = 0);                                    \
  /* out[i] = dw/dk at a fixed probability; mean = A(dim, k) and one_minus_mean = 1 - A. */                           \
  template <typename T> void vmf_cosine_gradient(std::int64_t dim, const T* concentration, const T* mean,             \
                                                 const T* one_minus_mean, const T* w, const T* one_minus_w, T* out,   \
                                                 int n);                                                              \
  /* Vector-Jacobian product of samples [begin, end): grad (rows like x) into grad_mean rows and one grad_cosine each \
     (times dw/dk it is the gradient in k). grad_mean may be grad itself. */                                          \
  template <typename T> void vmf_sample_backward(const T* grad, const T* x, const T* mean, std::int64_t mean_stride,  \
                                                 const T* w, const T* one_minus_w, std::int64_t dim, T* grad_mean,    \
                                                 T* grad_cosine, std::int64_t begin, std::int64_t end,                \
                                                 std::int64_t batch = 0);                                             \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
