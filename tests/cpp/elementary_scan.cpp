// Worst error in ulp of each elementary function, through vectorised loops.
//
//   elementary_scan float <function> <stride> <offset>   every stride-th of the 2^32 bit patterns, truth in double
//   elementary_scan double <function> <points>           stratified points, truth in long double
// Prints: worst ulp, where, number of compared points, number of wrong special values (nan, inf, zero, sign of zero).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>

#include "math/elementary.h"

namespace math = fokker::math;
constexpr int chunk = 4096;

template <typename T> struct Wide;
template <> struct Wide<float> {
  using type = double;
};
template <> struct Wide<double> {
  using type = long double;
};
template <typename T> using WideOf = typename Wide<T>::type;

// sin(2 pi u): the nearest quarter turn is taken off exactly first.
template <typename W> W sin_turns(W u, int quarters) {
  const W two_pi = static_cast<W>(6.283185307179586476925286766559005768L);
  const W q = std::nearbyint(4 * u), r = (u - q / 4) * two_pi;
  switch ((static_cast<long long>(q) + quarters) & 3) {
    case 0:
      return std::sin(r);
    case 1:
      return std::cos(r);
    case 2:
      return -std::sin(r);
    default:
      return -std::cos(r);
  }
}

#define FUNCTION(Name, ours, wide)                                       \
  struct Name {                                                          \
    template <typename T> static FK_INLINE T value(T x) { return ours; } \
    template <typename W> static W truth(W x) { return wide; }           \
  }
FUNCTION(Exp, math::exp(x), std::exp(x));
FUNCTION(Expm1, math::expm1(x), std::expm1(x));
FUNCTION(Log, math::log(x), std::log(x));
FUNCTION(Log1p, math::log1p(x), std::log1p(x));
FUNCTION(LogNormal, math::log_normal(x), std::log(x));
FUNCTION(Sin, math::sincos_2pi(x).sin, sin_turns(x, 0));
FUNCTION(Cos, math::sincos_2pi(x).cos, sin_turns(x, 1));

template <typename F, typename T> __attribute__((noinline)) void evaluate(const T* __restrict x, T* __restrict y) {
#pragma omp simd
  for (int i = 0; i < chunk; ++i) y[i] = F::value(x[i]);
}

struct Report {
  double worst = 0, where = 0;
  long long compared = 0, wrong = 0;
};

template <typename F, typename T> void compare(const T* x, int n, Report& report) {
  using L = std::numeric_limits<T>;
  using W = WideOf<T>;
  constexpr bool is_exp = std::is_same_v<F, Exp>, is_log_normal = std::is_same_v<F, LogNormal>;
  constexpr bool is_turn = std::is_same_v<F, Sin> || std::is_same_v<F, Cos>;
  static T y[chunk];
  evaluate<F>(x, y);
  for (int i = 0; i < n; ++i) {
    if (is_turn && !(std::fabs(x[i]) <= (sizeof(T) == 4 ? 0x1p20 : 0x1p49)) && x[i] == x[i]) continue;
    if (is_log_normal && !(x[i] >= L::min() && x[i] <= L::max())) continue;
    const W truth = F::truth(static_cast<W>(x[i]));
    T rounded = static_cast<T>(truth);
    if (is_exp && truth < L::min()) rounded = 0;  // the documented flush
    ++report.compared;
    if (!std::isfinite(rounded) || rounded == 0 || !std::isfinite(y[i])) {
      const bool same = (std::isnan(rounded) && std::isnan(y[i])) ||
                        (rounded == y[i] && (rounded != 0 || is_turn || std::signbit(rounded) == std::signbit(y[i])));
      report.wrong += !same;
      if (!same && report.wrong < 4)
        std::fprintf(stderr, "at %.17g: %.17g, want %.17g\n", double(x[i]), double(y[i]), double(rounded));
      continue;
    }
    using B = typename math::detail::Format<T>::Bits;
    constexpr B exponent_bits = static_cast<B>(L::max_exponent * 2 - 1) << (L::digits - 1);
    const T power = std::max(math::bit_cast<T>(math::bit_cast<B>(rounded) & exponent_bits), L::min());
    const double ulps = static_cast<double>(std::fabs(static_cast<W>(y[i]) - truth) / (W(power) * L::epsilon()));
    if (ulps > report.worst) report.worst = ulps, report.where = x[i];
  }
}

template <typename F> Report scan_floats(uint64_t stride, uint64_t offset) {
  Report report;
  static float x[chunk];
  for (uint64_t bits = offset; bits < (1ull << 32);) {
    int n = 0;
    for (; n < chunk && bits < (1ull << 32); ++n, bits += stride)
      x[n] = math::bit_cast<float>(static_cast<uint32_t>(bits));
    std::fill(x + n, x + chunk, 0.5f);
    compare<F>(x, n, report);
  }
  return report;
}

// Uniform in the exponent over all magnitudes, uniform near the places where a reduction changes, and special values.
template <typename F> Report scan_doubles(long long points) {
  Report report;
  std::mt19937_64 random(20240607);
  static double x[chunk];
  const auto uniform = [&](double a, double b) { return a + (b - a) * ((random() >> 11) * 0x1p-53); };
  const double special[] = {0.0,
                            -0.0,
                            1.0,
                            -1.0,
                            INFINITY,
                            -INFINITY,
                            NAN,
                            5e-324,
                            -5e-324,
                            2.2250738585072014e-308,
                            1.7976931348623157e308,
                            -1.7976931348623157e308,
                            709.782712893384,
                            709.7827128933841,
                            -708.3964185322641,
                            -708.3964185322642,
                            -745.2,
                            0.6931471805599453,
                            1e-300,
                            0.9999999999999999,
                            1.0000000000000002,
                            -0.9999999999999999,
                            0.25,
                            0.5,
                            1e18,
                            1e19};
  for (long long done = 0; done < points; done += chunk) {
    for (int i = 0; i < chunk; ++i) {
      const double sign = random() & 1 ? 1 : -1;
      switch (i & 7) {
        case 0:
          x[i] = math::bit_cast<double>(static_cast<uint64_t>(random()));
          break;  // all bit patterns
        case 1:
          x[i] = sign * std::exp(uniform(-80, 30));
          break;
        case 2:
          x[i] = uniform(-1, 1);
          break;
        case 3:
          x[i] = uniform(-40, 40);
          break;
        case 4:
          x[i] = uniform(-746, 711);
          break;
        case 5:
          x[i] = uniform(0.5, 2);
          break;
        case 6:
          x[i] = (std::floor(uniform(-60, 60)) + 0.5) * 0.34657359027997264 * (1 + uniform(-1e-2, 1e-2));
          break;
        default:
          x[i] = 1 + sign * std::exp(uniform(-37, -1));
          break;
      }
    }
    if (done == 0) std::copy(std::begin(special), std::end(special), x);
    compare<F>(x, chunk, report);
  }
  return report;
}

template <typename F> Report scan(bool single, long long a, long long b) {
  return single ? scan_floats<F>(a, b) : scan_doubles<F>(a);
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const bool single = !std::strcmp(argv[1], "float");
  const long long a = std::atoll(argv[3]), b = argc > 4 ? std::atoll(argv[4]) : 0;
  const auto is = [&](const char* name) { return !std::strcmp(argv[2], name); };
  Report r;
  if (is("exp")) r = scan<Exp>(single, a, b);
  else if (is("expm1")) r = scan<Expm1>(single, a, b);
  else if (is("log")) r = scan<Log>(single, a, b);
  else if (is("log1p")) r = scan<Log1p>(single, a, b);
  else if (is("log_normal")) r = scan<LogNormal>(single, a, b);
  else if (is("sin_2pi")) r = scan<Sin>(single, a, b);
  else if (is("cos_2pi")) r = scan<Cos>(single, a, b);
  else return 2;
  std::printf("%.6f %.17g %lld %lld\n", r.worst, r.where, r.compared, r.wrong);
}
