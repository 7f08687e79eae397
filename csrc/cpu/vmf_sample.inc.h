// Body of the von Mises-Fisher sampling kernels, compiled once per instruction set.
//
// Each output row is written twice and read twice while it is in the first-level cache; each mean row is read twice;
// there is no other N x d array. Philox, Box-Muller and the rejection run over lanes of different counter blocks; every
// sum has 16 fixed partial sums per 1024 elements, added up in double: the same bits at every vector width.
#include <algorithm>

#include "cpu/vmf_sample.h"
#include "math/noise_fill.h"
#include "math/vmf_sample.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kRows = 64;   // samples whose cosines are drawn together
constexpr int kLanes = 16;  // Philox blocks a SIMD step, partial sums
constexpr int kTile = 1024;
constexpr int kShortRow = 64;  // up to here one SIMD step draws for several samples

struct Noise {
  std::uint64_t seed;
  std::uint32_t step;
};

// The words of block[l] of sample id[l].
inline math::LaneWords<kLanes> draw(Noise noise, math::Stream stream, const std::uint64_t* id,
                                    const std::uint32_t* block) {
  return math::noise_lanes<kLanes>(noise.seed, noise.step, stream, id, block);
}

// Tries attempt a for kLanes samples; accepted[l] is 1 or 0.
inline void attempt_lanes(std::int64_t dim, Noise noise, std::uint32_t a, const std::uint64_t* id,
                          const math::VmfEnvelope* envelope, double* w, double* one_minus_w, double* accepted) {
  std::uint32_t block[kLanes];
  double k[kLanes], b[kLanes], one_minus_b[kLanes];
  for (int l = 0; l < kLanes; ++l) {
    k[l] = envelope[l].concentration, b[l] = envelope[l].b, one_minus_b[l] = envelope[l].one_minus_b;
    block[l] = math::vmf_blocks_per_attempt * a;
  }
  const math::LaneWords<kLanes> p = draw(noise, math::Stream::vmf_rejection, id, block);
  if (dim == 3) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const auto c = math::vmf_cosine_dim3({k[l], b[l], one_minus_b[l]}, {p.w0[l], p.w1[l], p.w2[l], p.w3[l]});
      w[l] = c.w, one_minus_w[l] = c.one_minus_w, accepted[l] = 1.0;
    }
    return;
  }
  for (int l = 0; l < kLanes; ++l) ++block[l];
  const math::LaneWords<kLanes> t = draw(noise, math::Stream::vmf_rejection, id, block);
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    const auto c = math::vmf_attempt(dim, {k[l], b[l], one_minus_b[l]}, {p.w0[l], p.w1[l], p.w2[l], p.w3[l]},
                                     {t.w0[l], t.w1[l], t.w2[l], t.w3[l]});
    w[l] = c.cosine.w, one_minus_w[l] = c.cosine.one_minus_w, accepted[l] = c.accepted ? 1.0 : 0.0;
  }
}

// w and 1 - w of n <= kRows samples; those rejected are packed for the next attempt.
inline void cosines(std::int64_t dim, Noise noise, const std::uint64_t* ids, const math::VmfEnvelope* envelopes, int n,
                    math::VmfCosine* out) {
  int pending[kRows];
  for (int i = 0; i < n; ++i) {
    pending[i] = i;
    out[i] = {math::quiet_nan<double>(), math::quiet_nan<double>()};
  }
  for (std::uint32_t a = 0; n > 0 && a < math::vmf_max_attempts; ++a) {
    int rejected = 0;
    for (int g = 0; g < n; g += kLanes) {
      std::uint64_t id[kLanes];
      math::VmfEnvelope envelope[kLanes];
      double w[kLanes], one_minus_w[kLanes], accepted[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        const int i = pending[std::min(g + l, n - 1)];
        id[l] = ids[i], envelope[l] = envelopes[i];
      }
      attempt_lanes(dim, noise, a, id, envelope, w, one_minus_w, accepted);
      for (int l = 0; l < kLanes && g + l < n; ++l) {
        const int i = pending[g + l];
        if (accepted[l] != 0.0) out[i] = {w[l], one_minus_w[l]};
        else pending[rejected++] = i;
      }
    }
    n = rejected;
  }
}

template <typename T> constexpr int kPerBlock = sizeof(T) == 4 ? 4 : 2;  // normals of one block
template <typename T> constexpr int kDraw = kPerBlock<T> * kLanes;

// The normals of block[l] of sample id[l], in order, into z.
inline void normals(Noise noise, const std::uint64_t* id, const std::uint32_t* block, float* z) {
  const math::LaneWords<kLanes> p = draw(noise, math::Stream::vmf_tangent, id, block);
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    const auto n = math::normal_block({p.w0[l], p.w1[l], p.w2[l], p.w3[l]});
    z[4 * l] = n.z0, z[4 * l + 1] = n.z1, z[4 * l + 2] = n.z2, z[4 * l + 3] = n.z3;
  }
}
inline void normals(Noise noise, const std::uint64_t* id, const std::uint32_t* block, double* z) {
  const math::LaneWords<kLanes> p = draw(noise, math::Stream::vmf_tangent, id, block);
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    const auto n = math::normal_pair(math::Words{p.w0[l], p.w1[l], p.w2[l], p.w3[l]});
    z[2 * l] = n.first, z[2 * l + 1] = n.second;
  }
}

// Normals of one long row.
template <typename T> inline void row_normals(Noise noise, std::uint64_t sample, std::int64_t dim, T* z) {
  std::uint64_t id[kLanes];
  std::uint32_t block[kLanes];
  for (int l = 0; l < kLanes; ++l) id[l] = sample, block[l] = static_cast<std::uint32_t>(l);
  std::int64_t j = 0;
  for (; j + kDraw<T> <= dim; j += kDraw<T>) {
    normals(noise, id, block, z + j);
    for (int l = 0; l < kLanes; ++l) block[l] += kLanes;
  }
  if (j == dim) return;
  T last[kDraw<T>];
  normals(noise, id, block, last);
  std::copy(last, last + (dim - j), z + j);
}

template <typename T> inline double add_lanes(T* partial) {
  for (int h = kLanes / 2; h > 0; h /= 2)
    for (int l = 0; l < h; ++l) partial[l] += partial[l + h];
  return static_cast<double>(partial[0]);
}

struct Sums {
  double first, second;
};

// Sums of two products of a row's elements, f(j) = {first, second}.
template <typename T, typename F> inline Sums row_sums(std::int64_t dim, F f) {
  Sums total{0.0, 0.0};
  for (std::int64_t begin = 0; begin < dim; begin += kTile) {
    const std::int64_t end = std::min<std::int64_t>(begin + kTile, dim);
    T first[kLanes] = {}, second[kLanes] = {};
    std::int64_t j = begin;
    for (; j + kLanes <= end; j += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) f(j + l, first[l], second[l]);
    }
    for (int l = 0; j + l < end; ++l) f(j + l, first[l], second[l]);
    total.first += add_lanes(first);
    total.second += add_lanes(second);
  }
  return total;
}

// z, which may be `out`, becomes the sample. A row of normals that are all 0 (probability 2^-25 at d = 2 in float, at
// most 2^-50 elsewhere) takes the first tangent axis.
template <typename T>
inline void finish_row(const math::VmfCosine& cosine, const T* mean, std::int64_t dim, T* z, T* out) {
  z[0] = T(0);
  Sums sums = row_sums<T>(dim, [=](std::int64_t j, T& squares, T& products) {
    squares += z[j] * z[j];
    products += mean[j] * z[j];
  });
  if (sums.first == 0.0) {
    z[1] = T(1);
    sums = {1.0, static_cast<double>(mean[1])};
  }
  const auto tangent = math::vmf_tangent(cosine, static_cast<double>(mean[0]), sums.first, sums.second);
  const T scale = static_cast<T>(tangent.scale), slope = static_cast<T>(tangent.slope);
#pragma omp simd
  for (std::int64_t j = 0; j < dim; ++j) out[j] = scale * z[j] + slope * mean[j];
  out[0] = static_cast<T>(tangent.head);
}

}  // namespace

template <typename T> void vmf_sample(const T* mean, std::int64_t mean_stride, const T* concentration,
                                      std::int64_t concentration_stride, const std::int64_t* sample_ids,
                                      std::int64_t first_id, std::uint64_t seed, std::uint32_t step, std::int64_t dim,
                                      T* out, T* w, T* one_minus_w, std::int64_t begin, std::int64_t end,
                                      std::int64_t batch) {
  const Noise noise{seed, step};
  constexpr int per_block = kPerBlock<T>;
  const int blocks = dim <= kShortRow ? static_cast<int>((dim + per_block - 1) / per_block) : 0;  // 0: a long row
  alignas(64) T scratch[kRows * kShortRow + kDraw<T>];
  for (std::int64_t base = begin; base < end; base += kRows) {
    const int n = static_cast<int>(std::min<std::int64_t>(kRows, end - base));
    std::uint64_t ids[kRows];
    math::VmfEnvelope envelopes[kRows];
    math::VmfCosine cosine[kRows];
    const T* means[kRows];
    for (int i = 0; i < n; ++i) {
      const std::int64_t row = base + i, parameter = batch > 0 ? row % batch : row;
      ids[i] = static_cast<std::uint64_t>(sample_ids ? sample_ids[row] : first_id + row);
      envelopes[i] = math::vmf_envelope(dim, static_cast<double>(concentration[parameter * concentration_stride]));
      means[i] = mean + parameter * mean_stride;
    }
    cosines(dim, noise, ids, envelopes, n, cosine);
    for (int q = 0; q < n * blocks; q += kLanes) {
      std::uint64_t id[kLanes];
      std::uint32_t block[kLanes];
      for (int l = 0; l < kLanes; ++l) {
        const int i = std::min(q + l, n * blocks - 1);
        id[l] = ids[i / blocks], block[l] = static_cast<std::uint32_t>(i % blocks);
      }
      normals(noise, id, block, scratch + per_block * q);
    }
    for (int i = 0; i < n; ++i) {
      T* row = out + (base + i) * dim;
      if (!blocks) row_normals(noise, ids[i], dim, row);
      finish_row(cosine[i], means[i], dim, blocks ? scratch + per_block * blocks * i : row, row);
      if (w) w[base + i] = static_cast<T>(cosine[i].w);
      if (one_minus_w) one_minus_w[base + i] = static_cast<T>(cosine[i].one_minus_w);
    }
  }
}

template <typename T> void vmf_cosine_gradient(std::int64_t dim, const T* concentration, const T* mean,
                                               const T* one_minus_mean, const T* w, const T* one_minus_w, T* out,
                                               int n) {
  for (int g = 0; g < n; g += kLanes) {
    double part[8][kLanes], sum[kLanes] = {};  // the tails, one array a field: no strided loads in the loop over nodes
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const int i = g + l < n ? g + l : n - 1;
      const auto t = math::vmf_tail(dim, concentration[i], mean[i], one_minus_mean[i], w[i], one_minus_w[i]);
      part[0][l] = t.concentration, part[1][l] = t.power, part[2][l] = t.side, part[3][l] = t.half_sine;
      part[4][l] = t.half_cosine, part[5][l] = t.cotangent, part[6][l] = t.deviation, part[7][l] = t.span;
    }
    const auto tail = [&part](int l) {
      return math::VmfTail{part[0][l], part[1][l], part[2][l], part[3][l],
                           part[4][l], part[5][l], part[6][l], part[7][l]};
    };
    for (int node = 0; node < math::vmf_nodes; ++node) {
      const double x = math::vmf_node(node), c = math::vmf_weight(node);
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) sum[l] += c * math::vmf_tail_term(tail(l), x);
    }
    for (int l = 0; l < kLanes && g + l < n; ++l) out[g + l] = static_cast<T>(math::vmf_tail_result(tail(l), sum[l]));
  }
}

// x = w mu + sqrt(1 - w^2) xi moves with k by dw/dk (mu - w / sqrt(1 - w^2) xi), and with mu by the rotation that
// carries mu along: dx = w dmu - (x.dmu) mu. Hence grad_mean = w g - (g.mu) x, which is tangent at mu, and
//   grad_cosine = g.mu - w (g.(x - w mu)) / (1 - w^2),   g.(x - w mu) = g.(x - mu) + (1 - w) g.mu.
template <typename T> void vmf_sample_backward(const T* grad, const T* x, const T* mean, std::int64_t mean_stride,
                                               const T* w, const T* one_minus_w, std::int64_t dim, T* grad_mean,
                                               T* grad_cosine, std::int64_t begin, std::int64_t end,
                                               std::int64_t batch) {
  for (std::int64_t i = begin; i < end; ++i) {
    const T *g = grad + i * dim, *xi = x + i * dim, *mu = mean + (batch > 0 ? i % batch : i) * mean_stride;
    const Sums sums = row_sums<T>(dim, [=](std::int64_t j, T& along, T& across) {
      along += g[j] * mu[j];
      across += g[j] * (xi[j] - mu[j]);
    });
    const double rest = static_cast<double>(one_minus_w[i]), square = rest * (2.0 - rest);
    const double across = sums.second + rest * sums.first, cosine = static_cast<double>(w[i]);
    grad_cosine[i] = static_cast<T>(square == 0.0 ? 0.0 : sums.first - cosine * across / square);
    const T along = static_cast<T>(sums.first), c = w[i];
    T* to = grad_mean + i * dim;
#pragma omp simd
    for (std::int64_t j = 0; j < dim; ++j) to[j] = c * g[j] - along * xi[j];
  }
}

#define FK_INSTANTIATE(T)                                                                                            \
  template void vmf_sample<T>(const T*, std::int64_t, const T*, std::int64_t, const std::int64_t*, std::int64_t,     \
                              std::uint64_t, std::uint32_t, std::int64_t, T*, T*, T*, std::int64_t, std::int64_t,    \
                              std::int64_t);                                                                         \
  template void vmf_cosine_gradient<T>(std::int64_t, const T*, const T*, const T*, const T*, const T*, T*, int);     \
  template void vmf_sample_backward<T>(const T*, const T*, const T*, std::int64_t, const T*, const T*, std::int64_t, \
                                       T*, T*, std::int64_t, std::int64_t, std::int64_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cpu::FK_ISA
