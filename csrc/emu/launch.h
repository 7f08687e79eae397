// Runs a grid on the host: one block after another, its CUDA threads as fibers, or as std::threads for TSan.
#pragma once

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "emu/block.h"

#ifdef FOKKER_EMU_THREADS
#include <thread>
#endif

namespace fokker::emu {

enum class Order { forward, reverse, random };
struct Config {
  Order order = Order::forward;  // in which threads and blocks take their turns
  std::uint64_t seed = 0;
  unsigned char poison = 0xff;  // shared memory starts as this byte: nan in floating point
};
inline Config& config() {
  static Config c;
  return c;
}
// forward | reverse | random; false for another name.
inline bool set_order(const std::string& name, std::uint64_t seed = 0) {
  if (name != "forward" && name != "reverse" && name != "random") return false;
  config().order = name == "reverse" ? Order::reverse : name == "random" ? Order::random : Order::forward;
  config().seed = seed;
  return true;
}
// What the last launch of this host thread did.
struct Stats {
  std::uint64_t blocks = 0, meetings = 0, resumes = 0;
};
inline Stats& stats() {
  static thread_local Stats s;
  return s;
}

struct SplitMix {  // Steele, Lea and Flood 2014
  std::uint64_t state;
  std::uint64_t operator()() {
    std::uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};
// The turns of one round: shuffled anew each time when the order is random.
template <typename Index> inline void arrange(std::vector<Index>& turns, Order order, SplitMix& random, bool first) {
  if (first) std::iota(turns.begin(), turns.end(), Index(0));
  if (first && order == Order::reverse) std::reverse(turns.begin(), turns.end());
  if (order == Order::random)
    for (std::size_t i = turns.size(); i > 1; --i) std::swap(turns[i - 1], turns[random() % i]);
}

// Runs the kernel as thread `t`; returns when the thread has left the block, however it left.
inline void run_thread(Block& b, Thread& t) {
  current_thread() = &t;
  std::string message;
  bool deadlock = false;
  try {
    b.call(b.data);
  } catch (const Aborted&) {
  } catch (const Deadlock&) {
    deadlock = true;
  } catch (const std::exception& e) {
    message = "thread " + std::to_string(t.linear) + ": " + e.what();
  }
  // No switch of fibers may happen inside a handler, so failures are told out here.
  if (deadlock) b.fail(b.deadlock_message());
  else if (!message.empty()) b.fail(message);
  deadlock = false;
  try {
    b.leave(t);
  } catch (const Deadlock&) {
    deadlock = true;
  }
  if (deadlock) b.fail(b.deadlock_message());
}

#ifdef FOKKER_EMU_THREADS
// The host threads of one launch, which run its blocks one after another: starting a thread is dear under a sanitizer.
class Crew {
 public:
  explicit Crew(Block& b) : block_(b), members_(b.n) {
    sem_init(&finished_, 0, 0);
    for (unsigned i = 0; i < b.n; ++i) {
      sem_init(&members_[i].go, 0, 0);
      members_[i].thread = std::thread([this, i] { work(i); });
    }
  }
  ~Crew() {
    quit_ = true;
    for (auto& m : members_) sem_post(&m.go);
    for (auto& m : members_) {
      m.thread.join();
      sem_destroy(&m.go);
    }
    sem_destroy(&finished_);
  }
  void run_block(SplitMix& random) {
    std::vector<unsigned> turns(block_.n);
    arrange(turns, config().order, random, true);
    for (unsigned i : turns) sem_post(&members_[i].go);
    for (unsigned i = 0; i < block_.n; ++i) wait_for(finished_);
  }

 private:
  struct Member {
    sem_t go;
    std::thread thread;
  };
  static void wait_for(sem_t& s) {
    while (sem_wait(&s) != 0 && errno == EINTR) {
    }
  }
  void work(unsigned i) {
    current_block() = &block_;
    for (wait_for(members_[i].go); !quit_; wait_for(members_[i].go)) {
      run_thread(block_, block_.threads[i]);
      sem_post(&finished_);
    }
  }

  Block& block_;
  bool quit_ = false;
  sem_t finished_;
  std::vector<Member> members_;
};
#else
// The round in progress: a fiber whose thread ends without waiting takes the next turn on its own stack, so a kernel
// without collectives runs as plain calls.
struct Round {
  std::vector<unsigned> turns;
  std::size_t next = 0;
};
inline Round& round_in_progress() {
  static thread_local Round r;
  return r;
}
inline void take_turns() {
  Block& b = *current_block();
  Round& r = round_in_progress();
  for (;;) {
    Thread& t = b.threads[r.turns[r.next++]];
    t.fiber = FiberPool::mine().current();
    t.state = State::running;
    run_thread(b, t);
    if (b.failed || r.next == r.turns.size() || b.threads[r.turns[r.next]].state != State::unstarted) return;
  }
}
inline void run_fibers(Block& b, SplitMix& random) {
  FiberPool& pool = FiberPool::mine();
  pool.set_body(&take_turns);
  Round& r = round_in_progress();
  r.turns.resize(b.n);
  for (bool first = true; b.alive > 0; first = false) {
    arrange(r.turns, config().order, random, first);
    for (r.next = 0; r.next < b.n;) {
      Thread& t = b.threads[r.turns[r.next]];
      if (t.state == State::unstarted && b.failed) {
        t.state = State::done;
        --b.alive;
        ++r.next;
      } else if (t.state == State::unstarted) {
        ++stats().resumes;
        pool.take().resume();
      } else {
        ++r.next;
        if (t.state != State::ready) continue;
        ++stats().resumes;
        t.fiber->resume();
      }
    }
  }
}
// The fibers belong to the host thread, not to the launch.
class Crew {
 public:
  explicit Crew(Block& b) : block_(b) {}
  void run_block(SplitMix& random) { run_fibers(block_, random); }

 private:
  Block& block_;
};
#endif

inline bool valid_launch(dim3 grid, dim3 block, std::size_t dynamic_bytes, std::size_t allowed) {
  const std::uint64_t threads = std::uint64_t(block.x) * block.y * block.z;
  return threads >= 1 && threads <= kMaxThreads && block.z <= 64 && grid.x >= 1 && grid.x <= 0x7fffffffu &&
         grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 && dynamic_bytes <= allowed;
}

// As on a device, a failure is kept for cudaGetLastError: a launch itself reports nothing.
template <typename... Parameters, typename... Arguments> void launch(const char* name, void (*kernel)(Parameters...),
                                                                     dim3 grid, dim3 block, std::size_t dynamic_bytes,
                                                                     cudaStream_t, Arguments&&... arguments) {
  // Beyond what every block has only after cudaFuncSetAttribute, and no more than it said.
  const std::size_t asked = dynamic_limits().of(reinterpret_cast<const void*>(kernel));
  if (!valid_launch(grid, block, dynamic_bytes, std::max(asked, kStaticSharedLimit))) {
    record_error(cudaErrorInvalidConfiguration, "invalid configuration argument");
    return;
  }
  using Packed = std::pair<void (*)(Parameters...), std::tuple<Parameters...>>;
  const Packed packed(kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...));
  const auto call = [](const void* p) {
    const auto& k = *static_cast<const Packed*>(p);
    std::apply(k.first, k.second);
  };
  Block b(name, grid, block, dynamic_bytes, asked ? kSharedLimit : kStaticSharedLimit, call, &packed);
  Crew crew(b);
  SplitMix random{config().seed};
  Block* const outer = std::exchange(current_block(), &b);
  stats() = {};
  const std::uint64_t blocks = std::uint64_t(grid.x) * grid.y * grid.z;
  std::vector<std::uint64_t> turns(config().order == Order::forward ? 0 : blocks);
  arrange(turns, config().order, random, true);
  for (std::uint64_t i = 0; i < blocks && !b.failed; ++i) {
    const std::uint64_t k = turns.empty() ? i : turns[i];
    b.start({unsigned(k % grid.x), unsigned(k / grid.x % grid.y), unsigned(k / grid.x / grid.y)}, config().poison);
    ++stats().blocks;
    crew.run_block(random);
  }
  stats().meetings = b.meetings;
  current_block() = outer;
  if (b.failed)
    record_error(cudaErrorLaunchFailure, std::string("emulated kernel ") + name + ", block (" +
                                             std::to_string(b.index.x) + ", " + std::to_string(b.index.y) + ", " +
                                             std::to_string(b.index.z) + "): " + b.error);
}

}  // namespace fokker::emu
