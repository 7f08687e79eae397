// The nearest datum of every query, a thread a query; data come in their order and the first of equals stays.
//
// Bytes: x once from memory and then from the caches, a row of data for all threads at once.
#include "common/distance_plan.h"
#include "cuda/distance.h"
#include "cuda/launch.h"
#include "math/elementary.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128, kData = 8;
constexpr unsigned kMostRows = 65535;  // of a grid

template <typename T, bool kAbsolute> __global__ void __launch_bounds__(kThreads) nearest_kernel(NearestData p) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.n) return;
  const std::int64_t own = p.exclude == INT64_MIN ? -1 : i + p.exclude;
  for (std::int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    const T *x = static_cast<const T*>(p.x) + b * p.d * p.n + i, *y = static_cast<const T*>(p.y) + b * p.m * p.d;
    T best = math::infinity<T>();
    std::int64_t index = -1;
    for (std::int64_t j = 0; j < p.m; j += kData) {
      T acc[kData] = {};
      std::int64_t at[kData];
#pragma unroll
      for (int r = 0; r < kData; ++r) at[r] = (j + r < p.m ? j + r : p.m - 1) * p.d;
      for (std::int64_t c = 0; c < p.d; ++c) {
        const T here = x[c * p.n];
#pragma unroll
        for (int r = 0; r < kData; ++r) {
          const T t = here - y[at[r] + c];
          acc[r] = kAbsolute ? acc[r] + math::abs(t) : math::fma(t, t, acc[r]);
        }
      }
#pragma unroll
      for (int r = 0; r < kData; ++r)
        if (j + r < p.m && j + r != own && acc[r] < best) best = acc[r], index = j + r;
    }
    p.index[b * p.n + i] = index;
  }
}

}  // namespace

template <typename T> void nearest_data(const NearestData& p, cudaStream_t stream) {
  if (p.n == 0 || p.batch == 0) return;
  const dim3 grid(blocks_for(p.n, kThreads), static_cast<unsigned>(p.batch < kMostRows ? p.batch : kMostRows));
  if (p.absolute) FK_LAUNCH((nearest_kernel<T, true>), grid, kThreads, 0, stream, p);
  else FK_LAUNCH((nearest_kernel<T, false>), grid, kThreads, 0, stream, p);
  check_launch("nearest_data");
}

template void nearest_data<float>(const NearestData& p, cudaStream_t stream);
template void nearest_data<double>(const NearestData& p, cudaStream_t stream);

}  // namespace fokker::cuda
