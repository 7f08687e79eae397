// Body of the Gaussian mixtures whose queries each have their noise level, compiled once per instruction set.
//
// Lanes are queries. A component is taken once: its density under every query's noise, then its part of the sums, which
// are scaled to the largest density so far. The logarithm of a determinant is that of a product of mantissas.
#include "cpu/gaussian.h"
#include "cpu/gaussian_levels_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

// delta^T C^-1 delta and log det C of a tile; left in s: delta / c (diagonal; full in its basis), P^T delta / c and
// what P makes of it (low rank). `inverse`: 1 / c of what has one variance.
template <GaussianLevels::Kind kKind, typename T>
void densities(const GaussianLevels& p, const LevelsScratch<T>& s, const Queries<T>& at, const Component<T>& c,
               Vec<T> (&squared)[kWide], Vec<T> (&inverse)[kWide], T* __restrict log_det) {
  constexpr bool isotropic = kKind == GaussianLevels::kIsotropic, low_rank = kKind == GaussianLevels::kLowRank;
  constexpr bool turned = low_rank || kKind == GaussianLevels::kFull;
  Vec<T> base[kWide];  // the variance without v
  T single[kQueries<T>];
  for (int v = 0; v < kWide; ++v) {
    squared[v] = Vec<T>{};
    base[v] = low_rank ? fma(at.square[v], all(c.floor), at.noise[v]) : at.noise[v];
    if constexpr (isotropic || low_rank) {
      const Vec<T> variance = isotropic ? fma(at.square[v], all(c.variance[0]), base[v]) : base[v];
      inverse[v] = reciprocal(variance);
      store(single + v * kLanes<T>, variance);
    }
  }
  if constexpr (isotropic) {
    for (std::int64_t j = 0; j < p.d; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> u = away(s, at, c.mean, j, v);
        squared[v] = fma(u, u, squared[v]);
      }
    for (int v = 0; v < kWide; ++v) squared[v] *= inverse[v];
#pragma omp simd
    for (int q = 0; q < kQueries<T>; ++q) log_det[q] = static_cast<T>(p.d) * math::log(single[q]);
    return;
  }
  if constexpr (turned) {
    for (std::int64_t j = 0; j < p.d; ++j)
      for (int v = 0; v < kWide; ++v) store(cell(s.delta, j, v), away(s, at, c.mean, j, v));
    product<false>(c.turned, s.delta.get(), p.rank, p.d, s.solved.get());
  }
  LogProduct<T> determinant;
  for (std::int64_t begin = 0; begin < p.rank; begin += BitsOf<T>::most) {
    const std::int64_t end = std::min<std::int64_t>(p.rank, begin + BitsOf<T>::most);
    for (std::int64_t j = begin; j < end; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> variance = fma(at.square[v], all(c.variance[j]), base[v]);
        const Vec<T> u = turned ? load(cell(s.solved, j, v)) : away(s, at, c.mean, j, v);
        const Vec<T> t = u * reciprocal(variance);
        store(cell(s.solved, j, v), t);
        squared[v] = fma(low_rank ? t : u, t, squared[v]);
        determinant.times(v, variance);
      }
    determinant.normalise();
  }
  determinant.log(p.rank, log_det);
  if constexpr (low_rank) {
    // z = delta - a^2 P h with h = P^T delta / (c_0 + a^2 v): the distance is |z|^2 / c_0 + a^2 |h|^2, C^-1 delta z /
    // c_0
    product<false>(c.basis, s.solved.get(), p.d, p.rank, s.moved.get());
    Vec<T> rest[kWide] = {};
    for (std::int64_t j = 0; j < p.d; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> z = fma(Vec<T>(-at.square[v]), load(cell(s.moved, j, v)), load(cell(s.delta, j, v)));
        store(cell(s.delta, j, v), z);
        rest[v] = fma(z, z, rest[v]);
      }
    for (int v = 0; v < kWide; ++v) squared[v] = fma(at.square[v], squared[v], Vec<T>(rest[v] * inverse[v]));
#pragma omp simd
    for (int q = 0; q < kQueries<T>; ++q)
      log_det[q] = math::mad(static_cast<T>(p.d - p.rank), math::log(single[q]), log_det[q]);
  }
}

// sums += w C^-1 delta
template <GaussianLevels::Kind kKind, typename T>
void toward_score(const GaussianLevels& p, const LevelsScratch<T>& s, const Queries<T>& at, const Component<T>& c,
                  const Vec<T> (&w)[kWide], const Vec<T> (&inverse)[kWide]) {
  if constexpr (kKind == GaussianLevels::kFull) {
    for (std::int64_t j = 0; j < p.rank; ++j)
      for (int v = 0; v < kWide; ++v) store(cell(s.scaled, j, v), Vec<T>(w[v] * load(cell(s.solved, j, v))));
    product<true>(c.basis, s.scaled.get(), p.d, p.rank, s.score.get());
  } else {
    constexpr bool diagonal = kKind == GaussianLevels::kDiagonal, low_rank = kKind == GaussianLevels::kLowRank;
    Vec<T> factor[kWide];
    for (int v = 0; v < kWide; ++v) factor[v] = diagonal ? w[v] : Vec<T>(w[v] * inverse[v]);
    for (std::int64_t j = 0; j < p.d; ++j)
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> u = diagonal   ? load(cell(s.solved, j, v))
                         : low_rank ? load(cell(s.delta, j, v))
                                    : away(s, at, c.mean, j, v);
        store(cell(s.score, j, v), fma(factor[v], u, load(cell(s.score, j, v))));
      }
  }
}

// sums += w (m + a S C^-1 delta)
template <GaussianLevels::Kind kKind, typename T>
void toward_posterior(const GaussianLevels& p, const LevelsScratch<T>& s, const Queries<T>& at, const Component<T>& c,
                      const Vec<T> (&w)[kWide], const Vec<T> (&inverse)[kWide]) {
  constexpr bool isotropic = kKind == GaussianLevels::kIsotropic, diagonal = kKind == GaussianLevels::kDiagonal;
  constexpr bool low_rank = kKind == GaussianLevels::kLowRank, full = kKind == GaussianLevels::kFull;
  Vec<T> pulled[kWide], shrunk[kWide];  // w a, w a v / c
  for (int v = 0; v < kWide; ++v) {
    pulled[v] = w[v] * at.alpha[v];
    shrunk[v] = pulled[v] * inverse[v] * all(isotropic ? c.variance[0] : c.floor);
  }
  if constexpr (full) {
    for (std::int64_t j = 0; j < p.rank; ++j)
      for (int v = 0; v < kWide; ++v)
        store(cell(s.scaled, j, v), Vec<T>(pulled[v] * all(c.variance[j]) * load(cell(s.solved, j, v))));
    product<true>(c.basis, s.scaled.get(), p.d, p.rank, s.posterior.get());
  }
  for (std::int64_t j = 0; j < p.d; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) {
      Vec<T> sum = fma(w[v], all(c.mean[j]), load(cell(s.posterior, j, v)));
      if constexpr (diagonal) sum = fma(Vec<T>(pulled[v] * all(c.variance[j])), load(cell(s.solved, j, v)), sum);
      if constexpr (isotropic) sum = fma(shrunk[v], away(s, at, c.mean, j, v), sum);
      if constexpr (low_rank) {
        sum = fma(shrunk[v], load(cell(s.delta, j, v)), sum);
        sum = fma(pulled[v], load(cell(s.moved, j, v)), sum);
      }
      store(cell(s.posterior, j, v), sum);
    }
}

template <typename T>
void write(const AlignedArray<T>& from, const T* scale, std::int64_t d, std::int64_t count, T* out) {
  for (std::int64_t q = 0; q < count; ++q)
    for (std::int64_t j = 0; j < d; ++j) out[q * d + j] = from[j * kQueries<T> + q] * scale[q];
}

template <typename T> void scale(const AlignedArray<T>& sums, std::int64_t rows, const Vec<T> (&factor)[kWide]) {
  for (std::int64_t j = 0; j < rows; ++j)
    for (int v = 0; v < kWide; ++v) store(cell(sums, j, v), Vec<T>(load(cell(sums, j, v)) * factor[v]));
}

template <typename T> inline Vec<T> powers(Vec<T> logs) { return exp2(Vec<T>(logs * all(static_cast<T>(kLog2E)))); }

template <GaussianLevels::Kind kKind, typename T>
void tiles_of(const GaussianLevels& p, std::int64_t begin, std::int64_t end) {
  constexpr T limit = 32;  // the sums are scaled anew where a density is e^32 times the largest before
  constexpr std::int64_t wide = kQueries<T>;
  const LevelsScratch<T> s(p);
  const Vec<T> zero{}, lowest = all(-math::infinity<T>()), missing = all(math::quiet_nan<T>());
  T log_det[wide], held[wide], inverse_sum[wide];
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t first = t * wide, count = std::min(wide, p.n - first);
    transpose(of<T>(p.x), p.n, p.d, first, 1, s.x.get());
    const Queries<T> at(p, first);
    if (p.score) std::fill(s.score.get(), s.score.get() + p.panels(p.d) * kRows * wide, T(0));
    if (p.posterior) std::fill(s.posterior.get(), s.posterior.get() + p.panels(p.d) * kRows * wide, T(0));
    Vec<T> top[kWide], sum[kWide] = {};
    for (auto& m : top) m = lowest;
    bool some = false;  // sums that are not 0
    for (std::int64_t c = 0; c < p.k; ++c) {
      const Component<T> component(p, s, c);
      Vec<T> squared[kWide], inverse[kWide] = {}, logits[kWide], gap{};
      densities<kKind>(p, s, at, component, squared, inverse, log_det);
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> least = fma(at.square[v], all(component.least), at.noise[v]);
        const Vec<T> total = squared[v] + load(log_det + v * kLanes<T>);
        logits[v] = fma(all(T(-0.5)), total, all(component.bias));
        logits[v] = least >= all(math::detail::Format<T>::min_normal) ? logits[v] : missing;
        gap = max(logits[v] > top[v] ? Vec<T>(logits[v] - top[v]) : zero, gap);
        store(held + v * kLanes<T>, squared[v]);
        if (p.joint) store(cell(s.joint, c, v), logits[v]);
      }
      if (p.squared) std::copy(held, held + count, static_cast<T*>(p.squared) + c * p.n + first);
      if (max_lanes(gap) > limit) {
        Vec<T> factor[kWide];
        for (int v = 0; v < kWide; ++v) {
          const Vec<T> now = max(logits[v], top[v]);
          factor[v] = powers<T>(now > top[v] ? Vec<T>(top[v] - now) : zero);
          top[v] = now;
          sum[v] *= factor[v];
        }
        if (some && p.score) scale(s.score, p.d, factor);
        if (some && p.posterior) scale(s.posterior, p.d, factor);
      }
      Vec<T> w[kWide];
      for (int v = 0; v < kWide; ++v) {
        const Vec<T> shift = top[v] == lowest ? zero : top[v];
        w[v] = powers<T>(Vec<T>(logits[v] - shift));
        w[v] = logits[v] == logits[v] ? w[v] : logits[v];  // a NaN shows
        sum[v] += w[v];
        store(held + v * kLanes<T>, w[v]);
      }
      if ((!p.score && !p.posterior) || all_zero(held)) continue;
      some = true;
      if (p.score) toward_score<kKind>(p, s, at, component, w, inverse);
      if (p.posterior) toward_posterior<kKind>(p, s, at, component, w, inverse);
    }
    for (int v = 0; v < kWide; ++v) {
      store(held + v * kLanes<T>, sum[v]);
      store(inverse_sum + v * kLanes<T>, sum[v] == zero ? zero : Vec<T>(all(T(1)) / sum[v]));
    }
#pragma omp simd
    for (int q = 0; q < wide; ++q) held[q] = math::log(held[q]);
    for (int v = 0; v < kWide; ++v) {
      const Vec<T> shift = top[v] == lowest ? zero : top[v];
      store(held + v * kLanes<T>, Vec<T>(load(held + v * kLanes<T>) + shift));
      if (p.joint && p.shares)
        for (std::int64_t c = 0; c < p.k; ++c) {
          const Vec<T> logit = load(cell(s.joint, c, v)), e = powers<T>(Vec<T>(logit - shift));
          store(cell(s.joint, c, v), Vec<T>((logit == logit ? e : logit) * load(inverse_sum + v * kLanes<T>)));
        }
    }
    std::copy(held, held + count, static_cast<T*>(p.log_sum) + first);
    if (p.joint)
      for (std::int64_t c = 0; c < p.k; ++c)
        std::copy(s.joint.get() + c * wide, s.joint.get() + c * wide + count,
                  static_cast<T*>(p.joint) + c * p.n + first);
    if (p.posterior) write(s.posterior, inverse_sum, p.d, count, static_cast<T*>(p.posterior) + first * p.d);
    for (T& q : inverse_sum) q = -q;
    if (p.score) write(s.score, inverse_sum, p.d, count, static_cast<T*>(p.score) + first * p.d);
  }
}

}  // namespace

template <typename T> void gaussian_levels_tiles(const GaussianLevels& p, std::int64_t begin, std::int64_t end) {
  const FlushSubnormals flush;
  switch (p.kind) {
    case GaussianLevels::kIsotropic:
      return tiles_of<GaussianLevels::kIsotropic, T>(p, begin, end);
    case GaussianLevels::kDiagonal:
      return tiles_of<GaussianLevels::kDiagonal, T>(p, begin, end);
    case GaussianLevels::kFull:
      return tiles_of<GaussianLevels::kFull, T>(p, begin, end);
    case GaussianLevels::kLowRank:
      return tiles_of<GaussianLevels::kLowRank, T>(p, begin, end);
  }
}

template void gaussian_levels_tiles<float>(const GaussianLevels&, std::int64_t, std::int64_t);
template void gaussian_levels_tiles<double>(const GaussianLevels&, std::int64_t, std::int64_t);

}  // namespace fokker::cpu::FK_ISA
