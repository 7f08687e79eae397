// Body of the random fills, compiled once per instruction set.
//
// Words of 64 Philox blocks at a time (of one sample, or of several short ones) go through the cache to the numbers and
// from there to the output: one write of the output, nothing else from memory.
#include "cpu/random.h"
#include "common/half.h"
#include "math/noise_fill.h"

namespace fokker::cpu::FK_ISA {
namespace {

using math::RandomKind;

template <typename S> constexpr bool kIsNative(DType t) {
  return sizeof(S) == 8 ? t == DType::f64 : t == DType::f32;  // a 32-bit word passes as f32
}

// from[0 .. n) to out[at], out[at + stride], ...
template <typename S>
inline void store(const S* from, std::int64_t n, void* out, DType dtype, std::int64_t at, std::int64_t stride) {
  const auto put = [=](auto* to, auto convert) {
    to += at;
    if (stride == 1) {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) to[i] = convert(from[i]);
    } else {
      for (std::int64_t i = 0; i < n; ++i) to[i * stride] = convert(from[i]);
    }
  };
  const auto same = [](S x) { return x; };
  if constexpr (std::is_same_v<S, double>) {
    put(static_cast<double*>(out), same);
  } else if constexpr (std::is_same_v<S, std::uint32_t>) {
    if (dtype == DType::i64) put(static_cast<std::int64_t*>(out), [](S x) { return static_cast<std::int64_t>(x); });
    else put(static_cast<S*>(out), same);
  } else {
    switch (dtype) {
      case DType::f16:
        return put(static_cast<Half*>(out), [](float x) { return to_half(x); });
      case DType::bf16:
        return put(static_cast<BFloat16*>(out), [](float x) { return to_bfloat16(x); });
      case DType::f64:
        return put(static_cast<double*>(out), [](float x) { return static_cast<double>(x); });
      default:
        return put(static_cast<float*>(out), same);
    }
  }
}

// Elements i .. i + n - 1 of sample b, wherever they lie.
template <typename S>
inline void scatter(const RandomPlan& p, const S* from, std::int64_t b, std::int64_t i, std::int64_t n) {
  const std::int64_t base = b * p.batch_stride;
  if (p.ndim < 2) return store(from, n, p.out, p.dtype, base + p.offset(i), p.ndim ? p.strides[0] : 1);
  const std::int64_t inner = p.shape[p.ndim - 1], stride = p.strides[p.ndim - 1];
  while (n > 0) {
    const std::int64_t run = std::min(n, inner - i % inner);
    store(from, run, p.out, p.dtype, base + p.offset(i), stride);
    from += run, i += run, n -= run;
  }
}

constexpr int kPadded = kRandomBlocks + 8;  // a run that starts inside a block touches one more
static_assert(kPadded <= 2 * math::noise_chunk && kRandomBlocks <= math::noise_chunk);

// Numbers of `blocks` blocks from their words by pairs, in the order of elements.
template <RandomKind kind, typename S>
inline void numbers(const std::uint32_t* radius, const std::uint32_t* angle, int blocks, S* out) {
  if constexpr (kind == RandomKind::bits) {
#pragma omp simd
    for (int i = 0; i < 2 * blocks; ++i) out[2 * i] = radius[i], out[2 * i + 1] = angle[i];
  } else if constexpr (std::is_same_v<S, double>) {
#pragma omp simd
    for (int i = 0; i < blocks; ++i) {
      const auto z =
          math::random_pair<kind>(math::Words{radius[2 * i], angle[2 * i], radius[2 * i + 1], angle[2 * i + 1]});
      out[2 * i] = z.first, out[2 * i + 1] = z.second;
    }
  } else if constexpr (kind == RandomKind::normal) {
#pragma omp simd
    for (int i = 0; i < 2 * blocks; ++i) {
      const auto z = math::random_pair<kind>(radius[i], angle[i]);
      out[2 * i] = z.first, out[2 * i + 1] = z.second;
    }
  } else {
    alignas(64) std::uint32_t word[4 * kPadded];
    numbers<RandomKind::bits>(radius, angle, blocks, word);
#pragma omp simd
    for (int i = 0; i < 4 * blocks; ++i) out[i] = math::random_element<kind>(word[i]);
  }
}

template <RandomKind kind, typename S> struct Filler {
  const RandomPlan& p;
  const std::uint64_t key = p.key();
  const std::uint32_t counter1 = p.counter1();
  static constexpr int per = std::is_same_v<S, double> ? 2 : 4;
  alignas(64) std::uint32_t radius[2 * kPadded], angle[2 * kPadded];
  alignas(64) S made[per * kPadded], term[per * kPadded];

  explicit Filler(const RandomPlan& plan) : p(plan) {}

  // Blocks [block, block + count) of sample b into `to`, which holds count rounded up to a multiple of 8.
  void blocks_of(std::int64_t b, std::int64_t block, int count, S* to) {
    const int n = (count + 7) / 8 * 8;
    const std::uint64_t id = p.id(b);
    if (!p.terms) {
      pairs(id, counter1, block, n);
      return numbers<kind>(radius, angle, n, to);
    }
    if constexpr (kind == RandomKind::normal) {
      const S* c = static_cast<const S*>(p.coefficients) + b * p.coefficient_stride;
      const std::int64_t* node = p.nodes + b * p.node_stride;
      std::fill(to, to + per * n, S(0));
      for (int j = 0; j < p.terms; ++j) {
        if (c[j] == S(0)) continue;
        pairs(id, static_cast<std::uint32_t>(node[j]), block, n);
        numbers<kind>(radius, angle, n, term);
        add(c[j], per * n, term, to);
      }
    }
  }
  void pairs(std::uint64_t id, std::uint32_t word1, std::int64_t block, int n) {
    math::noise_pairs(key, word1 & math::max_step, static_cast<math::Stream>(word1 >> 24), id,
                      static_cast<std::uint32_t>(block), n, radius, angle);
  }
  static void add(S c, int n, const S* z, S* to) {
#pragma omp simd
    for (int i = 0; i < n; ++i) to[i] = math::fma(c, z[i], to[i]);
  }

  // Elements i .. i + n - 1 of sample b, at most kRandomBlocks blocks of them.
  void run(std::int64_t b, std::int64_t i, std::int64_t n) {
    const std::int64_t e = p.element_offset + i, block = e / per;
    const int lead = static_cast<int>(e - block * per), count = static_cast<int>((lead + n + per - 1) / per);
    const bool whole = lead == 0 && count % 8 == 0 && n == static_cast<std::int64_t>(count) * per;
    if (whole && p.adjacent() && kIsNative<S>(p.dtype))
      return blocks_of(b, block, count, static_cast<S*>(p.out) + b * p.batch_stride + i);
    blocks_of(b, block, count, made);
    scatter(p, made + lead, b, i, n);
  }

  // Samples [begin, end), each of a few blocks: lanes of one vector belong to several of them.
  void group(std::int64_t begin, std::int64_t end, int blocks) {
    math::NoiseLanes at;
    const int rows = static_cast<int>(end - begin), used = rows * blocks, n = (used + 7) / 8 * 8;
    const auto first = static_cast<std::uint64_t>(p.first_block());
    for (int r = 0, l = 0; r < rows; ++r) {
      const std::uint64_t id = p.id(begin + r);
      for (int q = 0; q < blocks; ++q, ++l) at.block[l] = first + q, at.counter1[l] = counter1, at.sample[l] = id;
    }
    for (int l = used; l < n; ++l) at.block[l] = at.counter1[l] = at.sample[l] = 0;
    if (!p.terms) {
      math::noise_pairs(key, at, n, radius, angle);
      numbers<kind>(radius, angle, n, made);
    } else if constexpr (kind == RandomKind::normal) {
      const S* c = static_cast<const S*>(p.coefficients) + begin * p.coefficient_stride;
      std::fill(made, made + per * n, S(0));
      for (int j = 0; j < p.terms; ++j) {
        bool wanted = false;
        for (int r = 0; r < rows; ++r) {
          wanted |= c[r * p.coefficient_stride + j] != S(0);
          const auto node = static_cast<std::uint64_t>(p.nodes[(begin + r) * p.node_stride + j]);
          for (int q = 0; q < blocks; ++q) at.counter1[r * blocks + q] = node;
        }
        if (!wanted) continue;
        math::noise_pairs(key, at, n, radius, angle);
        numbers<kind>(radius, angle, n, term);
        for (int r = 0; r < rows; ++r) {
          const S factor = c[r * p.coefficient_stride + j];
          const int row = r * blocks * per;
          if (factor != S(0)) add(factor, blocks * per, term + row, made + row);
        }
      }
    }
    const std::int64_t lead = p.element_offset - p.first_block() * per;
    for (int r = 0; r < rows; ++r) scatter(p, made + r * blocks * per + lead, begin + r, 0, p.n);
  }
};

template <RandomKind kind, typename S>
void fill(const RandomPlan& p, const RandomItems& items, std::int64_t begin, std::int64_t end) {
  Filler<kind, S> filler(p);
  constexpr std::int64_t length = kRandomBlocks * Filler<kind, S>::per;
  const std::int64_t first = p.first_block() * Filler<kind, S>::per - p.element_offset;  // <= 0
  for (std::int64_t item = begin; item < end; ++item) {
    if (items.group > 1) {
      const std::int64_t b = item * items.group;
      filler.group(b, std::min(p.batch, b + items.group), static_cast<int>(items.blocks));
      continue;
    }
    const std::int64_t b = item / items.runs, r = item % items.runs;
    if (items.tiled) {
      const std::int64_t pixels = p.shape[1], at = r * length, n = std::min(length, pixels - at);
      for (std::int64_t channel = 0; channel < p.shape[0]; ++channel) filler.run(b, channel * pixels + at, n);
    } else {
      const std::int64_t from = std::max<std::int64_t>(0, first + r * length);
      filler.run(b, from, std::min(p.n, first + (r + 1) * length) - from);
    }
  }
}

}  // namespace

void random_fill(const RandomPlan& p, const RandomItems& items, std::int64_t begin, std::int64_t end) {
  const bool wide = p.dtype == DType::f64;
  switch (p.kind) {
    case RandomKind::bits:
      return fill<RandomKind::bits, std::uint32_t>(p, items, begin, end);
    case RandomKind::rademacher:
      return fill<RandomKind::rademacher, float>(p, items, begin, end);
#define FK_KIND(kind)                                                  \
  case RandomKind::kind:                                               \
    return wide ? fill<RandomKind::kind, double>(p, items, begin, end) \
                : fill<RandomKind::kind, float>(p, items, begin, end);
      FK_KIND(uniform)
      FK_KIND(normal)
      FK_KIND(gumbel)
      FK_KIND(exponential)
#undef FK_KIND
  }
}

}  // namespace fokker::cpu::FK_ISA
