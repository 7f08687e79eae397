// One pass of the density sums over some queries: packs the data, splits the work over threads, merges and finishes.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kde_pack.h"
#include "cpu/kde_plan.h"
#include "cpu/kde_prune.h"
#include "cpu/kde_scan.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

// Working memory: packed data, sums of values, packed queries of a block.
constexpr std::int64_t kChunkBytes = 32 << 20, kSumBytes = 8 << 20, kGroupRows = 1 << 16, kQueryBytes = 1 << 20;

// One pass over some of the queries with exponentials in T and coordinates in A.
template <typename T, typename A> class KdePass {
 public:
  // exact_square: squares are a result. small: by kde_small. tiles: leave out what cannot count.
  KdePass(const KdeSums& call, const KdeScan& scan, Metric metric, bool exact_square, bool small = false,
          const KdeTiles<T>* tiles = nullptr)
      : call_(call), scan_(scan), small_(small), tiles_(tiles) {
    KdeBlock<T, A>& b = block_;
    b.call = &call;
    b.metric = metric;
    b.gaussian = call.kernel == math::Kernel::gaussian;
    b.general = call.bandwidth_kind != KdeSums::Bandwidth::one;
    b.fixed = call.shift != nullptr;
    b.exact_square = exact_square;
    b.square = call.square, b.delta = call.delta;
    b.block_length = kde_block_length(metric, call.d, call.highest && sizeof(A) == 4);
    b.values = call.values && call.weighting != KdeSums::Values::none;
    b.by_slope = call.weighting == KdeSums::Values::slope;
    b.signs = b.values && b.by_slope && call.kernel == math::Kernel::laplace;
    relative_ = b.by_slope || !call.v;  // the values are y - x_i
    b.offsets = b.values && relative_ && !b.signs && metric == Metric::square && call.d <= 4 && sizeof(T) == sizeof(A);
    b.form = b.fixed               ? KdeForm::fixed
             : b.square || b.delta ? KdeForm::moments
             : b.values            ? KdeForm::values
                                   : KdeForm::sum;
    b.negligible = (sizeof(T) == 4 ? 27 : 56) + std::log2(static_cast<double>(call.m));
    b.centre = metric == Metric::product ? scan.centre.data() : nullptr;
    b.place = tiles ? tiles->place.data() : nullptr;
    kernel_ = choose_kernel(small), centre_ = choose_centre(), shape_ = choose_shape()(nullptr);
    dv_ = relative_ ? call.d : call.dv;
    if (small) faint_bits_ = kde_faint_bits<T>(call);
    const bool sums = small ? b.form != KdeForm::sum : b.values;
    const std::int64_t vectors = sums ? ceil_div(dv_, shape_.lanes) : 0, wide = shape_.panel_vectors;
    b.value_stride = vectors * shape_.lanes;
    b.width = vectors ? ceil_div(vectors, ceil_div(vectors, wide)) * shape_.lanes : shape_.lanes;
    // The exponent's scale as the kernel has it, so that norms and products belong to the same bandwidth.
    if (call.bandwidth_kind == KdeSums::Bandwidth::one) {
      const double h = call.bandwidth[0];
      b.scale = static_cast<A>(metric == Metric::product ? kLog2E / (h * h) : -0.5 * kLog2E / (h * h));
    }
    pack_.emplace(block_, scan, shape_, small, tiles ? tiles->order.data() : nullptr);
  }

  // Rows `queries` (null: 0, 1, ...) of the call, n of them.
  void run(const std::int64_t* queries, std::int64_t n) {
    const std::int64_t coordinates = call_.d * static_cast<std::int64_t>(sizeof(A)),
                       value_bytes = block_.value_stride * static_cast<std::int64_t>(sizeof(T)),
                       column_bytes = coordinates + (small_ ? 2 * sizeof(A) : value_bytes + 48);
    const std::int64_t unit = tiles_ ? kTileData : shape_.unit;
    const std::int64_t columns = std::max<std::int64_t>(kChunkBytes / column_bytes / unit * unit, unit * 4);
    const std::int64_t chunks = ceil_div(call_.m, columns);
    const std::int64_t most_rows =
        std::max<std::int64_t>(kQueryBytes / coordinates / shape_.rows * shape_.rows, shape_.rows);
    const std::int64_t block_rows = tiles_ ? kBlockQueries
                                           : std::min<std::int64_t>(most_rows, n >= 8192   ? 256
                                                                               : n >= 4096 ? 128
                                                                                           : 64);
    const std::int64_t tiles = ceil_div(std::min(columns, call_.m), shape_.tile);
    const std::int64_t splits =
        tiles_ ? 1
               : std::min<std::int64_t>(ceil_div(32, ceil_div(n, block_rows)), std::max<std::int64_t>(tiles / 2, 1));
    std::int64_t group = kGroupRows;
    if (block_.value_stride)
      group = std::min<std::int64_t>(group, kSumBytes / (block_.value_stride * sizeof(T) * splits));
    group = std::max<std::int64_t>(group / block_rows, 1) * block_rows;
    for (std::int64_t first = 0; first < n; first += group) {
      const std::int64_t count = std::min(group, n - first);
      start(queries, first, count, splits);
      for (std::int64_t c = 0; c < chunks; ++c) {
        pack_->run(c * columns, std::min(columns, call_.m - c * columns));
        const KdeChunk<T, A>& chunk = pack_->chunk();
        const std::int64_t blocks = ceil_div(count, block_rows);
        const std::int64_t per_split = ceil_div(ceil_div(chunk.padded, splits), shape_.unit) * shape_.unit;
        parallel_for(blocks * splits, 1, [&](std::int64_t begin, std::int64_t end) {
          KdeVisits<T> visits;
          for (std::int64_t item = begin; item < end; ++item) {
            const std::int64_t at = item / splits * block_rows, split = item % splits;
            KdeBlock<T, A> b = block_;
            b.chunk = &chunk;
            b.queries = queries ? queries + first + at : nullptr;
            b.query_begin = first + at;
            b.count = static_cast<int>(std::min(block_rows, count - at));
            b.row_scale = row_scale_.get() + at, b.row_norm = row_norm_.get() + at;
            b.rows = rows_.data() + split * count + at;
            b.sums = sums_.get() + (split * count + at) * b.value_stride;
            if (tiles_ && queries) visit(b, visits, kPruneBits<T> + std::log2(static_cast<double>(chunks)));
            else {
              const KdeRun all{std::min(split * per_split, chunk.padded),
                               std::min((split + 1) * per_split, chunk.padded)};
              b.runs = &all, b.run_count = all.begin < all.end;
              kernel_(&b);
            }
          }
        });
      }
      parallel_for(count, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          for (std::int64_t s = 1; s < splits; ++s) merge(i, s * count + i);
          finish(i, queries ? queries[first + i] : first + i);
        }
      });
    }
  }

 private:
  using Kernel = void (*)(const KdeBlock<T, A>*);
  using Shape = KdeShape (*)(const KdeBlock<T, A>*);
  using Centre = double (*)(const T*, const double*, std::int64_t, A*);
  static Centre choose_centre() { return FK_PER_ISA_OVERLOAD(kde_centre, Centre); }
  static Kernel choose_kernel(bool small) {
    if constexpr (sizeof(T) == sizeof(A))
      if (small) return FK_PER_ISA(kde_small, T);
    return FK_PER_ISA_OVERLOAD(kde_block, Kernel);
  }
  static Shape choose_shape() { return FK_PER_ISA_OVERLOAD(kde_shape, Shape); }

  double inverse_square(double h) const { return cpu::inverse_square(call_, h); }

  // A block of queries against the tiles that count for it, nearest first; what is left out of this chunk is below
  // 2^-bits of every query's sum.
  void visit(KdeBlock<T, A>& b, KdeVisits<T>& visits, double bits) {
    KdeBounds<T> bounds;
    const std::int64_t tile = b.chunk->begin / kTileData, count = ceil_div(b.chunk->count, kTileData);
    if (!tiles_->bounds(b.queries, b.count, tile, count, bounds)) return;
    double ceiling = kInfinity;
    if (b.fixed) {  // where exponents less the top are about 0 at most
      ceiling = -kInfinity;
      for (int r = 0; r < b.count; ++r) ceiling = std::max(ceiling, b.rows[r].top);
      ceiling += std::log2(kTileData * tiles_->most_weight) + 8;
    }
    visits.measure(bounds, ceiling);
    const auto sum = [&](const KdeBlock<T, A>& block, int from, int to) {
      const std::vector<KdeRun>& runs = visits.runs(from, to, block.chunk->padded);
      KdeBlock<T, A> some = block;
      some.runs = runs.data(), some.run_count = static_cast<std::int64_t>(runs.size());
      kernel_(&some);
    };
    constexpr int near = KdeVisits<T>::kNear;
    if (b.fixed) {  // weights of any sign: what counts is the sum of their sizes
      KdeRow rows[kBlockQueries];
      std::copy(b.rows, b.rows + b.count, rows);
      KdeBlock<T, A> sizes = b;
      sizes.form = KdeForm::absolute, sizes.rows = rows;
      for (KdeRow& row : rows) row.sum = 0;
      sum(sizes, 0, 2);
      return sum(b, 0, visits.cut(least(b, rows) - bits));
    }
    sum(b, 0, near);
    sum(b, near, visits.cut(least(b, b.rows) - bits));
  }

  // log2 of the least sum of a block's finite queries; not below what would be done again or is lost in any case.
  double least(const KdeBlock<T, A>& b, const KdeRow* rows) const {
    double least = kInfinity;
    for (int r = 0; r < b.count; ++r) {
      if (!tiles_->finite(b.queries[r])) continue;
      const double floor = small_ ? rows[r].top - faint_bits_ : -kInfinity;
      const double log = rows[r].sum > 0 ? std::max(rows[r].top + std::log2(rows[r].sum), floor) : floor;
      if (!(log >= least)) least = log;
    }
    return least;
  }

  // The part of the exponent (base 2) that the product form leaves to the end.
  double rest(std::int64_t i) const {
    if (block_.metric != Metric::product || call_.bandwidth_kind == KdeSums::Bandwidth::per_datum) return 0;
    const double scale = call_.bandwidth_kind == KdeSums::Bandwidth::one ? static_cast<double>(block_.scale)
                                                                         : static_cast<double>(row_scale_[i]);
    return -0.5 * scale * norms_[i];
  }

  void start(const std::int64_t* queries, std::int64_t first, std::int64_t count, std::int64_t splits) {
    KdeRow row;
    row.fresh = !small_;
    rows_.assign(static_cast<std::size_t>(count * splits), row);
    row_scale_.resize(count), row_norm_.resize(count);
    sums_.resize(std::max<std::int64_t>(count * splits * block_.value_stride, 1));
    std::fill(sums_.get(), sums_.get() + count * splits * block_.value_stride, T(0));
    parts_.assign(block_.fixed ? count : 0, 0.0);
    norms_.assign(count, 0.0);
    const T* x = static_cast<const T*>(call_.x);
    parallel_for(block_.centre ? count : 0, 1 + 4096 / call_.d, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        norms_[i] = centre_(x + (queries ? queries[first + i] : first + i) * call_.d, block_.centre, call_.d, nullptr);
    });
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t query = queries ? queries[first + i] : first + i;
      const double h = call_.bandwidth_kind == KdeSums::Bandwidth::per_query ? call_.bandwidth[query] : 1.0;
      double scale = inverse_square(h), norm = 0;
      if (block_.gaussian && call_.bandwidth_kind == KdeSums::Bandwidth::one) scale = static_cast<double>(block_.scale);
      else if (block_.gaussian) {
        scale *= (block_.metric == Metric::product ? 1.0 : -0.5) * kLog2E;
        if (call_.bandwidth_kind == KdeSums::Bandwidth::per_datum && block_.metric == Metric::product)
          norm = -0.5 * norms_[i];
      } else if (call_.bandwidth_kind == KdeSums::Bandwidth::one) scale = inverse_square(call_.bandwidth[0]);
      row_scale_[i] = static_cast<A>(scale), row_norm_[i] = static_cast<A>(norm);
      if (block_.fixed) {
        const double top = (call_.shift[query] - scan_.top_bias) * kLog2E - rest(i);
        const double whole = std::isfinite(top) ? std::rint(top) : 0;
        parts_[i] = std::exp2(whole - top);
        for (std::int64_t s = 0; s < splits; ++s) rows_[s * count + i].top = whole;
      }
    }
  }

  void merge(std::int64_t to, std::int64_t from) {
    KdeRow &a = rows_[to], &b = rows_[from];
    const std::int64_t stride = block_.value_stride;
    T *va = sums_.get() + to * stride, *vb = sums_.get() + from * stride;
    if (!block_.fixed) {
      if (b.fresh) return;
      if (a.fresh) {
        a = b;
        std::copy(vb, vb + stride, va);
        return;
      }
      const double top = std::max(a.top, b.top);
      lower(a, top - a.top, va), lower(b, top - b.top, vb);
    }
    a.sum += b.sum, a.square += b.square, a.delta += b.delta, a.slope += b.slope;
    for (std::int64_t k = 0; k < stride; ++k) va[k] += vb[k];
  }
  void lower(KdeRow& row, double up, T* sums) const {
    if (up == 0) return;
    const double factor = std::exp2(-up);
    row.top += up;
    row.delta = (block_.gaussian ? row.delta - up * row.sum : row.delta) * factor;
    row.sum *= factor, row.slope *= factor, row.square *= factor * factor;
    for (std::int64_t k = 0; k < block_.value_stride; ++k) sums[k] *= static_cast<T>(factor);
  }

  void finish(std::int64_t i, std::int64_t query) {
    KdeRow row = rows_[i];
    const double norm = scan_.query_norm[query],
                 h = call_.bandwidth_kind == KdeSums::Bandwidth::one         ? call_.bandwidth[0]
                     : call_.bandwidth_kind == KdeSums::Bandwidth::per_query ? call_.bandwidth[query]
                                                                             : 1.0;
    const bool nan = norm != norm || scan_.poisoned || (block_.fixed && call_.shift[query] != call_.shift[query]);
    const bool empty =
        norm == kInfinity || (!block_.fixed && !(row.sum > 0)) || (block_.fixed && !std::isfinite(call_.shift[query]));
    const double left_out = nan || empty ? 0 : rest(i);
    double log_sum = kLn2 * (row.top + std::log2(row.sum) + left_out) + scan_.top_bias, factor = 1 / row.sum;
    double delta = row.delta, square = row.square * factor * factor;
    if (small_) delta *= inverse_square(h);
    else if (block_.gaussian) delta = -2 * kLn2 * (row.delta + (row.top + left_out) * row.sum);
    if (block_.fixed) factor = parts_[i], log_sum = row.sum * factor, square = row.square * factor * factor;
    if (nan) log_sum = square = delta = kNaN, factor = kNaN;
    else if (empty) log_sum = block_.fixed ? 0 : -kInfinity, square = delta = factor = 0;
    if (call_.log_sum) call_.log_sum[query] = log_sum;
    if (call_.square) call_.square[query] = square;
    if (call_.delta) call_.delta[query] = delta * factor;
    if (!block_.values) return;
    T* out = static_cast<T*>(call_.values) + query * dv_;
    const T *sums = sums_.get() + i * block_.value_stride, *x = static_cast<const T*>(call_.x) + query * call_.d;
    const double scale = factor * (block_.by_slope ? inverse_square(h) : 1.0);
    for (std::int64_t k = 0; k < dv_; ++k) {
      double value = static_cast<double>(sums[k]);
      if (relative_ && !block_.signs && !block_.offsets && !empty)
        value -= row.slope * (static_cast<double>(x[k]) - scan_.centre[k]);
      out[k] = static_cast<T>(nan ? kNaN : empty ? 0.0 : value * scale);
    }
  }

  const KdeSums& call_;
  const KdeScan& scan_;
  const bool small_;
  const KdeTiles<T>* const tiles_;
  KdeBlock<T, A> block_{};
  std::optional<KdePack<T, A>> pack_;
  KdeShape shape_{};
  Kernel kernel_;
  Centre centre_;
  bool relative_;
  double faint_bits_ = 0;  // of the small kernel
  std::int64_t dv_;
  std::vector<KdeRow> rows_;
  std::vector<double> norms_;  // |x|^2 as packed
  std::vector<double> parts_;  // what rounding the fixed top took off, as a factor
  AlignedArray<A> row_scale_, row_norm_;
  AlignedArray<T> sums_;
};

}  // namespace fokker::cpu
