// Density sums of few coordinates, gaussian, all in registers: differences, exponents, weights, sums.
//
// Exponents - |x - y|^2 / 2 h^2 + bias are never above the largest bias, so sums are relative to that and no running
// maximum is kept; the driver repeats the few queries so far out that their sums come near the least normal number.
#pragma once

#include "cpu/kde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr std::int64_t kSmallTilePanels = 24;  // between two moves of the sums into double

template <int D, bool kValues> constexpr int kSmallRows = kVectorBytes == 64 && !(kValues && D > 2) ? 4 : 2;

template <int D, bool kValues, typename T> struct SmallSums {
  static constexpr int rows = kSmallRows<D, kValues>;
  Vec<T> sum[rows], value[rows][D];
};

template <int D, bool kValues, bool kMasked, typename T>
inline __attribute__((always_inline)) void small_panels(const KdeBlock<T, T>& b,
                                                        const T (&x)[kSmallRows<D, kValues>][D], const T* scale,
                                                        const std::int64_t* excluded, std::int64_t column,
                                                        std::int64_t count, SmallSums<D, kValues, T>& s) {
  using V = Vec<T>;
  constexpr int rows = kSmallRows<D, kValues>, lanes = kLanesOf<T>;
  V sum[rows], value[rows][D];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    sum[r] = s.sum[r];
#pragma GCC unroll 4
    for (int k = 0; k < D; ++k) value[r][k] = s.value[r][k];
  }
  for (std::int64_t p = column; p < column + count; p += kPanel<T>) {
    const T* y = b.chunk->panels.get() + p * D;
    for (int at = 0; at < kPanel<T>; at += lanes) {
      V from[D];
#pragma GCC unroll 4
      for (int k = 0; k < D; ++k) from[k] = load(y + k * kPanel<T> + at);
      const V term = load(b.chunk->term.get() + p + at);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        V off[D], square;
#pragma GCC unroll 4
        for (int k = 0; k < D; ++k) {
          off[k] = from[k] - all(x[r][k]);
          square = k == 0 ? V(off[k] * off[k]) : fma(off[k], off[k], square);
        }
        V t = fma(square, all(scale[r]), term);
        if constexpr (kMasked)
          for (int l = 0; l < lanes; ++l)
            if (p + at + l == excluded[r]) t[l] = -math::infinity<T>();
        const V e = exp2(t);
        sum[r] += e;
        if constexpr (kValues)
#pragma GCC unroll 4
          for (int k = 0; k < D; ++k) value[r][k] = fma(e, off[k], value[r][k]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    s.sum[r] = sum[r];
#pragma GCC unroll 4
    for (int k = 0; k < D; ++k) s.value[r][k] = value[r][k];
  }
}

template <int D, bool kValues, typename T> void small_block(const KdeBlock<T, T>& b) {
  constexpr int rows = kSmallRows<D, kValues>;
  const T* queries = static_cast<const T*>(b.call->x);
  for (int first = 0; first < b.count; first += rows) {
    T x[rows][D], scale[rows];
    std::int64_t excluded[rows], low = INT64_MAX, high = INT64_MIN;
    for (int r = 0; r < rows; ++r) {
      const int i = first + r < b.count ? first + r : b.count - 1;
      const std::int64_t query = b.queries ? b.queries[i] : b.query_begin + i;
      for (int k = 0; k < D; ++k) x[r][k] = queries[query * D + k];
      scale[r] = b.row_scale[i];
      excluded[r] = b.call->exclude == INT64_MIN ? -1 : query + b.call->exclude - b.chunk->begin;
      low = excluded[r] < low ? excluded[r] : low, high = excluded[r] > high ? excluded[r] : high;
    }
    constexpr std::int64_t step = kSmallTilePanels * kPanel<T>;
    for (std::int64_t column = b.column_begin; column < b.column_end; column += step) {
      const std::int64_t count = b.column_end - column < step ? b.column_end - column : step;
      SmallSums<D, kValues, T> s{};
      if (high < column || low >= column + count)
        small_panels<D, kValues, false>(b, x, scale, excluded, column, count, s);
      else small_panels<D, kValues, true>(b, x, scale, excluded, column, count, s);
      for (int r = 0; r < rows && first + r < b.count; ++r) {
        b.rows[first + r].sum += add_lanes(s.sum[r]);
        if constexpr (kValues)
          for (int k = 0; k < D; ++k)
            b.sums[(first + r) * b.value_stride + k] += static_cast<T>(add_lanes(s.value[r][k]));
      }
    }
  }
}

}  // namespace

template <typename T> void kde_small(const KdeBlock<T, T>* b) {
  const FlushSubnormals flush;
  const bool values = b->values;
  switch (b->call->d) {
    case 1:
      return values ? small_block<1, true>(*b) : small_block<1, false>(*b);
    case 2:
      return values ? small_block<2, true>(*b) : small_block<2, false>(*b);
    case 3:
      return values ? small_block<3, true>(*b) : small_block<3, false>(*b);
    default:
      return values ? small_block<4, true>(*b) : small_block<4, false>(*b);
  }
}
template void kde_small<float>(const KdeBlock<float, float>*);
template void kde_small<double>(const KdeBlock<double, double>*);

}  // namespace fokker::cpu::FK_ISA
