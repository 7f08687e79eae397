// One query's row of a tile: exponents to weights, their sums, and the running top exponent.
#pragma once

#include <cmath>

#include "cpu/kde_tile.inc.h"
#include "math/kde_kernel.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> constexpr T kHeadroom = T(8);   // exponents may pass the top by this much before it is raised
template <typename T> constexpr T kFarAbove = T(64);  // no more than this at once without rounding errors that show
constexpr double kForgotten = 1100;                   // nothing is left of sums this far below
template <typename T> constexpr T kLowest = sizeof(T) == 4 ? T(-150) : T(-1080);  // 2^x is 0 from here on

template <typename T> constexpr T kMost = sizeof(T) == 4 ? T(1e37) : T(1e307);  // squared distances beyond: 0 * inf

enum class Pairing { plain, weighted, factors };  // weights e, u e, or F u e with gradient weights G u e

// A row of F, G and q beside its exponents.
template <typename T> struct Factors {
  alignas(64) T weight[kTile<T>], slope[kTile<T>], q[kTile<T>];
};

// Sums relative to the top are moved to a top that is higher by `up`.
template <typename T> inline void raise_top(KdeRow& row, double up, bool gaussian, std::int64_t stride, T* sums) {
  const double factor = std::exp2(-up);
  row.top += up;
  if (up > kForgotten) {
    const double top = row.top;
    row = KdeRow(), row.top = top;
    for (std::int64_t k = 0; k < stride; ++k) sums[k] = T(0);
    return;
  }
  row.delta = (gaussian ? row.delta - up * row.sum : row.delta) * factor;
  row.sum *= factor, row.slope *= factor, row.square *= factor * factor;
  for (std::int64_t k = 0; k < stride; ++k) sums[k] *= static_cast<T>(factor);
}

// By how much to raise a top for an exponent `most` above it, so that the new one is a number of type A.
template <typename A, typename T> inline double to_nearby(double top, T most) {
  return static_cast<double>(static_cast<A>(top + std::ceil(static_cast<double>(most)))) - top;
}

template <typename T> inline T row_max(const T* t, std::int64_t count) {
  Vec<T> top[2] = {all(-math::infinity<T>()), all(-math::infinity<T>())};
  std::int64_t j = 0;
  for (; j + 2 * kLanesOf<T> <= count; j += 2 * kLanesOf<T>) {
    top[0] = max(top[0], load(t + j));
    top[1] = max(top[1], load(t + j + kLanesOf<T>));
  }
  if (j < count) top[0] = max(top[0], load(t + j));
  return max_lanes(max(top[0], top[1]));
}

enum class Moments { none, square, both };

template <Pairing pairing, Moments moments, bool kValues, typename T, typename A>
__attribute__((noinline)) void sum_row(const KdeBlock<T, A>& b, T* t, std::int64_t column, std::int64_t count,
                                       const Factors<T>* f, KdeRow& row) {
  using V = Vec<T>;
  constexpr int lanes = kLanesOf<T>;
  const auto& chunk = *b.chunk;
  const T *u = chunk.weight.get() + column, *bias = chunk.bias.get() + column, *slope = chunk.slope.get() + column;
  const bool by_slope = b.by_slope, per_datum = b.call->bandwidth_kind == KdeSums::Bandwidth::per_datum;
  V sum = {}, square = {}, delta = {}, total = {};
  for (std::int64_t j = 0; j < count; j += lanes) {
    const V x = load(t + j), e = exp2(x);
    V w = e, g;
    if constexpr (pairing == Pairing::weighted) w = e * load(u + j);
    if constexpr (pairing == Pairing::factors) w = e * load(f->weight + j);
    sum += w;
    if constexpr (pairing == Pairing::factors) g = e * load(f->slope + j);
    else g = w;
    if constexpr (moments != Moments::none) square = fma(w, w, square);
    if constexpr (moments == Moments::both) {
      if constexpr (pairing == Pairing::factors) delta = fma(g, load(f->q + j), delta);
      else delta = fma(w, V(max(x, all(kLowest<T>)) - load(bias + j)), delta);
    }
    if constexpr (kValues) {
      V out = w;
      if constexpr (pairing == Pairing::factors) out = by_slope ? g : w;
      if (by_slope && per_datum) out = out * load(slope + j);
      total += out;
      store(t + j, out);
    }
  }
  row.sum += add_lanes(sum);
  if constexpr (moments != Moments::none) row.square += add_lanes(square);
  if constexpr (moments == Moments::both) row.delta += add_lanes(delta);
  if constexpr (kValues) row.slope += add_lanes(total);
}

template <Pairing pairing, typename T, typename A> inline void sum_row(const KdeBlock<T, A>& b, T* t,
                                                                       std::int64_t column, std::int64_t count,
                                                                       const Factors<T>* f, KdeRow& row) {
  using M = Moments;
  if (b.delta)
    return b.values ? sum_row<pairing, M::both, true>(b, t, column, count, f, row)
                    : sum_row<pairing, M::both, false>(b, t, column, count, f, row);
  if (b.square)
    return b.values ? sum_row<pairing, M::square, true>(b, t, column, count, f, row)
                    : sum_row<pairing, M::square, false>(b, t, column, count, f, row);
  return b.values ? sum_row<pairing, M::none, true>(b, t, column, count, f, row)
                  : sum_row<pairing, M::none, false>(b, t, column, count, f, row);
}

// Raises the top where the row's largest exponent demands it, then sums. False: nothing in this row counts (its
// weights, where values need them, are set to 0).
template <Pairing pairing, typename T, typename A> inline bool finish_row(const KdeBlock<T, A>& b, T* t, T most,
                                                                          std::int64_t column, std::int64_t count,
                                                                          const Factors<T>* f, KdeRow& row, T* sums) {
  const T least = b.fixed ? kLowest<T> : row.fresh ? -math::infinity<T>() : static_cast<T>(-b.negligible);
  if (!(most > least)) {
    if (b.values)
      for (std::int64_t j = 0; j < count; ++j) t[j] = T(0);
    return false;
  }
  if (!b.fixed && (row.fresh || most > kHeadroom<T>)) {
    const double up = std::ceil(static_cast<double>(most));
    if (row.fresh) row.top += up, row.fresh = false;
    else raise_top(row, up, b.gaussian, b.value_stride, sums);
    const T shift = static_cast<T>(up);
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j) t[j] -= shift;
  }
  sum_row<pairing>(b, t, column, count, f, row);
  return true;
}

constexpr double kMostSum = 0x1p48;  // of a tile: sums of 2^17 tiles times numbers of 1e18 do not overflow
constexpr double kLevel = 20;        // tops that differ by less can share one: weights and squares stay normal numbers

// The whole of a tile in registers where sums, squares and weights are wanted, one bandwidth and no shift: exponents
// are not stored, nor their largest looked for. Tops may lag behind as long as every sum comes out below kMostSum.
// kShared: all rows have the first's top, and the squares are those of sums of kVectors weights, no less than wanted.
template <int kBlock, bool kShared, bool kWeights, typename T>
void sum_tile(const KdeBlock<T, T>& b, const T* x, const T* top, std::int64_t column, std::int64_t count, T* tile,
              double* sums, double* squares) {
  using V = Vec<T>;
  const auto& chunk = *b.chunk;
  const std::int64_t d = b.call->d;
  const V s = all(b.scale);
  V sum[kRows] = {}, square[kRows] = {};
  for (std::int64_t p = 0; p < count; p += kPanel<T>) {
    V acc[kRows][kVectors];
    distances<Metric::product, kBlock>(x, chunk.panels.get() + (column + p) * d, d, acc);
    V term[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      term[v] = load(chunk.term.get() + column + p + v * kLanesOf<T>);
      if constexpr (kShared) term[v] -= all(top[0]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      V total = {}, total_square = square[r];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        V t = fma(s, acc[r][v], term[v]);
        if constexpr (!kShared) t -= all(top[r]);
        const V w = exp2(t);
        if constexpr (kWeights) store(tile + r * kTileStride<T> + p + v * kLanesOf<T>, w);
        total = v == 0 ? w : V(total + w);
        if constexpr (!kShared) total_square = fma(w, w, total_square);
      }
      sum[r] += total;
      square[r] = kShared ? fma(total, total, total_square) : total_square;
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = add_lanes(sum[r]), squares[r] = add_lanes(square[r]);
}

template <typename T, typename A> bool gaussian_row(const KdeBlock<T, A>& b, T* t, T most, std::int64_t column,
                                                    std::int64_t count, std::int64_t, T, Factors<T>*, KdeRow& row,
                                                    T* sums) {
  const Factors<T>* none = nullptr;
  return b.fixed ? finish_row<Pairing::weighted>(b, t, most, column, count, none, row, sums)
                 : finish_row<Pairing::plain>(b, t, most, column, count, none, row, sums);
}

// t holds squared (laplace: L1) distances.
template <math::Kernel kernel, typename T, typename A>
bool kernel_row(const KdeBlock<T, A>& b, T* __restrict t, T, std::int64_t column, std::int64_t count,
                std::int64_t excluded, T row_scale, Factors<T>* __restrict f, KdeRow& row, T* sums) {
  const auto& chunk = *b.chunk;
  const T* __restrict u = chunk.weight.get() + column, * __restrict bias = chunk.bias.get() + column;
  const A* __restrict scale = chunk.scale.get() + column;
  const T nu = static_cast<T>(b.call->nu), p = static_cast<T>(0.5 * (b.call->nu + static_cast<double>(b.call->d)));
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) f->q[j] = math::min(t[j] * row_scale * static_cast<T>(scale[j]), kMost<T>);
  T most;
  for (;;) {
    const T top = static_cast<T>(row.top);
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j) {
      const auto pair = math::kernel_pair<kernel>(f->q[j], nu, p);
      f->weight[j] = pair.weight * u[j];
      f->slope[j] = pair.slope * u[j];
      const T exponent = math::mad(pair.exponent, T(1.4426950408889634074), bias[j]) - top;
      t[j] = math::is_compact(kernel) && !(pair.weight > T(0)) ? -math::infinity<T>() : exponent;
    }
    if (excluded >= 0 && excluded < count) t[excluded] = -math::infinity<T>();
    most = row_max(t, count);
    if (b.fixed || !(most > kFarAbove<T>)) break;
    const double up = to_nearby<T>(row.top, most);
    if (row.fresh) row.top += up;
    else raise_top(row, up, false, b.value_stride, sums);
  }
  return finish_row<Pairing::factors>(b, t, most, column, count, f, row, sums);
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
