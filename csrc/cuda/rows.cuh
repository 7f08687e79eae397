// Teams of threads that take one row of a matrix each: a few lanes for short rows, a whole block for long ones.
#pragma once

#include <algorithm>

#include "cuda/reduce.cuh"

namespace fokker::cuda {

constexpr int kRowThreads = 256;
constexpr std::int64_t kWideRow = 4096;  // from this length on a block takes a row

// Lanes a row of `items` wants: a power of two, at most a warp.
inline int team_lanes(std::int64_t items) {
  int lanes = 1;
  while (lanes < kWarp && lanes < items) lanes *= 2;
  return lanes;
}

// Rows whose per-row scalars a warp computes at once, one a lane (a power of two): many, but thousands of warps in
// flight.
inline int warp_group(std::int64_t n) {
  int group = 1;
  while (group < kWarp && n / (2 * group) >= 8192) group *= 2;
  return group;
}

template <bool kWide> struct Team {
  int lanes;
  __device__ __forceinline__ int lane() const { return kWide ? int(threadIdx.x) : int(threadIdx.x) & (lanes - 1); }
  __device__ __forceinline__ int size() const { return kWide ? kRowThreads : lanes; }
  // Every thread of the team gets the result; whole warps (wide: blocks) must call.
  __device__ __forceinline__ double sum(double v) const {
    if constexpr (kWide) {
      return block_reduce<kRowThreads>(v, Sum{});
    } else {
      for (int flip = lanes / 2; flip > 0; flip /= 2) v += shuffle_xor(v, flip);
      return v;
    }
  }
};

// Row of this team among the grid's, -1 past the end.
template <bool kWide> __device__ __forceinline__ std::int64_t team_row([[maybe_unused]] const Team<kWide>& team,
                                                                       [[maybe_unused]] std::int64_t n) {
  if constexpr (kWide) {
    return blockIdx.x;
  } else {
    const std::int64_t row = (std::int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / team.lanes;
    return row < n ? row : -1;
  }
}
template <bool kWide> inline unsigned team_blocks(std::int64_t n, int lanes) {
  return kWide ? blocks_for(n, 1) : blocks_for(n, kRowThreads / lanes);
}

}  // namespace fokker::cuda
