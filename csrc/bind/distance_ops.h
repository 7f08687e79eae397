// Contract and binding of the sums of distances (common/distance_plan.h), written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/check.h"
#include "common/dispatch.h"
#include "common/distance_plan.h"

namespace fokker::bind {

template <typename Backend> void distance_sums(const TensorView& x, const TensorView& y, const TensorView& weight,
                                               const TensorView& sum, const std::optional<TensorView>& slope) {
  constexpr int points = Backend::adjacent_queries ? 2 : 1, coordinates = 3 - points;
  const auto check = [&](const TensorView& t, const char* name, int ndim) {
    check_ndim(t, name, ndim);
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, DType::f64);
    check_contiguous(t, name);
    if (t.shape[0] != x.shape[0])
      raise<ValueError>(name, " ", shape_of(t), " and x ", shape_of(x), " must have one batch");
  };
  check(x, "x", 3);
  check(y, "y", 3);
  check(weight, "weight", 2);
  check(sum, "sum", 2);
  DistanceSums p;
  p.batch = x.shape[0], p.n = x.shape[points], p.d = x.shape[coordinates], p.m = y.shape[1];
  if (y.shape[2] != p.d || weight.shape[1] != p.m || sum.shape[1] != p.n)
    raise<ValueError>("x ", shape_of(x), ", y ", shape_of(y), ", weight ", shape_of(weight), " and sum ", shape_of(sum),
                      " do not fit");
  if (slope) {
    check(*slope, "slope", 3);
    check_same_shape(x, "x", *slope, "slope");
    p.slope = slope->ptr<double>();
  }
  p.x = x.ptr<double>(), p.y = y.ptr<double>(), p.weight = weight.ptr<double>(), p.sum = sum.ptr<double>();
  typename Backend::Guard guard(x);
  without_gil(p.batch * p.n * p.m * (p.d + 1), [&] { Backend::distance_sums(p, guard); });
}

template <typename Backend> void nearest_data(const TensorView& x, const TensorView& y, const TensorView& index,
                                              std::int64_t exclude, bool absolute) {
  constexpr int points = Backend::adjacent_queries ? 2 : 1, coordinates = 3 - points;
  const auto check = [&](const TensorView& t, const char* name, int ndim, DType dtype) {
    check_ndim(t, name, ndim);
    check_device(t, name, Backend::device);
    if (t.device_id != x.device_id) raise<TypeError>(name, " and x must be on one device");
    check_dtype(t, name, dtype);
    check_contiguous(t, name);
    if (t.shape[0] != x.shape[0])
      raise<ValueError>(name, " ", shape_of(t), " and x ", shape_of(x), " must have one batch");
  };
  check(x, "x", 3, x.dtype);
  check(y, "y", 3, x.dtype);
  check(index, "index", 2, DType::i64);
  NearestData p;
  p.batch = x.shape[0], p.n = x.shape[points], p.d = x.shape[coordinates], p.m = y.shape[1];
  if (y.shape[2] != p.d || index.shape[1] != p.n)
    raise<ValueError>("x ", shape_of(x), ", y ", shape_of(y), " and index ", shape_of(index), " do not fit");
  p.exclude = exclude, p.absolute = absolute;
  p.x = x.data, p.y = y.data, p.index = index.ptr<std::int64_t>();
  typename Backend::Guard guard(x);
  dispatch_float(x.dtype, "x", [&](auto tag) {
    using T = typename decltype(tag)::type;
    without_gil(p.batch * p.n * p.m * (p.d + 1), [&] { Backend::template nearest_data<T>(p, guard); });
  });
}

template <typename Backend> void bind_distance_ops(py::module_& m) {
  using py::arg;
  m.def("distance_sums", &distance_sums<Backend>, arg("x"), arg("y"), arg("weight"), arg("sum"), arg("slope"));
  m.def("nearest_data", &nearest_data<Backend>, arg("x"), arg("y"), arg("index"), arg("exclude"), arg("absolute"));
}

}  // namespace fokker::bind
