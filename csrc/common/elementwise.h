// Broadcast, strided elementwise access: inputs of any layout, contiguous outputs, no copy of an operand.
#pragma once

#include "common/check.h"
#include "common/half.h"

namespace fokker {

constexpr int kMaxInputs = 3;

// A few inputs over one broadcast shape; neighbouring dimensions that every input walks evenly are merged.
struct Elementwise {
  int inputs = 0;
  int ndim = 0;
  std::int64_t numel = 1;
  std::int64_t shape[kMaxDims];
  std::int64_t strides[kMaxInputs][kMaxDims];  // in elements, 0 where an input is broadcast
  const void* data[kMaxInputs];
  DType dtype[kMaxInputs];

  // Offset of element `i` (row-major over `shape`) in input `k`.
  FK_HD FK_INLINE std::int64_t offset(int k, std::int64_t i) const {
    std::int64_t o = 0;
    for (int d = ndim - 1; d > 0; --d) {
      o += i % shape[d] * strides[k][d];
      i /= shape[d];
    }
    return ndim ? o + i * strides[k][0] : 0;
  }
};

// `out` gives the shape; each input must broadcast to it.
inline Elementwise plan_elementwise(const TensorView& out, const char* const* names, const TensorView* const* in,
                                    int inputs) {
  if (out.ndim > kMaxDims) raise<ValueError>("out has ", out.ndim, " dimensions, at most ", kMaxDims, " are supported");
  Elementwise e;
  e.inputs = inputs;
  e.numel = out.numel();
  std::int64_t full[kMaxInputs][kMaxDims];
  for (int k = 0; k < inputs; ++k) {
    const TensorView& t = *in[k];
    e.data[k] = t.data;
    e.dtype[k] = t.dtype;
    const int lead = out.ndim - t.ndim;
    bool fits = lead >= 0;
    for (int d = 0; fits && d < out.ndim; ++d) {
      const std::int64_t size = d < lead ? 1 : t.shape[d - lead];
      fits = size == out.shape[d] || size == 1;
      full[k][d] = size == 1 ? 0 : t.strides[d - lead];
    }
    if (!fits) raise<ValueError>(names[k], " ", shape_of(t), " does not broadcast to the shape ", shape_of(out));
  }
  for (int d = 0; d < out.ndim; ++d) {
    if (out.shape[d] == 1) continue;
    bool merge = e.ndim > 0;
    for (int k = 0; merge && k < inputs; ++k) merge = e.strides[k][e.ndim - 1] == full[k][d] * out.shape[d];
    const int at = merge ? e.ndim - 1 : e.ndim++;
    e.shape[at] = merge ? e.shape[at] * out.shape[d] : out.shape[d];
    for (int k = 0; k < inputs; ++k) e.strides[k][at] = full[k][d];
  }
  return e;
}

}  // namespace fokker
