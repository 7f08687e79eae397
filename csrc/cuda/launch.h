// Launches, shared-memory declarations and the launch check of every .cu file, for nvcc and for the emulator.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/check.h"

#ifndef FOKKER_EMU
#define FK_UNWRAP(...) __VA_ARGS__
// FK_LAUNCH((kernel<T, D>), grid, block, dynamic_bytes, stream, arguments...)
#define FK_LAUNCH(kernel, grid, block, smem, stream, ...) \
  FK_UNWRAP kernel<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__)
// A static shared array `name` of `count` elements.
#define FK_SHARED(T, name, count) __shared__ T name[count]
#define FK_CHECK_ALIGNED(P, at) ((void)0)  // the device faults by itself
#define FK_DYNAMIC_SMEM(T, name)                                \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  T* const name = reinterpret_cast<T*>(name##_bytes)
#endif

namespace fokker::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr std::int64_t kMaxBlocks = 0x7fffffff;

// Nothing here waits for the device: an error inside a kernel shows at a later call, as with every CUDA library.
inline void check_launch(const char* op) {
  if (const cudaError_t e = cudaGetLastError(); e != cudaSuccess) raise<CudaError>(op, ": ", cudaGetErrorString(e));
}

// A pack of numbers in one access.
template <typename P> __device__ __forceinline__ P load_pack(const void* at) {
  FK_CHECK_ALIGNED(P, at);
  return *static_cast<const P*>(at);
}
template <typename P> __device__ __forceinline__ void store_pack(void* at, const P& pack) {
  FK_CHECK_ALIGNED(P, at);
  *static_cast<P*>(at) = pack;
}

// Blocks of `per_block` items that cover `n`, at most `most`; kernels stride over what is left.
inline unsigned blocks_for(std::int64_t n, std::int64_t per_block, std::int64_t most = kMaxBlocks) {
  const std::int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}
// `n` blocks of a kernel that does not stride.
inline unsigned all_blocks(std::int64_t n) {
  if (n > kMaxBlocks) raise<ValueError>("the tensors take ", n, " blocks, at most ", kMaxBlocks, " are supported");
  return static_cast<unsigned>(n);
}

}  // namespace fokker::cuda
