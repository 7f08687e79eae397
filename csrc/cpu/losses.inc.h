// Reductions of score-matching losses over the samples of a batch: included by sde.inc.h.
//
// Every operand is read once; arithmetic and sums in double, in an order that depends on the layout alone.
#pragma once

#include "cpu/sde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// sum[0 .. R) += <p, p>, <p, q>, sum |d| of the linear forms with the rows of c.
template <int K, int R, typename T>
inline void add_forms(const double* c, const T* const* vectors, int n, double* sum) {
  constexpr int lanes = kLanesOf<double>, chains = 2;
  const T* v[K];
  for (int k = 0; k < K; ++k) v[k] = vectors[k];
  double rest[3] = {0.0, 0.0, 0.0};
  int i = 0;
  if (n >= chains * lanes) {
    VecD factor[R][K], total[chains][R] = {};
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) factor[r][k] = all(c[r * K + k]);
    for (; i + chains * lanes <= n; i += chains * lanes) {
#pragma GCC unroll 2
      for (int u = 0; u < chains; ++u) {
        VecD x[K], form[R];
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) x[k] = widened(v[k] + i + u * lanes);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          form[r] = factor[r][0] * x[0];
#pragma GCC unroll 4
          for (int k = 1; k < K; ++k) form[r] = fma(factor[r][k], x[k], form[r]);
        }
        total[u][0] = fma(form[0], form[0], total[u][0]);
        if constexpr (R > 1) total[u][1] = fma(form[0], form[1], total[u][1]);
        if constexpr (R > 2) total[u][2] += abs(form[2]);
      }
    }
    for (int r = 0; r < R; ++r) rest[r] = add_lanes(VecD(total[0][r] + total[1][r]));
  }
  for (; i < n; ++i) {
    double form[R];
    for (int r = 0; r < R; ++r) {
      form[r] = c[r * K] * static_cast<double>(v[0][i]);
      for (int k = 1; k < K; ++k) form[r] = math::mad(c[r * K + k], static_cast<double>(v[k][i]), form[r]);
    }
    rest[0] += form[0] * form[0];
    if constexpr (R > 1) rest[1] += form[0] * form[1];
    if constexpr (R > 2) rest[2] += math::abs(form[2]);
  }
  for (int r = 0; r < R; ++r) sum[r] += rest[r];
}

template <typename T> using AddForms = void (*)(const double*, const T* const*, int, double*);
template <typename T> inline AddForms<T> forms_of(int vectors, int results) {
#define FK_ROW(K) {add_forms<K, 1, T>, add_forms<K, 2, T>, add_forms<K, 3, T>}
  static constexpr AddForms<T> table[kMaxFormVectors][3] = {FK_ROW(1), FK_ROW(2), FK_ROW(3), FK_ROW(4)};
#undef FK_ROW
  return table[vectors - 1][results - 1];
}

// f(b, i, n, vectors) over the tiles of an item: elements [i, i + n) of sample b of the first `count` operands.
template <typename T, typename F>
inline void each_tile(const AffinePlan& p, const SdeItems& items, std::int64_t item, F&& f) {
  alignas(64) T held[kMaxFormVectors][kSdeTile];
  bool direct = true;
  for (int k = 0; k < p.vectors; ++k) direct &= p.native(p.in[k]) && p.adjacent(p.in[k]);
  const std::int64_t b = item / items.runs, begin = item % items.runs * kSdeRun, end = std::min(p.n, begin + kSdeRun);
  const std::int64_t tile = direct ? kSdeRun : kSdeTile;
  for (std::int64_t i = begin; i < end; i += tile) {
    const int n = static_cast<int>(std::min(tile, end - i));
    const T* v[kMaxFormVectors];
    for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, held[k]);
    f(b, i, n, v);
  }
}

template <typename T>
void forms(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  const AddForms<T> add = forms_of<T>(p.vectors, p.results);
  const int count = p.results;
  for (std::int64_t item = begin; item < end; ++item) {
    if (!p.sample) {
      double* const sums = partial + item * count;
      std::fill(sums, sums + count, 0.0);
      each_tile<T>(p, items, item, [&](std::int64_t b, std::int64_t, int n, const T* const* v) {
        add(p.wide_coefficients(b), v, n, sums);
      });
      continue;
    }
    // Short samples, several a tile.
    alignas(64) T held[kMaxFormVectors][kSdeTile];
    const int size = static_cast<int>(p.sample);
    const std::int64_t b0 = item * items.group, b1 = std::min(p.batch, b0 + items.group);
    const T* v[kMaxFormVectors];
    for (int k = 0; k < p.vectors; ++k)
      v[k] = view(p, p.in[k], 0, b0 * size, static_cast<int>(b1 - b0) * size, held[k]);
    for (std::int64_t b = b0; b < b1; ++b) {
      double* const sums = partial + b * count;
      std::fill(sums, sums + count, 0.0);
      add(p.wide_coefficients(b), v, size, sums);
      for (int k = 0; k < p.vectors; ++k) v[k] += size;
    }
  }
}

constexpr int kLot = 16;  // gcc vectorises the logarithm of a fixed count only

// log(x / x0) + shift + a h, h = x s or s, of kLot elements.
template <bool Multiplied, typename T>
inline void residual_lot(const T* s, const T* x, const T* x0, double a, double shift, double* to) {
  double quotient[kLot];
  for (int l = 0; l < kLot; ++l) quotient[l] = static_cast<double>(x[l]) / static_cast<double>(x0[l]);
  for (int l = 0; l < kLot; ++l) quotient[l] = math::log(quotient[l]) + shift;
  for (int l = 0; l < kLot; ++l)
    to[l] = math::mad(Multiplied ? a * static_cast<double>(x[l]) : a, static_cast<double>(s[l]), quotient[l]);
}
template <bool Multiplied, typename T>
inline void residuals(const T* s, const T* x, const T* x0, double a, double shift, int n, double* to) {
  int k = 0;
  for (; k + kLot <= n; k += kLot) residual_lot<Multiplied>(s + k, x + k, x0 + k, a, shift, to + k);
  if (k == n) return;
  T rest[3][kLot] = {};
  double made[kLot];
  std::copy(s + k, s + n, rest[0]), std::copy(x + k, x + n, rest[1]), std::copy(x0 + k, x0 + n, rest[2]);
  residual_lot<Multiplied>(rest[0], rest[1], rest[2], a, shift, made);
  std::copy(made, made + (n - k), to + k);
}

// The residual of a multiplicative loss: into sums, or as the gradient in the prediction.
template <typename T>
void lognormal(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  alignas(64) double residual[kSdeTile];
  alignas(64) T made[kSdeTile];
  const auto fill = p.multiplied ? &residuals<true, T> : &residuals<false, T>;
  for (std::int64_t item = begin; item < end; ++item) {
    if (partial) partial[item] = 0.0;
    each_tile<T>(p, items, item, [&](std::int64_t b, std::int64_t i, int n, const T* const* v) {
      const double* const c = p.wide_coefficients(b);
      const double a = c[0], slope = 2.0 * c[2] * a;
      for (int from = 0; from < n; from += kSdeTile) {
        const int count = std::min(kSdeTile, n - from);
        const T* const x = v[1] + from;
        fill(v[0] + from, x, v[2] + from, a, c[1], count, residual);
        if (partial) {
          const double* const both[1] = {residual};
          dots(1, static_cast<const double*>(residual), both, count, partial + item);
        } else if (p.multiplied) {
#pragma omp simd
          for (int k = 0; k < count; ++k) made[k] = static_cast<T>(slope * static_cast<double>(x[k]) * residual[k]);
        } else {
#pragma omp simd
          for (int k = 0; k < count; ++k) made[k] = static_cast<T>(slope * residual[k]);
        }
        if (!partial) put(p, p.out[0], b, i + from, count, made);
      }
    });
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
