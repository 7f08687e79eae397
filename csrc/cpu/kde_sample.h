// Whether pruning (kde_prune.h) pays: the share of pairs that it would keep, guessed from a sample, and what it costs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "common/kde_sums.h"
#include "cpu/isa.h"
#include "cpu/kde_prune.h"
#include "cpu/kde_scan.h"

namespace fokker::cpu {

// Natural logarithm of a kernel at the scaled distance z; -inf outside of a compact one.
inline double log_kernel(math::Kernel kernel, double z) {
  using K = math::Kernel;
  const double u = kernel == K::matern32 ? std::sqrt(3.0) * z : std::sqrt(5.0) * z;
  switch (kernel) {
    case K::gaussian:
      return -0.5 * z * z;
    case K::laplace:
    case K::exponential:
      return -z;
    case K::matern32:
      return std::log1p(u) - u;
    case K::matern52:
      return std::log1p(u + u * u / 3) - u;
    default:
      return z < 1 ? 0 : -std::numeric_limits<double>::infinity();
  }
}

// The share of the tiles that the queries need, from 128 of the data as seen by 8 queries, or more where pairs are
// many.
template <typename T> double guess_share(const KdeSums& call, const KdeScan& scan) {
  constexpr std::int64_t data = 128;
  const bool laplace = call.kernel == math::Kernel::laplace, compact = math::is_compact(call.kernel);
  const T *x = static_cast<const T*>(call.x), *y = static_cast<const T*>(call.y);
  const double d = static_cast<double>(call.d), n = static_cast<double>(call.n), m = static_cast<double>(call.m);
  const std::int64_t queries = n * m < 64e6 ? 8 : 32;
  std::int64_t kept = 0, pairs = 0;
  double distance[data];
  for (std::int64_t s = 0; s < queries; ++s) {
    const std::int64_t i = s * call.n / queries;
    if (!std::isfinite(scan.query_norm[static_cast<std::size_t>(i)])) continue;
    std::int64_t count = 0;
    double sum = 0;
    for (std::int64_t t = 0; t < data; ++t) {
      const std::int64_t j = t * call.m / data;
      if (scan.dropped(j)) continue;
      double square = 0;
      for (std::int64_t k = 0; k < call.d; ++k) {
        const double off = static_cast<double>(x[i * call.d + k]) - static_cast<double>(y[j * call.d + k]);
        square += laplace ? std::abs(off) : off * off;
      }
      const auto kind = call.bandwidth_kind;
      const double h = call.bandwidth[kind == KdeSums::Bandwidth::one         ? 0
                                      : kind == KdeSums::Bandwidth::per_query ? i
                                                                              : j];
      const double z = (laplace ? square : std::sqrt(square)) / h;
      distance[count++] = z;
      sum += std::exp(log_kernel(call.kernel, z));
    }
    // How many data are within a bandwidth or so; at least the one that a query of interest is near.
    const double near = std::max(sum * m / data, 1.0);
    // Sides of a tile and of a block in bandwidths, where the density is that around the query.
    const double side = 2.5 * (std::pow(kTileData / near, 1 / d) + std::pow(kBlockQueries / near * m / n, 1 / d));
    const double least = std::log(near / m) - kPruneBits<T> * 0.6931471805599453;
    for (std::int64_t t = 0; t < count; ++t) {
      const double log = log_kernel(call.kernel, std::max(distance[t] - 0.5 * side, 0.0));
      kept += compact ? log == 0 : log > least;
    }
    pairs += count;
  }
  return pairs ? static_cast<double>(kept) / static_cast<double>(pairs) : 1;
}

// Nanoseconds of one core, `pair` those of a pair: sorting (half of it in vain, should the guess be wrong) and bounds.
inline bool pruning_pays(double n, double m, double share, double pair) {
  const double order = 10 * (n * std::log2(1 + n / kBlockQueries) + m * std::log2(1 + m / kTileData)),
               bounds = 3 * (n / kBlockQueries) * (m / kTileData);
  return n >= 1024 && m >= 1024 && 1.1 * share * n * m * pair + order + bounds < 0.8 * n * m * pair;
}

// `simple`: by kde_small.
template <typename T> bool should_prune(const KdeSums& call, const KdeScan& scan, bool simple) {
  constexpr std::int64_t most = std::int64_t(1) << 31;
  if (call.d > 3 || call.n >= most || call.m >= most || scan.poisoned || call.kernel == math::Kernel::student_t)
    return false;
  if (call.shift && !simple) return false;
  const double wide = active_isa() == Isa::avx512 ? 1 : active_isa() == Isa::avx2 ? 2 : 5;
  const double pair = (sizeof(T) == 4 ? 0.14 : 0.5) * (simple ? 1 : 2) * wide;
  const double n = static_cast<double>(call.n), m = static_cast<double>(call.m);
  return pruning_pays(n, m, 0, pair) && pruning_pays(n, m, guess_share<T>(call, scan), pair);
}

}  // namespace fokker::cpu
