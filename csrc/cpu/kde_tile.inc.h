// Register tiles of the density sums: distances of queries and data, and the product of weights and values.
#pragma once

#include "cpu/kde_plan.h"
#include "cpu/simd.h"
#include "math/kde_kernel.h"

namespace fokker::cpu::FK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8, kVectors = 3;  // 24 of 32 registers accumulate
#elif defined(__AVX2__)
constexpr int kRows = 4, kVectors = 3;  // 12 of 16
#else
constexpr int kRows = 4, kVectors = 2;
#endif
template <typename T> constexpr int kPanel = kVectors * kLanesOf<T>;
template <typename T> constexpr int kTile = 3072 / static_cast<int>(sizeof(T));
template <typename T> constexpr int kTileStride = kTile<T> + 64 / static_cast<int>(sizeof(T));

// acc[r][v] += sum_k f(x[r kRowStep + k kStep], y[k stride + v])
template <Metric metric, int kRowStep, int kStep, int kWide, typename A>
inline __attribute__((always_inline)) void accumulate(const A* __restrict x, const A* __restrict y, std::int64_t stride,
                                                      std::int64_t count, Vec<A> (&acc)[kRows][kWide]) {
  for (std::int64_t k = 0; k < count; ++k) {
    Vec<A> b[kWide];
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) {
      b[v] = load(y + k * stride + v * kLanesOf<A>);
      __builtin_prefetch(y + (k + 16) * stride + v * kLanesOf<A>);  // from the second level: 65% to 90% of peak
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec<A> a = all(x[r * kRowStep + k * kStep]);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        if constexpr (metric == Metric::product) acc[r][v] = fma(a, b[v], acc[r][v]);
        else if constexpr (metric == Metric::square) {
          const Vec<A> t = a - b[v];
          acc[r][v] = fma(t, t, acc[r][v]);
        } else acc[r][v] += abs(Vec<A>(a - b[v]));
      }
    }
  }
}

// Long sums in blocks: their rounding errors grow with the block's length only.
template <typename V> inline __attribute__((always_inline)) void clear(V (&acc)[kRows][kVectors]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[r][v] = V{};
}

template <Metric metric, int kBlock, typename A>
inline __attribute__((always_inline)) void distances(const A* __restrict x, const A* __restrict y, std::int64_t d,
                                                     Vec<A> (&acc)[kRows][kVectors]) {
  clear(acc);
  if constexpr (kBlock == 0) accumulate<metric, 1, kRows>(x, y, kPanel<A>, d, acc);
  else {
    constexpr std::int64_t block = kBlock;
    Vec<A> total[kRows][kVectors];
    clear(total);
    std::int64_t k = 0;
    for (; k + block < d; k += block) {
      accumulate<metric, 1, kRows>(x + k * kRows, y + k * kPanel<A>, kPanel<A>, block, acc);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[r][v] += acc[r][v];
      clear(acc);
    }
    accumulate<metric, 1, kRows>(x + k * kRows, y + k * kPanel<A>, kPanel<A>, d - k, acc);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] += total[r][v];
  }
}

enum class Exponent { none, one, several };  // distances as they are, one bandwidth, several

// Exponents less top and the largest of each row, or distances, of kRows queries and `count` data from `column` on.
template <Metric metric, Exponent exponent, int kBlock, typename T, typename A>
void fill_tile(const KdeBlock<T, A>& b, const A* x, const A* top, const A* row_scale, const A* row_norm,
               std::int64_t column, std::int64_t count, T* tile, T* most) {
  using V = Vec<A>;
  constexpr int lanes = kLanesOf<A>;
  const auto& chunk = *b.chunk;
  const std::int64_t d = b.call->d;
  const V s = all(b.scale);
  V highest[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) highest[r] = all(-math::infinity<A>());
  for (std::int64_t p = 0; p < count; p += kPanel<A>) {
    V acc[kRows][kVectors];
    distances<metric, kBlock>(x, chunk.panels.get() + (column + p) * d, d, acc);
    V term[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) term[v] = load(chunk.term.get() + column + p + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      V here;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        V t = acc[r][v];
        if constexpr (exponent == Exponent::one) t = fma(s, t, term[v]) - all(top[r]);
        if constexpr (exponent == Exponent::several) {
          const V c = load(chunk.scale.get() + column + p + v * lanes),
                  n = load(chunk.norm.get() + column + p + v * lanes);
          t = fma(V((t + (n + all(row_norm[r]))) * all(row_scale[r])), c, term[v]) - all(top[r]);
        }
        store(tile + r * kTileStride<T> + p + v * lanes, t);
        if constexpr (exponent != Exponent::none) here = v == 0 ? t : max(here, t);
      }
      if constexpr (exponent != Exponent::none) highest[r] = max(highest[r], here);
    }
  }
  if constexpr (exponent != Exponent::none)
    for (int r = 0; r < kRows; ++r) most[r] = static_cast<T>(max_lanes(highest[r]));
}

template <int kWide, typename T> inline void add_product(const T* w, std::int64_t count, const T* v, std::int64_t width,
                                                         std::int64_t stride, int rows, const T* factor, T* sums) {
  Vec<T> acc[kRows][kWide] = {};
  accumulate<Metric::product, kTileStride<T>, 1>(w, v, width, count, acc);
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < kWide; ++i) {
      T* to = sums + r * stride + i * kLanesOf<T>;
      store(to, fma(acc[r][i], all(factor[r]), load(to)));
    }
}

// sums[r] += factor[r] sum_j w[r][j] values[j]
template <typename T, typename A> __attribute__((noinline)) void add_values(const KdeBlock<T, A>& b, const T* w,
                                                                            std::int64_t column, std::int64_t count,
                                                                            int rows, const T* factor, T* sums) {
  for (std::int64_t at = 0; at < b.value_stride; at += b.width) {
    const std::int64_t width = b.value_stride - at < b.width ? b.value_stride - at : b.width;
    const T* v = b.chunk->values.get() + at * b.chunk->padded + column * width;
    switch (width / kLanesOf<T>) {
      case 1:
        add_product<1>(w, count, v, width, b.value_stride, rows, factor, sums + at);
        break;
      case 2:
        add_product<2>(w, count, v, width, b.value_stride, rows, factor, sums + at);
        break;
      default:
        add_product<kVectors>(w, count, v, width, b.value_stride, rows, factor, sums + at);
    }
  }
}

// sums[r][k] += sum_j w[r][j] (y_jk - x_rk) for few coordinates: differences as they are round less than products of
// centred data, and need no packed values. x as packed for the distances.
template <typename T> __attribute__((noinline)) void add_offsets(const KdeBlock<T, T>& b, const T* x, const T* w,
                                                                 std::int64_t column, std::int64_t count, int rows,
                                                                 T* sums) {
  const std::int64_t d = b.call->d;
  const T* panels = b.chunk->panels.get() + column * d;
  for (int r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < d; ++k) {
      const Vec<T> from = all(x[k * kRows + r]);
      Vec<T> acc[kVectors] = {};
      for (std::int64_t p = 0; p < count; p += kPanel<T>)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const std::int64_t at = p + v * kLanesOf<T>;
          acc[v] = fma(load(w + r * kTileStride<T> + at),
                       Vec<T>(load(panels + p * d + k * kPanel<T> + v * kLanesOf<T>) - from), acc[v]);
        }
      double sum = 0;
      for (int v = 0; v < kVectors; ++v) sum += add_lanes(acc[v]);
      sums[r * b.value_stride + k] += static_cast<T>(sum);
    }
}

// sums[k] += sum_j w[j] sign(y_jk - x_k) for one query; x is padded as the values are.
template <typename T, typename A>
void add_signs(const KdeBlock<T, A>& b, const T* w, std::int64_t column, std::int64_t count, const T* x, T* sums) {
  for (std::int64_t at = 0; at < b.value_stride; at += kLanesOf<T>) {
    const std::int64_t panel = at / b.width * b.width;
    const std::int64_t width = b.value_stride - panel < b.width ? b.value_stride - panel : b.width;
    const T* v = b.chunk->values.get() + panel * b.chunk->padded + column * width + (at - panel);
    T sum[kLanesOf<T>] = {};
    for (std::int64_t j = 0; j < count; ++j)
#pragma omp simd
      for (int l = 0; l < kLanesOf<T>; ++l) {
        const T y = v[j * width + l];
        sum[l] += y > x[at + l] ? w[j] : (y < x[at + l] ? -w[j] : T(0));
      }
    for (int l = 0; l < kLanesOf<T>; ++l) sums[at + l] += sum[l];
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
