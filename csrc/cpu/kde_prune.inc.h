// What tiles of the data can add to the sums of a box of queries, from the distances of the boxes.
#pragma once

#include <algorithm>

#include "cpu/kde_plan.h"
#include "math/elementary.h"
#include "math/kde_kernel.h"

namespace fokker::cpu::FK_ISA {
namespace {

// Of weights and of weights times max(1, q)^power at scaled squared distances from q on; -inf: nothing.
template <math::Kernel kernel, typename T> inline T decay(T q, T power) {
  constexpr T log2e = T(1.4426950408889634074);
  if constexpr (math::is_compact(kernel)) return q < T(1.00001) ? T(0) : -math::infinity<T>();
  else {
    const auto pair = math::kernel_pair<kernel>(q, T(1), T(1));
    T log = power * math::log(math::max(q, T(1)));
    if constexpr (kernel == math::Kernel::matern32 || kernel == math::Kernel::matern52) log += math::log(pair.weight);
    return (pair.exponent + log) * log2e;
  }
}

template <math::Kernel kernel, int D, typename T> void bound_tiles(const KdeBounds<T>& b) {
  const T* __restrict top = b.top, * __restrict scale = b.scale;
  T* __restrict bound = b.bound;
  constexpr bool plain = kernel == math::Kernel::gaussian;
  const T power = b.power;
#pragma omp simd
  for (std::int64_t t = 0; t < b.count; ++t) {
    T q = T(0);
#pragma GCC unroll 3
    for (int k = 0; k < D; ++k) {
      const T below = b.low[k * b.stride + t] - b.query_high[k], above = b.query_low[k] - b.high[k * b.stride + t];
      const T gap = math::max(math::max(below, above), T(0));
      q = kernel == math::Kernel::laplace ? q + gap : math::mad(gap, gap, q);
    }
    q = math::min(q * (b.query_scale * scale[t]), sizeof(T) == 4 ? T(1e30) : T(1e300));
    if constexpr (plain) bound[t] = top[t] - T(0.72134752044448170368) * q;
    else bound[t] = top[t] + decay<kernel>(q, power);
  }
  if (plain && power > T(0))
#pragma omp simd
    for (std::int64_t t = 0; t < b.count; ++t) {
      const T q = (top[t] - bound[t]) * T(1.3862943611198906188);
      const T more = power * T(1.4426950408889634074) * math::log(math::min(math::max(q, T(1)), T(1e30)));
      bound[t] += top[t] > -math::infinity<T>() ? more : T(0);
    }
}

template <math::Kernel kernel, typename T> void bound_tiles(const KdeBounds<T>& b) {
  switch (b.d) {
    case 1:
      return bound_tiles<kernel, 1>(b);
    case 2:
      return bound_tiles<kernel, 2>(b);
    default:
      return bound_tiles<kernel, 3>(b);
  }
}

}  // namespace

template <typename T> void kde_bounds(const KdeBounds<T>* b) {
  using K = math::Kernel;
  switch (b->kernel) {
    case K::gaussian:
      return bound_tiles<K::gaussian>(*b);
    case K::laplace:
      return bound_tiles<K::laplace>(*b);
    case K::exponential:
      return bound_tiles<K::exponential>(*b);
    case K::matern32:
      return bound_tiles<K::matern32>(*b);
    case K::matern52:
      return bound_tiles<K::matern52>(*b);
    case K::student_t:
      return std::fill(b->bound, b->bound + b->count, T(0));  // its tails are worth keeping
    default:
      return bound_tiles<K::epanechnikov>(*b);
  }
}
template void kde_bounds<float>(const KdeBounds<float>*);
template void kde_bounds<double>(const KdeBounds<double>*);

}  // namespace fokker::cpu::FK_ISA
