// What a modulated norm or gated residual reads and writes: one description for the CPU and the CUDA kernels.
#pragma once

#include "common/config.h"
#include "common/tensor_view.h"

namespace fokker {

// A tensor (batch, tokens, columns) by its strides, 0 where it does not depend on a dimension; no data: absent.
struct RowOperand {
  void* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t batch = 0, token = 0, column = 1;

  FK_HD FK_INLINE explicit operator bool() const { return data != nullptr; }
  FK_HD FK_INLINE std::int64_t at(std::int64_t b, std::int64_t t) const { return b * batch + t * token; }
};

// A gate, shift or scale: the sum of a tensor and a table (columns), either of which may be absent.
struct Modulation {
  RowOperand main, table;

  FK_HD FK_INLINE explicit operator bool() const { return main || table; }
  FK_HD FK_INLINE bool per_token() const { return main && main.token != 0; }
};

enum class Norm : int { none, layer, rms };

// forward:   sum = x + gate branch (with a branch), out = (norm(sum or x) weight + bias) (1 + scale) + shift
// backward:  from grad_sum and grad (absent: 0) the gradients in x and the branch, in a gate and a scale that change by
//            token, and per sample (batch, columns), in the arithmetic's type, the sums over tokens of p and p norm(x)
//            (p = grad, or grad (1 + scale) where `weighted`) and of the gradient in sum times branch.
struct NormPlan {
  Norm norm = Norm::none;
  bool wide = false;  // computed in double
  bool backward = false, weighted = false;
  double eps = 0;
  int token_block = 32;  // tokens whose column sums are added up one after the other, before those of blocks in double
  std::int64_t batch = 0, tokens = 0, columns = 0;
  RowOperand x, branch, weight, bias;
  Modulation gate, shift, scale;
  RowOperand sum, out;
  RowOperand grad_sum, grad, to_x, to_branch, to_gate, to_scale;
  void *sum_p = nullptr, *sum_pn = nullptr, *sum_gate = nullptr;  // sum_p and sum_pn go together
  void* partial = nullptr;                                        // CUDA: sum_count() rows a block of tokens

  FK_HD FK_INLINE int sum_count() const { return (sum_p ? 2 : 0) + (sum_gate ? 1 : 0); }
};

FK_HD FK_INLINE std::int64_t token_blocks(const NormPlan& p) { return (p.tokens + p.token_block - 1) / p.token_block; }

}  // namespace fokker
