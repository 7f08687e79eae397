// The residual of multiplicative score matching, summed over samples, and its gradient: included by sde.inc.h.
//
// Bytes: each operand once. Arithmetic and sums in double, in an order that depends on the layout alone.
#pragma once

#include "cpu/losses.inc.h"
#include "math/log_ratio.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kLot = 16;  // gcc vectorises the logarithm of a fixed count only

// log(x / x0) + shift + a h, h = x s or s, of kLot elements.
template <bool Multiplied, typename T>
inline void residual_lot(const T* s, const T* x, const T* x0, double a, double shift, double* to) {
  double logs[kLot];
  math::log_ratios<kLot>(x, x0, logs);
  for (int l = 0; l < kLot; ++l)
    to[l] = math::mad(Multiplied ? a * static_cast<double>(x[l]) : a, static_cast<double>(s[l]), logs[l] + shift);
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

// The residual of a multiplicative loss: into sums, as the gradient in the prediction, or both.
template <typename T>
void lognormal(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  alignas(64) double residual[kSdeTile];
  alignas(64) T made[kSdeTile];
  const auto fill = p.multiplied ? &residuals<true, T> : &residuals<false, T>;
  const bool graded = p.out[0].data != nullptr;
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
        }
        if (!graded) continue;
        T *const direct = place<T>(p, p.out[0], b, i + from), *const to = direct ? direct : made;
        if (p.multiplied) {
#pragma omp simd
          for (int k = 0; k < count; ++k) to[k] = static_cast<T>(slope * static_cast<double>(x[k]) * residual[k]);
        } else {
#pragma omp simd
          for (int k = 0; k < count; ++k) to[k] = static_cast<T>(slope * residual[k]);
        }
        if (!direct) put(p, p.out[0], b, i + from, count, made);
      }
    });
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
