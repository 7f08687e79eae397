// Body of the von Mises-Fisher chunk kernels, compiled once per instruction set.
//
// A chunk is sorted by regime, each regime runs in blocks that are always full (the last is padded), results go back to
// their places: what an element gets depends on that element alone.
#include <type_traits>

#include "cpu/vmf.h"

namespace fokker::cpu::FK_ISA {
namespace {

using math::VmfConstants;
using math::VmfFn;
using math::VmfMoments;
using math::VmfRegime;

constexpr int kMaxChunk = 512, kBlock = 32, kPadded = kMaxChunk + kBlock;

// The constants of the last dimension a thread has seen: the driver calls once per chunk.
template <typename T> const VmfConstants<T>& constants(std::int64_t dim) {
  static thread_local VmfConstants<T> c{};
  if (c.dim != dim) math::fill_vmf_constants(dim, &c);
  return c;
}

template <VmfFn F, VmfRegime G, typename T>
__attribute__((noinline)) void run(const VmfConstants<T>& c, const T* __restrict k, T* __restrict out, int n) {
  for (int i = 0; i < n; i += kBlock) {
#pragma omp simd
    for (int j = 0; j < kBlock; ++j)
      out[i + j] = math::detail::vmf_edges<F>(k[i + j], math::detail::vmf_body<F, G>(c, k[i + j]));
  }
}

// Four results an element, VmfMoments or VmfPotential, in columns.
template <typename T> struct Columns {
  alignas(64) T x[4][kPadded];
};
template <VmfRegime G, typename T>
__attribute__((noinline)) void moments(const VmfConstants<T>& c, const T* __restrict k, Columns<T>& m, int at, int n) {
  T* __restrict a = m.x[0] + at;
  T* __restrict b = m.x[1] + at;
  T* __restrict f = m.x[2] + at;
  T* __restrict s = m.x[3] + at;
  for (int i = 0; i < n; i += kBlock) {
#pragma omp simd
    for (int j = 0; j < kBlock; ++j) {
      const auto p = math::detail::vmf_moments<G>(c, k[i + j]);
      a[i + j] = p.a, b[i + j] = p.complement, f[i + j] = p.first, s[i + j] = p.second;
    }
  }
}
template <VmfRegime G, typename T>
__attribute__((noinline)) void ends(const VmfConstants<T>& c, const T* __restrict k, Columns<T>& m, int at, int n) {
  T* __restrict a = m.x[0] + at;
  T* __restrict b = m.x[1] + at;
  T* __restrict r = m.x[2] + at;
  T* __restrict s = m.x[3] + at;
  for (int i = 0; i < n; i += kBlock) {
#pragma omp simd
    for (int j = 0; j < kBlock; ++j) {
      const auto p = math::detail::vmf_potential<G>(c, k[i + j]);
      a[i + j] = p.a, b[i + j] = p.complement, r[i + j] = p.r, s[i + j] = p.rest;
    }
  }
}

// Which elements are in which regime: order[start[g] .. start[g + 1]) are those of regime g.
struct Sorted {
  int start[math::kVmfRegimeCount + 1];
  bool single;  // all in one: order is not filled
  short order[kMaxChunk];
};
template <bool WithTaylor, typename T> void sort_by_regime(const VmfConstants<T>& c, const T* k, int n, Sorted& s) {
  int below[4] = {};
  for (int g = WithTaylor ? 0 : 1; g < 4; ++g) {
    const T edge = c.edge[g];
    int sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; ++i) sum += k[i] < edge ? 1 : 0;
    below[g] = sum;
  }
  if (WithTaylor) below[1] = below[1] < below[0] ? below[0] : below[1];
  below[2] = below[2] < below[1] ? below[1] : below[2];
  below[3] = below[3] < below[2] ? below[2] : below[3];
  s.start[0] = 0, s.start[math::kVmfRegimeCount] = n;
  int next[math::kVmfRegimeCount] = {};
  for (int g = 1; g < math::kVmfRegimeCount; ++g) next[g] = s.start[g] = below[g - 1];
  s.single = false;
  for (int g = 0; g < math::kVmfRegimeCount; ++g) s.single = s.single || s.start[g + 1] - s.start[g] == n;
  if (s.single) return;
  for (int i = 0; i < n; ++i)
    s.order[next[static_cast<int>(math::vmf_regime<WithTaylor>(c, k[i]))]++] = static_cast<short>(i);
}

// to = from[order], padded to a full block with the last element. Returns the padded length.
template <typename T> int gather(const T* from, const short* order, int n, T* to) {
  if (order)
    for (int i = 0; i < n; ++i) to[i] = from[order[i]];
  else
    for (int i = 0; i < n; ++i) to[i] = from[i];
  const int full = (n + kBlock - 1) / kBlock * kBlock;
  for (int i = n; i < full; ++i) to[i] = to[n - 1];
  return full;
}
template <typename T> void scatter(const T* __restrict from, const Sorted& s, int n, T* __restrict to) {
  if (s.single)
    for (int i = 0; i < n; ++i) to[i] = from[i];
  else
    for (int i = 0; i < n; ++i) to[s.order[i]] = from[i];
}

// visit(regime constant, sorted k, first position, padded count) for each regime that has elements.
template <bool WithTaylor, typename T, typename Visit>
void for_each_regime(const VmfConstants<T>& c, const T* k, int n, Sorted& s, Visit&& visit) {
  sort_by_regime<WithTaylor>(c, k, n, s);
  alignas(64) T sorted[kPadded];
  for (int g = 0; g < math::kVmfRegimeCount; ++g) {
    const int begin = s.start[g], count = s.start[g + 1] - begin;
    if (count == 0) continue;
    const int full = gather(k, s.single ? nullptr : s.order + begin, count, sorted);
    switch (static_cast<VmfRegime>(g)) {
      case VmfRegime::taylor:
        if constexpr (WithTaylor) visit(std::integral_constant<VmfRegime, VmfRegime::taylor>(), sorted, begin, full);
        break;
      case VmfRegime::series:
        visit(std::integral_constant<VmfRegime, VmfRegime::series>(), sorted, begin, full);
        break;
      case VmfRegime::near:
        visit(std::integral_constant<VmfRegime, VmfRegime::near>(), sorted, begin, full);
        break;
      case VmfRegime::middle:
        visit(std::integral_constant<VmfRegime, VmfRegime::middle>(), sorted, begin, full);
        break;
      default:
        visit(std::integral_constant<VmfRegime, VmfRegime::far>(), sorted, begin, full);
    }
  }
}

template <VmfFn F, typename T> void evaluate(const VmfConstants<T>& c, const T* k, T* out, int n) {
  Sorted s;
  alignas(64) T result[kPadded];
  for_each_regime<F == VmfFn::kl_uniform>(
      c, k, n, s, [&](auto g, const T* x, int at, int count) { run<F, decltype(g)::value>(c, x, result + at, count); });
  scatter(result, s, n, out);
}

template <VmfFn F, typename T> void invert(const VmfConstants<T>& c, const T* x, T* out, int n) {
  Sorted s;
  Columns<T> m;
  alignas(64) T k[kMaxChunk];
#pragma omp simd
  for (int i = 0; i < n; ++i) k[i] = math::detail::vmf_start(c, math::detail::vmf_target<F>(x[i]));
  for (int step = 0; step < math::kVmfHalleySteps; ++step) {
    for_each_regime<false>(c, k, n, s, [&](auto g, const T* sorted, int at, int count) {
      moments<decltype(g)::value>(c, sorted, m, at, count);
    });
    for (int i = 0; i < n; ++i) {
      const int at = s.single ? i : s.order[i];
      const VmfMoments<T> v = {m.x[0][i], m.x[1][i], m.x[2][i], m.x[3][i]};
      k[at] = math::detail::vmf_halley(math::detail::vmf_target<F>(x[at]), k[at], v);
    }
  }
#pragma omp simd
  for (int i = 0; i < n; ++i) out[i] = math::detail::vmf_inverse_edges(math::detail::vmf_target<F>(x[i]), k[i]);
}

template <typename T> void potentials(const VmfConstants<T>& c, const T* k, Columns<T>& out, int n) {
  Sorted s;
  Columns<T> m;
  for_each_regime<false>(c, k, n, s, [&](auto g, const T* sorted, int at, int count) {
    ends<decltype(g)::value>(c, sorted, m, at, count);
  });
  for (int j = 0; j < 4; ++j) scatter(m.x[j], s, n, out.x[j]);
}

template <typename T>
void near_pairs(const VmfConstants<T>& c, const T* k1, const T* k2, T* divergence, T* difference, int n) {
  alignas(64) T t[kMaxChunk], f[kMaxChunk];
  for (int i = 0; i < n; ++i) divergence[i] = difference[i] = T(0);
  for (int q = 0; q < math::VmfNodes<T>::count; ++q) {
    const T x = math::VmfNodes<T>::node(q), w = math::VmfNodes<T>::weight(q);
    for (int i = 0; i < n; ++i) t[i] = math::mad(T(0.5) * (k2[i] - k1[i]), T(1) + x, k1[i]);
    evaluate<VmfFn::resultant_derivative>(c, t, f, n);
    for (int i = 0; i < n; ++i) {
      const T g = w * f[i];
      divergence[i] = math::mad(T(1) - x, g, divergence[i]), difference[i] += g;
    }
  }
  for (int i = 0; i < n; ++i) {
    const T h = T(0.5) * (k2[i] - k1[i]);
    divergence[i] = h * (h * divergence[i]), difference[i] *= h;
  }
}

template <typename T>
void far_pairs(const VmfConstants<T>& c, const T* k1, const T* k2, T* divergence, T* difference, int n) {
  Columns<T> p, q;
  potentials(c, k1, p, n);
  potentials(c, k2, q, n);
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const math::VmfPotential<T> p1 = {p.x[0][i], p.x[1][i], p.x[2][i], p.x[3][i]};
    const math::VmfPotential<T> p2 = {q.x[0][i], q.x[1][i], q.x[2][i], q.x[3][i]};
    divergence[i] = math::detail::vmf_far_divergence(c, k1[i], k2[i], p1, p2);
    difference[i] = math::detail::vmf_far_difference(k1[i], k2[i], p1, p2);
  }
}

}  // namespace

template <typename T> void vmf_scalar(VmfFn fn, std::int64_t dim, const T* k, T* out, int n) {
  const VmfConstants<T>& c = constants<T>(dim);
  switch (fn) {
    case VmfFn::log_normalizer:
      return evaluate<VmfFn::log_normalizer>(c, k, out, n);
    case VmfFn::mean_resultant:
      return evaluate<VmfFn::mean_resultant>(c, k, out, n);
    case VmfFn::complement:
      return evaluate<VmfFn::complement>(c, k, out, n);
    case VmfFn::resultant_derivative:
      return evaluate<VmfFn::resultant_derivative>(c, k, out, n);
    case VmfFn::resultant_second:
      return evaluate<VmfFn::resultant_second>(c, k, out, n);
    case VmfFn::entropy:
      return evaluate<VmfFn::entropy>(c, k, out, n);
    case VmfFn::kl_uniform:
      return evaluate<VmfFn::kl_uniform>(c, k, out, n);
    case VmfFn::concentration_from_resultant:
      return invert<VmfFn::concentration_from_resultant>(c, k, out, n);
    case VmfFn::concentration_from_complement:
      return invert<VmfFn::concentration_from_complement>(c, k, out, n);
  }
}

template <typename T> void vmf_bregman(std::int64_t dim, const T* k1, const T* k2, T* const* out, int n) {
  const VmfConstants<T>& c = constants<T>(dim);
  if (out[0] || out[2]) {
    alignas(64) T a[kMaxChunk], b[kMaxChunk], divergence[kMaxChunk], difference[kMaxChunk];
    short order[kMaxChunk];
    int near = 0, far = n;
    for (int i = 0; i < n; ++i)
      order[math::detail::vmf_is_near(c, k1[i], k2[i]) ? near++ : --far] = static_cast<short>(i);
    for (int i = 0; i < n; ++i) a[i] = k1[order[i]], b[i] = k2[order[i]];
    near_pairs(c, a, b, divergence, difference, near);
    if (near < n) far_pairs(c, a + near, b + near, divergence + near, difference + near, n - near);
    for (int i = 0; i < n && out[0]; ++i) out[0][order[i]] = divergence[i];
    for (int i = 0; i < n && out[2]; ++i) out[2][order[i]] = difference[i];
  }
  if (out[1]) {
    alignas(64) T first[kMaxChunk];
    evaluate<VmfFn::resultant_derivative>(c, k1, first, n);
    for (int i = 0; i < n; ++i) out[1][i] = first[i] * (k1[i] - k2[i]);
  }
}

template void vmf_scalar<float>(VmfFn, std::int64_t, const float*, float*, int);
template void vmf_scalar<double>(VmfFn, std::int64_t, const double*, double*, int);
template void vmf_bregman<float>(std::int64_t, const float*, const float*, float* const*, int);
template void vmf_bregman<double>(std::int64_t, const double*, const double*, double* const*, int);

}  // namespace fokker::cpu::FK_ISA
