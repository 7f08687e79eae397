// Splits a chunk into the elements of each class and puts their results back, without a branch on the data.
//
// Included once per instruction set, inside its namespace. AVX-512 compresses and expands registers; AVX2 does the same
// with permutations from a table; without either, every class has a list of indices. Order within a class is kept.
#include <cstdint>
#include <cstring>

#include "common/config.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#define FK_PARTITION_BITS 1
#else
#define FK_PARTITION_BITS 0
#endif

namespace fokker::cpu::FK_ISA {
namespace {

// Elements per pass of an inner loop: one cache line, so that a loop never has a remainder. Buffers that `take` writes
// and `put` reads are a pass longer than the chunk.
template <typename T> constexpr int kLanes = 64 / sizeof(T);

#if FK_PARTITION_BITS
#if defined(__AVX512F__)

template <typename T> constexpr int kVector = 64 / sizeof(T);
FK_INLINE uint64_t equal_bytes(const uint8_t* p, uint8_t value) {
  return _mm512_cmpeq_epi8_mask(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(value)));
}
FK_INLINE void compress(const float* from, unsigned k, float* to) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(k), _mm512_loadu_ps(from)));
}
FK_INLINE void compress(const double* from, unsigned k, double* to) {
  _mm512_storeu_pd(to, _mm512_maskz_compress_pd(static_cast<__mmask8>(k), _mm512_loadu_pd(from)));
}
FK_INLINE void expand(const float* from, unsigned k, float* to) {
  const auto m = static_cast<__mmask16>(k);
  _mm512_mask_storeu_ps(to, m, _mm512_maskz_expand_ps(m, _mm512_loadu_ps(from)));
}
FK_INLINE void expand(const double* from, unsigned k, double* to) {
  const auto m = static_cast<__mmask8>(k);
  _mm512_mask_storeu_pd(to, m, _mm512_maskz_expand_pd(m, _mm512_loadu_pd(from)));
}

#else

template <typename T> constexpr int kVector = 32 / sizeof(T);
FK_INLINE uint64_t equal_bytes(const uint8_t* p, uint8_t value) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(value));
  const auto half = [&](const uint8_t* q) {
    return static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)), v)));
  };
  return half(p) | static_cast<uint64_t>(half(p + 32)) << 32;
}

// For each mask of `Bits` elements of 8 / Bits 32-bit words: eight words to take, a byte each. In `expand` the sign bit
// of a byte marks what stays as it is.
template <int Bits> struct Permutations {
  uint64_t compress[1 << Bits] = {}, expand[1 << Bits] = {};
  constexpr Permutations() {
    constexpr int width = 8 / Bits;
    for (int k = 0; k < 1 << Bits; ++k) {
      int taken = 0;
      for (int i = 0; i < Bits; ++i) {
        const bool on = (k >> i & 1) != 0;
        for (int j = 0; j < width; ++j) {
          const int word = width * i + j, packed = width * taken + j;
          expand[k] |= static_cast<uint64_t>(on ? packed : 0x80) << 8 * word;
          if (on) compress[k] |= static_cast<uint64_t>(word) << 8 * packed;
        }
        taken += on ? 1 : 0;
      }
    }
  }
};
template <typename T> constexpr Permutations<kVector<T> > kPermutations{};
FK_INLINE __m256i words(const uint64_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
FK_INLINE void compress(const float* from, unsigned k, float* to) {
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), words(kPermutations<float>.compress + k)));
}
FK_INLINE void compress(const double* from, unsigned k, double* to) {
  const __m256 v = _mm256_castpd_ps(_mm256_loadu_pd(from));
  const __m256 packed = _mm256_permutevar8x32_ps(v, words(kPermutations<double>.compress + k));
  _mm256_storeu_pd(to, _mm256_castps_pd(packed));
}
FK_INLINE void expand(const float* from, unsigned k, float* to) {
  const __m256i w = words(kPermutations<float>.expand + k);
  const __m256 v = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), w);
  _mm256_storeu_ps(to, _mm256_blendv_ps(v, _mm256_loadu_ps(to), _mm256_castsi256_ps(w)));
}
FK_INLINE void expand(const double* from, unsigned k, double* to) {
  const __m256i w = words(kPermutations<double>.expand + k);
  const __m256d v = _mm256_castps_pd(_mm256_permutevar8x32_ps(_mm256_castpd_ps(_mm256_loadu_pd(from)), w));
  _mm256_storeu_pd(to, _mm256_blendv_pd(v, _mm256_loadu_pd(to), _mm256_castsi256_pd(w)));
}

#endif

// The elements of one class of a chunk of up to Chunk (a multiple of 64) elements: as bits, and where they are few also
// as a list of indices.
template <int Chunk, int Classes> class Partition {
 public:
  // classes[0 .. n) are below Classes; the bytes up to the next multiple of 64 are overwritten.
  Partition(uint8_t* classes, int n) : classes_(classes), n_(n) {
    std::memset(classes + n, 0xff, static_cast<size_t>(-n & 63));
  }

  // Goes to a class. Returns how many elements it has.
  int select(int c) {
    m_ = 0;
    for (int w = 0; 64 * w < n_; ++w) {
      bits_[w] = equal_bytes(classes_ + 64 * w, static_cast<uint8_t>(c));
      m_ += __builtin_popcountll(bits_[w]);
    }
    return m_;
  }
  // a and b of the selected elements, packed.
  template <typename T> void take(const T* a, const T* b, T* to_a, T* to_b) {
    if (few<T>()) {
      int m = 0;
      for (int w = 0; 64 * w < n_; ++w)
        for (uint64_t left = bits_[w]; left != 0; left &= left - 1) {
          const int i = 64 * w + __builtin_ctzll(left);
          at_[m] = static_cast<uint16_t>(i), to_a[m] = a[i], to_b[m] = b[i], ++m;
        }
      return;
    }
    for_each_vector<T>([&](int i, unsigned k) {
      const int m = __builtin_popcount(k);
      compress(a + i, k, to_a), compress(b + i, k, to_b);
      to_a += m, to_b += m;
    });
    for (int i = whole(); i < n_; ++i)
      if (bits_[i / 64] >> i % 64 & 1) *to_a++ = a[i], *to_b++ = b[i];
  }
  // The inverse of the last `take`; the other elements of `to` stay.
  template <typename T> void put(const T* from, T* to) const {
    if (few<T>()) {
      for (int m = 0; m < m_; ++m) to[at_[m]] = from[m];
      return;
    }
    for_each_vector<T>([&](int i, unsigned k) {
      expand(from, k, to + i);
      from += __builtin_popcount(k);
    });
    for (int i = whole(); i < n_; ++i)
      if (bits_[i / 64] >> i % 64 & 1) to[i] = *from++;
  }

 private:
  static constexpr int kStep = 16;  // whole vectors of either type, whole bytes of bits
  int whole() const { return n_ / kStep * kStep; }
  template <typename T> bool few() const { return m_ * (kVector<T> / 2) < n_; }
  template <typename T, typename Visit> FK_INLINE void for_each_vector(Visit&& visit) const {
    for (int i = 0; i < whole(); i += kStep) {
      uint16_t bits;
      std::memcpy(&bits, reinterpret_cast<const char*>(bits_) + i / 8, 2);
      for (int j = 0; j < kStep; j += kVector<T>)
        visit(i + j, static_cast<unsigned>(bits) >> j & ((1u << kVector<T>)-1u));
    }
  }

  const uint8_t* classes_;
  int n_, m_ = 0;
  uint64_t bits_[Chunk / 64];
  uint16_t at_[Chunk];
};

#else

// The elements of one class of a chunk of up to Chunk elements, as a list of indices.
template <int Chunk, int Classes> class Partition {
 public:
  Partition(const uint8_t* classes, int n) {
    // Two lists for every class: consecutive elements do not wait for each other's counter.
    int i = 0;
    for (; i + 1 < n; i += 2) {
      const int c0 = classes[i], c1 = classes[i + 1];
      index_[c0][count_[0][c0]++] = i;
      index_[c1][Chunk / 2 + count_[1][c1]++] = i + 1;
    }
    if (i < n) index_[classes[i]][count_[0][classes[i]]++] = i;
  }

  int select(int c) {
    const int m0 = count_[0][c];
    at_ = index_[c], m_ = m0 + count_[1][c];
    for (int i = m0; i < m_; ++i) at_[i] = at_[Chunk / 2 + i - m0];
    return m_;
  }
  template <typename T> void take(const T* a, const T* b, T* to_a, T* to_b) const {
    for (int i = 0; i < m_; ++i) to_a[i] = a[at_[i]], to_b[i] = b[at_[i]];
  }
  template <typename T> void put(const T* from, T* to) const {
    for (int i = 0; i < m_; ++i) to[at_[i]] = from[i];
  }

 private:
  int count_[2][Classes] = {}, index_[Classes][Chunk];
  int* at_;
  int m_;
};

#endif

}  // namespace
}  // namespace fokker::cpu::FK_ISA
