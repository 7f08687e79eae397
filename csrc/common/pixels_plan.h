// EDM2's pixel norm and concatenation: what the CPU and the CUDA kernels read and write.
//
// The norm is over (outer, channels, inner) in memory order, inner 1 where channels lie last:
//
//   y = x / (eps + r), r = sqrt(mean over channels of x^2); backward: grad s - x s^2 <grad, x> / (channels r),
//   s = 1 / (eps + r), and grad / eps where r is 0
#pragma once

#include "common/config.h"
#include "common/tensor_view.h"
#include "math/arithmetic.h"

namespace fokker {

struct PixelsPlan {
  const void *x = nullptr, *grad = nullptr;  // grad: null forward
  void* out = nullptr;
  DType dtype = DType::f32;
  std::int64_t outer = 0, channels = 0, inner = 0;
  double eps = 0;
};

// out = of_grad grad - of_x x, or forward of_grad x, from the sums of squares and of products.
struct PixelFactors {
  double of_grad, of_x;
};
FK_HD FK_INLINE PixelFactors pixel_factors(const PixelsPlan& p, double squares, double products) {
  const double count = static_cast<double>(p.channels), r = math::sqrt(squares / count), s = 1.0 / (p.eps + r);
  return {s, r > 0 ? s * s * products / (count * r) : 0.0};
}

// Rows of `joined`, [wa a, wb b]; or with `split` a and b from those of it: wa and wb times its parts.
struct CatPlan {
  void *a = nullptr, *b = nullptr, *joined = nullptr;
  DType dtype = DType::f32;
  std::int64_t rows = 0, of_a = 0, of_b = 0;  // numbers of a row
  double wa = 1, wb = 1;
  bool split = false;
};

}  // namespace fokker
