// What the kernels of sums of distances read and write: one description for the CPU and the CUDA kernels.
//
// sum_i = sum_j w_j |x_i - y_j| and slope_i = sum_j w_j (x_i - y_j) / |x_i - y_j|, its gradient in x_i (0 for equal
// points), all in double and contiguous. On the GPU x is (batch, d, n), as the slope is: threads are queries.
#pragma once

#include <cstdint>

namespace fokker {

struct DistanceSums {
  std::int64_t batch = 0, n = 0, m = 0, d = 0;
  const double *x = nullptr, *y = nullptr, *weight = nullptr;  // (batch, n, d), (batch, m, d), (batch, m)
  double* sum = nullptr;                                       // (batch, n)
  double* slope = nullptr;                                     // (batch, n, d), or null
};

}  // namespace fokker
