// Kernels of the steps of SDE samplers, and how a plan is cut into items, each done by one thread.
#pragma once

#include "common/affine_plan.h"

namespace fokker::cpu {

constexpr int kSdeTile = 1024;          // elements whose operands and noise lie in the first cache at a time
constexpr std::int64_t kSdeRun = 8192;  // elements of an item
constexpr std::int64_t kStreamBytes = std::int64_t(64) << 20;  // results from here on are written past the cache
constexpr int kChannelGroup = 128;                             // channels of a tile of pixels
constexpr int kPixelTile = 16384;                              // elements of a tile of pixels, at most

struct SdeItems {
  std::int64_t runs = 1, items = 0;  // runs of a sample; in all
  std::int64_t group = 1;            // short samples of an item
  int pixels = 0;                    // of a tile, where the plan has channels
};
SdeItems sde_items(const AffinePlan& p);

// Runs the plan, on several threads where it is large; the same bits whatever their number.
void sde_run(const AffinePlan& p);

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                \
  namespace fokker::cpu::isa {                                                                         \
  /* Items [begin, end); `partial` takes sum_count() sums an item, where the plan wants sums. */       \
  void sde_items_run(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, \
                     double* partial);                                                                 \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
