// Reductions of score-matching losses over the samples of a batch, and the gradient of the multiplicative one.
//
// Bytes: each vector once (and the gradient). Arithmetic and sums in double: by a fixed tree inside a tile of a sample,
// then over its tiles.
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

constexpr int kShortBlocks = 128;  // up to here a warp takes a sample whole

// Adds the R sums that `f(b, q, sums)` makes of each Philox block q of a sample: short samples a warp each, into p.sums;
// others a block of threads a tile, into p.partial.
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

// Linear forms p, q, d of the vectors: <p, p>, <p, q>, sum |d|, the first R of them.
template <typename T, int R, bool kShort> __global__ void __launch_bounds__(kSdeThreads, 1)
    forms_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  add_up<R, kShort>(p, w, [&](std::int64_t b, std::int64_t q, double* sum) {
    const Spot<T> s = spot<T>(p, w, b, q);
    const double* const c = p.wide_coefficients(b);
    double form[R][kPer<T>] = {};
#pragma unroll
    for (int k = 0; k < kMaxFormVectors; ++k) {
      if (k >= p.vectors) break;
      const Lot<T> v = read<T>(p, w, p.in[k], s);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const double factor = c[r * p.vectors + k];
#pragma unroll
        for (int j = 0; j < kPer<T>; ++j) form[r][j] = math::fma(factor, static_cast<double>(v.v[j]), form[r][j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      sum[0] = math::fma(form[0][j], form[0][j], sum[0]);
      if constexpr (R > 1) sum[1] = math::fma(form[0][j], form[1][j], sum[1]);
      if constexpr (R > 2) sum[2] += math::abs(form[2][j]);
    }
  });
}

// r = a x s + log(x / x0) + shift, or without that x.
template <typename T>
__device__ __forceinline__ double residual(const AffinePlan& p, const double* c, T s, T x, T x0) {
  const double at = static_cast<double>(x), scaled = p.multiplied ? c[0] * at : c[0];
  return math::fma(scaled, static_cast<double>(s), math::log(at / static_cast<double>(x0)) + c[1]);
}
template <typename T, bool kShort> __global__ void __launch_bounds__(kSdeThreads, 1)
    lognormal_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  add_up<1, kShort>(p, w, [&](std::int64_t b, std::int64_t q, double* sum) {
    const Spot<T> at = spot<T>(p, w, b, q);
    const double* const c = p.wide_coefficients(b);
    const Lot<T> s = read<T>(p, w, p.in[0], at), x = read<T>(p, w, p.in[1], at), x0 = read<T>(p, w, p.in[2], at);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      const double r = w.packed || at.at[j] >= 0 ? residual(p, c, s.v[j], x.v[j], x0.v[j]) : 0.0;
      sum[0] = math::fma(r, r, sum[0]);
    }
  });
}
template <typename T> __global__ void __launch_bounds__(kSdeThreads, 1)
    lognormal_gradient_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  each_block(p, w, [&](std::int64_t b, std::int64_t q) {
    const Spot<T> at = spot<T>(p, w, b, q);
    const double* const c = p.wide_coefficients(b);
    const double slope = 2.0 * c[2] * c[0];
    const Lot<T> s = read<T>(p, w, p.in[0], at), x = read<T>(p, w, p.in[1], at), x0 = read<T>(p, w, p.in[2], at);
    Lot<T> to;
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j)
      to.v[j] = static_cast<T>(slope * (p.multiplied ? static_cast<double>(x.v[j]) : 1.0) *
                               residual(p, c, s.v[j], x.v[j], x0.v[j]));
    write(p, w, p.out[0], at, to);
  });
}

template <typename T, bool kShort>
void launch_sums(const AffinePlan& p, const SdeWalk& w, unsigned blocks, cudaStream_t stream) {
  if (p.task == SdeTask::lognormal) FK_LAUNCH((lognormal_kernel<T, kShort>), blocks, kSdeThreads, 0, stream, p, w);
  else if (p.results == 1) FK_LAUNCH((forms_kernel<T, 1, kShort>), blocks, kSdeThreads, 0, stream, p, w);
  else if (p.results == 2) FK_LAUNCH((forms_kernel<T, 2, kShort>), blocks, kSdeThreads, 0, stream, p, w);
  else FK_LAUNCH((forms_kernel<T, 3, kShort>), blocks, kSdeThreads, 0, stream, p, w);
}
template <typename T> void launch(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  if (!p.sums) {
    FK_LAUNCH((lognormal_gradient_kernel<T>), blocks_for(p.batch * w.blocks, kSdeThreads), kSdeThreads, 0, stream, p,
              w);
  } else if (w.blocks <= kShortBlocks) {
    launch_sums<T, true>(p, w, blocks_for(p.batch * kWarp, kSdeThreads), stream);
  } else {
    launch_sums<T, false>(p, w, all_blocks(tiles_of(p, w)), stream);
    sde_add_tiles(p, tiles_of(p, w) / p.batch, p.sum_count(), stream);
  }
}

}  // namespace

void losses(const AffinePlan& p, cudaStream_t stream) {
  const Operand* all[kMaxFormVectors + 1];
  int count = 0;
  for (int k = 0; k < p.vectors; ++k) all[count++] = &p.in[k];
  if (p.out[0].data) all[count++] = &p.out[0];
  const SdeWalk w = walk_of(p, all, count);
  if (p.wide) launch<double>(p, w, stream);
  else launch<float>(p, w, stream);
  check_launch("losses");
}

}  // namespace fokker::cuda
