// Contract and binding of density sums (common/kde_sums.h); included by ops.h.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/dispatch.h"
#include "common/kde_sums.h"

namespace fokker::bind {

// All batched: x (b, n, d), y (b, m, d), bandwidth (b, 1, 1), (b, n, 1) or (b, 1, m), bias and weight (b, m), shift (b,
// n), v (b, m, dv); results log_sum, square, delta (b, n), values (b, n, dv). float64 but for x, y, v and values.
template <typename Backend>
void kde_sums(const TensorView& x, const TensorView& y, const TensorView& bandwidth,
              const std::optional<TensorView>& bias, const std::optional<TensorView>& v,
              const std::optional<TensorView>& weight, const std::optional<TensorView>& shift, int kernel, double nu,
              std::int64_t exclude, bool highest, int weighting, const TensorView& log_sum,
              const std::optional<TensorView>& values, const std::optional<TensorView>& square,
              const std::optional<TensorView>& delta) {
  check_ndim(x, "x", 3);
  check_ndim(y, "data", 3);
  check_ndim(bandwidth, "bandwidth", 3);
  const std::int64_t b = x.shape[0], n = x.shape[1], d = x.shape[2], m = y.shape[1];
  if (y.shape[0] != b || y.shape[2] != d)
    raise<ValueError>("x ", shape_of(x), " and data ", shape_of(y), " must agree in their first and last dimension");
  if (kernel < 0 || kernel >= math::kKernelCount)
    raise<ValueError>("kernel must be 0 to ", math::kKernelCount - 1, ", got ", kernel);
  if (weighting < 0 || weighting > 2) raise<ValueError>("weighting must be 0, 1 or 2, got ", weighting);
  const auto check = [&](const TensorView& t, const char* name, std::int64_t rows, std::int64_t columns, DType dtype) {
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, dtype);
    check_contiguous(t, name);
    const bool flat = t.ndim == 2;
    if ((t.ndim != 2 && t.ndim != 3) || t.shape[0] != b || t.shape[1] != rows || (flat ? 1 : t.shape[2]) != columns)
      raise<ValueError>(name, " ", shape_of(t), " must have shape (", b, ", ", rows, ", ", columns, ")");
  };
  const std::int64_t dv = values ? (values->ndim == 3 ? values->shape[2] : 1) : 0;
  check(x, "x", n, d, x.dtype);
  check(y, "data", m, d, x.dtype);
  const bool per_datum = bandwidth.shape[2] != 1, per_query = !per_datum && bandwidth.shape[1] != 1;
  check(bandwidth, "bandwidth", per_query ? n : 1, per_datum ? m : 1, DType::f64);
  if (bias) check(*bias, "bias", m, 1, DType::f64);
  if (weight) check(*weight, "weight", m, 1, DType::f64);
  if (shift) check(*shift, "shift", n, 1, DType::f64);
  if (v) check(*v, "values", m, dv, x.dtype);
  if (v && weighting != 1) raise<ValueError>("values need weighting 1, got ", weighting);
  if ((weighting != 0) != values.has_value())
    raise<ValueError>("values out must be given where weighting is not 0, and only there");
  if (values) check(*values, "values out", n, v ? dv : d, x.dtype);
  check(log_sum, "log_sum", n, 1, DType::f64);
  if (square) check(*square, "square", n, 1, DType::f64);
  if (delta) check(*delta, "delta", n, 1, DType::f64);
  if (b == 0 || n == 0) return;

  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(b * n * m, [&] {
      const auto at = [](const std::optional<TensorView>& t, std::int64_t offset) {
        return t ? t->template ptr<double>() + offset : nullptr;
      };
      for (std::int64_t k = 0; k < b; ++k) {
        KdeSums s;
        s.kernel = static_cast<math::Kernel>(kernel);
        s.nu = nu, s.n = n, s.m = m, s.d = d, s.dv = values ? (v ? dv : d) : 0;
        s.exclude = exclude, s.highest = highest;
        s.weighting = static_cast<KdeSums::Values>(weighting);
        s.bandwidth_kind = per_query   ? KdeSums::Bandwidth::per_query
                           : per_datum ? KdeSums::Bandwidth::per_datum
                                       : KdeSums::Bandwidth::one;
        s.x = x.ptr<T>() + k * n * d, s.y = y.ptr<T>() + k * m * d;
        s.v = v ? v->ptr<T>() + k * m * dv : nullptr;
        s.bandwidth = bandwidth.ptr<double>() + k * (per_query ? n : per_datum ? m : 1);
        s.bias = at(bias, k * m), s.weight = at(weight, k * m), s.shift = at(shift, k * n);
        s.log_sum = log_sum.ptr<double>() + k * n, s.square = at(square, k * n), s.delta = at(delta, k * n);
        s.values = values ? values->ptr<T>() + k * n * s.dv : nullptr;
        Backend::template kde_sums<T>(s, guard);
      }
    });
  });
}

template <typename Backend> void bind_kde_ops(py::module_& m) {
  using py::arg;
  m.def("kde_sums", &kde_sums<Backend>, arg("x"), arg("data"), arg("bandwidth"), arg("bias"), arg("values"),
        arg("weight"), arg("shift"), arg("kernel"), arg("nu"), arg("exclude"), arg("highest"), arg("weighting"),
        arg("log_sum"), arg("values_out"), arg("square"), arg("delta"));
}

}  // namespace fokker::bind
