// Body of the loops that measure a core, compiled once per instruction set.
#include "cpu/limits.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {

template <typename T> double spin(bool exponentials, std::int64_t n) {
  constexpr int chains = 12, lanes = kLanesOf<T>;
  Vec<T> sum[chains], x[chains];
  for (int c = 0; c < chains; ++c)
    for (int l = 0; l < lanes; ++l) x[c][l] = T(-0.001) * static_cast<T>(1 + c * lanes + l), sum[c][l] = T(0);
  const Vec<T> scale = all(T(0.999)), low = all(T(-1));
  const std::int64_t rounds = n / (chains * lanes) + 1;
  if (exponentials) {
    constexpr int few = 4;  // leaves registers to the polynomials
    for (std::int64_t i = 0; i < 3 * rounds; ++i)
#pragma GCC unroll 4
      for (int c = 0; c < few; ++c) sum[c] += exp2(x[c]), x[c] = low - x[c];  // never subnormal
  } else {
    for (std::int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 12
      for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], scale, x[c]);
  }
  double total = 0;
  for (int c = 0; c < chains; ++c) total += add_lanes(sum[c]);
  return total;
}
template double spin<float>(bool, std::int64_t);
template double spin<double>(bool, std::int64_t);

}  // namespace fokker::cpu::FK_ISA
