// Contract and binding of pixel norms, written once for every native module.
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

template <typename Backend> void bind_pixel_ops(py::module_& m) {
  using py::arg;
  m.def("pixel_norm", &pixel_norm<Backend>, arg("x"), arg("grad"), arg("out"), arg("eps"));
}

}  // namespace fokker::bind
