// Contract and binding of the reductions of score-matching losses, written once for every native module.
#pragma once

#include "bind/sde_ops.h"

namespace fokker::bind {

// coefficients (batch or 1, rows, columns), contiguous, float64.
template <typename Backend>
void place_loss_coefficients(AffinePlan& p, const TensorView& x, const TensorView& c, int rows, int columns) {
  check_device(c, "coefficients", Backend::device);
  if (c.device_id != x.device_id) raise<TypeError>("coefficients and x must be on one device");
  check_dtype(c, "coefficients", DType::f64);
  check_contiguous(c, "coefficients");
  if (c.ndim != 3 || (c.shape[0] != 1 && c.shape[0] != x.shape[0]) || c.shape[1] != rows || c.shape[2] != columns)
    raise<ValueError>("coefficients ", shape_of(c), " must have shape (1 or ", x.shape[0], ", ", rows, ", ", columns,
                      ")");
  p.coefficients = c.data;
  p.coefficient_stride = c.shape[0] == 1 ? 0 : rows * columns;
}

// sums (batch, 1, rows of coefficients): <p, p>, <p, q>, sum |d|. With weights g (batch or 1, 2) also gradients of
// g_0 <p, p> + g_1 <p, q> in those vectors that have a tensor in `grads`; where the floor is positive, over
// max(sum |d| / elements, floor).
template <typename Backend> void loss_forms(const Tensors& vectors, const TensorView& coefficients,
                                            const TensorView& sums, const Optional& partial, const Optional& weights,
                                            double floor, const OptionalTensors& grads) {
  check_count(vectors.size(), 1, kMaxFormVectors, "vectors");
  if (!grads.empty()) check_count(grads.size(), vectors.size(), vectors.size(), "grads");
  AffinePlan p;
  SdeOperands operands;
  p.task = SdeTask::forms;
  p.vectors = static_cast<int>(vectors.size());
  for (int k = 0; k < p.vectors; ++k) operands.add<Backend>(p.in[k], vectors[k], "vectors");
  const TensorView& x = vectors[0];
  for (const TensorView& v : vectors) p.wide |= v.dtype == DType::f64;
  p.results = coefficients.ndim == 3 ? static_cast<int>(coefficients.shape[1]) : 0;
  if (p.results < 1 || p.results > 3) raise<ValueError>("coefficients must have 1 to 3 rows, got ", p.results);
  place_loss_coefficients<Backend>(p, x, coefficients, p.results, p.vectors);
  place_sums<Backend>(p, x, sums, "sums", 1, p.results);
  int wanted = 0;
  for (std::size_t k = 0; k < grads.size(); ++k)
    if (grads[k]) {
      operands.add<Backend>(p.out[k], *grads[k], "grads");
      check_written(*grads[k], "grads");
      ++wanted;
    }
  if (bool(weights) != (wanted > 0)) raise<ValueError>("weights and grads must be given together");
  if (weights) {
    if (p.results == 1 && wanted > 1) raise<ValueError>("one form has one gradient, got ", wanted, " in grads");
    if (floor > 0 && p.results < 3) raise<ValueError>("a floor wants three rows of coefficients");
    check_device(*weights, "weights", Backend::device);
    check_dtype(*weights, "weights", DType::f64);
    check_contiguous(*weights, "weights");
    if (weights->ndim != 2 || (weights->shape[0] != 1 && weights->shape[0] != x.shape[0]) || weights->shape[1] != 2)
      raise<ValueError>("weights ", shape_of(*weights), " must have shape (1 or ", x.shape[0], ", 2)");
    p.weights = weights->ptr<double>();
    p.weight_stride = weights->shape[0] == 1 ? 0 : 2;
    p.floor = floor;
  }
  launch<Backend>(p, operands, partial);
}

// vectors: s, x, x0; columns of coefficients: a, c, g. sums (batch, 1, 1), out of x's shape, or both.
template <typename Backend> void loss_lognormal(const Tensors& vectors, const TensorView& coefficients, bool multiplied,
                                                const Optional& sums, const Optional& out, const Optional& partial) {
  check_count(vectors.size(), 3, 3, "vectors");
  AffinePlan p;
  SdeOperands operands;
  p.task = SdeTask::lognormal;
  p.vectors = 3;
  p.multiplied = multiplied;
  for (int k = 0; k < 3; ++k) operands.add<Backend>(p.in[k], vectors[k], "vectors");
  const TensorView& x = vectors[0];
  for (const TensorView& v : vectors) p.wide |= v.dtype == DType::f64;
  if (out) {
    operands.add<Backend>(p.out[0], *out, "out");
    check_written(*out, "out");
  }
  place_loss_coefficients<Backend>(p, x, coefficients, 1, 3);
  place_sums<Backend>(p, x, sums, "sums", 1, 1);
  if (!sums && !out) raise<ValueError>("sums or out must be given");
  launch<Backend>(p, operands, partial);
}

// x *= factor in place, the factor read on the device; x dense, in any order of its dimensions.
template <typename Backend> void loss_rescale(const TensorView& x, const TensorView& factor) {
  check_device(x, "x", Backend::device);
  check_device(factor, "factor", Backend::device);
  if (factor.numel() != 1) raise<ValueError>("factor must have one entry, got ", shape_of(factor));
  if (x.dtype != DType::f32 && x.dtype != DType::f64) raise<TypeError>("x must have dtype float32 or float64");
  check_dtype(factor, "factor", x.dtype);
  if (x.numel() == 0) return;
  typename Backend::Guard guard(x);
  if (x.dtype == DType::f64) Backend::rescale(x.ptr<double>(), x.numel(), factor.ptr<double>(), guard);
  else Backend::rescale(x.ptr<float>(), x.numel(), factor.ptr<float>(), guard);
}

template <typename Backend> void bind_loss_ops(py::module_& m) {
  using py::arg;
  m.def("loss_forms", &loss_forms<Backend>, arg("vectors"), arg("coefficients"), arg("sums"), arg("partial"),
        arg("weights") = py::none(), arg("floor") = 0.0, arg("grads") = py::list());
  m.def("loss_lognormal", &loss_lognormal<Backend>, arg("vectors"), arg("coefficients"), arg("multiplied"), arg("sums"),
        arg("out"), arg("partial"));
}

}  // namespace fokker::bind
