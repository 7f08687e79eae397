// A CUDA device on the host: lets g++ compile the very .cu files and run their kernels in tests.
//
// One fiber is one CUDA thread; blocks run one after another; threads and blocks take turns forward, in reverse or in
// a random order (set_order). Shared memory starts poisoned. Reported as launch errors: deadlocks, masks or barriers
// that threads disagree on, misaligned packs, configurations and shared memory a device refuses. With
// -DFOKKER_EMU_THREADS each CUDA thread is a std::thread, for the thread sanitizer. Not covered: tensor cores,
// asynchronous copies, clusters, inline PTX, and a thread that spins on memory until another one writes it.
#pragma once

#include "emu/intrinsics.h"

#define FK_LAUNCH(kernel, grid, block, smem, ...) \
  ::fokker::emu::launch(#kernel, &FK_UNWRAP kernel, dim3(grid), dim3(block), (smem), __VA_ARGS__)  // stream, arguments
#define FK_UNWRAP(...) __VA_ARGS__
// A static shared array `name` of `count` elements.
#define FK_SHARED(T, name, count)        \
  static const char name##_declared = 0; \
  T* const name = ::fokker::emu::shared_array<T>(&name##_declared, (count))
#define FK_CHECK_ALIGNED(P, at) ::fokker::emu::check_aligned((at), alignof(P))
#define FK_DYNAMIC_SMEM(T, name) T* const name = static_cast<T*>(::fokker::emu::current_block()->shared.dynamic())
