// One loop per elementary function and type, for the test that reads their assembly.
#include "math/double_word_log.h"

namespace math = fokker::math;
constexpr int n = 4096;

#define LOOP(name, T, value)                                                     \
  extern "C" void loop_##name##_##T(const T* __restrict in, T* __restrict out) { \
    _Pragma("omp simd") for (int i = 0; i < n; ++i) {                            \
      const T x = in[i];                                                         \
      out[i] = value;                                                            \
    }                                                                            \
  }
#define BOTH(name, value) LOOP(name, float, value) LOOP(name, double, value)

template <typename T> FK_INLINE T both(math::SinCos<T> s) { return s.sin * s.cos; }
template <typename T> FK_INLINE T both(math::DoubleWord<T> s) { return s.hi * s.lo; }

BOTH(exp, math::exp(x))
BOTH(expm1, math::expm1(x))
BOTH(log, math::log(x))
BOTH(log1p, math::log1p(x))
BOTH(log_normal, math::log_normal(x))
BOTH(sincos, both(math::sincos_2pi(x)))
BOTH(log_dw, both(math::log_dw(math::fast_two_sum(x, x * 0x1p-30f))))
