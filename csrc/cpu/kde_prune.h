// Pruning: which tiles of the data a block of queries needs, for up to three coordinates.
//
// Data are put in tiles and queries in blocks, both compact, with a box around each. The tiles nearest to a block are
// summed first; what they give every query bounds its sum from below, and the distances of the boxes bound from above
// what a tile can add. All tiles are left out that together cannot change the sum, nor the values relative to the
// query, nor the moments, by more than 2^-27 (float32) or 2^-56 (float64) of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/kde_sums.h"
#include "cpu/isa.h"
#include "cpu/kde_order.h"
#include "cpu/kde_pack.h"
#include "cpu/kde_plan.h"
#include "cpu/kde_scan.h"

namespace fokker::cpu {

constexpr std::int64_t kTileData = 192, kBlockQueries = 32;  // a multiple of every panel; 4 register tiles at least
template <typename T> constexpr double kPruneBits = sizeof(T) == 4 ? 27 : 56;

// The data's order, boxes of its tiles, and the queries' order.
template <typename T> class KdeTiles {
 public:
  std::vector<std::int32_t> order, place;  // of data: by place the datum, by datum the place
  std::vector<std::int64_t> queries;       // in order, those that are not finite last
  std::int64_t count = 0;
  double most_weight = 0;

  KdeTiles(const KdeSums& call, const KdeScan& scan) : call_(call), scan_(scan) {
    const T *x = static_cast<const T*>(call.x), *y = static_cast<const T*>(call.y);
    const auto whole = [&](std::int64_t rows, auto&& use) {
      std::vector<std::int32_t> list, rest;
      for (std::int64_t i = 0; i < rows; ++i) (use(i) ? list : rest).push_back(static_cast<std::int32_t>(i));
      return std::pair(std::move(list), std::move(rest));
    };
    const auto used = [&](std::int64_t j) { return !scan.dropped(j); };
    const auto finite = [&](std::int64_t i) { return this->finite(i); };
    auto [data, lost] = whole(call.m, used);
    auto [asked, odd] = whole(call.n, finite);
    const bool same = x == y && data == asked;
    order_compactly(y, call.d, kTileData, same ? kBlockQueries : kTileData, data);
    if (same) asked = data;
    else order_compactly(x, call.d, kBlockQueries, kBlockQueries, asked);
    queries.assign(asked.begin(), asked.end());
    queries.insert(queries.end(), odd.begin(), odd.end());
    used_ = static_cast<std::int64_t>(data.size());
    order = std::move(data);
    order.insert(order.end(), lost.begin(), lost.end());
    place.resize(order.size());
    for (std::size_t j = 0; j < order.size(); ++j)
      place[static_cast<std::size_t>(order[j])] = static_cast<std::int32_t>(j);
    box_data();
  }

  bool finite(std::int64_t i) const { return std::isfinite(scan_.query_norm[static_cast<std::size_t>(i)]); }

  // Of the tiles from `first` on, `n` of them, for some queries; false: none of these is finite.
  bool bounds(const std::int64_t* list, int queries_count, std::int64_t first, std::int64_t n, KdeBounds<T>& b) const {
    const T* x = static_cast<const T*>(call_.x);
    bool any = false;
    double scale = std::numeric_limits<double>::infinity();
    for (int k = 0; k < 3; ++k) b.query_low[k] = std::numeric_limits<T>::max(), b.query_high[k] = -b.query_low[k];
    for (int r = 0; r < queries_count; ++r) {
      if (!finite(list[r])) continue;
      any = true;
      for (std::int64_t k = 0; k < call_.d; ++k) {
        const T c = x[list[r] * call_.d + k];
        b.query_low[k] = std::min(b.query_low[k], c), b.query_high[k] = std::max(b.query_high[k], c);
      }
      if (call_.bandwidth_kind == KdeSums::Bandwidth::per_query)
        scale = std::min(scale, inverse_square(call_, call_.bandwidth[list[r]]));
    }
    if (call_.bandwidth_kind == KdeSums::Bandwidth::one) scale = inverse_square(call_, call_.bandwidth[0]);
    if (call_.bandwidth_kind == KdeSums::Bandwidth::per_datum) scale = 1;
    b.kernel = call_.kernel, b.d = call_.d, b.count = n, b.stride = stride_;
    b.power = call_.delta                                                                ? T(1)
              : call_.values && !(call_.weighting == KdeSums::Values::weight && call_.v) ? T(0.5)
                                                                                         : T(0);
    b.low = low_.get() + first, b.high = high_.get() + first, b.top = top_.get() + first,
    b.scale = scale_.get() + first;
    b.query_scale = static_cast<T>(scale);
    return any;
  }

 private:
  void box_data() {
    const T* y = static_cast<const T*>(call_.y);
    const std::int64_t d = call_.d;
    const bool per_datum = call_.bandwidth_kind == KdeSums::Bandwidth::per_datum;
    count = (call_.m + kTileData - 1) / kTileData;
    stride_ = (count + 15) / 16 * 16;
    low_.resize(d * stride_), high_.resize(d * stride_), top_.resize(stride_), scale_.resize(stride_);
    // Where values are weighed by 1 / h_j^2, tiles of small h_j add that much more to them.
    const double widest = per_datum && call_.weighting == KdeSums::Values::slope
                              ? inverse_square(call_, *std::max_element(call_.bandwidth, call_.bandwidth + call_.m))
                              : kInfinity;
    parallel_for(stride_, 16, [&](std::int64_t first, std::int64_t last) {
      std::vector<double> exponents(kTileData);
      for (std::int64_t t = first; t < last; ++t) {
        T low[3] = {}, high[3] = {};
        double top = -kInfinity, sum = 0, least = kInfinity, most = 0;
        const std::int64_t begin = t * kTileData, end = std::min(begin + kTileData, used_);
        for (std::int64_t at = begin; at < end; ++at) {
          const std::int64_t j = order[static_cast<std::size_t>(at)];
          for (std::int64_t k = 0; k < d; ++k) {
            const T c = y[j * d + k];
            low[k] = at == begin ? c : std::min(low[k], c), high[k] = at == begin ? c : std::max(high[k], c);
          }
          double& exponent = exponents[static_cast<std::size_t>(at - begin)];
          exponent = call_.bias ? (call_.bias[j] - scan_.top_bias) * kLog2E : 0;
          if (call_.weight) exponent += std::log2(std::abs(call_.weight[j]));
          top = std::max(top, exponent);
          if (!per_datum) continue;
          const double scale = inverse_square(call_, call_.bandwidth[j]);
          least = std::min(least, scale), most = std::max(most, scale);
        }
        for (std::int64_t at = begin; at < end; ++at)
          sum += std::exp2(exponents[static_cast<std::size_t>(at - begin)] - top);
        for (std::int64_t k = 0; k < d; ++k) low_[k * stride_ + t] = low[k], high_[k * stride_ + t] = high[k];
        const double slope = std::log2(std::max(most / widest, 1.0));
        top_[t] = begin < end ? static_cast<T>(top + std::log2(sum) + slope) : -std::numeric_limits<T>::infinity();
        scale_[t] = static_cast<T>(per_datum ? least : 1.0);
      }
    });
    if (call_.weight)
      for (std::int64_t j = 0; j < call_.m; ++j) most_weight = std::max(most_weight, std::abs(call_.weight[j]));
    else most_weight = 1;
  }

  const KdeSums& call_;
  const KdeScan& scan_;
  std::int64_t used_ = 0, stride_ = 0;
  AlignedArray<T> low_, high_, top_, scale_;
};

// The tiles of a chunk by what they can add, in steps of a bit below the most.
template <typename T> class KdeVisits {
 public:
  static constexpr int kNear = 8, kBeyond = 254, kNothing = 255;

  // ceiling: no tile adds more than 2^this.
  void measure(KdeBounds<T>& b, double ceiling) {
    bound_.resize(static_cast<std::size_t>(b.count)), bin_.resize(static_cast<std::size_t>(b.count));
    b.bound = bound_.data();
    FK_PER_ISA(kde_bounds, T)(&b);
    const bool compact = math::is_compact(b.kernel);
    top_ = -std::numeric_limits<T>::infinity();
    for (T& t : bound_) t = std::min(t, static_cast<T>(ceiling)), top_ = std::max(top_, t);
    std::fill(counts_, counts_ + 256, 0);
    for (std::size_t t = 0; t < bound_.size(); ++t) {
      const T below = top_ - bound_[t];
      const int bin = bound_[t] == -std::numeric_limits<T>::infinity() ? kNothing
                      : below >= T(kBeyond)                            ? kBeyond
                      : below > T(0)                                   ? static_cast<int>(below)
                                                                       : 0;
      bin_[t] = static_cast<std::uint8_t>(compact && bin != kNothing ? 0 : bin);
      ++counts_[bin_[t]];
    }
  }

  // The first bin from which on all that is left is below 2^`least`.
  int cut(double least) const {
    double sum = 0, size = std::ldexp(1.0, -kBeyond), limit = std::exp2(least - static_cast<double>(top_));
    int bin = kNothing;
    for (; bin > kNear && limit > 0; --bin, size *= 2) {
      sum += static_cast<double>(counts_[bin - 1]) * size;
      if (!(sum <= limit)) break;
    }
    return bin;
  }

  // The data of the tiles in bins from `from` to before `to`.
  const std::vector<KdeRun>& runs(int from, int to, std::int64_t padded) {
    runs_.clear();
    for (std::size_t t = 0; t < bin_.size(); ++t) {
      if (bin_[t] < from || bin_[t] >= to) continue;
      const std::int64_t begin = static_cast<std::int64_t>(t) * kTileData, end = std::min(begin + kTileData, padded);
      if (!runs_.empty() && runs_.back().end == begin) runs_.back().end = end;
      else if (begin < end) runs_.push_back({begin, end});
    }
    return runs_;
  }

 private:
  std::vector<T> bound_;
  std::vector<std::uint8_t> bin_;
  std::vector<KdeRun> runs_;
  T top_ = 0;
  std::int64_t counts_[256];
};

}  // namespace fokker::cpu
