// The log-Bessel kernel: F(v, x) or its derivatives, one thread an element, both operands read once, outputs written
// once.
//
// Formulas and regimes: math/bessel.h. Lanes of one warp in the same family of regimes take the hardest regime among
// them (the Debye tier of the least r, the longest series, the longest recurrence), so that a warp runs each family
// once: an element's truncation error, never above the bound of its own regime, may depend on its neighbours.
#pragma once

#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "math/bessel.h"

namespace fokker::cuda {
namespace bessel_detail {

using math::Fn;

constexpr int kThreads = 128;

// What a kernel computes of the Order + 1 outputs.
enum class Want { all, last };

struct Outputs {
  void* data[3];
  DType dtype;
};

template <Fn F, int Order, int R, int End, typename T>
__device__ __forceinline__ void run_regime(int regime, T v, T x, T* y) {
  if constexpr (R + 1 == End) math::bessel_kernel<F, Order, R>(v, x, y);
  else if (regime == R) math::bessel_kernel<F, Order, R>(v, x, y);
  else run_regime<F, Order, R + 1, End>(regime, v, x, y);
}
// The regimes [Begin, End), which get harder with their number.
template <Fn F, int Order, int Begin, int End, typename T>
__device__ __forceinline__ void run_family(int regime, T v, T x, T* y) {
  const bool mine = regime >= Begin && regime < End;
  const int hardest = __reduce_max_sync(kFullWarp, mine ? regime : -1);
  if (mine) run_regime<F, Order, Begin, End>(hardest, v, x, y);
}

template <Fn F, int Order, typename T> __device__ __forceinline__ void run_warp(T v, T x, T* y) {
  constexpr int scaled = math::kScaledRegime<T>, small = math::kSmallRegime<T>, edge = math::kEdgeRegime<F, T>;
  const int regime = math::bessel_regime<F>(v, x);
  run_family<F, Order, 0, scaled>(regime, v, x, y);
  if constexpr (math::is_k(F)) {
    constexpr int half = math::kKSmallTiers / 2;  // Temme's series, then large x
    run_family<F, Order, small, small + half>(regime, v, x, y);
    run_family<F, Order, small + half, edge>(regime, v, x, y);
  } else {
    run_family<F, Order, small + 1, edge>(regime, v, x, y);
    if (regime == small) math::bessel_kernel<F, Order, small>(v, x, y);  // tiny x: no other tier can take it
  }
  if (regime == scaled) math::bessel_kernel<F, Order, scaled>(v, x, y);
  if (regime == edge) math::bessel_kernel<F, Order, edge>(v, x, y);
}

template <Fn F, int Order, Want W, typename T> __global__ void __launch_bounds__(kThreads)
    bessel_kernel(const __grid_constant__ Elementwise e, const __grid_constant__ Outputs out) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t at = i < e.numel ? i : e.numel - 1;  // surplus lanes go along: whole warps vote
  T y[Order + 1] = {};
  run_warp<F, Order>(load_element<T>(e, 0, at), load_element<T>(e, 1, at), y);
  if (i >= e.numel) return;
#pragma unroll
  for (int k = W == Want::last ? Order : 0; k <= Order; ++k) store_element(out.data[k], out.dtype, i, y[k]);
}

template <Fn F, int Order, Want W, typename T> void run(const Elementwise& e, const Outputs& out, cudaStream_t stream) {
  FK_LAUNCH((bessel_kernel<F, Order, W, T>), blocks_for(e.numel, kThreads), kThreads, 0, stream, e, out);
  check_launch("bessel");
}

// One of these a translation unit: they take long to compile.
template <typename T> void run_value(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream);
template <typename T> void run_gradient(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream);
template <typename T> void run_hessian(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream);

}  // namespace bessel_detail
}  // namespace fokker::cuda
