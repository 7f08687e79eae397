// Operands of SDE steps as contiguous numbers, whatever their strides and dtype, and results on their way back.
#pragma once

#include "common/half.h"
#include "cpu/sde.h"
#include "cpu/simd.h"

namespace fokker::cpu::FK_ISA {
namespace {

// f(offset, count, stride, done) over the runs of elements [i, i + n) along the innermost dimension.
template <typename F> inline void walk(const AffinePlan& p, const Operand& o, std::int64_t i, int n, F&& f) {
  if (p.ndim <= 1) return f(p.ndim ? i * o.strides[0] : 0, n, p.ndim ? o.strides[0] : 1, 0);
  std::int64_t index[kMaxDims], rest = i, offset = 0;
  for (int d = p.ndim - 1; d >= 0; --d) {
    index[d] = rest % p.shape[d];
    rest /= p.shape[d];
    offset += index[d] * o.strides[d];
  }
  const int last = p.ndim - 1;
  for (int done = 0; done < n;) {
    const int count = static_cast<int>(std::min<std::int64_t>(n - done, p.shape[last] - index[last]));
    f(offset, count, o.strides[last], done);
    done += count;
    offset -= index[last] * o.strides[last];
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      offset += o.strides[d];
      if (++index[d] < p.shape[d]) break;
      offset -= p.shape[d] * o.strides[d];
      index[d] = 0;
    }
  }
}

// from[at], from[at + stride], ... as numbers of type T.
template <typename T, typename S, typename F>
inline void take(const S* from, std::int64_t stride, int n, T* to, F convert) {
  if (stride == 1) {
#pragma omp simd
    for (int i = 0; i < n; ++i) to[i] = convert(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i] = convert(from[i * stride]);
  }
}
template <typename S, typename T, typename F>
inline void give(const T* from, S* to, std::int64_t stride, int n, F convert) {
  if (stride == 1) {
#pragma omp simd
    for (int i = 0; i < n; ++i) to[i] = convert(from[i]);
  } else {
    for (int i = 0; i < n; ++i) to[i * stride] = convert(from[i]);
  }
}
#if defined(__AVX512F__)
// The hardware's conversions; the portable ones branch.
inline void take_halves(const Half* from, int n, float* to) {
  int i = 0;
  for (; i + 16 <= n; i += 16)
    _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i))));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}
inline void give_halves(const float* from, int n, Half* to) {
  int i = 0;
  for (; i + 16 <= n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtps_ph(_mm512_loadu_ps(from + i), 8));
  for (; i < n; ++i) to[i] = to_half(from[i]);
}
inline void take_bfloats(const BFloat16* from, int n, float* to) {
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    _mm512_storeu_si512(to + i, _mm512_slli_epi32(wide, 16));
  }
  for (; i < n; ++i) to[i] = to_float(from[i]);
}
inline void give_bfloats(const float* from, int n, BFloat16* to) {
  const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1), nan = _mm512_set1_epi32(0x7fc0);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_loadu_ps(from + i);
    const __m512i bits = _mm512_castps_si512(x), top = _mm512_srli_epi32(bits, 16);
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, half), _mm512_and_si512(top, one));
    const __m512i rounded =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtepi32_epi16(rounded));
  }
  for (; i < n; ++i) to[i] = to_bfloat16(from[i]);
}
#else
inline void take_bfloats(const BFloat16* from, int n, float* to) {
  take(from, 1, n, to, [](BFloat16 h) { return to_float(h); });
}
inline void give_bfloats(const float* from, int n, BFloat16* to) {
  give(from, to, 1, n, [](float x) { return to_bfloat16(x); });
}
inline void take_halves(const Half* from, int n, float* to) {
  take(from, 1, n, to, [](Half h) { return to_float(h); });
}
inline void give_halves(const float* from, int n, Half* to) {
  give(from, to, 1, n, [](float x) { return to_half(x); });
}
#endif

template <typename T>
inline void take_any(const void* data, DType dtype, std::int64_t at, std::int64_t stride, int n, T* to) {
  switch (dtype) {
    case DType::f16:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return take_halves(static_cast<const Half*>(data) + at, n, to);
      return take(static_cast<const Half*>(data) + at, stride, n, to, [](Half h) { return T(to_float(h)); });
    case DType::bf16:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return take_bfloats(static_cast<const BFloat16*>(data) + at, n, to);
      return take(static_cast<const BFloat16*>(data) + at, stride, n, to, [](BFloat16 h) { return T(to_float(h)); });
    case DType::f64:
      return take(static_cast<const double*>(data) + at, stride, n, to, [](double x) { return static_cast<T>(x); });
    default:
      return take(static_cast<const float*>(data) + at, stride, n, to, [](float x) { return static_cast<T>(x); });
  }
}
template <typename T>
inline void give_any(const T* from, void* data, DType dtype, std::int64_t at, std::int64_t stride, int n) {
  switch (dtype) {
    case DType::f16:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return give_halves(from, n, static_cast<Half*>(data) + at);
      return give(from, static_cast<Half*>(data) + at, stride, n, [](T x) { return to_half(static_cast<float>(x)); });
    case DType::bf16:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return give_bfloats(from, n, static_cast<BFloat16*>(data) + at);
      return give(from, static_cast<BFloat16*>(data) + at, stride, n,
                  [](T x) { return to_bfloat16(static_cast<float>(x)); });
    case DType::f64:
      return give(from, static_cast<double*>(data) + at, stride, n, [](T x) { return static_cast<double>(x); });
    default:
      return give(from, static_cast<float*>(data) + at, stride, n, [](T x) { return static_cast<float>(x); });
  }
}

// Elements [i, i + n) of sample b: where they lie if that is contiguous, else copied into `buffer`.
template <typename T>
inline const T* view(const AffinePlan& p, const Operand& o, std::int64_t b, std::int64_t i, int n, T* buffer) {
  const std::int64_t base = b * o.batch_stride;
  if (p.native(o) && p.adjacent(o)) return static_cast<const T*>(o.data) + base + i;
  walk(p, o, i, n, [&](std::int64_t at, int count, std::int64_t stride, int done) {
    take_any(o.data, o.dtype, base + at, stride, count, buffer + done);
  });
  return buffer;
}
template <typename T>
inline void put(const AffinePlan& p, const Operand& o, std::int64_t b, std::int64_t i, int n, const T* from) {
  const std::int64_t base = b * o.batch_stride;
  walk(p, o, i, n, [&](std::int64_t at, int count, std::int64_t stride, int done) {
    give_any(from + done, o.data, o.dtype, base + at, stride, count);
  });
}
// Where a result can be written as it is computed.
template <typename T> inline T* place(const AffinePlan& p, const Operand& o, std::int64_t b, std::int64_t i) {
  return p.native(o) && p.adjacent(o) ? static_cast<T*>(o.data) + b * o.batch_stride + i : nullptr;
}

}  // namespace
}  // namespace fokker::cpu::FK_ISA
