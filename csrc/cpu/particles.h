// Kernels of particle resampling and of the absorbing step.
#pragma once

#include "common/particle_plan.h"

namespace fokker::cpu {

// On several threads where there is much to do; the same bits whatever their number.
void resample(const ResamplePlan& p);
void absorb(const AbsorbPlan& p);

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                              \
  namespace fokker::cpu::isa {                                                       \
  void resample_groups(const ResamplePlan& p, std::int64_t begin, std::int64_t end); \
  /* Positions [begin, end) of all samples. */                                       \
  void absorb_positions(const AbsorbPlan& p, std::int64_t begin, std::int64_t end);  \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
