// Contract and binding of particle resampling and of the absorbing step, written once for every native module.
#pragma once

#include "bind/random_ops.h"
#include "common/particle_plan.h"

namespace fokker::bind {

template <typename Backend> void place_counters(Counters& at, const TensorView& like, std::uint64_t seed,
                                                const std::optional<TensorView>& seed_tensor, std::uint32_t step,
                                                const std::optional<TensorView>& step_tensor,
                                                const std::optional<TensorView>& ids, std::int64_t first_id,
                                                std::int64_t rows) {
  if (step > math::max_step) raise<ValueError>("step must be in [0, 2^24), got ", step);
  at.seed = seed, at.step = step, at.first_id = first_id;
  at.seed_at = counter_entries<Backend>(seed_tensor, "seed", like, 1);
  at.step_at = counter_entries<Backend>(step_tensor, "step", like, 1);
  at.ids = counter_entries<Backend>(ids, "sample_ids", like, rows);
}

template <typename Backend>
void check_like(const TensorView& t, const char* name, DType dtype, const TensorView& like) {
  check_device(t, name, Backend::device);
  if (t.device_id != like.device_id) raise<TypeError>(name, " must be on the device of the first argument");
  check_dtype(t, name, dtype);
}

template <typename Backend>
void resample(const TensorView& log_weights, int method, double threshold, std::uint64_t seed,
              const std::optional<TensorView>& seed_tensor, std::uint32_t step,
              const std::optional<TensorView>& step_tensor, std::uint32_t stream, const std::optional<TensorView>& ids,
              std::int64_t first_id, const TensorView& ancestors, const TensorView& new_weights, const TensorView& size,
              const std::optional<TensorView>& work) {
  check_ndim(log_weights, "log_weights", 2);
  check_ndim(ancestors, "ancestors", 2);
  check_device(log_weights, "log_weights", Backend::device);
  check_contiguous(log_weights, "log_weights");
  if (log_weights.dtype == DType::i64)
    raise<TypeError>("log_weights must have dtype float16, bfloat16, float32 or float64, got int64");
  if (method < 0 || method >= kResampleMethods)
    raise<ValueError>("method must be 0 to ", kResampleMethods - 1, ", got ", method);
  if (stream > 255) raise<ValueError>("stream must be in [0, 256), got ", stream);
  ResamplePlan p;
  p.method = static_cast<ResampleMethod>(method);
  p.dtype = log_weights.dtype;
  p.groups = log_weights.shape[0], p.n = log_weights.shape[1], p.count = ancestors.shape[1];
  check_like<Backend>(ancestors, "ancestors", DType::i64, log_weights);
  check_like<Backend>(new_weights, "new_weights", p.dtype, log_weights);
  check_like<Backend>(size, "size", p.dtype, log_weights);
  check_contiguous(ancestors, "ancestors");
  check_contiguous(new_weights, "new_weights");
  check_contiguous(size, "size");
  if (ancestors.shape[0] != p.groups || new_weights.numel() != p.groups * p.count || size.numel() != p.groups)
    raise<ValueError>("ancestors ", shape_of(ancestors), ", new_weights ", shape_of(new_weights), " and size ",
                      shape_of(size), " do not fit log_weights ", shape_of(log_weights));
  if (p.groups == 0) return;
  if (p.n == 0) raise<ValueError>("log_weights ", shape_of(log_weights), " must have a particle in each group");
  p.threshold = threshold;
  p.stream = stream;
  place_counters<Backend>(p.at, log_weights, seed, seed_tensor, step, step_tensor, ids, first_id, p.groups);
  p.log_weights = log_weights.data;
  p.ancestors = ancestors.ptr<std::int64_t>();
  p.new_weights = new_weights.data;
  p.size = size.data;
  if (Backend::sde_tile) {
    if (!work || work->dtype != DType::f64 || work->numel() < 2 * p.groups * p.n || !work->contiguous())
      raise<ValueError>("work must hold ", 2 * p.groups * p.n, " float64 numbers");
    check_like<Backend>(*work, "work", DType::f64, log_weights);
    p.work = work->ptr<double>();
  }
  typename Backend::Guard guard(log_weights);
  without_gil(p.groups * (p.n + p.count), [&] { Backend::resample(p, guard); });
}

template <typename Backend>
void absorb(const TensorView& tokens, const TensorView& logits, const TensorView& probability, std::int64_t mask_id,
            double temperature, std::uint64_t seed, const std::optional<TensorView>& seed_tensor, std::uint32_t step,
            const std::optional<TensorView>& step_tensor, const std::optional<TensorView>& ids, std::int64_t first_id,
            const TensorView& out) {
  check_ndim(tokens, "tokens", 2);
  check_ndim(logits, "logits", 3);
  check_ndim(probability, "probability", 1);
  check_device(tokens, "tokens", Backend::device);
  check_dtype(tokens, "tokens", DType::i64);
  AbsorbPlan p;
  p.batch = tokens.shape[0], p.length = tokens.shape[1], p.size = logits.shape[2];
  p.dtype = logits.dtype;
  if (p.dtype == DType::i64)
    raise<TypeError>("logits must have dtype float16, bfloat16, float32 or float64, got int64");
  check_like<Backend>(logits, "logits", p.dtype, tokens);
  check_like<Backend>(probability, "probability", DType::f32, tokens);
  check_like<Backend>(out, "out", DType::i64, tokens);
  check_contiguous(out, "out");
  check_same_shape(tokens, "tokens", out, "out");
  if (logits.shape[0] != p.batch || logits.shape[1] != p.length)
    raise<ValueError>("logits ", shape_of(logits), " must have shape (", p.batch, ", ", p.length,
                      ", tokens to choose from)");
  if (probability.shape[0] != p.batch)
    raise<ValueError>("probability ", shape_of(probability), " must have shape (", p.batch, ",)");
  if (p.size > 1 && logits.strides[2] != 1)
    raise<ValueError>("logits ", shape_of(logits), " must have adjacent elements in the last dimension");
  if (p.length > 0 && p.size > (std::int64_t(1) << 33) / p.length)
    raise<ValueError>("logits ", shape_of(logits), " must have at most 2^33 elements a sample");
  if (!(temperature >= 0)) raise<ValueError>("temperature must not be negative, got ", temperature);
  if (p.batch == 0 || p.length == 0) return;
  place_counters<Backend>(p.at, tokens, seed, seed_tensor, step, step_tensor, ids, first_id, p.batch);
  p.mask_id = mask_id;
  p.greedy = temperature == 0;
  p.scale = p.greedy ? 1 : 1 / temperature;
  p.tokens = tokens.ptr<std::int64_t>();
  p.logits = logits.data;
  p.probability = probability.ptr<float>();
  for (int d = 0; d < 2; ++d) p.token_strides[d] = tokens.strides[d], p.logit_strides[d] = logits.strides[d];
  p.probability_stride = probability.strides[0];
  p.out = out.ptr<std::int64_t>();
  typename Backend::Guard guard(tokens);
  without_gil(p.batch * p.length * (p.size + 1), [&] { Backend::absorb(p, guard); });
}

template <typename Backend> void bind_particle_ops(py::module_& m) {
  using py::arg;
  m.def("resample", &resample<Backend>, arg("log_weights"), arg("method"), arg("threshold"), arg("seed"),
        arg("seed_tensor"), arg("step"), arg("step_tensor"), arg("stream"), arg("sample_ids"), arg("first_id"),
        arg("ancestors"), arg("new_weights"), arg("size"), arg("work"));
  m.def("absorb", &absorb<Backend>, arg("tokens"), arg("logits"), arg("probability"), arg("mask_id"),
        arg("temperature"), arg("seed"), arg("seed_tensor"), arg("step"), arg("step_tensor"), arg("sample_ids"),
        arg("first_id"), arg("out"));
}

}  // namespace fokker::bind
