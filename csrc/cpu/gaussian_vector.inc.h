// Tiles of queries as vectors and products with panels of matrices, of the kernels of Gaussian mixtures.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gaussian_plan.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kWide = 4;  // 16 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kWide = 3;  // 12 of 16
#else
constexpr int kWide = 2;
#endif
constexpr int kRows = kGaussianRows;
template <typename T> constexpr int kLanes = kLanesOf<T>;
template <typename T> constexpr int kQueries = kWide * kLanes<T>;  // of a tile

template <typename T> const T* of(const void* p) { return static_cast<const T*>(p); }

// Queries [first, first + count tiles) into to[tile][j][query]; past the end the last one again.
template <typename T>
void transpose(const T* x, std::int64_t n, std::int64_t d, std::int64_t first, std::int64_t tiles, T* __restrict to) {
  for (std::int64_t t = 0; t < tiles; ++t)
    for (int q = 0; q < kQueries<T>; ++q) {
      const T* __restrict row = x + std::min(first + t * kQueries<T> + q, n - 1) * d;
      T* __restrict column = to + t * d * kQueries<T> + q;
      for (std::int64_t j = 0; j < d; ++j) column[j * kQueries<T>] = row[j];
    }
}

// acc[r][v] += sum_j panel[j][r] delta[j][v]
template <typename T>
inline __attribute__((always_inline)) void multiply(const T* __restrict panel, const T* __restrict delta,
                                                    std::int64_t columns, Vec<T> (&acc)[kRows][kWide]) {
  for (std::int64_t j = 0; j < columns; ++j) {
    Vec<T> b[kWide];
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) b[v] = load(delta + j * kQueries<T> + v * kLanes<T>);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec<T> a = all(panel[j * kRows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) acc[r][v] = fma(a, b[v], acc[r][v]);
    }
  }
}

constexpr double kLog2E = 1.4426950408889634074;

template <typename T> inline bool all_zero(const T* w) {
  Vec<T> sum{};
  for (int v = 0; v < kWide; ++v) sum += abs(load(w + v * kLanes<T>));
  return add_lanes(sum) == 0;
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
