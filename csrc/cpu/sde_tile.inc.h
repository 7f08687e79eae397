// Tiles of a sample for the SDE steps: operands and noise as contiguous numbers in the first cache.
#pragma once

#include "common/half.h"
#include "cpu/sde.h"
#include "cpu/simd.h"
#include "math/noise_fill.h"
#include "math/sde_update.h"

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
inline void give_bfloats(const float* from, int n, BFloat16* to) {
  const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1), nan = _mm512_set1_epi32(0x7fc0);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_loadu_ps(from + i);
    const __m512i bits = _mm512_castps_si512(x), top = _mm512_srli_epi32(bits, 16);
    const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, half), _mm512_and_si512(top, one));
    const __m512i rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32(sum, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), nan);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), _mm512_cvtepi32_epi16(rounded));
  }
  for (; i < n; ++i) to[i] = to_bfloat16(from[i]);
}
#else
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

template <typename T> inline void take_any(const void* data, DType dtype, std::int64_t at, std::int64_t stride, int n, T* to) {
  switch (dtype) {
    case DType::f16:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return take_halves(static_cast<const Half*>(data) + at, n, to);
      return take(static_cast<const Half*>(data) + at, stride, n, to, [](Half h) { return T(to_float(h)); });
    case DType::bf16:
      return take(static_cast<const BFloat16*>(data) + at, stride, n, to, [](BFloat16 h) { return T(to_float(h)); });
    case DType::f64:
      return take(static_cast<const double*>(data) + at, stride, n, to, [](double x) { return static_cast<T>(x); });
    default:
      return take(static_cast<const float*>(data) + at, stride, n, to, [](float x) { return static_cast<T>(x); });
  }
}
template <typename T> inline void give_any(const T* from, void* data, DType dtype, std::int64_t at, std::int64_t stride, int n) {
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

// out = a x + sum_j c[j] v[j], or a + sum where not Scaled.
template <int J, bool Scaled, typename T>
inline void combine_of(T a, const T* x, const T* c, const T* const* v, T* out, std::int64_t n) {
  T factor[J + 1];
  const T* vector[J + 1];
#pragma GCC unroll 10
  for (int j = 0; j < J; ++j) factor[j] = c[j], vector[j] = v[j];
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    T sum = Scaled ? a * x[i] : a;
#pragma GCC unroll 10
    for (int j = 0; j < J; ++j) sum = math::plus_term(sum, factor[j], vector[j][i]);
    out[i] = sum;
  }
}
template <bool Scaled, typename T>
inline void combine(int terms, T a, const T* x, const T* c, const T* const* v, T* out, std::int64_t n) {
  switch (terms) {
#define FK_TERMS(J) \
  case J:           \
    return combine_of<J, Scaled>(a, x, c, v, out, n);
    FK_TERMS(0) FK_TERMS(1) FK_TERMS(2) FK_TERMS(3) FK_TERMS(4) FK_TERMS(5) FK_TERMS(6) FK_TERMS(7) FK_TERMS(8) FK_TERMS(9)
#undef FK_TERMS
  }
}

// The widened lanes of a vector from memory.
inline VecD widened(const double* p) { return load(p); }
inline VecD widened(const float* p) {
  VecHalfF h;
  __builtin_memcpy(&h, p, sizeof(h));
  return __builtin_convertvector(h, VecD);
}
// sum[j] += <a, v[j]> of N vectors v, or with Triangle the upper triangle of the products of v by rows. Products of
// floats are exact; each sum runs in kLanesOf<double> lanes, twice that where registers allow.
template <int N, bool Triangle, typename T> inline void dots_of(const T* a, const T* const* v, int n, double* sum) {
  constexpr int lanes = kLanesOf<double>, pairs = Triangle ? N * (N + 1) / 2 : N, chains = pairs <= 6 ? 2 : 1;
  VecD total[chains][pairs];
  for (int u = 0; u < chains; ++u)
    for (int j = 0; j < pairs; ++j) total[u][j] = VecD{};
  const T* of[N];
#pragma GCC unroll 10
  for (int j = 0; j < N; ++j) of[j] = v[j];
  int i = 0;
  for (; i + chains * lanes <= n; i += chains * lanes) {
#pragma GCC unroll 2
    for (int u = 0; u < chains; ++u) {
      VecD x[N];
#pragma GCC unroll 10
      for (int j = 0; j < N; ++j) x[j] = widened(of[j] + i + u * lanes);
      if constexpr (Triangle) {
        int k = 0;
#pragma GCC unroll 10
        for (int r = 0; r < N; ++r)
#pragma GCC unroll 10
          for (int j = r; j < N; ++j, ++k) total[u][k] = fma(x[r], x[j], total[u][k]);
      } else {
        const VecD left = widened(a + i + u * lanes);
#pragma GCC unroll 10
        for (int j = 0; j < N; ++j) total[u][j] = fma(left, x[j], total[u][j]);
      }
    }
  }
  for (int r = 0, k = 0; r < (Triangle ? N : 1); ++r)
    for (int j = Triangle ? r : 0; j < N; ++j, ++k) {
      const T* const left = Triangle ? of[r] : a;
      double rest = 0;
      for (int q = i; q < n; ++q) rest += static_cast<double>(left[q]) * static_cast<double>(of[j][q]);
      VecD all_chains = total[0][k];
      if constexpr (chains == 2) all_chains += total[1][k];
      sum[k] += add_lanes(all_chains) + rest;
    }
}
template <typename T> inline void dots(int count, const T* a, const T* const* v, int n, double* sum) {
  switch (count) {
#define FK_COUNT(N) \
  case N:           \
    return dots_of<N, false>(a, v, n, sum);
    FK_COUNT(1) FK_COUNT(2) FK_COUNT(3) FK_COUNT(4) FK_COUNT(5) FK_COUNT(6) FK_COUNT(7) FK_COUNT(8) FK_COUNT(9) FK_COUNT(10)
#undef FK_COUNT
  }
}
// The upper triangle, by rows, of the inner products of v[0 .. count).
template <typename T> inline void all_dots(int count, const T* const* v, int n, double* sum) {
  switch (count) {
    case 1:
      return dots_of<1, true, T>(nullptr, v, n, sum);
    case 2:
      return dots_of<2, true, T>(nullptr, v, n, sum);
    case 3:
      return dots_of<3, true, T>(nullptr, v, n, sum);
    case 4:
      return dots_of<4, true, T>(nullptr, v, n, sum);
    case 5:
      return dots_of<5, true, T>(nullptr, v, n, sum);
  }
  for (int j = 0; j < count; ++j) {
    dots(count - j, v[j], v + j, n, sum);
    sum += count - j;
  }
}

constexpr int kNoisePad = 64;

template <typename T> struct Tiles {
  const AffinePlan& p;
  const std::uint64_t key;
  const std::uint32_t counter1;
  static constexpr int per = sizeof(T) == 8 ? 2 : 4;
  alignas(64) T in[kMaxVectors][kSdeTile], noise[kPixelTile + kNoisePad], line[kSdeTile];
  alignas(64) T work[2 * kMaxResults + 3][kSdeTile];

  explicit Tiles(const AffinePlan& plan)
      : p(plan), key(plan.noisy ? plan.key() : 0), counter1(plan.noisy ? plan.counter1() : 0) {}

  // Starts to fetch what a tile reads and writes, while its noise is made.
  void fetch(std::int64_t b, std::int64_t i, int n) const {
    const auto ask = [&](const Operand& o, auto write) {
      if (!o.data || !p.adjacent(o)) return;
      const int size = p.native(o) ? sizeof(T) : o.dtype == DType::f64 ? 8 : o.dtype == DType::f32 ? 4 : 2;
      const char* const at = static_cast<const char*>(o.data) + (b * o.batch_stride + i) * size;
      for (int k = 0; k < n * size; k += 64) __builtin_prefetch(at + k, decltype(write)::value, 3);
    };
    for (int k = 0; k < p.vectors; ++k) ask(p.in[k], std::false_type{});
    for (int k = 0; k < kMaxVectors; ++k) ask(p.out[k], std::true_type{});
  }

  // Normals of elements [e, e + n) of a sample's noise, somewhere in `to`.
  const T* normals(std::uint64_t id, std::int64_t e, int n, T* to) {
    const std::int64_t block = e / per;
    const int lead = static_cast<int>(e - block * per), count = ((lead + n + per - 1) / per + 7) / 8 * 8;
    math::fill_normals(key, counter1 & math::max_step, static_cast<math::Stream>(counter1 >> 24), id,
                       static_cast<std::uint32_t>(block), count, to);
    return to + lead;
  }

  // f(b, i, n, z) over the tiles of an item: elements [i, i + n) of sample b in the plan's order, and their noise.
  template <typename F> void each(const SdeItems& items, std::int64_t item, std::int64_t tile, F&& f) {
    const std::int64_t b = item / items.runs, r = item % items.runs;
    if (items.pixels) return each_pixels(items, b, r, f);
    // Cut where Philox blocks begin.
    const std::int64_t lead = p.noisy ? p.element_offset % per : 0;
    const std::int64_t begin = std::max<std::int64_t>(0, r * kSdeRun - lead), end = std::min(p.n, (r + 1) * kSdeRun - lead);
    const std::uint64_t id = p.noisy ? p.id(b) : 0;
    for (std::int64_t i = begin; i < end;) {
      const std::int64_t next = std::min(end, (i + lead) / tile * tile + tile - lead);
      const int n = static_cast<int>(next - i);
      if (p.noisy) fetch(b, i, n);
      f(b, i, n, p.noisy ? normals(id, p.element_offset + i, n, noise) : nullptr);
      i = next;
    }
  }
  // The same for samples in memory order with their channels last: noise is made channel by channel and turned.
  template <typename F> void each_pixels(const SdeItems& items, std::int64_t b, std::int64_t r, F&& f) {
    const std::uint64_t id = p.id(b);
    const std::int64_t from = r * items.pixels;
    const int count = static_cast<int>(std::min<std::int64_t>(items.pixels, p.pixels - from));
    for (std::int64_t c0 = 0; c0 < p.channels; c0 += kChannelGroup) {
      const int width = static_cast<int>(std::min<std::int64_t>(kChannelGroup, p.channels - c0));
      for (int c = 0; c < width; ++c) {
        const T* z = normals(id, p.element_offset + (c0 + c) * p.pixels + from, count, line);
        for (int k = 0; k < count; ++k) noise[k * width + c] = z[k];
      }
      const std::int64_t at = from * p.channels + c0;
      if (width == p.channels) {
        for (int k = 0; k < count * width; k += kSdeTile)
          f(b, at + k, std::min(kSdeTile, count * width - k), noise + k);
      } else {
        for (int k = 0; k < count; ++k) f(b, at + k * p.channels, width, noise + k * width);
      }
    }
  }

  // The coefficients of sample b, nan where the row does not exist.
  void coefficients(std::int64_t b, T (&c)[kMaxResults][kMaxColumns]) const {
    const T* table = static_cast<const T*>(p.coefficients);
    const bool has = p.has_row();
    for (int r = 0; r < p.results; ++r)
      for (int j = 0; j < p.columns; ++j) c[r][j] = has ? table[p.coefficient(b, r, j)] : math::quiet_nan<T>();
  }
};

}  // namespace
}  // namespace fokker::cpu::FK_ISA
