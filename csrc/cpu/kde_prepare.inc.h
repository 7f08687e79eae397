// Row kernels that prepare density sums: centring, norms, column sums.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kde_plan.h"
#include "math/arithmetic.h"

namespace fokker::cpu::FK_ISA {

// to[k] = row[k] - centre[k] (centre null: row[k]), and the sum of their squares; `to` null: the sum alone.
template <typename T, typename A>
double kde_centre(const T* __restrict row, const double* __restrict centre, std::int64_t d, A* __restrict to) {
  constexpr int lanes = 16;
  double square[lanes] = {}, total = 0;
  A scratch[lanes];
  std::int64_t k = 0;
  for (; k + lanes <= d; k += lanes) {
    A* __restrict out = to ? to + k : scratch;
    if (centre) {
#pragma omp simd
      for (int l = 0; l < lanes; ++l) out[l] = static_cast<A>(static_cast<double>(row[k + l]) - centre[k + l]);
    } else {
#pragma omp simd
      for (int l = 0; l < lanes; ++l) out[l] = static_cast<A>(row[k + l]);
    }
#pragma omp simd
    for (int l = 0; l < lanes; ++l) {
      const double t = static_cast<double>(out[l]);
      square[l] = math::mad(t, t, square[l]);
    }
  }
  for (; k < d; ++k) {
    const A value = static_cast<A>(static_cast<double>(row[k]) - (centre ? centre[k] : 0.0));
    const double t = static_cast<double>(value);
    if (to) to[k] = value;
    total = math::mad(t, t, total);
  }
  if (d >= lanes)
    for (int l = 0; l < lanes; ++l) total += square[l];
  return total;
}

// Adds a finite row and its squares to column sums; false, adding nothing, for any other.
template <typename T>
bool kde_add_row(const T* __restrict row, std::int64_t d, double* __restrict sum, double* __restrict square) {
  constexpr int lanes = 16;
  T zero[lanes] = {};
  std::int64_t k = 0;
  for (; k + lanes <= d; k += lanes) {
#pragma omp simd
    for (int l = 0; l < lanes; ++l) zero[l] += row[k + l] * T(0);
  }
  for (; k < d; ++k) zero[0] += row[k] * T(0);
  for (int l = 1; l < lanes; ++l) zero[0] += zero[l];
  if (zero[0] != T(0)) return false;
#pragma omp simd
  for (k = 0; k < d; ++k) {
    const double t = static_cast<double>(row[k]);
    sum[k] += t;
    square[k] = math::mad(t, t, square[k]);
  }
  return true;
}

namespace {

template <int D, typename T>
bool add_rows(const T* __restrict y, std::int64_t rows, double* __restrict sum, double* __restrict square) {
  constexpr int lanes = 16 * D;  // every lane sees one coordinate
  T zero[lanes] = {};
  double sums[lanes] = {}, squares[lanes] = {};
  std::int64_t j = 0;
  for (; j + 16 <= rows; j += 16) {
    const T* __restrict from = y + j * D;
#pragma omp simd
    for (int l = 0; l < lanes; ++l) {
      const double t = static_cast<double>(from[l]);
      zero[l] += from[l] * T(0);
      sums[l] += t;
      squares[l] = math::mad(t, t, squares[l]);
    }
  }
  for (int l = 0; l < static_cast<int>(rows - j) * D; ++l) {
    const double t = static_cast<double>(y[j * D + l]);
    zero[l] += y[j * D + l] * T(0);
    sums[l] += t, squares[l] += t * t;
  }
  for (int l = 1; l < lanes; ++l) zero[0] += zero[l];
  if (zero[0] != T(0)) return false;
  for (int l = 0; l < lanes; ++l) sum[l % D] += sums[l], square[l % D] += squares[l];
  return true;
}

}  // namespace

// Adds rows of up to four coordinates to column sums if all are finite; else false, adding nothing.
template <typename T> bool kde_add_rows(const T* y, std::int64_t rows, std::int64_t d, double* sum, double* square) {
  switch (d) {
    case 1:
      return add_rows<1>(y, rows, sum, square);
    case 2:
      return add_rows<2>(y, rows, sum, square);
    case 3:
      return add_rows<3>(y, rows, sum, square);
    default:
      return add_rows<4>(y, rows, sum, square);
  }
}

}  // namespace fokker::cpu::FK_ISA
