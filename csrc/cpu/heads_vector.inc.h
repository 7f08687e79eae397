// Heads as padded segments of whole vectors: included by heads.inc.h.
//
// A head is one segment whose neighbours are pairs (interleaved), or two of dim / 2 whose elements are (half-split);
// one segment too where only its first elements are turned. A segment is padded to whole vectors, with zeros.
#pragma once

#include "cpu/heads.h"
#include "cpu/sde_operand.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kPadded = kMaxHeadDim + 2 * kLanesOf<float>;

// The first n lanes from memory, the others 0; and back.
template <typename T> inline Vec<T> load_first(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  else return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
#else
  Vec<T> v{};
  for (int l = 0; l < n; ++l) v[l] = p[l];
  return v;
#endif
}
template <typename T> inline void store_first(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
  else _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), v);
#else
  for (int l = 0; l < n; ++l) p[l] = v[l];
#endif
}
// (a, b) -> (b, a) in each pair of lanes.
#if defined(__AVX512F__)
inline VecF swapped(VecF v) { return _mm512_permute_ps(v, 0xb1); }
inline VecD swapped(VecD v) { return _mm512_permute_pd(v, 0x55); }
#elif defined(__AVX2__)
inline VecF swapped(VecF v) { return _mm256_permute_ps(v, 0xb1); }
inline VecD swapped(VecD v) { return _mm256_permute_pd(v, 0x5); }
#else
inline VecF swapped(VecF v) { return __builtin_shuffle(v, VecI32{1, 0, 3, 2}); }
inline VecD swapped(VecD v) { return __builtin_shuffle(v, VecI64{1, 0}); }
#endif

template <typename T> struct Padded {
  alignas(64) T v[kPadded];
};

// How a head lies in padded segments.
template <typename T> struct Segments {
  static constexpr int lanes = kLanesOf<T>;
  int count, size, vectors, tail, stride;  // tail: lanes of the last vector; stride: elements from one to the next
  explicit Segments(const HeadsPlan& p)
      : count(p.interleaved || p.rotary < p.dim ? 1 : 2),
        size(p.dim / count),
        vectors((size + lanes - 1) / lanes),
        tail(size - (vectors - 1) * lanes),
        stride(vectors * lanes) {}
  int at(int j) const { return j < size ? j : stride + j - size; }
};

}  // namespace
}  // namespace fokker::cpu::FK_ISA
