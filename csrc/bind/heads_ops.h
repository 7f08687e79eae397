// Contract and binding of attention heads and gated activations, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <vector>

#include "bind/torch_caster.h"
#include "common/heads_plan.h"

namespace fokker::bind {

namespace heads_detail {

using Views = std::vector<TensorView>;
using MaybeViews = std::vector<std::optional<TensorView>>;

template <typename Backend> void check_like_first(const TensorView& t, const char* name, const TensorView& first) {
  check_device(t, name, Backend::device);
  if (t.device_id != first.device_id) raise<TypeError>(name, " must be on the device of the first argument");
  check_dtype(t, name, first.dtype);
}
// A small operand in the type of the arithmetic, contiguous.
template <typename Backend> const void* small(const TensorView& t, const char* name, const TensorView& first) {
  check_device(t, name, Backend::device);
  if (t.device_id != first.device_id) raise<TypeError>(name, " must be on the device of the first argument");
  check_dtype(t, name, first.dtype == DType::f64 ? DType::f64 : DType::f32);
  check_contiguous(t, name);
  return t.data;
}

inline HeadTensor head_tensor(const TensorView& t) {
  return {t.data, t.strides[0], t.strides[1], t.strides[2], t.strides[3]};
}
template <typename Backend> HeadTensor head_like(const TensorView& t, const char* name, const TensorView& x) {
  check_like_first<Backend>(t, name, x);
  check_same_shape(t, name, x, "x");
  return head_tensor(t);
}

template <typename Backend> HeadsPlan heads_plan(const Views& x, const MaybeViews& weights, const MaybeViews& biases,
                                                 const std::optional<TensorView>& cos,
                                                 const std::optional<TensorView>& sin, int norm, double eps,
                                                 bool interleaved, int rotary) {
  if (x.size() < 2 || x.size() > kMaxParts || weights.size() != 2 || biases.size() != 2)
    raise<ValueError>("queries and keys, perhaps values, expected, with two weights and biases; got ", x.size(),
                      " tensors, ", weights.size(), " and ", biases.size());
  if (norm < 0 || norm > 2) raise<ValueError>("norm must be 0, 1 or 2, got ", norm);
  const TensorView& first = x[0];
  HeadsPlan p;
  check_ndim(first, "x", 4);
  if (first.dtype == DType::i64) raise<TypeError>("x must have dtype float16, bfloat16, float32 or float64, got int64");
  p.dtype = first.dtype, p.wide = first.dtype == DType::f64;
  p.norm = static_cast<HeadNorm>(norm), p.eps = eps, p.interleaved = interleaved;
  p.batch = first.shape[0], p.tokens = first.shape[2];
  const std::int64_t dim = first.shape[3];
  if (dim % 2 || dim < 2 || dim > kMaxHeadDim)
    raise<ValueError>("the head dimension must be even, from 2 to ", kMaxHeadDim, ", got ", dim);
  if (rotary % 2 || rotary < 2 || rotary > dim)
    raise<ValueError>("rotary must be even, from 2 to the head dimension ", dim, ", got ", rotary);
  p.dim = static_cast<int>(dim), p.parts = static_cast<int>(x.size()), p.rotary = rotary;
  for (int i = 0; i < p.parts; ++i) {
    HeadPart& part = p.part[i];
    check_like_first<Backend>(x[i], "x", first);
    check_ndim(x[i], "x", 4);
    if (x[i].shape[0] != p.batch || x[i].shape[2] != p.tokens || x[i].shape[3] != dim)
      raise<ValueError>("x ", shape_of(x[i]), " and ", shape_of(first), " may differ in heads only");
    part.x = head_tensor(x[i]);
    part.heads = x[i].shape[1];
    part.plain = i == 2;
    if (part.plain) continue;
    for (const auto* small_one : {&weights[i], &biases[i]}) {
      if (!*small_one) continue;
      if ((*small_one)->numel() != dim) raise<ValueError>("weights and biases must have ", dim, " entries");
      (small_one == &weights[i] ? part.weight : part.bias) = small<Backend>(**small_one, "weight or bias", first);
    }
  }
  if (cos.has_value() != sin.has_value()) raise<ValueError>("cos and sin belong together");
  if (!cos) return p;
  check_ndim(*cos, "cos", 3);
  check_same_shape(*sin, "sin", *cos, "cos");
  p.cos = small<Backend>(*cos, "cos", first), p.sin = small<Backend>(*sin, "sin", first);
  const std::int64_t width = cos->shape[2];
  if ((cos->shape[0] != 1 && cos->shape[0] != p.batch) || cos->shape[1] != p.tokens ||
      (width != rotary && width != rotary / 2))
    raise<ValueError>("cos ", shape_of(*cos), " must have shape (1 or ", p.batch, ", ", p.tokens, ", ", rotary / 2,
                      " or ", rotary, ")");
  p.width = static_cast<int>(width);
  p.table_batch = cos->shape[0] == 1 ? 0 : p.tokens * width;
  return p;
}
template <typename Backend> void run_heads(HeadsPlan& p, const TensorView& first) {
  std::int64_t heads = 0;
  for (int i = 0; i < p.parts; ++i) heads += p.part[i].heads;
  const std::int64_t total = p.batch * p.tokens * heads * p.dim;
  if (total == 0) return;
  typename Backend::Guard guard(first);
  without_gil(total, [&] { Backend::heads(p, guard); });
}

}  // namespace heads_detail

// x: queries, keys and perhaps values (copied), (batch, heads, tokens, dim) of any strides; out: of their shapes.
template <typename Backend> void heads_norm_rope(const heads_detail::Views& x, const heads_detail::MaybeViews& weights,
                                                 const heads_detail::MaybeViews& biases,
                                                 const std::optional<TensorView>& cos,
                                                 const std::optional<TensorView>& sin, int norm, double eps,
                                                 bool interleaved, int rotary, const heads_detail::Views& out) {
  HeadsPlan p = heads_detail::heads_plan<Backend>(x, weights, biases, cos, sin, norm, eps, interleaved, rotary);
  if (out.size() != x.size()) raise<ValueError>("out must be ", x.size(), " tensors, got ", out.size());
  for (std::size_t i = 0; i < x.size(); ++i) p.part[i].out = heads_detail::head_like<Backend>(out[i], "out", x[i]);
  heads_detail::run_heads<Backend>(p, x[0]);
}

// grads: of the results; out: the gradients in x, where wanted; sums (2, 2, dim) in float64: in [weight, bias] of
// queries and keys; partial: the workspace of backends that ask for one (heads_blocks).
template <typename Backend>
void heads_norm_rope_vjp(const heads_detail::Views& x, const heads_detail::MaybeViews& weights,
                         const heads_detail::MaybeViews& biases, const std::optional<TensorView>& cos,
                         const std::optional<TensorView>& sin, int norm, double eps, bool interleaved, int rotary,
                         const heads_detail::Views& grads, const heads_detail::MaybeViews& out,
                         const std::optional<TensorView>& sums, const std::optional<TensorView>& partial) {
  HeadsPlan p = heads_detail::heads_plan<Backend>(x, weights, biases, cos, sin, norm, eps, interleaved, rotary);
  p.backward = true;
  if (grads.size() != x.size() || out.size() != x.size())
    raise<ValueError>("grads and out must be ", x.size(), " tensors, got ", grads.size(), " and ", out.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    p.part[i].grad = heads_detail::head_like<Backend>(grads[i], "grads", x[i]);
    if (out[i]) p.part[i].out = heads_detail::head_like<Backend>(*out[i], "out", x[i]);
  }
  if (sums) {
    check_device(*sums, "sums", Backend::device);
    if (sums->device_id != x[0].device_id) raise<TypeError>("sums and x must be on one device");
    check_dtype(*sums, "sums", DType::f64);
    check_contiguous(*sums, "sums");
    if (sums->numel() != p.sum_count()) raise<ValueError>("sums must have ", p.sum_count(), " entries");
    p.sums = sums->ptr<double>();
    if (const std::int64_t blocks = Backend::heads_blocks(p.batch * p.tokens)) {
      if (!partial || partial->dtype != DType::f64 || !partial->contiguous() || partial->device_id != x[0].device_id ||
          partial->numel() < blocks * p.sum_count())
        raise<ValueError>("partial must hold ", blocks * p.sum_count(), " float64 numbers on the device of x");
      check_device(*partial, "partial", Backend::device);
      p.partial = partial->ptr<double>();
    }
  }
  heads_detail::run_heads<Backend>(p, x[0]);
}

namespace heads_detail {

// What is gated: x of packed halves with their bias, or the gate, the value and a bias of each.
struct Gated {
  const TensorView& x;
  const std::optional<TensorView>&value, &bias, &value_bias;
  int kind, dim;
  bool gated, gate_first;
  // Elements along dim: of a half, and where gate and value begin in x and in its bias.
  std::int64_t half() const { return gated && !value ? x.shape[dim] / 2 : x.shape[dim]; }
  std::int64_t gate_at() const { return gated && !value && !gate_first ? half() : 0; }
  std::int64_t value_at() const { return gated && !value && gate_first ? half() : 0; }
};

// Lays out a plan over the shape of `out` (the result, or its gradient); to_x and to_value: gradients in x and value.
template <typename Backend> GatePlan gate_plan(const Gated& g, const TensorView& out, const char* out_name,
                                               const TensorView* to_x, const std::optional<TensorView>& to_value) {
  const TensorView& x = g.x;
  const int dim = g.dim;
  if (g.kind < 0 || g.kind >= math::kActivationCount)
    raise<ValueError>("kind must be 0 to ", math::kActivationCount - 1, ", got ", g.kind);
  if (x.ndim < 1 || x.ndim > kMaxDims || dim < 0 || dim >= x.ndim)
    raise<ValueError>("x ", shape_of(x), " must have 1 to ", kMaxDims, " dimensions, and dim one of them, got ", dim);
  if (g.value && !g.gated) raise<ValueError>("a value belongs to a gate, but gated is false");
  check_device(x, "x", Backend::device);
  if (x.dtype == DType::i64) raise<TypeError>("x must have dtype float16, bfloat16, float32 or float64, got int64");
  check_like_first<Backend>(out, out_name, x);
  const std::int64_t size = x.shape[dim], half = g.half();
  bool fits = out.ndim == x.ndim && (!g.gated || g.value || size % 2 == 0);
  for (int d = 0; fits && d < x.ndim; ++d) fits = out.shape[d] == (d == dim ? half : x.shape[d]);
  if (!fits)
    raise<ValueError>(out_name, " ", shape_of(out), " does not fit x ", shape_of(x), " with halves along ", dim);
  GatePlan p;
  p.dtype = x.dtype, p.wide = x.dtype == DType::f64, p.gated = g.gated;
  p.kind = static_cast<math::Activation>(g.kind);
  p.ndim = x.ndim, p.n = out.numel();
  const int bytes = x.dtype == DType::f64 ? 8 : x.dtype == DType::f32 ? 4 : 2;
  const auto put = [&](GateSlot slot, const TensorView& t, std::int64_t first) {
    auto& o = p.at[static_cast<int>(slot)];
    o.data = static_cast<char*>(t.data) + first * t.strides[dim] * bytes;
    for (int d = 0; d < t.ndim; ++d) o.strides[d] = t.strides[d];
  };
  const auto put_other = [&](GateSlot slot, const std::optional<TensorView>& t, const char* name) {
    if (!t) raise<ValueError>(name, " must be given with a value");
    check_like_first<Backend>(*t, name, x);
    check_same_shape(*t, name, x, "x");
    put(slot, *t, 0);
  };
  for (int d = 0; d < x.ndim; ++d) p.shape[d] = out.shape[d];
  put(GateSlot::gate, x, g.gate_at());
  if (g.value) put_other(GateSlot::value, g.value, "value");
  else if (g.gated) put(GateSlot::value, x, g.value_at());
  if (to_x) {
    check_like_first<Backend>(*to_x, "to_x", x);
    check_same_shape(*to_x, "to_x", x, "x");
    put(GateSlot::to_gate, *to_x, g.gate_at());
    if (g.value) put_other(GateSlot::to_value, to_value, "to_value");
    else if (g.gated) put(GateSlot::to_value, *to_x, g.value_at());
  }
  put(to_x ? GateSlot::grad : GateSlot::out, out, 0);
  p.backward = to_x != nullptr;
  const auto put_bias = [&](GateSlot slot, const TensorView& t, std::int64_t first) {
    if (t.ndim != 1 || t.shape[0] != size) raise<ValueError>("bias ", shape_of(t), " must have ", size, " entries");
    auto& o = p.at[static_cast<int>(slot)];
    o.data = static_cast<char*>(const_cast<void*>(small<Backend>(t, "bias", x))) + first * (p.wide ? 8 : 4);
    o.strides[dim] = 1;
  };
  if (g.bias) {
    if (g.value && !g.value_bias) raise<ValueError>("bias and value_bias belong together");
    put_bias(GateSlot::gate_bias, *g.bias, g.gate_at());
    if (g.gated) put_bias(GateSlot::value_bias, g.value ? *g.value_bias : *g.bias, g.value_at());
  }
  if (p.n) fold(p);
  return p;
}

// sums: in float64, of x's channels, or of the gate's and then the value's; partial: the workspace of backends that ask
// for one (gates_blocks).
template <typename Backend> void plan_sums(GatePlan& p, const Gated& g, const std::optional<TensorView>& sums,
                                           const std::optional<TensorView>& partial) {
  if (!sums) return;
  if (!g.bias) raise<ValueError>("sums are of a bias, but there is none");
  p.sum_count = g.value ? 2 * g.half() : g.x.shape[g.dim];
  p.gate_at = g.gate_at(), p.value_at = g.value ? g.half() : g.value_at();
  const auto doubles = [&](const TensorView& t, const char* name, std::int64_t count) {
    check_device(t, name, Backend::device);
    if (t.device_id != g.x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, DType::f64);
    check_contiguous(t, name);
    if (t.numel() < count) raise<ValueError>(name, " must have ", count, " entries, got ", t.numel());
    return t.ptr<double>();
  };
  p.sums = doubles(*sums, "sums", p.sum_count);
  if (const std::int64_t blocks = p.n ? Backend::gates_blocks(p.n / g.half()) : 0) {
    if (!partial) raise<ValueError>("partial must be given with sums");
    p.partial = doubles(*partial, "partial", blocks * p.sum_count);
  }
}

}  // namespace heads_detail

template <typename Backend> void heads_activation(const TensorView& x, const std::optional<TensorView>& value,
                                                  const std::optional<TensorView>& bias,
                                                  const std::optional<TensorView>& value_bias, int kind, bool gated,
                                                  bool gate_first, int dim, const TensorView& out) {
  const heads_detail::Gated g{x, value, bias, value_bias, kind, dim, gated, gate_first};
  const GatePlan p = heads_detail::gate_plan<Backend>(g, out, "out", nullptr, std::nullopt);
  if (p.n == 0) return;
  typename Backend::Guard guard(x);
  without_gil(p.n, [&] { Backend::gates(p, guard); });
}
template <typename Backend>
void heads_activation_vjp(const TensorView& x, const std::optional<TensorView>& value,
                          const std::optional<TensorView>& bias, const std::optional<TensorView>& value_bias,
                          const TensorView& grad, int kind, bool gated, bool gate_first, int dim,
                          const TensorView& to_x, const std::optional<TensorView>& to_value,
                          const std::optional<TensorView>& sums, const std::optional<TensorView>& partial) {
  const heads_detail::Gated g{x, value, bias, value_bias, kind, dim, gated, gate_first};
  GatePlan p = heads_detail::gate_plan<Backend>(g, grad, "grad", &to_x, to_value);
  heads_detail::plan_sums<Backend>(p, g, sums, partial);
  if (p.n == 0) return;
  typename Backend::Guard guard(x);
  without_gil(p.n, [&] { Backend::gates(p, guard); });
}

template <typename Backend> void bind_heads_ops(py::module_& m) {
  using py::arg;
  m.def("heads_norm_rope", &heads_norm_rope<Backend>, arg("x"), arg("weights"), arg("biases"), arg("cos"), arg("sin"),
        arg("norm"), arg("eps"), arg("interleaved"), arg("rotary"), arg("out"));
  m.def("heads_norm_rope_vjp", &heads_norm_rope_vjp<Backend>, arg("x"), arg("weights"), arg("biases"), arg("cos"),
        arg("sin"), arg("norm"), arg("eps"), arg("interleaved"), arg("rotary"), arg("grads"), arg("out"), arg("sums"),
        arg("partial"));
  m.def("heads_blocks", &Backend::heads_blocks, arg("rows"));
  m.def("gates_blocks", &Backend::gates_blocks, arg("rows"));
  m.def("heads_activation", &heads_activation<Backend>, arg("x"), arg("value"), arg("bias"), arg("value_bias"),
        arg("kind"), arg("gated"), arg("gate_first"), arg("dim"), arg("out"));
  m.def("heads_activation_vjp", &heads_activation_vjp<Backend>, arg("x"), arg("value"), arg("bias"), arg("value_bias"),
        arg("grad"), arg("kind"), arg("gated"), arg("gate_first"), arg("dim"), arg("to_x"), arg("to_value"),
        arg("sums"), arg("partial"));
}

}  // namespace fokker::bind
