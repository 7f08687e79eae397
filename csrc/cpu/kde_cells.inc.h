// Kernels of the expansion about a cell's centre (kde_cells.h): its moments, and the sums at the cell's queries.
#pragma once

#include <algorithm>

#include "cpu/kde_plan.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kOrder = KdeCell::kOrder, kBatch = 64;  // data between two moves of the moments into double

// h times q in the lanes (powers `first` and on) whose number has this bit.
template <int kBit> inline VecF times_where(VecF h, float q, [[maybe_unused]] int first) {
#if defined(__AVX512F__)
  constexpr __mmask16 where[] = {0xaaaa, 0xcccc, 0xf0f0, 0xff00};
  return _mm512_mask_mul_ps(h, where[kBit], h, all(q));
#else
  VecI32 where;
  for (int l = 0; l < kLanesOf<float>; ++l) where[l] = (first + l) >> kBit & 1 ? -1 : 0;
  return where ? VecF(h * all(q)) : h;
#endif
}

}  // namespace

// moments[a][b] = sum_j e_j q0_j^a q1_j^b over the runs, with z = y_j - centre, q = beta z, e_j = 2^(scale |z|^2 +
// term_j).
void kde_moments(const KdeCell* cell) {
  const FlushSubnormals flush;
  const KdeCell& c = *cell;
  constexpr int lanes = kLanesOf<float>, wide = kOrder / lanes;
  alignas(64) float left[kOrder][kBatch], right[4][kBatch];
  std::fill(c.moments, c.moments + kOrder * kOrder, 0.0);
  for (std::int64_t run = 0; run < c.run_count; ++run)
    for (std::int64_t begin = c.runs[run].begin; begin < c.runs[run].end; begin += kBatch) {
      const std::int64_t count = std::min<std::int64_t>(kBatch, c.runs[run].end - begin);
      for (std::int64_t j = 0; j < count; j += lanes) {
        const VecF z0 = load(c.y[0] + begin + j) - all(c.centre[0]), z1 = load(c.y[1] + begin + j) - all(c.centre[1]);
        const VecF q0 = z0 * all(c.beta), q1 = z1 * all(c.beta);
        VecF e = exp2(fma(fma(z1, z1, VecF(z0 * z0)), all(c.scale), load(c.term + begin + j)));
#pragma GCC unroll 16
        for (int a = 0; a < kOrder; ++a) {
          store(&left[a][j], e);
          e = e * q0;
        }
        VecF q = q1;
#pragma GCC unroll 4
        for (int bit = 0; bit < 4; ++bit) {
          store(&right[bit][j], q);
          q = q * q;
        }
      }
      VecF sum[kOrder][wide] = {};
      for (std::int64_t j = 0; j < count; ++j) {
        VecF h[wide];
        for (int w = 0; w < wide; ++w) {
          h[w] = times_where<0>(all(1.0f), right[0][j], w * lanes);
          h[w] = times_where<1>(h[w], right[1][j], w * lanes);
          h[w] = times_where<2>(h[w], right[2][j], w * lanes);
          h[w] = times_where<3>(h[w], right[3][j], w * lanes);
        }
#pragma GCC unroll 16
        for (int a = 0; a < kOrder; ++a)
          for (int w = 0; w < wide; ++w) sum[a][w] = fma(all(left[a][j]), h[w], sum[a][w]);
      }
      for (int a = 0; a < kOrder; ++a)
        for (int w = 0; w < wide; ++w)
#pragma omp simd
          for (int l = 0; l < lanes; ++l) c.moments[a * kOrder + w * lanes + l] += static_cast<double>(sum[a][w][l]);
    }
}

// Of F(t) = sum_ab coefficients[a][b] t0^a t1^b: F, its part even in both, and its derivatives.
void kde_expansion(const double* coefficients, const double* t0, const double* t1, std::int64_t count, double* f,
                   double* even, double* d0, double* d1) {
  constexpr int lanes = kLanesOf<double>;
  for (std::int64_t i = 0; i < count; i += lanes) {
    const VecD t = load(t0 + i), u = load(t1 + i), tt = t * t, uu = u * u;
    VecD sum{}, both{}, by0{}, by1{};
    for (int a = kOrder - 1; a >= 0; --a) {
      const double* c = coefficients + a * kOrder;
      VecD e{}, o{}, de{}, dw{};  // even and odd powers of u, and their derivatives in u^2
#pragma GCC unroll 8
      for (int b = kOrder - 2; b >= 0; b -= 2) {
        de = fma(de, uu, e), dw = fma(dw, uu, o);
        e = fma(e, uu, all(c[b])), o = fma(o, uu, all(c[b + 1]));
      }
      by0 = fma(by0, t, sum);
      sum = fma(sum, t, fma(u, o, e));
      by1 = fma(by1, t, VecD(o + 2.0 * (u * de + uu * dw)));
      if (a % 2 == 0) both = fma(both, tt, e);
    }
    store(f + i, sum), store(even + i, both), store(d0 + i, by0), store(d1 + i, by1);
  }
}

}  // namespace fokker::cpu::FK_ISA
