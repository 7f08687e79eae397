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

// sqrt(q), and 1 / sqrt(q) or 0 where q is 0. Hardware roots and quotients of eight doubles take 18 and 16 cycles, a
// guess of 14 bits and two steps of Newton's 6: then the root is within an ulp.
struct Root {
  VecD length, inverse;
};
inline Root root(VecD q) {
#if defined(__AVX512F__)
  const VecD zero{}, half = all(0.5);
  const __mmask8 usual = _mm512_cmp_pd_mask(q, zero, _CMP_GT_OQ) & _mm512_cmp_pd_mask(q, all(1e300), _CMP_LT_OQ);
  VecD y = _mm512_maskz_rsqrt14_pd(usual, q);
  const VecD h = half * q;
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) y = fma(y, VecD(_mm512_fnmadd_pd(h * y, y, half)), y);
  const VecD s = q * y, length = fma(VecD(_mm512_fnmadd_pd(s, s, q)), VecD(half * y), s);
  if (__builtin_expect(usual == 0xff, 1)) return {length, y};
  const VecD exact = _mm512_sqrt_pd(q);
  return {exact, exact == zero ? zero : VecD(all(1.0) / exact)};
#elif defined(__AVX2__)
  const VecD length = _mm256_sqrt_pd(q), zero{};
  return {length, length == zero ? zero : VecD(all(1.0) / length)};
#else
  for (int l = 0; l < kLanes; ++l) q[l] = __builtin_sqrt(q[l]);
  const VecD zero{};
  return {q, q == zero ? zero : VecD(all(1.0) / q)};
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
      for (std::int64_t c = 0; c < p.d; ++c) {
        VecD here[kWide];
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) here[v] = load(x + c * kQueries + v * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kData; ++r) {
          const VecD from = all(at[r][c]);
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) {
            const VecD t = here[v] - from;
            acc[r][v] = fma(t, t, acc[r][v]);
          }
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kData; ++r) {
        if (j + r >= p.m) {  // no datum: its distance may be infinite, and no product of it is 0
          for (int v = 0; v < kWide; ++v) acc[r][v] = VecD{};
          continue;
        }
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) {
          const Root found = root(acc[r][v]);
          part[v] = fma(all(w[r]), found.length, part[v]);
          if constexpr (kSlope) acc[r][v] = all(w[r]) * found.inverse;
        }
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
