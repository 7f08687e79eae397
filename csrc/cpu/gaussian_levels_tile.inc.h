// What a tile of queries and a component are to the kernels of noise levels: products of variances as mantissas and
// exponents, a thread's arrays, products with bases.
#pragma once

#include <algorithm>

#include "cpu/aligned.h"
#include "cpu/gaussian_vector.inc.h"
#include "math/elementary.h"

namespace fokker::cpu::FK_ISA {
namespace {

typedef std::uint32_t VecU32 __attribute__((vector_size(kVectorBytes)));
typedef std::uint64_t VecU64 __attribute__((vector_size(kVectorBytes)));
template <typename T> struct BitsOf;
template <> struct BitsOf<float> {
  using Vec = VecU32;
  static constexpr std::uint32_t mantissa = 0x7fffffu, one = 0x3f800000u;
  static constexpr int shift = 23, bias = 127, most = 96;  // most mantissas whose product is finite
};
template <> struct BitsOf<double> {
  using Vec = VecU64;
  static constexpr std::uint64_t mantissa = 0xfffffffffffffull, one = 0x3ff0000000000000ull;
  static constexpr int shift = 52, bias = 1023, most = 960;
};

#if defined(__AVX512F__)
inline VecF reciprocal(VecF c) {
  const VecF r = _mm512_rcp14_ps(c);
  return fma(r, fma(-c, r, all(1.0f)), r);
}
inline VecD reciprocal(VecD c) {
  VecD r = _mm512_rcp14_pd(c);
  r = fma(r, fma(-c, r, all(1.0)), r);
  return fma(r, fma(-c, r, all(1.0)), r);
}
#else
template <typename V> inline V reciprocal(V c) { return all(decltype(c[0] + c[0])(1)) / c; }
#endif

// A product of positive normal numbers, as a product of mantissas and a sum of exponents.
template <typename T> struct LogProduct {
  using U = typename BitsOf<T>::Vec;
  using B = BitsOf<T>;
  Vec<T> mantissa[kWide];
  U exponent[kWide] = {};
  LogProduct() {
    for (auto& m : mantissa) m = all(T(1));
  }
  inline __attribute__((always_inline)) void times(int v, Vec<T> c) {
    const U bits = U(c);
    exponent[v] += bits >> B::shift;
    mantissa[v] *= Vec<T>((bits & B::mantissa) | B::one);
  }
  void normalise() {
    for (int v = 0; v < kWide; ++v) {
      const U bits = U(mantissa[v]);
      exponent[v] += (bits >> B::shift) - B::bias;
      mantissa[v] = Vec<T>((bits & B::mantissa) | B::one);
    }
  }
  // The logarithm of a product of `count`.
  void log(std::int64_t count, T* __restrict out) const {
    T high[kQueries<T>];
    for (int v = 0; v < kWide; ++v) {
      store(out + v * kLanes<T>, mantissa[v]);
      alignas(64) decltype(B::one + 0) held[kLanes<T>];
      __builtin_memcpy(held, &exponent[v], sizeof(held));
      for (int l = 0; l < kLanes<T>; ++l)
        high[v * kLanes<T> + l] = static_cast<T>(static_cast<std::int64_t>(held[l]) - count * B::bias);
    }
#pragma omp simd
    for (int q = 0; q < kQueries<T>; ++q) out[q] = math::mad(high[q], T(0.69314718055994530942), math::log(out[q]));
  }
};

template <typename T> struct Queries {
  Vec<T> alpha[kWide], square[kWide], noise[kWide];
  Queries(const GaussianLevels& p, std::int64_t first) {
    T a[kQueries<T>], s[kQueries<T>];
    for (int q = 0; q < kQueries<T>; ++q) {
      const std::int64_t i = std::min(first + q, p.n - 1);
      a[q] = of<T>(p.alpha)[p.one_alpha ? 0 : i];
      s[q] = of<T>(p.noise)[p.one_noise ? 0 : i];
    }
    for (int v = 0; v < kWide; ++v) {
      alpha[v] = load(a + v * kLanes<T>);
      square[v] = alpha[v] * alpha[v];
      noise[v] = load(s + v * kLanes<T>);
    }
  }
};

// What a thread holds of a tile: [coordinate][query], rows of products filled up to whole panels.
template <typename T> struct LevelsScratch {
  AlignedArray<T> x, delta, solved, scaled, moved, score, posterior, joint, least;
  explicit LevelsScratch(const GaussianLevels& p) {
    const std::int64_t wide = kQueries<T>, d = p.panels(p.d) * kRows, rank = p.panels(p.rank) * kRows;
    x.resize(p.d * wide);
    if (p.kind >= GaussianLevels::kFull) delta.resize(p.d * wide);
    if (p.kind != GaussianLevels::kIsotropic) solved.resize(rank * wide);
    if (p.kind == GaussianLevels::kFull) scaled.resize(rank * wide);
    if (p.kind == GaussianLevels::kLowRank) moved.resize(d * wide);
    if (p.score) score.resize(d * wide);
    if (p.posterior) posterior.resize(d * wide);
    if (p.joint) joint.resize(p.k * wide);
    least.resize(p.k);
    for (std::int64_t c = 0; c < p.k; ++c) {
      const T* v = of<T>(p.variance) + p.at(c) * p.rank;
      least[c] = p.floor ? of<T>(p.floor)[p.at(c)] : *std::min_element(v, v + p.rank);
    }
  }
};

// to = M from, or to += M from, of a matrix of `rows` rows.
template <bool kAdd, typename T>
void product(const T* panels, const T* from, std::int64_t rows, std::int64_t columns, T* __restrict to) {
  for (std::int64_t q = 0; q < GaussianLevels::panels(rows); ++q) {
    Vec<T> acc[kRows][kWide] = {};
    T* sum = to + q * kRows * kQueries<T>;
    if constexpr (kAdd)
      for (int r = 0; r < kRows; ++r)
        for (int v = 0; v < kWide; ++v) acc[r][v] = load(sum + r * kQueries<T> + v * kLanes<T>);
    multiply(panels + q * columns * kRows, from, columns, acc);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kWide; ++v) store(sum + r * kQueries<T> + v * kLanes<T>, acc[r][v]);
  }
}

template <typename T> struct Component {
  const T *mean, *variance, *basis, *turned;
  T floor, least, bias;
  Component(const GaussianLevels& p, const LevelsScratch<T>& s, std::int64_t c)
      : mean(of<T>(p.mean) + c * p.d),
        variance(of<T>(p.variance) + p.at(c) * p.rank),
        basis(p.basis ? of<T>(p.basis) + p.at(c) * p.panels(p.d) * kRows * p.rank : nullptr),
        turned(p.turned ? of<T>(p.turned) + p.at(c) * p.panels(p.rank) * kRows * p.d : nullptr),
        floor(p.floor ? of<T>(p.floor)[p.at(c)] : T(0)),
        least(s.least[c]),
        bias(of<T>(p.bias)[c]) {}
};

template <typename T> inline T* cell(const AlignedArray<T>& a, std::int64_t j, int v) {
  return a.get() + j * kQueries<T> + v * kLanes<T>;
}

// delta = x - a m, of one coordinate.
template <typename T> inline __attribute__((always_inline)) Vec<T> away(const LevelsScratch<T>& s, const Queries<T>& at,
                                                                        const T* mean, std::int64_t j, int v) {
  return fma(Vec<T>(-at.alpha[v]), all(mean[j]), load(cell(s.x, j, v)));
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
