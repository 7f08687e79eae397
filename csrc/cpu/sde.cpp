// Items, threads and the sums over a sample's items around the kernels of SDE steps.
#include "cpu/sde.h"

#include <memory>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fokker::cpu {
namespace {

// Elements below which a second thread costs more than it gives.
constexpr std::int64_t kGrain = 32768, kNoisyGrain = 16384;
// Bytes of a sample that are still in a core's second cache when it is read again.
constexpr std::int64_t kHeldBytes = 768 << 10;

// The sums of sample b from those of its `parts` items, in order.
void add_up(const AffinePlan& p, double* partial, std::int64_t parts, std::int64_t b) {
  const int count = p.sum_count(), joined = p.joined();
  double* const total = partial + b * parts * count;
  for (std::int64_t r = 1; r < parts; ++r)
    for (int j = 0; j < count; ++j) total[j] += total[r * count + j];
  if (!p.squares()) {
    std::copy(total, total + count, p.sums + b * count);
    return;
  }
  double* const square = p.sums + b * joined * joined;
  for (int i = 0, k = 0; i < joined; ++i)
    for (int j = i; j < joined; ++j, ++k) square[i * joined + j] = square[j * joined + i] = total[k];
}

}  // namespace

SdeItems sde_items(const AffinePlan& p) {
  SdeItems s;
  if (p.sample) {
    const std::int64_t blocks = p.sample / p.per_block() + 2;  // of noise, at most
    s.group = std::max<std::int64_t>(
        1, std::min(kSdeTile / p.sample, p.noisy ? kSdeTile / (blocks * p.per_block()) : kSdeTile));
    s.items = (p.batch + s.group - 1) / s.group;
    return s;
  }
  if (p.channels) {
    const std::int64_t width = std::min<std::int64_t>(p.channels, kChannelGroup);
    s.pixels = width <= 64 ? 256 : 128;
    s.runs = (p.pixels + s.pixels - 1) / s.pixels;
  } else {
    const std::int64_t lead = p.noisy ? p.element_offset % p.per_block() : 0;
    s.runs = (p.n + lead + kSdeRun - 1) / kSdeRun;
  }
  s.items = p.batch * s.runs;
  return s;
}

void sde_run(const AffinePlan& p) {
  using Kernel = void (*)(const AffinePlan&, const SdeItems&, std::int64_t, std::int64_t, double*);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(sde_items_run, Kernel);
  const SdeItems items = sde_items(p);
  const int count = p.sum_count();
  // A short sample's sums are whole: one a sample, not one an item.
  const std::int64_t parts = p.sample ? 1 : items.runs;
  std::unique_ptr<double[]> held;
  double* partial = nullptr;
  if (p.sums) {
    held.reset(new double[static_cast<std::size_t>(p.batch * parts * count)]);
    partial = held.get();
  }
  const std::int64_t elements =
      std::max<std::int64_t>(1, p.sample ? items.group * p.sample : p.batch * p.n / items.items);
  const std::int64_t grain = 1 + (p.noisy || p.sums ? kNoisyGrain : kGrain) / elements;
  auto run = [&](std::int64_t begin, std::int64_t end) { kernel(p, items, begin, end, partial); };
  if (!p.sums) return parallel_for(items.items, grain, run);
  const auto finish = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) add_up(p, partial, parts, b);
  };
  if (p.task != SdeTask::forms || !p.weights || p.results == 1) {
    parallel_for(items.items, grain, run);
    return finish(0, p.batch);
  }
  // Gradients of two forms want the sums of their sample first: a sample that the cache holds is read once all the
  // same.
  auto gradients = [&](std::int64_t begin, std::int64_t end) { kernel(p, items, begin, end, nullptr); };
  if (!p.sample && p.vectors * p.n * std::int64_t(p.wide ? 8 : 4) <= kHeldBytes) {
    const std::int64_t samples = 1 + kNoisyGrain / p.n;
    return parallel_for(p.batch, samples, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        run(b * parts, (b + 1) * parts);
        finish(b, b + 1);
        gradients(b * parts, (b + 1) * parts);
      }
    });
  }
  parallel_for(items.items, grain, run);
  finish(0, p.batch);
  parallel_for(items.items, grain, gradients);
}

}  // namespace fokker::cpu
