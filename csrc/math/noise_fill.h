// Rows of noise on the CPU: many Philox blocks of one sample at once, and the numbers made of them.
//
// Host only. The same words and bits as noise() and normal_block(), in whole vectors: gcc finds no good 32 x 32 -> 64
// bit product by itself. Everything is inlined, so that each instruction set keeps its own copy.
#pragma once

#include "math/normal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fokker::math {

constexpr int noise_chunk = 64;  // blocks a buffer holds while normals are made

namespace detail {

// Several uint64; product() multiplies the low 32 bits of each.
#if defined(__AVX512F__)
typedef uint64_t WordLanes __attribute__((vector_size(64), may_alias, aligned(4)));
typedef uint64_t Lanes __attribute__((vector_size(64)));
FK_INLINE Lanes product(Lanes a, uint64_t b) {
  return (Lanes)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(b));
}
#elif defined(__AVX2__)
typedef uint64_t WordLanes __attribute__((vector_size(32), may_alias, aligned(4)));
typedef uint64_t Lanes __attribute__((vector_size(32)));
FK_INLINE Lanes product(Lanes a, uint64_t b) { return (Lanes)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b)); }
#elif defined(__x86_64__)
typedef uint64_t WordLanes __attribute__((vector_size(16), may_alias, aligned(4)));
typedef uint64_t Lanes __attribute__((vector_size(16)));
FK_INLINE Lanes product(Lanes a, uint64_t b) { return (Lanes)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b)); }
#else
typedef uint64_t WordLanes __attribute__((vector_size(16), may_alias, aligned(4)));
typedef uint64_t Lanes __attribute__((vector_size(16)));
FK_INLINE Lanes product(Lanes a, uint64_t b) { return (a & 0xffffffffull) * b; }
#endif

}  // namespace detail

// Words of blocks first .. first + n - 1 by pairs of elements: radius[2 i + j] = w_{2 j}, angle[2 i + j] = w_{2 j + 1}
// of block first + i, j = 0, 1. n a multiple of 8; both arrays hold 2 n words.
FK_INLINE void noise_pairs(uint64_t seed, uint32_t step, Stream stream, uint64_t sample, uint32_t first, int64_t n,
                           uint32_t* radius, uint32_t* angle) {
  using detail::Lanes, detail::product;
  constexpr int width = sizeof(Lanes) / sizeof(uint64_t);
  constexpr uint64_t low = 0xffffffffull;
  const uint64_t counter1 = step | static_cast<uint64_t>(stream) << 24;
  Lanes index;
  for (int lane = 0; lane < width; ++lane) index[lane] = lane;
  for (int64_t i = 0; i < n; i += width) {
    // The upper halves of c0 .. c3 hold garbage, which product() ignores.
    Lanes c0 = index + (static_cast<uint64_t>(first) + static_cast<uint64_t>(i)), c1 = Lanes{} + counter1;
    Lanes c2 = Lanes{} + (sample & low), c3 = Lanes{} + (sample >> 32);
    uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
      const Lanes p0 = product(c0, 0xD2511F53u), p1 = product(c2, 0xCD9E8D57u);
      c0 = (p1 >> 32) ^ c1 ^ static_cast<uint64_t>(key0);
      c2 = (p0 >> 32) ^ c3 ^ static_cast<uint64_t>(key1);
      c1 = p1;
      c3 = p0;
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
    *reinterpret_cast<detail::WordLanes*>(radius + 2 * i) = (c0 & low) | c2 << 32;
    *reinterpret_cast<detail::WordLanes*>(angle + 2 * i) = (c1 & low) | c3 << 32;
  }
}

// Normals of blocks first .. first + n - 1, in the order of elements: 4 n floats. n a multiple of 8.
FK_INLINE void fill_normals(uint64_t seed, uint32_t step, Stream stream, uint64_t sample, uint32_t first, int64_t n,
                            float* out) {
  for (int64_t done = 0; done < n; done += noise_chunk) {
    const int blocks = n - done < noise_chunk ? static_cast<int>(n - done) : noise_chunk;
    alignas(64) uint32_t radius[2 * noise_chunk], angle[2 * noise_chunk];
    noise_pairs(seed, step, stream, sample, first + static_cast<uint32_t>(done), blocks, radius, angle);
    float* chunk = out + 4 * done;
#pragma omp simd
    for (int i = 0; i < 2 * blocks; ++i) {
      const auto z = normal_pair(radius[i], angle[i]);
      chunk[2 * i] = z.first;
      chunk[2 * i + 1] = z.second;
    }
  }
}

// The same in double, two elements a block: 2 n doubles.
FK_INLINE void fill_normals(uint64_t seed, uint32_t step, Stream stream, uint64_t sample, uint32_t first, int64_t n,
                            double* out) {
  for (int64_t done = 0; done < n; done += noise_chunk) {
    const int blocks = n - done < noise_chunk ? static_cast<int>(n - done) : noise_chunk;
    alignas(64) uint32_t radius[2 * noise_chunk], angle[2 * noise_chunk];
    noise_pairs(seed, step, stream, sample, first + static_cast<uint32_t>(done), blocks, radius, angle);
    double* chunk = out + 2 * done;
#pragma omp simd
    for (int i = 0; i < blocks; ++i) {
      const auto z = normal_pair(Words{radius[2 * i], angle[2 * i], radius[2 * i + 1], angle[2 * i + 1]});
      chunk[2 * i] = z.first;
      chunk[2 * i + 1] = z.second;
    }
  }
}

}  // namespace fokker::math
