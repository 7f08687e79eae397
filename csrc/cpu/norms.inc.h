// Body of the modulated norms and gated residuals, once per instruction set.
//
//   forward   a row is read once into the first cache, its statistics taken there in two passes, results written once
//   backward  statistics and two sums over the row in one pass, then the gradients (norms_vjp.inc.h)
#include "cpu/norms.h"
#include "cpu/norms_vjp.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename T> void forward(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  Rows<T> rows(p, 3);
  const std::int64_t n = p.columns;
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t b = r / p.tokens, t = r % p.tokens;
    rows.coefficients(b, t);
    const T* x = rows.read(p.x, b, t, rows.buffer(0));
    Statistics<T> s;
    if (p.branch) {
      const T* const branch = rows.read(p.branch, b, t, rows.buffer(1));
      T* const sum = rows.place(p.sum, b, t, rows.buffer(0));
      if (p.norm == Norm::none) {
        gated(x, branch, rows.gate, sum, n);
      } else {
        const Ahead<T> ahead{rows.next(p.x, b, t), rows.next(p.branch, b, t)};
        s = gated_statistics(p.norm, x, branch, rows.gate, sum, n, p.eps, ahead);
      }
      rows.write(p.sum, b, t, sum);
      x = sum;
    } else {
      s = statistics(p.norm, x, n, p.eps, Ahead<T>{rows.next(p.x, b, t)});
    }
    if (p.norm == Norm::none) continue;
    T* const y = rows.place(p.out, b, t, rows.buffer(2));
    const T *const factor = rows.factor, *const addend = rows.addend;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i)
      y[i] = math::mad(math::mad(x[i] - s.mean, s.rstd, s.offset), factor[i], addend[i]);
    rows.write(p.out, b, t, y);
  }
}

}  // namespace

void norm_rows(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.wide) forward<double>(p, begin, end);
  else forward<float>(p, begin, end);
}

void norm_vjp_blocks(const NormPlan& p, std::int64_t begin, std::int64_t end, void* partial) {
  if (p.wide) backward<double>(p, begin, end, static_cast<double*>(partial));
  else backward<float>(p, begin, end, static_cast<float*>(partial));
}

}  // namespace fokker::cpu::FK_ISA
