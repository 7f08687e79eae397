// Body of particle resampling and of the absorbing step, once per instruction set.
//
// Resampling: weights are read twice (their maximum, their exponentials), sums run in order in double. Absorbing: only
// the logits of positions that open now are read, once; the Gumbel race is run as they come, nothing is stored.
#include "cpu/particles.h"
#include "common/half.h"
#include "math/noise_fill.h"
#include "math/random.h"

#include <algorithm>
#include <memory>

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kPiece = 256;

template <typename T> inline T number_at(const void* data, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::f16:
      return static_cast<T>(to_float(static_cast<const Half*>(data)[i]));
    case DType::bf16:
      return static_cast<T>(to_float(static_cast<const BFloat16*>(data)[i]));
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(data)[i]);
    default:
      return static_cast<T>(static_cast<const float*>(data)[i]);
  }
}
template <typename T> inline void numbers_at(const void* data, DType dtype, std::int64_t at, int n, T* to) {
  const auto copy = [&](const auto* from, auto convert) {
#pragma omp simd
    for (int i = 0; i < n; ++i) to[i] = convert(from[at + i]);
  };
  switch (dtype) {
    case DType::f16:
      return copy(static_cast<const Half*>(data), [](Half h) { return static_cast<T>(to_float(h)); });
    case DType::bf16:
      return copy(static_cast<const BFloat16*>(data), [](BFloat16 h) { return static_cast<T>(to_float(h)); });
    case DType::f64:
      return copy(static_cast<const double*>(data), [](double x) { return static_cast<T>(x); });
    default:
      return copy(static_cast<const float*>(data), [](float x) { return static_cast<T>(x); });
  }
}
inline void store_at(void* data, DType dtype, std::int64_t i, double x) {
  switch (dtype) {
    case DType::f16:
      static_cast<Half*>(data)[i] = to_half(static_cast<float>(x));
      return;
    case DType::bf16:
      static_cast<BFloat16*>(data)[i] = to_bfloat16(static_cast<float>(x));
      return;
    case DType::f64:
      static_cast<double*>(data)[i] = x;
      return;
    default:
      static_cast<float*>(data)[i] = static_cast<float>(x);
  }
}

// ---- resampling -----------------------------------------------------------------------------------------------------
// w[j] = exp(l_j - max) with their sum and sum of squares; false where they are no weights.
inline bool weigh(const ResamplePlan& p, std::int64_t g, double* w, double& sum, double& squares) {
  const std::int64_t base = g * p.n;
  double top = -math::infinity<double>();
  bool fine = true;
  for (std::int64_t at = 0; at < p.n; at += kPiece) {
    const int n = static_cast<int>(std::min<std::int64_t>(kPiece, p.n - at));
    numbers_at(p.log_weights, p.dtype, base + at, n, w + at);
    double most = -math::infinity<double>();
    int odd = 0;
#pragma omp simd reduction(max : most) reduction(+ : odd)
    for (int i = 0; i < n; ++i) {
      const double x = w[at + i];
      odd += x != x;
      most = most < x ? x : most;
    }
    fine &= odd == 0;
    top = math::max(top, most);
  }
  if (!fine || top == -math::infinity<double>() || top == math::infinity<double>()) return false;
#pragma omp simd
  for (std::int64_t i = 0; i < p.n; ++i) w[i] = math::exp(w[i] - top);
  sum = squares = 0;
  for (std::int64_t i = 0; i < p.n; ++i) sum += w[i], squares += w[i] * w[i];
  return true;
}

// A group's uniform numbers, asked for in rising order, made many at a time.
class Uniforms {
 public:
  Uniforms(const ResamplePlan& p, std::uint64_t id) : p_(p), id_(id), key_(p.at.key()), step_(p.at.step_now()) {}
  double operator[](std::int64_t i) {
    if (i >= end_) make(i);
    return u_[i - end_ + kCount];
  }

 private:
  static constexpr int kBlocks = 32, kCount = 2 * kBlocks;
  void make(std::int64_t i) {
    const std::int64_t block = i / kCount * kBlocks;
    alignas(64) std::uint32_t high[kCount], low[kCount];
    math::noise_pairs(key_, step_, static_cast<math::Stream>(p_.stream), id_, static_cast<std::uint32_t>(block),
                      kBlocks, high, low);
#pragma omp simd
    for (int k = 0; k < kCount; ++k) u_[k] = math::uniform(high[k], low[k]);
    end_ = 2 * block + kCount;
  }
  const ResamplePlan& p_;
  const std::uint64_t id_, key_;
  const std::uint32_t step_;
  std::int64_t end_ = 0;  // of what is at hand
  alignas(64) double u_[kCount];
};

void resample_group(const ResamplePlan& p, std::int64_t g, double* w, double* rest) {
  double sum = 0, squares = 0;
  const bool fine = weigh(p, g, w, sum, squares);
  const double effective = fine ? sum * sum / squares : math::quiet_nan<double>();
  store_at(p.size, p.dtype, g, effective);
  std::int64_t* const found = p.ancestors + g * p.count;
  if (!p.wanted(effective)) {
    for (std::int64_t i = 0; i < p.count; ++i) {
      found[i] = i % p.n;
      store_at(p.new_weights, p.dtype, g * p.count + i, number_at<double>(p.log_weights, p.dtype, g * p.n + i % p.n));
    }
    return;
  }
  for (std::int64_t i = 0; i < p.count; ++i) store_at(p.new_weights, p.dtype, g * p.count + i, 0.0);
  const std::uint64_t id = p.at.id(g);
  Uniforms uniforms(p, id);
  const auto u = [&](std::int64_t i) { return uniforms[i]; };
  // The first j with cumulative[j] >= x, at most n - 1; without branches, which would be mispredicted half the time.
  const auto first_at_least = [&](const double* cumulative, double x) {
    const double* from = cumulative;
    for (std::int64_t left = p.n; left > 1;) {
      const std::int64_t half = left / 2;
      from += from[half - 1] < x ? half : 0;
      left -= half;
    }
    return from - cumulative;
  };
  if (p.method == ResampleMethod::residual) {
    const double factor = static_cast<double>(p.count) / sum;
    double copies = 0, left = 0;
    for (std::int64_t j = 0; j < p.n; ++j) {
      const double expected = w[j] * factor, whole = std::floor(expected);
      w[j] = copies += whole;
      rest[j] = left += expected - whole;
    }
    std::int64_t i = 0;
    for (std::int64_t j = 0; j < p.n; ++j)
      for (; i < p.count && static_cast<double>(i + 1) <= w[j]; ++i) found[i] = j;
    for (; i < p.count; ++i) found[i] = first_at_least(rest, u(i) * left);
    return;
  }
  double total = 0;
  for (std::int64_t j = 0; j < p.n; ++j) w[j] = total += w[j];
  if (p.method == ResampleMethod::multinomial) {
    for (std::int64_t i = 0; i < p.count; ++i) found[i] = first_at_least(w, u(i) * total);
    return;
  }
  const bool one = p.method == ResampleMethod::systematic;
  const double u0 = one ? u(0) : 0.0;
  std::int64_t j = 0;
  for (std::int64_t i = 0; i < p.count; ++i) {
    const double x = (static_cast<double>(i) + (one ? u0 : u(i))) / static_cast<double>(p.count) * total;
    while (j < p.n - 1 && w[j] < x) ++j;
    found[i] = j;
  }
}

// ---- absorbing ------------------------------------------------------------------------------------------------------
template <typename T> struct Best {
  T score = -math::infinity<T>();
  std::int64_t index = -1;
};

// Numbers [e, e + n) of a sample's Gumbel noise into `to`, which holds 3 blocks more; returns their place.
inline const float* gumbels(const AbsorbPlan& p, std::uint64_t key, std::uint32_t step, std::uint64_t id,
                            std::int64_t e, int n, float* to) {
  const std::int64_t block = e / 4;
  const int lead = static_cast<int>(e - 4 * block), count = ((lead + n + 3) / 4 + 7) / 8 * 8;
  alignas(64) std::uint32_t radius[2 * (kPiece / 4 + 8)], angle[2 * (kPiece / 4 + 8)];
  math::noise_pairs(key, step, static_cast<math::Stream>(p.race_stream), id, static_cast<std::uint32_t>(block), count,
                    radius, angle);
  alignas(64) std::uint32_t word[kPiece + 32];
#pragma omp simd
  for (int i = 0; i < 2 * count; ++i) word[2 * i] = radius[i], word[2 * i + 1] = angle[i];
#pragma omp simd
  for (int i = 0; i < 4 * count; ++i) to[i] = math::gumbel(word[i]);
  return to + lead;
}
inline const double* gumbels(const AbsorbPlan& p, std::uint64_t key, std::uint32_t step, std::uint64_t id,
                             std::int64_t e, int n, double* to) {
  const std::int64_t block = e / 2;
  const int lead = static_cast<int>(e - 2 * block), count = ((lead + n + 1) / 2 + 7) / 8 * 8;
  alignas(64) std::uint32_t radius[2 * (kPiece / 2 + 8)], angle[2 * (kPiece / 2 + 8)];
  math::noise_pairs(key, step, static_cast<math::Stream>(p.race_stream), id, static_cast<std::uint32_t>(block), count,
                    radius, angle);
#pragma omp simd
  for (int i = 0; i < 2 * count; ++i) to[i] = math::gumbel(radius[i], angle[i]);
  return to + lead;
}

// The winner of the race at one position; index -1 where no logit is above -inf.
template <typename T> Best<T> race(const AbsorbPlan& p, std::uint64_t key, std::uint32_t step, std::uint64_t id,
                                   std::int64_t position, std::int64_t at) {
  alignas(64) T score[kPiece], noise[kPiece + 32];
  const T scale = static_cast<T>(p.scale);
  Best<T> best;
  for (std::int64_t v = 0; v < p.size; v += kPiece) {
    const int n = static_cast<int>(std::min<std::int64_t>(kPiece, p.size - v));
    numbers_at(p.logits, p.dtype, at + v, n, score);
    if (!p.greedy) {
      const T* const g = gumbels(p, key, step, id, position * p.size + v, n, noise);
#pragma omp simd
      for (int i = 0; i < n; ++i) score[i] = score[i] * scale + g[i];
    }
    if (p.mask_id >= v && p.mask_id < v + n) score[p.mask_id - v] = -math::infinity<T>();
    T top = -math::infinity<T>();
#pragma omp simd reduction(max : top)
    for (int i = 0; i < n; ++i) {
      const T s = score[i] == score[i] ? score[i] : -math::infinity<T>();
      top = top < s ? s : top;
    }
    if (!(top > best.score)) continue;
    int i = 0;
    while (!(score[i] == top)) ++i;
    best = {top, v + i};
  }
  return best;
}

template <typename T> void absorb(const AbsorbPlan& p, std::int64_t begin, std::int64_t end) {
  const std::uint64_t key = p.at.key();
  const std::uint32_t step = p.at.step_now();
  std::int64_t held = -1;  // which block of words is at hand
  math::Words words{};
  for (std::int64_t q = begin; q < end; ++q) {
    const std::int64_t b = q / p.length, l = q % p.length;
    const std::int64_t token = p.tokens[b * p.token_strides[0] + l * p.token_strides[1]];
    p.out[q] = token;
    if (token != p.mask_id) continue;
    const std::uint64_t id = p.at.id(b);
    const std::int64_t block = b * ((p.length + 3) / 4) + l / 4;
    if (block != held) words = p.at.words(p.unmask_stream, id, static_cast<std::uint32_t>(l / 4)), held = block;
    const std::uint32_t w = (l & 3) == 0 ? words.w0 : (l & 3) == 1 ? words.w1 : (l & 3) == 2 ? words.w2 : words.w3;
    if (!(math::uniform(w) <= p.probability[b * p.probability_stride])) continue;
    const auto best = race<T>(p, key, step, id, l, b * p.logit_strides[0] + l * p.logit_strides[1]);
    if (best.index >= 0) p.out[q] = best.index;
  }
}

}  // namespace

void resample_groups(const ResamplePlan& p, std::int64_t begin, std::int64_t end) {
  const std::size_t n = static_cast<std::size_t>(p.n);
  const std::unique_ptr<double[]> work(new double[2 * n]);
  for (std::int64_t g = begin; g < end; ++g) resample_group(p, g, work.get(), work.get() + n);
}

void absorb_positions(const AbsorbPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.dtype == DType::f64) absorb<double>(p, begin, end);
  else absorb<float>(p, begin, end);
}

}  // namespace fokker::cpu::FK_ISA
