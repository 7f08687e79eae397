// Huge pages for results that are about to be written.
#pragma once

#include <cstdint>

#include "common/tensor_view.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fokker::cpu {

// Asks for huge pages under a result of `numbers` from `data` on, the gaps between them counted. malloc maps blocks of
// many megabytes afresh, and clearing them 4 KB at a time takes longer than a kernel takes to fill them (64 MB: 30 ms,
// by huge pages 10). Costs 0.2 us where there is nothing to do.
inline void expect_writes(void* data, DType dtype, std::int64_t numbers) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t huge = std::uintptr_t(2) << 20;
  const std::uintptr_t element = dtype == DType::f64 || dtype == DType::i64 ? 8 : dtype == DType::f32 ? 4 : 2;
  const std::uintptr_t bytes = static_cast<std::uintptr_t>(numbers > 0 ? numbers : 0) * element;
  if (!data || bytes < 2 * huge) return;
  const std::uintptr_t from = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t begin = (from + huge - 1) / huge * huge;
  const std::uintptr_t end = (from + bytes) / huge * huge;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: where it is refused, nothing is lost
#else
  static_cast<void>(data), static_cast<void>(dtype), static_cast<void>(numbers);
#endif
}

}  // namespace fokker::cpu
