// What the launchers of SDE steps share: how large a tile is, and how tiles' sums become a sample's.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace fokker {
struct AffinePlan;
}

namespace fokker::cuda {

constexpr int kSdeTileBlocks = 1024;  // Philox blocks of one tile: 4096 floats, 2048 doubles

void sde_step(const AffinePlan& p, cudaStream_t stream);
void sde_vjp(const AffinePlan& p, cudaStream_t stream);
void sde_gram(const AffinePlan& p, cudaStream_t stream);
void losses(const AffinePlan& p, cudaStream_t stream);
// x *= factor, which is read on the device; 1 leaves x alone.
template <typename T> void rescale(T* x, std::int64_t n, const T* factor, cudaStream_t stream);
// p.sums from p.partial: `tiles` rows of `count` sums a sample, added in order.
void sde_add_tiles(const AffinePlan& p, std::int64_t tiles, int count, cudaStream_t stream);

// Doubles that p.partial must hold.
std::int64_t sde_workspace(const AffinePlan& p);

}  // namespace fokker::cuda
