// What both density-sum kernels share: exponents, sums with few roundings, staging of the data, results of a row.
//
// Exponents t are base 2 in float, for the hardware's exponential, and natural in double. A row keeps a `top` and sums
// relative to e^top; the top follows the maximum lazily, so a weight may exceed 1 but never e^kLazy. C is the type that
// distances and weights are computed in: double also over float coordinates, for the rows that float left in doubt.
#pragma once

#include "cuda/kde_launch.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda::kde {

constexpr double kLog2E = 1.4426950408889634074;
constexpr int kLazy = 30;

// How far the maximum may be ahead of the top. Compact kernels: not at all, so that a sum says how near the edge it is.
template <typename C> __device__ __forceinline__ C laziness(math::Kernel kernel) {
  return math::is_compact(kernel) ? C(0) : C(kLazy);
}

template <typename C> constexpr double kUnit = sizeof(C) == 4 ? kLog2E : 1.0;
template <typename C> __device__ __forceinline__ C power(C t) {
  if constexpr (sizeof(C) == 4) return ::exp2f(t);
  else return math::exp(t);
}
template <typename C> constexpr C kMost = std::numeric_limits<C>::max();
// The top before the first datum: every finite exponent is above it, and e^(-inf - top) is 0 without a special case.
template <typename C> constexpr C kFresh = -kMost<C>;

template <typename C, int N> struct alignas((N * sizeof(C)) % 16 == 0 ? 16 : N * sizeof(C)) Vec {
  C v[N];
};

// A sum of weights: float terms are summed in float for a while and then in double.
template <typename C> struct Total {
  C part = 0;
  double whole = 0;
  __device__ __forceinline__ void flush() { whole += double(part), part = 0; }
  __device__ __forceinline__ void scale(C by) { part *= by, whole *= double(by); }
};
template <> struct Total<double> {
  double part = 0;
  __device__ __forceinline__ void flush() {}
  __device__ __forceinline__ void scale(double by) { part *= by; }
};
template <typename C> __device__ __forceinline__ double value_of(Total<C> t) {
  t.flush();
  if constexpr (sizeof(C) == 4) return t.whole;
  else return t.part;
}

// An element in memory: of C, or for C = double of float where `single`.
template <typename C> __device__ __forceinline__ C load(const void* p, std::int64_t i, [[maybe_unused]] bool single) {
  if constexpr (sizeof(C) == 8)
    if (single) return C(static_cast<const float*>(p)[i]);
  return static_cast<const C*>(p)[i];
}
template <typename C>
__device__ __forceinline__ void store(void* p, std::int64_t i, C v, [[maybe_unused]] bool single) {
  if constexpr (sizeof(C) == 8)
    if (single) return void(static_cast<float*>(p)[i] = float(v));
  static_cast<C*>(p)[i] = v;
}

// A coordinate of a query: one at infinity has no weight, also beside a datum at infinity.
template <typename C> __device__ __forceinline__ C query_coordinate(C v) {
  return v > kMost<C> ? kMost<C> : v < -kMost<C> ? -kMost<C> : v;
}
// A coordinate as a value: its datum weighs nothing if it is infinite, and 0 * inf must not come out.
template <typename C> __device__ __forceinline__ C finite_or_zero(C v) { return v - v == C(0) || v != v ? v : C(0); }

// The terms of a datum: bias in units of the exponent, weight, and 1 / h^2 (1 / h) where it is the datum's own.
template <typename C> struct Column {
  C bias, weight, scale;
  double natural;  // the bias
};
template <typename C> __device__ __forceinline__ Column<C> column_of(const KdeSums& s, std::int64_t j, Form form) {
  const double top = math::infinity<double>();
  if (j >= s.m) return {C(-top), C(0), C(1), -top};
  double bias = s.bias ? s.bias[j] : 0.0, weight = s.weight ? s.weight[j] : 1.0, scale = 1.0;
  if (bias == top || !(math::abs(weight) < top)) bias = math::quiet_nan<double>();
  else if (weight == 0) bias = -top;
  else if (!s.shift && s.weight) bias += math::log(weight);
  if (s.shift == nullptr) weight = 1.0;
  if (s.bandwidth_kind == KdeSums::Bandwidth::per_datum) {
    const double h = s.bandwidth[j];
    scale = 1.0 / (form == Form::absolute ? h : h * h);
  }
  return {C(bias * kUnit<C>), C(weight), C(scale), bias};
}

__device__ __forceinline__ double row_bandwidth(const KdeSums& s, std::int64_t i) {
  return s.bandwidth_kind == KdeSums::Bandwidth::one         ? s.bandwidth[0]
         : s.bandwidth_kind == KdeSums::Bandwidth::per_query ? s.bandwidth[i]
                                                             : 1.0;
}
__device__ __forceinline__ double inverse_scale(double h, Form form) {
  return 1.0 / (form == Form::absolute ? h : h * h);
}
// What a distance (squared, L1) is multiplied by: to the exponent itself, or to q of math::kernel_pair.
template <typename C> __device__ __forceinline__ C row_scale(const KdeSums& s, std::int64_t i, Form form) {
  const double to_exponent = form == Form::gaussian ? -0.5 * kUnit<C> : form == Form::absolute ? -kUnit<C> : 1.0;
  return C(to_exponent * inverse_scale(row_bandwidth(s, i), form));
}

template <math::Kernel kernel, int N, typename C>
__device__ __forceinline__ void terms(C nu, C p, const C (&q)[N], C (&t)[N], C (&f)[N], C (&g)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const math::Pair<C> v = math::kernel_pair<kernel>(q[i], nu, p);
    if constexpr (math::is_compact(kernel)) {  // outside of the support there is no exponent for the top to follow
      f[i] = q[i] != q[i] ? q[i] : v.weight;
      t[i] = f[i] == C(0) ? -math::infinity<C>() : C(0);
      g[i] = v.slope;
    } else {  // a factor of infinity comes with the weight 0
      t[i] = v.exponent * C(kUnit<C>);
      f[i] = math::min(v.weight, kMost<C>);
      g[i] = math::min(v.slope, kMost<C>);
    }
  }
}

// q -> exponent t, weight factor f, slope factor g, of N pairs; the kernel is chosen once for all.
template <int N, typename C> __device__ __forceinline__ void evaluate(math::Kernel kernel, C nu, C p, const C (&q)[N],
                                                                      C (&t)[N], C (&f)[N], C (&g)[N]) {
  using math::Kernel;
  switch (kernel) {
    case Kernel::exponential:
      return terms<Kernel::exponential>(nu, p, q, t, f, g);
    case Kernel::matern32:
      return terms<Kernel::matern32>(nu, p, q, t, f, g);
    case Kernel::matern52:
      return terms<Kernel::matern52>(nu, p, q, t, f, g);
    case Kernel::student_t:
      return terms<Kernel::student_t>(nu, p, q, t, f, g);
    case Kernel::epanechnikov:
      return terms<Kernel::epanechnikov>(nu, p, q, t, f, g);
    case Kernel::tophat:
      return terms<Kernel::tophat>(nu, p, q, t, f, g);
    case Kernel::linear:
      return terms<Kernel::linear>(nu, p, q, t, f, g);
    default:
      return terms<Kernel::cosine>(nu, p, q, t, f, g);
  }
}

// Written into log_sum by a float kernel where the row is to be done again: a NaN that nothing else makes.
constexpr std::uint64_t kAgain = 0x7ff9a6a1f0cce12dull;
__device__ __forceinline__ bool is_marked(double v) { return math::bit_cast<std::uint64_t>(v) == kAgain; }

// Whether float has lost more than 4e-7 |log_sum| + 2e-6. A row's exponents E are all off by about 3.3 u |E| at most,
// so log_sum is by the mean of that under the row's weights: mean |E| <= top bias - log_sum + entropy. Where the
// entropy is large the errors of many pairs average out: 10 nats of it count.
__device__ __forceinline__ bool is_doubtful(const KdeSums& s, double log_sum, double sum, double top_bias) {
  const bool compact = math::is_compact(s.kernel);
  if (log_sum != log_sum) return true;  // out of float's range, if not NaN in truth
  if (s.shift) return false;
  if (log_sum == -math::infinity<double>()) return !compact && top_bias > log_sum;
  const double error = 2e-7 * ((compact ? 0.0 : top_bias - log_sum) + 10.0);
  return error > 4e-7 * math::abs(log_sum) + 2e-6 || (compact && sum < 0.3);  // 1 - q of a few pairs near the edge
}

// Writes the numbers of a row and returns what its sums of values are to be multiplied by (0 and NaN: to be replaced).
template <typename C> __device__ __forceinline__ double finish_row(const KdeSums& s, std::int64_t i, Form form, C top,
                                                                   double sum, double square, double delta,
                                                                   bool may_doubt, double top_bias) {
  const double natural = double(top) / kUnit<C>;
  const double infinity = math::infinity<double>(), nan = math::quiet_nan<double>();
  double log_sum, factor;
  if (s.shift) {
    const double shift = s.shift[i];
    factor = math::abs(shift) == infinity ? 0.0 : math::exp(natural - shift);
    if (factor == 0) sum = square = delta = 0;
    log_sum = sum * factor;
    square *= factor * factor;
  } else {
    const bool empty = !(sum > 0) && sum == sum;
    factor = empty ? 0.0 : 1.0 / sum;
    log_sum = empty ? -infinity : natural + math::log(sum);
    square = empty ? 0.0 : square * factor * factor;
    if (empty) delta = 0;
  }
  if (log_sum != log_sum) factor = square = delta = nan;
  if (may_doubt && is_doubtful(s, log_sum, sum, top_bias)) log_sum = math::bit_cast<double>(kAgain);
  if (form == Form::gaussian) delta *= -2.0 / kUnit<C>;  // from exponents back to q
  if (form == Form::absolute) delta *= -1.0 / kUnit<C>;
  if (s.log_sum) s.log_sum[i] = log_sum;
  if (s.square) s.square[i] = square;
  if (s.delta) s.delta[i] = delta * factor;
  const bool own = s.bandwidth_kind == KdeSums::Bandwidth::per_datum;
  return s.weighting == KdeSums::Values::slope && !own ? factor * inverse_scale(row_bandwidth(s, i), form) : factor;
}
__device__ __forceinline__ double finish_value(double sum, double factor) { return factor == 0 ? 0.0 : sum * factor; }

}  // namespace fokker::cuda::kde
