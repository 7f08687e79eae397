// Contract and binding of pixel norms and weighted concatenations, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/pixels_plan.h"

namespace fokker::bind {

// x, grad (or None: forward) and out: (outer, channels, inner), contiguous, of one dtype.
template <typename Backend>
void pixel_norm(const TensorView& x, const std::optional<TensorView>& grad, const TensorView& out, double eps) {
  const auto check = [&](const TensorView& v, const char* name) {
    check_device(v, name, Backend::device);
    if (v.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    if (v.dtype != x.dtype) raise<TypeError>(name, " must have the dtype of x");
    check_contiguous(v, name);
    check_same_shape(v, name, x, "x");
  };
  if (x.ndim != 3) raise<ValueError>("x must have shape (outer, channels, inner), got ", shape_of(x));
  if (x.dtype == DType::i64) raise<TypeError>("x must have a floating dtype, got int64");
  if (!(eps > 0)) raise<ValueError>("eps must be positive, got ", eps);
  check(x, "x");
  check(out, "out");
  PixelsPlan p;
  if (grad) {
    check(*grad, "grad");
    p.grad = grad->data;
  }
  p.x = x.data, p.out = out.data, p.dtype = x.dtype, p.eps = eps;
  p.outer = x.shape[0], p.channels = x.shape[1], p.inner = x.shape[2];
  if (x.numel() == 0) return;
  typename Backend::Guard guard(x);
  without_gil(x.numel(), [&] { Backend::pixels(p, guard); });
}

// a (rows, n), b (rows, m), joined (rows, n + m), contiguous, of one dtype: joined = [wa a, wb b], or with split a and
// b are wa and wb times its parts.
template <typename Backend> void weighted_cat(const TensorView& a, const TensorView& b, const TensorView& joined,
                                              double wa, double wb, bool split) {
  const auto check = [&](const TensorView& v, const char* name) {
    check_device(v, name, Backend::device);
    if (v.device_id != a.device_id) raise<TypeError>(name, " and a must be on one device");
    if (v.dtype != a.dtype) raise<TypeError>(name, " must have the dtype of a");
    check_contiguous(v, name);
    if (v.ndim != 2) raise<ValueError>(name, " must have two dimensions, got ", shape_of(v));
    if (v.shape[0] != a.shape[0]) raise<ValueError>(name, " and a must have the same rows");
  };
  check(a, "a");
  check(b, "b");
  check(joined, "joined");
  if (a.dtype == DType::i64) raise<TypeError>("a must have a floating dtype, got int64");
  CatPlan p;
  p.a = a.data, p.b = b.data, p.joined = joined.data, p.dtype = a.dtype, p.wa = wa, p.wb = wb, p.split = split;
  p.rows = a.shape[0], p.of_a = a.shape[1], p.of_b = b.shape[1];
  if (joined.shape[1] != p.of_a + p.of_b)
    raise<ValueError>("joined ", shape_of(joined), " must have rows of ", p.of_a + p.of_b);
  if (joined.numel() == 0) return;
  typename Backend::Guard guard(a);
  without_gil(joined.numel(), [&] { Backend::weighted_cat(p, guard); });
}

template <typename Backend> void bind_pixel_ops(py::module_& m) {
  using py::arg;
  m.def("pixel_norm", &pixel_norm<Backend>, arg("x"), arg("grad"), arg("out"), arg("eps"));
  m.def("weighted_cat", &weighted_cat<Backend>, arg("a"), arg("b"), arg("joined"), arg("wa"), arg("wb"), arg("split"));
}

}  // namespace fokker::bind
