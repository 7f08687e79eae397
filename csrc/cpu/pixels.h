// Pixel norms on the CPU: pixels, or tiles of them, on torch's thread pool.
#pragma once

#include <algorithm>

#include "common/pixels_plan.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

#define FK_DECLARE(isa)                                                       \
  namespace fokker::cpu::isa {                                                \
  /* Items [begin, end): tiles of kPixelRun pixels of an outer index. */      \
  void pixels_run(const PixelsPlan& p, std::int64_t begin, std::int64_t end); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE

namespace fokker::cpu {

constexpr std::int64_t kPixelRun = 256, kPixelGrain = 32768;  // pixels; elements below which a second thread costs

inline void pixels(const PixelsPlan& p) {
  using Kernel = void (*)(const PixelsPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(pixels_run, Kernel);
  const std::int64_t tiles = (p.inner + kPixelRun - 1) / kPixelRun;
  const std::int64_t work = p.channels * std::min(p.inner, kPixelRun);
  parallel_for(p.outer * tiles, 1 + kPixelGrain / work,
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
