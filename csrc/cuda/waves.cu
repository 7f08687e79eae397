// Sinusoidal embeddings: a thread a frequency of a row, phases in double. Bytes: the result once.
#include "cuda/waves.h"

#include <type_traits>

#include "common/half.h"
#include "common/waves_plan.h"
#include "cuda/launch.h"
#include "math/turns.h"

namespace fokker::cuda {
namespace {

constexpr int kWaveThreads = 256;

template <typename T> __device__ __forceinline__ T rounded(float x) {
  if constexpr (sizeof(T) == 4) return x;
  else if constexpr (std::is_same_v<T, Half>) return to_half(x);
  else return to_bfloat16(x);
}
template <typename T> __device__ __forceinline__ T rounded(double x) { return x; }

// T: arithmetic, S: the result's type. Columns that no wave fills are those of threads past the frequencies.
template <typename T, typename S> __global__ void __launch_bounds__(kWaveThreads) waves_kernel(const WavesPlan p) {
  const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count, each = p.count + p.width - filled;
  const std::int64_t at = std::int64_t(blockIdx.x) * kWaveThreads + threadIdx.x;
  if (at >= p.rows * each) return;
  const std::int64_t i = at / each, j = at % each;
  S* const row = static_cast<S*>(p.out) + i * p.width;
  if (j >= p.count) {
    row[filled + j - p.count] = rounded<S>(T(0));
    return;
  }
  const double product = p.t[i] * p.turns[j];
  const auto both = math::sincos_turns<T>(p.phases ? product + p.phases[j] : product);
  const T by = static_cast<T>(p.gain);
  const bool turned = p.order == WaveOrder::sin_cos;
  row[j] = rounded<S>(by * (turned ? both.sin : both.cos));
  if (p.order != WaveOrder::cos) row[p.count + j] = rounded<S>(by * (turned ? both.cos : both.sin));
}
template <typename T, typename S> void launch(const WavesPlan& p, cudaStream_t stream) {
  const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count;
  FK_LAUNCH((waves_kernel<T, S>), all_blocks((p.rows * (p.count + p.width - filled) + kWaveThreads - 1) / kWaveThreads),
            kWaveThreads, 0, stream, p);
}

}  // namespace

void waves(const WavesPlan& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) launch<double, double>(p, stream);
  else if (p.dtype == DType::f32) launch<float, float>(p, stream);
  else if (p.dtype == DType::f16) launch<float, Half>(p, stream);
  else launch<float, BFloat16>(p, stream);
  check_launch("waves");
}

}  // namespace fokker::cuda
