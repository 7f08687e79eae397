// Linear forms of score-matching losses, summed over the samples of a batch, and their gradients: included by
// sde.inc.h.
//
// Every operand is read once; arithmetic and sums in double, in an order that depends on the layout alone.
#pragma once

#include "cpu/sde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// sum[0 .. R) += <p, p>, <p, q>, sum |d| of the linear forms with the rows of c; with Graded also out = slope p.
template <int K, int R, bool Graded, typename T>
inline void add_forms(const double* c, const T* const* vectors, int n, double* sum, double slope, T* out) {
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
        if constexpr (Graded) store(out + i + u * lanes, VecD(all(slope) * form[0]));
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
    if constexpr (Graded) out[i] = static_cast<T>(slope * form[0]);
    if constexpr (R > 1) rest[1] += form[0] * form[1];
    if constexpr (R > 2) rest[2] += math::abs(form[2]);
  }
  for (int r = 0; r < R; ++r) sum[r] += rest[r];
}

template <typename T> using AddForms = void (*)(const double*, const T* const*, int, double*, double, T*);
template <typename T> inline AddForms<T> forms_of(int vectors, int results, bool graded) {
#define FK_ROW(K)                                                                   \
  {                                                                                 \
    add_forms<K, 1, false, T>, add_forms<K, 2, false, T>, add_forms<K, 3, false, T> \
  }
  static constexpr AddForms<T> table[kMaxFormVectors][3] = {FK_ROW(1), FK_ROW(2), FK_ROW(3), FK_ROW(4)};
#undef FK_ROW
  static constexpr AddForms<T> with_gradient[kMaxFormVectors] = {add_forms<1, 1, true, T>, add_forms<2, 1, true, T>,
                                                                 add_forms<3, 1, true, T>, add_forms<4, 1, true, T>};
  return graded ? with_gradient[vectors - 1] : table[vectors - 1][results - 1];
}

// out[w] = sum_k c[w][k] v[k], in double and rounded once.
template <int K, int W, typename T>
inline void combine_wide(const double (*c)[kMaxFormVectors], const T* const* vectors, T* const* out, int n) {
  constexpr int lanes = kLanesOf<double>;
  const T* v[K];
  T* to[W];
  VecD factor[W][K];
  for (int k = 0; k < K; ++k) v[k] = vectors[k];
  for (int w = 0; w < W; ++w) {
    to[w] = out[w];
    for (int k = 0; k < K; ++k) factor[w][k] = all(c[w][k]);
  }
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    VecD x[K];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) x[k] = widened(v[k] + i);
#pragma GCC unroll 3
    for (int w = 0; w < W; ++w) {
      VecD sum = factor[w][0] * x[0];
#pragma GCC unroll 4
      for (int k = 1; k < K; ++k) sum = fma(factor[w][k], x[k], sum);
      store(to[w] + i, sum);
    }
  }
  for (; i < n; ++i)
    for (int w = 0; w < W; ++w) {
      double sum = c[w][0] * static_cast<double>(v[0][i]);
      for (int k = 1; k < K; ++k) sum = math::mad(c[w][k], static_cast<double>(v[k][i]), sum);
      to[w][i] = static_cast<T>(sum);
    }
}
template <typename T> using CombineWide = void (*)(const double (*)[kMaxFormVectors], const T* const*, T* const*, int);
template <typename T> inline CombineWide<T> combine_wide_of(int vectors, int results) {
#define FK_ROW(K)                                                                              \
  {                                                                                            \
    combine_wide<K, 1, T>, combine_wide<K, 2, T>, combine_wide<K, 3, T>, combine_wide<K, 4, T> \
  }
  static constexpr CombineWide<T> table[kMaxFormVectors][kMaxFormVectors] = {FK_ROW(1), FK_ROW(2), FK_ROW(3),
                                                                             FK_ROW(4)};
#undef FK_ROW
  return table[vectors - 1][results - 1];
}

// Which vectors' gradients are wanted, and where a tile of them is made.
template <typename T> struct Gradients {
  const AffinePlan& p;
  int count = 0, of[kMaxFormVectors];
  alignas(64) T made[kMaxFormVectors][kSdeTile];
  T* at[kMaxFormVectors];

  explicit Gradients(const AffinePlan& plan) : p(plan) {
    for (int k = 0; p.weights && k < p.vectors; ++k)
      if (p.out[k].data) of[count++] = k;
  }
  void begin(std::int64_t b, std::int64_t i) {
    for (int w = 0; w < count; ++w) {
      at[w] = place<T>(p, p.out[of[w]], b, i);
      if (!at[w]) at[w] = made[w];
    }
  }
  void end(std::int64_t b, std::int64_t i, int n) const {
    for (int w = 0; w < count; ++w)
      if (at[w] == made[w]) put(p, p.out[of[w]], b, i, n, made[w]);
  }
};

// f(b, i, n, vectors) over the tiles of an item: elements [i, i + n) of sample b of the first `count` operands.
template <typename T, typename F>
inline void each_tile(const AffinePlan& p, const SdeItems& items, std::int64_t item, F&& f) {
  alignas(64) T held[kMaxFormVectors][kSdeTile];
  bool direct = true;
  for (int k = 0; k < p.vectors; ++k)
    direct &=
        p.native(p.in[k]) && p.adjacent(p.in[k]) && (!p.out[k].data || (p.native(p.out[k]) && p.adjacent(p.out[k])));
  const std::int64_t b = item / items.runs, begin = item % items.runs * kSdeRun, end = std::min(p.n, begin + kSdeRun);
  const std::int64_t tile = direct ? kSdeRun : kSdeTile;
  for (std::int64_t i = begin; i < end; i += tile) {
    const int n = static_cast<int>(std::min(tile, end - i));
    const T* v[kMaxFormVectors];
    for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, held[k]);
    f(b, i, n, v);
  }
}

// f(b, n, vectors) over the short samples of an item, whose operands are laid out together; f moves the vectors on.
template <typename T, typename F>
inline void each_short(const AffinePlan& p, const SdeItems& items, std::int64_t item, F&& f) {
  alignas(64) T held[kMaxFormVectors][kSdeTile];
  const int size = static_cast<int>(p.sample);
  const std::int64_t b0 = item * items.group, b1 = std::min(p.batch, b0 + items.group);
  const T* v[kMaxFormVectors];
  for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], 0, b0 * size, static_cast<int>(b1 - b0) * size, held[k]);
  for (std::int64_t b = b0; b < b1; ++b) {
    f(b, size, v);
    for (int k = 0; k < p.vectors; ++k) v[k] += size;
  }
}

// Sums into `partial`; the gradient of a single form is made in the same pass.
template <typename T>
void forms(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Gradients<T> to(p);
  const bool graded = p.results == 1 && to.count == 1;
  const AddForms<T> add = forms_of<T>(p.vectors, p.results, graded);
  const int count = p.results;
  double slope = 0, none;
  for (std::int64_t item = begin; item < end; ++item) {
    if (!p.sample) {
      double* const sums = partial + item * count;
      std::fill(sums, sums + count, 0.0);
      each_tile<T>(p, items, item, [&](std::int64_t b, std::int64_t i, int n, const T* const* v) {
        if (graded) p.form_slopes(b, to.of[0], slope, none), to.begin(b, i);
        add(p.wide_coefficients(b), v, n, sums, slope, to.at[0]);
        if (graded) to.end(b, i, n);
      });
      continue;
    }
    const std::int64_t from = item * items.group * p.sample;
    if (graded) to.begin(0, from);
    T* at = to.at[0];
    each_short<T>(p, items, item, [&](std::int64_t b, int n, const T* const* v) {
      double* const sums = partial + b * count;
      std::fill(sums, sums + count, 0.0);
      if (graded) p.form_slopes(b, to.of[0], slope, none);
      add(p.wide_coefficients(b), v, n, sums, slope, at);
      at += graded ? n : 0;
    });
    if (graded) to.end(0, from, static_cast<int>(at - to.at[0]));
  }
}

// The gradients of two forms, once the sums are known.
template <typename T>
void form_gradients(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end) {
  Gradients<T> to(p);
  double c[kMaxFormVectors][kMaxFormVectors];
  const CombineWide<T> combine = combine_wide_of<T>(p.vectors, to.count);
  const auto coefficients = [&](std::int64_t b) {
    const double *const first = p.wide_coefficients(b), *const second = first + p.vectors;
    for (int w = 0; w < to.count; ++w) {
      double of_p, of_q;
      p.form_slopes(b, to.of[w], of_p, of_q);
      for (int k = 0; k < p.vectors; ++k) c[w][k] = of_p * first[k] + of_q * second[k];
    }
  };
  for (std::int64_t item = begin; item < end; ++item) {
    if (!p.sample) {
      if (begin == item || item % items.runs == 0) coefficients(item / items.runs);
      each_tile<T>(p, items, item, [&](std::int64_t b, std::int64_t i, int n, const T* const* v) {
        to.begin(b, i);
        combine(c, v, to.at, n);
        to.end(b, i, n);
      });
      continue;
    }
    const std::int64_t from = item * items.group * p.sample;
    int done = 0;
    to.begin(0, from);
    T* at[kMaxFormVectors];
    std::copy(to.at, to.at + to.count, at);
    each_short<T>(p, items, item, [&](std::int64_t b, int n, const T* const* v) {
      coefficients(b);
      combine(c, v, at, n);
      for (int w = 0; w < to.count; ++w) at[w] += n;
      done += n;
    });
    to.end(0, from, done);
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
