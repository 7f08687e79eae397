// Sinusoidal embeddings: what the CPU and the CUDA kernels write, and from what.
#pragma once

#include "common/check.h"

namespace fokker {

// Which columns a row of the result has: cosines then sines, sines then cosines, or cosines alone.
enum class WaveOrder : int { cos_sin, sin_cos, cos };

// out[i, j] = gain cos or sin of 2 pi (t_i turns_j + phases_j); columns that neither fills are 0.
struct WavesPlan {
  const double *t = nullptr, *turns = nullptr, *phases = nullptr;  // phases may be null
  std::int64_t rows = 0, count = 0, width = 0;                     // count: of turns; width: of a row of out
  WaveOrder order = WaveOrder::cos_sin;
  double gain = 1.0;
  void* out = nullptr;
  DType dtype = DType::f32;
};

}  // namespace fokker
