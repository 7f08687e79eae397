// Checks, random numbers and tensors for the emulator's C++ tests.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "common/elementwise.h"
#include "cuda/kernels.h"

namespace fokker::test {

inline int failures = 0;
inline std::uint64_t digest = 14695981039346656037u;  // FNV-1a over every output: one number for a whole run's bits

inline void check(bool good, const std::string& what) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  failures += !good;
}
template <typename T> void add_to_digest(const std::vector<T>& v) {
  for (T e : v) {
    if (e != e) e = T(NAN);  // the sign of a nan means nothing
    unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, &e, sizeof(T));
    for (unsigned char b : bytes) digest = (digest ^ b) * 1099511628211u;
  }
}

struct Random {
  std::uint64_t state;
  double operator()() {  // [0, 1)
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<double>(state >> 11) * 0x1p-53;
  }
  double between(double lo, double hi) { return lo + (hi - lo) * (*this)(); }
  double log_between(double lo, double hi) { return std::exp(between(std::log(lo), std::log(hi))); }
};

template <typename T> inline constexpr DType kType = sizeof(T) == 8 ? DType::f64 : DType::f32;
template <typename T> const char* type_name() { return sizeof(T) == 8 ? "double" : "float"; }

// A tensor over borrowed memory with the given shape and strides.
struct Tensor {
  std::vector<std::int64_t> shape, strides;
  TensorView view;
  Tensor(void* data, DType dtype, std::vector<std::int64_t> s, std::vector<std::int64_t> st = {})
      : shape(std::move(s)), strides(std::move(st)) {
    if (strides.empty()) {
      strides.assign(shape.size(), 1);
      for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    }
    view.data = data, view.dtype = dtype, view.ndim = static_cast<int>(shape.size());
    view.shape = shape.data(), view.strides = strides.data();
  }
};
inline Elementwise plan(const Tensor& out, std::vector<const Tensor*> in) {
  const char* names[kMaxInputs] = {"a", "b", "c"};
  const TensorView* views[kMaxInputs];
  for (std::size_t i = 0; i < in.size(); ++i) views[i] = &in[i]->view;
  return plan_elementwise(out.view, names, views, static_cast<int>(in.size()));
}

// Largest |a - b| / max(|b|, 1); 0 for equal infinities and for nan against nan, inf for nan against a number.
template <typename T> double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = double(a[i]), y = double(b[i]);
    if (x == y || (x != x && y != y)) continue;
    const double d = std::abs(x - y) / std::max(std::abs(y), 1.0);
    worst = d > worst || d != d ? (d == d ? d : INFINITY) : worst;
  }
  return worst;
}
template <typename T>
void expect_near(const std::vector<T>& a, const std::vector<T>& b, double tolerance, const std::string& what) {
  const double d = distance(a, b);
  add_to_digest(a);
  char text[64];
  std::snprintf(text, sizeof text, " (%.2g, allowed %.2g)", d, tolerance);
  check(d <= tolerance, what + text);
}
template <typename T> void expect_bits(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  std::size_t different = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    different += std::memcmp(&a[i], &b[i], sizeof(T)) != 0 && !(a[i] != a[i] && b[i] != b[i]);
  add_to_digest(a);
  check(a.size() == b.size() && different == 0, what + (different ? ": " + std::to_string(different) + " differ" : ""));
}

}  // namespace fokker::test
