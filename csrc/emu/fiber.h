// A coroutine on its own guarded stack (ucontext), and the pool of them that one host thread keeps.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <memory>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define FK_EMU_ASAN 1
#else
#define FK_EMU_ASAN 0
#endif

namespace fokker::emu {

class FiberPool;

class Fiber {
 public:
  explicit Fiber(FiberPool& pool) : pool_(pool) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    bytes_ = kStack + page;
    memory_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, page, PROT_NONE);  // a kernel that overruns its stack stops here, not in someone's data
    stack_ = static_cast<char*>(memory_) + page;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::entry, 0);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
#if FK_EMU_ASAN
    __asan_unpoison_memory_region(stack_, kStack);
#endif
    munmap(memory_, bytes_);
  }

  inline void resume();   // from the host thread: run the fiber until it suspends
  inline void suspend();  // from the fiber: back to the host thread

 private:
  static constexpr std::size_t kStack = FK_EMU_ASAN ? 512 * 1024 : 128 * 1024;
  static inline void entry();

  FiberPool& pool_;
  ucontext_t context_;
  void* memory_;
  char* stack_;
  std::size_t bytes_;
};

// Fibers outlive a launch: making one costs more than running a block of a small kernel.
class FiberPool {
 public:
  using Body = void (*)();  // runs one piece of work and returns; called again at each reuse

  static FiberPool& mine() {
    static thread_local FiberPool pool;
    return pool;
  }
  Fiber& take() {
    if (free_.empty()) {
      all_.push_back(std::make_unique<Fiber>(*this));
      free_.push_back(all_.back().get());
    }
    Fiber* f = free_.back();
    free_.pop_back();
    return *f;
  }
  void set_body(Body body) { body_ = body; }
  Fiber* current() const { return current_; }

 private:
  friend class Fiber;
  Body body_ = nullptr;
  Fiber* current_ = nullptr;
  ucontext_t host_;
  const void* host_stack_ = nullptr;
  std::size_t host_bytes_ = 0;
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> free_;
};

inline void Fiber::resume() {
  pool_.current_ = this;
#if FK_EMU_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_, kStack);
#endif
  swapcontext(&pool_.host_, &context_);
#if FK_EMU_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  pool_.current_ = nullptr;
}
inline void Fiber::suspend() {
#if FK_EMU_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, pool_.host_stack_, pool_.host_bytes_);
#endif
  swapcontext(&context_, &pool_.host_);
#if FK_EMU_ASAN
  __sanitizer_finish_switch_fiber(fake, &pool_.host_stack_, &pool_.host_bytes_);
#endif
}
inline void Fiber::entry() {
  FiberPool& pool = FiberPool::mine();
#if FK_EMU_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &pool.host_stack_, &pool.host_bytes_);
#endif
  for (;;) {
    Fiber* self = pool.current_;
    pool.body_();
    pool.free_.push_back(self);
    self->suspend();
  }
}

}  // namespace fokker::emu
