// Bodies of the Gaussian mixture kernels, compiled once per instruction set: lanes are queries, a matrix's numbers are
// broadcast. A tile of queries is transposed once; a group of tiles shares each component's matrix.
#include "cpu/gaussian.h"

#include <algorithm>

#include "cpu/aligned.h"
#include "cpu/gaussian_vector.inc.h"
#include "math/elementary.h"

namespace fokker::cpu::FK_ISA {
namespace {

// Tiles of a group: their differences stay in the second-level cache while a matrix streams past.
template <typename T> std::int64_t group_size(std::int64_t d, std::int64_t rows) {
  const std::int64_t bytes = (d + rows) * kQueries<T> * static_cast<std::int64_t>(sizeof(T));
  return std::clamp<std::int64_t>((1 << 19) / bytes, 2, 8);
}

// Squared distances of a group's queries from one component: to[tile][query].
template <typename T> void distances(const GaussianJoint& p, std::int64_t component, const T* x, std::int64_t tiles,
                                     T* __restrict delta, T* __restrict to) {
  const std::int64_t d = p.d;
  const T* __restrict mean = of<T>(p.mean) + component * d;
  const T* __restrict root = of<T>(p.root) + component * p.matrix.stride;
  if (p.matrix.diagonal) {
    for (std::int64_t t = 0; t < tiles; ++t) {
      const T* __restrict at = x + t * d * kQueries<T>;
      Vec<T> sum[kWide] = {};
      for (std::int64_t j = 0; j < d; ++j) {
        const Vec<T> m = all(mean[j]), a = all(root[j]);
#pragma GCC unroll 4
        for (int v = 0; v < kWide; ++v) {
          const Vec<T> u = (load(at + j * kQueries<T> + v * kLanes<T>) - m) * a;
          sum[v] = fma(u, u, sum[v]);
        }
      }
      for (int v = 0; v < kWide; ++v) store(to + t * kQueries<T> + v * kLanes<T>, sum[v]);
    }
    return;
  }
  for (std::int64_t t = 0; t < tiles; ++t)
    for (std::int64_t j = 0; j < d; ++j) {
      const Vec<T> m = all(mean[j]);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const std::int64_t at = (t * d + j) * kQueries<T> + v * kLanes<T>;
        store(delta + at, Vec<T>(load(x + at) - m));
      }
    }
  std::fill(to, to + tiles * kQueries<T>, T(0));
  for (std::int64_t q = 0; q < p.matrix.panels(); ++q) {
    const std::int64_t columns = p.matrix.columns(q, d);
    for (std::int64_t t = 0; t < tiles; ++t) {
      Vec<T> acc[kRows][kWide] = {};
      multiply(root + q * d * kRows, delta + t * d * kQueries<T>, columns, acc);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        T* sum = to + t * kQueries<T> + v * kLanes<T>;
        Vec<T> s = load(sum);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) s = fma(acc[r][v], acc[r][v], s);
        store(sum, s);
      }
    }
  }
}

// Log-sum-exp over k of joint[k][width], with `shares` leaving exp(joint - log_sum) in its place.
template <typename T>
void reduce(T* __restrict joint, std::int64_t k, std::int64_t width, bool shares, T* __restrict log_sum) {
  for (std::int64_t q = 0; q < width; q += kLanes<T>) {
    Vec<T> top = all(-math::infinity<T>());
    for (std::int64_t c = 0; c < k; ++c) top = max(load(joint + c * width + q), top);
    const Vec<T> zero{};
    const Vec<T> finite = top - top == zero ? top : zero;  // all -inf: the sum below is 0 and its log -inf
    Vec<T> sum{};
    for (std::int64_t c = 0; c < k; ++c) {
      const Vec<T> logit = load(joint + c * width + q);
      Vec<T> e = exp2(Vec<T>((logit - finite) * all(static_cast<T>(kLog2E))));
      e = logit == logit ? e : logit;  // a NaN shows
      sum += e;
      if (shares) store(joint + c * width + q, e);
    }
    T held[kLanes<T>];
    store(held, sum);
#pragma omp simd
    for (int l = 0; l < kLanes<T>; ++l) held[l] = math::log(held[l]);
    store(log_sum + q, Vec<T>(load(held) + finite));
    if (!shares) continue;
    const Vec<T> scale = sum == zero ? zero : Vec<T>(all(T(1)) / sum);
    for (std::int64_t c = 0; c < k; ++c) store(joint + c * width + q, Vec<T>(load(joint + c * width + q) * scale));
  }
}

}  // namespace

template <typename T> std::int64_t gaussian_tile(const T*) { return kQueries<T>; }

template <typename T> void gaussian_joint_tiles(const GaussianJoint& p, std::int64_t begin, std::int64_t end) {
  const FlushSubnormals flush;
  const std::int64_t group = std::min(group_size<T>(p.d, 0), end - begin), wide = kQueries<T>;
  AlignedArray<T> x, delta, joint, sums;
  x.resize(group * p.d * wide);
  if (!p.matrix.diagonal) delta.resize(group * p.d * wide);
  joint.resize(std::max<std::int64_t>(p.k, 1) * group * wide);
  sums.resize(group * wide);
  const T* bias = of<T>(p.bias);
  for (std::int64_t t = begin; t < end; t += group) {
    const std::int64_t tiles = std::min(group, end - t), width = tiles * wide, first = t * wide;
    const std::int64_t count = std::min(width, p.n - first);
    transpose(of<T>(p.x), p.n, p.d, first, tiles, x.get());
    for (std::int64_t c = 0; c < p.k; ++c) {
      T* __restrict row = joint.get() + c * width;
      distances(p, c, x.get(), tiles, delta.get(), row);
      const Vec<T> b = all(bias[c]), half = all(T(-0.5));
      for (std::int64_t q = 0; q < width; q += kLanes<T>) store(row + q, fma(half, load(row + q), b));
    }
    if (p.log_sum) {
      reduce(joint.get(), p.k, width, p.shares, sums.get());
      std::copy(sums.get(), sums.get() + count, static_cast<T*>(p.log_sum) + first);
    }
    if (!p.joint) continue;
    for (std::int64_t c = 0; c < p.k; ++c)
      std::copy(joint.get() + c * width, joint.get() + c * width + count, static_cast<T*>(p.joint) + c * p.n + first);
  }
}

template <typename T> void gaussian_pull_tiles(const GaussianPull& p, std::int64_t begin, std::int64_t end) {
  const FlushSubnormals flush;
  const std::int64_t d = p.d, rows = p.matrix.rows, padded = p.matrix.panels() * kRows, wide = kQueries<T>;
  const std::int64_t group = std::min(group_size<T>(2 * d, padded), end - begin);
  AlignedArray<T> x, scaled, sums;
  x.resize(group * d * wide);
  scaled.resize(d * wide);
  sums.resize(group * padded * wide);
  for (std::int64_t t = begin; t < end; t += group) {
    const std::int64_t tiles = std::min(group, end - t), first = t * wide;
    transpose(of<T>(p.x), p.n, d, first, tiles, x.get());
    std::fill(sums.get(), sums.get() + tiles * padded * wide, T(0));
    for (std::int64_t c = 0; c < p.k; ++c) {
      const T* __restrict mean = of<T>(p.mean) + c * d;
      const T* __restrict pull = of<T>(p.pull) + c * p.matrix.stride;
      const T* offset = p.offset ? of<T>(p.offset) + c * rows : nullptr;
      for (std::int64_t i = 0; i < tiles; ++i) {
        const std::int64_t at = first + i * wide, count = std::min(wide, p.n - at);
        alignas(64) T held[kQueries<T>] = {};
        std::copy(of<T>(p.weight) + c * p.n + at, of<T>(p.weight) + c * p.n + at + count, held);
        if (all_zero(held)) continue;
        const T* from = x.get() + i * d * wide;
        T* to = sums.get() + i * padded * wide;
        Vec<T> w[kWide];
        for (int v = 0; v < kWide; ++v) w[v] = load(held + v * kLanes<T>);
        for (std::int64_t j = 0; j < d; ++j)
#pragma GCC unroll 4
          for (int v = 0; v < kWide; ++v) {
            const std::int64_t here = j * wide + v * kLanes<T>;
            const Vec<T> delta = load(from + here) - all(mean[j]), zero{};
            const Vec<T> s = w[v] == zero ? zero : Vec<T>(w[v] * delta);
            if (p.matrix.diagonal) store(to + here, fma(s, all(pull[j]), load(to + here)));
            else store(scaled.get() + here, s);
          }
        if (!p.matrix.diagonal)
          for (std::int64_t q = 0; q < p.matrix.panels(); ++q) {
            Vec<T> acc[kRows][kWide];
            T* sum = to + q * kRows * wide;
            for (int r = 0; r < kRows; ++r)
              for (int v = 0; v < kWide; ++v) acc[r][v] = load(sum + r * wide + v * kLanes<T>);
            multiply(pull + q * d * kRows, scaled.get(), p.matrix.columns(q, d), acc);
            for (int r = 0; r < kRows; ++r)
              for (int v = 0; v < kWide; ++v) store(sum + r * wide + v * kLanes<T>, acc[r][v]);
          }
        if (!offset) continue;
        for (std::int64_t j = 0; j < rows; ++j)
          for (int v = 0; v < kWide; ++v) {
            const std::int64_t here = j * wide + v * kLanes<T>;
            store(to + here, fma(w[v], all(offset[j]), load(to + here)));
          }
      }
    }
    T* out = static_cast<T*>(p.out);
    for (std::int64_t i = first; i < std::min(first + tiles * wide, p.n); ++i) {
      const T* from = sums.get() + (i - first) / wide * padded * wide + (i - first) % wide;
      for (std::int64_t j = 0; j < rows; ++j) out[i * rows + j] = from[j * wide];
    }
  }
}

// Lanes are coordinates here, and a component's rows are added in their order.
template <typename T> void gaussian_moments_of(const GaussianMoments& p, std::int64_t begin, std::int64_t end) {
  const FlushSubnormals flush;
  constexpr int lanes = kLanes<T>, vectors = 2, most = lanes * vectors;
  const std::int64_t d = p.d;
  for (std::int64_t c = begin; c < end; ++c) {
    const T *weight = of<T>(p.weight) + c * p.n, *mean = of<T>(p.mean) + c * d;
    double mass = 0;
    for (std::int64_t i = 0; i < p.n; ++i) mass += static_cast<double>(weight[i]);
    static_cast<T*>(p.mass)[c] = static_cast<T>(mass);
    for (std::int64_t j = 0; j < d; j += most) {
      const std::int64_t count = std::min<std::int64_t>(most, d - j);
      alignas(64) T m[most] = {}, row[most] = {}, sums[2][most];
      std::copy(mean + j, mean + j + count, m);
      Vec<T> first[vectors] = {}, second[vectors] = {};
      for (std::int64_t i = 0; i < p.n; ++i) {
        if (weight[i] == 0) continue;
        const T* x = of<T>(p.x) + i * d + j;
        if (count < most) {
          std::copy(x, x + count, row);
          x = row;
        }
        const Vec<T> w = all(weight[i]);
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
          const Vec<T> delta = load(x + v * lanes) - load(m + v * lanes), s = w * delta;
          first[v] += s;
          second[v] = fma(s, delta, second[v]);
        }
      }
      for (int v = 0; v < vectors; ++v) {
        store(sums[0] + v * lanes, first[v]);
        store(sums[1] + v * lanes, second[v]);
      }
      std::copy(sums[0], sums[0] + count, static_cast<T*>(p.first) + c * d + j);
      std::copy(sums[1], sums[1] + count, static_cast<T*>(p.second) + c * d + j);
    }
  }
}

#define FK_INSTANTIATE(T)                                                                  \
  template std::int64_t gaussian_tile<T>(const T*);                                        \
  template void gaussian_joint_tiles<T>(const GaussianJoint&, std::int64_t, std::int64_t); \
  template void gaussian_pull_tiles<T>(const GaussianPull&, std::int64_t, std::int64_t);   \
  template void gaussian_moments_of<T>(const GaussianMoments&, std::int64_t, std::int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cpu::FK_ISA
