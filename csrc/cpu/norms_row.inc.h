// One row of a modulated norm in the first cache: its statistics, its coefficients and its numbers, whatever their
// dtype.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>

#include "common/norm_plan.h"
#include "cpu/norms_vector.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// norm(x) = (x - mean) rstd + offset; offset carries what the rounding of the mean leaves, so that a large mean does
// not cost accuracy. All 0 but rstd for the RMS norm.
template <typename T> struct Statistics {
  T mean = 0, rstd = 1, offset = 0;
};

// Sums of d and d^2, d = x - shift, in lanes that a row's length alone decides; x(i) gives a vector from element i on,
// one(i) a single element.
template <bool kFirst, bool kSecond, typename T, typename Load, typename One, typename S>
inline std::pair<double, double> moments_of(Load&& x, One&& one, T shift, std::int64_t n, Ahead<S> ahead) {
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
template <bool kFirst, bool kSecond, typename T, typename S>
inline std::pair<double, double> moments(const S* x, T shift, std::int64_t n, Ahead<S> ahead = {}) {
  return moments_of<kFirst, kSecond>([x](std::int64_t i) { return load(x + i); },
                                     [x](std::int64_t i) { return get<T>(x + i); }, shift, n, ahead);
}

// The statistics of a row that x and one make and leave at `row`. The variance is taken about a guess of the mean, in
// the same pass; where the guess was so far off that digits would cancel, once more about the mean.
template <typename T, typename R, typename Load, typename One, typename S>
inline Statistics<T> statistics(Norm norm, Load&& x, One&& one, T shift, const R* row, std::int64_t n, double eps,
                                Ahead<S> ahead) {
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
template <typename T, typename S>
inline Statistics<T> statistics(Norm norm, const S* x, std::int64_t n, double eps, Ahead<S> ahead) {
  const auto at = [x](std::int64_t i) { return load(x + i); };
  const auto one = [x](std::int64_t i) { return get<T>(x + i); };
  return statistics(norm, at, one, guess<T>(at, one(0), n), x, n, eps, ahead);
}
// x + gate branch.
template <bool kGate, typename V, typename S, typename T>
FK_INLINE V gated_at(const S* x, const S* branch, const T* gate, std::int64_t i) {
  if constexpr (kGate) return fma(get<V>(gate + i), get<V>(branch + i), get<V>(x + i));
  else return get<V>(branch + i) + get<V>(x + i);
}
// The same of x + gate branch, which is left at `to` (that may be x or the branch) and, unrounded, at `kept`.
template <bool kGate, typename S, typename T>
inline Statistics<T> gated_statistics(Norm norm, const S* x, const S* branch, const T* gate, S* to, bool streamed,
                                      T* kept, std::int64_t n, double eps, Ahead<S> ahead) {
  const auto put_at = [=](std::int64_t i, auto v) __attribute__((always_inline)) {
    if (static_cast<void*>(kept) != to) put(to + i, v, streamed);
    put(kept + i, v);
    return v;
  };
  const auto sum = [=](std::int64_t i) { return gated_at<kGate, Vec<T>>(x, branch, gate, i); };
  const auto one = [=](std::int64_t i) { return gated_at<kGate, T>(x, branch, gate, i); };
  return statistics(
      norm, [=](std::int64_t i) { return put_at(i, sum(i)); }, [=](std::int64_t i) { return put_at(i, one(i)); },
      guess<T>(sum, one(0), n), kept, n, eps, ahead);
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
  // A row where it lies, or, of T, copied into `to`.
  template <typename S = T> const S* read(const RowOperand& o, std::int64_t b, std::int64_t t, T* to) const {
    if constexpr (std::is_same_v<S, T>)
      if (!direct(o)) return take_any(o.data, o.dtype, o.at(b, t), o.column, static_cast<int>(n), to), to;
    return static_cast<const S*>(o.data) + o.at(b, t);
  }
  // The row after (b, t), where it lies, if it is short enough to be fetched ahead.
  template <typename S> S* next(const RowOperand& o, std::int64_t b, std::int64_t t) const {
    if (!o || (std::is_same_v<S, T> && !direct(o)) || n * std::int64_t(sizeof(S)) > kAheadBytes) return nullptr;
    const bool last = t + 1 == p.tokens;
    return last && b + 1 == p.batch ? nullptr : static_cast<S*>(o.data) + o.at(b + last, last ? 0 : t + 1);
  }
  // Where a result's row can be written as it is computed, else `to`, from where `write` takes it.
  template <typename S = T> S* place(const RowOperand& o, std::int64_t b, std::int64_t t, T* to) const {
    if constexpr (std::is_same_v<S, T>)
      if (!o || !direct(o)) return to;
    return static_cast<S*>(o.data) + o.at(b, t);
  }
  template <typename S> void write(const RowOperand& o, std::int64_t b, std::int64_t t, const S* from) const {
    if constexpr (std::is_same_v<S, T>)
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

  const T* constant(const RowOperand& o, int line) { return o ? read(o, 0, 0, lines_[line]) : nullptr; }
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

// f(S): the type that rows of x, branch and results lie in, side by side, if it can be read as T; else T, by copies.
template <typename T, typename F> inline void with_storage(const NormPlan& p, F&& f) {
  const auto lie = [&](DType dtype) {
    for (const RowOperand* o : {&p.x, &p.branch, &p.sum, &p.out, &p.grad_sum, &p.grad, &p.to_x, &p.to_branch})
      if (*o && (o->dtype != dtype || o->column != 1)) return false;
    return true;
  };
  if constexpr (kReadAs<BFloat16, T>)
    if (lie(DType::bf16)) return f(BFloat16{});
  if constexpr (kReadAs<Half, T>)
    if (lie(DType::f16)) return f(Half{});
  f(T(0));
}

// Results from here on are written past the cache. A layer's 18 MB and a read of them after: 2.8 ms, through the cache
// 3.4; had nothing else passed through the cache since the last time, 2.4 and 1.9.
constexpr std::int64_t kRowStreamBytes = std::int64_t(16) << 20;
template <typename S, typename T> inline bool past_cache(const NormPlan& p, const RowOperand& o) {
  const auto placed = [](std::int64_t n) { return n * std::int64_t(sizeof(S)) % kVectorBytes == 0; };
  if (!o || o.data == p.x.data || o.data == p.branch.data || o.column != 1) return false;
  if (std::is_same_v<S, T> && o.dtype != Rows<T>::native) return false;
  return p.batch * p.tokens * p.columns * std::int64_t(sizeof(S)) >= kRowStreamBytes && placed(p.columns) &&
         placed(o.batch) && placed(o.token) && reinterpret_cast<std::uintptr_t>(o.data) % kVectorBytes == 0;
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
