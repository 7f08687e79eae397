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

// index_i = the first j that makes |x_i - y_j| least (squared or, if absolute, the sum of |.|), j != i + exclude; -1
// where no distance is below infinity: no data, or a NaN in x_i. Contiguous, all of one type; on the GPU x is
// (batch, d, n).
struct NearestData {
  std::int64_t batch = 0, n = 0, m = 0, d = 0;
  std::int64_t exclude = INT64_MIN;  // INT64_MIN: nothing
  bool absolute = false;
  const void *x = nullptr, *y = nullptr;  // (batch, n, d), (batch, m, d)
  std::int64_t* index = nullptr;          // (batch, n)
};

}  // namespace fokker
