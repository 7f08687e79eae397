// EDM2's pixel norm, forward and backward: a warp a pixel where channels lie last, else a block 32 neighbouring pixels;
// and its weighted concatenation.
//
// Sums over channels in double, by a fixed tree. Bytes: x and the gradient twice, the second time from the cache.
#include "cuda/pixels.h"

#include <type_traits>

#include "common/half.h"
#include "common/pixels_plan.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda {
namespace {

constexpr int kPixelThreads = 256, kShares = kPixelThreads / kWarp;  // of a pixel's channels, in a block

template <typename T, typename S> __device__ __forceinline__ T number(S x) {
  if constexpr (sizeof(S) == 2) return static_cast<T>(to_float(x));
  else return static_cast<T>(x);
}
template <typename S, typename T> __device__ __forceinline__ S stored(T x) {
  if constexpr (std::is_same_v<S, Half>) return to_half(x);
  else if constexpr (std::is_same_v<S, BFloat16>) return to_bfloat16(x);
  else return x;
}

// Channels first, first + step, .. of a pixel at `at`, `stride` apart.
template <typename T, typename S, bool kBackward> struct Walk {
  const PixelsPlan& p;
  std::int64_t at, stride;
  int first, step;

  __device__ __forceinline__ void add(double& squares, double& products) const {
    const S *const x = static_cast<const S*>(p.x), *const g = static_cast<const S*>(p.grad);
    for (std::int64_t c = first; c < p.channels; c += step) {
      const double v = number<double>(x[at + c * stride]);
      squares = math::fma(v, v, squares);
      if constexpr (kBackward) products = math::fma(v, number<double>(g[at + c * stride]), products);
    }
  }
  __device__ __forceinline__ void write(double squares, double products) const {
    const S *const x = static_cast<const S*>(p.x), *const g = static_cast<const S*>(p.grad);
    const PixelFactors f = pixel_factors(p, squares, products);
    const T of_grad = static_cast<T>(f.of_grad), of_x = static_cast<T>(f.of_x);
    for (std::int64_t c = first; c < p.channels; c += step) {
      const T v = number<T>(x[at + c * stride]);
      T y = of_grad * v;
      if constexpr (kBackward) y = of_grad * number<T>(g[at + c * stride]) - of_x * v;
      static_cast<S*>(p.out)[at + c * stride] = stored<S>(y);
    }
  }
};

template <typename T, typename S, bool kBackward> __global__ void __launch_bounds__(kPixelThreads)
    pixel_rows_kernel(const PixelsPlan p) {
  const std::int64_t i = (std::int64_t(blockIdx.x) * kPixelThreads + threadIdx.x) / kWarp;
  if (i >= p.outer) return;  // whole warps
  const Walk<T, S, kBackward> walk{p, i * p.channels, 1, static_cast<int>(threadIdx.x % kWarp), kWarp};
  double squares = 0, products = 0;
  walk.add(squares, products);
  squares = warp_reduce(squares, Sum{});
  if constexpr (kBackward) products = warp_reduce(products, Sum{});
  walk.write(squares, products);
}

template <typename T, typename S, bool kBackward> __global__ void __launch_bounds__(kPixelThreads)
    pixel_tiles_kernel(const PixelsPlan p) {
  const std::int64_t tiles = (p.inner + kWarp - 1) / kWarp;
  const int lane = threadIdx.x % kWarp, share = threadIdx.x / kWarp;
  const std::int64_t pixel = blockIdx.x % tiles * kWarp + lane;
  const bool inside = pixel < p.inner;
  const Walk<T, S, kBackward> walk{p, blockIdx.x / tiles * p.channels * p.inner + pixel, p.inner, share, kShares};
  FK_SHARED(double, partial, 2 * kPixelThreads);
  double squares = 0, products = 0;
  if (inside) walk.add(squares, products);
  partial[threadIdx.x] = squares;
  if constexpr (kBackward) partial[kPixelThreads + threadIdx.x] = products;
  __syncthreads();
  if (!inside) return;
  squares = products = 0;
  for (int k = 0; k < kShares; ++k) {
    squares += partial[k * kWarp + lane];
    if constexpr (kBackward) products += partial[kPixelThreads + k * kWarp + lane];
  }
  walk.write(squares, products);
}

template <typename T, typename S, bool kBackward> void launch(const PixelsPlan& p, cudaStream_t stream) {
  if (p.inner == 1)
    FK_LAUNCH((pixel_rows_kernel<T, S, kBackward>), all_blocks((p.outer + kShares - 1) / kShares), kPixelThreads, 0,
              stream, p);
  else
    FK_LAUNCH((pixel_tiles_kernel<T, S, kBackward>), all_blocks(p.outer * ((p.inner + kWarp - 1) / kWarp)),
              kPixelThreads, 0, stream, p);
}
template <typename T, typename S> void launch_type(const PixelsPlan& p, cudaStream_t stream) {
  if (p.grad) launch<T, S, true>(p, stream);
  else launch<T, S, false>(p, stream);
}

// A thread a number of the joined rows. Bytes: each number once.
template <typename T, typename S> __global__ void __launch_bounds__(kPixelThreads) cat_kernel(const CatPlan p) {
  const std::int64_t row = p.of_a + p.of_b, at = std::int64_t(blockIdx.x) * kPixelThreads + threadIdx.x;
  if (at >= p.rows * row) return;
  const std::int64_t i = at / row, j = at % row;
  const bool first = j < p.of_a;
  const T w = static_cast<T>(first ? p.wa : p.wb);
  S* const own = first ? static_cast<S*>(p.a) + i * p.of_a + j : static_cast<S*>(p.b) + i * p.of_b + (j - p.of_a);
  S* const joined = static_cast<S*>(p.joined) + at;
  if (p.split) *own = stored<S>(w * number<T>(*joined));
  else *joined = stored<S>(w * number<T>(*own));
}
template <typename T, typename S> void launch_cat(const CatPlan& p, cudaStream_t stream) {
  const std::int64_t n = p.rows * (p.of_a + p.of_b);
  FK_LAUNCH((cat_kernel<T, S>), all_blocks((n + kPixelThreads - 1) / kPixelThreads), kPixelThreads, 0, stream, p);
}

}  // namespace

void weighted_cat(const CatPlan& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) launch_cat<double, double>(p, stream);
  else if (p.dtype == DType::f32) launch_cat<float, float>(p, stream);
  else if (p.dtype == DType::f16) launch_cat<float, Half>(p, stream);
  else launch_cat<float, BFloat16>(p, stream);
  check_launch("mp_cat");
}

void pixels(const PixelsPlan& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) launch_type<double, double>(p, stream);
  else if (p.dtype == DType::f32) launch_type<float, float>(p, stream);
  else if (p.dtype == DType::f16) launch_type<float, Half>(p, stream);
  else launch_type<float, BFloat16>(p, stream);
  check_launch("pixel_norm");
}

}  // namespace fokker::cuda
