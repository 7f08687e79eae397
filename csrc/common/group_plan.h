// What a group norm works on, forward or backward: checked once by the binding, read by every kernel.
#pragma once

#include "common/config.h"
#include "common/tensor_view.h"

namespace fokker {

enum class Activation : int { none, silu, relu };
constexpr int kActivations = 3;

// A tensor (batch, channels, positions) in one of the two layouts: rows are channels, whose positions lie side by side,
// or (`last`) positions, whose channels do.
struct GroupMap {
  void* data = nullptr;
  std::int64_t batch_stride = 0, row_stride = 0;
  FK_HD FK_INLINE std::int64_t row(std::int64_t b, std::int64_t r) const { return b * batch_stride + r * row_stride; }
};

// One number a channel (or a group), perhaps of each sample.
struct GroupParameter {
  const void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch_stride = 0, stride = 0;
};

// Forward: sum = x + residual (where there is one), out = act(shift + (weight x_hat + bias) (1 + scale)), x_hat =
// (x - mean) rstd, or x rstd where not centred. Backward: out is the gradient in x.
struct GroupPlan {
  bool backward = false, last = false;
  bool wide = false, centred = true;
  Activation activation = Activation::silu;
  DType dtype = DType::f32;
  std::int64_t batch = 0, channels = 0, groups = 1, positions = 1;
  double eps = 0;
  GroupMap x, residual, sum, out;  // backward: x is what was normalised
  GroupMap grad, grad_sum;
  GroupParameter weight, bias, scale, shift, std;
  double* stats = nullptr;  // (batch, groups, 2): mean and rstd; written forward, read backward
  double* sums = nullptr;   // (batch, channels, 2): sums over positions of du and du x_hat
  double* work = nullptr;   // partial sums of a GPU's blocks

  FK_HD FK_INLINE std::int64_t per_group() const { return channels / groups; }
  FK_HD FK_INLINE double count() const { return static_cast<double>(per_group() * positions); }
};

// u = factor (x - mean) + addend of one channel of one sample. The mean is that of the group, rounded; what the
// rounding leaves is in the addend, so that a mean far from 0 costs no digits.
template <typename T> struct GroupChannel {
  T mean, factor, addend;
};
// The gradient in x is factor du - slope (x - pivot) - offset.
template <typename T> struct GroupSlope {
  T pivot, slope, offset;
};

}  // namespace fokker
