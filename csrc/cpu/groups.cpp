// Threads around the kernels of group norms.
#include "cpu/groups.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fokker::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements below which a second thread costs more than it gives
// Elements of a chunk of a channels_last sample, and positions at most: its sums keep their digits.
constexpr std::int64_t kChunkElements = 32768, kChunkPositions = 1024;
// Elements that are summed before they are read again: those of a wave of samples stay in the second cache.
constexpr std::int64_t kWave = 1 << 20;

void run_last(const GroupPlan& p) {
  using Kernel = void (*)(const GroupPlan&, const GroupChunks&, GroupPhase, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(group_last, Kernel);
  GroupChunks s;
  s.positions = std::clamp<std::int64_t>(kChunkElements / p.channels, 1, kChunkPositions);
  s.chunks = (p.positions + s.positions - 1) / s.positions;
  s.width = 2 * (p.backward ? p.channels : p.groups);
  const std::int64_t elements = p.channels * p.positions, chunk = p.channels * std::min(s.positions, p.positions);
  s.samples = std::clamp<std::int64_t>(kWave / elements, 1, p.batch);
  // Enough samples for every core: no core waits for another between the phases.
  static const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  if (s.chunks == 1 || p.batch % cores == 0 || p.batch >= 4 * cores)
    return parallel_for(p.batch, 1 + kGrain / elements,
                        [&](std::int64_t begin, std::int64_t end) { kernel(p, s, GroupPhase::all, begin, end); });
  const std::unique_ptr<double[]> partial(new double[static_cast<std::size_t>(s.samples * s.chunks * s.width)]);
  const std::unique_ptr<double[]> held(
      new double[static_cast<std::size_t>(s.samples * kGroupCoefficients * p.channels)]);
  s.partial = partial.get(), s.coefficients = held.get();
  const std::int64_t wave = s.samples;
  for (; s.first < p.batch; s.first += wave) {
    s.samples = std::min(wave, p.batch - s.first);
    const auto phase = [&](GroupPhase which, std::int64_t items, std::int64_t grain) {
      parallel_for(items, grain, [&](std::int64_t begin, std::int64_t end) { kernel(p, s, which, begin, end); });
    };
    if (p.backward) phase(GroupPhase::prepare, s.samples, 1 + kGrain / (8 * p.channels));
    phase(GroupPhase::sums, s.samples * s.chunks, 1 + kGrain / chunk);
    phase(GroupPhase::merge, s.samples, 1 + kGrain / (s.chunks * s.width));
    phase(GroupPhase::apply, s.samples * s.chunks, 1 + kGrain / chunk);
  }
}

}  // namespace

void group_run(const GroupPlan& p) {
  const std::int64_t rows = p.last ? p.positions : p.channels, length = p.last ? p.channels : p.positions;
  for (const GroupMap* m : {&p.sum, &p.out}) expect_writes(m->data, p.dtype, m->row(p.batch - 1, rows - 1) + length);
  if (p.last) return run_last(p);
  using Kernel = void (*)(const GroupPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(group_slabs, Kernel);
  parallel_for(p.batch * p.groups, 1 + kGrain / (p.per_group() * p.positions),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
