// Packs a chunk of the data for the kernels of the density sums: panels, values, and the terms of the exponents.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa.h"
#include "cpu/kde_plan.h"
#include "cpu/kde_scan.h"
#include "cpu/parallel.h"

namespace fokker::cpu {

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;
constexpr double kInfinity = std::numeric_limits<double>::infinity(), kNaN = std::numeric_limits<double>::quiet_NaN();

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline double inverse_square(const KdeSums& call, double h) {
  return 1 / (call.kernel == math::Kernel::laplace ? h : h * h);
}

// Sums of kde_small below 2^-this have lost weights that are worth keeping below the least normal number: without a
// shift they are done again. Values are y - x there, `delta` sums squared distances: weights times a bandwidth or its
// square are to be kept too.
template <typename T> double kde_faint_bits(const KdeSums& call) {
  double bits = sizeof(T) == 4 ? 126 - 27 : 1022 - 56;
  if (call.shift) return bits;
  if (call.square) bits *= 0.5;
  const double power = call.delta ? 2 : call.values && call.weighting != KdeSums::Values::none ? 1 : 0;
  if (power > 0) {
    const std::int64_t count = call.bandwidth_kind == KdeSums::Bandwidth::per_query ? call.n : 1;
    double narrowest = 1;
    for (std::int64_t i = 0; i < count; ++i) narrowest = std::fmin(narrowest, call.bandwidth[i]);  // not NaN
    bits += power * std::log2(narrowest);
  }
  return bits - std::log2(static_cast<double>(call.m));
}

template <typename T, typename A> class KdePack {
 public:
  // small: for kde_small. order: by place the datum; null: as they come.
  KdePack(const KdeBlock<T, A>& block, const KdeScan& scan, const KdeShape& shape, bool small,
          const std::int32_t* order)
      : block_(block), call_(*block.call), scan_(scan), shape_(shape), small_(small), order_(order) {
    relative_ = block.by_slope || !call_.v;
    dv_ = relative_ ? call_.d : call_.dv;
  }

  const KdeChunk<T, A>& chunk() const { return chunk_; }

  void run(std::int64_t begin, std::int64_t count) {
    KdeChunk<T, A>& c = chunk_;
    if (c.count == count && c.begin == begin) return;
    const std::int64_t d = call_.d, panel = shape_.panel;
    c.begin = begin, c.count = count, c.padded = ceil_div(count, shape_.unit) * shape_.unit;
    c.panels.resize(c.padded * d);
    c.term.resize(c.padded);
    if (!small_) {
      c.values.resize(std::max<std::int64_t>(block_.offsets ? 0 : c.padded * block_.value_stride, 1));
      for (AlignedArray<A>* a : {&c.norm, &c.scale}) a->resize(c.padded);
      for (AlignedArray<T>* a : {&c.bias, &c.slope}) a->resize(c.padded);
    }
    if (!small_ || block_.fixed) c.weight.resize(c.padded);
    parallel_for(c.padded / panel, 1 + 4096 / (panel * d), [&](std::int64_t begin_panel, std::int64_t end_panel) {
      for (std::int64_t p = begin_panel; p < end_panel; ++p) small_ ? pack_small(p * panel) : pack_panel(p * panel);
    });
  }

 private:
  using Centre = double (*)(const T*, const double*, std::int64_t, A*);

  std::int64_t datum(std::int64_t j) const { return order_ ? order_[chunk_.begin + j] : chunk_.begin + j; }
  bool used(std::int64_t j) const { return j < chunk_.count && !scan_.dropped(datum(j)); }

  double bias(std::int64_t datum) const {
    double bias = call_.bias ? (call_.bias[datum] - scan_.top_bias) * kLog2E : 0;
    if (call_.weight && !block_.fixed) bias += std::log2(call_.weight[datum]);
    return bias;
  }

  void pack_small(std::int64_t first) {
    const std::int64_t d = call_.d, panel = shape_.panel;
    const T* y = static_cast<const T*>(call_.y);
    A* out = chunk_.panels.get() + first * d;
    for (std::int64_t j = 0; j < panel; ++j) {
      const bool real = used(first + j);
      const std::int64_t at = real ? datum(first + j) : 0;
      for (std::int64_t k = 0; k < d; ++k) out[k * panel + j] = real ? static_cast<A>(y[at * d + k]) : A(0);
      chunk_.term[first + j] = static_cast<A>(real ? bias(at) : -kInfinity);
      if (block_.fixed) chunk_.weight[first + j] = static_cast<T>(real && call_.weight ? call_.weight[at] : 1.0);
    }
  }

  void pack_panel(std::int64_t first) {
    constexpr std::int64_t length = 64, most = 64;
    const Centre centre = FK_PER_ISA_OVERLOAD(kde_centre, Centre);
    const std::int64_t d = call_.d, panel = shape_.panel, stride = block_.value_stride;
    const T *y = static_cast<const T*>(call_.y), *v = static_cast<const T*>(call_.v);
    A rows[most][length];
    double norms[most] = {};
    A* out = chunk_.panels.get() + first * d;
    for (std::int64_t k = 0; k < d; k += length) {
      const std::int64_t count = std::min(length, d - k);
      for (std::int64_t j = 0; j < panel; ++j) {
        if (used(first + j))
          norms[j] += centre(y + datum(first + j) * d + k, block_.centre ? block_.centre + k : nullptr, count, rows[j]);
        else std::fill(rows[j], rows[j] + count, A(0));
      }
      for (std::int64_t i = 0; i < count; ++i)
        for (std::int64_t j = 0; j < panel; ++j) out[(k + i) * panel + j] = rows[j][i];
    }
    for (std::int64_t j = first; j < first + panel; ++j) {
      const bool real = used(j);
      const std::int64_t at_datum = real ? datum(j) : 0;
      pack_terms(j, at_datum, real, norms[j - first]);
      for (std::int64_t at = 0; at < stride && !block_.offsets; at += block_.width) {
        const std::int64_t width = std::min(block_.width, stride - at), count = std::min(width, dv_ - at);
        T* row = chunk_.values.get() + at * chunk_.padded + j * width;
        std::fill(row, row + width, T(0));
        if (!real) continue;
        const T* from = relative_ ? y + at_datum * d + at : v + at_datum * dv_ + at;
        if (!relative_ || block_.signs) std::copy(from, from + count, row);
        else
          for (std::int64_t k = 0; k < count; ++k)
            row[k] = static_cast<T>(static_cast<double>(from[k]) - scan_.centre[at + k]);
      }
    }
  }

  void pack_terms(std::int64_t j, std::int64_t datum, bool real, double norm) {
    KdeChunk<T, A>& c = chunk_;
    double bias = -kInfinity, scale = 1, slope = 1, weight = 1;
    if (real) {
      bias = this->bias(datum);
      if (call_.weight && block_.fixed) weight = call_.weight[datum];
      if (call_.bandwidth_kind == KdeSums::Bandwidth::per_datum)
        scale = slope = inverse_square(call_, call_.bandwidth[datum]);
    }
    double term = bias;
    if (block_.gaussian && real && block_.metric == Metric::product && !block_.general)
      term -= 0.5 * static_cast<double>(block_.scale) * norm;
    c.term[j] = static_cast<A>(term);
    c.norm[j] = static_cast<A>(block_.metric == Metric::product ? -0.5 * norm : 0.0);
    c.scale[j] = static_cast<A>(scale);
    c.slope[j] = static_cast<T>(slope);
    c.weight[j] = static_cast<T>(weight);
    c.bias[j] =
        static_cast<T>(block_.gaussian && !std::isfinite(bias) ? 0.0 : bias);  // a moment takes it off the exponent
  }

  const KdeBlock<T, A>& block_;
  const KdeSums& call_;
  const KdeScan& scan_;
  const KdeShape& shape_;
  const bool small_;
  const std::int32_t* const order_;
  bool relative_;
  std::int64_t dv_;
  KdeChunk<T, A> chunk_;
};

}  // namespace fokker::cpu
