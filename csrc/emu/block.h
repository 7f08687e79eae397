// The state of the running block and the meeting points of its threads: barriers and warp collectives.
#pragma once

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "emu/shared_memory.h"

#ifdef FOKKER_EMU_THREADS
#include <semaphore.h>

#include <cerrno>
#include <mutex>
#endif

namespace fokker::emu {

struct KernelError : std::runtime_error {
  using runtime_error::runtime_error;
};
struct Deadlock {};  // thrown by the thread whose wait left nobody running
struct Aborted {};   // unwinds the threads of a block in which another one failed

enum class Op : std::uint8_t { sync, shuffle, ballot, fold, match, barrier, barrier_count, barrier_and, barrier_or };
inline const char* name_of(Op op) {
  constexpr const char* names[] = {"__syncwarp",          "__shfl_sync",       "__ballot_sync",
                                   "__reduce_sync",       "__match_any_sync",  "__syncthreads",
                                   "__syncthreads_count", "__syncthreads_and", "__syncthreads_or"};
  return names[static_cast<int>(op)];
}
using Fold = std::uint64_t (*)(std::uint64_t, std::uint64_t);
enum class State : std::uint8_t { unstarted, running, waiting, ready, done };

#ifdef FOKKER_EMU_THREADS
// One lock per warp and one per block: a lock shared by all would order threads that CUDA leaves unordered.
struct Monitor {
  std::mutex mutex;
};
using Guard = std::unique_lock<std::mutex>;
using Count = std::atomic<int>;
#else
struct Monitor {};
struct Guard {
  explicit Guard(Monitor&) {}
};
using Count = int;
#endif

struct Thread {
  uint3 index{0, 0, 0};
  unsigned linear = 0;
  State state = State::unstarted;
  Op op = Op::sync;
  std::uint32_t mask = 0;
  unsigned source = 0;
  std::uint64_t value = 0, result = 0;
  Fold fold = nullptr;
  const char* site = nullptr;  // of the barrier it waits at
#ifdef FOKKER_EMU_THREADS
  sem_t wake;  // its own, or all waiters of a barrier would wake into one lock
  Thread() { sem_init(&wake, 0, 0); }
  Thread(const Thread&) = delete;
  ~Thread() { sem_destroy(&wake); }
  void post() { sem_post(&wake); }
#else
  Fiber* fiber = nullptr;
  void post() {}
#endif
};
struct Warp {
  struct Group {  // lanes that wait for each other
    std::uint32_t mask, arrived;
  };
  std::array<Group, 32> groups;
  int count = 0;
  std::uint32_t exited = 0;
  Monitor monitor;
};

class Block {
 public:
  using Call = void (*)(const void*);
  Block(const char* kernel, dim3 grid, dim3 block, std::size_t dynamic_bytes, std::size_t shared_limit, Call call,
        const void* data)
      : kernel(kernel),
        grid(grid),
        dim(block),
        n(block.x * block.y * block.z),
        shared(dynamic_bytes, shared_limit),
        call(call),
        data(data),
        threads(n),
        warps((n + 31) / 32) {
    for (unsigned i = 0; i < n; ++i) {
      threads[i].linear = i;
      threads[i].index = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)};
    }
  }
  void start(uint3 at, unsigned char poison) {
    index = at;
    alive = static_cast<int>(n);
    runnable = static_cast<int>(n);
    waiters.clear();
    for (auto& t : threads) t.state = State::unstarted;
    for (unsigned w = 0; w < warps.size(); ++w) {
      warps[w].count = 0;
      warps[w].exited = n - 32 * w >= 32 ? 0u : ~0u << (n - 32 * w);  // lanes a partial warp does not have
    }
    shared.reset(poison);
  }

  std::uint64_t warp_collective(Thread& me, Op op, std::uint32_t mask, std::uint64_t value, unsigned source, Fold fold);
  std::uint64_t barrier(Thread& me, Op op, std::uint64_t value, const char* site);
  void leave(Thread& me);                 // the thread returned from the kernel
  void fail(const std::string& message);  // first message wins; every thread that waits is released to unwind
  std::string deadlock_message();

  const char* kernel;
  dim3 grid, dim;
  uint3 index{0, 0, 0};
  unsigned n;
  SharedMemory shared;
  Call call;
  const void* data;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int alive = 0;  // guarded, as `waiters`, by `monitor`
  Count runnable{0};
#ifdef FOKKER_EMU_THREADS
  std::atomic<bool> failed{false};
#else
  bool failed = false;
#endif
  std::string error;
  std::uint64_t meetings = 0;

 private:
  static std::uint32_t bit(const Thread& t) { return 1u << (t.linear & 31); }
  void complete(Warp& w, int group);
  void complete_barrier();
  void wait(Thread& me, Guard& guard);
  int add_runnable(int change);

  std::vector<Thread*> waiters;  // at the barrier
  Monitor monitor;
#ifdef FOKKER_EMU_THREADS
  std::mutex error_mutex;
#endif
};

// The block and the thread that the calling host thread is running.
inline Block*& current_block() {
  static thread_local Block* b = nullptr;
  return b;
}
inline Thread*& current_thread() {
  static thread_local Thread* t = nullptr;
  return t;
}

}  // namespace fokker::emu

#include "emu/block_inl.h"
