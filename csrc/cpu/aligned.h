// Uninitialised arrays that start at a cache line: the scratch memory of CPU kernels.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif
#include <cstdint>
#include <memory>
#include <new>

namespace fokker::cpu {

template <typename T> class AlignedArray {
 public:
  void resize(std::int64_t n) {
    if (n <= size_) return;
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    const std::align_val_t align{bytes >= kHuge ? kHugePage : 64};
    data_ = std::unique_ptr<T, Free>(static_cast<T*>(::operator new(bytes, align)), Free{align});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (bytes >= kHuge) madvise(data_.get(), bytes, MADV_HUGEPAGE);  // strides through small pages miss the TLB: 5%
#endif
    size_ = n;
  }
  T* get() const { return data_.get(); }
  T& operator[](std::int64_t i) const { return data_.get()[i]; }

 private:
  static constexpr std::size_t kHugePage = std::size_t(2) << 20, kHuge = 2 * kHugePage;
  struct Free {
    std::align_val_t align{64};
    void operator()(T* p) const { ::operator delete(p, align); }
  };
  std::unique_ptr<T, Free> data_;
  std::int64_t size_ = 0;
};

}  // namespace fokker::cpu
