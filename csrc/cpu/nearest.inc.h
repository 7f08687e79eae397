// Body of the search for nearest data, compiled once per instruction set: lanes are queries, coordinates of data are
// broadcast; differences first, so that nothing cancels. Data come in their order and the first of equals stays.
#include <algorithm>

#include "cpu/aligned.h"
#include "cpu/distance.h"
#include "cpu/simd.h"
#include "math/arithmetic.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kData = 4, kWide = kVectorBytes == 64 ? 4 : 2;  // kData x kWide registers accumulate
template <typename T> constexpr int kLanes = kLanesOf<T>;
template <typename T> constexpr int kQueries = kWide * kLanes<T>;
constexpr std::int64_t kBlock = 1 << 20;  // data whose numbers fit a lane

template <typename T> struct Numbers;
template <> struct Numbers<float> {
  using Vec = VecI32;
  using Int = std::int32_t;
};
template <> struct Numbers<double> {
  using Vec = VecI64;
  using Int = std::int64_t;
};

// Of one tile of queries, x[c][query], and all data; `first` is the number of the first query.
template <bool kAbsolute, typename T> void nearest_of(const NearestData& p, const T* __restrict x,
                                                      const T* __restrict y, std::int64_t first,
                                                      std::int64_t* __restrict index) {
  using N = typename Numbers<T>::Vec;
  using Int = typename Numbers<T>::Int;
  Vec<T> best[kWide];
  for (auto& b : best) b = all(math::infinity<T>());
  std::fill(index, index + kQueries<T>, std::int64_t(-1));
  const std::int64_t own = p.exclude == INT64_MIN ? INT64_MIN : first + p.exclude;  // what the first query leaves out
  for (std::int64_t begin = 0; begin < p.m; begin += kBlock) {
    N at[kWide];
    for (auto& a : at) a = N{} - 1;
    for (std::int64_t j = begin; j < std::min(begin + kBlock, p.m); j += kData) {
      const T* from[kData];
      for (int r = 0; r < kData; ++r) from[r] = y + std::min(j + r, p.m - 1) * p.d;
      Vec<T> acc[kData][kWide] = {};
      for (std::int64_t c = 0; c < p.d; ++c) {
        Vec<T> here[kWide];
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) here[v] = load(x + c * kQueries<T> + v * kLanes<T>);
#pragma GCC unroll 4
        for (int r = 0; r < kData; ++r) {
          const Vec<T> there = all(from[r][c]);
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) {
            const Vec<T> t = here[v] - there;
            acc[r][v] = kAbsolute ? Vec<T>(acc[r][v] + abs(t)) : fma(t, t, acc[r][v]);
          }
        }
      }
      for (int r = 0; r < kData && j + r < p.m; ++r) {
        const std::int64_t lane = j + r - own;
        if (own != INT64_MIN && lane >= 0 && lane < kQueries<T>) {
          T held[kQueries<T>];
          for (int v = 0; v < kWide; ++v) store(held + v * kLanes<T>, acc[r][v]);
          held[lane] = math::infinity<T>();
          for (int v = 0; v < kWide; ++v) acc[r][v] = load(held + v * kLanes<T>);
        }
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) {
          const N nearer = acc[r][v] < best[v];
          best[v] = nearer ? acc[r][v] : best[v];
          at[v] = nearer ? N{} + static_cast<Int>(j + r - begin) : at[v];
        }
      }
    }
    for (int v = 0; v < kWide; ++v)
      for (int l = 0; l < kLanes<T>; ++l)
        if (at[v][l] >= 0) index[v * kLanes<T> + l] = begin + at[v][l];
  }
}

}  // namespace

template <typename T> std::int64_t nearest_tile(const T*) { return kQueries<T>; }

template <typename T> void nearest_tiles(const NearestData& p, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t wide = kQueries<T>;
  const std::int64_t tiles = (p.n + wide - 1) / wide, d = p.d;
  AlignedArray<T> x;
  x.resize(d * wide);
  std::int64_t index[wide];
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / tiles, first = item % tiles * wide;
    const T *from = static_cast<const T*>(p.x) + b * p.n * d, *y = static_cast<const T*>(p.y) + b * p.m * d;
    for (std::int64_t q = 0; q < wide; ++q)
      for (std::int64_t c = 0; c < d; ++c) x[c * wide + q] = from[std::min(first + q, p.n - 1) * d + c];
    p.absolute ? nearest_of<true>(p, x.get(), y, first, index) : nearest_of<false>(p, x.get(), y, first, index);
    std::copy(index, index + std::min(wide, p.n - first), p.index + b * p.n + first);
  }
}

#define FK_INSTANTIATE(T)                          \
  template std::int64_t nearest_tile<T>(const T*); \
  template void nearest_tiles<T>(const NearestData&, std::int64_t, std::int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cpu::FK_ISA
