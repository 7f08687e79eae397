// Contract and binding of modulated norms and gated residuals, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/norm_plan.h"

namespace fokker::bind {

// Places tensors in a plan whose x is known, each broadcast to (batch, tokens, columns).
template <typename Backend> struct NormArguments {
  const TensorView& x;

  void check(const TensorView& t, const char* name) const {
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    if (t.dtype == DType::i64)
      raise<TypeError>(name, " must have dtype float16, bfloat16, float32 or float64, got int64");
  }
  // (batch or 1, tokens or 1, columns); `whole`: no ones.
  void rows(RowOperand& o, const std::optional<TensorView>& t, const char* name, bool whole = false) const {
    if (!t) return;
    check(*t, name);
    bool fits = t->ndim == 3 && t->shape[2] == x.shape[2];
    for (int d = 0; fits && d < 2; ++d) fits = t->shape[d] == x.shape[d] || (t->shape[d] == 1 && !whole);
    if (!fits) raise<ValueError>(name, " ", shape_of(*t), " does not fit x ", shape_of(x));
    o = {t->data, t->dtype, t->shape[0] == 1 ? 0 : t->strides[0], t->shape[1] == 1 ? 0 : t->strides[1],
         t->shape[2] == 1 ? 1 : t->strides[2]};
  }
  // (columns)
  void row(RowOperand& o, const std::optional<TensorView>& t, const char* name) const {
    if (!t) return;
    check(*t, name);
    if (t->ndim != 1 || t->shape[0] != x.shape[2])
      raise<ValueError>(name, " ", shape_of(*t), " must have shape (", x.shape[2], ",)");
    o = {t->data, t->dtype, 0, 0, t->shape[0] == 1 ? 1 : t->strides[0]};
  }
  void written(RowOperand& o, const std::optional<TensorView>& t, const char* name) const {
    if (!t) return;
    check_contiguous(*t, name);
    rows(o, t, name, true);
  }
  void* sums(const std::optional<TensorView>& t, const char* name, bool wide) const {
    if (!t) return nullptr;
    check(*t, name);
    check_contiguous(*t, name);
    check_dtype(*t, name, wide ? DType::f64 : DType::f32);
    if (t->ndim != 2 || t->shape[0] != x.shape[0] || t->shape[1] != x.shape[2])
      raise<ValueError>(name, " ", shape_of(*t), " must have shape (", x.shape[0], ", ", x.shape[2], ")");
    return t->data;
  }
};

using Slot = std::optional<TensorView>;

template <typename Backend> NormPlan norm_plan(const TensorView& x, const Slot& branch, const Slot& gate,
                                               const Slot& gate_table, const Slot& shift, const Slot& shift_table,
                                               const Slot& scale, const Slot& scale_table, const Slot& weight,
                                               const Slot& bias, double eps, int norm) {
  check_ndim(x, "x", 3);
  if (norm < 0 || norm > 2) raise<ValueError>("norm must be 0 to 2, got ", norm);
  if (!(eps > 0)) raise<ValueError>("eps must be positive, got ", eps);
  NormPlan p;
  p.norm = static_cast<Norm>(norm);
  p.wide = x.dtype == DType::f64;
  p.eps = eps;
  p.batch = x.shape[0], p.tokens = x.shape[1], p.columns = x.shape[2];
  const NormArguments<Backend> place{x};
  place.rows(p.x, x, "x", true);
  place.rows(p.branch, branch, "branch", true);
  place.rows(p.gate.main, gate, "gate");
  place.row(p.gate.table, gate_table, "gate_table");
  place.rows(p.shift.main, shift, "shift");
  place.row(p.shift.table, shift_table, "shift_table");
  place.rows(p.scale.main, scale, "scale");
  place.row(p.scale.table, scale_table, "scale_table");
  place.row(p.weight, weight, "weight");
  place.row(p.bias, bias, "bias");
  return p;
}

template <typename Backend> void launch_norm(const NormPlan& p, const TensorView& x) {
  if (x.numel() == 0) return;
  typename Backend::Guard guard(x);
  without_gil(x.numel(), [&] { Backend::norm_run(p, guard); });
}

// sum = x + gate branch (with a branch); out = (norm(that) weight + bias) (1 + scale) + shift (norm 0: none).
template <typename Backend>
void norm_modulate(const TensorView& x, const Slot& branch, const Slot& gate, const Slot& gate_table, const Slot& shift,
                   const Slot& shift_table, const Slot& scale, const Slot& scale_table, const Slot& weight,
                   const Slot& bias, double eps, int norm, const Slot& sum, const Slot& out) {
  NormPlan p =
      norm_plan<Backend>(x, branch, gate, gate_table, shift, shift_table, scale, scale_table, weight, bias, eps, norm);
  if (branch.has_value() != sum.has_value()) raise<ValueError>("sum goes with branch, and without it there is none");
  if ((norm != 0) != out.has_value()) raise<ValueError>("out goes with a norm, and without one there is none");
  const NormArguments<Backend> place{x};
  place.written(p.sum, sum, "sum");
  place.written(p.out, out, "out");
  launch_norm<Backend>(p, x);
}

// Gradients of that: to_gate and to_scale only for those that change by token; sums over tokens by sample.
template <typename Backend>
void norm_modulate_vjp(const TensorView& x, const Slot& branch, const Slot& gate, const Slot& gate_table,
                       const Slot& scale, const Slot& scale_table, const Slot& weight, const Slot& bias,
                       const Slot& grad_sum, const Slot& grad, double eps, int norm, bool weighted, const Slot& to_x,
                       const Slot& to_branch, const Slot& to_gate, const Slot& to_scale, const Slot& sum_p,
                       const Slot& sum_pn, const Slot& sum_gate, const Slot& partial) {
  NormPlan p = norm_plan<Backend>(x, branch, gate, gate_table, std::nullopt, std::nullopt, scale, scale_table, weight,
                                  bias, eps, norm);
  p.backward = true;
  p.weighted = weighted;
  const NormArguments<Backend> place{x};
  place.rows(p.grad_sum, grad_sum, "grad_sum", true);
  place.rows(p.grad, grad, "grad", true);
  const bool normed = norm != 0 && grad;
  if (!normed && !grad_sum) raise<ValueError>("grad or grad_sum must be given");
  if (!normed && (to_scale || sum_p || sum_pn)) raise<ValueError>("gradients of a norm need grad and a norm");
  if (!branch && (to_branch || to_gate || sum_gate)) raise<ValueError>("gradients of a branch need the branch");
  if (sum_p.has_value() != sum_pn.has_value()) raise<ValueError>("sum_p and sum_pn go together");
  place.written(p.to_x, to_x, "to_x");
  place.written(p.to_branch, to_branch, "to_branch");
  place.written(p.to_gate, to_gate, "to_gate");
  place.written(p.to_scale, to_scale, "to_scale");
  p.sum_p = place.sums(sum_p, "sum_p", p.wide);
  p.sum_pn = place.sums(sum_pn, "sum_pn", p.wide);
  p.sum_gate = place.sums(sum_gate, "sum_gate", p.wide);
  if (Backend::norm_token_block) p.token_block = Backend::norm_token_block;
  if (Backend::norm_token_block && p.sum_count() && x.numel()) {
    const std::int64_t needed = p.batch * token_blocks(p) * p.sum_count() * p.columns;
    if (!partial) raise<ValueError>("partial must hold ", needed, " numbers");
    place.check(*partial, "partial");
    check_dtype(*partial, "partial", p.wide ? DType::f64 : DType::f32);
    check_contiguous(*partial, "partial");
    if (partial->numel() < needed) raise<ValueError>("partial must hold ", needed, " numbers");
    p.partial = partial->data;
  }
  launch_norm<Backend>(p, x);
}

template <typename Backend> void bind_norm_ops(py::module_& m) {
  using py::arg;
  m.def("norm_modulate", &norm_modulate<Backend>, arg("x"), arg("branch"), arg("gate"), arg("gate_table"), arg("shift"),
        arg("shift_table"), arg("scale"), arg("scale_table"), arg("weight"), arg("bias"), arg("eps"), arg("norm"),
        arg("sum"), arg("out"));
  m.def("norm_modulate_vjp", &norm_modulate_vjp<Backend>, arg("x"), arg("branch"), arg("gate"), arg("gate_table"),
        arg("scale"), arg("scale_table"), arg("weight"), arg("bias"), arg("grad_sum"), arg("grad"), arg("eps"),
        arg("norm"), arg("weighted"), arg("to_x"), arg("to_branch"), arg("to_gate"), arg("to_scale"), arg("sum_p"),
        arg("sum_pn"), arg("sum_gate"), arg("partial"));
  // tokens whose sums take a row of `partial`; 0: it needs none
  m.attr("norm_token_block") = Backend::norm_token_block;
}

}  // namespace fokker::bind
