// Prints (a.hi, a.lo, y.hi, y.lo) of y = log_dw(a) as hexadecimal floats, for the test to compare with exact decimals.
//
//   double_word_log_points float|double <points>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "math/double_word_log.h"

namespace math = fokker::math;

template <typename T> void print(int n) {
  std::mt19937_64 random(11);
  const auto uniform = [&](double a, double b) { return a + (b - a) * ((random() >> 11) * 0x1p-53); };
  constexpr double range = sizeof(T) == 8 ? 700 : 87, half_unit = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24;
  std::vector<T> hi(n), lo(n), y_hi(n), y_lo(n);
  for (int i = 0; i < n; ++i) {
    double x;
    switch (i % 4) {
      case 0:
        x = std::exp(uniform(-range, range));
        break;
      case 1:
        x = uniform(0.5, 2);
        break;
      case 2:
        x = 1 + (random() & 1 ? 1 : -1) * std::exp(uniform(sizeof(T) == 8 ? -37 : -17, -1));
        break;
      default:
        x = std::sqrt(0.5) * std::exp2(std::floor(uniform(-3, 4))) * (1 + uniform(-1e-3, 1e-3));
        break;
    }
    const auto a = math::fast_two_sum(static_cast<T>(x), static_cast<T>(x * half_unit * uniform(-0.99, 0.99)));
    hi[i] = a.hi, lo[i] = a.lo;
  }
  hi[0] = 1, lo[0] = 0;
  hi[1] = 1, lo[1] = static_cast<T>(half_unit * 1e-3);
  const T *in_hi = hi.data(), *in_lo = lo.data();
  T *out_hi = y_hi.data(), *out_lo = y_lo.data();
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const auto y = math::log_dw(math::DoubleWord<T>{in_hi[i], in_lo[i]});
    out_hi[i] = y.hi, out_lo[i] = y.lo;
  }
  for (int i = 0; i < n; ++i)
    std::printf("%a %a %a %a\n", double(hi[i]), double(lo[i]), double(y_hi[i]), double(y_lo[i]));
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  if (!std::strcmp(argv[1], "float")) print<float>(std::atoi(argv[2]));
  else print<double>(std::atoi(argv[2]));
}
