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

// out (batch, 1, rows of coefficients): <p, p>, <p, q>, sum |d|.
template <typename Backend> void loss_forms(const Tensors& vectors, const TensorView& coefficients,
                                            const TensorView& out, const Optional& partial) {
  check_count(vectors.size(), 1, kMaxFormVectors, "vectors");
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
  place_sums<Backend>(p, x, out, "out", 1, p.results);
  launch<Backend>(p, operands, partial);
}

// vectors: s, x, x0; columns of coefficients: a, c, g. Either sums (batch, 1, 1) or out of x's shape.
template <typename Backend>
void loss_lognormal(const Tensors& vectors, const TensorView& coefficients, bool multiplied, const Optional& sums,
                    const Optional& out, const Optional& partial) {
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
  if (bool(sums) == bool(out)) raise<ValueError>("either sums or out must be given");
  launch<Backend>(p, operands, partial);
}

template <typename Backend> void bind_loss_ops(py::module_& m) {
  using py::arg;
  m.def("loss_forms", &loss_forms<Backend>, arg("vectors"), arg("coefficients"), arg("out"), arg("partial"));
  m.def("loss_lognormal", &loss_lognormal<Backend>, arg("vectors"), arg("coefficients"), arg("multiplied"),
        arg("sums"), arg("out"), arg("partial"));
}

}  // namespace fokker::bind
