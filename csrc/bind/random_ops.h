// Contract and binding of the random fills, written once for every native module.
#pragma once

#include <optional>

#include "bind/torch_caster.h"
#include "common/random_plan.h"

namespace fokker::bind {

// An int64 tensor on the device of out, read when the kernel runs.
template <typename Backend> const std::int64_t* counter_entries(const std::optional<TensorView>& t, const char* name,
                                                                const TensorView& out, std::int64_t n) {
  if (!t) return nullptr;
  check_device(*t, name, Backend::device);
  if (t->device_id != out.device_id) raise<TypeError>(name, " and out must be on one device");
  check_dtype(*t, name, DType::i64);
  check_contiguous(*t, name);
  if (t->numel() != n) raise<ValueError>(name, " ", shape_of(*t), " must have ", n, n == 1 ? " entry" : " entries");
  return t->ptr<std::int64_t>();
}

// The parts that every fill has; false where there is nothing to do.
template <typename Backend> bool plan_fill(RandomPlan& p, std::uint64_t seed,
                                           const std::optional<TensorView>& seed_tensor,
                                           const std::optional<TensorView>& ids, std::int64_t first_id,
                                           std::int64_t element_offset, const TensorView& out) {
  check_device(out, "out", Backend::device);
  describe_output(out, p);
  p.element_offset = element_offset;
  const std::int64_t most = std::int64_t(p.per_block()) << 32;
  if (element_offset < 0 || p.n > most || element_offset > most - p.n)
    raise<ValueError>("elements ", element_offset, " .. +", p.n, " must lie in [0, ", most, ")");
  p.seed = seed;
  p.seed_at = counter_entries<Backend>(seed_tensor, "seed", out, 1);
  p.ids = counter_entries<Backend>(ids, "sample_ids", out, p.batch);
  p.first_id = first_id;
  return p.batch > 0 && p.n > 0;
}

// out (batch, ...) of any strides. kind bits: float32 stands for any 32-bit type, or int64; the others: a float.
template <typename Backend> void random_fill(int kind, std::uint64_t seed, const std::optional<TensorView>& seed_tensor,
                                             std::uint32_t step, const std::optional<TensorView>& step_tensor,
                                             std::uint32_t stream, const std::optional<TensorView>& ids,
                                             std::int64_t first_id, std::int64_t element_offset,
                                             const TensorView& out) {
  if (kind < 0 || kind >= math::random_kind_count)
    raise<ValueError>("kind must be 0 to ", math::random_kind_count - 1, ", got ", kind);
  if (step > math::max_step) raise<ValueError>("step must be in [0, 2^24), got ", step);
  if (stream > 255) raise<ValueError>("stream must be in [0, 256), got ", stream);
  RandomPlan p;
  p.kind = static_cast<math::RandomKind>(kind);
  const bool bits = p.kind == math::RandomKind::bits;
  if (bits ? out.dtype != DType::f32 && out.dtype != DType::i64 : out.dtype == DType::i64)
    raise<TypeError>("out must have dtype ", bits ? "int64 or a 32-bit one" : "float16, bfloat16, float32 or float64",
                     ", got ", name_of(out.dtype));
  p.step = step;
  p.stream = stream;
  if (!plan_fill<Backend>(p, seed, seed_tensor, ids, first_id, element_offset, out)) return;
  p.step_at = counter_entries<Backend>(step_tensor, "step", out, 1);
  typename Backend::Guard guard(out);
  without_gil(p.batch * p.n, [&] { Backend::random_fill(p, guard); });
}

// out = sum_j coefficients[:, j] normal(counter word 1 = nodes[:, j]); tables (batch or 1, terms), zeros are skipped.
template <typename Backend> void random_sum(std::uint64_t seed, const std::optional<TensorView>& seed_tensor,
                                            const std::optional<TensorView>& ids, std::int64_t first_id,
                                            std::int64_t element_offset, const TensorView& coefficients,
                                            const TensorView& nodes, const TensorView& out) {
  RandomPlan p;
  if (out.dtype == DType::i64) raise<TypeError>("out must have dtype float16, bfloat16, float32 or float64, got int64");
  const bool some = plan_fill<Backend>(p, seed, seed_tensor, ids, first_id, element_offset, out);
  const TensorView* tables[] = {&coefficients, &nodes};
  const char* names[] = {"coefficients", "nodes"};
  for (int i = 0; i < 2; ++i) {
    const TensorView& t = *tables[i];
    check_device(t, names[i], Backend::device);
    if (t.device_id != out.device_id) raise<TypeError>(names[i], " and out must be on one device");
    check_dtype(t, names[i], i ? DType::i64 : out.dtype == DType::f64 ? DType::f64 : DType::f32);
    check_ndim(t, names[i], 2);
    check_contiguous(t, names[i]);
    if (t.shape[1] != coefficients.shape[1] || t.shape[1] < 1 || (t.shape[0] != 1 && t.shape[0] != p.batch))
      raise<ValueError>(names[i], " ", shape_of(t), " must be (batch or 1, terms) for out ", shape_of(out));
  }
  if (!some) return;
  p.coefficients = coefficients.data;
  p.nodes = nodes.ptr<std::int64_t>();
  p.terms = static_cast<int>(coefficients.shape[1]);
  p.coefficient_stride = coefficients.shape[0] == 1 ? 0 : p.terms;
  p.node_stride = nodes.shape[0] == 1 ? 0 : p.terms;
  typename Backend::Guard guard(out);
  without_gil(p.batch * p.n, [&] { Backend::random_fill(p, guard); });
}

template <typename Backend> void bind_random_ops(py::module_& m) {
  using py::arg;
  m.def("random_fill", &random_fill<Backend>, arg("kind"), arg("seed"), arg("seed_tensor"), arg("step"),
        arg("step_tensor"), arg("stream"), arg("sample_ids"), arg("first_id"), arg("element_offset"), arg("out"));
  m.def("random_sum", &random_sum<Backend>, arg("seed"), arg("seed_tensor"), arg("sample_ids"), arg("first_id"),
        arg("element_offset"), arg("coefficients"), arg("nodes"), arg("out"));
}

}  // namespace fokker::bind
