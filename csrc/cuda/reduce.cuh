// Reductions over a warp and over a block, by a tree that depends on nothing but the number of threads.
#pragma once

#include "cuda/launch.h"
#include "math/elementary.h"

namespace fokker::cuda {

constexpr int kWarp = 32;

struct Sum {
  template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
// Keeps a nan, which the hardware's maximum would drop.
struct Max {
  template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return b > a || b != b ? b : a; }
};

// log of a sum of exponentials: max + log(sum), sum over exp(value - max).
template <typename T> struct LogSum {
  T max, sum;
  __device__ __forceinline__ T value() const { return max + math::log(sum); }
};
// Equal maxima are added without an exponential, which also keeps inf - inf out.
struct Merge {
  template <typename T> __device__ __forceinline__ LogSum<T> operator()(LogSum<T> a, LogSum<T> b) const {
    const bool keep = b.max <= a.max;
    const T high = keep ? a.max : b.max, low = keep ? b.max : a.max;
    const T major = keep ? a.sum : b.sum, minor = keep ? b.sum : a.sum;
    return {high, major + (low == high ? minor : minor * math::exp(low - high))};
  }
};

template <typename T> __device__ __forceinline__ T shuffle_xor(T v, int flip) {
  return __shfl_xor_sync(kFullWarp, v, flip);
}
template <typename T> __device__ __forceinline__ LogSum<T> shuffle_xor(LogSum<T> v, int flip) {
  return {__shfl_xor_sync(kFullWarp, v.max, flip), __shfl_xor_sync(kFullWarp, v.sum, flip)};
}

// Over groups of kLanes neighbouring lanes; every lane gets the same bits, since the operators commute.
template <int kLanes = kWarp, typename T, typename Op> __device__ __forceinline__ T warp_reduce(T v, Op op) {
#pragma unroll
  for (int flip = kLanes / 2; flip > 0; flip /= 2) v = op(v, shuffle_xor(v, flip));
  return v;
}

// Over a one-dimensional block of kThreads, a multiple of 32; all threads get the result. Safe to call in a row.
template <int kThreads, typename T, typename Op> __device__ __forceinline__ T block_reduce(T v, Op op) {
  static_assert(kThreads % kWarp == 0 && kThreads <= 1024, "whole warps");
  constexpr int kWarps = kThreads / kWarp;
  v = warp_reduce(v, op);
  if constexpr (kWarps > 1) {
    FK_SHARED(T, partial, kWarps);
    __syncthreads();  // the last call's readers are done
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = v;
    __syncthreads();
    v = partial[0];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) v = op(v, partial[w]);
  }
  return v;
}

}  // namespace fokker::cuda
