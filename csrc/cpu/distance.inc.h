// Body of the sums of distances, compiled once per instruction set: lanes are queries, coordinates of data are
// broadcast; differences first, so that nothing cancels.
#include "cpu/distance.h"

#include <algorithm>

#include "cpu/aligned.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kData = 4, kWide = kVectorBytes == 64 ? 4 : 2;  // kData x kWide registers accumulate
constexpr int kLanes = kLanesOf<double>, kQueries = kWide * kLanes;
constexpr std::int64_t kFlush = 1024;  // data between two moves of a sum into the total

inline VecD root(VecD a) {
#if defined(__AVX512F__)
  return _mm512_sqrt_pd(a);
#elif defined(__AVX2__)
  return _mm256_sqrt_pd(a);
#else
  for (int l = 0; l < kLanes; ++l) a[l] = __builtin_sqrt(a[l]);
  return a;
#endif
}

// Of one tile of queries, x[c][query], and all data.
template <bool kSlope> void sums_of(const DistanceSums& p, const double* __restrict x, const double* __restrict y,
                                    const double* __restrict weight, double* __restrict sum, double* __restrict slope) {
  VecD total[kWide] = {};
  for (std::int64_t begin = 0; begin < p.m; begin += kFlush) {
    VecD part[kWide] = {};
    for (std::int64_t j = begin; j < std::min(begin + kFlush, p.m); j += kData) {
      const double* at[kData];
      double w[kData];
      for (int r = 0; r < kData; ++r) {
        at[r] = y + std::min(j + r, p.m - 1) * p.d;
        w[r] = j + r < p.m ? weight[j + r] : 0.0;
      }
      VecD acc[kData][kWide] = {};
      for (std::int64_t c = 0; c < p.d; ++c)
#pragma GCC unroll 4
        for (int r = 0; r < kData; ++r) {
          const VecD from = all(at[r][c]);
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) {
            const VecD t = load(x + c * kQueries + v * kLanes) - from;
            acc[r][v] = fma(t, t, acc[r][v]);
          }
        }
#pragma GCC unroll 4
      for (int r = 0; r < kData; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) {
          const VecD length = root(acc[r][v]), zero{};
          part[v] = fma(all(w[r]), length, part[v]);
          if constexpr (kSlope) acc[r][v] = length == zero ? zero : VecD(all(w[r]) / length);
        }
      if constexpr (kSlope)
        for (std::int64_t c = 0; c < p.d; ++c) {
          VecD here[kWide], s[kWide];
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) {
            here[v] = load(x + c * kQueries + v * kLanes);
            s[v] = load(slope + c * kQueries + v * kLanes);
          }
#pragma GCC unroll 4
          for (int r = 0; r < kData; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < kWide; ++v) s[v] = fma(acc[r][v], VecD(here[v] - all(at[r][c])), s[v]);
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) store(slope + c * kQueries + v * kLanes, s[v]);
        }
    }
    for (int v = 0; v < kWide; ++v) total[v] += part[v];
  }
  for (int v = 0; v < kWide; ++v) store(sum + v * kLanes, total[v]);
}

}  // namespace

int distance_tile(const DistanceSums&) { return kQueries; }

void distance_tiles(const DistanceSums& p, std::int64_t begin, std::int64_t end) {
  const std::int64_t tiles = (p.n + kQueries - 1) / kQueries, d = p.d;
  AlignedArray<double> x, slope;
  x.resize(d * kQueries);
  if (p.slope) slope.resize(d * kQueries);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / tiles, first = item % tiles * kQueries;
    const std::int64_t count = std::min<std::int64_t>(kQueries, p.n - first);
    const double* from = p.x + b * p.n * d;
    for (int q = 0; q < kQueries; ++q)
      for (std::int64_t c = 0; c < d; ++c) x[c * kQueries + q] = from[std::min(first + q, p.n - 1) * d + c];
    alignas(64) double sum[kQueries];
    const double *y = p.y + b * p.m * d, *weight = p.weight + b * p.m;
    if (p.slope) {
      std::fill(slope.get(), slope.get() + d * kQueries, 0.0);
      sums_of<true>(p, x.get(), y, weight, sum, slope.get());
      double* to = p.slope + (b * p.n + first) * d;
      for (std::int64_t q = 0; q < count; ++q)
        for (std::int64_t c = 0; c < d; ++c) to[q * d + c] = slope[c * kQueries + q];
    } else {
      sums_of<false>(p, x.get(), y, weight, sum, nullptr);
    }
    std::copy(sum, sum + count, p.sum + b * p.n + first);
  }
}

}  // namespace fokker::cpu::FK_ISA
