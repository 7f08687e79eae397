// Chunk kernels of the von Mises-Fisher functions; n <= 512 contiguous elements, one dimension.
#pragma once

#include <cstdint>

#include "math/vmf_bregman.h"

#define FK_DECLARE(isa)                                                                                     \
  namespace fokker::cpu::isa {                                                                              \
  template <typename T> void vmf_scalar(math::VmfFn fn, std::int64_t dim, const T* k, T* out, int n);       \
  /* B(k1, k2) = log C(k1) - log C(k2) + A(k1)(k1 - k2), dB/dk1, dB/dk2; a null output is skipped. */       \
  template <typename T> void vmf_bregman(std::int64_t dim, const T* k1, const T* k2, T* const* out, int n); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
