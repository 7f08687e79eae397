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

// Blocks of `per_block` items that cover `n`, at most `most`; kernels stride over what is left.
inline unsigned blocks_for(std::int64_t n, std::int64_t per_block, std::int64_t most = kMaxBlocks) {
  const std::int64_t blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < most ? blocks : most);
}

}  // namespace fokker::cuda
