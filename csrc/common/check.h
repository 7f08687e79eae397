// Argument checks that name the argument and say what was wanted and what was seen.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "common/tensor_view.h"

namespace fokker {

struct ValueError : std::invalid_argument {
  using invalid_argument::invalid_argument;
};  // -> ValueError
struct TypeError : std::invalid_argument {
  using invalid_argument::invalid_argument;
};  // -> TypeError
struct CudaError : std::runtime_error {
  using runtime_error::runtime_error;
};  // -> fokker.CudaError

template <typename E, typename... Parts> [[noreturn]] inline void raise(const Parts&... parts) {
  std::ostringstream s;
  (s << ... << parts);
  throw E(s.str());
}
inline const char* name_of(DType t) {
  constexpr const char* names[] = {"float16", "bfloat16", "float32", "float64", "int64"};
  return names[static_cast<int>(t)];
}
inline std::string shape_of(const TensorView& t) {
  std::ostringstream s;
  s << '(';
  for (int i = 0; i < t.ndim; ++i) s << t.shape[i] << (i + 1 < t.ndim ? ", " : t.ndim == 1 ? "," : "");
  s << ')';
  return s.str();
}
inline void check_ndim(const TensorView& t, const char* name, int ndim) {
  if (t.ndim != ndim) raise<ValueError>(name, " must have ", ndim, " dimensions, got shape ", shape_of(t));
}
inline void check_contiguous(const TensorView& t, const char* name) {
  if (!t.contiguous()) raise<ValueError>(name, " must be contiguous, got shape ", shape_of(t));
}
inline void check_dtype(const TensorView& t, const char* name, DType want) {
  if (t.dtype != want) raise<TypeError>(name, " must have dtype ", name_of(want), ", got ", name_of(t.dtype));
}
inline void check_device(const TensorView& t, const char* name, Device want) {
  if (t.device != want)
    raise<TypeError>(name, " must be on ", want == Device::cpu ? "the CPU" : "a CUDA device", ", got ",
                     t.device == Device::cpu ? "a CPU tensor" : "a CUDA tensor");
}
inline void check_same_shape(const TensorView& a, const char* an, const TensorView& b, const char* bn) {
  bool same = a.ndim == b.ndim;
  for (int i = 0; same && i < a.ndim; ++i) same = a.shape[i] == b.shape[i];
  if (!same) raise<ValueError>(an, " ", shape_of(a), " and ", bn, " ", shape_of(b), " must have one shape");
}

}  // namespace fokker
