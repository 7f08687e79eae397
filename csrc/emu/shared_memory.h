// Shared memory of the running block: static and dynamic arrays, filled with a poison byte at each block's start.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>

#include "emu/fiber.h"
#include "emu/runtime_api.h"

namespace fokker::emu {

// Arrays are handed out at the first use of their declaration in a block. All steps are relaxed atomics, so that the
// bookkeeping orders nothing between CUDA threads and cannot hide a race from the thread sanitizer.
class SharedMemory {
 public:
  // `limit`: of static and dynamic arrays together.
  SharedMemory(std::size_t dynamic_bytes, std::size_t limit)
      : dynamic_bytes_(dynamic_bytes), limit_(limit), arena_(new unsigned char[kArena + kAlign]) {
    base_ = arena_.get() + (kAlign - reinterpret_cast<std::uintptr_t>(arena_.get()) % kAlign) % kAlign;
  }
  ~SharedMemory() { protect(base_, kArena, false); }

  void reset(unsigned char poison) {
    protect(base_, kArena, false);
    // Only what the last block used can have lost its poison.
    const std::size_t used = fresh_ ? kArena : used_.load(std::memory_order_relaxed);
    std::memset(base_, poison, used);
    protect(base_, kArena, true);
    for (auto& e : entries_) {
      e.key.store(nullptr, std::memory_order_relaxed);
      e.offset.store(-1, std::memory_order_relaxed);
    }
    fresh_ = false;
    protect(base_, dynamic_bytes_, false);
    static_bytes_.store(0, std::memory_order_relaxed);
    used_.store(padded(dynamic_bytes_), std::memory_order_relaxed);
  }
  void* dynamic() const { return base_; }

  // The array declared at `key` (the address of an object that belongs to the declaration), or null when full.
  void* array(const void* key, std::size_t bytes) {
    for (auto& e : entries_) {
      const void* seen = e.key.load(std::memory_order_relaxed);
      if (!seen && e.key.compare_exchange_strong(seen, key, std::memory_order_relaxed)) {
        const std::size_t total = static_bytes_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
        const std::size_t at = used_.fetch_add(padded(bytes), std::memory_order_relaxed);
        const bool fits = total <= kStaticSharedLimit && total + dynamic_bytes_ <= limit_;
        if (fits) protect(base_ + at, bytes, false);
        e.offset.store(fits ? static_cast<std::int64_t>(at) : kFull, std::memory_order_relaxed);
        seen = key;
      }
      if (seen != key) continue;
      std::int64_t at;
      while ((at = e.offset.load(std::memory_order_relaxed)) == -1) {
      }
      return at == kFull ? nullptr : base_ + at;
    }
    return nullptr;
  }

 private:
  static constexpr std::size_t kAlign = 128, kGap = 128, kArrays = 32;
  static constexpr std::size_t kArena = kSharedLimit + kArrays * (kGap + kAlign);
  static constexpr std::int64_t kFull = -2;
  static constexpr std::size_t padded(std::size_t bytes) { return (bytes + kGap + kAlign - 1) / kAlign * kAlign; }
  static void protect(void* p, std::size_t bytes, bool on) {
#if FK_EMU_ASAN
    if (on) __asan_poison_memory_region(p, bytes);
    else __asan_unpoison_memory_region(p, bytes);
#else
    (void)p, (void)bytes, (void)on;
#endif
  }

  struct Entry {
    std::atomic<const void*> key{nullptr};
    std::atomic<std::int64_t> offset{-1};
  };
  std::size_t dynamic_bytes_, limit_;
  std::unique_ptr<unsigned char[]> arena_;
  unsigned char* base_;
  bool fresh_ = true;
  std::atomic<std::size_t> used_{0}, static_bytes_{0};
  Entry entries_[kArrays];
};

}  // namespace fokker::emu
