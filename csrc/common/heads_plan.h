// What the norm and rotary embedding of attention heads, and gated activations, read and write: one description for the
// CPU and the CUDA kernels.
#pragma once

#include "common/check.h"
#include "math/activation.h"

namespace fokker {

constexpr int kMaxHeadDim = 512, kMaxParts = 3;

// A tensor (batch, heads, tokens, elements).
struct HeadTensor {
  void* data = nullptr;
  std::int64_t batch = 0, head = 0, token = 0, element = 1;  // strides
};

enum class HeadNorm : int { none, rms, layer };

struct HeadPart {
  HeadTensor x, out, grad;  // backward: out is the gradient in x (null: not wanted)
  std::int64_t heads = 0;
  const void *weight = nullptr, *bias = nullptr;  // (dim,) in the type of the arithmetic, or null
  bool plain = false;                             // copied as it is: values
};

// out = rope(norm(x) weight + bias) of each part. `sums`: [part][weight, bias][dim] in double, of the first two parts.
struct HeadsPlan {
  bool backward = false, wide = false, interleaved = false;
  DType dtype = DType::f32;  // of x, out and grad
  HeadNorm norm = HeadNorm::rms;
  double eps = 0;
  std::int64_t batch = 0, tokens = 0;
  int dim = 0, parts = 0;
  int rotary = 0;  // of dim elements the first so many are turned; half-split pairs are theirs
  // (batch or 1, tokens, width) in the type of the arithmetic, contiguous; width is rotary or rotary / 2
  const void *cos = nullptr, *sin = nullptr;
  std::int64_t table_batch = 0;
  int width = 0;
  HeadPart part[kMaxParts];
  double *sums = nullptr, *partial = nullptr;

  FK_HD FK_INLINE int sum_count() const { return 4 * dim; }
  // Entry of a table for element j of a head, of those that are turned.
  FK_HD FK_INLINE int entry(int j) const {
    return width == rotary ? j : interleaved ? j / 2 : j < rotary / 2 ? j : j - rotary / 2;
  }
};

constexpr int kGateOperands = 8;
enum class GateSlot : int { gate, value, gate_bias, value_bias, out, grad, to_gate, to_value };

// out = act(gate + gate_bias) (value + value_bias), or without a value act(gate + gate_bias); backward: from grad the
// gradients to_gate and to_value. Dimensions are those of out, outermost first; biases are in the type of the
// arithmetic. `sums`: over all but the channels, of the gradients before they are rounded: (sum_count), those of the
// gate's channels from gate_at on, those of the value's from value_at; a channel is the offset in its bias.
struct GatePlan {
  bool backward = false, wide = false, gated = false;
  DType dtype = DType::f32;
  math::Activation kind = math::Activation::silu;
  int ndim = 0;
  std::int64_t shape[kMaxDims], n = 1;
  struct Operand {
    void* data = nullptr;
    std::int64_t strides[kMaxDims] = {};
  } at[kGateOperands];
  double *sums = nullptr, *partial = nullptr;
  std::int64_t sum_count = 0, gate_at = 0, value_at = 0;

  FK_HD FK_INLINE const Operand& slot(GateSlot s) const { return at[static_cast<int>(s)]; }
  FK_HD FK_INLINE std::int64_t offset(GateSlot s, std::int64_t i) const {
    const Operand& o = slot(s);
    std::int64_t to = 0;
    for (int d = ndim - 1; d > 0; --d) {
      to += i % shape[d] * o.strides[d];
      i /= shape[d];
    }
    return ndim ? to + i * o.strides[0] : 0;
  }
};

// Sorts the dimensions by the strides of the gate and merges those that every operand walks evenly.
inline void fold(GatePlan& p) {
  int order[kMaxDims], count = 0;
  for (int d = 0; d < p.ndim; ++d)
    if (p.shape[d] != 1) order[count++] = d;
  const auto& gate = p.slot(GateSlot::gate);
  for (int i = 1; i < count; ++i)  // few: insertion, stable
    for (int j = i; j > 0 && gate.strides[order[j]] > gate.strides[order[j - 1]]; --j)
      std::swap(order[j], order[j - 1]);
  GatePlan to = p;
  to.ndim = 0;
  for (int i = 0; i < count; ++i) {
    const int d = order[i];
    bool merge = to.ndim > 0;
    for (int k = 0; merge && k < kGateOperands; ++k)
      merge = !p.at[k].data || to.at[k].strides[to.ndim - 1] == p.at[k].strides[d] * p.shape[d];
    const int at = merge ? to.ndim - 1 : to.ndim++;
    to.shape[at] = merge ? to.shape[at] * p.shape[d] : p.shape[d];
    for (int k = 0; k < kGateOperands; ++k) to.at[k].strides[at] = p.at[k].strides[d];
  }
  p = to;
}

}  // namespace fokker
