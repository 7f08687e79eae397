// Density sums for any d and any values: tiles of 64 queries by 64 data, 4 x 4 pairs a thread.
//
// Coordinates pass through shared memory kDepth at a time; a float distance is summed over kDepth of them and those
// sums are added with their roundings carried along. The weights of a tile then go to shared memory and are multiplied
// by the values, 64 columns at a time; the sums of values stay in the result, which only this block touches. Bytes: x
// and y once a tile (from L2), values once a tile and the sums of values twice; none of it for tiles without weight.
#pragma once

#include "cuda/kde.cuh"

namespace fokker::cuda::kde {

constexpr int kTileThreads = 256, kSide = 64, kPitch = kSide + 4, kMicro = 4, kPiece = 16;

// A sum of distances, its rounding errors kept beside it.
template <typename C> struct Distance {
  C total = 0, carry = 0;
  __device__ __forceinline__ void add(C part) {
    if constexpr (sizeof(C) == 4) {
      const C next = total + part;
      carry += part - (next - total);
      total = next;
    } else {
      total += part;
    }
  }
  __device__ __forceinline__ C value() const {
    return total + total > total ? total + carry : total;
  }  // inf: carry is NaN
};

// single: x, y, v and values are float also where C is double; again: only the rows that a float kernel has marked.
template <typename C, Form form> __global__ void __launch_bounds__(kTileThreads, sizeof(C) == 4 ? 2 : 1)
    kde_tile(KdeSums s, bool single, bool again) {
  constexpr int kDepth = sizeof(C) == 4 ? 32 : 16, kRowsAtOnce = kTileThreads / kDepth;
  using Quad = Vec<C, kMicro>;
  FK_SHARED(Quad, buffer, (kSide + kPiece) * kPitch / kMicro);
  FK_SHARED(C, biases, kSide);
  FK_SHARED(C, weights, kSide);
  FK_SHARED(C, scales, kSide);
  C* const x_tile = reinterpret_cast<C*>(buffer);  // [depth][query], then the weights [datum][query]
  C* const y_tile = x_tile + kDepth * kPitch;      // [depth][datum, permuted]
  C* const v_tile = x_tile + kSide * kPitch;       // [datum][column]
  static_assert(2 * kDepth <= kSide + kPiece, "both tiles of coordinates fit");
  const auto load_quad = [](const C* p) { return *reinterpret_cast<const Quad*>(p); };
  const void* const vs = s.v ? s.v : s.y;
  const int thread = int(threadIdx.x), tx = thread % 16, ty = thread / 16;
  // The thread's four queries at datum j: distances, then weights.
  const auto pairs = [x_tile, ty](int j) -> Quad& {
    return *reinterpret_cast<Quad*>(x_tile + j * kPitch + kMicro * ty);
  };
  const std::int64_t block = std::int64_t(blockIdx.x) * kSide, first = block + kMicro * ty;
  const bool online = s.shift == nullptr, values = s.weighting != KdeSums::Values::none;
  const bool by_slope = s.weighting == KdeSums::Values::slope, relative = by_slope || !s.v;
  const bool signs = form == Form::absolute && by_slope, own_scales = s.bandwidth_kind == KdeSums::Bandwidth::per_datum;
  const bool moments = s.square || s.delta;
  const C nu = C(s.nu), p = C(0.5 * (s.nu + double(s.d))), lazy = laziness<C>(s.kernel);

  bool live[kMicro];
  FK_SHARED(C, row_scales, kSide);
  FK_SHARED(C, tops, kSide);
  // A thread's sums of weights, their squares and what delta is made of; float has no registers left for them.
  constexpr bool kAside = sizeof(C) == 4;
  FK_SHARED(double, aside, kAside ? 3 * kMicro * kTileThreads : 1);
  double beside[3][kMicro] = {};
  const auto total = [&](int which, int a) -> double& {
    if constexpr (kAside) return aside[(which * kMicro + a) * kTileThreads + thread];
    else return beside[which][a];
  };
  bool any = false;
#pragma unroll
  for (int a = 0; a < kMicro; ++a) {
    const std::int64_t i = first + a < s.n ? first + a : s.n - 1;
    live[a] = first + a < s.n && (!again || is_marked(s.log_sum[i]));
    any = any || live[a];
    if (tx == 0) {
      row_scales[kMicro * ty + a] = row_scale<C>(s, i, form);
      tops[kMicro * ty + a] = online ? kFresh<C> : C(s.shift[i] * kUnit<C>);
    }
    total(0, a) = total(1, a) = total(2, a) = 0;
  }
  if (!__syncthreads_or(any)) return;
  double top_bias = -math::infinity<double>();
  bool started = false;

  for (std::int64_t begin = 0; begin < s.m; begin += kSide) {
    // The loop over depths begins with a barrier, after which nobody reads the last tile.
    Distance<C> distance[kMicro][kMicro];
    Column<C> column{};
    if (thread < kSide) {
      column = column_of<C>(s, begin + thread, form);
      top_bias = Max{}(top_bias, column.natural);
    }
    for (std::int64_t depth = 0; depth < s.d; depth += kDepth) {
      __syncthreads();
      if (depth == 0 && thread < kSide) {
        biases[thread] = column.bias, weights[thread] = column.weight, scales[thread] = column.scale;
      }
      const int k = thread % kDepth;
      const bool inside = depth + k < s.d;
#pragma unroll 4
      for (int r = thread / kDepth; r < kSide; r += kRowsAtOnce) {
        const std::int64_t i = block + r, j = begin + r;
        x_tile[k * kPitch + r] = inside && i < s.n ? query_coordinate(load<C>(s.x, i * s.d + depth + k, single)) : C(0);
        const C y = inside && j < s.m ? load<C>(s.y, j * s.d + depth + k, single) : C(0);
        y_tile[k * kPitch + kMicro * (r % 16) + r / 16] = y;  // a thread has data 16 apart
      }
      __syncthreads();
      C part[kMicro][kMicro] = {};
#pragma unroll(form == Form::general ? 2 : 4)
      for (int l = 0; l < kDepth; ++l) {
        const Quad x = load_quad(x_tile + l * kPitch + kMicro * ty);
        const Quad y = load_quad(y_tile + l * kPitch + kMicro * tx);
#pragma unroll
        for (int a = 0; a < kMicro; ++a) {
#pragma unroll
          for (int c = 0; c < kMicro; ++c) {
            const C step = x.v[a] - y.v[c];
            part[a][c] = form == Form::absolute ? part[a][c] + math::abs(step) : math::mad(step, step, part[a][c]);
          }
        }
      }
#pragma unroll
      for (int a = 0; a < kMicro; ++a) {
#pragma unroll
        for (int c = 0; c < kMicro; ++c) distance[a][c].add(part[a][c]);
      }
    }

    // Distances go to where the weights will be, so that the loop over a thread's data need not be unrolled.
    __syncthreads();
    constexpr int N = kMicro * kMicro;
#pragma unroll
    for (int c = 0; c < kMicro; ++c) {
      const int j = tx + 16 * c;
      Quad r;
#pragma unroll
      for (int a = 0; a < kMicro; ++a) {
        r.v[a] = distance[a][c].value();
        if (form == Form::absolute) r.v[a] = r.v[a] < kMost<C> || r.v[a] != r.v[a] ? r.v[a] : math::infinity<C>();
        if (own_scales) r.v[a] *= scales[j];
      }
      pairs(j) = r;
    }
    const std::int64_t apart = s.exclude == INT64_MIN ? -4 * kSide : block + s.exclude - begin;
    const int left_out = apart > -kSide && apart < kSide ? int(apart) + kMicro * ty : -4 * kSide;
    C rescale[kMicro] = {C(1), C(1), C(1), C(1)}, sums[kMicro] = {}, squares[kMicro] = {}, deltas[kMicro] = {};
    C scale[kMicro], top[kMicro];  // the 16 threads of a row keep one top
#pragma unroll
    for (int a = 0; a < kMicro; ++a) scale[a] = row_scales[kMicro * ty + a], top[a] = tops[kMicro * ty + a];
    bool weighs = false;
#pragma unroll 1
    for (int j = tx; j < kSide; j += 16) {
      const Quad r = pairs(j);
      C q[kMicro], t[kMicro], f[kMicro], g[kMicro];
#pragma unroll
      for (int a = 0; a < kMicro; ++a) {
        q[a] = r.v[a] * scale[a];
        t[a] = form == Form::general ? biases[j] : math::mad(r.v[a], scale[a], biases[j]);
      }
      if constexpr (form == Form::general) {
        C e[kMicro];
        evaluate(s.kernel, nu, p, q, e, f, g);
#pragma unroll
        for (int a = 0; a < kMicro; ++a) t[a] += e[a];
      }
#pragma unroll
      for (int a = 0; a < kMicro; ++a)
        if (j == left_out + a) t[a] = -math::infinity<C>(), f[a] = g[a] = C(1);
      if (online) {
        bool behind = false;
#pragma unroll
        for (int a = 0; a < kMicro; ++a) behind = behind || t[a] > top[a] + lazy;
        if (__any_sync(kFullWarp, behind)) {
#pragma unroll
          for (int a = 0; a < kMicro; ++a) {
            const C most = warp_reduce<16>(t[a], Max{});
            if (!(most > top[a] + lazy)) continue;
            const C by = power(top[a] - most);
            top[a] = most;
            rescale[a] *= by;
            total(0, a) *= double(by), sums[a] *= by, squares[a] *= by * by, deltas[a] *= by;
            if (moments) total(1, a) *= double(by * by), total(2, a) *= double(by);
            for (int before = tx; before < j; before += 16) pairs(before).v[a] *= by;
          }
        }
      }
      Quad weight;
#pragma unroll
      for (int a = 0; a < kMicro; ++a) {
        const C e = power(t[a] - top[a]) * weights[j];
        const C w = form == Form::general ? f[a] * e : e, by = form == Form::general ? g[a] * e : e;
        sums[a] += w;
        if (moments) {
          squares[a] = math::mad(w, w, squares[a]);
          deltas[a] += by == C(0) ? C(0) : by * q[a];  // however far, without weight it has no part
        }
        weight.v[a] = by_slope ? (own_scales ? by * scales[j] : by) : w;
        weighs = weighs || weight.v[a] != C(0);
      }
      pairs(j) = weight;
    }
#pragma unroll
    for (int a = 0; a < kMicro; ++a) {
      if (online && tx == 0) tops[kMicro * ty + a] = top[a];
      total(0, a) += double(sums[a]);
      if (moments) total(1, a) += double(squares[a]), total(2, a) += double(deltas[a]);
    }
    if (!values || !__syncthreads_or(weighs)) continue;  // uniform over the block; also: the weights are there

    for (std::int64_t at = 0; at < s.dv; at += kSide) {
      C product[kMicro][kMicro] = {}, x[kMicro][kMicro] = {};
      if (relative) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const std::int64_t row = first + i / kMicro, k = at + kMicro * tx + i % kMicro;
          if (row < s.n && k < s.d) x[i / kMicro][i % kMicro] = query_coordinate(load<C>(s.x, row * s.d + k, single));
        }
      }
      for (int piece = 0; piece < kSide; piece += kPiece) {
        __syncthreads();
        for (int e = thread; e < kPiece * kSide; e += kTileThreads) {
          const std::int64_t j = begin + piece + e / kSide, k = at + e % kSide;
          v_tile[e / kSide * kPitch + e % kSide] =
              j < s.m && k < s.dv ? finite_or_zero(load<C>(vs, j * s.dv + k, single)) : C(0);
        }
        __syncthreads();
#pragma unroll 4
        for (int l = 0; l < kPiece; ++l) {
          const Quad w = load_quad(x_tile + (piece + l) * kPitch + kMicro * ty);
          const Quad v = load_quad(v_tile + l * kPitch + kMicro * tx);
#pragma unroll
          for (int a = 0; a < kMicro; ++a) {
#pragma unroll
            for (int c = 0; c < kMicro; ++c) {
              const C step = relative ? v.v[c] - x[a][c] : v.v[c];
              if (signs) product[a][c] += step > C(0) ? w.v[a] : step < C(0) ? -w.v[a] : w.v[a] * step;
              else product[a][c] = math::mad(w.v[a], step, product[a][c]);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const int a = i / kMicro;
        const std::int64_t k = at + kMicro * tx + i % kMicro;
        if (!live[a] || k >= s.dv) continue;
        const std::int64_t place = (first + a) * s.dv + k;
        C v = product[a][i % kMicro];
        if (started) v = math::mad(load<C>(s.values, place, single), rescale[a], v);
        store(s.values, place, v, single);
      }
    }
    started = true;
  }

  const bool may_doubt = sizeof(C) == 4 && s.highest && s.log_sum;
  top_bias = block_reduce<kTileThreads>(top_bias, Max{});
#pragma unroll
  for (int a = 0; a < kMicro; ++a) {
    const double all = warp_reduce<16>(total(0, a), Sum{}), squares = warp_reduce<16>(total(1, a), Sum{});
    const double deltas = warp_reduce<16>(total(2, a), Sum{});
    double factor = 0;
    if (live[a] && tx == 0)
      factor = finish_row(s, first + a, form, tops[kMicro * ty + a], all, squares, deltas, may_doubt, top_bias);
    factor = __shfl_sync(kFullWarp, factor, 0, 16);
    if (!values || !live[a]) continue;
    for (std::int64_t at = kMicro * tx; at < s.dv; at += kSide) {
      for (int c = 0; c < kMicro && at + c < s.dv; ++c) {
        const std::int64_t place = (first + a) * s.dv + at + c;
        const double v = started ? double(load<C>(s.values, place, single)) : 0.0;
        store(s.values, place, C(finish_value(v, factor)), single);
      }
    }
  }
}

}  // namespace fokker::cuda::kde
