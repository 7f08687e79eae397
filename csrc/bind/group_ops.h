// Contract and binding of group norms, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/group_plan.h"

namespace fokker::bind {

using Optional = std::optional<TensorView>;

// A tensor of the plan's shape and dtype in its layout.
template <typename Backend> GroupMap group_map(const GroupPlan& p, const TensorView& t, const TensorView& x,
                                               const char* name, bool written = false) {
  check_device(t, name, Backend::device);
  if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
  check_dtype(t, name, x.dtype);
  check_same_shape(t, name, x, "x");
  std::int64_t step = 0, size = 1;  // between positions, and positions seen
  bool fits = true;
  for (int d = t.ndim - 1; d >= 2; --d) {
    if (t.shape[d] == 1) continue;
    if (size == 1) step = t.strides[d];
    else fits = fits && t.strides[d] == step * size;
    size *= t.shape[d];
  }
  fits = fits && (p.last ? t.shape[1] == 1 || t.strides[1] == 1 : size == 1 || step == 1);
  if (!fits)
    raise<TypeError>(name, " must be ", p.last ? "channels_last" : "contiguous",
                     " within a sample, as x is said to be");
  GroupMap m{t.data, t.strides[0], p.last ? step : t.strides[1]};
  if (written && ((t.shape[0] > 1 && m.batch_stride == 0) || ((p.last ? size : t.shape[1]) > 1 && m.row_stride == 0)))
    raise<ValueError>(name, " ", shape_of(t), " must not be an expanded tensor");
  return m;
}

template <typename Backend>
GroupPlan group_plan(const TensorView& x, std::int64_t groups, int activation, bool centred, bool last) {
  check_device(x, "x", Backend::device);
  if (x.ndim < 2) raise<ValueError>("x must have shape (batch, channels, ...), got ", shape_of(x));
  if (x.dtype == DType::i64) raise<TypeError>("x must have dtype float16, bfloat16, float32 or float64, got int64");
  GroupPlan p;
  p.dtype = x.dtype, p.wide = x.dtype == DType::f64;
  p.batch = x.shape[0], p.channels = x.shape[1], p.groups = groups;
  for (int d = 2; d < x.ndim; ++d) p.positions *= x.shape[d];
  if (groups < 1 || p.channels < 1 || p.channels % groups)
    raise<ValueError>("groups must divide the ", p.channels, " channels of x, got ", groups);
  if (activation < 0 || activation >= kActivations)
    raise<ValueError>("activation must be 0 to ", kActivations - 1, ", got ", activation);
  p.activation = static_cast<Activation>(activation);
  p.centred = centred, p.last = last;
  return p;
}

// (size,), or with `batched` (batch, size), of any strides.
template <typename Backend> GroupParameter group_parameter(const GroupPlan& p, const Optional& t, const TensorView& x,
                                                           const char* name, std::int64_t size, bool batched) {
  if (!t) return {};
  check_device(*t, name, Backend::device);
  if (t->device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
  if (t->dtype != x.dtype && t->dtype != (p.wide ? DType::f64 : DType::f32))
    raise<TypeError>(name, " must have the dtype of x or the one it is computed in, got ", name_of(t->dtype));
  if (t->ndim != 1 + batched || t->shape[batched] != size || (batched && t->shape[0] != p.batch))
    raise<ValueError>(name, " ", shape_of(*t), " must have shape (", batched ? "batch, " : "", size, ")");
  return {t->data, t->dtype, batched ? t->strides[0] : 0, t->strides[batched]};
}

// Contiguous doubles, (batch, size, 2).
template <typename Backend>
double* group_sums(const GroupPlan& p, const TensorView& t, const TensorView& x, const char* name, std::int64_t size) {
  check_device(t, name, Backend::device);
  if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
  check_dtype(t, name, DType::f64);
  check_contiguous(t, name);
  if (t.ndim != 3 || t.shape[0] != p.batch || t.shape[1] != size || t.shape[2] != 2)
    raise<ValueError>(name, " ", shape_of(t), " must have shape (", p.batch, ", ", size, ", 2)");
  return t.ptr<double>();
}

template <typename Backend> void group_launch(GroupPlan& p, const TensorView& x, const Optional& work) {
  if (p.batch * p.positions == 0) return;
  if (const std::int64_t needed = Backend::group_work(p)) {
    if (!work || work->device_id != x.device_id || work->dtype != DType::f64 || !work->contiguous() ||
        work->numel() < needed)
      raise<ValueError>("work must hold ", needed, " float64 numbers on the device of x");
    check_device(*work, "work", Backend::device);
    p.work = work->ptr<double>();
  }
  typename Backend::Guard guard(x);
  without_gil(x.numel(), [&] { Backend::group_run(p, guard); });
}

template <typename Backend> void group_parameters(GroupPlan& p, const TensorView& x, const Optional& weight,
                                                  const Optional& bias, const Optional& scale, const Optional& shift,
                                                  const Optional& std) {
  p.weight = group_parameter<Backend>(p, weight, x, "weight", p.channels, false);
  p.bias = group_parameter<Backend>(p, bias, x, "bias", p.channels, false);
  p.scale = group_parameter<Backend>(p, scale, x, "scale", p.channels, true);
  p.shift = group_parameter<Backend>(p, shift, x, "shift", p.channels, true);
  p.std = group_parameter<Backend>(p, std, x, "std", p.groups, true);
}

template <typename Backend> void group_norm(const TensorView& x, const Optional& residual, const Optional& weight,
                                            const Optional& bias, const Optional& scale, const Optional& shift,
                                            const Optional& std, std::int64_t groups, double eps, int activation,
                                            bool centred, bool last, const Optional& sum, const TensorView& out,
                                            const TensorView& stats, const Optional& work) {
  GroupPlan p = group_plan<Backend>(x, groups, activation, centred, last);
  if (!(eps > 0)) raise<ValueError>("eps must be positive, got ", eps);
  p.eps = eps;
  p.x = group_map<Backend>(p, x, x, "x");
  if (residual.has_value() != sum.has_value()) raise<ValueError>("residual and sum go together");
  if (residual) {
    p.residual = group_map<Backend>(p, *residual, x, "residual");
    p.sum = group_map<Backend>(p, *sum, x, "sum", true);
  }
  p.out = group_map<Backend>(p, out, x, "out", true);
  group_parameters<Backend>(p, x, weight, bias, scale, shift, std);
  p.stats = group_sums<Backend>(p, stats, x, "stats", p.groups);
  group_launch<Backend>(p, x, work);
}

template <typename Backend> void group_norm_vjp(const TensorView& x, const TensorView& grad, const Optional& grad_sum,
                                                const Optional& weight, const Optional& bias, const Optional& scale,
                                                const Optional& shift, const Optional& std, const TensorView& stats,
                                                std::int64_t groups, int activation, bool centred, bool last,
                                                const TensorView& out, const TensorView& sums, const Optional& work) {
  GroupPlan p = group_plan<Backend>(x, groups, activation, centred, last);
  p.backward = true;
  p.x = group_map<Backend>(p, x, x, "x");
  p.grad = group_map<Backend>(p, grad, x, "grad");
  if (grad_sum) p.grad_sum = group_map<Backend>(p, *grad_sum, x, "grad_sum");
  p.out = group_map<Backend>(p, out, x, "out", true);
  group_parameters<Backend>(p, x, weight, bias, scale, shift, std);
  p.stats = group_sums<Backend>(p, stats, x, "stats", p.groups);
  p.sums = group_sums<Backend>(p, sums, x, "sums", p.channels);
  group_launch<Backend>(p, x, work);
}

// Doubles that the kernels want as `work` for x of this shape.
template <typename Backend> std::int64_t group_work(std::int64_t batch, std::int64_t channels, std::int64_t groups,
                                                    std::int64_t positions, bool last, bool backward) {
  GroupPlan p;
  p.batch = batch, p.channels = channels, p.groups = groups, p.positions = positions;
  p.last = last, p.backward = backward;
  return Backend::group_work(p);
}

template <typename Backend> void bind_group_ops(py::module_& m) {
  using py::arg;
  m.def("group_norm", &group_norm<Backend>, arg("x"), arg("residual"), arg("weight"), arg("bias"), arg("scale"),
        arg("shift"), arg("std"), arg("groups"), arg("eps"), arg("activation"), arg("centred"), arg("last"), arg("sum"),
        arg("out"), arg("stats"), arg("work"));
  m.def("group_norm_vjp", &group_norm_vjp<Backend>, arg("x"), arg("grad"), arg("grad_sum"), arg("weight"), arg("bias"),
        arg("scale"), arg("shift"), arg("std"), arg("stats"), arg("groups"), arg("activation"), arg("centred"),
        arg("last"), arg("out"), arg("sums"), arg("work"));
  m.def("group_work", &group_work<Backend>, arg("batch"), arg("channels"), arg("groups"), arg("positions"), arg("last"),
        arg("backward"));
}

}  // namespace fokker::bind
