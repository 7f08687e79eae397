// Particle resampling: one block of threads a group; weights, scan and search in one launch.
//
// Bytes: log weights three times (maximum, sums, scan; they stay in the cache), ancestors and new weights once,
// cumulative weights through a workspace.
#include "common/half.h"
#include "common/particle_plan.h"
#include "cuda/launch.h"
#include "cuda/particles.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ double number_at(const void* data, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::f16:
      return static_cast<double>(to_float(static_cast<const Half*>(data)[i]));
    case DType::bf16:
      return static_cast<double>(to_float(static_cast<const BFloat16*>(data)[i]));
    case DType::f64:
      return static_cast<const double*>(data)[i];
    default:
      return static_cast<double>(static_cast<const float*>(data)[i]);
  }
}
__device__ __forceinline__ void store_at(void* data, DType dtype, std::int64_t i, double x) {
  switch (dtype) {
    case DType::f16:
      static_cast<Half*>(data)[i] = to_half(static_cast<float>(x));
      return;
    case DType::bf16:
      static_cast<BFloat16*>(data)[i] = to_bfloat16(static_cast<float>(x));
      return;
    case DType::f64:
      static_cast<double*>(data)[i] = x;
      return;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(x);
  }
}

// Inclusive sums over the threads of the block.
__device__ __forceinline__ double block_scan(double x) {
  constexpr int warps = kThreads / kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const double below = __shfl_up_sync(kFullWarp, x, by);
    x += lane >= by ? below : 0.0;
  }
  FK_SHARED(double, ends, warps);
  __syncthreads();  // the last call's readers are done
  if (lane == kWarp - 1) ends[warp] = x;
  __syncthreads();
  double before = 0;
  for (int w = 0; w < warp; ++w) before += ends[w];
  return before + x;
}

// to[j] = f(0) + ... + f(j), whole on return.
template <typename F> __device__ __forceinline__ void accumulate(std::int64_t n, double* to, F&& f) {
  double carry = 0;
  for (std::int64_t at = 0; at < n; at += kThreads) {
    const std::int64_t j = at + threadIdx.x;
    const double sum = carry + block_scan(j < n ? f(j) : 0.0);
    if (j < n) to[j] = sum;
    __syncthreads();
    carry = to[at + kThreads < n ? at + kThreads - 1 : n - 1];
  }
  __syncthreads();
}
// The first j with cumulative[j] >= x, at most n - 1.
__device__ __forceinline__ std::int64_t first_at_least(const double* cumulative, std::int64_t n, double x) {
  std::int64_t low = 0, high = n - 1;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (cumulative[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

__global__ void __launch_bounds__(kThreads) resample_kernel(const __grid_constant__ ResamplePlan p) {
  for (std::int64_t g = blockIdx.x; g < p.groups; g += gridDim.x) {
    const std::int64_t base = g * p.n, to = g * p.count;
    double top = -math::infinity<double>();
    for (std::int64_t j = threadIdx.x; j < p.n; j += kThreads)
      top = Max{}(top, number_at(p.log_weights, p.dtype, base + j));
    top = block_reduce<kThreads>(top, Max{});
    const auto weight = [&](std::int64_t j) { return math::exp(number_at(p.log_weights, p.dtype, base + j) - top); };
    double sum = 0, squares = 0;
    const bool fine = top == top && top < math::infinity<double>() && top > -math::infinity<double>();
    if (fine) {
      for (std::int64_t j = threadIdx.x; j < p.n; j += kThreads) {
        const double w = weight(j);
        sum += w, squares += w * w;
      }
      sum = block_reduce<kThreads>(sum, Sum{});
      squares = block_reduce<kThreads>(squares, Sum{});
    }
    const double effective = fine ? sum * sum / squares : math::quiet_nan<double>();
    if (threadIdx.x == 0) store_at(p.size, p.dtype, g, effective);
    if (!p.wanted(effective)) {
      for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
        p.ancestors[to + i] = i % p.n;
        store_at(p.new_weights, p.dtype, to + i, number_at(p.log_weights, p.dtype, base + i % p.n));
      }
      continue;
    }
    double *const first = p.work + 2 * base, *const rest = first + p.n;
    const bool residual = p.method == ResampleMethod::residual;
    if (residual) {
      const double factor = static_cast<double>(p.count) / sum;
      accumulate(p.n, first, [&](std::int64_t j) { return floor(weight(j) * factor); });
      accumulate(p.n, rest, [&](std::int64_t j) {
        const double expected = weight(j) * factor;
        return expected - floor(expected);
      });
    } else {
      accumulate(p.n, first, weight);
    }
    const std::uint64_t id = p.at.id(g);
    const double total = first[p.n - 1], left = residual ? rest[p.n - 1] : 0.0, count = static_cast<double>(p.count);
    const bool one = p.method == ResampleMethod::systematic;
    for (std::int64_t i = threadIdx.x; i < p.count; i += kThreads) {
      const double place = static_cast<double>(i);
      std::int64_t found;
      if (residual && place < total) {
        found = first_at_least(first, p.n, place + 1);
      } else {
        const double u = p.at.uniform(p.stream, id, one ? 0 : i);
        const double x = residual                                  ? u * left
                         : p.method == ResampleMethod::multinomial ? u * total
                                                                   : (place + u) / count * total;
        found = first_at_least(residual ? rest : first, p.n, x);
      }
      p.ancestors[to + i] = found;
      store_at(p.new_weights, p.dtype, to + i, 0.0);
    }
    __syncthreads();
  }
}

}  // namespace

void resample(const ResamplePlan& p, cudaStream_t stream) {
  FK_LAUNCH((resample_kernel), blocks_for(p.groups, 1), kThreads, 0, stream, p);
  check_launch("resample");
}

}  // namespace fokker::cuda
