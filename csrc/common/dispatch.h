// One place where a runtime dtype becomes a template argument.
#pragma once

#include "common/check.h"

namespace fokker {

template <typename T> struct Tag {
  using type = T;
};

// The arithmetic type of an op: float16 and bfloat16 compute in float32.
template <typename F> inline void dispatch_compute(DType dtype, const char* name, F&& f) {
  switch (dtype) {
    case DType::f16:
    case DType::bf16:
    case DType::f32:
      return f(Tag<float>{});
    case DType::f64:
      return f(Tag<double>{});
    default:
      raise<TypeError>(name, " must have dtype float16, bfloat16, float32 or float64, got ", name_of(dtype));
  }
}
// float32 or float64 only.
template <typename F> inline void dispatch_float(DType dtype, const char* name, F&& f) {
  if (dtype == DType::f32) return f(Tag<float>{});
  if (dtype == DType::f64) return f(Tag<double>{});
  raise<TypeError>(name, " must have dtype float32 or float64, got ", name_of(dtype));
}

}  // namespace fokker
