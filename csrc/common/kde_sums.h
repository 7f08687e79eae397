// What a density-sum kernel is called with: one description for the CPU and the GPU launchers.
//
// For every query i, over all data j (but j == i + exclude): z_ij = |x_i - y_j| / h, pair weight
//   w_ij = F(z) e^{E(z) + bias_j},  gradient weight  g_ij = G(z) e^{E(z) + bias_j}      (csrc/math/kde_kernel.h)
// and, with a top exponent m_i (the running maximum, or `shift`), in one pass:
//   sum_i = sum_j u_j w_ij e^{-m_i},   square_i = sum_j (u_j w_ij e^{-m_i})^2,   delta_i = sum_j u_j g_ij z^2 e^{-m_i}
//   values_i = sum_j u_j w_ij e^{-m_i} v_j                         (weighting by weight), or
//              sum_j u_j g_ij e^{-m_i} (y_j - x_i) / h^2           (by slope: the gradient of sum_i in x_i; laplace:
//              its own)
// Results are finished in double:
//   online (shift null): log_sum_i = m_i + log sum_i; square_i / sum_i^2; delta_i / sum_i; values_i / sum_i
//   fixed (shift given): sum_i, square_i, delta_i, values_i as they stand, for exponents E + bias_j - shift_i <= about
//   0.
// Rows without a single weight > 0: log_sum -inf (fixed: 0), the others 0. A NaN in a query touches its row only, a NaN
// in the data or the bias every row.
#pragma once

#include <cstdint>

#include "math/kde_kernel.h"

namespace fokker {

struct KdeSums {
  enum class Values { none, weight, slope };
  enum class Bandwidth { one, per_query, per_datum };

  math::Kernel kernel = math::Kernel::gaussian;
  double nu = 1;  // student_t: degrees of freedom
  std::int64_t n = 0, m = 0, d = 0, dv = 0;
  std::int64_t exclude = INT64_MIN;  // leave out j == i + exclude; INT64_MIN: nothing
  bool highest = true;  // float32: rows whose error bound is not within 4e-7 |log_sum| + 2e-6 are done again in double
  Values weighting = Values::none;
  Bandwidth bandwidth_kind = Bandwidth::one;
  // Contiguous, of the compute type T (float or double) unless said; null where optional.
  const void* x = nullptr;            // (n, d)
  const void* y = nullptr;            // (m, d)
  const void* v = nullptr;            // (m, dv), optional: null takes y - x_i (relative to the query), dv = d
  const double* bandwidth = nullptr;  // one, n or m numbers > 0
  const double* bias = nullptr;       // (m), optional; -inf leaves a datum out
  const double* weight = nullptr;     // (m) u_j of any sign, optional (fixed mode, or >= 0)
  const double* shift = nullptr;      // (n), optional
  // Results, null where not wanted.
  double* log_sum = nullptr;  // (n): log_sum, or in fixed mode sum
  double* square = nullptr;   // (n)
  double* delta = nullptr;    // (n)
  void* values = nullptr;     // (n, dv), of T
};

}  // namespace fokker
