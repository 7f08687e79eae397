// Contract and binding of the steps of SDE samplers, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <vector>

#include "bind/random_ops.h"
#include "common/affine_plan.h"

namespace fokker::bind {

using Optional = std::optional<TensorView>;
using Tensors = std::vector<TensorView>;
using OptionalTensors = std::vector<Optional>;

// The operands of a plan with the tensors they stand for, x first.
struct SdeOperands {
  std::vector<detail::OperandView> all;

  template <typename Backend> void add(Operand& o, const TensorView& t, const char* name) {
    if (!all.empty()) {
      const TensorView& x = *all[0].view;
      check_same_shape(t, name, x, "x");
      if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    } else {
      if (t.ndim < 1) raise<ValueError>(name, " must have shape (batch, ...), got a 0-dimensional tensor");
      if (t.ndim > kMaxDims)
        raise<ValueError>(name, " has ", t.ndim, " dimensions, at most ", kMaxDims, " are supported");
    }
    check_device(t, name, Backend::device);
    if (t.dtype == DType::i64)
      raise<TypeError>(name, " must have dtype float16, bfloat16, float32 or float64, got int64");
    all.push_back({&o, &t});
  }
};

inline void check_written(const TensorView& out, const char* name) {
  for (int d = 0; d < out.ndim; ++d)
    if (out.shape[d] > 1 && out.strides[d] == 0)
      raise<ValueError>(name, " ", shape_of(out), " must not be an expanded tensor");
}

template <typename Backend> void place_noise(AffinePlan& p, const TensorView& x, bool noisy, std::uint64_t seed,
                                             const Optional& seed_tensor, std::uint32_t step,
                                             const Optional& step_tensor, std::uint32_t stream, const Optional& ids,
                                             std::int64_t first_id, std::int64_t element_offset) {
  if (step > math::max_step) raise<ValueError>("step must be in [0, 2^24), got ", step);
  if (stream > 255) raise<ValueError>("stream must be in [0, 256), got ", stream);
  p.noisy = noisy;
  if (!noisy) return;
  std::int64_t n = 1;
  for (int d = 1; d < x.ndim; ++d) n *= x.shape[d];
  const std::int64_t most = std::int64_t(p.per_block()) << 32;
  if (element_offset < 0 || n > most || element_offset > most - n)
    raise<ValueError>("elements ", element_offset, " .. +", n, " must lie in [0, ", most, ")");
  p.element_offset = element_offset;
  p.seed = seed, p.step = step, p.stream = stream, p.first_id = first_id;
  p.seed_at = counter_entries<Backend>(seed_tensor, "seed", x, 1);
  p.step_at = counter_entries<Backend>(step_tensor, "step", x, 1);
  p.ids = counter_entries<Backend>(ids, "sample_ids", x, x.shape[0]);
}

// coefficients ([steps,] [batch,] [results,] columns) of any strides.
template <typename Backend> void place_coefficients(AffinePlan& p, const TensorView& x, const TensorView& c,
                                                    std::int64_t row, const Optional& row_tensor, bool has_clip) {
  check_device(c, "coefficients", Backend::device);
  if (c.device_id != x.device_id) raise<TypeError>("coefficients and x must be on one device");
  check_dtype(c, "coefficients", p.wide ? DType::f64 : DType::f32);
  const bool stepped = row_tensor || row >= 0;
  const int inner = p.results > 1 ? 2 : 1, dims = c.ndim - stepped;
  p.columns = p.joined() + 2 * has_clip;
  if (dims < inner || dims > inner + 1 || c.shape[c.ndim - 1] != p.columns ||
      (inner == 2 && c.shape[c.ndim - 2] != p.results) || (dims > inner && c.shape[stepped] != x.shape[0]))
    raise<ValueError>("coefficients ", shape_of(c), " must end in (", p.results, " results, ", p.columns,
                      " columns) for a batch of ", x.shape[0]);
  p.coefficients = c.data;
  p.column_stride = c.strides[c.ndim - 1];
  if (inner == 2) p.result_stride = c.strides[c.ndim - 2];
  if (dims > inner && x.shape[0] > 1) p.coefficient_stride = c.strides[stepped];
  if (stepped) {
    p.steps = c.shape[0], p.step_stride = c.strides[0];
    p.row = row;
    p.row_at = counter_entries<Backend>(row_tensor, "row", x, 1);
    if (!row_tensor && row >= p.steps) raise<ValueError>("row must be in [0, ", p.steps, "), got ", row);
  }
}

inline void place_clip(AffinePlan& p, const std::optional<double>& clip) {
  p.clipped = clip.has_value();
  if (!clip) return;
  if (p.vectors < 2) raise<ValueError>("clip replaces the first term, but there is none");
  if (!(*clip >= 0)) raise<ValueError>("clip must not be negative, got ", *clip);
  p.clip = *clip;
}

template <typename Backend> void place_sums(AffinePlan& p, const TensorView& x, const Optional& sums, const char* name,
                                            std::int64_t rows, std::int64_t columns) {
  if (!sums) return;
  check_device(*sums, name, Backend::device);
  if (sums->device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
  check_dtype(*sums, name, DType::f64);
  check_contiguous(*sums, name);
  if (sums->ndim != 3 || sums->shape[0] != x.shape[0] || sums->shape[1] != rows || sums->shape[2] != columns)
    raise<ValueError>(name, " ", shape_of(*sums), " must have shape (", x.shape[0], ", ", rows, ", ", columns, ")");
  p.sums = sums->ptr<double>();
}

template <typename Backend> void launch(AffinePlan& p, const SdeOperands& operands, const Optional& partial) {
  const TensorView& x = *operands.all[0].view;
  const std::int64_t total = x.numel();
  if (total == 0) return;
  lay_out(p, operands.all.data(), static_cast<int>(operands.all.size()),
          Backend::folds && (p.task == SdeTask::step || p.task == SdeTask::forms));
  if (p.sums && Backend::sde_tile) {
    const std::int64_t needed = Backend::sde_workspace(p);
    if (!partial || partial->device_id != x.device_id || partial->dtype != DType::f64 || !partial->contiguous() ||
        partial->numel() < needed)
      raise<ValueError>("partial must hold ", needed, " float64 numbers on the device of x");
    check_device(*partial, "partial", Backend::device);
    p.partial = partial->ptr<double>();
  }
  typename Backend::Guard guard(x);
  without_gil(total, [&] { Backend::sde_run(p, guard); });
}

inline void check_count(std::size_t got, std::size_t least, std::size_t most, const char* name) {
  if (got < least || got > most) raise<ValueError>(name, " must be ", least, " to ", most, " tensors, got ", got);
}

template <typename Backend>
void sde_affine(const TensorView& x, const Tensors& terms, const TensorView& coefficients, std::int64_t row,
                const Optional& row_tensor, bool noisy, std::uint64_t seed, const Optional& seed_tensor,
                std::uint32_t step, const Optional& step_tensor, std::uint32_t stream, const Optional& ids,
                std::int64_t first_id, std::int64_t element_offset, bool exponential, const std::optional<double>& clip,
                const Tensors& out, const Optional& dots, const Optional& partial) {
  check_count(terms.size(), 0, kMaxTerms, "terms");
  check_count(out.size(), 1, kMaxResults, "out");
  AffinePlan p;
  SdeOperands operands;
  operands.add<Backend>(p.in[0], x, "x");
  for (std::size_t k = 0; k < terms.size(); ++k) operands.add<Backend>(p.in[k + 1], terms[k], "terms");
  p.vectors = 1 + static_cast<int>(terms.size());
  p.results = static_cast<int>(out.size());
  p.wide = x.dtype == DType::f64;
  p.exponential = exponential;
  for (std::size_t r = 0; r < out.size(); ++r) {
    operands.add<Backend>(p.out[r], out[r], "out");
    check_written(out[r], "out");
    const auto written = detail::span_of(out[r]);
    for (int k = 0; k < p.vectors; ++k) {
      const auto read = detail::span_of(*operands.all[k].view);
      p.aliased |= read.first < written.second && written.first < read.second;
    }
  }
  place_noise<Backend>(p, x, noisy, seed, seed_tensor, step, step_tensor, stream, ids, first_id, element_offset);
  place_clip(p, clip);
  place_coefficients<Backend>(p, x, coefficients, row, row_tensor, p.clipped);
  place_sums<Backend>(p, x, dots, "dots", p.joined(), p.joined());
  launch<Backend>(p, operands, partial);
}

// out[k]: the gradient in x (k = 0) or in a term, where wanted; sums (batch, results, columns): in the coefficients.
template <typename Backend>
void sde_affine_vjp(const TensorView& x, const Tensors& terms, const TensorView& coefficients, std::int64_t row,
                    const Optional& row_tensor, bool noisy, std::uint64_t seed, const Optional& seed_tensor,
                    std::uint32_t step, const Optional& step_tensor, std::uint32_t stream, const Optional& ids,
                    std::int64_t first_id, std::int64_t element_offset, bool exponential,
                    const std::optional<double>& clip, const Tensors& grads, const OptionalTensors& out,
                    const Optional& sums, const Optional& partial) {
  check_count(terms.size(), 0, kMaxTerms, "terms");
  check_count(grads.size(), 1, kMaxResults, "grads");
  check_count(out.size(), 1 + terms.size(), kMaxVectors, "out");
  AffinePlan p;
  SdeOperands operands;
  p.task = SdeTask::vjp;
  operands.add<Backend>(p.in[0], x, "x");
  for (std::size_t k = 0; k < terms.size(); ++k) operands.add<Backend>(p.in[k + 1], terms[k], "terms");
  p.vectors = 1 + static_cast<int>(terms.size());
  p.results = static_cast<int>(grads.size());
  p.wide = x.dtype == DType::f64;
  p.exponential = exponential;
  for (std::size_t r = 0; r < grads.size(); ++r) operands.add<Backend>(p.grad[r], grads[r], "grads");
  for (int k = 0; k < p.vectors; ++k)
    if (out[k]) {
      operands.add<Backend>(p.out[k], *out[k], "out");
      check_written(*out[k], "out");
    }
  place_noise<Backend>(p, x, noisy, seed, seed_tensor, step, step_tensor, stream, ids, first_id, element_offset);
  place_clip(p, clip);
  place_coefficients<Backend>(p, x, coefficients, row, row_tensor, p.clipped);
  place_sums<Backend>(p, x, sums, "sums", p.results, p.columns);
  if (!exponential && !sums) p.noisy = false;  // then the noise matters to nothing
  launch<Backend>(p, operands, partial);
}

template <typename Backend> void sde_gram(const Tensors& vectors, bool noisy, std::uint64_t seed,
                                          const Optional& seed_tensor, std::uint32_t step, const Optional& step_tensor,
                                          std::uint32_t stream, const Optional& ids, std::int64_t first_id,
                                          std::int64_t element_offset, const TensorView& out, const Optional& partial) {
  check_count(vectors.size(), 1, kMaxVectors, "vectors");
  AffinePlan p;
  SdeOperands operands;
  p.task = SdeTask::gram;
  for (std::size_t k = 0; k < vectors.size(); ++k) operands.add<Backend>(p.in[k], vectors[k], "vectors");
  p.vectors = static_cast<int>(vectors.size());
  const TensorView& x = vectors[0];
  p.wide = x.dtype == DType::f64;
  place_noise<Backend>(p, x, noisy, seed, seed_tensor, step, step_tensor, stream, ids, first_id, element_offset);
  place_sums<Backend>(p, x, out, "out", p.joined(), p.joined());
  launch<Backend>(p, operands, partial);
}

template <typename Backend> void bind_sde_ops(py::module_& m) {
  using py::arg;
  m.def("sde_affine", &sde_affine<Backend>, arg("x"), arg("terms"), arg("coefficients"), arg("row"), arg("row_tensor"),
        arg("noisy"), arg("seed"), arg("seed_tensor"), arg("step"), arg("step_tensor"), arg("stream"),
        arg("sample_ids"), arg("first_id"), arg("element_offset"), arg("exponential"), arg("clip"), arg("out"),
        arg("dots"), arg("partial"));
  m.def("sde_affine_vjp", &sde_affine_vjp<Backend>, arg("x"), arg("terms"), arg("coefficients"), arg("row"),
        arg("row_tensor"), arg("noisy"), arg("seed"), arg("seed_tensor"), arg("step"), arg("step_tensor"),
        arg("stream"), arg("sample_ids"), arg("first_id"), arg("element_offset"), arg("exponential"), arg("clip"),
        arg("grads"), arg("out"), arg("sums"), arg("partial"));
  m.def("sde_gram", &sde_gram<Backend>, arg("vectors"), arg("noisy"), arg("seed"), arg("seed_tensor"), arg("step"),
        arg("step_tensor"), arg("stream"), arg("sample_ids"), arg("first_id"), arg("element_offset"), arg("out"),
        arg("partial"));
  m.attr("sde_tile") = Backend::sde_tile;  // elements whose sums take a row of `partial`; 0: it needs none
}

}  // namespace fokker::bind
