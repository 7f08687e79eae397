// Rows of noise on the CPU: many Philox blocks of one sample at once, and the numbers made of them.
//
// Host only. The same words and bits as noise() and normal_block(), in whole vectors: gcc turns the product in
// math::philox into full 64-bit ones, at three times the cost of a whole draw. Everything is inlined, so that each
// instruction set keeps its own copy.
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

constexpr int noise_width = sizeof(Lanes) / sizeof(uint64_t);

// math::philox on Count vectors with a word in each 64-bit lane; what gathers above bit 31 never comes down.
template <int Count> FK_INLINE void philox_lanes(Lanes (&c0)[Count], Lanes (&c1)[Count], Lanes (&c2)[Count],
                                                 Lanes (&c3)[Count], uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 8
    for (int v = 0; v < Count; ++v) {
      const Lanes p0 = product(c0[v], 0xD2511F53u), p1 = product(c2[v], 0xCD9E8D57u);
      c0[v] = (p1 >> 32) ^ c1[v] ^ static_cast<uint64_t>(key0);
      c2[v] = (p0 >> 32) ^ c3[v] ^ static_cast<uint64_t>(key1);
      c1[v] = p1;
      c3[v] = p0;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The words of a vector of blocks, by pairs of elements.
FK_INLINE void store_pairs(const Lanes& c0, const Lanes& c1, const Lanes& c2, const Lanes& c3, uint32_t* radius,
                           uint32_t* angle) {
  constexpr uint64_t low = 0xffffffffull;
  *reinterpret_cast<WordLanes*>(radius) = (c0 & low) | c2 << 32;
  *reinterpret_cast<WordLanes*>(angle) = (c1 & low) | c3 << 32;
}

}  // namespace detail

// Words of blocks first .. first + n - 1 by pairs of elements: radius[2 i + j] = w_{2 j}, angle[2 i + j] = w_{2 j + 1}
// of block first + i, j = 0, 1. n a multiple of 8; both arrays hold 2 n words.
FK_INLINE void noise_pairs(uint64_t seed, uint32_t step, Stream stream, uint64_t sample, uint32_t first, int64_t n,
                           uint32_t* radius, uint32_t* angle) {
  using detail::Lanes;
  constexpr int width = detail::noise_width;
  const uint64_t counter1 = step | static_cast<uint64_t>(stream) << 24;
  Lanes index;
  for (int lane = 0; lane < width; ++lane) index[lane] = lane;
  for (int64_t i = 0; i < n; i += width) {
    Lanes c0[1] = {index + (static_cast<uint64_t>(first) + static_cast<uint64_t>(i))}, c1[1] = {Lanes{} + counter1};
    Lanes c2[1] = {Lanes{} + sample}, c3[1] = {Lanes{} + (sample >> 32)};
    detail::philox_lanes<1>(c0, c1, c2, c3, seed);
    detail::store_pairs(c0[0], c1[0], c2[0], c3[0], radius + 2 * i, angle + 2 * i);
  }
}

// Where a block of each lane stands: block, step | stream << 24, sample.
struct NoiseLanes {
  alignas(64) uint64_t block[noise_chunk], counter1[noise_chunk], sample[noise_chunk];
};

// The same for blocks of any samples: lanes 0 .. n - 1, n a multiple of 8.
FK_INLINE void noise_pairs(uint64_t seed, const NoiseLanes& at, int n, uint32_t* radius, uint32_t* angle) {
  using detail::Lanes;
  for (int i = 0; i < n; i += detail::noise_width) {
    const Lanes sample = *reinterpret_cast<const Lanes*>(at.sample + i);
    Lanes c0[1] = {*reinterpret_cast<const Lanes*>(at.block + i)};
    Lanes c1[1] = {*reinterpret_cast<const Lanes*>(at.counter1 + i)};
    Lanes c2[1] = {sample}, c3[1] = {sample >> 32};
    detail::philox_lanes<1>(c0, c1, c2, c3, seed);
    detail::store_pairs(c0[0], c1[0], c2[0], c3[0], radius + 2 * i, angle + 2 * i);
  }
}

template <int N> struct LaneWords {
  uint32_t w0[N], w1[N], w2[N], w3[N];
};
// The words of block[l] of sample[l], N of them at once, N a multiple of 8.
template <int N> FK_INLINE LaneWords<N> noise_lanes(uint64_t seed, uint32_t step, Stream stream, const uint64_t* sample,
                                                    const uint32_t* block) {
  using detail::Lanes;
  constexpr int width = detail::noise_width, count = N / width;
  Lanes c0[count] = {}, c1[count] = {}, c2[count] = {}, c3[count] = {};
  for (int v = 0; v < count; ++v)
    for (int l = 0; l < width; ++l) {
      c0[v][l] = block[v * width + l];
      c1[v][l] = step | static_cast<uint32_t>(stream) << 24;
      c2[v][l] = sample[v * width + l];
      c3[v][l] = sample[v * width + l] >> 32;
    }
  detail::philox_lanes<count>(c0, c1, c2, c3, seed);
  LaneWords<N> words;
  for (int v = 0; v < count; ++v)
    for (int l = 0; l < width; ++l) {
      words.w0[v * width + l] = static_cast<uint32_t>(c0[v][l]);
      words.w1[v * width + l] = static_cast<uint32_t>(c1[v][l]);
      words.w2[v * width + l] = static_cast<uint32_t>(c2[v][l]);
      words.w3[v * width + l] = static_cast<uint32_t>(c3[v][l]);
    }
  return words;
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
