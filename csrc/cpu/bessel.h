// CPU chunk kernels of the log-Bessel functions; one definition per instruction set, see bessel.inc.h.
#pragma once

#include "math/bessel_fn.h"

namespace fokker::cpu {

inline constexpr int kBesselChunk = 512;

// F(v[i], x[i]) for i < n <= kBesselChunk. order 0 writes out[0]; order 1 writes d/dv, d/dx; order 2 d2/dv2, d2/dvdx,
// d2/dx2. A null out pointer is not wanted (orders 1 and 2). Out of the domain: nan.
#define FK_DECLARE_BESSEL(isa)                                                                      \
  namespace isa {                                                                                   \
  void bessel(math::Fn fn, int order, const float* v, const float* x, float* const* out, int n);    \
  void bessel(math::Fn fn, int order, const double* v, const double* x, double* const* out, int n); \
  }
FK_DECLARE_BESSEL(baseline)
FK_DECLARE_BESSEL(avx2)
FK_DECLARE_BESSEL(avx512)
#undef FK_DECLARE_BESSEL

}  // namespace fokker::cpu
