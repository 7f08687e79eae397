// The vector-Jacobian product of the norm and rotary embedding of attention heads, from x and the results' gradient g:
//
//   dn = g cos - R(g sin),  dw = sum dn x^,  db = sum dn,  a = dn w,
//   dx = rstd (a - x^ mean(a x^)), and for the layer norm - mean a besides; x^ and rstd are computed again.
//
// Bytes: x and g once in, dx once out. Sums run over the rows of a block in registers, over its teams in order,
// then over the blocks, whose number does not depend on the device: the same bits every time.
#include "cuda/heads.cuh"

namespace fokker::cuda {
namespace {

template <typename T, typename S, int kUnits, bool kPacked, bool kSums>
__global__ void __launch_bounds__(kHeadThreads, 1)
    heads_vjp_kernel(const __grid_constant__ HeadsPlan p, const __grid_constant__ HeadWalk w, std::int64_t rows,
                     std::int64_t per_block) {
  FK_SHARED(double, total, kSums ? 2 * kMaxHeadDim : 1);
  const int lane = threadIdx.x & (w.lanes - 1), team = threadIdx.x / w.lanes, teams = kHeadThreads / w.lanes;
  const std::int64_t first = blockIdx.x * per_block, last = first + per_block < rows ? first + per_block : rows;
  for (int which = 0; which < p.parts; ++which) {
    const HeadPart& part = p.part[which];
    if (part.plain && !part.out.data) continue;
    const std::int64_t count = (last - first) * part.heads;
    Unit<T> to_weight[kUnits] = {}, to_bias[kUnits] = {};
    // Whole warps stay together: teams past the end work on nothing.
    for (std::int64_t at = team; at - team < count; at += teams) {
      const bool there = at < count;
      const std::int64_t token_row = first + (there ? at / part.heads : 0), h = there ? at % part.heads : 0;
      const std::int64_t b = token_row / p.tokens, t = token_row - b * p.tokens;
      const std::int64_t from = place_of(part.grad, b, h, t), to = place_of(part.out, b, h, t);
      Unit<T> a[kUnits];
#pragma unroll
      for (int k = 0; k < kUnits; ++k)
        a[k] = there ? read_unit<T, S, kPacked>(p, part.grad, from, lane + k * w.lanes) : Unit<T>{};
      if (part.plain) {
#pragma unroll
        for (int k = 0; k < kUnits; ++k)
          if (there) write_unit<S, kPacked>(p, part.out, to, lane + k * w.lanes, a[k]);
        continue;
      }
      HeadRow<T, kUnits> r;
#pragma unroll
      for (int k = 0; k < kUnits; ++k)
        r.x[k] = there ? read_unit<T, S, kPacked>(p, part.x, place_of(part.x, b, h, t), lane + k * w.lanes) : Unit<T>{};
      r.normalize(p, lane, w.lanes);
      T along = T(0), level = T(0);
#pragma unroll
      for (int k = 0; k < kUnits; ++k) {
        const int u = lane + k * w.lanes;
        if (p.cos) {
          Unit<T> cos, sin, turned;
          read_angles(p, b, t, u, cos, sin);
#pragma unroll
          for (int e = 0; e < 4; ++e) turned.v[e] = a[k].v[e] * sin.v[e];
#pragma unroll
          for (int e = 0; e < 4; ++e)
            a[k].v[e] = math::mad(a[k].v[e], cos.v[e], p.interleaved ? turned.v[e ^ 1] : turned.v[e ^ 2]);
        }
        const Unit<T> weight = read_vector<T>(p, part.weight, u, T(1));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (kSums) {
            to_weight[k].v[e] = math::mad(a[k].v[e], r.x[k].v[e], to_weight[k].v[e]);
            to_bias[k].v[e] += a[k].v[e];
          }
          a[k].v[e] *= weight.v[e];
          along = math::mad(a[k].v[e], r.x[k].v[e], along);
          level += a[k].v[e];
        }
      }
      along = p.norm == HeadNorm::none ? T(0) : team_sum(along, w.lanes) / T(p.dim);
      level = p.norm == HeadNorm::layer ? team_sum(level, w.lanes) / T(p.dim) : T(0);
      if (!there || !part.out.data) continue;
#pragma unroll
      for (int k = 0; k < kUnits; ++k) {
        Unit<T> y;
#pragma unroll
        for (int e = 0; e < 4; ++e) y.v[e] = (a[k].v[e] - level - r.x[k].v[e] * along) * r.rstd;
        write_unit<S, kPacked>(p, part.out, to, lane + k * w.lanes, y);
      }
    }
    if constexpr (kSums) {
      if (part.plain) continue;
      __syncthreads();
      for (int j = threadIdx.x; j < 2 * p.dim; j += kHeadThreads) total[j] = 0.0;
      for (int flip = w.lanes; flip < kWarp; flip *= 2)  // the teams of a warp
#pragma unroll
        for (int k = 0; k < kUnits; ++k)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            to_weight[k].v[e] += shuffle_xor(to_weight[k].v[e], flip);
            to_bias[k].v[e] += shuffle_xor(to_bias[k].v[e], flip);
          }
      for (int turn = 0; turn < kHeadThreads / kWarp; ++turn) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) / kWarp != turn || static_cast<int>(threadIdx.x) % kWarp >= w.lanes) continue;
#pragma unroll
        for (int k = 0; k < kUnits; ++k)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int u = lane + k * w.lanes;
            if (!unit_holds(p, u, e)) continue;
            const int j = unit_element(p, u, e);
            total[j] += static_cast<double>(to_weight[k].v[e]);
            total[p.dim + j] += static_cast<double>(to_bias[k].v[e]);
          }
      }
      __syncthreads();
      double* const row = p.partial + blockIdx.x * std::int64_t(p.sum_count()) + which * 2 * p.dim;
      for (int j = threadIdx.x; j < 2 * p.dim; j += kHeadThreads) row[j] = total[j];
    }
  }
}

}  // namespace

void heads_vjp(const HeadsPlan& p, cudaStream_t stream) {
  const HeadWalk w = head_walk(p);
  const std::int64_t rows = p.batch * p.tokens, wanted = heads_blocks(rows), per_block = (rows + wanted - 1) / wanted;
  const auto blocks = static_cast<unsigned>((rows + per_block - 1) / per_block);
  dispatch_heads(p, w, [&](auto t, auto s, auto units, auto packed) {
    using T = decltype(t);
    using S = decltype(s);
    constexpr int kUnits = decltype(units)::value;
    constexpr bool kPacked = decltype(packed)::value;
    if (p.sums) {
      FK_LAUNCH((heads_vjp_kernel<T, S, kUnits, kPacked, true>), blocks, kHeadThreads, 0, stream, p, w, rows,
                per_block);
    } else {
      FK_LAUNCH((heads_vjp_kernel<T, S, kUnits, kPacked, false>), blocks, kHeadThreads, 0, stream, p, w, rows,
                per_block);
    }
  });
  if (p.sums) add_partial(p.partial, std::int64_t(blocks), p.sum_count(), p.sums, stream);
  check_launch("heads_norm_rope_vjp");
}

}  // namespace fokker::cuda
