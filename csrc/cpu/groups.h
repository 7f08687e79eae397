// Group norms on the CPU, and how channels_last samples are cut into chunks.
#pragma once

#include "common/group_plan.h"

namespace fokker::cpu {

// Runs the plan, on several threads where it is large; the same bits whatever their number.
void group_run(const GroupPlan& p);

// Samples [first, first + samples) of a channels_last plan, each in `chunks` chunks of `positions`; a chunk of a sample
// is an item. The sums of an item go to `partial`, `width` numbers each; the coefficients of a sample to
// `coefficients`.
struct GroupChunks {
  std::int64_t first = 0, samples = 0, chunks = 1, positions = 0, width = 0;
  double* partial = nullptr;
  void* coefficients = nullptr;
};
// Numbers of `coefficients` of one sample: six a channel.
constexpr int kGroupCoefficients = 6;
enum class GroupPhase { prepare, sums, merge, apply, all };

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                              \
  namespace fokker::cpu::isa {                                                                                       \
  /* Groups [begin, end) of all samples, where a channel's positions lie side by side. */                            \
  void group_slabs(const GroupPlan& p, std::int64_t begin, std::int64_t end);                                        \
  /* One phase of items [begin, end); prepare, merge and all: samples. */                                            \
  void group_last(const GroupPlan& p, const GroupChunks& s, GroupPhase phase, std::int64_t begin, std::int64_t end); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
