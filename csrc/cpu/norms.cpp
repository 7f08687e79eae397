// Threads, and the sums over blocks of tokens, around the kernels of modulated norms.
#include "cpu/norms.h"

#include <algorithm>

#include "cpu/aligned.h"
#include "cpu/isa.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"

namespace fokker::cpu {
namespace {

constexpr std::int64_t kGrain = 16384;  // elements below which a second thread costs more than it gives

template <typename T> void add_blocks(const NormPlan& p, const T* partial) {
  const std::int64_t blocks = token_blocks(p), n = p.columns;
  const int count = p.sum_count();
  T* const out[3] = {static_cast<T*>(p.sum_p ? p.sum_p : p.sum_gate), static_cast<T*>(p.sum_pn),
                     static_cast<T*>(p.sum_gate)};
  parallel_for(p.batch * count, 1 + kGrain / (blocks * n), [&](std::int64_t begin, std::int64_t end) {
    constexpr int chunk = 256;
    double total[chunk];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / count, k = i % count;
      for (std::int64_t from = 0; from < n; from += chunk) {
        const int some = static_cast<int>(std::min<std::int64_t>(chunk, n - from));
        std::fill(total, total + some, 0.0);
        for (std::int64_t block = 0; block < blocks; ++block) {
          const T* const row = partial + ((b * blocks + block) * count + k) * n + from;
          for (int j = 0; j < some; ++j) total[j] += static_cast<double>(row[j]);
        }
        T* const to = out[k] + b * n + from;
        for (int j = 0; j < some; ++j) to[j] = static_cast<T>(total[j]);
      }
    }
  });
}

template <typename T> void run_vjp(const NormPlan& p) {
  using Kernel = void (*)(const NormPlan&, std::int64_t, std::int64_t, void*);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(norm_vjp_blocks, Kernel);
  const std::int64_t items = p.batch * token_blocks(p);
  AlignedArray<T> partial;  // off a cache line, each vector of a sum would touch two
  partial.resize(items * p.sum_count() * p.columns);
  const std::int64_t elements = std::min<std::int64_t>(p.tokens, p.token_block) * p.columns;
  parallel_for(items, 1 + kGrain / elements,
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end, partial.get()); });
  if (p.sum_count()) add_blocks<T>(p, partial.get());
}

}  // namespace

void norm_run(const NormPlan& p) {
  for (const RowOperand* o : {&p.sum, &p.out, &p.to_x, &p.to_branch, &p.to_gate, &p.to_scale})
    expect_writes(o->data, o->dtype, o->at(p.batch - 1, p.tokens - 1) + (p.columns - 1) * o->column + 1);
  if (p.backward) return p.wide ? run_vjp<double>(p) : run_vjp<float>(p);
  using Kernel = void (*)(const NormPlan&, std::int64_t, std::int64_t);
  const Kernel kernel = FK_PER_ISA_OVERLOAD(norm_rows, Kernel);
  parallel_for(p.batch * p.tokens, 1 + kGrain / p.columns,
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

}  // namespace fokker::cpu
