// Sums of distances over pairs, and the nearest of them (common/distance_plan.h).
#pragma once

#include "common/distance_plan.h"

namespace fokker::cpu {

// On several threads where there is much to do; the same bits whatever their number.
void distance_sums(const DistanceSums& p);
template <typename T> void nearest_data(const NearestData& p);

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                 \
  namespace fokker::cpu::isa {                                                                          \
  int distance_tile(const DistanceSums& p);                                                             \
  /* Tiles [begin, end) of distance_tile queries, of one batch after the other. */                      \
  void distance_tiles(const DistanceSums& p, std::int64_t begin, std::int64_t end);                     \
  template <typename T> std::int64_t nearest_tile(const T*);                                            \
  template <typename T> void nearest_tiles(const NearestData& p, std::int64_t begin, std::int64_t end); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
