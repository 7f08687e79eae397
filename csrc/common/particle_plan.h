// What resampling and the absorbing step read and write: one description each for the CPU and the CUDA kernels.
#pragma once

#include "common/tensor_view.h"
#include "math/philox.h"

namespace fokker {

// Counters of the numbers of a group or sample.
struct Counters {
  const std::int64_t *ids = nullptr, *seed_at = nullptr, *step_at = nullptr;
  std::int64_t first_id = 0;
  std::uint64_t seed = 0;
  std::uint32_t step = 0;

  FK_HD FK_INLINE std::uint64_t key() const { return seed_at ? static_cast<std::uint64_t>(*seed_at) : seed; }
  FK_HD FK_INLINE std::uint32_t step_now() const {
    return step_at ? static_cast<std::uint32_t>(*step_at) & math::max_step : step;
  }
  FK_HD FK_INLINE std::uint64_t id(std::int64_t b) const {
    return static_cast<std::uint64_t>(ids ? ids[b] : first_id + b);
  }
  // The words of one block.
  FK_HD FK_INLINE math::Words words(std::uint32_t stream, std::uint64_t sample, std::uint32_t block) const {
    const std::uint64_t k = key();
    return math::philox({block, step_now() | stream << 24, static_cast<std::uint32_t>(sample),
                         static_cast<std::uint32_t>(sample >> 32)},
                        static_cast<std::uint32_t>(k), static_cast<std::uint32_t>(k >> 32));
  }
  // Float64 uniform number i.
  FK_HD FK_INLINE double uniform(std::uint32_t stream, std::uint64_t sample, std::int64_t i) const {
    const math::Words w = words(stream, sample, static_cast<std::uint32_t>(i >> 1));
    return i & 1 ? math::uniform(w.w2, w.w3) : math::uniform(w.w0, w.w1);
  }
};

enum class ResampleMethod : int { systematic, stratified, multinomial, residual };
constexpr int kResampleMethods = 4;

// log_weights (groups, n), contiguous, of one float type with new_weights (groups, count) and size (groups).
struct ResamplePlan {
  ResampleMethod method = ResampleMethod::systematic;
  DType dtype = DType::f32;
  std::int64_t groups = 0, n = 0, count = 0;
  double threshold = -1;  // below 0: always
  std::uint32_t stream = 4;
  Counters at;
  const void* log_weights = nullptr;
  std::int64_t* ancestors = nullptr;  // (groups, count)
  void *new_weights = nullptr, *size = nullptr;
  double* work = nullptr;  // (groups, 2 n): cumulative weights; of the residual form the copies' and the rest's

  // Whether a group of this effective sample size is resampled; nan never is.
  FK_HD FK_INLINE bool wanted(double effective) const {
    return threshold < 0 ? effective == effective : effective < threshold * static_cast<double>(n);
  }
};

// tokens (batch, length) and logits (batch, length, size) of any strides with adjacent sizes; out contiguous.
struct AbsorbPlan {
  DType dtype = DType::f32;
  std::int64_t batch = 0, length = 0, size = 0, mask_id = 0;
  const std::int64_t* tokens = nullptr;
  const void* logits = nullptr;
  const float* probability = nullptr;  // (batch)
  std::int64_t token_strides[2], logit_strides[2], probability_stride = 0;
  double scale = 1;     // 1 / temperature
  bool greedy = false;  // temperature 0
  std::uint32_t unmask_stream = 5, race_stream = 6;
  Counters at;
  std::int64_t* out = nullptr;
};

}  // namespace fokker
