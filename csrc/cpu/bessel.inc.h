// The log-Bessel chunk kernel: sorts a chunk by regime, then runs one branch-free vector loop per regime.
//
// Included once per instruction set with FK_ISA defined. A regime belongs to an element alone (math::bessel_regime),
// and every loop treats its elements alike, so results do not depend on how a tensor is cut into chunks.
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/bessel.h"
#include "math/bessel.h"

namespace fokker::cpu::FK_ISA {
namespace {

using math::Fn;

// Elements per pass of an inner loop: one cache line, so that a loop never has a remainder.
template <typename T> constexpr int kLanes = 64 / sizeof(T);

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

// All of the n (a multiple of 8) regimes are r.
template <int n> bool all_are(const uint8_t* regime, uint8_t r) {
  uint64_t differs = 0, word;
  for (int i = 0; i < n; i += 8) {
    std::memcpy(&word, regime + i, 8);
    differs |= word ^ (r * UINT64_C(0x0101010101010101));
  }
  return differs == 0;
}

template <typename T> struct Scratch {
  alignas(64) T v[kBesselChunk], x[kBesselChunk], out[3][kBesselChunk];
};

template <Fn F, int Order, Want W, typename T> void chunk(const T* v, const T* x, T* const* out, int n) {
  constexpr int regimes = math::kRegimes<F, T>, lanes = kLanes<T>;
  static constexpr auto loops = regime_loops<F, Order, W, T>(std::make_integer_sequence<int, regimes>{});
  // Two lists for every regime: consecutive elements do not wait for each other's counter.
  constexpr int second = kBesselChunk / 2;
  int count[2][regimes] = {};
  uint8_t regime[kBesselChunk];
  int index[regimes][kBesselChunk];
  find_regimes<F>(v, x, regime, n);
  Scratch<T> s;
  const bool direct =
      (W == Want::last || out[0] != nullptr) && (Order < 1 || out[1] != nullptr) && (Order < 2 || out[2] != nullptr);

  // Runs of whole blocks of one regime are computed in place, the rest is listed by regime.
  for (int i = 0; i < n;) {
    const uint8_t r = regime[i];
    int end = i;
    while (direct && end + lanes <= n && all_are<lanes>(regime + end, r)) end += lanes;
    if (end > i) {
      Outputs<T> to{};
      for (int j = 0; j <= Order; ++j) to.p[j] = out[j] == nullptr ? nullptr : out[j] + i;
      loops[r](v + i, x + i, to, end - i);
      i = end;
    } else {
      const int stop = i + lanes < n ? i + lanes : n;
      for (; i + 1 < stop; i += 2) {
        const int r0 = regime[i], r1 = regime[i + 1];
        index[r0][count[0][r0]++] = i;
        index[r1][second + count[1][r1]++] = i + 1;
      }
      if (i < stop) index[regime[i]][count[0][regime[i]]++] = i, ++i;
    }
  }
  for (int r = 0; r < regimes; ++r) {
    const int m0 = count[0][r], m = m0 + count[1][r];
    if (m == 0) continue;
    int* at = index[r];
    for (int i = m0; i < m; ++i) at[i] = at[second + i - m0];
    for (int i = 0; i < m; ++i) s.v[i] = v[at[i]], s.x[i] = x[at[i]];
    for (int i = m; i % lanes != 0; ++i) s.v[i] = s.v[0], s.x[i] = s.x[0];
    loops[r](s.v, s.x, {{s.out[0], s.out[1], s.out[2]}}, (m + lanes - 1) / lanes * lanes);
    for (int j = 0; j <= Order; ++j)
      if (out[j] != nullptr)
        for (int i = 0; i < m; ++i) out[j][at[i]] = s.out[j][i];
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
