// Contract and binding of sinusoidal embeddings, written once for every native module.
#pragma once

#include <pybind11/stl.h>

#include <optional>

#include "bind/torch_caster.h"
#include "common/waves_plan.h"

namespace fokker::bind {

// t (rows,), turns (count,), phases (count,): float64; out (rows, width), contiguous. order 0: [cos, sin], 1: [sin,
// cos], 2: cos alone; columns that are left are 0.
template <typename Backend> void waves(const TensorView& t, const TensorView& turns,
                                       const std::optional<TensorView>& phases, const TensorView& out, int order,
                                       double gain) {
  const auto check = [&](const TensorView& v, const char* name) {
    check_device(v, name, Backend::device);
    if (v.device_id != t.device_id) raise<TypeError>(name, " and t must be on one device");
    check_dtype(v, name, DType::f64);
    check_contiguous(v, name);
    if (v.ndim != 1) raise<ValueError>(name, " must have one dimension, got ", shape_of(v));
  };
  check(t, "t");
  check(turns, "turns");
  WavesPlan p;
  p.t = t.ptr<double>(), p.turns = turns.ptr<double>();
  if (phases) {
    check(*phases, "phases");
    if (phases->shape[0] != turns.shape[0]) raise<ValueError>("phases and turns must have one shape");
    p.phases = phases->ptr<double>();
  }
  check_device(out, "out", Backend::device);
  if (out.device_id != t.device_id) raise<TypeError>("out and t must be on one device");
  check_contiguous(out, "out");
  if (out.dtype == DType::i64) raise<TypeError>("out must have a floating dtype, got int64");
  if (order < 0 || order > 2) raise<ValueError>("order must be 0, 1 or 2, got ", order);
  p.order = static_cast<WaveOrder>(order);
  p.rows = t.shape[0], p.count = turns.shape[0];
  const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count;
  if (out.ndim != 2 || out.shape[0] != p.rows || out.shape[1] < filled)
    raise<ValueError>("out ", shape_of(out), " must have ", p.rows, " rows of at least ", filled);
  p.width = out.shape[1];
  p.gain = gain, p.out = out.data, p.dtype = out.dtype;
  if (out.numel() == 0) return;
  typename Backend::Guard guard(out);
  without_gil(out.numel(), [&] { Backend::waves(p, guard); });
}

template <typename Backend> void bind_wave_ops(py::module_& m) {
  using py::arg;
  m.def("waves", &waves<Backend>, arg("t"), arg("turns"), arg("phases"), arg("out"), arg("order"), arg("gain"));
}

}  // namespace fokker::bind
