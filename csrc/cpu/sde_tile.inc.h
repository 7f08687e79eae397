// Tiles of a sample for the SDE steps: sums, inner products and noise of contiguous numbers in the first cache.
#pragma once

#include "cpu/sde_operand.inc.h"
#include "math/noise_fill.h"
#include "math/sde_update.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> using Table = T[kMaxResults][kMaxColumns];

template <typename T> inline void exponentiate(const T* x, const T* s, T* y, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) y[i] = x[i] * math::exp(s[i]);
}
template <typename T> inline void difference(const T* y, const T* x, T* to, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = y[i] - x[i];
}
template <typename T> inline void clip(const T* x, const T* m, const T* pq, T range, T* to, int n) {
  const T p = pq[0], q = pq[1];
#pragma omp simd
  for (int i = 0; i < n; ++i) to[i] = math::clipped(x[i], m[i], p, q, range);
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
    FK_TERMS(0)
    FK_TERMS(1) FK_TERMS(2) FK_TERMS(3) FK_TERMS(4) FK_TERMS(5) FK_TERMS(6) FK_TERMS(7) FK_TERMS(8) FK_TERMS(9)
#undef FK_TERMS
  }
}

// out[r] = sum_j c[r][j] v[j] of R results, each vector read once; in the order of `combine`, to the bit.
template <int J, int R, typename T>
inline void combine_results_of(const T (*c)[kMaxColumns], const T* const* v, T* const* out, std::int64_t n) {
  T factor[R][J];
  const T* vector[J];
  T* to[R];
#pragma GCC unroll 6
  for (int j = 0; j < J; ++j) vector[j] = v[j];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) {
    to[r] = out[r];
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j) factor[r][j] = c[r][j];
  }
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    T x[J];
#pragma GCC unroll 6
    for (int j = 0; j < J; ++j) x[j] = vector[j][i];
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      T sum = factor[r][0] * x[0];
#pragma GCC unroll 6
      for (int j = 1; j < J; ++j) sum = math::plus_term(sum, factor[r][j], x[j]);
      to[r][i] = sum;
    }
  }
}
constexpr int kMostTogether = 6;  // vectors of `combine_results`
template <typename T> inline void combine_results(int results, int joined, const T (*c)[kMaxColumns], const T* const* v,
                                                  T* const* out, std::int64_t n) {
  switch (results * 8 + joined) {
#define FK_RESULTS(J)                              \
  case 16 + J:                                     \
    return combine_results_of<J, 2>(c, v, out, n); \
  case 24 + J:                                     \
    return combine_results_of<J, 3>(c, v, out, n);
    FK_RESULTS(1) FK_RESULTS(2) FK_RESULTS(3) FK_RESULTS(4) FK_RESULTS(5) FK_RESULTS(6)
#undef FK_RESULTS
  }
}

// The same past the cache, for results that no cache would hold until they are read: without this a line is fetched
// only to be overwritten.
#if defined(__AVX512F__)
inline void stream(float* p, VecF v) { _mm512_stream_ps(p, v); }
inline void stream(double* p, VecD v) { _mm512_stream_pd(p, v); }
#elif defined(__AVX2__)
inline void stream(float* p, VecF v) { _mm256_stream_ps(p, v); }
inline void stream(double* p, VecD v) { _mm256_stream_pd(p, v); }
#elif defined(__SSE2__)
inline void stream(float* p, VecF v) { _mm_stream_ps(p, v); }
inline void stream(double* p, VecD v) { _mm_stream_pd(p, v); }
#else
template <typename T> inline void stream(T* p, Vec<T> v) { store(p, v); }
#endif
template <int J, typename T>
inline void combine_streamed(T a, const T* x, const T* c, const T* const* v, T* out, std::int64_t n) {
  constexpr int lanes = kLanesOf<T>;
  const auto misplaced = reinterpret_cast<std::uintptr_t>(out) % kVectorBytes / sizeof(T);
  std::int64_t i = std::min<std::int64_t>(n, misplaced ? lanes - static_cast<std::int64_t>(misplaced) : 0);
  combine_of<J, true>(a, x, c, v, out, i);
  for (; i + lanes <= n; i += lanes) {
    Vec<T> sum = all(a) * load(x + i);
#pragma GCC unroll 10
    for (int j = 0; j < J; ++j) sum = fma(all(c[j]), load(v[j] + i), sum);
    stream(out + i, sum);
  }
  const T* rest[J + 1];
  for (int j = 0; j < J; ++j) rest[j] = v[j] + i;
  combine_of<J, true>(a, x + i, c, rest, out + i, n - i);
}
template <typename T>
inline void combine_streamed(int terms, T a, const T* x, const T* c, const T* const* v, T* out, std::int64_t n) {
  switch (terms) {
    case 0:
      return combine_streamed<0>(a, x, c, v, out, n);
    case 1:
      return combine_streamed<1>(a, x, c, v, out, n);
    case 2:
      return combine_streamed<2>(a, x, c, v, out, n);
    case 3:
      return combine_streamed<3>(a, x, c, v, out, n);
    default:
      return combine<true>(terms, a, x, c, v, out, n);
  }
}
inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The widened lanes of a vector from memory.
inline VecD widened(const double* p) { return load(p); }
// (gcc splits __builtin_convertvector into lanes of 128 bits here.)
#if defined(__AVX512F__)
inline VecD widened(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
#elif defined(__AVX2__)
inline VecD widened(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
#else
inline VecD widened(const float* p) { return VecD{p[0], p[1]}; }
#endif
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
    FK_COUNT(1)
    FK_COUNT(2) FK_COUNT(3) FK_COUNT(4) FK_COUNT(5) FK_COUNT(6) FK_COUNT(7) FK_COUNT(8) FK_COUNT(9) FK_COUNT(10)
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

constexpr int kNoisePad = 64, kTurned = 8;  // channels whose noise is turned at a time

template <typename T> struct Tiles {
  const AffinePlan& p;
  const std::uint64_t key;
  const std::uint32_t counter1;
  static constexpr int per = sizeof(T) == 8 ? 2 : 4;
  alignas(64) T in[kMaxVectors][kSdeTile], noise[kPixelTile + kNoisePad], line[kTurned][256 + kNoisePad];
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
    const std::int64_t begin = std::max<std::int64_t>(0, r * kSdeRun - lead),
                       end = std::min(p.n, (r + 1) * kSdeRun - lead);
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
      for (int c = 0; c < width; c += kTurned) {
        const T* z[kTurned];
        const int some = std::min(kTurned, width - c);
        for (int j = 0; j < some; ++j)
          z[j] = normals(id, p.element_offset + (c0 + c + j) * p.pixels + from, count, line[j]);
        T* to = noise + c;
        if (some == kTurned) {
          for (int k = 0; k < count; ++k, to += width)
            for (int j = 0; j < kTurned; ++j) to[j] = z[j][k];
        } else {
          for (int k = 0; k < count; ++k, to += width)
            for (int j = 0; j < some; ++j) to[j] = z[j][k];
        }
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
