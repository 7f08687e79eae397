// Vector-Jacobian products of the steps: included by sde.inc.h.
#pragma once

#include "cpu/sde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// With s what the coefficients are linear in (y, or log(y / x)): h = the gradient in s. Then gradients in the vectors
// are sums of h over the results, and in the coefficients inner products with h.
template <typename T>
inline void vjp_tile(Tiles<T>& t, const Table<T>& c, std::int64_t b, std::int64_t i, int n, const T* z, double* sums) {
  const AffinePlan& p = t.p;
  const int joined = p.joined(), results = p.results;
  const bool reads = p.exponential || p.clipped || sums;  // a linear step's vectors matter to its coefficients only
  const T *v[kMaxJoined + 1] = {}, *g[kMaxResults], *h[kMaxResults];
  if (reads)
    for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, t.in[k]);
  v[p.vectors] = z;
  const T* const m1 = p.clipped ? v[1] : nullptr;
  // work: g or h by result, gradient in m_1 before the clip by result, gradient in x, clipped m_1, spare
  T *const to_x = t.work[6], *const clipped = t.work[7], *const spare = t.work[8];
  T factor[kMaxResults];
  bool started = false;  // whether to_x holds anything yet
  for (int r = 0; r < results; ++r) {
    g[r] = h[r] = view(p, p.grad[r], b, i, n, t.work[r]);
    if (p.clipped) {
      clip(v[0], m1, c[r] + p.columns - 2, static_cast<T>(p.clip), clipped, n);
      v[1] = clipped;
    }
    if (p.exponential) {
      combine<false>(joined - 1, c[r][0], v[0], c[r] + 1, v + 1, spare, n);
      const T *const x = v[0], *const gr = g[r];
      T* const to_s = t.work[r];
#pragma omp simd
      for (int k = 0; k < n; ++k) {
        const T scaled = gr[k] * math::exp(spare[k]);
        to_x[k] = started ? to_x[k] + scaled : scaled;
        to_s[k] = scaled * x[k];
      }
      h[r] = to_s;
      started = true;
    }
    if (sums) {
      double* const of = sums + r * p.columns;
      if (p.exponential) {
        double total = 0;
        for (int k = 0; k < n; ++k) total += static_cast<double>(h[r][k]);
        of[0] += total;
      } else {
        dots(1, h[r], v, n, of);
      }
      if (joined > 1) dots(joined - 1, h[r], v + 1, n, of + 1);
    }
    if (p.clipped) {
      const T *const x = v[0], *const hr = h[r], pc = c[r][p.columns - 2], qc = c[r][p.columns - 1];
      const T range = static_cast<T>(p.clip), weight = c[r][1];
      T* const through = t.work[3 + r];
#pragma omp simd
      for (int k = 0; k < n; ++k) through[k] = math::unclipped(x[k], m1[k], pc, qc, range) ? weight * hr[k] : T(0);
      if (sums) {
        const T* both[2] = {x, m1};
        dots(2, through, both, n, sums + r * p.columns + p.columns - 2);
      }
    }
  }
  const auto write = [&](int k, auto&& fill) {
    if (!p.out[k].data) return;
    T *y = place<T>(p, p.out[k], b, i), *const direct = y;
    if (!y) y = spare;
    fill(y);
    if (!direct) put(p, p.out[k], b, i, n, y);
  };
  // The gradient in a vector: the sum over results of `factor` times h (or what went through the clip).
  const T* const passed[kMaxResults] = {t.work[3], t.work[4], t.work[5]};
  const auto sum_of = [&](const T* const* parts, T* y) {
    combine<true>(results - 1, factor[0], parts[0], factor + 1, parts + 1, y, n);
  };
  write(0, [&](T* y) {
    for (int r = 0; r < results; ++r) factor[r] = c[r][0];
    if (p.exponential) std::copy(to_x, to_x + n, y);
    else sum_of(h, y);
    if (!p.clipped) return;
    for (int r = 0; r < results; ++r) factor[r] = c[r][p.columns - 2];
    combine<true>(results, T(1), y, factor, passed, y, n);
  });
  for (int k = 1; k < p.vectors; ++k)
    write(k, [&](T* y) {
      const bool through = p.clipped && k == 1;
      for (int r = 0; r < results; ++r) factor[r] = c[r][through ? p.columns - 1 : k];
      sum_of(through ? passed : h, y);
    });
}

template <typename T>
void vjp(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int count = p.sum_count();
  std::int64_t of = -1;
  Table<T> c;
  for (std::int64_t item = begin; item < end; ++item) {
    double* sums = partial ? partial + item * count : nullptr;
    if (sums) std::fill(sums, sums + count, 0.0);
    t.each(items, item, kSdeTile, [&](std::int64_t b, std::int64_t i, int n, const T* z) {
      if (b != of) t.coefficients(of = b, c);
      vjp_tile(t, c, b, i, n, z, sums);
    });
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
