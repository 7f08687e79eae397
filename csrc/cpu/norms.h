// Modulated norms and gated residuals on the CPU.
#pragma once

#include "common/norm_plan.h"

namespace fokker::cpu {

// Runs the plan, on several threads where it is large; the same bits whatever their number.
void norm_run(const NormPlan& p);

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                         \
  namespace fokker::cpu::isa {                                                                  \
  /* Rows [begin, end) of all samples. */                                                       \
  void norm_rows(const NormPlan& p, std::int64_t begin, std::int64_t end);                      \
  /* Blocks of tokens [begin, end) of all samples; `partial` takes sum_count() rows a block. */ \
  void norm_vjp_blocks(const NormPlan& p, std::int64_t begin, std::int64_t end, void* partial); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
