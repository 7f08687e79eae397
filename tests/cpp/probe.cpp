// Prints the instruction sets of fokker's CPU kernels that this machine can run.
#include <cstdio>

int main() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) std::puts("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq"))
    std::puts("avx512");
#endif
}
