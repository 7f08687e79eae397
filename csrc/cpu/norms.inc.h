// Body of the modulated norms and gated residuals, once per instruction set.
//
//   forward   a row is read once into the first cache, its statistics taken there in two passes, results written once
//   backward  the statistics again, then two sums over the row, then the gradients; sums over tokens in rows of a block
#include "cpu/norms.h"
#include "cpu/norms_row.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> void forward(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  Rows<T> rows(p, 3);
  const std::int64_t n = p.columns;
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t b = r / p.tokens, t = r % p.tokens;
    rows.coefficients(b, t);
    const T* x = rows.read(p.x, b, t, rows.buffer(0));
    if (p.branch) {
      T* const sum = rows.place(p.sum, b, t, rows.buffer(0));
      gated(x, rows.read(p.branch, b, t, rows.buffer(1)), rows.gate, sum, n);
      rows.write(p.sum, b, t, sum);
      x = sum;
    }
    if (p.norm == Norm::none) continue;
    const T* const ahead = r + 1 < end && rows.direct(p.x) ? static_cast<const T*>(p.x.data) + p.x.at((r + 1) / p.tokens, (r + 1) % p.tokens) : nullptr;
    const Statistics<T> s = statistics(p.norm, x, n, p.eps, ahead);
    T* const y = rows.place(p.out, b, t, rows.buffer(2));
    const T *const factor = rows.factor, *const addend = rows.addend;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i)
      y[i] = math::mad(math::mad(x[i] - s.mean, s.rstd, s.offset), factor[i], addend[i]);
    rows.write(p.out, b, t, y);
  }
}

// Sums over the row of g and g norm(x), g = dy factor; with kSums adds p and p norm(x) to the columns' sums, p = dy, or
// dy (1 + scale) where `times` is not null.
template <bool kSums, typename T>
inline std::pair<double, double> inner_sums(const T* x, const T* dy, const T* factor, const Statistics<T>& s,
                                            const T* times, T* sum_p, T* sum_pn, std::int64_t n) {
  constexpr int lanes = kLanesOf<T>, ways = 2;
  const Vec<T> mean = all(s.mean), rstd = all(s.rstd), offset = all(s.offset);
  Vec<T> first[ways] = {}, second[ways] = {};
  const auto at = [&](std::int64_t i, int k) {
    const Vec<T> hat = fma(load(x + i) - mean, rstd, offset), d = load(dy + i), g = d * load(factor + i);
    first[k] += g;
    second[k] = fma(g, hat, second[k]);
    if constexpr (kSums) {
      const Vec<T> q = times ? Vec<T>(d * (load(times + i) + T(1))) : d;
      store(sum_p + i, Vec<T>(load(sum_p + i) + q));
      store(sum_pn + i, fma(q, hat, load(sum_pn + i)));
    }
  };
  std::int64_t i = 0;
  for (; i + ways * lanes <= n; i += ways * lanes) at(i, 0), at(i + lanes, 1);
  for (; i + lanes <= n; i += lanes) at(i, 0);
  double a = 0, b = 0;
  for (; i < n; ++i) {
    const T hat = math::mad(x[i] - s.mean, s.rstd, s.offset), g = dy[i] * factor[i];
    a += static_cast<double>(g), b += static_cast<double>(g * hat);
    if constexpr (kSums) {
      const T q = times ? dy[i] * (times[i] + T(1)) : dy[i];
      sum_p[i] += q;
      sum_pn[i] = math::mad(q, hat, sum_pn[i]);
    }
  }
  return {a + add_lanes(first[0] + first[1]), b + add_lanes(second[0] + second[1])};
}

template <typename T> void backward(const NormPlan& p, std::int64_t begin, std::int64_t end, T* partial) {
  Rows<T> rows(p, 6);
  const std::int64_t n = p.columns, blocks = token_blocks(p);
  const int count = p.sum_count();
  const bool normed = p.norm != Norm::none && p.grad;
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b = item / blocks, from = item % blocks * kTokenBlock;
    const std::int64_t to = std::min(p.tokens, from + kTokenBlock);
    T* sums = partial + item * count * n;
    if (count) std::fill(sums, sums + count * n, T(0));
    T* const sum_gate = p.sum_gate ? sums + (count - 1) * n : nullptr;
    for (std::int64_t t = from; t < to; ++t) {
      rows.coefficients(b, t);
      const T *const x = rows.read(p.x, b, t, rows.buffer(0)), *branch = nullptr, *v = x;
      if (p.branch) {
        branch = rows.read(p.branch, b, t, rows.buffer(1));
        if (normed) {
          gated(x, branch, rows.gate, rows.buffer(0), n);
          v = rows.buffer(0);
        }
      }
      const T* const above = p.grad_sum ? rows.read(p.grad_sum, b, t, rows.buffer(2)) : nullptr;
      const T* d = above;  // the gradient in x
      if (normed) {
        const T *const dy = rows.read(p.grad, b, t, rows.buffer(3)), *const factor = rows.factor;
        const Statistics<T> s = statistics(p.norm, v, n, p.eps);
        const T* const times = p.weighted ? rows.scale() : nullptr;
        const auto [first, second] =
            p.sum_p ? inner_sums<true>(v, dy, factor, s, times, sums, sums + n, n)
                    : inner_sums<false>(v, dy, factor, s, times, static_cast<T*>(nullptr), static_cast<T*>(nullptr), n);
        const T mean_g = p.norm == Norm::layer ? static_cast<T>(first / static_cast<double>(n)) : T(0);
        const T mean_gn = static_cast<T>(second / static_cast<double>(n));
        if (p.to_scale) {
          T* const out = rows.place(p.to_scale, b, t, rows.buffer(4));
          const T *const w = rows.weight, *const add = rows.bias;
#pragma omp simd
          for (std::int64_t i = 0; i < n; ++i) {
            const T hat = math::mad(v[i] - s.mean, s.rstd, s.offset);
            out[i] = dy[i] * math::mad(hat, w ? w[i] : T(1), add ? add[i] : T(0));
          }
          rows.write(p.to_scale, b, t, out);
        }
        T* const to_x = rows.place(p.to_x, b, t, rows.buffer(4));
        const auto gradient = [&](std::int64_t i) {
          const T hat = math::mad(v[i] - s.mean, s.rstd, s.offset);
          return s.rstd * (math::mad(-hat, mean_gn, dy[i] * factor[i]) - mean_g);
        };
        if (above) {
#pragma omp simd
          for (std::int64_t i = 0; i < n; ++i) to_x[i] = above[i] + gradient(i);
        } else {
#pragma omp simd
          for (std::int64_t i = 0; i < n; ++i) to_x[i] = gradient(i);
        }
        rows.write(p.to_x, b, t, to_x);
        d = to_x;
      } else if (p.to_x) {
        T* const to_x = rows.place(p.to_x, b, t, rows.buffer(4));
        std::copy(d, d + n, to_x);
        rows.write(p.to_x, b, t, to_x);
      }
      if (!branch) continue;
      const T* const gate = rows.gate;
      if (sum_gate) {
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) sum_gate[i] = math::mad(d[i], branch[i], sum_gate[i]);
      }
      if (p.to_gate) {
        T* const out = rows.place(p.to_gate, b, t, rows.buffer(5));
#pragma omp simd
        for (std::int64_t i = 0; i < n; ++i) out[i] = d[i] * branch[i];
        rows.write(p.to_gate, b, t, out);
      }
      if (p.to_branch) {
        T* const out = rows.place(p.to_branch, b, t, rows.buffer(5));
        if (gate) {
#pragma omp simd
          for (std::int64_t i = 0; i < n; ++i) out[i] = gate[i] * d[i];
        } else {
          std::copy(d, d + n, out);
        }
        rows.write(p.to_branch, b, t, out);
      }
    }
  }
}

}  // namespace

void norm_rows(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.wide) forward<double>(p, begin, end);
  else forward<float>(p, begin, end);
}

void norm_vjp_blocks(const NormPlan& p, std::int64_t begin, std::int64_t end, void* partial) {
  if (p.wide) backward<double>(p, begin, end, static_cast<double*>(partial));
  else backward<float>(p, begin, end, static_cast<float*>(partial));
}

}  // namespace fokker::cpu::FK_ISA
