// Body of the density sums, compiled once per instruction set: a block of queries against a range of a packed chunk.
#include <algorithm>

#include "cpu/kde_cells.inc.h"
#include "cpu/kde_plan.h"
#include "cpu/kde_prepare.inc.h"
#include "cpu/kde_prune.inc.h"
#include "cpu/kde_row.inc.h"
#include "cpu/kde_small.inc.h"
#include "cpu/kde_tile.inc.h"
#include "math/elementary.h"

namespace fokker::cpu::FK_ISA {
namespace {

// Of data beside a tile, for a second-level cache that others use too: a megabyte or more where there is AVX-512. Sums
// of values are touched once a tile, so that long tiles pay.
constexpr std::int64_t kTileBytes = 448 << 10, kValueTileBytes = (kVectorBytes == 64 ? 900 : 448) << 10;

// Groups of kRows queries, coordinate by coordinate; the last group repeats the last query.
template <typename T, typename A> void pack_queries(const KdeBlock<T, A>& b, A* to) {
  constexpr std::int64_t length = 256;
  const std::int64_t d = b.call->d;
  const T* x = static_cast<const T*>(b.call->x);
  A rows[kRows][length];
  for (int g = 0; g < b.count; g += kRows)
    for (std::int64_t k = 0; k < d; k += length) {
      const std::int64_t count = std::min(length, d - k);
      for (int r = 0; r < kRows; ++r) {
        const int i = std::min(g + r, b.count - 1);
        kde_centre<T, A>(x + (b.queries ? b.queries[i] : b.query_begin + i) * d + k, b.centre ? b.centre + k : nullptr,
                         count, rows[r]);
      }
      A* out = to + g * d + k * kRows;
      for (std::int64_t i = 0; i < count; ++i)
        for (int r = 0; r < kRows; ++r) out[i * kRows + r] = rows[r][i];
    }
}

template <typename T, typename A> using Fill = void (*)(const KdeBlock<T, A>&, const A*, const A*, const A*, const A*,
                                                        std::int64_t, std::int64_t, T*, T*);
template <typename T, typename A> using Finish = bool (*)(const KdeBlock<T, A>&, T*, T, std::int64_t, std::int64_t,
                                                          std::int64_t, T, Factors<T>*, KdeRow&, T*);

template <Metric metric, Exponent exponent, typename T, typename A> Fill<T, A> by_length(const KdeBlock<T, A>& b) {
  if constexpr (metric == Metric::product && sizeof(A) == 4)
    if (b.block_length == 16) return &fill_tile<metric, exponent, 16, T, A>;
  return b.block_length ? &fill_tile<metric, exponent, 64, T, A> : &fill_tile<metric, exponent, 0, T, A>;
}
template <typename T, typename A> Fill<T, A> choose_fill(const KdeBlock<T, A>& b) {
  if constexpr (sizeof(T) == sizeof(A)) {
    if (b.metric == Metric::absolute) return by_length<Metric::absolute, Exponent::none, T, A>(b);
    if (!b.gaussian) return by_length<Metric::square, Exponent::none, T, A>(b);
  }
  if (b.metric == Metric::product)
    return b.general ? by_length<Metric::product, Exponent::several, T, A>(b)
                     : by_length<Metric::product, Exponent::one, T, A>(b);
  return b.general ? by_length<Metric::square, Exponent::several, T, A>(b)
                   : by_length<Metric::square, Exponent::one, T, A>(b);
}

template <typename T, typename A> Finish<T, A> choose_finish(math::Kernel kernel) {
  using K = math::Kernel;
  if constexpr (sizeof(T) == sizeof(A)) {
    switch (kernel) {
      case K::laplace:
        return &kernel_row<K::laplace, T, A>;
      case K::exponential:
        return &kernel_row<K::exponential, T, A>;
      case K::matern32:
        return &kernel_row<K::matern32, T, A>;
      case K::matern52:
        return &kernel_row<K::matern52, T, A>;
      case K::student_t:
        return &kernel_row<K::student_t, T, A>;
      case K::epanechnikov:
        return &kernel_row<K::epanechnikov, T, A>;
      case K::tophat:
        return &kernel_row<K::tophat, T, A>;
      case K::linear:
        return &kernel_row<K::linear, T, A>;
      case K::cosine:
        return &kernel_row<K::cosine, T, A>;
      default:
        break;
    }
  }
  return &gaussian_row<T, A>;
}

template <typename T, typename A>
using SumTile = void (*)(const KdeBlock<T, A>&, const A*, const A*, std::int64_t, std::int64_t, T*, double*, double*);

// sum_tile for tops that differ and for a shared one; null where more is wanted than it gives, or powers of two wrap
// around instead of overflowing.
template <typename T, typename A> struct SumTiles {
  SumTile<T, A> each = nullptr, shared = nullptr;
};
template <bool kWeights, typename T> SumTiles<T, T> sum_tiles(const KdeBlock<T, T>& b) {
  if constexpr (sizeof(T) == 4)
    if (b.block_length == 16) return {&sum_tile<16, false, kWeights, T>, &sum_tile<16, true, kWeights, T>};
  if (b.block_length) return {&sum_tile<64, false, kWeights, T>, &sum_tile<64, true, kWeights, T>};
  return {&sum_tile<0, false, kWeights, T>, &sum_tile<0, true, kWeights, T>};
}
template <typename T, typename A> SumTiles<T, A> choose_sum(const KdeBlock<T, A>& b) {
  if constexpr (sizeof(T) == sizeof(A) && kVectorBytes == 64) {
    if (b.metric != Metric::product || b.general || b.fixed || b.delta) return {};
    return b.values ? sum_tiles<true>(b) : sum_tiles<false>(b);
  }
  return {};
}

template <typename T, typename A> struct Workspace {
  alignas(64) T tile[kRows * kTileStride<T>] = {};
  Factors<T> factors;
};

// The place of the datum that query i leaves out, from `column` on; any place outside the tile: none.
template <typename T, typename A> std::int64_t excluded(const KdeBlock<T, A>& b, int i, std::int64_t column) {
  const std::int64_t at = kde_excluded(b, b.queries ? b.queries[i] : b.query_begin + i);
  return at < 0 ? -1 : at - column;
}
template <typename T, typename A> void leave_out(const KdeBlock<T, A>& b, std::int64_t column, std::int64_t count,
                                                 int first, int rows, T* tile, T* most) {
  if (b.call->exclude == INT64_MIN) return;
  for (int r = 0; r < rows; ++r) {
    const std::int64_t j = excluded(b, first + r, column);
    T* row = tile + r * kTileStride<T>;
    if (j >= 0 && j < count) row[j] = -math::infinity<T>(), most[r] = *std::max_element(row, row + count);
  }
}

// Sums of a group of queries, all with a top, by sum_tile; false, with nothing added, where a datum is left out or a
// sum overflows.
template <typename T, typename A> bool add_tile(const KdeBlock<T, A>& b, const SumTiles<T, A>& sum, const A* x, A* top,
                                                std::int64_t column, std::int64_t count, int first, int rows, T* tile) {
  for (int r = 0; r < rows; ++r) {
    const std::int64_t j = excluded(b, first + r, column);
    if (j >= 0 && j < count) return false;
  }
  KdeRow* state = b.rows + first;
  for (;;) {
    double high = state[0].top, low = high;
    for (int r = 0; r < rows; ++r) high = std::max(high, state[r].top), low = std::min(low, state[r].top);
    const bool shared = !b.exact_square && high - low < kLevel;
    const double common = std::max(std::abs(high), std::abs(low)) < kLevel ? 0 : high;  // 0: term - top does not round
    A level[kRows];
    std::fill(level, level + kRows, static_cast<A>(common));
    double sums[kRows], squares[kRows];
    (shared ? sum.shared : sum.each)(b, x, shared ? level : top, column, count, tile, sums, squares);
    bool raised = false;
    for (int r = 0; r < rows; ++r) {
      if (sums[r] < kMostSum) continue;
      if (!(sums[r] < math::infinity<double>())) return false;
      const double up =
          std::ceil(std::log2(sums[r] / static_cast<double>(count))) + (shared ? common - state[r].top : 0);
      raise_top(state[r], up, true, b.value_stride, b.sums + (first + r) * b.value_stride);
      top[r] = static_cast<A>(state[r].top), raised = true;
    }
    if (raised) continue;
    T factor[kRows] = {};
    for (int r = 0; r < rows; ++r) {
      KdeRow& row = state[r];
      const double up = shared ? math::detail::pow2(common - row.top) : 1;
      row.sum += up * sums[r], row.slope += up * sums[r], row.square += up * up * squares[r];
      row.fresh = false, factor[r] = static_cast<T>(up);
    }
    if (b.values) add_values(b, tile, column, count, rows, factor, b.sums + first * b.value_stride);
    return true;
  }
}

// Tops from the first panel: where exponents are rounded to a narrower T they must be small, and sum_tile needs them.
// False: not every query has one.
template <typename T, typename A> bool find_tops(const KdeBlock<T, A>& b, Fill<T, A> fill, const A* x,
                                                 const A* row_scale, const A* row_norm, std::int64_t column, int first,
                                                 int rows, KdeRow* state, A* top, T* tile) {
  T most[kRows];
  fill(b, x, top, row_scale, row_norm, column, kPanel<A>, tile, most);
  leave_out(b, column, kPanel<A>, first, rows, tile, most);
  bool all = true;
  for (int r = 0; r < rows; ++r) {
    if (!state[r].fresh) continue;
    if (!(most[r] > -math::infinity<T>())) {
      all = false;
      continue;
    }
    state[r].top = std::ceil(static_cast<double>(most[r])) + static_cast<double>(top[r]);
    top[r] = static_cast<A>(state[r].top);
  }
  return all;
}

}  // namespace

template <typename T, typename A> KdeShape kde_shape(const KdeBlock<T, A>*) {
  return {kRows, kPanel<A>, kPanel<T>, kTile<T>, kLanesOf<T>, kVectors};
}

template <typename T, typename A> void kde_block(const KdeBlock<T, A>* block) {
  const KdeBlock<T, A>& b = *block;
  const std::int64_t d = b.call->d, groups = (b.count + kRows - 1) / kRows;
  constexpr bool narrow = sizeof(T) < sizeof(A);
  const bool raw = !b.gaussian;
  const Fill<T, A> fill = choose_fill<T, A>(b);
  const SumTiles<T, A> sum = choose_sum(b);
  const Finish<T, A> finish = choose_finish<T, A>(b.call->kernel);
  const FlushSubnormals flush;
  AlignedArray<A> x;
  x.resize(groups * kRows * d);
  pack_queries(b, x.get());
  const std::unique_ptr<Workspace<T, A>> work(new Workspace<T, A>);
  T *tile = work->tile, ones[kRows];
  std::fill(ones, ones + kRows, T(1));
  AlignedArray<T> query;  // padded, for the signs of y - x
  if (b.signs) {
    query.resize(b.value_stride);
    std::fill(query.get(), query.get() + b.value_stride, T(0));
  }

  const std::int64_t bytes =
      d * static_cast<std::int64_t>(sizeof(A)) + (b.values ? b.value_stride * static_cast<std::int64_t>(sizeof(T)) : 0);
  const std::int64_t step = std::clamp<std::int64_t>((b.values ? kValueTileBytes : kTileBytes) / (bytes * kPanel<T>), 1,
                                                     kTile<T> / kPanel<T>) *
                            kPanel<T>;
  for (std::int64_t run = 0; run < b.run_count; ++run)
    for (std::int64_t column = b.runs[run].begin; column < b.runs[run].end; column += step) {
      const std::int64_t count = std::min(step, b.runs[run].end - column);
      for (std::int64_t g = 0; g < groups; ++g) {
        const int first = static_cast<int>(g) * kRows, rows = std::min(kRows, b.count - first);
        const A* xg = x.get() + first * d;
        A top[kRows] = {}, row_scale[kRows] = {}, row_norm[kRows] = {};
        bool fresh = false;
        for (int r = 0; r < rows; ++r) {
          top[r] = static_cast<A>(b.rows[first + r].top);
          row_scale[r] = b.row_scale[first + r], row_norm[r] = b.row_norm[first + r];
          fresh = fresh || b.rows[first + r].fresh;
        }
        if (fresh && !b.fixed && (narrow || sum.each))
          fresh = !find_tops(b, fill, xg, row_scale, row_norm, column, first, rows, b.rows + first, top, tile);
        if (sum.each && !fresh && add_tile(b, sum, xg, top, column, count, first, rows, tile)) continue;
        T most[kRows];
        const auto refill = [&] {
          fill(b, xg, top, row_scale, row_norm, column, count, tile, most);
          if (!raw) leave_out(b, column, count, first, rows, tile, most);
        };
        refill();
        // Exponents far from the top were rounded as the differences that they are: once more, from a top nearby.
        const auto raised = [&] {
          bool any = false;
          for (int r = 0; r < rows; ++r) {
            KdeRow& row = b.rows[first + r];
            const bool below = narrow && row.fresh && most[r] < -kFarAbove<T> && most[r] > -math::infinity<T>();
            if (!(most[r] > kFarAbove<T>) && !below) continue;
            const double up = to_nearby<A>(row.top, most[r]);
            if (row.fresh) row.top += up;
            else raise_top(row, up, true, b.value_stride, b.sums + (first + r) * b.value_stride);
            top[r] = static_cast<A>(row.top), any = true;
          }
          return any;
        };
        while (!raw && !b.fixed && raised()) refill();
        bool any = false;
        for (int r = 0; r < rows; ++r) {
          const int i = first + r;
          T* w = tile + r * kTileStride<T>;
          T* sums = b.sums + i * b.value_stride;
          const bool counts = finish(b, w, most[r], column, count, raw ? excluded(b, i, column) : -1,
                                     static_cast<T>(row_scale[r]), &work->factors, b.rows[i], sums);
          any = any || counts;
          if (b.signs && counts) {
            const T* from = static_cast<const T*>(b.call->x) + (b.queries ? b.queries[i] : b.query_begin + i) * d;
            std::copy(from, from + d, query.get());
            add_signs(b, w, column, count, query.get(), sums);
          }
        }
        if (!b.values || b.signs || !any) continue;
        T* sums = b.sums + first * b.value_stride;
        if constexpr (!narrow)
          if (b.offsets) {
            add_offsets(b, xg, tile, column, count, rows, sums);
            continue;
          }
        add_values(b, tile, column, count, rows, ones, sums);
      }
    }
}

#define FK_INSTANTIATE(T, A)                                \
  template KdeShape kde_shape<T, A>(const KdeBlock<T, A>*); \
  template void kde_block<T, A>(const KdeBlock<T, A>*);     \
  template double kde_centre<T, A>(const T*, const double*, std::int64_t, A*);
FK_INSTANTIATE(float, float)
FK_INSTANTIATE(double, double)
FK_INSTANTIATE(float, double)
#undef FK_INSTANTIATE
template bool kde_add_rows<float>(const float*, std::int64_t, std::int64_t, double*, double*);
template bool kde_add_rows<double>(const double*, std::int64_t, std::int64_t, double*, double*);
template bool kde_add_row<float>(const float*, std::int64_t, double*, double*);
template bool kde_add_row<double>(const double*, std::int64_t, double*, double*);

}  // namespace fokker::cpu::FK_ISA
