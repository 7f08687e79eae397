// Uninitialised arrays that start at a cache line: the scratch memory of CPU kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace fokker::cpu {

template <typename T> class AlignedArray {
 public:
  void resize(std::int64_t n) {
    if (n <= size_) return;
    data_.reset(static_cast<T*>(::operator new(static_cast<std::size_t>(n) * sizeof(T), std::align_val_t(64))));
    size_ = n;
  }
  T* get() const { return data_.get(); }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::unique_ptr<T, Free> data_;
  std::int64_t size_ = 0;
};

}  // namespace fokker::cpu
