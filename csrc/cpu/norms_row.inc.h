// One row of a modulated norm in the first cache: its statistics, its coefficients and its numbers, whatever their dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

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

// A vector from memory, or one element, for loops whose rest is done by elements.
template <typename V, typename T> inline V get(const T* p) {
  if constexpr (std::is_same_v<V, T>) return *p;
  else return load(p);
}
template <typename T> inline void put(T* p, T v) { *p = v; }
template <typename T> inline void put(T* p, Vec<T> v) { store(p, v); }
template <typename V, typename T> inline V spread(T x) {
  if constexpr (std::is_same_v<V, T>) return x;
  else return all(x);
}
inline float fma(float a, float b, float c) { return math::mad(a, b, c); }
inline double fma(double a, double b, double c) { return math::mad(a, b, c); }

// What the cache will need next: rows whose lines are asked for while the row at hand is worked on.
template <typename T> struct Ahead {
  const T *first = nullptr, *second = nullptr;
  void fetch(std::int64_t i) const {
    if (first) __builtin_prefetch(first + i);
    if (second) __builtin_prefetch(second + i);
  }
};

// Sums of d and d^2, d = x - shift, in lanes that a row's length alone decides; x(i) gives a vector from element i on,
// one(i) a single element.
template <bool kFirst, bool kSecond, typename T, typename Load, typename One>
inline std::pair<double, double> moments_of(Load&& x, One&& one, T shift, std::int64_t n, Ahead<T> ahead) {
  constexpr int lanes = kLanesOf<T>, ways = 4;
  const Vec<T> by = all(shift);
  Vec<T> first[ways] = {}, second[ways] = {};
  const auto at = [&](std::int64_t i, int k) __attribute__((always_inline)) {
    ahead.fetch(i);
    const Vec<T> d = x(i) - by;
    if constexpr (kFirst) first[k] += d;
    if constexpr (kSecond) second[k] = fma(d, d, second[k]);
  };
  std::int64_t i = 0;
  for (; i + ways * lanes <= n; i += ways * lanes)
#pragma GCC unroll 4
    for (int k = 0; k < ways; ++k) at(i + k * lanes, k);
  for (; i + lanes <= n; i += lanes) at(i, 0);
  double a = 0, b = 0;
  for (; i < n; ++i) {
    const double d = static_cast<double>(one(i) - shift);
    a += d, b += d * d;
  }
  if constexpr (kFirst) a += add_lanes(Vec<T>((first[0] + first[1]) + (first[2] + first[3])));
  if constexpr (kSecond) b += add_lanes(Vec<T>((second[0] + second[1]) + (second[2] + second[3])));
  return {a, b};
}
template <bool kFirst, bool kSecond, typename T>
inline std::pair<double, double> moments(const T* x, T shift, std::int64_t n) {
  return moments_of<kFirst, kSecond>([x](std::int64_t i) { return load(x + i); }, [x](std::int64_t i) { return x[i]; },
                                     shift, n, Ahead<T>{});
}

// The statistics of a row that x and one make and leave at `row`. The variance is taken about a guess of the mean, in the
// same pass; where the guess was so far off that digits would cancel, once more about the mean.
template <typename T, typename Load, typename One>
inline Statistics<T> statistics(Norm norm, Load&& x, One&& one, T shift, const T* row, std::int64_t n, double eps,
                                Ahead<T> ahead) {
  const double count = static_cast<double>(n);
  if (norm == Norm::rms) {
    const double square = moments_of<false, true>(x, one, T(0), n, ahead).second / count;
    return {T(0), static_cast<T>(1 / std::sqrt(square + eps)), T(0)};
  }
  auto [first, second] = moments_of<true, true>(x, one, shift, n, ahead);
  double rest = first / count, variance = second / count - rest * rest;
  if (!(rest * rest <= 4 * variance)) {  // also where something is not finite
    shift = static_cast<T>(static_cast<double>(shift) + rest);
    std::tie(first, second) = moments<true, true>(row, shift, n);
    rest = first / count, variance = second / count - rest * rest;
  }
  const double rstd = 1 / std::sqrt((variance < 0 ? 0 : variance) + eps);
  return {shift, static_cast<T>(rstd), static_cast<T>(-rest * rstd)};
}
// The mean of a row's first elements.
template <typename T, typename Load> inline T guess(Load&& x, T first, std::int64_t n) {
  constexpr int lanes = kLanesOf<T>;
  if (n < 4 * lanes) return first;
  return static_cast<T>(add_lanes(Vec<T>((x(0) + x(lanes)) + (x(2 * lanes) + x(3 * lanes)))) / (4 * lanes));
}
template <typename T>
inline Statistics<T> statistics(Norm norm, const T* x, std::int64_t n, double eps, Ahead<T> ahead) {
  const auto at = [x](std::int64_t i) { return load(x + i); };
  const auto one = [x](std::int64_t i) { return x[i]; };
  return statistics(norm, at, one, guess(at, x[0], n), x, n, eps, ahead);
}
// The same of x + gate branch, which is left at `to` (that may be x or the branch).
template <bool kGate, typename T>
inline Statistics<T> gated_statistics(Norm norm, const T* x, const T* branch, const T* gate, T* to, std::int64_t n,
                                      double eps, Ahead<T> ahead) {
  const auto sum = [=](std::int64_t i) {
    if constexpr (kGate) return fma(load(gate + i), load(branch + i), load(x + i));
    else return Vec<T>(load(branch + i) + load(x + i));
  };
  const auto one = [=](std::int64_t i) {
    if constexpr (kGate) return math::mad(gate[i], branch[i], x[i]);
    else return branch[i] + x[i];
  };
  const auto kept = [=](std::int64_t i) {
    const Vec<T> v = sum(i);
    store(to + i, v);
    return v;
  };
  return statistics(
      norm, kept, [=](std::int64_t i) { return to[i] = one(i); }, guess(sum, one(0), n), to, n, eps, ahead);
}
template <typename T>
inline Statistics<T> gated_statistics(Norm norm, const T* x, const T* branch, const T* gate, T* to, std::int64_t n,
                                      double eps, Ahead<T> ahead) {
  return gate ? gated_statistics<true>(norm, x, branch, gate, to, n, eps, ahead)
              : gated_statistics<false>(norm, x, branch, gate, to, n, eps, ahead);
}

// Rows of one plan: buffers of the plan's columns each, and the coefficients of the row at hand.
template <typename T> class Rows {
 public:
  static constexpr DType native = sizeof(T) == 8 ? DType::f64 : DType::f32;

  Rows(const NormPlan& plan, int buffers) : p(plan), n(plan.columns) {
    const std::int64_t stride = (n + 31) / 16 * 16;  // a line apart, aligned to one
    memory_.reset(new T[static_cast<std::size_t>((buffers + kOwn) * stride + 16)]);
    T* at = memory_.get();
    while (reinterpret_cast<std::uintptr_t>(at) % 64) ++at;
    for (int k = 0; k < buffers + kOwn; ++k) lines_[k] = at + k * stride;
    weight = constant(p.weight, 0);
    bias = constant(p.bias, 1);
    gate_table_ = constant(p.gate.table, 2);
    shift_table_ = constant(p.shift.table, 3);
    scale_table_ = constant(p.scale.table, 4);
  }

  T* buffer(int k) { return lines_[kOwn + k]; }

  static bool direct(const RowOperand& o) { return o.dtype == native && o.column == 1; }
  // A row where it lies, or copied into `to`.
  const T* read(const RowOperand& o, std::int64_t b, std::int64_t t, T* to) const {
    if (direct(o)) return static_cast<const T*>(o.data) + o.at(b, t);
    take_any(o.data, o.dtype, o.at(b, t), o.column, static_cast<int>(n), to);
    return to;
  }
  // The row after (b, t), where it lies, if it is short enough to be fetched ahead.
  const T* next(const RowOperand& o, std::int64_t b, std::int64_t t) const {
    if (!o || !direct(o) || n * std::int64_t(sizeof(T)) > kAheadBytes) return nullptr;
    const bool last = t + 1 == p.tokens;
    return last && b + 1 == p.batch ? nullptr : static_cast<const T*>(o.data) + o.at(b + last, last ? 0 : t + 1);
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
  static constexpr int kOwn = 10, kMostBuffers = 16;
  static constexpr std::int64_t kAheadBytes = 8192;

  const T* constant(const RowOperand& o, int line) {
    return o ? read(o, 0, 0, lines_[line]) : nullptr;
  }
  const T* total(const Modulation& m, const T* table, std::int64_t b, std::int64_t t, T* to) const {
    if (!m.main) return table;
    const T* const main = read(m.main, b, t, to);
    if (!table) return main;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) to[i] = main[i] + table[i];
    return to;
  }

  std::unique_ptr<T[]> memory_;  // pages that no row needs are never touched
  T* lines_[kOwn + kMostBuffers];
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
