// The log-Bessel chunk kernel: sorts a chunk by regime, then runs one branch-free vector loop per regime.
//
// Included once per instruction set with FK_ISA defined. A regime belongs to an element alone (math::bessel_regime),
// and every loop treats its elements alike, so results do not depend on how a tensor is cut into chunks.
#include <array>
#include <cstdint>
#include <utility>

#include "cpu/bessel.h"
#include "cpu/partition.inc.h"
#include "math/bessel.h"

namespace fokker::cpu::FK_ISA {
namespace {

using math::Fn;

// Which of the Order + 1 outputs a kernel stores; what it does not store is never computed.
enum class Want { all, last };

template <typename T> struct Outputs {
  T* p[3];
};

// A function of its own: gcc turns an array declared inside a simd loop into memory and gives up on the loop.
template <Fn F, int Order, Want W, int R, typename T> FK_INLINE void one_element(T v, T x, T* a, T* b, T* c) {
  T y[3];
  math::bessel_kernel<F, Order, R>(v, x, y);
  if constexpr (W == Want::all || Order == 0) *a = y[0];
  if constexpr (Order >= 1) *b = y[1];
  if constexpr (Order >= 2) *c = y[2];
}

// n a multiple of kLanes, every element of regime R.
template <Fn F, int Order, Want W, int R, typename T>
__attribute__((noinline)) void regime_loop(const T* __restrict v, const T* __restrict x, Outputs<T> out, int n) {
  T* __restrict a = out.p[0], * __restrict b = out.p[1], * __restrict c = out.p[2];
  for (int k = 0; k < n; k += kLanes<T>) {
#pragma omp simd
    for (int i = k; i < k + kLanes<T>; ++i) one_element<F, Order, W, R>(v[i], x[i], a + i, b + i, c + i);
  }
}

template <typename T> using RegimeLoop = void (*)(const T*, const T*, Outputs<T>, int);
template <Fn F, int Order, Want W, typename T, int... R>
constexpr std::array<RegimeLoop<T>, sizeof...(R)> regime_loops(std::integer_sequence<int, R...>) {
  return {regime_loop<F, Order, W, R, T>...};
}

template <Fn F, typename T> __attribute__((noinline)) void find_regimes(const T* __restrict v, const T* __restrict x,
                                                                        uint8_t* __restrict regime, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) regime[i] = static_cast<uint8_t>(math::bessel_regime<F>(v[i], x[i]));
}

template <typename T> struct Scratch {
  alignas(64) T v[kBesselChunk + kLanes<T>], x[kBesselChunk + kLanes<T>], out[3][kBesselChunk + kLanes<T>];
};

template <Fn F, int Order, Want W, typename T> void chunk(const T* v, const T* x, T* const* out, int n) {
  constexpr int regimes = math::kRegimes<F, T>, lanes = kLanes<T>;
  static constexpr auto loops = regime_loops<F, Order, W, T>(std::make_integer_sequence<int, regimes>{});
  alignas(64) uint8_t regime[kBesselChunk];
  find_regimes<F>(v, x, regime, n);
  Partition<kBesselChunk, regimes> partition(regime, n);
  Scratch<T> s;
  const bool direct =
      (W == Want::last || out[0] != nullptr) && (Order < 1 || out[1] != nullptr) && (Order < 2 || out[2] != nullptr);

  for (int r = 0, left = n; left > 0; ++r) {
    const int m = partition.select(r);
    if (m == 0) continue;
    left -= m;
    if (m == n && direct && n % lanes == 0) {  // all of one regime: in place
      Outputs<T> to{};
      for (int j = 0; j <= Order; ++j) to.p[j] = out[j];
      return loops[r](v, x, to, n);
    }
    partition.take(v, x, s.v, s.x);
    for (int i = m; i % lanes != 0; ++i) s.v[i] = s.v[0], s.x[i] = s.x[0];
    loops[r](s.v, s.x, {{s.out[0], s.out[1], s.out[2]}}, (m + lanes - 1) / lanes * lanes);
    for (int j = 0; j <= Order; ++j)
      if (out[j] != nullptr) partition.put(s.out[j], out[j]);
  }
}

template <Fn F, typename T> void by_order(int order, const T* v, const T* x, T* const* out, int n) {
  if (order == 0) return chunk<F, 0, Want::all>(v, x, out, n);
  if (order == 1 && out[0] != nullptr) return chunk<F, 1, Want::all>(v, x, out, n);
  if (order == 1) return chunk<F, 1, Want::last>(v, x, out, n);
  // The scaled functions differ from the others by a multiple of x only.
  constexpr Fn G = F == Fn::log_ive ? Fn::log_iv : (F == Fn::log_kve ? Fn::log_kv : F);
  chunk<G, 2, Want::all>(v, x, out, n);
}

template <typename T> void by_function(Fn fn, int order, const T* v, const T* x, T* const* out, int n) {
  switch (fn) {
    case Fn::log_iv:
      return by_order<Fn::log_iv>(order, v, x, out, n);
    case Fn::log_ive:
      return by_order<Fn::log_ive>(order, v, x, out, n);
    case Fn::log_kv:
      return by_order<Fn::log_kv>(order, v, x, out, n);
    case Fn::log_kve:
      return by_order<Fn::log_kve>(order, v, x, out, n);
    case Fn::iv_ratio:
      return by_order<Fn::iv_ratio>(order, v, x, out, n);
    case Fn::kv_ratio:
      return by_order<Fn::kv_ratio>(order, v, x, out, n);
  }
}

}  // namespace

void bessel(Fn fn, int order, const float* v, const float* x, float* const* out, int n) {
  by_function(fn, order, v, x, out, n);
}
void bessel(Fn fn, int order, const double* v, const double* x, double* const* out, int n) {
  by_function(fn, order, v, x, out, n);
}

}  // namespace fokker::cpu::FK_ISA
