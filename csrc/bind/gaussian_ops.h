// Contract and binding of the Gaussian mixture kernels (common/gaussian_plan.h), written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/dispatch.h"
#include "common/gaussian_plan.h"

namespace fokker::bind {

// All tensors: contiguous, of the dtype and on the device of x, and of these shapes.
template <typename Backend> struct GaussianShapes {
  const TensorView& x;
  std::int64_t n, d, k;

  GaussianShapes(const TensorView& points, const TensorView& mean) : x(points) {
    check_ndim(x, "x", 2);
    check_ndim(mean, "mean", 2);
    check_device(x, "x", Backend::device);
    check_contiguous(x, "x");
    n = x.shape[Backend::adjacent_queries ? 1 : 0], d = x.shape[Backend::adjacent_queries ? 0 : 1];
    k = mean.shape[0];
    check(mean, "mean", k, d);
    if (k == 0 || d == 0) raise<ValueError>("mean ", shape_of(mean), " must have a component and a coordinate");
  }
  void check(const TensorView& t, const char* name, std::int64_t first, std::int64_t second = -1) const {
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, x.dtype);
    check_contiguous(t, name);
    if (t.ndim != (second < 0 ? 1 : 2) || t.shape[0] != first || (second >= 0 && t.shape[1] != second)) {
      if (second < 0) raise<ValueError>(name, " ", shape_of(t), " must have shape (", first, ",)");
      raise<ValueError>(name, " ", shape_of(t), " must have shape (", first, ", ", second, ")");
    }
  }
  // (k or 1, d), or panels (k or 1, panels, d, 4) of so many rows.
  GaussianMatrix matrix(const TensorView& t, const char* name, std::int64_t rows, bool triangular) const {
    GaussianMatrix m;
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, x.dtype);
    check_contiguous(t, name);
    m.diagonal = t.ndim == 2;
    m.triangular = triangular;
    m.rows = rows;
    const bool fits = m.diagonal ? t.shape[1] == d && rows == d
                                 : t.ndim == 4 && t.shape[1] == m.panels() && t.shape[2] == d &&
                                       t.shape[3] == kGaussianRows && (!triangular || rows == d);
    if (!fits || (t.shape[0] != k && t.shape[0] != 1))
      raise<ValueError>(name, " ", shape_of(t), " must be (", k, " or 1, ", d, ") or panels of ", rows, " rows, (", k,
                        " or 1, ", m.panels(), ", ", d, ", ", kGaussianRows, ")");
    m.stride = t.shape[0] == 1 ? 0 : m.diagonal ? d : m.panels() * d * kGaussianRows;
    return m;
  }
};

template <typename Backend> void gaussian_joint(const TensorView& x, const TensorView& mean, const TensorView& root,
                                                const TensorView& bias, bool triangular,
                                                const std::optional<TensorView>& joint,
                                                const std::optional<TensorView>& log_sum, bool shares) {
  const GaussianShapes<Backend> s(x, mean);
  GaussianJoint p;
  p.n = s.n, p.k = s.k, p.d = s.d;
  p.matrix = s.matrix(root, "root", s.d, triangular);
  s.check(bias, "bias", s.k);
  if (joint) s.check(*joint, "joint", s.k, s.n);
  if (log_sum) s.check(*log_sum, "log_sum", s.n);
  if (!joint && (!log_sum || Backend::adjacent_queries)) raise<ValueError>("joint must be given");
  if (shares && !log_sum) raise<ValueError>("log_sum must be given with shares");
  p.x = x.data, p.mean = mean.data, p.root = root.data, p.bias = bias.data;
  p.joint = joint ? joint->data : nullptr;
  p.log_sum = log_sum ? log_sum->data : nullptr;
  p.shares = shares;
  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(p.n * p.k * p.d, [&] { Backend::template gaussian_joint<T>(p, guard); });
  });
}

template <typename Backend> void gaussian_pull(const TensorView& weight, const TensorView& x, const TensorView& mean,
                                               const TensorView& pull, const std::optional<TensorView>& offset,
                                               const TensorView& out) {
  const GaussianShapes<Backend> s(x, mean);
  GaussianPull p;
  p.n = s.n, p.k = s.k, p.d = s.d;
  check_ndim(out, "out", 2);
  const std::int64_t rows = out.shape[Backend::adjacent_queries ? 0 : 1];
  s.check(weight, "weight", s.k, s.n);
  p.matrix = s.matrix(pull, "pull", rows, false);
  if (offset) s.check(*offset, "offset", s.k, rows);
  if (Backend::adjacent_queries) s.check(out, "out", rows, s.n);
  else s.check(out, "out", s.n, rows);
  p.weight = weight.data, p.x = x.data, p.mean = mean.data, p.pull = pull.data, p.out = out.data;
  p.offset = offset ? offset->data : nullptr;
  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(p.n * p.k * p.d, [&] { Backend::template gaussian_pull<T>(p, guard); });
  });
}

template <typename Backend> void gaussian_moments(const TensorView& weight, const TensorView& x, const TensorView& mean,
                                                  const TensorView& mass, const TensorView& first,
                                                  const TensorView& second) {
  const GaussianShapes<Backend> s(x, mean);
  GaussianMoments p;
  p.n = s.n, p.k = s.k, p.d = s.d;
  s.check(weight, "weight", s.k, s.n);
  s.check(mass, "mass", s.k);
  s.check(first, "first", s.k, s.d);
  s.check(second, "second", s.k, s.d);
  p.weight = weight.data, p.x = x.data, p.mean = mean.data;
  p.mass = mass.data, p.first = first.data, p.second = second.data;
  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(p.n * p.k * p.d, [&] { Backend::template gaussian_moments<T>(p, guard); });
  });
}

template <typename Backend> void bind_gaussian_ops(py::module_& m) {
  using py::arg;
  m.def("gaussian_joint", &gaussian_joint<Backend>, arg("x"), arg("mean"), arg("root"), arg("bias"), arg("triangular"),
        arg("joint"), arg("log_sum"), arg("shares"));
  m.def("gaussian_pull", &gaussian_pull<Backend>, arg("weight"), arg("x"), arg("mean"), arg("pull"), arg("offset"),
        arg("out"));
  m.def("gaussian_moments", &gaussian_moments<Backend>, arg("weight"), arg("x"), arg("mean"), arg("mass"), arg("first"),
        arg("second"));
  m.attr("gaussian_rows") = kGaussianRows;                 // of a panel
  m.attr("adjacent_queries") = Backend::adjacent_queries;  // x is (d, n) and the result of a pull (rows, n)
}

}  // namespace fokker::bind
