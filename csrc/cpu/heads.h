// Kernels of attention heads and gated activations, and how a plan is cut into items, each done by one thread.
#pragma once

#include <algorithm>
#include <memory>

#include "common/heads_plan.h"
#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

#define FK_DECLARE(isa)                                                                                       \
  namespace fokker::cpu::isa {                                                                                \
  /* Tokens [begin, end) of batch x tokens; `sums` adds up the gradients in weights and biases. */            \
  void heads_run(const HeadsPlan& p, std::int64_t begin, std::int64_t end, double* sums);                     \
  /* Pieces [begin, end) of rows of the innermost dimension; `sums` adds up the plan's. */                    \
  void gates_run(const GatePlan& p, std::int64_t pieces, std::int64_t begin, std::int64_t end, double* sums); \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE

namespace fokker::cpu {

constexpr std::int64_t kHeadGrain = 16384, kGateGrain = 16384;     // elements below which a second thread costs
constexpr std::int64_t kHeadBlocks = 256, kGateBlocks = 64;        // partial sums, whatever the number of threads
constexpr std::int64_t kGatePiece = 4096;                          // elements of a row
constexpr std::int64_t kGateStreamBytes = std::int64_t(16) << 20;  // results from here on are written past the cache

// f(begin, end, partial sums of a block, from 0) over blocks of at least `grain` of n items, then their sums in order.
template <typename F>
void sum_blocks(std::int64_t n, std::int64_t grain, std::int64_t most, std::int64_t count, double* sums, F&& f) {
  const std::int64_t block = std::max(grain, (n + most - 1) / most), blocks = (n + block - 1) / block;
  const std::unique_ptr<double[]> partial(new double[static_cast<std::size_t>(blocks * count)]());
  parallel_for(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) f(b * block, std::min(n, (b + 1) * block), partial.get() + b * count);
  });
  std::fill(sums, sums + count, 0.0);
  for (std::int64_t b = 0; b < blocks; ++b)
    for (std::int64_t j = 0; j < count; ++j) sums[j] += partial[static_cast<std::size_t>(b * count + j)];
}

// The same bits whatever the number of threads.
inline void heads(const HeadsPlan& p) {
  using Kernel = void (*)(const HeadsPlan&, std::int64_t, std::int64_t, double*);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(heads_run, Kernel);
  const std::int64_t rows = p.batch * p.tokens;
  std::int64_t work = 0;
  for (int i = 0; i < p.parts; ++i) {
    const HeadPart& part = p.part[i];
    work += part.heads * p.dim;
    expect_writes(part.out.data, p.dtype,
                  1 + (p.batch - 1) * part.out.batch + (part.heads - 1) * part.out.head +
                      (p.tokens - 1) * part.out.token + (p.dim - 1) * part.out.element);
  }
  const std::int64_t grain = 1 + kHeadGrain / std::max<std::int64_t>(work, 1);
  if (!p.sums) {
    parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end, nullptr); });
    return;
  }
  sum_blocks(rows, grain, kHeadBlocks, p.sum_count(), p.sums,
             [&](std::int64_t begin, std::int64_t end, double* sums) { kernel(p, begin, end, sums); });
}

inline void gates(const GatePlan& p) {
  using Kernel = void (*)(const GatePlan&, std::int64_t, std::int64_t, std::int64_t, double*);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(gates_run, Kernel);
  for (const GateSlot s : {GateSlot::out, GateSlot::to_gate, GateSlot::to_value})
    expect_writes(p.slot(s).data, p.dtype, p.slot(s).data ? p.offset(s, p.n - 1) + 1 : 0);
  const std::int64_t row = p.ndim ? p.shape[p.ndim - 1] : 1, pieces = (row + kGatePiece - 1) / kGatePiece;
  const std::int64_t items = p.n / row * pieces, width = std::min(row, kGatePiece), grain = 1 + kGateGrain / width;
  if (!p.sums)
    return parallel_for(items, grain,
                        [&](std::int64_t begin, std::int64_t end) { kernel(p, pieces, begin, end, nullptr); });
  sum_blocks(items, std::max(grain, 1 + 4 * p.sum_count / width), kGateBlocks, p.sum_count, p.sums,
             [&](std::int64_t begin, std::int64_t end, double* sums) { kernel(p, pieces, begin, end, sums); });
}

}  // namespace fokker::cpu
