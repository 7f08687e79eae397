// Vectors of float from half-precision numbers in memory, and back, rounded to nearest even.
#pragma once

#include "common/half.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {
namespace {

// gcc's own conversions of vectors of half the length take a vector apart and put it together.
#if defined(__AVX512F__)
inline __m256i rounded(VecF x) {
  const __m512i bits = _mm512_castps_si512(x), below = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i up = _mm512_mask_add_epi32(below, odd, below, _mm512_set1_epi32(1));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, _mm512_set1_epi32(0x7fc00000)), 16));
}
inline VecF load(const BFloat16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
inline void store(BFloat16* p, VecF v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(v)); }
inline VecF load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store(Half* p, VecF v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 8)); }
#elif defined(__AVX2__)
inline VecF load(const BFloat16* p) {
  const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline void store(BFloat16* p, VecF x) {
  const __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
  const __m256i up =
      _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), _mm256_and_si256(top, _mm256_set1_epi32(1)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i wide = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), _mm256_set1_epi32(0x7fc0), nan);
  const __m256i low = _mm256_permute4x64_epi64(_mm256_packus_epi32(wide, wide), 8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(low));
}
#else
inline VecF load(const BFloat16* p) {
  VecF v;
  for (int l = 0; l < kLanesOf<float>; ++l) v[l] = to_float(p[l]);
  return v;
}
inline void store(BFloat16* p, VecF v) {
  for (int l = 0; l < kLanesOf<float>; ++l) p[l] = to_bfloat16(v[l]);
}
#endif
#if defined(__AVX512F__)
inline void stream(BFloat16* p, VecF v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), rounded(v)); }
inline void stream(Half* p, VecF v) { _mm256_stream_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 8)); }
#else
inline VecF load(const Half* p) {
  VecF v;
  for (int l = 0; l < kLanesOf<float>; ++l) v[l] = to_float(p[l]);
  return v;
}
inline void store(Half* p, VecF v) {
  for (int l = 0; l < kLanesOf<float>; ++l) p[l] = to_half(v[l]);
}
inline void stream(BFloat16* p, VecF v) { store(p, v); }
inline void stream(Half* p, VecF v) { store(p, v); }
#endif

// One element.
inline float number(float x) { return x; }
inline double number(double x) { return x; }
inline float number(BFloat16 h) { return to_float(h); }
inline float number(Half h) { return to_float(h); }
inline void set(float& to, float x) { to = x; }
inline void set(double& to, double x) { to = x; }
inline void set(BFloat16& to, float x) { to = to_bfloat16(x); }
inline void set(Half& to, float x) { to = to_half(x); }

}  // namespace
}  // namespace fokker::cpu::FK_ISA
