// What a density sum must know of its inputs first: centre, norms, largest bias, and what is not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "common/kde_sums.h"
#include "cpu/isa.h"
#include "cpu/kde_plan.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

class KdeScan {
 public:
  std::vector<double> centre;      // near the data's mean
  std::vector<double> query_norm;  // |x - centre|^2; nan or infinity: such a query
  double data_norm = 0;            // the largest |y - centre|^2, where asked for
  double top_bias = 0, least_bias = 0;
  double widest = 0;      // at least every finite |x - y|^2
  bool poisoned = false;  // a NaN in the data, bias or weight

  // A datum at infinity or without weight.
  bool dropped(std::int64_t j) const { return !dropped_.empty() && dropped_[static_cast<std::size_t>(j)]; }

  template <typename T> void run(const KdeSums& call, bool norms) {
    centre.assign(static_cast<std::size_t>(call.d), 0.0);
    scan_columns(call);
    scan_data(call, static_cast<const T*>(call.y));
    const auto norm = FK_PER_ISA_OVERLOAD(kde_centre, Norm<T>);
    query_norm.resize(static_cast<std::size_t>(call.n));
    const T *x = static_cast<const T*>(call.x), *y = static_cast<const T*>(call.y);
    parallel_for(call.n, 1 + 8192 / call.d, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        double square = 0;
        if (call.d > 4) square = norm(x + i * call.d, centre.data(), call.d, nullptr);
        else
          for (std::int64_t k = 0; k < call.d; ++k) {
            const double off = static_cast<double>(x[i * call.d + k]) - centre[static_cast<std::size_t>(k)];
            square += off * off;
          }
        query_norm[static_cast<std::size_t>(i)] = square;
      }
    });
    double most_query = 0;
    for (double t : query_norm) most_query = t < kHuge ? std::max(most_query, t) : most_query;
    widest = 2 * (widest + most_query);
    if (poisoned || !norms) return;
    double most[kBlocks] = {};
    const std::int64_t rows = (call.m + kBlocks - 1) / kBlocks;
    parallel_for(kBlocks, 1 + 8192 / (rows * call.d), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b)
        for (std::int64_t j = b * rows; j < std::min(call.m, (b + 1) * rows); ++j)
          if (!dropped(j)) most[b] = std::max(most[b], norm(y + j * call.d, centre.data(), call.d, nullptr));
    });
    for (double t : most) data_norm = std::max(data_norm, t);
  }

 private:
  static constexpr double kHuge = std::numeric_limits<double>::infinity();
  static constexpr std::int64_t kBlocks = 64;  // partial sums, added in order
  template <typename T> using Norm = double (*)(const T*, const double*, std::int64_t, T*);
  template <typename T> using AddRow = bool (*)(const T*, std::int64_t, double*, double*);

  template <typename T> using AddRows = bool (*)(const T*, std::int64_t, std::int64_t, double*, double*);

  void drop(const KdeSums& call, std::int64_t j) {
    if (dropped_.empty()) dropped_.assign(static_cast<std::size_t>(call.m), 0);
    dropped_[static_cast<std::size_t>(j)] = 1;
  }

  void scan_columns(const KdeSums& call) {
    const double infinity = std::numeric_limits<double>::infinity();
    if (call.bias) {
      top_bias = -infinity, least_bias = infinity;
      for (std::int64_t j = 0; j < call.m; ++j) {
        const double b = call.bias[j];
        if (b != b || b == infinity) poisoned = true;
        else if (b == -infinity) drop(call, j);
        else top_bias = std::max(top_bias, b), least_bias = std::min(least_bias, b);
      }
      if (top_bias < least_bias) top_bias = least_bias = 0;
    }
    if (call.weight)
      for (std::int64_t j = 0; j < call.m; ++j) {
        if (!(std::abs(call.weight[j]) < infinity)) poisoned = true;
        if (call.weight[j] == 0) drop(call, j);
      }
  }

  // Means over blocks of rows; a row that is not finite shows in its sum and is left out.
  template <typename T> void scan_data(const KdeSums& call, const T* y) {
    const std::int64_t d = call.d, rows = (call.m + kBlocks - 1) / kBlocks;
    struct Block {
      std::vector<double> sum, square;
      std::vector<std::int64_t> dropped;
      std::int64_t count = 0;
      bool nan = false;
    };
    const auto add = FK_PER_ISA_OVERLOAD(kde_add_row, AddRow<T>);
    const auto add_all = FK_PER_ISA_OVERLOAD(kde_add_rows, AddRows<T>);
    std::vector<Block> blocks(kBlocks);
    for (Block& b : blocks) b.sum.assign(static_cast<std::size_t>(d), 0.0), b.square = b.sum;
    parallel_for(kBlocks, 1 + 8192 / (rows * d), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t at = begin; at < end; ++at) {
        Block& b = blocks[static_cast<std::size_t>(at)];
        const std::int64_t first = at * rows, last = std::min(call.m, first + rows);
        if (d <= 4 && first < last && add_all(y + first * d, last - first, d, b.sum.data(), b.square.data())) {
          b.count = last - first;
          continue;
        }
        for (std::int64_t j = first; j < last; ++j) {
          const T* row = y + j * d;
          if (add(row, d, b.sum.data(), b.square.data())) ++b.count;
          else {
            for (std::int64_t k = 0; k < d; ++k) b.nan = b.nan || row[k] != row[k];
            b.dropped.push_back(j);
          }
        }
      }
    });
    std::int64_t count = 0;
    for (const Block& b : blocks) {
      count += b.count, poisoned = poisoned || b.nan;
      for (std::int64_t j : b.dropped) drop(call, j);
    }
    for (std::int64_t k = 0; count > 0 && k < d; ++k) {
      double sum = 0, square = 0;
      for (const Block& b : blocks)
        sum += b.sum[static_cast<std::size_t>(k)], square += b.square[static_cast<std::size_t>(k)];
      widest += 4 * square;
      const double n = static_cast<double>(count), mean = sum / n,
                   deviation = std::sqrt(std::max(square / n - mean * mean, 0.0));
      // On a grid of about the spread: then x - centre is exact for most float32 data, and no less centred.
      const double grid = deviation > 0 ? std::exp2(std::floor(std::log2(deviation)) - 1) : 0;
      const double rounded = grid > 0 ? std::rint(mean / grid) * grid : mean;
      centre[static_cast<std::size_t>(k)] = std::isfinite(rounded) ? rounded : 0.0;
    }
  }

  std::vector<std::uint8_t> dropped_;
};

}  // namespace fokker::cpu
