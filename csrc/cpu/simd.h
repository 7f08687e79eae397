// Vectors of the instruction set a unit is compiled for: arithmetic is the operators', what they lack is here.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc's own _mm512_undefined_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace fokker::cpu::FK_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
typedef float VecF __attribute__((vector_size(kVectorBytes)));
typedef double VecD __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t VecI32 __attribute__((vector_size(kVectorBytes)));
typedef std::int64_t VecI64 __attribute__((vector_size(kVectorBytes)));
typedef float VecHalfF __attribute__((vector_size(kVectorBytes / 2)));

template <typename T> struct Simd;
template <> struct Simd<float> {
  using Vec = VecF;
};
template <> struct Simd<double> {
  using Vec = VecD;
};
template <typename T> using Vec = typename Simd<T>::Vec;
template <typename T> constexpr int kLanesOf = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T> inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T> inline void store(T* p, Vec<T> v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline void store(float* p, VecD v) {
  const VecHalfF h = __builtin_convertvector(v, VecHalfF);
  __builtin_memcpy(p, &h, sizeof(h));
}
inline VecF all(float x) { return x - VecF{}; }
inline VecD all(double x) { return x - VecD{}; }

#if defined(__AVX512F__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
inline VecD fma(VecD a, VecD b, VecD c) { return _mm512_fmadd_pd(a, b, c); }
inline VecF max(VecF a, VecF b) { return _mm512_max_ps(a, b); }
inline VecD max(VecD a, VecD b) { return _mm512_max_pd(a, b); }
inline VecF abs(VecF a) { return _mm512_abs_ps(a); }
inline VecD abs(VecD a) { return _mm512_abs_pd(a); }
inline double add_lanes(VecD a) { return _mm512_reduce_add_pd(a); }
inline double add_lanes(VecF a) {
  return add_lanes(VecD(_mm512_cvtps_pd(_mm512_castps512_ps256(a)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1))));
}
inline float max_lanes(VecF a) { return _mm512_reduce_max_ps(a); }
inline double max_lanes(VecD a) { return _mm512_reduce_max_pd(a); }
#elif defined(__AVX2__)
inline VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
inline VecD fma(VecD a, VecD b, VecD c) { return _mm256_fmadd_pd(a, b, c); }
inline VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
inline VecD max(VecD a, VecD b) { return _mm256_max_pd(a, b); }
inline VecF abs(VecF a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline VecD abs(VecD a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
inline VecF floor(VecF a) { return _mm256_round_ps(a, 9); }
inline VecD floor(VecD a) { return _mm256_round_pd(a, 9); }
#else
template <typename V> inline V fma(V a, V b, V c) { return a * b + c; }
template <typename V> inline V max(V a, V b) { return a > b ? a : b; }
template <typename V> inline V abs(V a) { return a < 0 ? -a : a; }
// The integer below, or at integers perhaps the one before; beyond 2^22 (2^51) anything: powers of two are 0 there.
inline VecF floor(VecF a) { return ((a - 0.5f) + 12582912.0f) - 12582912.0f; }
inline VecD floor(VecD a) { return ((a - 0.5) + 6755399441055744.0) - 6755399441055744.0; }
#endif
#if !defined(__AVX512F__)
template <typename V> inline double add_lanes(V a) {
  double sum[2] = {0.0, 0.0};
  for (unsigned l = 0; l < sizeof(a) / sizeof(a[0]); ++l) sum[l & 1] += static_cast<double>(a[l]);
  return sum[0] + sum[1];
}
template <typename V> inline auto max_lanes(V a) {
  auto top = a[0];
  for (unsigned l = 1; l < sizeof(a) / sizeof(a[0]); ++l) top = a[l] > top ? a[l] : top;
  return top;
}
#endif

// Products of tiny weights are 0 in its scope: subnormal numbers cost a hundred cycles each.
class FlushSubnormals {
 public:
#if defined(__SSE2__)
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }  // flush to zero, denormals are zeros
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
  FlushSubnormals() {}
#endif
};

// c[0] + c[1] x + ...
template <int I, int N, typename T> inline Vec<T> polynomial(const T (&c)[N], Vec<T> x) {
  if constexpr (I + 1 == N) return all(c[I]);
  else return fma(polynomial<I + 1>(c, x), x, all(c[I]));
}

// 2^x for x <= 2^7 (float), 2^10 (double); 0 from 2^-126 (2^-1022) downwards. Relative error of the fits (Remez, 2^f on
// [0, 1]): 7.5e-8 and 2.1e-16.
inline VecF exp2(VecF x) {
  constexpr float c[] = {0.99999992506f,  0.69315307320f,   0.24015361702f,
                         0.055826318116f, 0.0089893400236f, 0.0018775767f};
#if defined(__AVX512F__)
  return _mm512_scalef_ps(polynomial<0>(c, VecF(_mm512_reduce_ps(x, 9))), x);  // both by floor
#else
  const VecF n = floor(x), p = polynomial<0>(c, VecF(x - n));
  const VecI32 bits = VecI32(p) + (VecI32(VecF(n + 12582912.0f)) << 23);
  return VecF(bits & (x >= -126.0f));
#endif
}
inline VecD exp2(VecD x) {
  constexpr double c[] = {1.0000000000000002115,     0.69314718055989127158,     0.24022650696136081313,
                          0.055504108628244804669,   0.0096181294091759774219,   0.0013333543730938328753,
                          0.00015403957491184248127, 0.000015244659646603739851, 1.3312720070473668468e-6,
                          9.460945198500420019e-8,   9.9522151872424764276e-9};
#if defined(__AVX512F__)
  return _mm512_scalef_pd(polynomial<0>(c, VecD(_mm512_reduce_pd(x, 9))), x);
#else
  const VecD n = floor(x), p = polynomial<0>(c, VecD(x - n));
  const VecI64 bits = VecI64(p) + (VecI64(VecD(n + 6755399441055744.0)) << 52);
  return VecD(bits & (x >= -1022.0));
#endif
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
