// Body of the steps of SDE samplers, their vector-Jacobian products and inner products, once per instruction set.
//
// One pass: a tile of every operand is read once into the first cache, noise is made there, results are written once.
#include "cpu/sde_tile.inc.h"

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

template <typename T> void step(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int count = p.sum_count();
  bool direct = !p.noisy && !p.clipped && !p.exponential && p.results == 1 && !partial;
  for (int k = 0; k < p.vectors; ++k) direct &= p.native(p.in[k]) && p.adjacent(p.in[k]);
  direct &= p.native(p.out[0]) && p.adjacent(p.out[0]);
  const std::int64_t tile = direct ? kSdeRun : kSdeTile;
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
      step_tile(t, c, b, i, n, v, sums);
    });
  }
}

// ---- short samples ----------------------------------------------------------------------------------------------------
// The same with coefficients that change along the tile: column j's are at c[j].
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
    FK_TERMS(0) FK_TERMS(1) FK_TERMS(2) FK_TERMS(3) FK_TERMS(4) FK_TERMS(5) FK_TERMS(6) FK_TERMS(7) FK_TERMS(8) FK_TERMS(9)
#undef FK_TERMS
  }
}

// Noise of samples [begin, end): lanes of one vector of Philox blocks belong to several of them.
template <typename T> void short_noise(Tiles<T>& t, std::int64_t begin, std::int64_t end, T* to) {
  const AffinePlan& p = t.p;
  constexpr int per = Tiles<T>::per;
  const std::int64_t first = p.element_offset / per, lead = p.element_offset - first * per;
  const int blocks = static_cast<int>((lead + p.sample + per - 1) / per), most = math::noise_chunk / blocks;
  math::NoiseLanes at;
  alignas(64) std::uint32_t radius[2 * math::noise_chunk], angle[2 * math::noise_chunk];
  alignas(64) T made[per * math::noise_chunk];
  for (std::int64_t b = begin; b < end; b += most) {
    const int rows = static_cast<int>(std::min<std::int64_t>(most, end - b)), used = rows * blocks, n = (used + 7) / 8 * 8;
    for (int r = 0, l = 0; r < rows; ++r) {
      const std::uint64_t id = p.id(b + r);
      for (int q = 0; q < blocks; ++q, ++l)
        at.block[l] = static_cast<std::uint64_t>(first + q), at.counter1[l] = t.counter1, at.sample[l] = id;
    }
    for (int l = used; l < n; ++l) at.block[l] = at.counter1[l] = at.sample[l] = 0;
    math::noise_pairs(t.key, at, n, radius, angle);
    if constexpr (per == 4) {
#pragma omp simd
      for (int i = 0; i < 2 * n; ++i) {
        const auto z = math::normal_pair(radius[i], angle[i]);
        made[2 * i] = z.first, made[2 * i + 1] = z.second;
      }
    } else {
#pragma omp simd
      for (int i = 0; i < n; ++i) {
        const auto z = math::normal_pair(math::Words{radius[2 * i], angle[2 * i], radius[2 * i + 1], angle[2 * i + 1]});
        made[2 * i] = z.first, made[2 * i + 1] = z.second;
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int k = 0; k < p.sample; ++k) *to++ = made[r * blocks * per + lead + k];
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
      const T* table = static_cast<const T*>(p.coefficients);
      const bool has = p.has_row();
      for (int j = 0; j < p.columns; ++j) {
        T* to = column[j];
        for (std::int64_t b = b0; b < b1; ++b) {
          const T value = has ? table[p.coefficient(b, r, j)] : math::quiet_nan<T>();
          for (int k = 0; k < size; ++k) *to++ = value;
        }
      }
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
        for (std::int64_t b = b0; b < b1; ++b) {
          for (int k = 0; k < joined; ++k) of[k] = (k ? v[k] : spare) + (b - b0) * size;
          double* sums = partial + b * count;
          std::fill(sums, sums + count, 0.0);
          all_dots(joined, of, size, sums);
        }
      }
      if (!direct && !hold) put(p, p.out[r], 0, i, n, y);
    }
    if (hold)
      for (int r = 0; r < p.results; ++r) put(p, p.out[r], 0, i, n, t.work[r]);
  }
}

// ---- inner products ---------------------------------------------------------------------------------------------------
template <typename T> void gram(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
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

// ---- vector-Jacobian product --------------------------------------------------------------------------------------------
// With s what the coefficients are linear in (y, or log(y / x)): h = the gradient in s. Then gradients in the vectors
// are sums of h over the results, and in the coefficients inner products with h.
template <typename T> inline void vjp_tile(Tiles<T>& t, const Table<T>& c, std::int64_t b, std::int64_t i, int n, const T* z,
                                           double* sums) {
  const AffinePlan& p = t.p;
  const int joined = p.joined(), results = p.results;
  const bool reads = p.exponential || p.clipped || sums;  // a linear step's vectors matter to its coefficients only
  const T *v[kMaxJoined + 1] = {}, *g[kMaxResults], *h[kMaxResults];
  if (reads)
    for (int k = 0; k < p.vectors; ++k) v[k] = view(p, p.in[k], b, i, n, t.in[k]);
  v[p.vectors] = z;
  const T* const m1 = p.clipped ? v[1] : nullptr;
  // work: g or h by result, gradient in m_1 before the clip by result, gradient in x, clipped m_1, spare
  T *const to_x = t.work[6], *const clipped = t.work[7], *const spare = t.work[8];
  T factor[kMaxResults];
  bool started = false;  // whether to_x holds anything yet
  for (int r = 0; r < results; ++r) {
    g[r] = h[r] = view(p, p.grad[r], b, i, n, t.work[r]);
    if (p.clipped) {
      clip(v[0], m1, c[r] + p.columns - 2, static_cast<T>(p.clip), clipped, n);
      v[1] = clipped;
    }
    if (p.exponential) {
      combine<false>(joined - 1, c[r][0], v[0], c[r] + 1, v + 1, spare, n);
      const T *const x = v[0], *const gr = g[r];
      T* const to_s = t.work[r];
#pragma omp simd
      for (int k = 0; k < n; ++k) {
        const T scaled = gr[k] * math::exp(spare[k]);
        to_x[k] = started ? to_x[k] + scaled : scaled;
        to_s[k] = scaled * x[k];
      }
      h[r] = to_s;
      started = true;
    }
    if (sums) {
      double* const of = sums + r * p.columns;
      if (p.exponential) {
        double total = 0;
        for (int k = 0; k < n; ++k) total += static_cast<double>(h[r][k]);
        of[0] += total;
      } else {
        dots(1, h[r], v, n, of);
      }
      if (joined > 1) dots(joined - 1, h[r], v + 1, n, of + 1);
    }
    if (p.clipped) {
      const T *const x = v[0], *const hr = h[r], pc = c[r][p.columns - 2], qc = c[r][p.columns - 1];
      const T range = static_cast<T>(p.clip), weight = c[r][1];
      T* const through = t.work[3 + r];
#pragma omp simd
      for (int k = 0; k < n; ++k)
        through[k] = math::unclipped(x[k], m1[k], pc, qc, range) ? weight * hr[k] : T(0);
      if (sums) {
        const T* both[2] = {x, m1};
        dots(2, through, both, n, sums + r * p.columns + p.columns - 2);
      }
    }
  }
  const auto write = [&](int k, auto&& fill) {
    if (!p.out[k].data) return;
    T *y = place<T>(p, p.out[k], b, i), *const direct = y;
    if (!y) y = spare;
    fill(y);
    if (!direct) put(p, p.out[k], b, i, n, y);
  };
  // The gradient in a vector: the sum over results of `factor` times h (or what went through the clip).
  const T* const passed[kMaxResults] = {t.work[3], t.work[4], t.work[5]};
  const auto sum_of = [&](const T* const* parts, T* y) {
    combine<true>(results - 1, factor[0], parts[0], factor + 1, parts + 1, y, n);
  };
  write(0, [&](T* y) {
    for (int r = 0; r < results; ++r) factor[r] = c[r][0];
    if (p.exponential) std::copy(to_x, to_x + n, y);
    else sum_of(h, y);
    if (!p.clipped) return;
    for (int r = 0; r < results; ++r) factor[r] = c[r][p.columns - 2];
    combine<true>(results, T(1), y, factor, passed, y, n);
  });
  for (int k = 1; k < p.vectors; ++k)
    write(k, [&](T* y) {
      const bool through = p.clipped && k == 1;
      for (int r = 0; r < results; ++r) factor[r] = c[r][through ? p.columns - 1 : k];
      sum_of(through ? passed : h, y);
    });
}

template <typename T> void vjp(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  Tiles<T> t(p);
  const int count = p.sum_count();
  std::int64_t of = -1;
  Table<T> c;
  for (std::int64_t item = begin; item < end; ++item) {
    double* sums = partial ? partial + item * count : nullptr;
    if (sums) std::fill(sums, sums + count, 0.0);
    t.each(items, item, kSdeTile, [&](std::int64_t b, std::int64_t i, int n, const T* z) {
      if (b != of) t.coefficients(of = b, c);
      vjp_tile(t, c, b, i, n, z, sums);
    });
  }
}

template <typename T>
void run(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  if (p.task == SdeTask::vjp) vjp<T>(p, items, begin, end, partial);
  else if (p.task == SdeTask::gram) gram<T>(p, items, begin, end, partial);
  else if (p.sample) step_short<T>(p, items, begin, end, partial);
  else step<T>(p, items, begin, end, partial);
}

}  // namespace

void sde_items_run(const AffinePlan& p, const SdeItems& items, std::int64_t begin, std::int64_t end, double* partial) {
  if (p.wide) run<double>(p, items, begin, end, partial);
  else run<float>(p, items, begin, end, partial);
}

}  // namespace fokker::cpu::FK_ISA
