// Launchers of attention heads and gated activations on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>

#include "common/heads_plan.h"

namespace fokker::cuda {

// Blocks of a backward pass, whatever the device (its sums depend on nothing else): rows of the workspace `partial`, of
// sum_count() each; `rows`: batch x tokens.
inline std::int64_t heads_blocks(std::int64_t rows) { return std::min<std::int64_t>((rows + 3) / 4, 1024); }

// Rows of a gate's workspace; `rows`: elements of a channel.
inline std::int64_t gates_blocks(std::int64_t rows) { return std::min<std::int64_t>((rows + 63) / 64, 256); }

void heads(const HeadsPlan& p, cudaStream_t stream);
void heads_vjp(const HeadsPlan& p, cudaStream_t stream);
void gates(const GatePlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
