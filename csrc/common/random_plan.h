// What a random fill writes, and from which counters: one description for the CPU and the CUDA kernels.
#pragma once

#include "common/check.h"
#include "math/random.h"

namespace fokker {

// out (batch, sample...) of any strides. Element i of a sample, in logical contiguous order, is element_offset + i of
// the sample's noise. Neighbouring dimensions of a sample that its strides walk evenly are merged.
struct RandomPlan {
  math::RandomKind kind = math::RandomKind::normal;
  DType dtype = DType::f32;  // bits: f32 stands for a 32-bit word
  void* out = nullptr;
  int ndim = 0;
  std::int64_t shape[kMaxDims], strides[kMaxDims];
  std::int64_t batch = 0, batch_stride = 0, n = 0, element_offset = 0;
  const std::int64_t* ids = nullptr;  // sample b has id ids[b], or first_id + b
  std::int64_t first_id = 0;
  const std::int64_t *seed_at = nullptr, *step_at = nullptr;  // where they are read when the kernel runs, or the values
  std::uint64_t seed = 0;
  std::uint32_t step = 0, stream = 0;
  // Sums of normals (a Brownian increment): coefficient (f64 for an f64 output, else f32) and counter word 1 of each
  // term, per sample or shared.
  const void* coefficients = nullptr;
  const std::int64_t* nodes = nullptr;
  int terms = 0;
  std::int64_t coefficient_stride = 0, node_stride = 0;

  FK_HD FK_INLINE int per_block() const { return math::elements_per_block(kind, dtype == DType::f64); }
  FK_HD FK_INLINE std::int64_t first_block() const { return element_offset / per_block(); }
  FK_HD FK_INLINE std::int64_t blocks() const {
    return (element_offset + n + per_block() - 1) / per_block() - first_block();
  }
  FK_HD FK_INLINE std::uint64_t key() const { return seed_at ? static_cast<std::uint64_t>(*seed_at) : seed; }
  FK_HD FK_INLINE std::uint32_t counter1() const {
    const std::uint32_t s = step_at ? static_cast<std::uint32_t>(*step_at) & math::max_step : step;
    return s | stream << 24;
  }
  FK_HD FK_INLINE std::uint64_t id(std::int64_t b) const {
    return static_cast<std::uint64_t>(ids ? ids[b] : first_id + b);
  }
  // A sample is one run of adjacent elements.
  FK_HD FK_INLINE bool adjacent() const { return ndim == 0 || (ndim == 1 && strides[0] == 1); }
  // Merged to (channels, pixels) with channels fastest: channels_last.
  FK_HD FK_INLINE bool interleaved() const { return ndim == 2 && strides[0] == 1 && strides[1] == shape[0]; }
  FK_HD FK_INLINE std::int64_t offset(std::int64_t i) const {
    std::int64_t o = 0;
    for (int d = ndim - 1; d > 0; --d) {
      o += i % shape[d] * strides[d];
      i /= shape[d];
    }
    return ndim ? o + i * strides[0] : 0;
  }
};

inline void describe_output(const TensorView& out, RandomPlan& p) {
  if (out.ndim < 1) raise<ValueError>("out must have shape (batch, ...), got a 0-dimensional tensor");
  if (out.ndim > kMaxDims) raise<ValueError>("out has ", out.ndim, " dimensions, at most ", kMaxDims, " are supported");
  p.out = out.data;
  p.dtype = out.dtype;
  p.batch = out.shape[0];
  p.batch_stride = out.strides[0];
  p.n = 1;
  p.ndim = 0;
  for (int d = 0; d < out.ndim; ++d)
    if (out.shape[d] > 1 && out.strides[d] == 0)
      raise<ValueError>("out ", shape_of(out), " must not be an expanded tensor");
  for (int d = 1; d < out.ndim; ++d) {
    p.n *= out.shape[d];
    if (out.shape[d] == 1) continue;
    const bool merge = p.ndim > 0 && p.strides[p.ndim - 1] == out.strides[d] * out.shape[d];
    const int at = merge ? p.ndim - 1 : p.ndim++;
    p.shape[at] = merge ? p.shape[at] * out.shape[d] : out.shape[d];
    p.strides[at] = out.strides[d];
  }
}

}  // namespace fokker
