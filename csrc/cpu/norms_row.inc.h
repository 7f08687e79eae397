// One row of a modulated norm in the first cache: its statistics, its coefficients and its numbers, whatever their dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/norm_plan.h"
#include "cpu/sde_operand.inc.h"
#include "math/arithmetic.h"

namespace fokker::cpu::FK_ISA {
namespace {

// norm(x) = (x - mean) rstd + offset; offset carries what the rounding of the mean leaves, so that a large mean does not
// cost accuracy. All 0 but rstd for the RMS norm.
template <typename T> struct Statistics {
  T mean = 0, rstd = 1, offset = 0;
};

// Sums of x (first) and x^2 (second) of x - shift, in lanes that a row's length alone decides.
template <bool kFirst, bool kSecond, typename T>
inline std::pair<double, double> moments(const T* x, T shift, std::int64_t n, const T* ahead = nullptr) {
  constexpr int lanes = kLanesOf<T>, ways = 4;
  const Vec<T> by = all(shift);
  Vec<T> first[ways] = {}, second[ways] = {};
  std::int64_t i = 0;
  for (; i + ways * lanes <= n; i += ways * lanes)
#pragma GCC unroll 4
    for (int k = 0; k < ways; ++k) {
      if (kSecond && ahead) __builtin_prefetch(ahead + i + k * lanes);
      const Vec<T> d = load(x + i + k * lanes) - by;
      if constexpr (kFirst) first[k] += d;
      if constexpr (kSecond) second[k] = fma(d, d, second[k]);
    }
  for (; i + lanes <= n; i += lanes) {
    const Vec<T> d = load(x + i) - by;
    if constexpr (kFirst) first[0] += d;
    if constexpr (kSecond) second[0] = fma(d, d, second[0]);
  }
  double a = 0, b = 0;
  for (; i < n; ++i) {
    const double d = static_cast<double>(x[i] - shift);
    a += d, b += d * d;
  }
  if constexpr (kFirst) a += add_lanes((first[0] + first[1]) + (first[2] + first[3]));
  if constexpr (kSecond) b += add_lanes((second[0] + second[1]) + (second[2] + second[3]));
  return {a, b};
}

template <typename T> inline Statistics<T> statistics(Norm norm, const T* x, std::int64_t n, double eps, const T* ahead = nullptr) {
  const double count = static_cast<double>(n);
  if (norm == Norm::rms) {
    const double square = moments<false, true>(x, T(0), n, ahead).second / count;
    return {T(0), static_cast<T>(1 / std::sqrt(square + eps)), T(0)};
  }
  const T mean = static_cast<T>(moments<true, false>(x, T(0), n).first / count);
  const auto [first, second] = moments<true, true>(x, mean, n, ahead);
  const double rest = first / count, variance = second / count - rest * rest;
  const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
  return {mean, static_cast<T>(rstd), static_cast<T>(-rest * rstd)};
}

// Rows of one plan: buffers of the plan's columns each, and the coefficients of the row at hand.
template <typename T> class Rows {
 public:
  static constexpr DType native = sizeof(T) == 8 ? DType::f64 : DType::f32;

  Rows(const NormPlan& plan, int buffers) : p(plan), n(plan.columns) {
    const std::int64_t stride = (n + 31) / 16 * 16;  // a line apart, aligned to one
    memory_.resize(static_cast<std::size_t>((buffers + kOwn) * stride + 16));
    T* at = memory_.data();
    while (reinterpret_cast<std::uintptr_t>(at) % 64) ++at;
    for (int k = 0; k < buffers + kOwn; ++k) lines_.push_back(at + k * stride);
    weight = constant(p.weight, 0);
    bias = constant(p.bias, 1);
    gate_table_ = constant(p.gate.table, 2);
    shift_table_ = constant(p.shift.table, 3);
    scale_table_ = constant(p.scale.table, 4);
  }

  T* buffer(int k) { return lines_[static_cast<std::size_t>(kOwn + k)]; }

  static bool direct(const RowOperand& o) { return o.dtype == native && o.column == 1; }
  // A row where it lies, or copied into `to`.
  const T* read(const RowOperand& o, std::int64_t b, std::int64_t t, T* to) const {
    if (direct(o)) return static_cast<const T*>(o.data) + o.at(b, t);
    take_any(o.data, o.dtype, o.at(b, t), o.column, static_cast<int>(n), to);
    return to;
  }
  // Where a result's row can be written as it is computed, else `to`, from where `write` takes it.
  T* place(const RowOperand& o, std::int64_t b, std::int64_t t, T* to) const {
    return o && direct(o) ? static_cast<T*>(o.data) + o.at(b, t) : to;
  }
  void write(const RowOperand& o, std::int64_t b, std::int64_t t, const T* from) const {
    if (o && !direct(o)) give_any(from, o.data, o.dtype, o.at(b, t), o.column, static_cast<int>(n));
  }

  // Sets factor = weight (1 + scale), addend = bias (1 + scale) + shift and gate for a row.
  void coefficients(std::int64_t b, std::int64_t t) {
    const bool again = b != sample_;
    sample_ = b;
    if (again || p.gate.per_token()) gate = total(p.gate, gate_table_, b, t, lines_[5]);
    if (p.norm == Norm::none) return;
    const bool scaled = again || p.scale.per_token();
    if (scaled) scale_ = total(p.scale, scale_table_, b, t, lines_[6]);
    T *const f = lines_[8], *const a = lines_[9];
    const T *const w = weight, *const s = scale_, *const add = bias;
    if (scaled) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) f[i] = (w ? w[i] : T(1)) * (s ? T(1) + s[i] : T(1));
    }
    if (!p.backward && (scaled || p.shift.per_token())) {
      const T* const plus = total(p.shift, shift_table_, b, t, lines_[7]);
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i)
        a[i] = math::mad(add ? add[i] : T(0), s ? T(1) + s[i] : T(1), plus ? plus[i] : T(0));
    }
    factor = f, addend = a;
  }
  const T* scale() const { return scale_; }

  const NormPlan& p;
  const std::int64_t n;
  const T *weight = nullptr, *bias = nullptr, *gate = nullptr, *factor = nullptr, *addend = nullptr;

 private:
  static constexpr int kOwn = 10;

  const T* constant(const RowOperand& o, int line) {
    return o ? read(o, 0, 0, lines_[static_cast<std::size_t>(line)]) : nullptr;
  }
  const T* total(const Modulation& m, const T* table, std::int64_t b, std::int64_t t, T* to) const {
    if (!m.main) return table;
    const T* const main = read(m.main, b, t, to);
    if (!table) return main;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) to[i] = main[i] + table[i];
    return to;
  }

  std::vector<T> memory_;
  std::vector<T*> lines_;
  std::int64_t sample_ = -1;
  const T *gate_table_, *shift_table_, *scale_table_, *scale_ = nullptr;
};

// x + gate branch.
template <typename T> inline void gated(const T* x, const T* branch, const T* gate, T* to, std::int64_t n) {
  if (gate) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) to[i] = math::mad(gate[i], branch[i], x[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) to[i] = branch[i] + x[i];
  }
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
