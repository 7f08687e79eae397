// Kernels that fill tensors with random numbers.
#pragma once

#include <algorithm>

#include "common/random_plan.h"

namespace fokker::cpu {

constexpr int kRandomBlocks = 64;  // Philox blocks made at once

// How a fill is cut into items, each made by one thread: short samples in groups, long ones in runs of blocks, those of
// channels_last samples in tiles of pixels (all channels of a tile, while its lines are in the cache).
struct RandomItems {
  std::int64_t blocks, group, runs, items;
  bool tiled;
};
inline RandomItems random_items(const RandomPlan& p) {
  RandomItems r{p.blocks(), 1, 1, p.batch, false};
  const std::int64_t run = kRandomBlocks * p.per_block();
  if (2 * r.blocks <= kRandomBlocks) {
    r.group = kRandomBlocks / r.blocks;
    r.items = (p.batch + r.group - 1) / r.group;
  } else if (p.interleaved() && p.shape[1] >= run) {
    r.tiled = true;
    r.runs = (p.shape[1] + run - 1) / run;
    r.items = p.batch * r.runs;
  } else {
    r.runs = (r.blocks + kRandomBlocks - 1) / kRandomBlocks;
    r.items = p.batch * r.runs;
  }
  return r;
}

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                     \
  namespace fokker::cpu::isa {                                                                              \
  /* Items [begin, end) of the plan; the same bits whatever the split. */                                   \
  void random_fill(const RandomPlan& plan, const RandomItems& items, std::int64_t begin, std::int64_t end); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
