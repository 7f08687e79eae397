// Row-wise log-sum-exp of mixture logits, in place: out = log sum_k exp(l_k + b_k), shares exp(l_k + b_k - out).
//
// Bytes a row of k: k read, and k written when the shares are wanted; a row is held in registers up to k = 256, beyond
// that in the L1 cache between its passes.
#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// What is taken off the exponents; 0 for rows whose maximum is infinite, which then sum to 0 or inf by themselves.
template <typename T> __device__ __forceinline__ T shift_of(T top) { return top - top == T(0) ? top : T(0); }

// One warp a row of at most 32 kItems entries.
template <typename T, int kItems> __global__ void __launch_bounds__(kThreads)
    row_logsumexp_warp(T* __restrict__ logits, const T* __restrict__ bias, std::int64_t n, int k, T* __restrict__ out,
                       bool softmax) {
  const int lane = threadIdx.x % kWarp;
  T b[kItems];
#pragma unroll
  for (int c = 0; c < kItems; ++c) b[c] = lane + c * kWarp < k ? bias[lane + c * kWarp] : -math::infinity<T>();
  const std::int64_t stride = std::int64_t(gridDim.x) * kWarps;
  for (std::int64_t i = std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp; i < n; i += stride) {
    T* row = logits + i * k;
    T v[kItems], top = -math::infinity<T>(), sum = 0;
#pragma unroll
    for (int c = 0; c < kItems; ++c) {
      v[c] = lane + c * kWarp < k ? row[lane + c * kWarp] + b[c] : -math::infinity<T>();
      top = Max{}(top, v[c]);
    }
    const T shift = shift_of(warp_reduce(top, Max{}));
#pragma unroll
    for (int c = 0; c < kItems; ++c) {
      v[c] = math::exp(v[c] - shift);
      sum += v[c];
    }
    sum = warp_reduce(sum, Sum{});
    if (lane == 0) out[i] = shift + math::log(sum);
    if (!softmax) continue;
    const T scale = T(1) / sum;
#pragma unroll
    for (int c = 0; c < kItems; ++c)
      if (lane + c * kWarp < k) row[lane + c * kWarp] = v[c] * scale;
  }
}

// One block a row of any length.
template <typename T> __global__ void __launch_bounds__(kThreads)
    row_logsumexp_block(T* __restrict__ logits, const T* __restrict__ bias, std::int64_t n, std::int64_t k,
                        T* __restrict__ out, bool softmax) {
  for (std::int64_t i = blockIdx.x; i < n; i += gridDim.x) {
    T* row = logits + i * k;
    T top = -math::infinity<T>(), sum = 0;
    for (std::int64_t j = threadIdx.x; j < k; j += kThreads) top = Max{}(top, row[j] + bias[j]);
    const T shift = shift_of(block_reduce<kThreads>(top, Max{}));
    for (std::int64_t j = threadIdx.x; j < k; j += kThreads) sum += math::exp((row[j] + bias[j]) - shift);
    sum = block_reduce<kThreads>(sum, Sum{});
    if (threadIdx.x == 0) out[i] = shift + math::log(sum);
    if (!softmax) continue;
    const T scale = T(1) / sum;
    for (std::int64_t j = threadIdx.x; j < k; j += kThreads) row[j] = math::exp((row[j] + bias[j]) - shift) * scale;
  }
}

template <typename T, int kItems>
void run_warp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax, cudaStream_t stream) {
  FK_LAUNCH((row_logsumexp_warp<T, kItems>), blocks_for(n, kWarps, 16384), kThreads, 0, stream, logits, bias, n, int(k),
            out, softmax);
}

}  // namespace

template <typename T> void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax,
                                         cudaStream_t stream) {
  if (n == 0) return;
  if (k <= 32) run_warp<T, 1>(logits, bias, n, k, out, softmax, stream);
  else if (k <= 64) run_warp<T, 2>(logits, bias, n, k, out, softmax, stream);
  else if (k <= 128) run_warp<T, 4>(logits, bias, n, k, out, softmax, stream);
  else if (k <= 256) run_warp<T, 8>(logits, bias, n, k, out, softmax, stream);
  else
    FK_LAUNCH((row_logsumexp_block<T>), blocks_for(n, 1, 65536), kThreads, 0, stream, logits, bias, n, k, out, softmax);
  check_launch("row_logsumexp");
}

template void row_logsumexp<float>(float*, const float*, std::int64_t, std::int64_t, float*, bool, cudaStream_t);
template void row_logsumexp<double>(double*, const double*, std::int64_t, std::int64_t, double*, bool, cudaStream_t);

}  // namespace fokker::cuda
