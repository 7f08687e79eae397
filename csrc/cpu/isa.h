// The instruction sets a kernel is built for, and the one this process runs.
#pragma once

#include <string>

namespace fokker::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best that the CPU supports, or FOKKER_CPU_ISA, until set_isa; an impossible choice throws std::invalid_argument.
Isa active_isa();
const char* isa_name();
void set_isa(const std::string& name);

}  // namespace fokker::cpu

// FK_PER_ISA(kernel, T) is this process's build of the template fokker::cpu::<isa>::kernel<T>, and
// FK_PER_ISA_OVERLOAD(kernel, Pointer) that of an overloaded function.
#if defined(__x86_64__)
#define FK_PER_ISA(kernel, T)                                                                    \
  (::fokker::cpu::active_isa() == ::fokker::cpu::Isa::avx512 ? &::fokker::cpu::avx512::kernel<T> \
   : ::fokker::cpu::active_isa() == ::fokker::cpu::Isa::avx2 ? &::fokker::cpu::avx2::kernel<T>   \
                                                             : &::fokker::cpu::baseline::kernel<T>)
#define FK_PER_ISA_OVERLOAD(kernel, Pointer)                                                                        \
  (::fokker::cpu::active_isa() == ::fokker::cpu::Isa::avx512 ? static_cast<Pointer>(&::fokker::cpu::avx512::kernel) \
   : ::fokker::cpu::active_isa() == ::fokker::cpu::Isa::avx2 ? static_cast<Pointer>(&::fokker::cpu::avx2::kernel)   \
                                                             : static_cast<Pointer>(&::fokker::cpu::baseline::kernel))
#else
#define FK_PER_ISA(kernel, T) (&::fokker::cpu::baseline::kernel<T>)
#define FK_PER_ISA_OVERLOAD(kernel, Pointer) static_cast<Pointer>(&::fokker::cpu::baseline::kernel)
#endif
