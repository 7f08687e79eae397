// Sinusoidal embeddings: a thread a frequency of a row, phases, sines and cosines in double, rounded once. Bytes: the
// result once.
#include "cuda/waves.h"

#include <type_traits>

#include "common/half.h"
#include "common/waves_plan.h"
#include "cuda/launch.h"
#include "math/elementary.h"

namespace fokker::cuda {
namespace {

constexpr int kWaveThreads = 256;

template <typename S> __device__ __forceinline__ S rounded(double x) {
  if constexpr (std::is_same_v<S, Half>) return to_half(static_cast<float>(x));
  else if constexpr (std::is_same_v<S, BFloat16>) return to_bfloat16(static_cast<float>(x));
  else return static_cast<S>(x);
}

// S: the result's type. Columns that no wave fills are those of threads past the frequencies.
template <typename S> __global__ void __launch_bounds__(kWaveThreads) waves_kernel(const WavesPlan p) {
  const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count, each = p.count + p.width - filled;
  const std::int64_t at = std::int64_t(blockIdx.x) * kWaveThreads + threadIdx.x;
  if (at >= p.rows * each) return;
  const std::int64_t i = at / each, j = at % each;
  S* const row = static_cast<S*>(p.out) + i * p.width;
  if (j >= p.count) {
    row[filled + j - p.count] = rounded<S>(0);
    return;
  }
  const double product = p.t[i] * p.turns[j];
  const double turns = p.phases ? product + p.phases[j] : product;
  const auto both = math::sincos_2pi(turns - math::detail::round_to_integer(turns));
  const bool turned = p.order == WaveOrder::sin_cos;
  row[j] = rounded<S>(p.gain * (turned ? both.sin : both.cos));
  if (p.order != WaveOrder::cos) row[p.count + j] = rounded<S>(p.gain * (turned ? both.cos : both.sin));
}
template <typename S> void launch(const WavesPlan& p, cudaStream_t stream) {
  const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count;
  FK_LAUNCH((waves_kernel<S>), all_blocks((p.rows * (p.count + p.width - filled) + kWaveThreads - 1) / kWaveThreads),
            kWaveThreads, 0, stream, p);
}

}  // namespace

void waves(const WavesPlan& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) launch<double>(p, stream);
  else if (p.dtype == DType::f32) launch<float>(p, stream);
  else if (p.dtype == DType::f16) launch<Half>(p, stream);
  else launch<BFloat16>(p, stream);
  check_launch("waves");
}

}  // namespace fokker::cuda
