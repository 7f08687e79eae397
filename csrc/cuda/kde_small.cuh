// Density sums for d <= 8: a query's coordinates and all its sums in registers, the data in shared memory.
//
// A thread takes kQueries queries, and with `split` > 1 one of `split` interleaved parts of the data, merged at the end
// by shuffles. An exponential of a log density costs D differences, D products, an exponential, a sum, a share in the
// maximum, and one load of 16 bytes for all queries of the thread. Bytes: x and the results once, the data once a
// block.
#pragma once

#include "cuda/kde.cuh"

namespace fokker::cuda::kde {

constexpr int kSmallThreads = 128, kSmallTile = 128;
template <typename C, int D> constexpr int kQueries = sizeof(C) == 4 && D <= 4 ? 4 : 2;
// Data that share one look at the maximum and one choice of the kernel.
template <typename C, Form form> constexpr int kGroup = form == Form::general ? 1 : sizeof(C) == 4 ? 4 : 2;

// kSums: nothing but log_sum is wanted. Values, where wanted, are the slope or y - x_i.
template <typename C, Form form, int D, bool kSums> __global__ void __launch_bounds__(kSmallThreads, 2)
    kde_small(KdeSums s, int split) {
  constexpr int Q = kQueries<C, D>, G = kGroup<C, form>, N = Q * G,
                kWidth = D == 1   ? 2
                         : D <= 3 ? 4
                                  : D,
                kBias = D <= 3 ? D : 0;
  using Datum = Vec<C, kWidth>;
  FK_SHARED(Datum, data, kSmallTile);
  FK_SHARED(C, biases, kSmallTile);  // of D > 3; the others have theirs beside the coordinates
  FK_SHARED(C, weights, kSmallTile);
  FK_SHARED(C, scales, kSmallTile);
  const C* const xs = static_cast<const C*>(s.x);
  const C* const ys = static_cast<const C*>(s.y);
  const int d = int(s.d), part = int(threadIdx.x) % split;
  const std::int64_t first = (std::int64_t(blockIdx.x) * (kSmallThreads / split) + threadIdx.x / split) * Q;
  const bool online = s.shift == nullptr, own_scales = s.bandwidth_kind == KdeSums::Bandwidth::per_datum;
  const bool weighted = s.weight && !online, by_slope = s.weighting == KdeSums::Values::slope;
  const bool moments = !kSums && (s.square || s.delta), values = !kSums && s.weighting != KdeSums::Values::none;
  const C nu = C(s.nu), p = C(0.5 * (s.nu + double(s.d))),
          lazy = form == Form::general ? laziness<C>(s.kernel) : C(kLazy);

  C x[Q][D], scale[Q], top[Q];
  Total<C> sum[Q], square[Q], delta[Q], slope[Q][D];
#pragma unroll
  for (int a = 0; a < Q; ++a) {
    const std::int64_t i = first + a < s.n ? first + a : s.n - 1;
#pragma unroll
    for (int k = 0; k < D; ++k) x[a][k] = k < d ? query_coordinate(xs[i * d + k]) : C(0);
    scale[a] = row_scale<C>(s, i, form);
    top[a] = online ? kFresh<C> : C(s.shift[i] * kUnit<C>);
  }
  double top_bias = -math::infinity<double>();
  int until_flush = split;  // tiles: a float sum takes kSmallTile terms

  for (std::int64_t begin = 0; begin < s.m; begin += kSmallTile) {
    __syncthreads();  // the last tile has been read
    {
      const std::int64_t j = begin + threadIdx.x;
      const Column<C> column = column_of<C>(s, j, form);
      top_bias = Max{}(top_bias, column.natural);
      bool dropped = false;
      Datum y{};
#pragma unroll
      for (int k = 0; k < D; ++k) {
        const C v = j < s.m && k < d ? ys[j * d + k] : C(0);
        dropped = dropped || v > kMost<C> || v < -kMost<C>;
        y.v[k] = finite_or_zero(v);
      }
      const C bias = dropped && column.bias == column.bias ? -math::infinity<C>() : column.bias;
      if constexpr (D <= 3) y.v[kBias] = bias;
      else biases[threadIdx.x] = bias;
      data[threadIdx.x] = y;
      weights[threadIdx.x] = column.weight;
      scales[threadIdx.x] = column.scale;
    }
    __syncthreads();
    const int count = s.m - begin < kSmallTile ? int(s.m - begin) : kSmallTile;
    // Where the left-out pairs lie from this tile's beginning; the sentinel stays far from every tile.
    const std::int64_t apart = s.exclude == INT64_MIN ? -kSmallTile - Q : first + s.exclude - begin;
    const bool masked = apart > -Q && apart < kSmallTile;
    for (int at = part; at - part < count; at += split * G) {
      C q[N], t[N], f[N], g[N], column[G];
      C difference[D];
#pragma unroll
      for (int c = 0; c < G; ++c) {
        const Datum y = data[at + c * split];
        const C bias = D <= 3 ? y.v[kBias] : biases[at + c * split];
        column[c] = own_scales ? scales[at + c * split] : C(1);
#pragma unroll
        for (int a = 0; a < Q; ++a) {
          const int i = a * G + c;
          C r = 0;
#pragma unroll
          for (int k = 0; k < D; ++k) {
            difference[k] = x[a][k] - y.v[k];
            r = form == Form::absolute ? r + math::abs(difference[k]) : math::mad(difference[k], difference[k], r);
          }
          if (form == Form::absolute) r = r < kMost<C> || r != r ? r : math::infinity<C>();
          if (own_scales) r *= column[c];
          if constexpr (form == Form::general) {
            q[i] = r * scale[a];
            t[i] = bias;
          } else {
            t[i] = math::mad(r, scale[a], bias);
            if (!kSums) q[i] = r * scale[a];
          }
        }
      }
      if constexpr (form == Form::general) {
        C e[N];
        evaluate(s.kernel, nu, p, q, e, f, g);
#pragma unroll
        for (int i = 0; i < N; ++i) t[i] += e[i];
      }
      if (masked) {
#pragma unroll
        for (int i = 0; i < N; ++i)
          if (at + i % G * split == apart + i / G) t[i] = -math::infinity<C>(), f[i] = g[i] = C(1);
      }
#pragma unroll
      for (int a = 0; a < Q; ++a) {
        const C* const row = t + a * G;
        if (online) {
          C most = row[0];
          if constexpr (G > 1)
#pragma unroll
            for (int c = 1; c < G; ++c) most = math::max(most, row[c]);
          if (most > top[a] + lazy) {
            const C by = power(top[a] - most);
            top[a] = most;
            sum[a].scale(by), square[a].scale(by * by), delta[a].scale(by);
#pragma unroll
            for (int k = 0; k < D; ++k) slope[a][k].scale(by);
          }
        }
#pragma unroll
        for (int c = 0; c < G; ++c) {
          const int i = a * G + c;
          C e = power(t[i] - top[a]);
          if (weighted) e *= weights[at + c * split];
          const C w = form == Form::general ? f[i] * e : e;
          sum[a].part += w;
          if constexpr (!kSums) {
            const C by = form == Form::general ? g[i] * e : e;
            if (moments) {
              square[a].part = math::mad(w, w, square[a].part);
              delta[a].part += by == C(0) ? C(0) : by * q[i];  // however far, without weight it has no part
            }
            if (values) {
              const Datum y = data[at + c * split];
              const C v = by_slope ? (own_scales ? by * column[c] : by) : w;
#pragma unroll
              for (int k = 0; k < D; ++k) {
                const C step = y.v[k] - x[a][k];
                if (form == Form::absolute && by_slope)
                  slope[a][k].part += step > C(0) ? v : step < C(0) ? -v : v * step;
                else slope[a][k].part = math::mad(v, step, slope[a][k].part);
              }
            }
          }
        }
      }
    }
    if (--until_flush == 0) {
      until_flush = split;
#pragma unroll
      for (int a = 0; a < Q; ++a) {
        sum[a].flush(), square[a].flush(), delta[a].flush();
#pragma unroll
        for (int k = 0; k < D; ++k) slope[a][k].flush();
      }
    }
  }

  const bool may_doubt = sizeof(C) == 4 && s.highest && s.log_sum;
  top_bias = block_reduce<kSmallThreads>(top_bias, Max{});
#pragma unroll
  for (int a = 0; a < Q; ++a) {
    C high = top[a];
    for (int flip = split / 2; flip > 0; flip /= 2) high = math::max(high, shuffle_xor(high, flip));
    const double by = high == top[a] ? 1.0 : double(power(top[a] - high));
    const auto merged = [&](const Total<C>& t, double factor) {
      double v = value_of(t) * factor;
      for (int flip = split / 2; flip > 0; flip /= 2) v += shuffle_xor(v, flip);
      return v;
    };
    const double all = merged(sum[a], by), squares = kSums ? 0.0 : merged(square[a], by * by);
    const double deltas = kSums ? 0.0 : merged(delta[a], by);
    const bool mine = part == 0 && first + a < s.n;
    double factor = 0;
    if (mine) factor = finish_row(s, first + a, form, high, all, squares, deltas, may_doubt, top_bias);
    if constexpr (!kSums) {
#pragma unroll
      for (int k = 0; values && k < D; ++k) {
        const double v = merged(slope[a][k], by);
        if (mine && k < d) static_cast<C*>(s.values)[(first + a) * d + k] = C(finish_value(v, factor));
      }
    }
  }
}

}  // namespace fokker::cuda::kde
