// What the kernels of Gaussian mixtures read and write: one description each for the CPU and the CUDA kernels.
//
// A component has a centre m_k and a matrix, A_k or B_k, stored as
//   diagonal: (d) numbers
//   panels:   ceil(rows / 4) panels of 4 rows, column by column, (panels, d, 4), the last filled up with zeros; of a
//             lower triangular one only the columns up to the panel's last row are read.
// All are contiguous and of one type; a matrix has one block a component, or one for all. On the GPU x is (d, n) and
// the result of a pull (rows, n): threads are queries.
#pragma once

#include <cstdint>

#include "common/config.h"

namespace fokker {

constexpr int kGaussianRows = 4;

struct GaussianMatrix {
  bool diagonal = true, triangular = false;
  std::int64_t stride = 0;  // from component to component; 0: one for all
  std::int64_t rows = 0;    // d where diagonal or triangular

  FK_HD FK_INLINE std::int64_t panels() const { return (rows + kGaussianRows - 1) / kGaussianRows; }
  // Columns of panel p that are read.
  FK_HD FK_INLINE std::int64_t columns(std::int64_t p, std::int64_t d) const {
    const std::int64_t last = (p + 1) * kGaussianRows;
    return triangular && last < d ? last : d;
  }
};

// joint_ki = bias_k - |A_k (x_i - m_k)|^2 / 2 and its log-sum-exp over k; -inf where all are.
struct GaussianJoint {
  std::int64_t n = 0, k = 0, d = 0;
  GaussianMatrix matrix;
  const void *x = nullptr, *mean = nullptr, *root = nullptr, *bias = nullptr;  // (n, d), (k, d), A, (k)
  void* joint = nullptr;    // (k, n); null where not wanted, though the GPU always needs it
  void* log_sum = nullptr;  // (n), null where not wanted
  bool shares = false;      // joint becomes exp(joint - log_sum)
};

// out_i = sum_k w_ki (B_k (x_i - m_k) + o_k); a weight of zero adds nothing, whatever x_i holds.
struct GaussianPull {
  std::int64_t n = 0, k = 0, d = 0;
  GaussianMatrix matrix;
  const void *weight = nullptr, *x = nullptr, *mean = nullptr, *pull = nullptr;  // (k, n), (n, d), (k, d), B
  const void* offset = nullptr;                                                  // (k, rows), or null
  void* out = nullptr;                                                           // (n, rows)
};

// sum_i w_ki, sum_i w_ki delta and sum_i w_ki delta^2 with delta = x_i - m_k; no weight, no sum, as above.
struct GaussianMoments {
  std::int64_t n = 0, k = 0, d = 0;
  const void *weight = nullptr, *x = nullptr, *mean = nullptr;  // (k, n), (n, d), (k, d)
  void *mass = nullptr, *first = nullptr, *second = nullptr;    // (k), (k, d), (k, d)
};

// Components under noise of each query's own: N(a_i m_k, C_ki), C_ki = a_i^2 S_k + s_i I with s_i = sigma_i^2. S_k is
// v_k I, diag(v_k), Q diag(v_k) Q^T with an orthonormal basis Q (d, d), or P P^T + t_k I with P (d, rank) whose
// columns are orthogonal and of squared lengths v_k. joint_ki = bias_k - (delta^T C^-1 delta + log det C) / 2 with
// delta = x_i - a_i m_k; r_ki is its softmax over k; NaN where C is singular (its least variance below the least
// normal number).
struct GaussianLevels {
  enum Kind { kIsotropic, kDiagonal, kFull, kLowRank };
  Kind kind = kDiagonal;
  std::int64_t n = 0, k = 0, d = 0, rank = 0;                        // rank: numbers of a v_k
  bool one_alpha = false, one_noise = false;                         // one for all queries
  bool one_variance = false;                                         // one covariance for all components
  const void *x = nullptr, *alpha = nullptr, *noise = nullptr;       // (n, d), (n or 1), (n or 1)
  const void *bias = nullptr, *mean = nullptr, *variance = nullptr;  // (k), (k, d), (k or 1, rank)
  const void *basis = nullptr, *turned = nullptr, *floor = nullptr;  // panels of Q or P and of its transpose; t
  void* log_sum = nullptr;                                           // (n)
  void *score = nullptr, *posterior = nullptr;  // (n, d), or null: -sum_k r C^-1 delta, sum_k r (m + a S C^-1 delta)
  void *joint = nullptr, *squared = nullptr;  // (k, n), or null, though the GPU always needs joint; delta^T C^-1 delta
  bool shares = false;                        // joint becomes r

  FK_HD FK_INLINE std::int64_t at(std::int64_t component) const { return one_variance ? 0 : component; }
  FK_HD FK_INLINE static std::int64_t panels(std::int64_t rows) { return (rows + kGaussianRows - 1) / kGaussianRows; }
};

}  // namespace fokker
