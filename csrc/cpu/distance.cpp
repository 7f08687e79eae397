// Threads around the kernels of distances.
#include "cpu/distance.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

void distance_sums(const DistanceSums& p) {
  using Kernel = void (*)(const DistanceSums&, std::int64_t, std::int64_t);
  using Size = int (*)(const DistanceSums&);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(distance_tiles, Kernel);
  const std::int64_t tile = FK_PER_ISA_OVERLOAD(distance_tile, Size)(p);
  const std::int64_t work = tile * std::max<std::int64_t>(p.m * (p.d + 4), 1);
  parallel_for(p.batch * ((p.n + tile - 1) / tile), std::max<std::int64_t>(1, 65536 / work),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

template <typename T> void nearest_data(const NearestData& p) {
  const auto kernel = FK_PER_ISA(nearest_tiles, T);
  const std::int64_t tile = FK_PER_ISA(nearest_tile, T)(nullptr);
  const std::int64_t work = tile * std::max<std::int64_t>(p.m * (p.d + 4), 1);
  parallel_for(p.batch * ((p.n + tile - 1) / tile), std::max<std::int64_t>(1, 65536 / work),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}
template void nearest_data<float>(const NearestData& p);
template void nearest_data<double>(const NearestData& p);

}  // namespace fokker::cpu
