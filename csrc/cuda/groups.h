// Launchers of group norms, and the workspace that the channels_last ones want.
#pragma once

#include <cuda_runtime_api.h>

#include "common/group_plan.h"

namespace fokker::cuda {

constexpr int kGroupChunk = 128;  // positions of a chunk of a channels_last sample

FK_HD FK_INLINE std::int64_t group_chunks(const GroupPlan& p) { return (p.positions + kGroupChunk - 1) / kGroupChunk; }
// Doubles: two sums a chunk and channel, then six coefficients a channel.
inline std::int64_t group_work(const GroupPlan& p) {
  return p.last ? p.batch * p.channels * (2 * group_chunks(p) + 6) : 0;
}

void group_rows(const GroupPlan& p, cudaStream_t stream);
void group_last(const GroupPlan& p, cudaStream_t stream);
inline void group_run(const GroupPlan& p, cudaStream_t stream) {
  if (p.last) group_last(p, stream);
  else group_rows(p, stream);
}

}  // namespace fokker::cuda
