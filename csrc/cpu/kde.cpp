// Driver of the density sums: chooses the form of the distances and does again what its rounding would spoil.
#include "cpu/kde.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/kde_cells.h"
#include "cpu/kde_copies.h"
#include "cpu/kde_pass.h"
#include "cpu/kde_prune.h"
#include "cpu/kde_sample.h"
#include "cpu/kde_scan.h"

namespace fokker::cpu {
namespace {

constexpr std::int64_t kSmallDim = 4;  // up to here squared distances are summed from differences

template <typename T> void fill_empty(const KdeSums& call) {
  const std::int64_t dv = call.weighting == KdeSums::Values::slope || !call.v ? call.d : call.dv;
  if (call.log_sum) std::fill(call.log_sum, call.log_sum + call.n, call.shift ? 0.0 : -kInfinity);
  if (call.square) std::fill(call.square, call.square + call.n, 0.0);
  if (call.delta) std::fill(call.delta, call.delta + call.n, 0.0);
  if (call.values && call.weighting != KdeSums::Values::none)
    std::fill(static_cast<T*>(call.values), static_cast<T*>(call.values) + call.n * dv, T(0));
}

// What to expect of the error of a query's log sum, in nats. A product of d terms summed in blocks of l has an error of
// about 0.6 sqrt(l / 3) / sqrt(d / l) units in the last place of |x| |y| where all terms have one sign, less elsewhere;
// those of the data that share the sum are independent, but for copies of one. Three times that is allowed for.
template <typename T> class Bound {
 public:
  Bound(const KdeSums& call, const KdeScan& scan, Metric metric) : call_(call), scan_(scan) {
    h_ = call.bandwidth[0];
    if (call.bandwidth_kind == KdeSums::Bandwidth::per_datum)
      h_ = *std::min_element(call.bandwidth, call.bandwidth + call.m);
    const double d = static_cast<double>(call.d), block = kde_block_length(metric, call.d, sizeof(T) == 4);
    const double length = block > 0 ? block : d;
    reach_ = metric == Metric::product ? (0.5 + 1.8 * length / std::sqrt(3 * d)) * std::sqrt(scan.data_norm) : 0;
    bias_ = scan.top_bias - scan.least_bias;
  }
  double error(std::int64_t i, double unit, double copies = 1) const {
    const double h = call_.bandwidth_kind == KdeSums::Bandwidth::per_query ? call_.bandwidth[i] : h_;
    double share = 1;  // 1 / sqrt of how many share
    if (!call_.shift && call_.square) share = std::clamp(std::sqrt(copies * call_.square[i]), 0.1, 1.0);
    return unit * (share * reach_ * std::sqrt(scan_.query_norm[static_cast<std::size_t>(i)]) / (h * h) + bias_);
  }
  bool fails(std::int64_t i) {
    if (exceeds(i, error(i, unit))) return true;
    if (call_.shift || !call_.square || !exceeds(i, error(i, unit, static_cast<double>(call_.m)))) return false;
    if (copies_ == 0) copies_ = static_cast<double>(most_copies<T>(call_));
    return exceeds(i, error(i, unit, copies_));
  }
  static constexpr double unit = sizeof(T) == 4 ? 0x1p-24 : 0x1p-53;

 private:
  bool exceeds(std::int64_t i, double error) const {
    if (!(error < kInfinity)) return false;
    const double size = call_.shift
                            ? std::abs(call_.shift[i]) + std::max(std::abs(scan_.top_bias), std::abs(scan_.least_bias))
                            : std::abs(call_.log_sum[i]);
    if (sizeof(T) == 8) return error > (call_.shift ? 1e-11 : 5e-13) * std::max(1.0, size);
    return error > 4e-7 * (size < kInfinity ? size : 0.0) + (call_.shift ? 2e-5 : 2e-6);
  }

  const KdeSums& call_;
  const KdeScan& scan_;
  double h_, reach_, bias_, copies_ = 0;  // 0: not counted yet
};

template <typename T>
void again(const KdeSums& call, const KdeScan& scan, const Bound<T>& bound, const std::vector<std::int64_t>& queries) {
  double most = 0;
  for (std::int64_t i : queries) most = std::max(most, bound.error(i, 0x1p-53));
  const bool product = sizeof(T) == 4 && call.d > kSmallDim && most < 1e-7;
  KdePass<T, double> pass(call, scan, product ? Metric::product : Metric::square, true);
  pass.run(queries.data(), static_cast<std::int64_t>(queries.size()));
}

// These queries with everything in double (all of them where pairs are left out by index).
template <typename T> void again_in_double(const KdeSums& call, std::vector<std::int64_t> queries) {
  if (call.exclude != INT64_MIN) {
    queries.resize(static_cast<std::size_t>(call.n));
    std::iota(queries.begin(), queries.end(), std::int64_t{0});
  }
  const std::size_t n = queries.size(), m = static_cast<std::size_t>(call.m), d = static_cast<std::size_t>(call.d);
  const bool values = call.values && call.weighting != KdeSums::Values::none;
  const bool given = call.v && call.weighting == KdeSums::Values::weight;
  const std::size_t dv = given ? static_cast<std::size_t>(call.dv) : d;
  const auto widened = [](const void* from, std::size_t count) {
    return std::vector<double>(static_cast<const T*>(from), static_cast<const T*>(from) + count);
  };
  std::vector<double> x(n * d), h(n), log_sum(n), square(n), delta(n), means(values ? n * dv : 0);
  const std::vector<double> y = widened(call.y, m * d), v = given ? widened(call.v, m * dv) : std::vector<double>();
  const bool by_query = call.bandwidth_kind == KdeSums::Bandwidth::per_query;
  for (std::size_t s = 0; s < n; ++s) {
    const T* from = static_cast<const T*>(call.x) + queries[s] * call.d;
    std::copy(from, from + d, x.data() + s * d);
    if (by_query) h[s] = call.bandwidth[queries[s]];
  }
  KdeSums wide = call;
  wide.n = static_cast<std::int64_t>(n), wide.x = x.data(), wide.y = y.data(), wide.v = given ? v.data() : nullptr;
  if (by_query) wide.bandwidth = h.data();
  wide.log_sum = log_sum.data();
  wide.square = call.square ? square.data() : nullptr, wide.delta = call.delta ? delta.data() : nullptr;
  wide.values = values ? means.data() : nullptr;
  kde_sums<double>(wide);
  for (std::size_t s = 0; s < n; ++s) {
    const std::size_t i = static_cast<std::size_t>(queries[s]);
    call.log_sum[i] = log_sum[s];
    if (call.square) call.square[i] = square[s];
    if (call.delta) call.delta[i] = delta[s];
    for (std::size_t k = 0; k < (values ? dv : 0); ++k)
      static_cast<T*>(call.values)[i * dv + k] = static_cast<T>(means[s * dv + k]);
  }
}

template <typename T> void direct(const KdeSums& given) {
  KdeSums call = given;
  const bool gaussian = call.kernel == math::Kernel::gaussian;
  const Metric metric = call.kernel == math::Kernel::laplace ? Metric::absolute
                        : gaussian && call.d > kSmallDim     ? Metric::product
                                                             : Metric::square;
  KdeScan scan;
  scan.run<T>(call, call.highest && metric == Metric::product);
  const bool relative = call.weighting == KdeSums::Values::slope || !call.v;
  const bool small = gaussian && call.d <= kSmallDim && !scan.poisoned &&
                     call.bandwidth_kind != KdeSums::Bandwidth::per_datum && !(call.shift && call.square) &&
                     scan.widest < (sizeof(T) == 4 ? 1e36 : 1e300) &&
                     (call.weighting == KdeSums::Values::none || !call.values || relative);
  const bool bounded = small && !call.shift;
  const bool check = call.highest && gaussian && !scan.poisoned;
  std::vector<double> log_sum, square;
  const auto provide = [&](double*& out, std::vector<double>& own) {
    if (out) return;
    own.resize(static_cast<std::size_t>(call.n));
    out = own.data();
  };
  const bool edges = sizeof(T) == 4 && call.highest && math::is_compact(call.kernel) && !call.shift && !scan.poisoned;
  if (bounded || check || edges) provide(call.log_sum, log_sum);
  if (check && metric == Metric::product && !call.shift) provide(call.square, square);
  std::unique_ptr<KdeTiles<T>> tiles;
  if (should_prune<T>(call, scan, small)) tiles = std::make_unique<KdeTiles<T>>(call, scan);
  const std::int64_t* all = tiles ? tiles->queries.data() : nullptr;
  // Let go before data are packed in double.
  auto general = std::make_unique<KdePass<T, T>>(call, scan, metric, given.square != nullptr, false,
                                                 call.shift ? nullptr : tiles.get());
  if (!small && !check) {
    general->run(all, call.n);
    if (!edges) return;
    // 1 - q of a few data near the edge of the support is all rounding: where little is left, again.
    general.reset();
    const double least = scan.top_bias + std::log(0.3);
    std::vector<std::int64_t> faint;
    for (std::int64_t i = 0; i < call.n; ++i)
      if (call.log_sum[i] < least && call.log_sum[i] > -kInfinity) faint.push_back(i);
    if (!faint.empty()) again_in_double<T>(call, std::move(faint));
    return;
  }

  // A sample first: where most queries will be done again, all go there at once. (Pruned, the first time is cheap.)
  constexpr std::int64_t sample = 64;
  const std::int64_t stride = call.n / sample;
  std::vector<std::int64_t> some, queries;
  for (std::int64_t s = 0; !tiles && call.n >= 8 * sample && s < sample; ++s) some.push_back(s * stride);
  const auto most = [&] { return 2 * queries.size() > some.size() && !some.empty(); };
  const auto collect = [&](const std::vector<std::int64_t>* among, auto&& fails) {
    queries.clear();
    const std::int64_t count = among ? static_cast<std::int64_t>(among->size()) : call.n;
    for (std::int64_t s = 0; s < count; ++s) {
      const std::int64_t i = among ? (*among)[static_cast<std::size_t>(s)] : all ? all[s] : s;
      if (fails(i)) queries.push_back(i);
    }
  };
  const auto run = [&](KdePass<T, T>& pass, const std::vector<std::int64_t>& list) {
    if (!list.empty()) pass.run(list.data(), static_cast<std::int64_t>(list.size()));
  };

  bool all_general = !small;
  if (small) {
    const double least = scan.top_bias - kLn2 * kde_faint_bits<T>(call);
    const auto faint = [&](std::int64_t i) { return !(call.log_sum[i] >= least); };
    KdePass<T, T> pass(call, scan, metric, true, true, tiles.get());
    if (bounded) {
      run(pass, some);
      collect(&some, faint);
      all_general = most();
    }
    if (!all_general) pass.run(all, call.n);
    if (bounded && !all_general) {
      collect(nullptr, faint);
      run(*general, queries);
    }
  }
  Bound<T> bound(call, scan, metric);
  const auto inexact = [&](std::int64_t i) { return bound.fails(i); };
  if (all_general) {
    if (check) {
      run(*general, some);
      collect(&some, inexact);
      if (most()) {
        collect(nullptr, [](std::int64_t) { return true; });
        general.reset();
        return again<T>(call, scan, bound, queries);
      }
    }
    general->run(all, call.n);
  }
  if (!check) return;
  collect(nullptr, inexact);
  general.reset();
  if (!queries.empty()) again<T>(call, scan, bound, queries);
}

// By cells, and what they leave directly; false, with nothing done, where cells do not serve or do not pay.
bool by_cells(const KdeSums& call) {
  if (!KdeCells::serves(call)) return false;
  KdeCells cells(call);
  if (!cells.pays()) return false;
  KdeScan scan;
  scan.run<float>(call, false);
  if (scan.poisoned || !(scan.widest < 1e30)) return false;
  const std::vector<std::int64_t> rest = cells.run(scan);
  if (rest.empty()) return true;
  const std::size_t d = static_cast<std::size_t>(call.d), n = rest.size();
  std::vector<float> x(n * d), values(n * d);
  std::vector<double> log_sum(n);
  const auto copy = [&](const float* from, float* to) { std::copy(from, from + d, to); };
  for (std::size_t s = 0; s < n; ++s) copy(static_cast<const float*>(call.x) + rest[s] * call.d, x.data() + s * d);
  KdeSums some = call;
  some.n = static_cast<std::int64_t>(n), some.x = x.data();
  if (call.log_sum) some.log_sum = log_sum.data();
  if (call.values) some.values = values.data();
  direct<float>(some);
  for (std::size_t s = 0; s < n; ++s) {
    if (call.log_sum) call.log_sum[rest[s]] = log_sum[s];
    if (call.values && call.weighting != KdeSums::Values::none)
      copy(values.data() + s * d, static_cast<float*>(call.values) + rest[s] * call.d);
  }
  return true;
}

}  // namespace

template <typename T> void kde_sums(const KdeSums& call) {
  if (call.n <= 0) return;
  if (call.m <= 0) return fill_empty<T>(call);
  if constexpr (sizeof(T) == 4)
    if (by_cells(call)) return;
  direct<T>(call);
}

template void kde_sums<float>(const KdeSums&);
template void kde_sums<double>(const KdeSums&);

}  // namespace fokker::cpu
