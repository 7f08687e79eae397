// Body of the sinusoidal embeddings, once per instruction set: phases, sines and cosines in double, rounded once.
#include "cpu/sde_operand.inc.h"
#include "cpu/waves.h"
#include "math/elementary.h"

namespace fokker::cpu::FK_ISA {
namespace {

constexpr int kWaveLot = 16;  // gcc vectorises loops of a fixed count only

template <typename T>
inline void wave_lot(double t, const double* turns, const double* phases, double gain, T* cos, T* sin) {
  double u[kWaveLot], c[kWaveLot], s[kWaveLot];
  if (phases)
    for (int l = 0; l < kWaveLot; ++l) u[l] = t * turns[l] + phases[l];
  else
    for (int l = 0; l < kWaveLot; ++l) u[l] = t * turns[l];
  for (int l = 0; l < kWaveLot; ++l) u[l] -= math::detail::round_to_integer(u[l]);
  for (int l = 0; l < kWaveLot; ++l) {
    const auto both = math::sincos_2pi(u[l]);
    c[l] = gain * both.cos, s[l] = gain * both.sin;
  }
  for (int l = 0; l < kWaveLot; ++l) cos[l] = static_cast<T>(c[l]), sin[l] = static_cast<T>(s[l]);
}

template <typename T> void waves_of(const WavesPlan& p, std::int64_t begin, std::int64_t end) {
  constexpr int tile = 256;
  alignas(64) T cos[tile], sin[tile];
  alignas(64) double turns[kWaveLot], phases[kWaveLot];
  for (std::int64_t i = begin; i < end; ++i) {
    for (std::int64_t from = 0; from < p.count; from += tile) {
      const int n = static_cast<int>(std::min<std::int64_t>(tile, p.count - from));
      int k = 0;
      for (; k + kWaveLot <= n; k += kWaveLot)
        wave_lot(p.t[i], p.turns + from + k, p.phases ? p.phases + from + k : nullptr, p.gain, cos + k, sin + k);
      if (k < n) {
        for (int l = 0; l < kWaveLot; ++l) {
          turns[l] = k + l < n ? p.turns[from + k + l] : 0.0;
          phases[l] = p.phases && k + l < n ? p.phases[from + k + l] : 0.0;
        }
        wave_lot(p.t[i], turns, phases, p.gain, cos + k, sin + k);
      }
      const std::int64_t at = i * p.width + from, second = at + p.count;
      give_any(p.order == WaveOrder::sin_cos ? sin : cos, p.out, p.dtype, at, 1, n);
      if (p.order != WaveOrder::cos) give_any(p.order == WaveOrder::sin_cos ? cos : sin, p.out, p.dtype, second, 1, n);
    }
    const T none[1] = {T(0)};
    const std::int64_t filled = p.order == WaveOrder::cos ? p.count : 2 * p.count;
    for (std::int64_t j = filled; j < p.width; ++j) give_any(none, p.out, p.dtype, i * p.width + j, 1, 1);
  }
}

}  // namespace

void waves_run(const WavesPlan& p, std::int64_t begin, std::int64_t end) {
  if (p.dtype == DType::f64) waves_of<double>(p, begin, end);
  else waves_of<float>(p, begin, end);
}

}  // namespace fokker::cpu::FK_ISA
