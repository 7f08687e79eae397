// What the driver of the density sums (kde.cpp) hands to the kernels of one instruction set (kde.inc.h).
//
// Exponents are base 2. A chunk of the data is packed once: panels of `columns` data, coordinate by coordinate, and
// beside each datum the terms of its exponent. With R the inner product, the squared or the L1 distance,
//   one bandwidth:  t_ij = scale R + term_j                 (term_j = bias_j, for products - scale |y_j|^2 / 2)
//   several:        t_ij = (R + row_norm_i + norm_j) row_scale_i column_scale_j + bias_j
//   other kernels:  q_ij = R row_scale_i column_scale_j, exponent E(q) + bias_j
// The state of a query holds sums relative to 2^top, its `top` an integer within 8 of the largest exponent so far.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/kde_sums.h"

namespace fokker::cpu {

enum class Metric { product, square, absolute };

template <typename T> class AlignedArray {
 public:
  void resize(std::int64_t n) {
    if (n <= size_) return;
    data_.reset(static_cast<T*>(::operator new(static_cast<std::size_t>(n) * sizeof(T), std::align_val_t(64))));
    size_ = n;
  }
  T* get() const { return data_.get(); }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
  std::int64_t size_ = 0;
};

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
  bool signs;         // values are the signs of y - x (the gradient of laplace)
  double negligible;  // exponents this far below the top change nothing
  int block_length;   // coordinates summed at a time: 0 (all), 16 or 64
  A scale;
  std::int64_t width, value_stride;  // of a value panel and of a row of sums, elements
  const KdeChunk<T, A>* chunk;
  std::int64_t column_begin, column_end;  // of the chunk
  const double* centre;                   // null: coordinates as they are
  const std::int64_t* queries;            // null: query_begin, query_begin + 1, ...
  std::int64_t query_begin;
  int count;
  const A *row_scale, *row_norm;  // by position in the block
  KdeRow* rows;
  T* sums;  // (count, value_stride)
};

// Rounding errors of a long sum grow with the length of its blocks.
inline int kde_block_length(Metric metric, std::int64_t d, bool exact) {
  if (metric == Metric::product && exact && d > 24 && d <= 128) return 16;
  return d > (metric == Metric::product ? 128 : 64) ? 64 : 0;
}

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                           \
  namespace fokker::cpu::isa {                                                                                    \
  template <typename T, typename A> KdeShape kde_shape(const KdeBlock<T, A>*);                                    \
  template <typename T, typename A> void kde_block(const KdeBlock<T, A>*);                                        \
  /* Up to four coordinates, gaussian, one bandwidth or one per query; rows[i].top is 0. */                       \
  template <typename T> void kde_small(const KdeBlock<T, T>*);                                                    \
  template <typename T, typename A> double kde_centre(const T* row, const double* centre, std::int64_t d, A* to); \
  template <typename T> bool kde_add_row(const T* row, std::int64_t d, double* sum, double* square);              \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
