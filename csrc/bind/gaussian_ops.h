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
  void check_panels(const TensorView& t, const char* name, std::int64_t components, std::int64_t rows,
                    std::int64_t columns) const {
    check_device(t, name, Backend::device);
    check_dtype(t, name, x.dtype);
    check_contiguous(t, name);
    const std::int64_t panels = GaussianLevels::panels(rows);
    if (t.ndim != 4 || t.shape[0] != components || t.shape[1] != panels || t.shape[2] != columns ||
        t.shape[3] != kGaussianRows)
      raise<ValueError>(name, " ", shape_of(t), " must be panels of ", rows, " rows, (", components, ", ", panels, ", ",
                        columns, ", ", kGaussianRows, ")");
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

template <typename Backend>
void gaussian_levels(const TensorView& x, const TensorView& alpha, const TensorView& noise, const TensorView& bias,
                     const TensorView& mean, const TensorView& variance, const std::optional<TensorView>& basis,
                     const std::optional<TensorView>& turned, const std::optional<TensorView>& floor,
                     const TensorView& log_sum, const std::optional<TensorView>& score,
                     const std::optional<TensorView>& posterior, const std::optional<TensorView>& joint,
                     const std::optional<TensorView>& squared, bool shares) {
  const GaussianShapes<Backend> s(x, mean);
  GaussianLevels p;
  p.n = s.n, p.k = s.k, p.d = s.d;
  check_ndim(variance, "variance", 2);
  check_ndim(alpha, "alpha", 1);
  check_ndim(noise, "noise", 1);
  p.rank = variance.shape[1];
  p.one_alpha = alpha.shape[0] == 1, p.one_noise = noise.shape[0] == 1, p.one_variance = variance.shape[0] == 1;
  const std::int64_t components = p.one_variance ? 1 : s.k;
  s.check(alpha, "alpha", p.one_alpha ? 1 : s.n);
  s.check(noise, "noise", p.one_noise ? 1 : s.n);
  s.check(bias, "bias", s.k);
  s.check(variance, "variance", components, p.rank);
  if (bool(basis) != bool(turned) || (floor && !basis)) raise<ValueError>("basis and turned must be given together");
  if (Backend::adjacent_queries && basis) raise<ValueError>("basis must be None: this backend has no bases");
  if (basis) {
    p.kind = floor ? GaussianLevels::kLowRank : GaussianLevels::kFull;
    s.check_panels(*basis, "basis", components, s.d, p.rank);
    s.check_panels(*turned, "turned", components, p.rank, s.d);
    if (floor) s.check(*floor, "floor", components);
    else if (p.rank != s.d) raise<ValueError>("variance must have d = ", s.d, " columns, got ", p.rank);
  } else if (p.rank == s.d) {
    p.kind = s.d == 1 ? GaussianLevels::kIsotropic : GaussianLevels::kDiagonal;
  } else if (p.rank == 1) {
    p.kind = GaussianLevels::kIsotropic;
  } else {
    raise<ValueError>("variance must have 1 or d = ", s.d, " columns, got ", p.rank);
  }
  s.check(log_sum, "log_sum", s.n);
  const auto rows = [&](const std::optional<TensorView>& t, const char* name) {
    if (t) s.check(*t, name, x.shape[0], x.shape[1]);
    return t ? t->data : nullptr;
  };
  const auto pairs = [&](const std::optional<TensorView>& t, const char* name) {
    if (t) s.check(*t, name, s.k, s.n);
    return t ? t->data : nullptr;
  };
  p.score = rows(score, "score"), p.posterior = rows(posterior, "posterior");
  p.joint = pairs(joint, "joint"), p.squared = pairs(squared, "squared");
  if (Backend::adjacent_queries && !joint) raise<ValueError>("joint must be given");
  p.x = x.data, p.alpha = alpha.data, p.noise = noise.data, p.bias = bias.data, p.mean = mean.data;
  p.variance = variance.data, p.log_sum = log_sum.data;
  p.basis = basis ? basis->data : nullptr;
  p.turned = turned ? turned->data : nullptr;
  p.floor = floor ? floor->data : nullptr;
  p.shares = shares;
  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(p.n * p.k * p.d, [&] { Backend::template gaussian_levels<T>(p, guard); });
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
  m.def("gaussian_levels", &gaussian_levels<Backend>, arg("x"), arg("alpha"), arg("noise"), arg("bias"), arg("mean"),
        arg("variance"), arg("basis"), arg("turned"), arg("floor"), arg("log_sum"), arg("score"), arg("posterior"),
        arg("joint"), arg("squared"), arg("shares"));
  m.attr("gaussian_rows") = kGaussianRows;                 // of a panel
  m.attr("adjacent_queries") = Backend::adjacent_queries;  // x is (d, n) and the result of a pull (rows, n)
}

}  // namespace fokker::bind
