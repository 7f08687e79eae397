// Threads around the kernels of particle resampling and of the absorbing step.
#include "cpu/particles.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

void resample(const ResamplePlan& p) {
  using Kernel = void (*)(const ResamplePlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(resample_groups, Kernel);
  parallel_for(p.groups, 1 + 8192 / (p.n + p.count),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

void absorb(const AbsorbPlan& p) {
  using Kernel = void (*)(const AbsorbPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(absorb_positions, Kernel);
  // A position costs its draw, where it has one, of about 2 ns a token.
  parallel_for(p.batch * p.length, std::max<std::int64_t>(1, 32768 / (p.size + 16)),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
