// Chooses the instruction set once a process.
#include "cpu/isa.h"

#include <atomic>
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

Isa parse(const char* want, const char* source) {
  const Isa best = supported();
  for (int i = 0; i < 3; ++i) {
    if (std::strcmp(want, kNames[i])) continue;
    if (i <= static_cast<int>(best)) return static_cast<Isa>(i);
    throw std::invalid_argument(std::string(source) + "=" + want + ": this CPU supports " +
                                kNames[static_cast<int>(best)] + " at most");
  }
  throw std::invalid_argument(std::string(source) + " must be baseline, avx2 or avx512, got '" + want + "'");
}

Isa first_choice() {
  const char* want = std::getenv("FOKKER_CPU_ISA");
  return want && *want ? parse(want, "FOKKER_CPU_ISA") : supported();
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{first_choice()};
  return isa;
}

}  // namespace

Isa active_isa() { return chosen().load(std::memory_order_relaxed); }
const char* isa_name() { return kNames[static_cast<int>(active_isa())]; }
void set_isa(const std::string& name) { chosen().store(parse(name.c_str(), "isa"), std::memory_order_relaxed); }

}  // namespace fokker::cpu
