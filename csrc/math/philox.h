// Philox4x32-10 and the counter layout that gives every backend, batch size and thread count the same noise.
//
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
//   key     = (seed low word, seed high word)
//   counter = (block, step | stream << 24, sample low word, sample high word)
// Element e of a sample, counted in logical contiguous order inside that sample, is lane e & 3 of block e >> 2
// (float64 numbers take two words each: lane e & 1 of block e >> 1). Nothing is consumed: the state is (seed, sample,
// step).
#pragma once

#include "math/arithmetic.h"

namespace fokker::math {

enum class Stream : uint32_t {
  predictor = 0,
  corrector = 1,
  churn = 2,
  hutchinson = 3,
  resampling = 4,
  unmask = 5,
  token_race = 6,
  initial_latent = 7,
  training_time = 8,
  training_noise = 9,
  vmf_rejection = 10,
  vmf_tangent = 11,
  brownian = 224,
};

struct Words {
  uint32_t w0, w1, w2, w3;
};

constexpr uint32_t max_step = (1u << 24) - 1;

FK_HD FK_INLINE Words philox(Words c, uint32_t key0, uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.w0, p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.w2;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.w1 ^ key0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w3 ^ key1, static_cast<uint32_t>(p0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

// The four words of one block; step <= max_step.
FK_HD FK_INLINE Words noise(uint64_t seed, uint32_t step, Stream stream, uint64_t sample, uint32_t block) {
  const Words counter = {block, step | static_cast<uint32_t>(stream) << 24, static_cast<uint32_t>(sample),
                         static_cast<uint32_t>(sample >> 32)};
  return philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// (w + 1/2) / 2^32, correctly rounded: in (0, 1], never 0.
FK_HD FK_INLINE float uniform(uint32_t w) { return fma(static_cast<float>(w), 0x1p-32f, 0x1p-33f); }

// A word as a double; through the bits of 2^52 + w, since AVX2 converts no unsigned integers.
FK_HD FK_INLINE double to_double(uint32_t w) { return bit_cast<double>(0x4330000000000000ull | w) - 0x1p52; }

// (j + 1/2) / 2^53 with j = high 2^21 + (low >> 11), correctly rounded: in (0, 1], never 0.
FK_HD FK_INLINE double uniform(uint32_t high, uint32_t low) {
  return fma(fma(to_double(high), 0x1p21, to_double(low >> 11)), 0x1p-53, 0x1p-54);
}

}  // namespace fokker::math
