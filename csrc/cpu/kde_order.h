// Orders rows of few coordinates so that tiles of them are compact: recursively cut across the widest side.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/parallel.h"

namespace fokker::cpu {

struct SortKey {
  std::uint32_t key, at;
};

constexpr int kKeyBits = 22;

// Sorts n keys by their digits of kBits, lowest first; where the result lies, `a` or `b`.
template <int kBits> SortKey* sort_keys(SortKey* a, SortKey* b, std::int64_t n) {
  constexpr int passes = (kKeyBits + kBits - 1) / kBits, bins = 1 << kBits;
  std::vector<std::uint32_t> starts(passes * bins, 0);
  for (std::int64_t i = 0; i < n; ++i)
    for (int p = 0; p < passes; ++p) ++starts[p * bins + (a[i].key >> (p * kBits)) % bins];
  for (int p = 0; p < passes; ++p) {
    std::uint32_t* start = starts.data() + p * bins;
    if (start[(a[0].key >> (p * kBits)) % bins] == n) continue;  // one digit for all
    std::uint32_t sum = 0;
    for (int d = 0; d < bins; ++d) {
      const std::uint32_t count = start[d];
      start[d] = sum, sum += count;
    }
    for (std::int64_t i = 0; i < n; ++i) b[start[(a[i].key >> (p * kBits)) % bins]++] = a[i];
    std::swap(a, b);
  }
  return a;
}

template <typename T, int D> class CompactOrder {
 public:
  // Rows order[0], order[1], ... of x, all finite, are put in compact tiles of `tile`, and these in compact parts of
  // `part` (the last of each may be smaller); `part` divides `tile`.
  CompactOrder(const T* x, std::int64_t tile, std::int64_t part, std::vector<std::int32_t>& order)
      : tile_(tile),
        part_(part),
        points_(order.size()),
        moved_(order.size()),
        keys_(order.size()),
        other_(order.size()) {
    const std::int64_t n = static_cast<std::int64_t>(order.size());
    for (std::int64_t i = 0; i < n; ++i) {
      for (int k = 0; k < D; ++k) points_[i].x[k] = x[static_cast<std::int64_t>(order[i]) * D + k];
      points_[i].row = order[i];
    }
    std::int64_t cuts[kWays + 1];
    const int ways = divide(0, n, cuts);
    parallel_for(ways, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t w = begin; w < end; ++w) split(cuts[w], cuts[w + 1]);
    });
    for (std::int64_t i = 0; i < n; ++i) order[i] = points_[i].row;
  }

 private:
  static constexpr int kWays = 64;
  struct Point {
    T x[D];
    std::int32_t row;
  };

  // In the order of the coordinate, or nearly so: ties cost compactness only.
  static std::uint32_t key(T x, T low) {
    const float f = static_cast<float>(x - low);  // not negative: its bits are in order
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits >> (31 - kKeyBits);
  }

  void split(std::int64_t begin, std::int64_t end) {
    std::int64_t cuts[kWays + 1];
    const int ways = divide(begin, end, cuts);
    for (int w = 0; w < ways && ways > 1; ++w) split(cuts[w], cuts[w + 1]);
  }

  // Into how many slices across the widest side, so many that their tiles can come out as cubes; 1: a tile already.
  int divide(std::int64_t begin, std::int64_t end, std::int64_t* cuts) {
    const std::int64_t n = end - begin, unit = n > tile_ ? tile_ : part_, tiles = (n + unit - 1) / unit;
    cuts[0] = begin, cuts[1] = end;
    if (tiles <= 1) return 1;
    Point* p = points_.data() + begin;
    T low[D], high[D];
    for (int k = 0; k < D; ++k) low[k] = high[k] = p[0].x[k];
    for (std::int64_t i = 1; i < n; ++i)
      for (int k = 0; k < D; ++k) {
        low[k] = p[i].x[k] < low[k] ? p[i].x[k] : low[k];
        high[k] = p[i].x[k] > high[k] ? p[i].x[k] : high[k];
      }
    int wide = 0, sides = 0;
    double volume = 0;
    for (int k = 0; k < D; ++k) {
      const double side = static_cast<double>(high[k]) - static_cast<double>(low[k]);
      if (side > static_cast<double>(high[wide]) - static_cast<double>(low[wide])) wide = k;
      if (side > 0) volume += std::log(side), ++sides;
    }
    if (sides == 0) return 1;  // all alike
    const double side = static_cast<double>(high[wide]) - static_cast<double>(low[wide]),
                 cube = std::exp((volume - std::log(static_cast<double>(tiles))) / sides),
                 want = std::rint(side / cube);
    const int most = static_cast<int>(std::min<std::int64_t>(kWays, tiles));
    const int ways = want >= most ? most : want >= 2 ? static_cast<int>(want) : 2;
    slice(p, n, wide, low[wide]);
    for (int w = 1; w < ways; ++w) cuts[w] = begin + tiles * w / ways * unit;
    cuts[ways] = end;
    return ways;
  }

  void slice(Point* p, std::int64_t n, int k, T low) {
    const std::int64_t begin = p - points_.data();
    SortKey *a = keys_.data() + begin, *b = other_.data() + begin;
    for (std::int64_t i = 0; i < n; ++i) a[i] = {key(p[i].x[k], low), static_cast<std::uint32_t>(i)};
    const SortKey* sorted = n < 2048 ? sort_keys<8>(a, b, n) : sort_keys<11>(a, b, n);
    Point* to = moved_.data() + begin;
    for (std::int64_t i = 0; i < n; ++i) to[i] = p[sorted[i].at];
    std::copy(to, to + n, p);
  }

  std::int64_t tile_, part_;
  std::vector<Point> points_, moved_;
  std::vector<SortKey> keys_, other_;
};

template <typename T> void order_compactly(const T* x, std::int64_t d, std::int64_t tile, std::int64_t part,
                                           std::vector<std::int32_t>& order) {
  if (d == 1) CompactOrder<T, 1>(x, tile, part, order);
  else if (d == 2) CompactOrder<T, 2>(x, tile, part, order);
  else CompactOrder<T, 3>(x, tile, part, order);
}

}  // namespace fokker::cpu
