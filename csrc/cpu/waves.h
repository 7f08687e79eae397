// Sinusoidal embeddings on the CPU: rows on torch's thread pool.
#pragma once

#include "common/waves_plan.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"

#define FK_DECLARE(isa)                                                     \
  namespace fokker::cpu::isa {                                              \
  void waves_run(const WavesPlan& p, std::int64_t begin, std::int64_t end); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE

namespace fokker::cpu {

constexpr std::int64_t kWaveGrain = 8192;  // elements below which a second thread costs more than it gives

inline void waves(const WavesPlan& p) {
  using Kernel = void (*)(const WavesPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(waves_run, Kernel);
  parallel_for(p.rows, 1 + kWaveGrain / p.width, [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
