// Body of the resultant and row-wise log-sum-exp kernels, compiled once per instruction set.
#include <algorithm>

#include "cpu/mixture.h"
#include "math/elementary.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kLanes = 16;  // independent partial sums: the same association at every vector width

// Reads each row once: adds w * row to the sums (double) and returns |row|^2.
template <typename T> inline double add_row(const T* __restrict x, double w, std::int64_t d, double* __restrict sums) {
  double square[kLanes] = {};
  std::int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const double t = static_cast<double>(x[j + l]);
      square[l] = math::mad(t, t, square[l]);
      sums[j + l] = math::mad(w, t, sums[j + l]);
    }
  }
  double total = 0;
  for (; j < d; ++j) {
    const double t = static_cast<double>(x[j]);
    total = math::mad(t, t, total);
    sums[j] = math::mad(w, t, sums[j]);
  }
  for (int l = 0; l < kLanes; ++l) total += square[l];
  return total;
}

// The softmax switch is a template parameter: a branch inside the loop would keep it from being vectorised.
template <typename T, bool kSoftmax>
void logsumexp_rows(T* __restrict logits, const T* __restrict bias, std::int64_t n, std::int64_t k, T* __restrict out) {
  for (std::int64_t i = 0; i < n; ++i) {
    T* __restrict row = logits + i * k;
    T top = -math::infinity<T>();
#pragma omp simd reduction(max : top)
    for (std::int64_t j = 0; j < k; ++j) {
      row[j] += bias[j];
      top = row[j] > top ? row[j] : top;
    }
    const T shift = top - top == T(0) ? top : T(0);  // all -inf: the sum below is 0 and its log -inf
    T partial[kLanes] = {};
    std::int64_t j = 0;
    for (; j + kLanes <= k; j += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const T e = math::exp(row[j + l] - shift);
        partial[l] += e;
        if constexpr (kSoftmax) row[j + l] = e;
      }
    }
    T sum = 0;
    for (; j < k; ++j) {
      const T e = math::exp(row[j] - shift);
      sum += e;
      if constexpr (kSoftmax) row[j] = e;
    }
    for (int l = 0; l < kLanes; ++l) sum += partial[l];
    out[i] = shift + math::log(sum);
    if constexpr (kSoftmax) {
      const T scale = T(1) / sum;
#pragma omp simd
      for (std::int64_t j2 = 0; j2 < k; ++j2) row[j2] *= scale;
    }
  }
}

}  // namespace

template <typename T> double row_dot(const T* a, const T* b, std::int64_t d) {
  double partial[kLanes] = {};
  std::int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l)
      partial[l] = math::mad(static_cast<double>(a[j + l]), static_cast<double>(b[j + l]), partial[l]);
  }
  double sum = 0;
  for (; j < d; ++j) sum = math::mad(static_cast<double>(a[j]), static_cast<double>(b[j]), sum);
  for (int l = 0; l < kLanes; ++l) sum += partial[l];
  return sum;
}

template <typename T>
void resultant(const T* x, std::int64_t row_stride, const T* weights, std::int64_t n, std::int64_t d, double* out) {
  std::fill(out, out + d + 2, 0.0);
  for (std::int64_t i = 0; i < n; ++i) {
    const double w = weights ? static_cast<double>(weights[i]) : 1.0;
    const double square = add_row(x + i * row_stride, w, d, out);
    out[d] += w;
    const double off = math::abs(square - 1.0);
    out[d + 1] = off > out[d + 1] || off != off ? off : out[d + 1];  // a NaN row shows
  }
}

template <typename T>
void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax) {
  softmax ? logsumexp_rows<T, true>(logits, bias, n, k, out) : logsumexp_rows<T, false>(logits, bias, n, k, out);
}

template void resultant<float>(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, double*);
template void resultant<double>(const double*, std::int64_t, const double*, std::int64_t, std::int64_t, double*);
template double row_dot<float>(const float*, const float*, std::int64_t);
template double row_dot<double>(const double*, const double*, std::int64_t);
template void row_logsumexp<float>(float*, const float*, std::int64_t, std::int64_t, float*, bool);
template void row_logsumexp<double>(double*, const double*, std::int64_t, std::int64_t, double*, bool);

}  // namespace fokker::cpu::FK_ISA
