// Density sums of few coordinates, gaussian, all in registers: differences, exponents, weights, sums.
//
// Exponents - |x - y|^2 / 2 h^2 + bias are never above the largest bias, so sums are relative to that and no running
// maximum is kept; the driver repeats the few queries so far out that their sums come near the least normal number.
// In the fixed form they are relative to the shift given, and data have weights of any sign.
#pragma once

#include <type_traits>

#include "cpu/kde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr std::int64_t kBatchPanels = 24;  // between two moves of the sums into double

template <int D, KdeForm form> constexpr int small_rows() {
  if (kVectorBytes < 64) return 2;
  return form == KdeForm::sum || form == KdeForm::absolute || (form != KdeForm::moments && D <= 2) ? 4 : 2;
}

// Sums of a group of queries in registers.
template <int D, KdeForm form, typename T> struct SmallSums {
  static constexpr int rows = small_rows<D, form>();
  static constexpr bool values = form != KdeForm::sum && form != KdeForm::absolute, square = form == KdeForm::moments,
                        delta = form == KdeForm::moments || form == KdeForm::fixed,
                        shifted = form == KdeForm::fixed || form == KdeForm::absolute;
  Vec<T> sum[rows] = {}, value[rows][D] = {}, squares[rows] = {}, distance[rows] = {};
};

template <int D, KdeForm form, typename T> struct SmallQueries {
  static constexpr int rows = small_rows<D, form>();
  T x[rows][D], scale[rows], top[rows];
  std::int64_t excluded[rows];  // place of the datum left out
};

template <typename T> struct Lanes;
template <> struct Lanes<float> {
  using Int = VecI32;
};
template <> struct Lanes<double> {
  using Int = VecI64;
};

template <int D, KdeForm form, bool kMasked, typename T>
inline __attribute__((always_inline)) SmallSums<D, form, T> small_sums(const KdeBlock<T, T>& b,
                                                                       const SmallQueries<D, form, T>& q,
                                                                       const KdeRun* runs, int run_count) {
  using V = Vec<T>;
  using Int = typename Lanes<T>::Int;
  using Index = std::remove_reference_t<decltype(Int{}[0])>;
  using Sums = SmallSums<D, form, T>;
  constexpr int rows = Sums::rows, lanes = kLanesOf<T>;
  const T *panels = b.chunk->panels.get(), *terms = b.chunk->term.get(), *weights = b.chunk->weight.get();
  Int lane{};
  if constexpr (kMasked)
    for (int l = 0; l < lanes; ++l) lane[l] = l;
  Sums s;
  for (int run = 0; run < run_count; ++run)
    for (std::int64_t p = runs[run].begin; p < runs[run].end; p += kPanel<T>) {
      const T* y = panels + p * D;
      for (int at = 0; at < kPanel<T>; at += lanes) {
        V from[D], weight{};
#pragma GCC unroll 4
        for (int k = 0; k < D; ++k) from[k] = load(y + k * kPanel<T> + at);
        const V term = load(terms + p + at);
        if constexpr (Sums::shifted) weight = load(weights + p + at);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) {
          V off[D], square;
#pragma GCC unroll 4
          for (int k = 0; k < D; ++k) {
            off[k] = from[k] - all(q.x[r][k]);
            square = k == 0 ? V(off[k] * off[k]) : fma(off[k], off[k], square);
          }
          V t = fma(square, all(q.scale[r]), term);
          if constexpr (Sums::shifted) t -= all(q.top[r]);
          V w = exp2(t);
          if constexpr (kMasked) {
            const std::int64_t away = q.excluded[r] - p - at;
            const Index place = away >= 0 && away < lanes ? static_cast<Index>(away) : Index(-1);
            w = V(Int(w) & (lane != place));
          }
          if constexpr (Sums::shifted) w = w * weight;
          if constexpr (form == KdeForm::absolute) w = abs(w);
          s.sum[r] += w;
          if constexpr (Sums::square) s.squares[r] = fma(w, w, s.squares[r]);
          if constexpr (Sums::delta) s.distance[r] = fma(w, square, s.distance[r]);
          if constexpr (Sums::values)
#pragma GCC unroll 4
            for (int k = 0; k < D; ++k) s.value[r][k] = fma(w, off[k], s.value[r][k]);
        }
      }
    }
  return s;
}

// A batch of runs for every query of the block: the data stay in the first-level cache.
template <int D, KdeForm form, typename T>
__attribute__((noinline)) void small_batch(const KdeBlock<T, T>& b, const KdeRun* runs, int run_count) {
  using Sums = SmallSums<D, form, T>;
  constexpr int rows = Sums::rows;
  const T* queries = static_cast<const T*>(b.call->x);
  for (int first = 0; first < b.count; first += rows) {
    SmallQueries<D, form, T> q;
    bool masked = false;
    for (int r = 0; r < rows; ++r) {
      const int i = first + r < b.count ? first + r : b.count - 1;
      const std::int64_t query = b.queries ? b.queries[i] : b.query_begin + i;
      for (int k = 0; k < D; ++k) q.x[r][k] = queries[query * D + k];
      q.scale[r] = b.row_scale[i], q.top[r] = static_cast<T>(b.rows[i].top);
      q.excluded[r] = kde_excluded(b, query);
      if (q.excluded[r] >= 0)
        for (int run = 0; run < run_count; ++run)
          masked = masked || (q.excluded[r] >= runs[run].begin && q.excluded[r] < runs[run].end);
    }
    const Sums s =
        masked ? small_sums<D, form, true>(b, q, runs, run_count) : small_sums<D, form, false>(b, q, runs, run_count);
    for (int r = 0; r < rows && first + r < b.count; ++r) {
      KdeRow& row = b.rows[first + r];
      row.sum += add_lanes(s.sum[r]);
      if constexpr (Sums::square) row.square += add_lanes(s.squares[r]);
      if constexpr (Sums::delta) row.delta += add_lanes(s.distance[r]);
      if constexpr (Sums::values)
        for (int k = 0; k < D; ++k)
          b.sums[(first + r) * b.value_stride + k] += static_cast<T>(add_lanes(s.value[r][k]));
    }
  }
}

template <int D, KdeForm form, typename T> void small_block(const KdeBlock<T, T>& b) {
  constexpr std::int64_t most = kBatchPanels * kPanel<T>;
  KdeRun batch[kBatchPanels];
  int count = 0;
  std::int64_t room = most;
  for (std::int64_t i = 0; i < b.run_count; ++i)
    for (std::int64_t column = b.runs[i].begin; column < b.runs[i].end;) {
      const std::int64_t end = b.runs[i].end - column < room ? b.runs[i].end : column + room;
      batch[count++] = {column, end};
      room -= end - column, column = end;
      if (room == 0) small_batch<D, form>(b, batch, count), count = 0, room = most;
    }
  if (count) small_batch<D, form>(b, batch, count);
}

template <int D, typename T> void small_form(const KdeBlock<T, T>& b) {
  switch (b.form) {
    case KdeForm::sum:
      return small_block<D, KdeForm::sum>(b);
    case KdeForm::values:
      return small_block<D, KdeForm::values>(b);
    case KdeForm::moments:
      return small_block<D, KdeForm::moments>(b);
    case KdeForm::fixed:
      return small_block<D, KdeForm::fixed>(b);
    case KdeForm::absolute:
      return small_block<D, KdeForm::absolute>(b);
  }
}

}  // namespace

template <typename T> void kde_small(const KdeBlock<T, T>* b) {
  const FlushSubnormals flush;
  switch (b->call->d) {
    case 1:
      return small_form<1>(*b);
    case 2:
      return small_form<2>(*b);
    case 3:
      return small_form<3>(*b);
    default:
      return small_form<4>(*b);
  }
}
template void kde_small<float>(const KdeBlock<float, float>*);
template void kde_small<double>(const KdeBlock<double, double>*);

}  // namespace fokker::cpu::FK_ISA
