// Gradients of modulated norms and gated residuals: included by norms.inc.h.
//
// With v = x + gate branch, n = norm(v), g = dy factor: the gradient in x is d = above + rstd (g - mean g - n mean(g
// n)), in the branch gate d, in the gate d branch. A first pass over a row takes its statistics and the sums of g and g
// v, a second one, over two rows at a time, writes the gradients and adds up what is summed over tokens.
#pragma once

#include "cpu/norms_row.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename S, typename T> struct GradientRow {
  const S *x, *branch, *dy, *above;
  S *to_x, *to_branch;
  T *to_gate, *to_scale;
  Statistics<T> s;
  T mean_g = 0, mean_gn = 0;
};
// What the rows of a sample share: coefficients, and the sums of the columns.
template <typename T> struct GradientColumns {
  const T *factor, *gate, *scale, *weight, *bias;
  T *sum_p, *sum_pn, *sum_gate;
  bool weighted, x_past, branch_past;  // past: results that go past the cache
};
// p = dy, or dy (1 + scale) where weighted, of which p and p norm(v) are summed.
template <typename V, typename T> FK_INLINE V summand(const GradientColumns<T>& c, V dy, std::int64_t i) {
  return c.weighted ? V(dy * (get<V>(c.scale + i) + spread<V>(T(1)))) : dy;
}

template <bool kBranch, typename V, typename S, typename T>
FK_INLINE V input(const GradientRow<S, T>& r, const GradientColumns<T>& c, std::int64_t i) {
  const V x = get<V>(r.x + i);
  if constexpr (!kBranch) return x;
  else return c.gate ? fma(get<V>(c.gate + i), get<V>(r.branch + i), x) : V(get<V>(r.branch + i) + x);
}

template <bool kBranch, typename S, typename T> inline void first_pass(GradientRow<S, T>& row,
                                                                       const GradientColumns<T>& columns, Norm norm,
                                                                       double eps, std::int64_t n, Ahead<S> ahead) {
  constexpr int lanes = kLanesOf<T>, ways = 2;
  const GradientRow<S, T> r = row;
  const GradientColumns<T> c = columns;
  const double count = static_cast<double>(n);
  const bool layer = norm == Norm::layer;
  T shift = 0;
  if (layer)
    shift = guess([&](std::int64_t i) { return input<kBranch, Vec<T>>(r, c, i); }, input<kBranch, T>(r, c, 0), n);
  for (bool again = false;; again = true) {
    Vec<T> d1[ways] = {}, d2[ways] = {}, g1[ways] = {}, gd[ways] = {};
    const Vec<T> by = all(shift);
    const auto at = [&](std::int64_t i, int k) __attribute__((always_inline)) {
      ahead.fetch(i);
      const Vec<T> d = input<kBranch, Vec<T>>(r, c, i) - by, g = load(r.dy + i) * load(c.factor + i);
      d1[k] += d;
      d2[k] = fma(d, d, d2[k]);
      g1[k] += g;
      gd[k] = fma(g, d, gd[k]);
    };
    std::int64_t i = 0;
    for (; i + ways * lanes <= n; i += ways * lanes) at(i, 0), at(i + lanes, 1);
    for (; i + lanes <= n; i += lanes) at(i, 0);
    double sum_d = 0, sum_dd = 0, sum_g = 0, sum_gd = 0;
    for (; i < n; ++i) {
      const double d = static_cast<double>(input<kBranch, T>(r, c, i) - shift);
      const double g = static_cast<double>(get<T>(r.dy + i) * c.factor[i]);
      sum_d += d, sum_dd += d * d, sum_g += g, sum_gd += g * d;
    }
    sum_d += add_lanes(Vec<T>(d1[0] + d1[1])), sum_dd += add_lanes(Vec<T>(d2[0] + d2[1]));
    sum_g += add_lanes(Vec<T>(g1[0] + g1[1])), sum_gd += add_lanes(Vec<T>(gd[0] + gd[1]));
    const double rest = layer ? sum_d / count : 0, variance = sum_dd / count - rest * rest;
    if (layer && !again && !(rest * rest <= 4 * variance)) {  // digits would cancel: see `statistics`
      shift = static_cast<T>(static_cast<double>(shift) + rest);
      continue;
    }
    const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
    row.s = {shift, static_cast<T>(rstd), static_cast<T>(-rest * rstd)};
    row.mean_g = layer ? static_cast<T>(sum_g / count) : T(0);
    row.mean_gn = static_cast<T>(rstd * (sum_gd - rest * sum_g) / count);
    return;
  }
}

// Adds p and p norm(v) to the columns' sums. In a loop of its own: stores that wait for a line of the cache would hold
// up those of the sums. Where results go past the cache none waits, and the second pass adds them (4 to 7%); as it does
// where it saves the conversion of half-precision rows (9 to 15%).
template <int R, bool kBranch, typename S, typename T>
inline void add_columns(const GradientRow<S, T>* from, const GradientColumns<T>& columns, std::int64_t n) {
  const GradientRow<S, T> one = from[0], two = from[R - 1];  // not an array: in registers
  const GradientColumns<T> c = columns;
  const auto at = [&](std::int64_t i, auto zero) __attribute__((always_inline)) {
    using V = decltype(zero);
    V p = get<V>(c.sum_p + i), pn = get<V>(c.sum_pn + i);
    const auto row = [&](const GradientRow<S, T>& r) __attribute__((always_inline)) {
      const V dy = get<V>(r.dy + i), v = input<kBranch, V>(r, c, i);
      const V hat = fma(V(v - spread<V>(r.s.mean)), spread<V>(r.s.rstd), spread<V>(r.s.offset));
      const V q = summand(c, dy, i);
      p += q;
      pn = fma(q, hat, pn);
    };
    row(one);
    if constexpr (R == 2) row(two);
    put(c.sum_p + i, p);
    put(c.sum_pn + i, pn);
  };
  each<T>(n, at);
}

template <int R, bool kBranch, bool kNormed, bool kSums, typename S, typename T>
inline void second_pass(const GradientRow<S, T>* from, const GradientColumns<T>& columns, std::int64_t n,
                        Ahead<S> ahead) {
  const GradientRow<S, T> one = from[0], two = from[R - 1];  // not an array: in registers
  const GradientColumns<T> c = columns;
  const auto at = [&](std::int64_t i, auto zero) __attribute__((always_inline)) {
    using V = decltype(zero);
    V gated = zero, p = zero, pn = zero;
    ahead.fetch(i);
    if constexpr (kSums) p = get<V>(c.sum_p + i), pn = get<V>(c.sum_pn + i);
    const auto row = [&](const GradientRow<S, T>& r) __attribute__((always_inline)) {
      V d = r.above ? get<V>(r.above + i) : zero;
      if constexpr (kNormed) {
        const V v = input<kBranch, V>(r, c, i), dy = get<V>(r.dy + i);
        const V hat = fma(V(v - spread<V>(r.s.mean)), spread<V>(r.s.rstd), spread<V>(r.s.offset));
        if constexpr (kSums) {
          const V q = summand(c, dy, i);
          p += q;
          pn = fma(q, hat, pn);
        }
        const V inner = fma(V(-hat), spread<V>(r.mean_gn), V(dy * get<V>(c.factor + i) - spread<V>(r.mean_g)));
        d = fma(spread<V>(r.s.rstd), inner, d);
        if (r.to_scale) {
          V normed = c.weight ? V(hat * get<V>(c.weight + i)) : hat;
          if (c.bias) normed += get<V>(c.bias + i);
          put(r.to_scale + i, V(dy * normed));
        }
      }
      if constexpr (kBranch) {
        const V product = d * get<V>(r.branch + i);
        gated += product;
        if (r.to_gate) put(r.to_gate + i, product);
        if (r.to_branch) put(r.to_branch + i, c.gate ? V(get<V>(c.gate + i) * d) : d, c.branch_past);
      }
      if (r.to_x) put(r.to_x + i, d, c.x_past);
    };
    row(one);
    if constexpr (R == 2) row(two);
    if constexpr (kSums) put(c.sum_p + i, p), put(c.sum_pn + i, pn);
    if (kBranch && c.sum_gate) put(c.sum_gate + i, V(get<V>(c.sum_gate + i) + gated));
  };
  each<T>(n, at);
}

// Rows t .. t + R - 1 of sample b, which share their coefficients.
template <int R, bool kBranch, bool kNormed, typename S, typename T>
inline void gradient_rows(Rows<T>& rows, std::int64_t b, std::int64_t t, T* sums, bool x_past, bool branch_past) {
  constexpr int kEach = 8;  // buffers of a row
  const NormPlan& p = rows.p;
  const std::int64_t n = rows.n;
  rows.coefficients(b, t);
  T* const sum_gate = p.sum_gate ? sums + (p.sum_count() - 1) * n : nullptr;
  const GradientColumns<T> c{rows.factor,
                             rows.gate,
                             rows.scale(),
                             rows.weight,
                             rows.bias,
                             p.sum_p ? sums : nullptr,
                             p.sum_p ? sums + n : nullptr,
                             sum_gate,
                             p.weighted && rows.scale(),
                             x_past,
                             branch_past};
  GradientRow<S, T> r[R];
  for (int k = 0; k < R; ++k) {
    const auto buffer = [&](int j) { return rows.buffer(k * kEach + j); };
    const auto read = [&](const RowOperand& o, int j) {
      return o ? rows.template read<S>(o, b, t + k, buffer(j)) : nullptr;
    };
    const auto place = [&](const RowOperand& o, int j) {
      return o ? rows.template place<S>(o, b, t + k, buffer(j)) : nullptr;
    };
    const auto own = [&](const RowOperand& o, int j) { return o ? rows.place(o, b, t + k, buffer(j)) : nullptr; };
    r[k] = {read(p.x, 0),
            read(p.branch, 1),
            kNormed ? read(p.grad, 2) : nullptr,
            read(p.grad_sum, 3),
            place(p.to_x, 4),
            place(p.to_branch, 5),
            own(p.to_gate, 6),
            kNormed ? own(p.to_scale, 7) : nullptr,
            {},
            T(0),
            T(0)};
    if constexpr (kNormed)
      first_pass<kBranch>(r[k], c, p.norm, p.eps, n,
                          Ahead<S>{rows.template next<S>(p.x, b, t + k), rows.template next<S>(p.grad, b, t + k)});
  }
  const std::int64_t last = t + R - 1;
  const Ahead<S> ahead{rows.template next<S>(p.grad_sum, b, last), rows.template next<S>(p.branch, b, last)};
  const bool together = kNormed && p.sum_p && (x_past || sizeof(S) == 2);
  if constexpr (kNormed) {
    if (together) second_pass<R, kBranch, true, true>(r, c, n, ahead);
    else if (p.sum_p) add_columns<R, kBranch>(r, c, n);
  }
  if (!together) second_pass<R, kBranch, kNormed, false>(r, c, n, ahead);
  for (int k = 0; k < R; ++k) {
    rows.write(p.to_x, b, t + k, r[k].to_x);
    rows.write(p.to_branch, b, t + k, r[k].to_branch);
    rows.write(p.to_gate, b, t + k, r[k].to_gate);
    if (kNormed) rows.write(p.to_scale, b, t + k, r[k].to_scale);
  }
}

template <bool kBranch, bool kNormed, typename S, typename T>
void gradients(const NormPlan& p, std::int64_t begin, std::int64_t end, T* partial) {
  Rows<T> rows(p, 16);
  const std::int64_t blocks = token_blocks(p), size = p.sum_count() * p.columns;
  const bool alone = p.gate.per_token() || p.scale.per_token();
  const bool x_past = past_cache<S, T>(p, p.to_x), branch_past = past_cache<S, T>(p, p.to_branch);
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / blocks, from = item % blocks * p.token_block;
    const std::int64_t to = std::min(p.tokens, from + p.token_block);
    T* const sums = partial + item * size;
    if (size) std::fill(sums, sums + size, T(0));
    std::int64_t t = from;
    for (; !alone && t + 2 <= to; t += 2) gradient_rows<2, kBranch, kNormed, S>(rows, b, t, sums, x_past, branch_past);
    for (; t < to; ++t) gradient_rows<1, kBranch, kNormed, S>(rows, b, t, sums, x_past, branch_past);
  }
  if (x_past || branch_past) finish_streams();
}

template <typename S, typename T> void backward(const NormPlan& p, std::int64_t begin, std::int64_t end, T* partial) {
  const bool normed = p.norm != Norm::none && p.grad;
  if (p.branch && normed) gradients<true, true, S>(p, begin, end, partial);
  else if (normed) gradients<false, true, S>(p, begin, end, partial);
  else if (p.branch) gradients<true, false, S>(p, begin, end, partial);
  else gradients<false, false, S>(p, begin, end, partial);
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
