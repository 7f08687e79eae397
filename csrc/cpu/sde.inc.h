// Body of the steps of SDE samplers, their vector-Jacobian products and inner products, once per instruction set.
//
// One pass: a tile of every operand is read once into the first cache, noise is made there, results are written once.
#include "cpu/losses_lognormal.inc.h"
#include "cpu/sde_vjp.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// ---- forward --------------------------------------------------------------------------------------------------------
// Results of a tile from its vectors v = x, m_1 .., z.
template <typename T> inline void step_tile(Tiles<T>& t, const Table<T>& c, std::int64_t b, std::int64_t i, int n,
                                            const T* const* vectors, double* sums) {
  const AffinePlan& p = t.p;
  const int joined = p.joined();
  const T* v[kMaxJoined];
  for (int k = 0; k < joined; ++k) v[k] = vectors[k];
  // A result that lies where an operand does is held back until nothing reads it any more.
  const bool hold = p.aliased && (p.results > 1 || sums);
  T *y[kMaxResults], *const clipped = t.work[3], *const spare = t.work[4];
  if (p.results > 1 && !p.exponential && !p.clipped && !sums && joined <= kMostTogether) {
    for (int r = 0; r < p.results; ++r) {
      y[r] = hold ? nullptr : place<T>(p, p.out[r], b, i);
      if (!y[r]) y[r] = t.work[r];
    }
    combine_results(p.results, joined, c, v, y, n);
    for (int r = 0; r < p.results; ++r)
      if (y[r] == t.work[r]) put(p, p.out[r], b, i, n, y[r]);
    return;
  }
  for (int r = 0; r < p.results; ++r) {
    y[r] = hold ? nullptr : place<T>(p, p.out[r], b, i);
    const bool direct = y[r] != nullptr;
    if (!direct) y[r] = t.work[r];
    if (p.clipped) {
      clip(v[0], vectors[1], c[r] + p.columns - 2, static_cast<T>(p.clip), clipped, n);
      v[1] = clipped;
    }
    if (p.exponential) {
      combine<false>(joined - 1, c[r][0], v[0], c[r] + 1, v + 1, spare, n);
      exponentiate(v[0], spare, y[r], n);
    } else {
      combine<true>(joined - 1, c[r][0], v[0], c[r] + 1, v + 1, y[r], n);
    }
    if (sums && r == 0) {
      const T* const x = v[0];
      difference(y[0], x, spare, n);
      v[0] = spare;
      all_dots(joined, v, n, sums);
      v[0] = x;
    }
    if (!direct && !hold) put(p, p.out[r], b, i, n, y[r]);
  }
  if (hold)
    for (int r = 0; r < p.results; ++r) put(p, p.out[r], b, i, n, y[r]);
}

template <typename T>
void step(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int count = p.sum_count();
  bool direct = !p.noisy && !p.clipped && !p.exponential && !partial &&
                (p.results == 1 || (!p.aliased && p.vectors <= kMostTogether));
  for (int k = 0; k < p.vectors; ++k) direct &= p.native(p.in[k]) && p.adjacent(p.in[k]);
  for (int r = 0; r < p.results; ++r) direct &= p.native(p.out[r]) && p.adjacent(p.out[r]);
  const std::int64_t tile = direct ? kSdeRun : kSdeTile;
  const bool streamed =
      direct && p.results == 1 && !p.aliased && p.batch * p.n * std::int64_t(sizeof(T)) >= kStreamBytes;
  std::int64_t of = -1;
  Table<T> c;
  for (std::int64_t item = begin; item < end; ++item) {
    double* sums = partial ? partial + item * count : nullptr;
    if (sums) std::fill(sums, sums + count, 0.0);
    t.each(items, item, tile, [&](std::int64_t b, std::int64_t i, int n, const T* z) {
      if (b != of) t.coefficients(of = b, c);
      const T* v[kMaxJoined];
      for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, t.in[k]);
      v[p.vectors] = z;
      if (streamed) combine_streamed(p.terms(), c[0][0], v[0], c[0] + 1, v + 1, place<T>(p, p.out[0], b, i), n);
      else step_tile(t, c, b, i, n, v, sums);
    });
  }
  if (streamed) finish_streams();
}

// ---- short samples
// ---------------------------------------------------------------------------------------------------- The same with
// coefficients that change along the tile: column j's are at c[j].
template <int J, bool Scaled, typename T>
inline void combine_each_of(const T* a, const T* x, const T* const* c, const T* const* v, T* out, int n) {
  const T *factor[J + 1], *vector[J + 1];
#pragma GCC unroll 10
  for (int j = 0; j < J; ++j) factor[j] = c[j], vector[j] = v[j];
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    T sum = Scaled ? a[i] * x[i] : a[i];
#pragma GCC unroll 10
    for (int j = 0; j < J; ++j) sum = math::plus_term(sum, factor[j][i], vector[j][i]);
    out[i] = sum;
  }
}
template <bool Scaled, typename T>
inline void combine_each(int terms, const T* const* c, const T* x, const T* const* v, T* out, int n) {
  switch (terms) {
#define FK_TERMS(J) \
  case J:           \
    return combine_each_of<J, Scaled>(c[0], x, c + 1, v, out, n);
    FK_TERMS(0)
    FK_TERMS(1) FK_TERMS(2) FK_TERMS(3) FK_TERMS(4) FK_TERMS(5) FK_TERMS(6) FK_TERMS(7) FK_TERMS(8) FK_TERMS(9)
#undef FK_TERMS
  }
}

// Noise of samples [begin, end): lanes of one vector of Philox blocks belong to several of them.
template <typename T> void short_noise(Tiles<T>& t, std::int64_t begin, std::int64_t end, T* to) {
  const AffinePlan& p = t.p;
  constexpr int per = Tiles<T>::per;
  const std::int64_t first = p.element_offset / per, lead = p.element_offset - first * per;
  const int size = static_cast<int>(p.sample), blocks = static_cast<int>((lead + size + per - 1) / per);
  const int most = math::noise_chunk / blocks;
  const bool whole = blocks * per == size;  // nothing to leave out
  math::NoiseLanes at;
  alignas(64) std::uint32_t radius[2 * math::noise_chunk], angle[2 * math::noise_chunk];
  alignas(64) T made[per * math::noise_chunk];
  for (std::int64_t b = begin; b < end; b += most) {
    const int rows = static_cast<int>(std::min<std::int64_t>(most, end - b)), used = rows * blocks,
              n = (used + 7) / 8 * 8;
    for (int r = 0, l = 0; r < rows; ++r) {
      const std::uint64_t id = p.id(b + r);
      for (int q = 0; q < blocks; ++q, ++l)
        at.block[l] = static_cast<std::uint64_t>(first + q), at.counter1[l] = t.counter1, at.sample[l] = id;
    }
    for (int l = used; l < n; ++l) at.block[l] = at.counter1[l] = at.sample[l] = 0;
    math::noise_pairs(t.key, at, n, radius, angle);
    T* const z = whole ? to : made;
    if constexpr (per == 4) {
#pragma omp simd
      for (int i = 0; i < 2 * n; ++i) {
        const auto pair = math::normal_pair(radius[i], angle[i]);
        z[2 * i] = pair.first, z[2 * i + 1] = pair.second;
      }
    } else {
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const auto pair =
            math::normal_pair(math::Words{radius[2 * i], angle[2 * i], radius[2 * i + 1], angle[2 * i + 1]});
        z[2 * i] = pair.first, z[2 * i + 1] = pair.second;
      }
    }
    if (whole) {
      to += rows * size;
    } else if (size == 2) {
      for (int r = 0; r < rows; ++r, to += 2)
        to[0] = z[r * blocks * per + lead], to[1] = z[r * blocks * per + lead + 1];
    } else {
      for (int r = 0; r < rows; ++r)
        for (int k = 0; k < size; ++k) *to++ = z[r * blocks * per + lead + k];
    }
  }
}

// Column j of result r for each element of samples [begin, end).
template <typename T>
inline void spread(const AffinePlan& p, int r, int j, std::int64_t begin, std::int64_t end, T* to) {
  const int size = static_cast<int>(p.sample);
  if (!p.has_row()) {
    std::fill(to, to + (end - begin) * size, math::quiet_nan<T>());
    return;
  }
  const T* from = static_cast<const T*>(p.coefficients) + p.coefficient(begin, r, j);
  const std::int64_t stride = p.coefficient_stride;
  if (size == 1) {
    for (std::int64_t b = begin; b < end; ++b, from += stride) *to++ = *from;
  } else if (size == 2) {
    for (std::int64_t b = begin; b < end; ++b, from += stride, to += 2) to[0] = to[1] = *from;
  } else {
    for (std::int64_t b = begin; b < end; ++b, from += stride)
      for (int k = 0; k < size; ++k) *to++ = *from;
  }
}
// The inner products of each of `rows` short samples.
template <typename T> inline void short_dots(int joined, const T* const* v, int size, std::int64_t rows, double* sums) {
  const int count = joined * (joined + 1) / 2;
  if (size > 8) {
    const T* of[kMaxJoined];
    for (std::int64_t b = 0; b < rows; ++b, sums += count) {
      for (int k = 0; k < joined; ++k) of[k] = v[k] + b * size;
      std::fill(sums, sums + count, 0.0);
      all_dots(joined, of, size, sums);
    }
    return;
  }
  for (int i = 0, at = 0; i < joined; ++i)
    for (int j = i; j < joined; ++j, ++at) {
      const T *left = v[i], *right = v[j];
      for (std::int64_t b = 0; b < rows; ++b, left += size, right += size) {
        double sum = 0;
        for (int k = 0; k < size; ++k) sum += static_cast<double>(left[k]) * static_cast<double>(right[k]);
        sums[b * count + at] = sum;
      }
    }
}

template <typename T>
void step_short(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int joined = p.joined(), size = static_cast<int>(p.sample), count = p.sum_count();
  alignas(64) T column[kMaxColumns][kSdeTile];
  const T* c[kMaxColumns];
  for (int j = 0; j < kMaxColumns; ++j) c[j] = column[j];
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t b0 = item * items.group, b1 = std::min(p.batch, b0 + items.group), i = b0 * size;
    const int n = static_cast<int>(b1 - b0) * size;
    const T *v[kMaxJoined], *m1 = nullptr;
    for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], 0, i, n, t.in[k]);
    if (p.noisy) {
      short_noise(t, b0, b1, t.noise);
      v[p.vectors] = t.noise;
    }
    if (p.clipped) m1 = v[1];
    const bool hold = p.aliased && (p.results > 1 || partial);
    for (int r = 0; r < p.results; ++r) {
      for (int j = 0; j < p.columns; ++j) spread(p, r, j, b0, b1, column[j]);
      T *y = hold ? nullptr : place<T>(p, p.out[r], 0, i), *const direct = y, *const spare = t.work[4];
      if (!y) y = t.work[r];
      if (p.clipped) {
        const T *pc = c[p.columns - 2], *qc = c[p.columns - 1], range = static_cast<T>(p.clip), *x = v[0];
        T* to = t.work[3];
#pragma omp simd
        for (int k = 0; k < n; ++k) to[k] = math::clipped(x[k], m1[k], pc[k], qc[k], range);
        v[1] = to;
      }
      if (p.exponential) {
        combine_each<false>(joined - 1, c, v[0], v + 1, spare, n);
        exponentiate(v[0], spare, y, n);
      } else {
        combine_each<true>(joined - 1, c, v[0], v + 1, y, n);
      }
      if (partial && r == 0) {
        difference(y, v[0], spare, n);
        const T* of[kMaxJoined];
        for (int k = 0; k < joined; ++k) of[k] = k ? v[k] : spare;
        short_dots(joined, of, size, b1 - b0, partial + b0 * count);
      }
      if (!direct && !hold) put(p, p.out[r], 0, i, n, y);
    }
    if (hold)
      for (int r = 0; r < p.results; ++r) put(p, p.out[r], 0, i, n, t.work[r]);
  }
}

// ---- inner products
// ---------------------------------------------------------------------------------------------------
template <typename T>
void gram(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int count = p.sum_count();
  for (std::int64_t item = begin; item < end; ++item) {
    double* sums = partial + item * count;
    std::fill(sums, sums + count, 0.0);
    t.each(items, item, kSdeTile, [&](std::int64_t b, std::int64_t i, int n, const T* z) {
      const T* v[kMaxJoined];
      for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, t.in[k]);
      v[p.vectors] = z;
      all_dots(p.joined(), v, n, sums);
    });
  }
}

template <typename T>
void run(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  if (p.task == SdeTask::vjp) vjp<T>(p, items, begin, end, partial);
  else if (p.task == SdeTask::gram) gram<T>(p, items, begin, end, partial);
  else if (p.task == SdeTask::forms && partial) forms<T>(p, items, begin, end, partial);
  else if (p.task == SdeTask::forms) form_gradients<T>(p, items, begin, end);
  else if (p.task == SdeTask::lognormal) lognormal<T>(p, items, begin, end, partial);
  else if (p.sample) step_short<T>(p, items, begin, end, partial);
  else step<T>(p, items, begin, end, partial);
}

}  // namespace

void sde_items_run(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  if (p.wide) run<double>(p, items, begin, end, partial);
  else run<float>(p, items, begin, end, partial);
}

}  // namespace fokker::cpu::FK_ISA
