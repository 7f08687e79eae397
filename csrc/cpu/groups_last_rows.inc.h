// Rows of channels_last samples: how they are read and written, sums over a few of them. Included by groups_last.inc.h.
#pragma once

#include <memory>

#include "cpu/groups_vector.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr std::int64_t kGroupBlock = 64;       // positions whose sums are kept in T
constexpr std::int64_t kPivotPositions = 16;   // of the first of them the pivot of a chunk is the mean
constexpr std::int64_t kBlockNumbers = 16384;  // of a block

// Asks for what lies behind a vector that is read now: rows come from memory faster than the hardware asks for them by
// itself (16 x 256 x 64 x 64 on one core: 12.6 ms forward and 26.8 back without, 9.7 and 17.9 with).
template <typename T> inline void ask_ahead(const T* p) {
  constexpr std::int64_t bytes = 8192;
  __builtin_prefetch(p + bytes / static_cast<std::int64_t>(sizeof(T)));
}

// Rows of a chunk, and where its sums are made.
template <typename S> struct LastRows {
  using T = Computed<S>;
  const GroupPlan& p;
  const std::int64_t channels, block;  // block: positions whose sums are made at a time
  std::unique_ptr<T[]> held;
  std::unique_ptr<double[]> held_sums;

  explicit LastRows(const GroupPlan& plan)
      : p(plan),
        channels(plan.channels),
        block(std::clamp<std::int64_t>(kBlockNumbers / plan.channels, 1, kGroupBlock)),
        held(new T[static_cast<std::size_t>(3 * channels)]),
        held_sums(new double[static_cast<std::size_t>(2 * channels)]) {}
  T* row(int k) { return held.get() + k * channels; }
  double* sums(int k) { return held_sums.get() + k * channels; }
};

// The coefficients of a sample: rows of numbers a channel.
template <typename T> struct LastCoefficients {
  T *mean, *factor, *addend, *pivot, *slope, *offset;
  LastCoefficients(T* at, std::int64_t channels)
      : mean(at),
        factor(at + channels),
        addend(at + 2 * channels),
        pivot(at + 3 * channels),
        slope(at + 4 * channels),
        offset(at + 5 * channels) {}
  void set(std::int64_t c, GroupChannel<T> v) const { mean[c] = v.mean, factor[c] = v.factor, addend[c] = v.addend; }
};

// to += of, in double.
template <typename T> inline void add_row(double* to, const T* of, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) to[i] += static_cast<double>(of[i]);
}

// Sums over n rows of d = x - pivot and of its square, added to two rows.
template <typename S, typename T> inline void add_deviations(const S* x, std::int64_t stride, std::int64_t n,
                                                             const T* pivot, T* first, T* second,
                                                             std::int64_t channels) {
  std::int64_t r = 0;
  for (; r + 4 <= n; r += 4) {
    const S *const x0 = x + r * stride, *const x1 = x0 + stride, *const x2 = x1 + stride, *const x3 = x2 + stride;
    each_vector<T>(channels, [&](std::int64_t c, auto lanes) {
      for (const S* const row : {x0, x1, x2, x3}) ask_ahead(row + c);
      const Vec<T> k = lanes.load(pivot + c), d0 = lanes.load(x0 + c) - k, d1 = lanes.load(x1 + c) - k,
                   d2 = lanes.load(x2 + c) - k, d3 = lanes.load(x3 + c) - k;
      lanes.store(first + c, Vec<T>(lanes.load(first + c) + ((d0 + d1) + (d2 + d3))));
      lanes.store(second + c, fma(d0, d0, fma(d1, d1, fma(d2, d2, fma(d3, d3, lanes.load(second + c))))));
    });
  }
  for (; r < n; ++r)
    each_vector<T>(channels, [&](std::int64_t c, auto lanes) {
      const Vec<T> d = lanes.load(x + r * stride + c) - lanes.load(pivot + c);
      lanes.store(first + c, Vec<T>(lanes.load(first + c) + d));
      lanes.store(second + c, fma(d, d, lanes.load(second + c)));
    });
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
