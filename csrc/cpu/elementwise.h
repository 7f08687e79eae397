// Drives a chunk kernel over strided, broadcast, half-precision operands on torch's thread pool.
#pragma once

#include <algorithm>

#include "common/dispatch.h"
#include "common/elementwise.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

constexpr int kChunk = 512;

template <typename T> inline T load_at(const void* data, DType dtype, std::int64_t i) {
  if constexpr (sizeof(T) == 8) return static_cast<const T*>(data)[i];
  else switch (dtype) {
      case DType::f16:
        return to_float(static_cast<const Half*>(data)[i]);
      case DType::bf16:
        return to_float(static_cast<const BFloat16*>(data)[i]);
      default:
        return static_cast<const T*>(data)[i];
    }
}

// Elements [begin, begin + n) of input k as contiguous T: the tensor itself where it is laid out so, else `buffer`.
template <typename T> const T* gather(const Elementwise& e, int k, std::int64_t begin, int n, T* buffer) {
  const void* data = e.data[k];
  const bool native = e.dtype[k] == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  if (native && (e.ndim == 0 || (e.ndim == 1 && e.strides[k][0] == 1))) return static_cast<const T*>(data) + begin;
  std::int64_t index[kMaxDims], rest = begin, offset = 0;
  for (int d = e.ndim - 1; d >= 0; --d) {
    index[d] = rest % e.shape[d];
    rest /= e.shape[d];
    offset += index[d] * e.strides[k][d];
  }
  const int last = e.ndim - 1;
  for (int i = 0; i < n;) {
    const int run = last < 0 ? n : static_cast<int>(std::min<std::int64_t>(n - i, e.shape[last] - index[last]));
    const std::int64_t stride = last < 0 ? 0 : e.strides[k][last];
    if (stride == 0) {
      const T value = load_at<T>(data, e.dtype[k], offset);
      for (int j = 0; j < run; ++j) buffer[i + j] = value;
    } else {
      for (int j = 0; j < run; ++j) buffer[i + j] = load_at<T>(data, e.dtype[k], offset + j * stride);
    }
    i += run;
    if (i >= n) break;
    offset -= index[last] * stride;
    index[last] = 0;
    for (int d = last - 1; d >= 0; --d) {
      offset += e.strides[k][d];
      if (++index[d] < e.shape[d]) break;
      offset -= e.shape[d] * e.strides[k][d];
      index[d] = 0;
    }
  }
  return buffer;
}

template <typename T> void scatter_half(const T* from, DType dtype, void* to, std::int64_t begin, int n) {
  if constexpr (sizeof(T) == 4) {
    if (dtype == DType::f16)
      for (int i = 0; i < n; ++i) static_cast<Half*>(to)[begin + i] = to_half(from[i]);
    else
      for (int i = 0; i < n; ++i) static_cast<BFloat16*>(to)[begin + i] = to_bfloat16(from[i]);
  }
}

// kernel(const T* const* in, T* const* out, int n) over chunks of the elements; a null entry of `out` stays null.
template <typename T, int Outputs, typename Kernel>
void for_each_chunk(const Elementwise& e, DType out_dtype, void* const* out, std::int64_t grain, Kernel&& kernel) {
  const bool native = out_dtype == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  parallel_for(e.numel, grain, [&](std::int64_t begin, std::int64_t end) {
    alignas(64) T in_buffer[kMaxInputs][kChunk], out_buffer[Outputs][kChunk];
    for (std::int64_t at = begin; at < end; at += kChunk) {
      const int n = static_cast<int>(std::min<std::int64_t>(kChunk, end - at));
      const T* in[kMaxInputs] = {};
      T* to[Outputs];
      for (int k = 0; k < e.inputs; ++k) in[k] = gather(e, k, at, n, in_buffer[k]);
      for (int k = 0; k < Outputs; ++k)
        to[k] = !out[k] ? nullptr : native ? static_cast<T*>(out[k]) + at : out_buffer[k];
      kernel(in, to, n);
      if (!native)
        for (int k = 0; k < Outputs; ++k)
          if (out[k]) scatter_half(out_buffer[k], out_dtype, out[k], at, n);
    }
  });
}

}  // namespace fokker::cpu
