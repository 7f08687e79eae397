// What a core can do at best, for rooflines: exponentials of simd.h, fused multiply-adds.
#pragma once

#include <cstdint>

#define FK_DECLARE(isa)                                                                          \
  namespace fokker::cpu::isa {                                                                   \
  /* n exponentials, or n multiply-adds, of independent registers; the result depends on all. */ \
  template <typename T> double spin(bool exponentials, std::int64_t n);                          \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
