// parallel_for on torch's own thread pool, through a C function pointer handed over at import.
#pragma once

#include <cstdint>
#include <exception>
#include <type_traits>

namespace fokker::cpu {

using ParallelForFn = int (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                              void (*body)(std::int64_t, std::int64_t, void*), void* context);
inline ParallelForFn& torch_parallel_for() {
  static ParallelForFn f = nullptr;
  return f;
}

// f(begin, end) over disjoint ranges of [0, n), none smaller than `grain` but the last; `f` must not throw.
template <typename F> void parallel_for(std::int64_t n, std::int64_t grain, F&& f) {
  if (n <= 0) return;
  if (n <= grain || !torch_parallel_for()) return f(std::int64_t(0), n);
  torch_parallel_for()(
      0, n, grain,
      [](std::int64_t b, std::int64_t e, void* c) { (*static_cast<std::remove_reference_t<F>*>(c))(b, e); }, &f);
}

}  // namespace fokker::cpu
