// Sums of distances over pairs and their gradients, a thread a query.
//
// Bytes: x once from memory and then from the caches, a row of data for all threads at once; a slope is read and
// written once every kData data.
#include "cuda/distance.h"

#include "common/distance_plan.h"
#include "cuda/launch.h"
#include "math/elementary.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128, kData = 8;
constexpr unsigned kMostRows = 65535;  // of a grid

template <bool kSlope> __global__ void __launch_bounds__(kThreads) distance_kernel(DistanceSums p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  for (std::int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    const double *x = p.x + b * p.d * p.n + i, *y = p.y + b * p.m * p.d, *weight = p.weight + b * p.m;
    double* slope = kSlope ? p.slope + b * p.d * p.n + i : nullptr;
    if constexpr (kSlope)
      for (std::int64_t c = 0; c < p.d; ++c) slope[c * p.n] = 0;
    double sum = 0;
    for (std::int64_t j = 0; j < p.m; j += kData) {
      std::int64_t at[kData];
      double acc[kData];
#pragma unroll
      for (int r = 0; r < kData; ++r) at[r] = (j + r < p.m ? j + r : p.m - 1) * p.d, acc[r] = 0;
      for (std::int64_t c = 0; c < p.d; ++c) {
        const double here = x[c * p.n];
#pragma unroll
        for (int r = 0; r < kData; ++r) {
          const double t = here - y[at[r] + c];
          acc[r] = math::fma(t, t, acc[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kData; ++r) {
        if (j + r >= p.m) {  // no datum: its distance may be infinite, and no product of it is 0
          acc[r] = 0;
          continue;
        }
        const double w = weight[j + r], length = math::sqrt(acc[r]);
        sum = math::fma(w, length, sum);
        acc[r] = length == 0 ? 0.0 : w / length;
      }
      if constexpr (kSlope)
        for (std::int64_t c = 0; c < p.d; ++c) {
          const double here = x[c * p.n];
          double s = slope[c * p.n];
#pragma unroll
          for (int r = 0; r < kData; ++r) s = math::fma(acc[r], here - y[at[r] + c], s);
          slope[c * p.n] = s;
        }
    }
    p.sum[b * p.n + i] = sum;
  }
}

}  // namespace

void distance_sums(const DistanceSums& p, cudaStream_t stream) {
  if (p.n == 0 || p.batch == 0) return;
  const dim3 grid(blocks_for(p.n, kThreads), static_cast<unsigned>(p.batch < kMostRows ? p.batch : kMostRows));
  if (p.slope) FK_LAUNCH((distance_kernel<true>), grid, kThreads, 0, stream, p);
  else FK_LAUNCH((distance_kernel<false>), grid, kThreads, 0, stream, p);
  check_launch("distance_sums");
}

}  // namespace fokker::cuda
