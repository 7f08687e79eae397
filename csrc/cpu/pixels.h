// Pixel norms and weighted concatenations on the CPU: pixels, tiles of them or pieces of rows on torch's thread pool.
#pragma once

#include <algorithm>

#include "common/pixels_plan.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

#define FK_DECLARE(isa)                                                       \
  namespace fokker::cpu::isa {                                                \
  /* Items [begin, end): tiles of pixel_run(p) pixels of an outer index. */   \
  void pixels_run(const PixelsPlan& p, std::int64_t begin, std::int64_t end); \
  /* Items [begin, end): pieces of kCatPiece numbers of a joined row. */      \
  void cat_run(const CatPlan& p, std::int64_t begin, std::int64_t end);       \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE

namespace fokker::cpu {

constexpr std::int64_t kPixelRun = 1024;                        // pixels of a tile, at most
constexpr std::int64_t kPixelGrain = 32768, kCatPiece = 16384;  // elements; below the first a second thread costs
constexpr std::int64_t kPixelBytes = std::int64_t(1) << 20;     // of a tile, that the second cache holds

// Pixels of a tile: long runs of memory, and few enough that the tile is still in the cache when it is read again.
inline std::int64_t pixel_run(const PixelsPlan& p) {
  const std::int64_t each = p.channels * (p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2) * (p.grad ? 2 : 1);
  const std::int64_t most = std::clamp<std::int64_t>(kPixelBytes / std::max<std::int64_t>(each, 1), 64, kPixelRun);
  return most / 16 * 16;
}

inline void pixels(const PixelsPlan& p) {
  using Kernel = void (*)(const PixelsPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(pixels_run, Kernel);
  const std::int64_t run = pixel_run(p), tiles = (p.inner + run - 1) / run;
  const std::int64_t work = p.channels * std::min(p.inner, run);
  parallel_for(p.outer * tiles, 1 + kPixelGrain / work,
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

inline void weighted_cat(const CatPlan& p) {
  using Kernel = void (*)(const CatPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(cat_run, Kernel);
  const std::int64_t row = p.of_a + p.of_b, pieces = (row + kCatPiece - 1) / kCatPiece;
  parallel_for(p.rows * pieces, 1 + kPixelGrain / std::min(row, kCatPiece),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
