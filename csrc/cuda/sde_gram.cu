// Inner products of vectors and regenerated noise, and the sums of tiles that all SDE reductions end in.
//
// Bytes: each vector once. Products and sums in double: by a fixed tree inside a tile, then over tiles.
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

template <typename T, int K> __global__ void __launch_bounds__(kSdeThreads, 1)
    sde_gram_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  constexpr int size = (K + 2) * (K + 3) / 2;
  double sum[size] = {};
  each_of_tile(w, [&](std::int64_t b, std::int64_t q) {
    const Spot<T> s = spot<T>(p, w, b, q);
    Lot<T> v[K + 2];
#pragma unroll
    for (int k = 0; k <= K; ++k)
      if (k < p.vectors) v[k] = read<T>(p, w, p.in[k], s);
      else v[k] = Lot<T>{};
    v[K + 1] = p.noisy ? noise_at<T>(p, w, s) : Lot<T>{};
    int at = 0;
#pragma unroll
    for (int i = 0; i <= K + 1; ++i)
#pragma unroll
      for (int k = i; k <= K + 1; ++k, ++at) add_product(v[i], v[k], sum[at]);
  });
  double* const row = p.partial + std::int64_t(blockIdx.x) * p.pairs();
  int at = 0, to = 0;
#pragma unroll
  for (int i = 0; i <= K + 1; ++i)
#pragma unroll
    for (int k = i; k <= K + 1; ++k, ++at) {
      const bool left = i == K + 1 ? p.noisy : i < p.vectors, right = k == K + 1 ? p.noisy : k < p.vectors;
      if (!left || !right) continue;
      const double total = block_reduce<kSdeThreads>(sum[at], Sum{});
      if (threadIdx.x == 0) row[to] = total;
      ++to;
    }
}

// One warp a sum of a sample: lanes take tiles in turn, then a fixed tree.
__global__ void __launch_bounds__(kSdeThreads)
    sde_add_tiles_kernel(const __grid_constant__ AffinePlan p, std::int64_t tiles, int count) {
  const std::int64_t which = (std::int64_t(blockIdx.x) * kSdeThreads + threadIdx.x) / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (which >= p.batch * count) return;  // whole warps
  const std::int64_t b = which / count;
  const int k = static_cast<int>(which % count);
  double sum = 0;
  for (std::int64_t t = lane; t < tiles; t += kWarp) sum += p.partial[(b * tiles + t) * count + k];
  sum = warp_reduce(sum, Sum{});
  if (lane != 0) return;
  if (!p.squares()) {
    p.sums[b * count + k] = sum;
    return;
  }
  const int joined = p.joined();
  int i = 0, j = k;
  while (j >= joined - i) j -= joined - i, ++i;
  j += i;
  double* const square = p.sums + b * joined * joined;
  square[i * joined + j] = sum;
  square[j * joined + i] = sum;
}

template <typename T> void launch(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  const unsigned blocks = all_blocks(tiles_of(p, w));
  if (p.vectors <= 2) FK_LAUNCH((sde_gram_kernel<T, 1>), blocks, kSdeThreads, 0, stream, p, w);
  else if (p.vectors <= 4) FK_LAUNCH((sde_gram_kernel<T, 3>), blocks, kSdeThreads, 0, stream, p, w);
  else FK_LAUNCH((sde_gram_kernel<T, 8>), blocks, kSdeThreads, 0, stream, p, w);
  sde_add_tiles(p, tiles_of(p, w) / p.batch, p.pairs(), stream);
}

}  // namespace

void sde_gram(const AffinePlan& p, cudaStream_t stream) {
  const Operand* all[kMaxVectors];
  for (int k = 0; k < p.vectors; ++k) all[k] = &p.in[k];
  const SdeWalk w = walk_of(p, all, p.vectors);
  if (p.wide) launch<double>(p, w, stream);
  else launch<float>(p, w, stream);
  check_launch("sde_gram");
}

void sde_add_tiles(const AffinePlan& p, std::int64_t tiles, int count, cudaStream_t stream) {
  FK_LAUNCH((sde_add_tiles_kernel), blocks_for(p.batch * count * kWarp, kSdeThreads), kSdeThreads, 0, stream, p, tiles,
            count);
}

std::int64_t sde_workspace(const AffinePlan& p) {
  const std::int64_t lead = p.noisy ? p.element_offset % p.per_block() : 0;
  const std::int64_t blocks = (lead + p.n + p.per_block() - 1) / p.per_block();
  return p.batch * ((blocks + kSdeTileBlocks - 1) / kSdeTileBlocks) * p.sum_count();
}

}  // namespace fokker::cuda
