// A borrowed, typed view of a torch tensor or NumPy array: what the bindings hand to the kernels.
#pragma once

#include <cstdint>

namespace fokker {

constexpr int kMaxDims = 12;

enum class DType : std::uint8_t { f16, bf16, f32, f64, i64 };
enum class Device : std::uint8_t { cpu, cuda };

struct TensorView {
  void* data = nullptr;
  DType dtype = DType::f32;
  Device device = Device::cpu;
  int device_id = 0;
  int ndim = 0;
  const std::int64_t* shape = nullptr;    // owned by the tensor, valid for the call
  const std::int64_t* strides = nullptr;  // in elements

  std::int64_t numel() const {
    std::int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  bool contiguous() const {
    if (numel() == 0) return true;
    std::int64_t expect = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expect) return false;
      expect *= shape[i];
    }
    return true;
  }
  template <typename T> T* ptr() const { return static_cast<T*>(data); }
};

}  // namespace fokker
