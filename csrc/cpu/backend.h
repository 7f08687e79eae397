// CPU launchers on raw pointers: threads, chunks and the instruction set of this process around the kernels.
#pragma once

#include <vector>

#include "cpu/bessel.h"
#include "cpu/elementwise.h"
#include "cpu/isa.h"
#include "cpu/mixture.h"
#include "cpu/random.h"
#include "cpu/vmf.h"
#include "cpu/vmf_sample.h"
#include "math/vmf.h"

namespace fokker::cpu {

// Below these a second thread costs more than it gives (about 20 us of work).
constexpr std::int64_t kBesselGrain = 2048, kVmfGrain = 2048, kSampleGrain = 16384, kRandomGrain = 8192;

template <typename T> void bessel(math::Fn fn, int order, const Elementwise& e, DType out_dtype, void* const* out) {
  using Kernel = void (*)(math::Fn, int, const T*, const T*, T* const*, int);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(bessel, Kernel);
  const auto run = [&](const T* const* in, T* const* to, int n) { kernel(fn, order, in[0], in[1], to, n); };
  if (order == 0) for_each_chunk<T, 1>(e, out_dtype, out, kBesselGrain, run);
  else if (order == 1) for_each_chunk<T, 2>(e, out_dtype, out, kBesselGrain, run);
  else for_each_chunk<T, 3>(e, out_dtype, out, kBesselGrain, run);
}

template <typename T>
void vmf_scalar(math::VmfFn fn, std::int64_t dim, const Elementwise& e, DType out_dtype, void* const* out) {
  const auto kernel = FK_PER_ISA(vmf_scalar, T);
  for_each_chunk<T, 1>(e, out_dtype, out, kVmfGrain,
                       [&](const T* const* in, T* const* to, int n) { kernel(fn, dim, in[0], to[0], n); });
}

template <typename T> void vmf_bregman(std::int64_t dim, const Elementwise& e, DType out_dtype, void* const* out) {
  const auto kernel = FK_PER_ISA(vmf_bregman, T);
  for_each_chunk<T, 3>(e, out_dtype, out, kVmfGrain,
                       [&](const T* const* in, T* const* to, int n) { kernel(dim, in[0], in[1], to, n); });
}

// out = log C(k) + k mu.x, all of it in double; e: rows of x, rows of the mean, concentrations.
template <typename T> void vmf_log_prob(std::int64_t dim, const Elementwise& e, T* out) {
  const auto dot = FK_PER_ISA(row_dot, T);
  const auto scalar = FK_PER_ISA(vmf_scalar, double);
  parallel_for(e.numel, 1 + kSampleGrain / dim, [&](std::int64_t begin, std::int64_t end) {
    double k[kChunk], log_c[kChunk];
    for (std::int64_t at = begin; at < end; at += kChunk) {
      const int n = static_cast<int>(std::min<std::int64_t>(kChunk, end - at));
      for (int i = 0; i < n; ++i) k[i] = static_cast<const T*>(e.data[2])[e.offset(2, at + i)];
      scalar(math::VmfFn::log_normalizer, dim, k, log_c, n);
      for (int i = 0; i < n; ++i) {
        const T *row = static_cast<const T*>(e.data[0]) + e.offset(0, at + i),
                *mean = static_cast<const T*>(e.data[1]) + e.offset(1, at + i);
        const bool point = k[i] == math::infinity<double>();
        out[at + i] =
            point ? math::vmf_point_mass(row, mean, dim) : static_cast<T>(log_c[i] + k[i] * dot(row, mean, dim));
      }
    }
  });
}

// Partial sums over fixed blocks of rows, added in order: the same bits at any number of threads.
template <typename T>
void resultant(const T* x, const T* weights, std::int64_t n, std::int64_t d, double* partial, int blocks, double* out) {
  const auto kernel = FK_PER_ISA(resultant, T);
  const std::int64_t rows = (n + blocks - 1) / blocks;
  parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t from = std::min(n, b * rows), to = std::min(n, from + rows);
      kernel(x + from * d, d, weights ? weights + from : nullptr, to - from, d, partial + b * (d + 2));
    }
  });
  std::fill(out, out + d + 2, 0.0);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const double* p = partial + b * (d + 2);
    for (std::int64_t j = 0; j <= d; ++j) out[j] += p[j];
    out[d + 1] = p[d + 1] > out[d + 1] || p[d + 1] != p[d + 1] ? p[d + 1] : out[d + 1];
  }
}

template <typename T>
void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax) {
  const auto kernel = FK_PER_ISA(row_logsumexp, T);
  parallel_for(n, 1 + 16384 / (k + 1), [&](std::int64_t begin, std::int64_t end) {
    kernel(logits + begin * k, bias, end - begin, k, out + begin, softmax);
  });
}

inline void random_fill(const RandomPlan& p) {
  using Kernel = void (*)(const RandomPlan&, const RandomItems&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(random_fill, Kernel);
  const RandomItems items = random_items(p);
  const std::int64_t work = std::max<std::int64_t>(1, p.batch * items.blocks * (1 + p.terms) / items.items);
  parallel_for(items.items, 1 + kRandomGrain / work,
               [&](std::int64_t begin, std::int64_t end) { kernel(p, items, begin, end); });
}

}  // namespace fokker::cpu
