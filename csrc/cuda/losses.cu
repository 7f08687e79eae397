// Reductions of score-matching losses over the samples of a batch, and their gradients.
//
// Bytes: each vector once, and the gradient of one form in the same pass; those of two forms want the sums first, and
// read the vectors again. Arithmetic and sums in double: by a fixed tree inside a tile of a sample,
// then over its tiles.
#include "cuda/sde.cuh"
#include "math/log_ratio.h"

namespace fokker::cuda {
namespace {

constexpr int kShortBlocks = 128;  // up to here a warp takes a sample whole

// Adds the R sums that `f(b, q, sums)` makes of each Philox block q of a sample: short samples a warp each, into
// p.sums; others a block of threads a tile, into p.partial.
template <int R, bool kShort, typename F>
__device__ __forceinline__ void add_up(const AffinePlan& p, const SdeWalk& w, F&& f) {
  double sum[R] = {};
  if constexpr (kShort) {
    const std::int64_t b = (std::int64_t(blockIdx.x) * kSdeThreads + threadIdx.x) / kWarp;
    const int lane = threadIdx.x % kWarp;
    if (b >= p.batch) return;  // whole warps
    for (std::int64_t q = lane; q < w.blocks; q += kWarp) f(b, q, sum);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const double total = warp_reduce(sum[r], Sum{});
      if (lane == 0) p.sums[b * R + r] = total;
    }
  } else {
    each_of_tile(w, [&](std::int64_t b, std::int64_t q) { f(b, q, sum); });
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const double total = block_reduce<kSdeThreads>(sum[r], Sum{});
      if (threadIdx.x == 0) p.partial[std::int64_t(blockIdx.x) * R + r] = total;
    }
  }
}

// The first R of the linear forms p, q, d of the vectors at a spot.
template <int R, typename T> __device__ __forceinline__ void forms_at(const AffinePlan& p, const SdeWalk& w,
                                                                      const Spot<T>& s, double (&form)[R][kPer<T>]) {
  const double* const c = p.wide_coefficients(s.b);
#pragma unroll
  for (int k = 0; k < kMaxFormVectors; ++k) {
    if (k >= p.vectors) break;
    const Lot<T> v = read<T>(p, w, p.in[k], s);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const double factor = c[r * p.vectors + k];
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j)
        form[r][j] = math::fma(factor, static_cast<double>(v.v[j]), k ? form[r][j] : 0.0);
    }
  }
}

// <p, p>, <p, q>, sum |d|, the first R of them; with a gradient wanted (of in[graded]; else -1) also that of <p, p>.
template <typename T, int R, bool kShort> __global__ void __launch_bounds__(kSdeThreads, 1)
    forms_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w, int graded) {
  add_up<R, kShort>(p, w, [&](std::int64_t b, std::int64_t q, double* sum) {
    const Spot<T> s = spot<T>(p, w, b, q);
    double form[R][kPer<T>];
    forms_at<R>(p, w, s, form);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      sum[0] = math::fma(form[0][j], form[0][j], sum[0]);
      if constexpr (R > 1) sum[1] = math::fma(form[0][j], form[1][j], sum[1]);
      if constexpr (R > 2) sum[2] += math::abs(form[2][j]);
    }
    if constexpr (R == 1) {
      if (graded < 0) return;
      double slope, none;
      p.form_slopes(b, graded, slope, none);
      Lot<T> to;
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) to.v[j] = static_cast<T>(slope * form[0][j]);
      write(p, w, p.out[graded], s, to);
    }
  });
}
// The gradients of the weighted <p, p> and <p, q>, whose sums are there.
template <typename T> __global__ void __launch_bounds__(kSdeThreads, 1)
    form_gradients_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  each_block(p, w, [&](std::int64_t b, std::int64_t q) {
    const Spot<T> s = spot<T>(p, w, b, q);
    double form[2][kPer<T>];
    forms_at<2>(p, w, s, form);
    for (int k = 0; k < p.vectors; ++k) {
      if (!p.out[k].data) continue;
      double of_p, of_q;
      p.form_slopes(b, k, of_p, of_q);
      Lot<T> to;
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) to.v[j] = static_cast<T>(math::fma(of_p, form[0][j], of_q * form[1][j]));
      write(p, w, p.out[k], s, to);
    }
  });
}

// r = a x s + log(x / x0) + shift, or without that x.
template <typename T> __device__ __forceinline__ double residual(const AffinePlan& p, const double* c, T s, T x, T x0) {
  const double at = static_cast<double>(x), scaled = p.multiplied ? c[0] * at : c[0];
  return math::fma(scaled, static_cast<double>(s), math::log_ratio(x, x0) + c[1]);
}
// The gradient in s where wanted, and the residuals, 0 outside the sample.
template <typename T> __device__ __forceinline__ void residuals_at(const AffinePlan& p, const SdeWalk& w,
                                                                   std::int64_t b, std::int64_t q,
                                                                   double (&r)[kPer<T>]) {
  const Spot<T> at = spot<T>(p, w, b, q);
  const double* const c = p.wide_coefficients(b);
  const Lot<T> s = read<T>(p, w, p.in[0], at), x = read<T>(p, w, p.in[1], at), x0 = read<T>(p, w, p.in[2], at);
  Lot<T> to;
  const double slope = 2.0 * c[2] * c[0];
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    r[j] = w.packed || at.at[j] >= 0 ? residual(p, c, s.v[j], x.v[j], x0.v[j]) : 0.0;
    to.v[j] = static_cast<T>(slope * (p.multiplied ? static_cast<double>(x.v[j]) : 1.0) * r[j]);
  }
  if (p.out[0].data) write(p, w, p.out[0], at, to);
}
template <typename T, bool kShort> __global__ void __launch_bounds__(kSdeThreads, 1)
    lognormal_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  add_up<1, kShort>(p, w, [&](std::int64_t b, std::int64_t q, double* sum) {
    double r[kPer<T>];
    residuals_at<T>(p, w, b, q, r);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) sum[0] = math::fma(r[j], r[j], sum[0]);
  });
}
template <typename T> __global__ void __launch_bounds__(kSdeThreads, 1)
    lognormal_gradient_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  each_block(p, w, [&](std::int64_t b, std::int64_t q) {
    double r[kPer<T>];
    residuals_at<T>(p, w, b, q, r);
  });
}

template <typename T, bool kShort>
void launch_sums(const AffinePlan& p, const SdeWalk& w, unsigned blocks, cudaStream_t stream) {
  int graded = -1;
  for (int k = 0; k < p.vectors; ++k)
    if (p.out[k].data) graded = k;
  if (p.task == SdeTask::lognormal) FK_LAUNCH((lognormal_kernel<T, kShort>), blocks, kSdeThreads, 0, stream, p, w);
  else if (p.results == 1) FK_LAUNCH((forms_kernel<T, 1, kShort>), blocks, kSdeThreads, 0, stream, p, w, graded);
  else if (p.results == 2) FK_LAUNCH((forms_kernel<T, 2, kShort>), blocks, kSdeThreads, 0, stream, p, w, -1);
  else FK_LAUNCH((forms_kernel<T, 3, kShort>), blocks, kSdeThreads, 0, stream, p, w, -1);
}
template <typename T> void launch(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  const unsigned all = blocks_for(p.batch * w.blocks, kSdeThreads);
  if (!p.sums) {
    FK_LAUNCH((lognormal_gradient_kernel<T>), all, kSdeThreads, 0, stream, p, w);
    return;
  }
  if (w.blocks <= kShortBlocks) {
    launch_sums<T, true>(p, w, blocks_for(p.batch * kWarp, kSdeThreads), stream);
  } else {
    launch_sums<T, false>(p, w, all_blocks(tiles_of(p, w)), stream);
    sde_add_tiles(p, tiles_of(p, w) / p.batch, p.sum_count(), stream);
  }
  if (p.task == SdeTask::forms && p.weights && p.results > 1)
    FK_LAUNCH((form_gradients_kernel<T>), all, kSdeThreads, 0, stream, p, w);
}

// x *= factor, where that is not 1.
template <typename T> __global__ void rescale_kernel(T* x, std::int64_t n, const T* factor) {
  const T by = *factor;
  if (by == T(1)) return;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kSdeThreads + threadIdx.x; i < n;
       i += std::int64_t(gridDim.x) * kSdeThreads)
    x[i] *= by;
}

}  // namespace

void losses(const AffinePlan& p, cudaStream_t stream) {
  const Operand* all[2 * kMaxFormVectors];
  int count = 0;
  for (int k = 0; k < p.vectors; ++k) all[count++] = &p.in[k];
  for (int k = 0; k < p.vectors; ++k)
    if (p.out[k].data) all[count++] = &p.out[k];
  const SdeWalk w = walk_of(p, all, count);
  if (p.wide) launch<double>(p, w, stream);
  else launch<float>(p, w, stream);
  check_launch("losses");
}

template <typename T> void rescale(T* x, std::int64_t n, const T* factor, cudaStream_t stream) {
  FK_LAUNCH((rescale_kernel<T>), blocks_for(n, 4 * kSdeThreads), kSdeThreads, 0, stream, x, n, factor);
  check_launch("rescale");
}
template void rescale<float>(float*, std::int64_t, const float*, cudaStream_t);
template void rescale<double>(double*, std::int64_t, const double*, cudaStream_t);

}  // namespace fokker::cuda
