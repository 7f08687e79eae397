// Body of the modulated norms and gated residuals, once per instruction set.
//
//   forward   a row is read once into the first cache, its statistics taken there in two passes, results written once
//   backward  statistics and two sums over the row in one pass, then the gradients (norms_vjp.inc.h)
#include "cpu/norms.h"
#include "cpu/norms_vjp.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

template <typename R, typename S, typename T> inline void normalise(const R* x, Statistics<T> s, const T* factor,
                                                                    const T* addend, S* y, bool streamed,
                                                                    std::int64_t n, Ahead<S> ahead) {
  each<T>(n, [=](std::int64_t i, auto zero) {
    using V = decltype(zero);
    ahead.fetch(i);
    const V unit = fma(V(get<V>(x + i) - spread<V>(s.mean)), spread<V>(s.rstd), spread<V>(s.offset));
    put(y + i, fma(unit, get<V>(factor + i), get<V>(addend + i)), streamed);
  });
}

template <bool kGate, typename S, typename T>
void forward_gated(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  Rows<T> rows(p, 4);
  const std::int64_t n = p.columns;
  const bool sum_past = past_cache<S, T>(p, p.sum), out_past = past_cache<S, T>(p, p.out);
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t b = r / p.tokens, t = r % p.tokens;
    rows.coefficients(b, t);
    const S* const x = rows.template read<S>(p.x, b, t, rows.buffer(0));
    const S* const branch = rows.template read<S>(p.branch, b, t, rows.buffer(1));
    S* const sum = rows.template place<S>(p.sum, b, t, rows.buffer(0));
    const T* const gate = rows.gate;
    if (p.norm == Norm::none) {
      each<T>(n, [=](std::int64_t i, auto zero) {
        put(sum + i, gated_at<kGate, decltype(zero)>(x, branch, gate, i), sum_past);
      });
    } else {
      T* kept = rows.buffer(3);
      if constexpr (std::is_same_v<S, T>)
        if (!sum_past) kept = sum;
      const Ahead<S> ahead{rows.template next<S>(p.x, b, t), rows.template next<S>(p.branch, b, t)};
      const Statistics<T> s = gated_statistics<kGate>(p.norm, x, branch, gate, sum, sum_past, kept, n, p.eps, ahead);
      S* const y = rows.template place<S>(p.out, b, t, rows.buffer(2));
      normalise(kept, s, rows.factor, rows.addend, y, out_past, n, Ahead<S>{});
      rows.write(p.out, b, t, y);
    }
    rows.write(p.sum, b, t, sum);
  }
  if (sum_past || out_past) finish_streams();
}

template <typename S, typename T> void forward(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.branch) return p.gate ? forward_gated<true, S, T>(p, begin, end) : forward_gated<false, S, T>(p, begin, end);
  Rows<T> rows(p, 2);
  const std::int64_t n = p.columns;
  const bool past = past_cache<S, T>(p, p.out);
  for (std::int64_t r = begin; r < end; ++r) {
    const std::int64_t b = r / p.tokens, t = r % p.tokens;
    rows.coefficients(b, t);
    const S* const x = rows.template read<S>(p.x, b, t, rows.buffer(0));
    S* const y = rows.template place<S>(p.out, b, t, rows.buffer(1));
    const auto s = statistics<T>(p.norm, x, n, p.eps, Ahead<S>{rows.template next<S>(p.x, b, t)});
    const Ahead<S> ahead{nullptr, nullptr, past ? nullptr : rows.template next<S>(p.out, b, t)};
    normalise(x, s, rows.factor, rows.addend, y, past, n, ahead);
    rows.write(p.out, b, t, y);
  }
  if (past) finish_streams();
}

}  // namespace

void norm_rows(const NormPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.wide) return forward<double, double>(p, begin, end);
  with_storage<float>(p, [&](auto s) { forward<decltype(s), float>(p, begin, end); });
}

void norm_vjp_blocks(const NormPlan& p, std::int64_t begin, std::int64_t end, void* partial) {
  if (p.wide) return backward<double, double>(p, begin, end, static_cast<double*>(partial));
  with_storage<float>(p, [&](auto s) { backward<decltype(s), float>(p, begin, end, static_cast<float*>(partial)); });
}

}  // namespace fokker::cpu::FK_ISA
