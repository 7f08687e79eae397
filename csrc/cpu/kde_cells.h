// Density sums in one and two dimensions with many queries within a bandwidth: one expansion for each cell of them.
//
// About the centre c of a cell of side 2 rho = h, with z = y - c, xi = x - c, q = rho z / h^2, t = xi / rho in [-1, 1]:
//   sum_j w_j e^{-|x - y_j|^2 / 2h^2} = e^{-|xi|^2 / 2h^2} sum_ab t0^a t1^b / (a! b!) sum_j w_j e^{-|z_j|^2 / 2h^2}
//   q0_j^a q1_j^b
// (Greengard and Strain 1991, The fast Gauss transform, with moments in place of Hermite functions). Sixteen powers
// leave out less than 2^-35 of all weights (max over u of e^{-u^2/2 + u/2} (u/2)^16 / 16!). A query is taken from its
// expansion where its sum is not small beside all weights, nor beside its terms: there float32 rounds no worse than the
// direct sum does. The others, and those of sparse cells, are left to the direct sum.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/kde_sums.h"
#include "cpu/aligned.h"
#include "cpu/isa.h"
#include "cpu/kde_order.h"
#include "cpu/kde_pack.h"
#include "cpu/kde_plan.h"
#include "cpu/kde_scan.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

class KdeCells {
 public:
  static bool serves(const KdeSums& call) {
    constexpr std::int64_t least = 1024, most = std::int64_t(1) << 31, pairs = 16'000'000;
    const bool relative = call.weighting == KdeSums::Values::slope || !call.v;
    return call.kernel == math::Kernel::gaussian && call.d <= 2 && call.bandwidth_kind == KdeSums::Bandwidth::one &&
           call.bandwidth[0] > 1e-15 && call.bandwidth[0] < 1e15 && !call.shift && !call.square && !call.delta &&
           call.exclude == INT64_MIN && (call.weighting == KdeSums::Values::none || !call.values || relative) &&
           std::min(call.n, call.m) >= least && std::max(call.n, call.m) < most && call.n * call.m >= pairs &&
           active_isa() != Isa::baseline;
  }

  explicit KdeCells(const KdeSums& call) : call_(call), x_(static_cast<const float*>(call.x)) {
    for (std::int64_t k = 0; k < call.d; ++k) find_range(k);
    side_ = call.bandwidth[0];
    for (std::int64_t k = 0; k < call.d; ++k) {
      const double cells = std::floor((high_[k] - low_[k]) / side_) + 1;
      if (!(cells <= (call.d == 1 ? 1 << kKeyBits : 1 << (kKeyBits / 2)))) return;
      size_[k] = static_cast<std::int64_t>(cells);
      low_[k] = 0.5 * (low_[k] + high_[k] - cells * side_);  // a single cell is about the queries' middle
    }
    if (size_[0] * size_[1] > 4 * call.n) return;
    if (seems_crowded()) find_cells();
  }

  // Most queries are in cells with so many of them that an expansion costs less than their pairs.
  bool pays() const { return 2 * crowded_ >= call_.n; }

  // The queries that are left.
  std::vector<std::int64_t> run(const KdeScan& scan) {
    place_data(scan);
    const std::int64_t cells = static_cast<std::int64_t>(cells_.size());
    std::vector<std::uint8_t> done(static_cast<std::size_t>(call_.n), 0);
    std::atomic<std::int64_t> next{0};  // cells cost differently: a thread takes the next one
    parallel_for(cells, 1, [&](std::int64_t, std::int64_t) {
      Work work;
      for (std::int64_t i; (i = next++) < cells;) expand(cells_[static_cast<std::size_t>(i)], scan, work, done.data());
    });
    std::vector<std::int64_t> rest;
    for (std::int64_t i = 0; i < call_.n; ++i)
      if (!done[static_cast<std::size_t>(i)]) rest.push_back(i);
    return rest;
  }

 private:
  static constexpr int kOrder = KdeCell::kOrder;
  static constexpr std::int64_t kReach = 8, kPadding = 64;  // cells; beyond, weights are below 2^-46 (e^-32)
  static constexpr std::int64_t kSample = 256;              // of the queries
  static constexpr double kLeastShare = 0x1p-12;            // of all weights, so that what is left out cannot count
  static constexpr double kMostTerms = 16;                  // the sizes of the terms beside their sum

  struct Cell {
    std::int64_t begin, end;  // of queries_
    std::uint32_t key;
  };
  struct Work {
    std::vector<KdeRun> runs;
    std::vector<double> t[2], f, even, slope[2];
    alignas(64) double moments[kOrder * kOrder];
  };

  std::uint32_t key(const float* p) const {
    std::int64_t at[2] = {0, 0};
    for (std::int64_t k = 0; k < call_.d; ++k) {
      const double place = (static_cast<double>(p[k]) - low_[k]) / side_;
      at[k] = place > 0 ? static_cast<std::int64_t>(std::min(place, static_cast<double>(size_[k] - 1))) : 0;
    }
    return static_cast<std::uint32_t>(at[1] * size_[0] + at[0]);
  }

  // Rows of p with their cells, by cell.
  template <typename Use> std::vector<SortKey> sorted(const float* p, std::int64_t n, Use&& use) const {
    std::vector<SortKey> keys, other;
    keys.reserve(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i)
      if (use(i)) keys.push_back({key(p + i * call_.d), static_cast<std::uint32_t>(i)});
    if (keys.empty()) return keys;
    other.resize(keys.size());
    const SortKey* found = sort_keys<11>(keys.data(), other.data(), static_cast<std::int64_t>(keys.size()));
    return found == keys.data() ? std::move(keys) : std::move(other);
  }

  const float* sampled(std::int64_t s) const {  // scattered: rows may have periods
    return x_ +
           static_cast<std::int64_t>(static_cast<std::uint64_t>(s + 1) * 0x9e3779b97f4a7c15u >> 16) % call_.n * call_.d;
  }

  // Where most of the queries are.
  void find_range(std::int64_t k) {
    std::vector<double> sample;
    for (std::int64_t s = 0; s < kSample; ++s) {
      const double c = sampled(s)[k];
      if (std::isfinite(c)) sample.push_back(c);
    }
    if (sample.empty()) return;
    std::sort(sample.begin(), sample.end());
    const std::size_t last = sample.size() - 1, cut = sample.size() / 64;
    const double reach = 0.5 * (sample[last - cut] - sample[cut]);
    low_[k] = sample[cut] - reach, high_[k] = sample[last - cut] + reach;
  }
  bool inside(std::int64_t i) const {
    for (std::int64_t k = 0; k < call_.d; ++k)
      if (!(x_[i * call_.d + k] >= low_[k] && x_[i * call_.d + k] <= high_[k])) return false;
    return true;
  }

  // Whether queries have about as many others in their cells as pay.
  bool seems_crowded() const {
    std::vector<std::uint32_t> keys;
    for (std::int64_t s = 0; s < kSample; ++s) keys.push_back(key(sampled(s)));
    std::sort(keys.begin(), keys.end());
    std::int64_t together = 0;
    for (std::size_t begin = 0, end; begin < keys.size(); begin = end) {
      for (end = begin + 1; end < keys.size() && keys[end] == keys[begin];) ++end;
      together += static_cast<std::int64_t>((end - begin) * (end - begin - 1));
    }
    return together * call_.n >= least_ * kSample * kSample;
  }

  void find_cells() {
    queries_ = sorted(x_, call_.n, [&](std::int64_t i) { return inside(i); });
    const std::int64_t n = static_cast<std::int64_t>(queries_.size());
    for (std::int64_t begin = 0, end; begin < n; begin = end) {
      const std::uint32_t key = queries_[static_cast<std::size_t>(begin)].key;
      for (end = begin + 1; end < n && queries_[static_cast<std::size_t>(end)].key == key;) ++end;
      if (end - begin < least_) continue;
      cells_.push_back({begin, end, key});
      crowded_ += end - begin;
    }
  }

  // Data by cell (those outside in the nearest one), coordinates apart.
  void place_data(const KdeScan& scan) {
    const float* y = static_cast<const float*>(call_.y);
    const std::vector<SortKey> data = sorted(y, call_.m, [&](std::int64_t j) { return !scan.dropped(j); });
    const std::int64_t m = static_cast<std::int64_t>(data.size()), cells = size_[0] * size_[1];
    const bool alike = !call_.bias && !call_.weight;
    for (AlignedArray<float>* a : {&y_[0], &y_[1], &term_}) {
      a->resize(m + kPadding);
      std::fill(a->get(), a->get() + m + kPadding, 0.0f);
    }
    start_.assign(static_cast<std::size_t>(cells + 1), 0);
    for (std::int64_t j = 0; j < m; ++j) {
      const SortKey at = data[static_cast<std::size_t>(j)];
      ++start_[at.key + 1];
      for (std::int64_t k = 0; k < call_.d; ++k) y_[k][j] = y[at.at * call_.d + k];
      if (alike) continue;
      double term = call_.bias ? (call_.bias[at.at] - scan.top_bias) * kLog2E : 0;
      if (call_.weight) term += std::log2(call_.weight[at.at]);
      term_[j] = static_cast<float>(term);
      total_ += std::exp2(term);
    }
    if (alike) total_ = static_cast<double>(m);
    for (std::size_t c = 1; c < start_.size(); ++c) start_[c] += start_[c - 1];
  }

  void expand(const Cell& cell, const KdeScan& scan, Work& work, std::uint8_t* done) const {
    const std::int64_t place[2] = {cell.key % size_[0], cell.key / size_[0]}, d = call_.d;
    const std::int64_t left = std::max<std::int64_t>(place[0] - kReach, 0),
                       right = std::min(place[0] + kReach, size_[0] - 1);
    work.runs.clear();
    for (std::int64_t row = std::max<std::int64_t>(place[1] - kReach, 0);
         row <= std::min(place[1] + kReach, size_[1] - 1); ++row) {
      const KdeRun run{start_[row * size_[0] + left], start_[row * size_[0] + right + 1]};
      if (run.begin == run.end) continue;
      if (!work.runs.empty() && work.runs.back().end == run.begin) work.runs.back().end = run.end;
      else work.runs.push_back(run);
    }
    KdeCell c;
    for (int k = 0; k < 2; ++k) {
      c.y[k] = y_[k].get();
      c.centre[k] = k < d ? static_cast<float>(low_[k] + (static_cast<double>(place[k]) + 0.5) * side_) : 0.0f;
    }
    const double h = call_.bandwidth[0];
    c.scale = static_cast<float>(-0.5 * kLog2E / (h * h));
    const double inverse = -2 * kLn2 * static_cast<double>(c.scale);  // of h^2, as the moments have it
    c.beta = static_cast<float>(0.5 * side_ * inverse);
    const double half = static_cast<double>(c.beta) / inverse;
    c.term = term_.get(), c.runs = work.runs.data(), c.run_count = static_cast<std::int64_t>(work.runs.size());
    c.moments = work.moments;
    FK_PER_ISA_OVERLOAD(kde_moments, Moments)(&c);
    double factorial[kOrder] = {1};
    for (int a = 1; a < kOrder; ++a) factorial[a] = factorial[a - 1] * a;
    for (int a = 0; a < kOrder; ++a)
      for (int b = 0; b < kOrder; ++b) work.moments[a * kOrder + b] /= factorial[a] * factorial[b];

    const std::int64_t count = cell.end - cell.begin;
    for (auto* a : {&work.t[0], &work.t[1], &work.f, &work.even, &work.slope[0], &work.slope[1]})
      a->assign(static_cast<std::size_t>(count + kPadding), 0.0);
    for (std::int64_t i = 0; i < count; ++i)
      for (std::int64_t k = 0; k < d; ++k)
        work.t[k][static_cast<std::size_t>(i)] =
            (static_cast<double>(x_[query(cell, i) * d + k]) - static_cast<double>(c.centre[k])) / half;
    FK_PER_ISA_OVERLOAD(kde_expansion, Expansion)
    (work.moments, work.t[0].data(), work.t[1].data(), count, work.f.data(), work.even.data(), work.slope[0].data(),
     work.slope[1].data());
    for (std::int64_t i = 0; i < count; ++i) {
      const std::size_t at = static_cast<std::size_t>(i);
      const double f = work.f[at], t0 = work.t[0][at], t1 = work.t[1][at];
      const double exponent = -0.5 * half * half * inverse * (t0 * t0 + t1 * t1);
      // Four times the even part is the sum over all signs of t, no less than the sum of all terms' sizes.
      if (!(4 * work.even[at] <= kMostTerms * f) || !(f * std::exp(exponent) >= kLeastShare * total_)) continue;
      const std::int64_t query = this->query(cell, i);
      done[query] = 1;
      if (call_.log_sum) call_.log_sum[query] = std::log(f) + exponent + scan.top_bias;
      if (!call_.values || call_.weighting == KdeSums::Values::none) continue;
      const double size = call_.weighting == KdeSums::Values::slope ? 1 / (h * h) : 1;
      for (std::int64_t k = 0; k < d; ++k) {
        const double mean = work.slope[k][at] / (static_cast<double>(c.beta) * f) - work.t[k][at] * half;
        static_cast<float*>(call_.values)[query * d + k] = static_cast<float>(mean * size);
      }
    }
  }
  std::int64_t query(const Cell& cell, std::int64_t i) const {
    return queries_[static_cast<std::size_t>(cell.begin + i)].at;
  }

  using Moments = void (*)(const KdeCell*);
  using Expansion = void (*)(const double*, const double*, const double*, std::int64_t, double*, double*, double*,
                             double*);

  const KdeSums& call_;
  const float* x_;
  double low_[2] = {0, 0}, high_[2] = {0, 0}, side_ = 0, total_ = 0;
  std::int64_t size_[2] = {1, 1}, crowded_ = 0, least_ = active_isa() == Isa::avx512 ? 48 : 128;
  std::vector<SortKey> queries_;
  std::vector<Cell> cells_;
  std::vector<std::int64_t> start_;
  AlignedArray<float> y_[2], term_;
};

}  // namespace fokker::cpu
