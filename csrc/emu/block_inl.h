// Definitions of emu::Block: how threads meet, and how a deadlock is seen.
#pragma once

#include <cstdio>

#include "emu/block.h"

namespace fokker::emu {

inline void Block::fail(const std::string& message) {
#ifdef FOKKER_EMU_THREADS
  {
    Guard g(error_mutex);
    if (!failed) error = message;
    failed = true;
  }
  Guard all(monitor.mutex);
  for (auto& t : threads) {
    Guard guard(warps[t.linear / 32].monitor.mutex);
    if (t.state == State::waiting) t.post();
  }
#else
  if (!failed) error = message;
  failed = true;
  for (auto& t : threads)
    if (t.state == State::waiting) t.state = State::ready;
#endif
}

// A running thread counts in `runnable`, and only running threads release others: at zero nothing can move again.
inline int Block::add_runnable(int change) {
#ifdef FOKKER_EMU_THREADS
  return runnable.fetch_add(change, std::memory_order_relaxed) + change;
#else
  return runnable += change;
#endif
}

inline void Block::wait(Thread& me, Guard& guard) {
  me.state = State::waiting;
  if (add_runnable(-1) == 0) throw Deadlock{};
#ifdef FOKKER_EMU_THREADS
  guard.unlock();
  while (sem_wait(&me.wake) != 0 && errno == EINTR) {
  }
  if (failed) throw Aborted{};
#else
  (void)guard;
  me.fiber->suspend();
  current_thread() = &me;
  if (failed) throw Aborted{};
  me.state = State::running;
#endif
}

inline std::string Block::deadlock_message() {
  std::string text = "deadlock: ";
  int shown = 0, others = 0;
#ifdef FOKKER_EMU_THREADS
  Guard all(monitor.mutex);
#endif
  for (auto& t : threads) {
#ifdef FOKKER_EMU_THREADS
    Guard guard(warps[t.linear / 32].monitor.mutex);
#endif
    if (t.state != State::waiting) continue;
    if (shown == 4) {
      ++others;
      continue;
    }
    text += (shown++ ? "; thread " : "thread ") + std::to_string(t.linear) + " waits at " + name_of(t.op);
    if (t.op >= Op::barrier) {
      text += std::string(" (") + t.site + ")";
    } else {
      char hex[24];
      std::snprintf(hex, sizeof hex, " with mask 0x%08x", t.mask);
      text += hex;
    }
  }
  if (others) text += "; " + std::to_string(others) + " more wait";
  return text + "; none can go on";
}

inline void Block::complete(Warp& w, int group) {
  const Warp::Group g = w.groups[group];
  w.groups[group] = w.groups[--w.count];
  Thread* lanes = &threads[(&w - warps.data()) * 32];
  const int first = __builtin_ctz(g.arrived);
  const Op op = lanes[first].op;
  std::uint64_t together = op == Op::fold ? lanes[first].value : 0;
  std::uint32_t released = 0;
  for (int l = 0; l < 32; ++l) {
    if (!(g.arrived >> l & 1)) continue;
    if (op == Op::ballot) together |= std::uint64_t(lanes[l].value != 0) << l;
    if (op == Op::fold && l != first) together = lanes[l].fold(together, lanes[l].value);
  }
  for (int l = 0; l < 32; ++l) {
    if (!(g.arrived >> l & 1)) continue;
    Thread& t = lanes[l];
    t.result = together;
    if (op == Op::shuffle) {
      // What a lane outside the group holds is undefined: hand out poison, which shows where it is used.
      t.result = g.arrived >> t.source & 1 ? lanes[t.source].value : ~std::uint64_t(0);
    } else if (op == Op::match) {
      for (int k = 0; k < 32; ++k)
        if (g.arrived >> k & 1) t.result |= std::uint64_t(lanes[k].value == t.value) << k;
    }
    if (t.state == State::waiting) {
      t.state = State::ready;
      add_runnable(1);
      released |= 1u << l;
    }
  }
  for (int l = 0; l < 32; ++l)  // all at the end: a lane that is awake may fill its slot anew
    if (released >> l & 1) lanes[l].post();
#ifndef FOKKER_EMU_THREADS
  ++meetings;
#endif
}

inline std::uint64_t Block::warp_collective(Thread& me, Op op, std::uint32_t mask, std::uint64_t value, unsigned source,
                                            Fold fold) {
  Warp& w = warps[me.linear / 32];
  const Thread* lanes = &threads[me.linear / 32 * 32];
  const auto complain = [&](const std::string& what) { return KernelError(std::string(name_of(op)) + ": " + what); };
  if (!(mask & bit(me))) throw complain("its own lane is not in the mask");
#ifdef FOKKER_EMU_THREADS
  Guard guard(w.monitor.mutex);
#else
  Guard guard(w.monitor);
#endif
  if (failed) throw Aborted{};
  int group = -1;
  for (int g = 0; g < w.count; ++g) {
    if (w.groups[g].mask == mask) group = g;
    else if ((w.groups[g].arrived & mask) && (w.groups[g].mask & bit(me)))
      throw complain("lanes that name each other disagree on the mask");
  }
  if (group < 0) w.groups[group = w.count++] = {mask, 0};
  Warp::Group& mine = w.groups[group];
  if (mine.arrived && lanes[__builtin_ctz(mine.arrived)].op != op)
    throw complain(std::string("other lanes of the mask are at ") + name_of(lanes[__builtin_ctz(mine.arrived)].op));
  me.op = op, me.mask = mask, me.value = value, me.source = source, me.fold = fold;
  mine.arrived |= bit(me);
  if (mine.arrived == (mask & ~w.exited)) complete(w, group);
  else wait(me, guard);
  return me.result;
}

inline void Block::complete_barrier() {
  std::uint64_t count = 0;
  for (const Thread* t : waiters) count += t->value != 0;
  const bool all = count == waiters.size();
  for (Thread* t : waiters) {
    t->result = t->op == Op::barrier_and ? all : t->op == Op::barrier_or ? count != 0 : count;
    if (t->state == State::waiting) {
      t->state = State::ready;
      add_runnable(1);
      t->post();
    }
  }
  waiters.clear();
#ifndef FOKKER_EMU_THREADS
  ++meetings;
#endif
}

inline std::uint64_t Block::barrier(Thread& me, Op op, std::uint64_t value, const char* site) {
#ifdef FOKKER_EMU_THREADS
  Guard guard(monitor.mutex);
#else
  Guard guard(monitor);
#endif
  if (failed) throw Aborted{};
  if (!waiters.empty() && (waiters[0]->op != op || std::strcmp(waiters[0]->site, site) != 0))
    throw KernelError("threads of one block meet at two barriers: " + std::string(name_of(op)) + " (" + site +
                      ") and " + name_of(waiters[0]->op) + " (" + waiters[0]->site + ")");
  me.op = op, me.value = value, me.site = site;
  waiters.push_back(&me);
  if (static_cast<int>(waiters.size()) == alive) complete_barrier();
  else wait(me, guard);
  return me.result;
}

inline void Block::leave(Thread& me) {
  {
    Warp& w = warps[me.linear / 32];
#ifdef FOKKER_EMU_THREADS
    Guard guard(w.monitor.mutex);
#endif
    w.exited |= bit(me);
    for (int g = w.count - 1; g >= 0 && !failed; --g)
      if (w.groups[g].arrived == (w.groups[g].mask & ~w.exited)) complete(w, g);
  }
#ifdef FOKKER_EMU_THREADS
  Guard guard(monitor.mutex);
#endif
  me.state = State::done;
  --alive;
  if (!waiters.empty() && static_cast<int>(waiters.size()) == alive && !failed) complete_barrier();
  if (add_runnable(-1) == 0 && alive > 0 && !failed) throw Deadlock{};
}

}  // namespace fokker::emu
