// Each op's contract and binding, written once for every native module; Backend supplies device, guard and launchers.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "bind/random_ops.h"
#include "bind/torch_caster.h"
#include "common/dispatch.h"
#include "common/elementwise.h"
#include "math/bessel_fn.h"
#include "math/vmf.h"

namespace fokker::bind {

using Optional = std::optional<TensorView>;

template <typename Backend> void check_operand(const TensorView& t, const char* name, const TensorView& out) {
  check_device(t, name, Backend::device);
  if (t.device_id != out.device_id) raise<TypeError>(name, " and out must be on one device");
  if (t.dtype != out.dtype)
    raise<TypeError>(name, " must have the dtype of out (", name_of(out.dtype), "), got ", name_of(t.dtype));
}
template <typename Backend> void check_out(const TensorView& out, const char* name) {
  check_device(out, name, Backend::device);
  check_contiguous(out, name);
}

// Elementwise ops: inputs broadcast to the outputs, which are contiguous and of one shape, dtype and device.
template <typename Backend, std::size_t Outputs, typename Launch>
void run_elementwise(const std::vector<std::pair<const char*, const TensorView*>>& in,
                     const std::array<const TensorView*, Outputs>& out, Launch&& launch) {
  const TensorView* first = nullptr;
  void* data[Outputs];
  for (std::size_t k = 0; k < Outputs; ++k) {
    data[k] = out[k] ? out[k]->data : nullptr;
    if (!out[k]) continue;
    check_out<Backend>(*out[k], "out");
    if (first) {
      check_same_shape(*first, "out", *out[k], "out");
      check_operand<Backend>(*out[k], "out", *first);
    } else first = out[k];
  }
  if (!first) return;
  const char* names[2];
  const TensorView* views[2];
  for (std::size_t k = 0; k < in.size(); ++k) {
    names[k] = in[k].first;
    views[k] = in[k].second;
    check_operand<Backend>(*views[k], names[k], *first);
  }
  const Elementwise e = plan_elementwise(*first, names, views, static_cast<int>(in.size()));
  if (e.numel == 0) return;
  typename Backend::Guard guard(*first);
  dispatch_compute(first->dtype, names[0], [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(e.numel, [&] { launch(T{}, e, first->dtype, data, guard); });
  });
}
inline const TensorView* pointer(const Optional& t) { return t ? &*t : nullptr; }

inline math::Fn bessel_function(int fn) {
  if (fn < 0 || fn >= math::kFnCount) raise<ValueError>("function must be 0 to ", math::kFnCount - 1, ", got ", fn);
  return static_cast<math::Fn>(fn);
}
template <typename Backend, std::size_t Outputs>
void bessel(int fn, const TensorView& v, const TensorView& x, const std::array<const TensorView*, Outputs>& out) {
  const math::Fn function = bessel_function(fn);
  run_elementwise<Backend, Outputs>(
      {{"v", &v}, {"x", &x}}, out, [&](auto zero, const Elementwise& e, DType dtype, void* const* data, auto& guard) {
        Backend::template bessel<decltype(zero)>(function, static_cast<int>(Outputs) - 1, e, dtype, data, guard);
      });
}

inline void check_dim(std::int64_t dim) {
  if (dim < 2) raise<ValueError>("dim must be at least 2, got ", dim);
}
template <typename Backend> void vmf_scalar(int fn, std::int64_t dim, const TensorView& k, const TensorView& out) {
  if (fn < 0 || fn >= math::kVmfFnCount)
    raise<ValueError>("function must be 0 to ", math::kVmfFnCount - 1, ", got ", fn);
  check_dim(dim);
  run_elementwise<Backend, 1>({{"concentration", &k}}, {&out},
                              [&](auto zero, const Elementwise& e, DType dtype, void* const* data, auto& guard) {
                                Backend::template vmf_scalar<decltype(zero)>(static_cast<math::VmfFn>(fn), dim, e,
                                                                             dtype, data, guard);
                              });
}
template <typename Backend> void vmf_bregman(std::int64_t dim, const TensorView& k1, const TensorView& k2,
                                             const Optional& value, const Optional& d1, const Optional& d2) {
  check_dim(dim);
  run_elementwise<Backend, 3>({{"concentration_p", &k1}, {"concentration_q", &k2}},
                              {pointer(value), pointer(d1), pointer(d2)},
                              [&](auto zero, const Elementwise& e, DType dtype, void* const* data, auto& guard) {
                                Backend::template vmf_bregman<decltype(zero)>(dim, e, dtype, data, guard);
                              });
}

// x (..., d) and mean_direction (..., d) with adjacent elements, concentration (...), out: the broadcast batch shape.
template <typename Backend>
void vmf_log_prob(const TensorView& x, const TensorView& mean, const TensorView& k, const TensorView& out) {
  check_out<Backend>(out, "out");
  TensorView rows[2] = {x, mean};
  const char* names[] = {"x", "mean_direction", "concentration"};
  for (int i = 0; i < 2; ++i) {
    TensorView& t = rows[i];
    check_operand<Backend>(t, names[i], out);
    if (t.ndim < 1) raise<ValueError>(names[i], " must have shape (..., d), got a 0-dimensional tensor");
    --t.ndim;
    if (t.shape[t.ndim] > 1 && t.strides[t.ndim] != 1)
      raise<ValueError>(names[i], " ", shape_of(t), " must have adjacent elements in its last dimension");
  }
  const std::int64_t dim = x.shape[x.ndim - 1];
  check_dim(dim);
  if (mean.shape[mean.ndim - 1] != dim)
    raise<ValueError>("x ", shape_of(x), " and mean_direction ", shape_of(mean), " must agree in their last dimension");
  check_operand<Backend>(k, "concentration", out);
  const TensorView* views[] = {&rows[0], &rows[1], &k};
  const Elementwise e = plan_elementwise(out, names, views, 3);
  if (e.numel == 0) return;
  typename Backend::Guard guard(out);
  dispatch_float(out.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(e.numel * dim, [&] { Backend::template vmf_log_prob<T>(dim, e, out.ptr<T>(), guard); });
  });
}

// mean_direction (batch or 1, d), concentration (batch or 1), out (n, d): sample i belongs to entry i % batch.
struct SampleShape {
  std::int64_t n, d, batch, mean_stride, concentration_stride;
};
inline SampleShape sample_shape(const TensorView& mean, const TensorView* concentration, const TensorView& out) {
  check_ndim(mean, "mean_direction", 2);
  check_ndim(out, "out", 2);
  const std::int64_t n = out.shape[0], d = out.shape[1], means = mean.shape[0];
  check_dim(d);
  if (mean.shape[1] != d)
    raise<ValueError>("mean_direction ", shape_of(mean), " and out ", shape_of(out),
                      " must agree in their last dimension");
  if (concentration) check_ndim(*concentration, "concentration", 1);
  const std::int64_t concentrations = concentration ? concentration->shape[0] : 1,
                     batch = std::max(means, concentrations);
  if ((means != batch && means != 1) || (concentrations != batch && concentrations != 1) ||
      (n && (batch == 0 || n % batch)))
    raise<ValueError>("mean_direction ", shape_of(mean), " and concentration with ", concentrations,
                      " entries must be one batch that divides the ", n, " samples");
  return {n, d, batch, means == 1 ? 0 : d, concentrations == 1 ? 0 : 1};
}
template <typename Backend>
void check_entries(const TensorView& t, const char* name, const TensorView& out, std::int64_t n) {
  check_operand<Backend>(t, name, out);
  check_contiguous(t, name);
  if (t.numel() != n) raise<ValueError>(name, " ", shape_of(t), " must have ", n, " entries");
}
template <typename Backend> void vmf_sample(const TensorView& mean, const TensorView& concentration,
                                            const Optional& ids, std::int64_t first_id, std::uint64_t seed,
                                            std::uint32_t step, const TensorView& out, const TensorView& w,
                                            const TensorView& one_minus_w) {
  const SampleShape s = sample_shape(mean, &concentration, out);
  check_out<Backend>(out, "out");
  check_entries<Backend>(mean, "mean_direction", out, mean.numel());
  check_entries<Backend>(concentration, "concentration", out, concentration.numel());
  check_entries<Backend>(w, "w", out, s.n);
  check_entries<Backend>(one_minus_w, "one_minus_w", out, s.n);
  if (ids) {
    check_device(*ids, "sample_ids", Backend::device);
    if (ids->device_id != out.device_id) raise<TypeError>("sample_ids and out must be on one device");
    check_dtype(*ids, "sample_ids", DType::i64);
    check_contiguous(*ids, "sample_ids");
    if (ids->numel() != s.n) raise<ValueError>("sample_ids ", shape_of(*ids), " must have ", s.n, " entries");
  }
  if (step >> 24) raise<ValueError>("step must be below 2^24, got ", step);
  if (s.n == 0) return;
  typename Backend::Guard guard(out);
  dispatch_float(out.dtype, "mean_direction", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(s.n * s.d, [&] {
      Backend::template vmf_sample<T>(mean.ptr<T>(), s.mean_stride, concentration.ptr<T>(), s.concentration_stride,
                                      s.batch, ids ? ids->ptr<std::int64_t>() : nullptr, first_id, seed, step, s.d, s.n,
                                      out.ptr<T>(), w.ptr<T>(), one_minus_w.ptr<T>(), guard);
    });
  });
}
// grad and x (n, d) -> grad_mean (n, d), and grad_cosine (n,), the gradient in mu.x of each sample.
template <typename Backend>
void vmf_sample_backward(const TensorView& grad, const TensorView& x, const TensorView& mean, const TensorView& w,
                         const TensorView& one_minus_w, const TensorView& grad_mean, const TensorView& grad_cosine) {
  const SampleShape s = sample_shape(mean, nullptr, grad_mean);
  check_out<Backend>(grad_mean, "grad_mean");
  check_same_shape(x, "x", grad_mean, "grad_mean");
  check_entries<Backend>(grad, "grad", grad_mean, s.n * s.d);
  check_entries<Backend>(x, "x", grad_mean, s.n * s.d);
  check_entries<Backend>(mean, "mean_direction", grad_mean, mean.numel());
  check_entries<Backend>(w, "w", grad_mean, s.n);
  check_entries<Backend>(one_minus_w, "one_minus_w", grad_mean, s.n);
  check_entries<Backend>(grad_cosine, "grad_cosine", grad_mean, s.n);
  if (s.n == 0) return;
  typename Backend::Guard guard(grad_mean);
  dispatch_float(grad_mean.dtype, "grad", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(s.n * s.d, [&] {
      Backend::template vmf_sample_backward<T>(grad.ptr<T>(), x.ptr<T>(), mean.ptr<T>(), s.mean_stride, s.batch,
                                               w.ptr<T>(), one_minus_w.ptr<T>(), s.d, s.n, grad_mean.ptr<T>(),
                                               grad_cosine.ptr<T>(), guard);
    });
  });
}
// d(mu.x)/d concentration of samples at a fixed probability; mean_resultant = A and complement = 1 - A; all of one
// size.
template <typename Backend> void vmf_cosine_gradient(std::int64_t dim, const TensorView& k,
                                                     const TensorView& mean_resultant, const TensorView& complement,
                                                     const TensorView& w, const TensorView& one_minus_w,
                                                     const TensorView& out) {
  check_dim(dim);
  check_out<Backend>(out, "out");
  const std::int64_t n = out.numel();
  check_entries<Backend>(k, "concentration", out, n);
  check_entries<Backend>(mean_resultant, "mean_resultant", out, n);
  check_entries<Backend>(complement, "complement", out, n);
  check_entries<Backend>(w, "w", out, n);
  check_entries<Backend>(one_minus_w, "one_minus_w", out, n);
  if (n == 0) return;
  typename Backend::Guard guard(out);
  dispatch_float(out.dtype, "concentration", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(n * 64, [&] {
      Backend::template vmf_cosine_gradient<T>(dim, k.ptr<T>(), mean_resultant.ptr<T>(), complement.ptr<T>(),
                                               w.ptr<T>(), one_minus_w.ptr<T>(), out.ptr<T>(), n, guard);
    });
  });
}

// x (n, d), weights (n,), partial (rows, d + 2) and out (d + 2) in float64: column sums, sum of weights, max | |x_i|^2
// - 1 |.
template <typename Backend>
void resultant(const TensorView& x, const Optional& weights, const TensorView& partial, const TensorView& out) {
  check_ndim(x, "x", 2);
  check_device(x, "x", Backend::device);
  check_contiguous(x, "x");
  check_out<Backend>(out, "out");
  check_out<Backend>(partial, "partial");
  if (out.device_id != x.device_id || partial.device_id != x.device_id)
    raise<TypeError>("out, partial and x must be on one device");
  check_dtype(out, "out", DType::f64);
  check_dtype(partial, "partial", DType::f64);
  check_ndim(partial, "partial", 2);
  const std::int64_t n = x.shape[0], d = x.shape[1];
  if (out.numel() != d + 2 || partial.shape[1] != d + 2 || partial.shape[0] < 1)
    raise<ValueError>("out ", shape_of(out), " and partial ", shape_of(partial), " must have rows of ", d + 2,
                      " entries");
  if (weights) {
    check_operand<Backend>(*weights, "weights", x);
    check_contiguous(*weights, "weights");
    if (weights->ndim != 1 || weights->shape[0] != n)
      raise<ValueError>("weights ", shape_of(*weights), " must have one entry a row of x ", shape_of(x));
  }
  typename Backend::Guard guard(out);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(n * d, [&] {
      Backend::template resultant<T>(x.ptr<T>(), weights ? weights->ptr<T>() : nullptr, n, d, partial.ptr<double>(),
                                     static_cast<int>(partial.shape[0]), out.ptr<double>(), guard);
    });
  });
}
// logits (n, k) in place, bias (k,), out (n,): log sum_k exp(logits + bias); with `softmax` the logits become the
// shares.
template <typename Backend>
void row_logsumexp(const TensorView& logits, const TensorView& bias, const TensorView& out, bool softmax) {
  check_ndim(logits, "logits", 2);
  check_ndim(bias, "bias", 1);
  check_ndim(out, "out", 1);
  check_out<Backend>(logits, "logits");
  check_operand<Backend>(bias, "bias", logits);
  check_operand<Backend>(out, "out", logits);
  check_contiguous(bias, "bias");
  check_contiguous(out, "out");
  const std::int64_t n = logits.shape[0], k = logits.shape[1];
  if (bias.shape[0] != k)
    raise<ValueError>("bias ", shape_of(bias), " must have one entry a column of logits ", shape_of(logits));
  if (out.shape[0] != n)
    raise<ValueError>("out ", shape_of(out), " must have one entry a row of logits ", shape_of(logits));
  if (n == 0) return;
  typename Backend::Guard guard(out);
  dispatch_float(logits.dtype, "logits", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(n * k, [&] {
      Backend::template row_logsumexp<T>(logits.ptr<T>(), bias.ptr<T>(), n, k, out.ptr<T>(), softmax, guard);
    });
  });
}

template <typename Backend> void bind_ops(py::module_& m) {
  using py::arg;
  register_errors();
  m.def("init", &init, arg("tensor"), arg("parameter"), arg("cuda_error"));
  m.def(
      "bessel",
      [](int fn, const TensorView& v, const TensorView& x, const TensorView& out) {
        bessel<Backend, 1>(fn, v, x, {&out});
      },
      arg("function"), arg("v"), arg("x"), arg("out"));
  m.def(
      "bessel_grad",
      [](int fn, const TensorView& v, const TensorView& x, const Optional& dv, const Optional& dx) {
        bessel<Backend, 2>(fn, v, x, {pointer(dv), pointer(dx)});
      },
      arg("function"), arg("v"), arg("x"), arg("dv"), arg("dx"));
  m.def(
      "bessel_hess",
      [](int fn, const TensorView& v, const TensorView& x, const Optional& vv, const Optional& vx, const Optional& xx) {
        bessel<Backend, 3>(fn, v, x, {pointer(vv), pointer(vx), pointer(xx)});
      },
      arg("function"), arg("v"), arg("x"), arg("dvv"), arg("dvx"), arg("dxx"));
  m.def("vmf_scalar", &vmf_scalar<Backend>, arg("function"), arg("dim"), arg("concentration"), arg("out"));
  m.def("vmf_bregman", &vmf_bregman<Backend>, arg("dim"), arg("concentration_p"), arg("concentration_q"), arg("value"),
        arg("d_p"), arg("d_q"));
  m.def("vmf_log_prob", &vmf_log_prob<Backend>, arg("x"), arg("mean_direction"), arg("concentration"), arg("out"));
  m.def("vmf_sample", &vmf_sample<Backend>, arg("mean_direction"), arg("concentration"), arg("sample_ids"),
        arg("first_id"), arg("seed"), arg("step"), arg("out"), arg("w"), arg("one_minus_w"));
  m.def("vmf_sample_backward", &vmf_sample_backward<Backend>, arg("grad"), arg("x"), arg("mean_direction"), arg("w"),
        arg("one_minus_w"), arg("grad_mean"), arg("grad_cosine"));
  m.def("vmf_cosine_gradient", &vmf_cosine_gradient<Backend>, arg("dim"), arg("concentration"), arg("mean_resultant"),
        arg("complement"), arg("w"), arg("one_minus_w"), arg("out"));
  m.def("resultant", &resultant<Backend>, arg("x"), arg("weights"), arg("partial"), arg("out"));
  m.def("row_logsumexp", &row_logsumexp<Backend>, arg("logits"), arg("bias"), arg("out"), arg("softmax"));
  bind_random_ops<Backend>(m);
}

}  // namespace fokker::bind
