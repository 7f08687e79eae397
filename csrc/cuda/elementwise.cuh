// Element access of broadcast, strided and half-precision operands on the device; one thread an element.
#pragma once

#include "common/elementwise.h"
#include "cuda/launch.h"

namespace fokker::cuda {

template <typename T> inline constexpr DType kNative = sizeof(T) == 8 ? DType::f64 : DType::f32;

// Offset of element i in input k: most operands are one run (no division), few have 2^31 elements (a short one).
__device__ __forceinline__ std::int64_t offset_of(const Elementwise& e, int k, std::int64_t i) {
  if (e.ndim <= 1) return e.ndim ? i * e.strides[k][0] : 0;
  if (e.numel > 0x7fffffff) return e.offset(k, i);
  std::uint32_t rest = static_cast<std::uint32_t>(i);
  std::int64_t o = 0;
  for (int d = e.ndim - 1; d > 0; --d) {
    const std::uint32_t size = static_cast<std::uint32_t>(e.shape[d]), next = rest / size;
    o += (rest - next * size) * e.strides[k][d];
    rest = next;
  }
  return o + rest * e.strides[k][0];
}

template <typename T> __device__ __forceinline__ T load_element(const Elementwise& e, int k, std::int64_t i) {
  const std::int64_t at = offset_of(e, k, i);
  if constexpr (sizeof(T) == 8) return static_cast<const T*>(e.data[k])[at];
  else if (e.dtype[k] == DType::f16) return to_float(static_cast<const Half*>(e.data[k])[at]);
  else if (e.dtype[k] == DType::bf16) return to_float(static_cast<const BFloat16*>(e.data[k])[at]);
  else return static_cast<const T*>(e.data[k])[at];
}

// Does nothing where `out` is null.
template <typename T> __device__ __forceinline__ void store_element(void* out, DType dtype, std::int64_t i, T value) {
  if (!out) return;
  if constexpr (sizeof(T) == 8) static_cast<T*>(out)[i] = value;
  else if (dtype == DType::f16) static_cast<Half*>(out)[i] = to_half(value);
  else if (dtype == DType::bf16) static_cast<BFloat16*>(out)[i] = to_bfloat16(value);
  else static_cast<T*>(out)[i] = value;
}

}  // namespace fokker::cuda
