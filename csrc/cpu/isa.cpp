// Chooses the instruction set once a process.
#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fokker::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Isa supported() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose() {
  const Isa best = supported();
  const char* want = std::getenv("FOKKER_CPU_ISA");
  if (!want || !*want) return best;
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(want, kNames[i])) continue;
    if (i <= static_cast<int>(best)) return static_cast<Isa>(i);
    throw std::runtime_error(std::string("FOKKER_CPU_ISA=") + want + ": this CPU supports " +
                             kNames[static_cast<int>(best)] + " at most");
  }
  throw std::runtime_error(std::string("FOKKER_CPU_ISA must be baseline, avx2 or avx512, got '") + want + "'");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}
const char* isa_name() { return kNames[static_cast<int>(active_isa())]; }

}  // namespace fokker::cpu
