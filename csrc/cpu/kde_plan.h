// What the driver of the density sums (kde.cpp) hands to the kernels of one instruction set (kde.inc.h).
//
// Exponents are base 2. A chunk of the data is packed once: panels of `columns` data, coordinate by coordinate, and
// beside each datum the terms of its exponent. With R the inner product, the squared or the L1 distance,
//   one bandwidth:  t_ij = scale R + term_j                 (term_j = bias_j, for products - scale |y_j|^2 / 2)
//   several:        t_ij = (R + row_norm_i + norm_j) row_scale_i column_scale_j + bias_j
//   other kernels:  q_ij = R row_scale_i column_scale_j, exponent E(q) + bias_j
// The state of a query holds sums relative to 2^top, its `top` an integer at most 1 above the largest exponent so far,
// and below it by no more than sums in T bear.
// A kernel visits runs of the chunk's data: all of it, or what pruning (kde_prune.h) leaves.
#pragma once

#include <cstdint>

#include "common/kde_sums.h"
#include "cpu/aligned.h"

namespace fokker::cpu {

enum class Metric { product, square, absolute };

struct KdeShape {
  int rows;                  // queries of a micro-kernel
  int panel;                 // data of a panel
  int unit;                  // a chunk is padded to a multiple of this many data
  int tile;                  // data of a tile at most
  int lanes, panel_vectors;  // of T
};

struct KdeRow {
  double top = 0, sum = 0, square = 0, delta = 0, slope = 0;  // slope: the sum of what multiplies `values`
  bool fresh = true;                                          // no finite exponent yet
};

struct KdeRun {
  std::int64_t begin, end;  // of the chunk's data, multiples of a panel
};

// What a kernel of few coordinates sums beside the values.
enum class KdeForm { sum, values, moments, fixed, absolute };  // absolute: sum of the sizes of what fixed sums

// T: the type of exponentials and values; A: that of coordinates and distances.
template <typename T, typename A> struct KdeChunk {
  std::int64_t begin = 0, count = 0, padded = 0;
  AlignedArray<A> panels, term, norm, scale;
  AlignedArray<T> values;               // [value panel][datum][width]
  AlignedArray<T> bias, weight, slope;  // slope: 1 / h_j^2
};

template <typename T, typename A> struct KdeBlock {
  const KdeSums* call;
  Metric metric;
  bool general;  // bandwidths per query or per datum
  bool gaussian, fixed, square, delta, values, by_slope;
  bool exact_square;  // not for an error bound only, which may be larger
  bool offsets;       // values are y - x from the panels, of few coordinates
  bool signs;         // values are the signs of y - x (the gradient of laplace)
  double negligible;  // exponents this far below the top change nothing
  int block_length;   // coordinates summed at a time: 0 (all), 16 or 64
  A scale;
  std::int64_t width, value_stride;  // of a value panel and of a row of sums, elements
  const KdeChunk<T, A>* chunk;
  const KdeRun* runs;
  std::int64_t run_count;
  const std::int32_t* place;    // by datum, where it is packed; null: in the order of the call
  KdeForm form;                 // kde_small
  const double* centre;         // null: coordinates as they are
  const std::int64_t* queries;  // null: query_begin, query_begin + 1, ...
  std::int64_t query_begin;
  int count;
  const A *row_scale, *row_norm;  // by position in the block
  KdeRow* rows;
  T* sums;  // (count, value_stride)
};

// The place in the chunk of the datum that a query leaves out, perhaps outside of it; -1: none.
template <typename T, typename A> inline std::int64_t kde_excluded(const KdeBlock<T, A>& b, std::int64_t query) {
  if (b.call->exclude == INT64_MIN) return -1;
  const std::int64_t datum = query + b.call->exclude;
  if (datum < 0 || datum >= b.call->m) return -1;
  const std::int64_t at = (b.place ? b.place[datum] : datum) - b.chunk->begin;
  return at < 0 ? -1 : at;
}

// Boxes around tiles of the data, and a box of queries: what a tile can add to the sum of any query in it.
template <typename T> struct KdeBounds {
  math::Kernel kernel;
  std::int64_t d, count, stride;
  T power;               // also of a sum of weights times (squared distance)^power
  const T *low, *high;   // (d, stride)
  const T *top, *scale;  // log2 of a tile's weights at distance 0; its least scale of squared distances
  T query_low[3], query_high[3], query_scale;
  T* bound;  // base 2; -inf: nothing
};

// An expansion about the centre of a cell (kde_cells.h).
struct KdeCell {
  static constexpr int kOrder = 16;
  const float *y[2], *term;  // by place; readable 64 beyond the last run
  const KdeRun* runs;
  std::int64_t run_count;
  float centre[2], scale, beta;
  double* moments;  // (kOrder, kOrder)
};

// Rounding errors of a long sum grow with the length of its blocks.
inline int kde_block_length(Metric metric, std::int64_t d, bool exact) {
  if (metric == Metric::product && exact && d > 24 && d <= 128) return 16;
  return d > (metric == Metric::product ? 128 : 64) ? 64 : 0;
}

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                                \
  namespace fokker::cpu::isa {                                                                                         \
  template <typename T, typename A> KdeShape kde_shape(const KdeBlock<T, A>*);                                         \
  template <typename T, typename A> void kde_block(const KdeBlock<T, A>*);                                             \
  /* Up to four coordinates, gaussian, one bandwidth or one per query; rows[i].top is 0 but in the fixed form. */      \
  template <typename T> void kde_small(const KdeBlock<T, T>*);                                                         \
  void kde_moments(const KdeCell*);                                                                                    \
  void kde_expansion(const double* coefficients, const double* t0, const double* t1, std::int64_t count, double* f,    \
                     double* even, double* d0, double* d1);                                                            \
  /* Up to three coordinates. */                                                                                       \
  template <typename T> void kde_bounds(const KdeBounds<T>*);                                                          \
  template <typename T, typename A> double kde_centre(const T* row, const double* centre, std::int64_t d, A* to);      \
  template <typename T> bool kde_add_rows(const T* y, std::int64_t rows, std::int64_t d, double* sum, double* square); \
  template <typename T> bool kde_add_row(const T* row, std::int64_t d, double* sum, double* square);                   \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
