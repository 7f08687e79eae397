// What a step of an SDE sampler reads and writes: one description for the CPU and the CUDA kernels.
#pragma once

#include <algorithm>

#include "common/check.h"
#include "math/philox.h"

namespace fokker {

constexpr int kMaxTerms = 8, kMaxVectors = kMaxTerms + 1, kMaxResults = 3;
constexpr int kMaxJoined = kMaxVectors + 1;  // with the noise
constexpr int kMaxColumns = kMaxTerms + 4;   // a, b_1 .. b_8, c, p, q
constexpr int kMaxFormVectors = 4;           // of the linear forms of a loss
constexpr int kMaxPairs = kMaxJoined * (kMaxJoined + 1) / 2;

// A tensor (batch, sample...) over the plan's merged dimensions of a sample.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch_stride = 0, strides[kMaxDims];
};

enum class SdeTask : int { step, vjp, gram, forms, lognormal };

//   step  out[r] = sum of in[] and noise by the coefficients of result r; sums: inner products of [y - x, m, z]
//   vjp   out[k] = gradient in in[k] (null: not wanted) from grad[r]; sums: gradients in the coefficients (R, C)
//   gram  sums: inner products of in[] and the noise
//   forms sums: of `results` linear forms p, q, d of in[]: <p, p>, <p, q>, sum |d|; coefficients in double; with
//         weights g also out[k] = the gradient of g_0 <p, p> + g_1 <p, q> in in[k] (null: not wanted)
//   lognormal  residual r = a x s + log(x / x0) + c of in[] = s, x, x0 (without the x where not `multiplied`), its
//         coefficients a, c, g in double; sums: <r, r>; out[0] = 2 g a x r, the gradient in s; either, or both
struct AffinePlan {
  SdeTask task = SdeTask::step;
  int vectors = 0, results = 1, columns = 0;  // vectors: x and the terms
  bool noisy = false, exponential = false, clipped = false, aliased = false;
  bool wide = false;  // computed in float64
  bool multiplied = false;
  double clip = 0;
  std::int64_t batch = 0, n = 0;  // samples, and elements of one
  int ndim = 0;
  std::int64_t shape[kMaxDims];
  // Samples that all lie channels_last are walked in memory order: element p channels + c is element c pixels + p of
  // the noise. 0: the order of memory is that of the noise.
  std::int64_t channels = 0, pixels = 0;
  // Short samples: the batch is one of the dimensions, and element i belongs to sample i / sample.
  std::int64_t sample = 0;
  Operand in[kMaxVectors], out[kMaxVectors], grad[kMaxResults];
  const void* coefficients = nullptr;
  std::int64_t steps = 1;  // of the table; then its strides: of a step, a sample, a result, a column
  std::int64_t step_stride = 0, coefficient_stride = 0, result_stride = 0, column_stride = 1;
  std::int64_t row = 0;
  const std::int64_t* row_at = nullptr;  // read when the kernel runs
  const std::int64_t *ids = nullptr, *seed_at = nullptr, *step_at = nullptr;
  std::int64_t first_id = 0, element_offset = 0;
  std::uint64_t seed = 0;
  std::uint32_t step = 0, stream = 0;
  // Of a loss's gradients, (batch or 1, 2) in double; over max(sum |d| / elements, floor) where the floor is positive.
  const double* weights = nullptr;
  std::int64_t weight_stride = 0;
  double floor = 0;
  double* sums = nullptr;  // results of the reductions, `sum_count()` a sample (inner products: the full square)
  double* partial = nullptr;

  FK_HD FK_INLINE int terms() const { return vectors - 1; }
  FK_HD FK_INLINE int joined() const { return vectors + (noisy ? 1 : 0); }
  FK_HD FK_INLINE int pairs() const { return joined() * (joined() + 1) / 2; }
  // Numbers that are summed over a sample.
  FK_HD FK_INLINE int sum_count() const {
    return task == SdeTask::vjp ? results * columns : task == SdeTask::forms ? results : squares() ? pairs() : 1;
  }
  // Whether the sums are the upper triangle of a square of inner products.
  FK_HD FK_INLINE bool squares() const { return task == SdeTask::step || task == SdeTask::gram; }
  FK_HD FK_INLINE int per_block() const { return wide ? 2 : 4; }
  FK_HD FK_INLINE std::uint64_t key() const { return seed_at ? static_cast<std::uint64_t>(*seed_at) : seed; }
  FK_HD FK_INLINE std::uint32_t counter1() const {
    const std::uint32_t s = step_at ? static_cast<std::uint32_t>(*step_at) & math::max_step : step;
    return s | stream << 24;
  }
  FK_HD FK_INLINE std::uint64_t id(std::int64_t b) const {
    return static_cast<std::uint64_t>(ids ? ids[b] : first_id + b);
  }
  FK_HD FK_INLINE std::int64_t row_now() const { return row_at ? *row_at : row; }
  // A row that does not exist gives nan.
  FK_HD FK_INLINE bool has_row() const { return row_now() >= 0 && row_now() < steps; }
  // Coefficient `column` of result r for sample b, if the row exists.
  FK_HD FK_INLINE std::int64_t coefficient(std::int64_t b, int r, int column) const {
    return row_now() * step_stride + b * coefficient_stride + r * result_stride + column * column_stride;
  }
  // The coefficients of a loss, (results, columns) in double, of sample b.
  FK_HD FK_INLINE const double* wide_coefficients(std::int64_t b) const {
    return static_cast<const double*>(coefficients) + b * coefficient_stride;
  }
  FK_HD FK_INLINE std::int64_t elements() const { return sample ? sample : n; }  // of one sample
  // The gradient in in[k] of the weighted forms of sample b, whose sums are there if there is a floor: a p + b q.
  FK_HD FK_INLINE void form_slopes(std::int64_t b, int k, double& of_p, double& of_q) const {
    const double *const c = wide_coefficients(b), *const g = weights + b * weight_stride;
    double share = 1.0;
    if (floor > 0) {
      const double mean = sums[b * results + 2] / static_cast<double>(elements());
      share = 1.0 / (mean < floor ? floor : mean);  // nan stays nan
    }
    of_q = results > 1 ? share * g[1] * c[k] : 0.0;
    of_p = 2.0 * share * g[0] * c[k] + (results > 1 ? share * g[1] * c[vectors + k] : 0.0);
  }
  FK_HD FK_INLINE bool adjacent(const Operand& o) const { return ndim == 0 || (ndim == 1 && o.strides[0] == 1); }
  FK_HD FK_INLINE bool native(const Operand& o) const { return o.dtype == (wide ? DType::f64 : DType::f32); }
  FK_HD FK_INLINE std::int64_t offset(const Operand& o, std::int64_t i) const {
    std::int64_t at = 0;
    for (int d = ndim - 1; d > 0; --d) {
      at += i % shape[d] * o.strides[d];
      i /= shape[d];
    }
    return ndim ? at + i * o.strides[0] : 0;
  }
};

namespace detail {

struct OperandView {
  Operand* operand;
  const TensorView* view;
};

// Merges neighbouring dimensions that every operand walks evenly; `from` is 1 where the batch stays apart.
inline void merge_dimensions(AffinePlan& p, const OperandView* at, int count, int from, bool any_order) {
  const TensorView& x = *at[0].view;
  int order[kMaxDims], dims = 0;
  for (int d = from; d < x.ndim; ++d)
    if (x.shape[d] != 1) order[dims++] = d;
  if (any_order) std::stable_sort(order, order + dims, [&](int a, int b) { return x.strides[a] > x.strides[b]; });
  p.ndim = 0;
  p.n = 1;
  for (int i = 0; i < dims; ++i) {
    const int d = order[i];
    p.n *= x.shape[d];
    bool merge = p.ndim > 0;
    for (int k = 0; merge && k < count; ++k)
      merge = at[k].operand->strides[p.ndim - 1] == at[k].view->strides[d] * x.shape[d];
    const int to = merge ? p.ndim - 1 : p.ndim++;
    p.shape[to] = merge ? p.shape[to] * x.shape[d] : x.shape[d];
    for (int k = 0; k < count; ++k) at[k].operand->strides[to] = at[k].view->strides[d];
  }
}

// The span of memory of a tensor, in bytes.
inline std::pair<const char*, const char*> span_of(const TensorView& t) {
  std::int64_t low = 0, high = 0;
  for (int d = 0; d < t.ndim; ++d) {
    const std::int64_t reach = (t.shape[d] - 1) * t.strides[d];
    (reach < 0 ? low : high) += reach;
  }
  const int size = t.dtype == DType::f64 || t.dtype == DType::i64 ? 8 : t.dtype == DType::f32 ? 4 : 2;
  return {static_cast<const char*>(t.data) + low * size, static_cast<const char*>(t.data) + (high + 1) * size};
}

}  // namespace detail

constexpr std::int64_t kShortSample = 64;  // elements up to which samples are walked together

// Lays out the operands of a plan whose other members are set; all of x's shape, batch and n not 0. `fold`: short
// samples may be walked together.
inline void lay_out(AffinePlan& p, const detail::OperandView* at, int count, bool fold) {
  const TensorView& x = *at[0].view;
  p.batch = x.shape[0];
  std::int64_t n = 1;
  for (int d = 1; d < x.ndim; ++d) n *= x.shape[d];
  for (int k = 0; k < count; ++k) {
    Operand& o = *at[k].operand;
    o.data = at[k].view->data;
    o.dtype = at[k].view->dtype;
    o.batch_stride = at[k].view->strides[0];
  }
  const bool per_sample = p.coefficient_stride != 0 || p.noisy || p.sums;
  if (!per_sample) {
    detail::merge_dimensions(p, at, count, 0, true);
    p.batch = 1;
  } else if (fold && n <= kShortSample && p.batch > 1) {
    detail::merge_dimensions(p, at, count, 0, false);
    p.sample = n;
  } else {
    detail::merge_dimensions(p, at, count, 1, !p.noisy);
    bool interleaved = p.noisy && p.ndim == 2;
    for (int k = 0; interleaved && k < count; ++k)
      interleaved = at[k].operand->strides[0] == 1 && at[k].operand->strides[1] == p.shape[0];
    if (interleaved) {
      p.channels = p.shape[0], p.pixels = p.shape[1];
      p.ndim = 1, p.shape[0] = p.n;
      for (int k = 0; k < count; ++k) at[k].operand->strides[0] = 1;
    }
  }
}

}  // namespace fokker
