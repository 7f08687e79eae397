// What a .cu file may say, spelled for g++: qualifiers, built-in variables, collectives, atomics, intrinsics.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "emu/launch.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

#define threadIdx (::fokker::emu::current_thread()->index)
#define blockIdx (::fokker::emu::current_block()->index)
#define blockDim (::fokker::emu::current_block()->dim)
#define gridDim (::fokker::emu::current_block()->grid)
constexpr int warpSize = 32;

namespace fokker::emu {

template <typename T> std::uint64_t pack(T v) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "a lane exchanges at most 8 bytes");
  std::uint64_t u = 0;
  std::memcpy(&u, &v, sizeof v);
  return u;
}
template <typename T> T unpack(std::uint64_t u) {
  T v;
  std::memcpy(&v, &u, sizeof v);
  return v;
}
inline std::uint64_t meet(Op op, unsigned mask, std::uint64_t value = 0, unsigned source = 0, Fold fold = nullptr) {
  return current_block()->warp_collective(*current_thread(), op, mask, value, source, fold);
}
inline unsigned lane() { return current_thread()->linear & 31; }
template <typename T> T shuffle(unsigned mask, T v, int source) {
  return unpack<T>(meet(Op::shuffle, mask, pack(v), static_cast<unsigned>(source)));
}
inline int barrier(Op op, int predicate, const char* site) {
  return static_cast<int>(current_block()->barrier(*current_thread(), op, std::uint64_t(predicate != 0), site));
}
template <typename T> T* shared_array(const void* key, std::size_t count) {
  if (void* p = current_block()->shared.array(key, count * sizeof(T))) return static_cast<T*>(p);
  throw KernelError("shared memory beyond the " + std::to_string(kStaticSharedLimit) +
                    " bytes of static arrays, or with dynamic ones beyond what the kernel was allowed");
}
inline void check_aligned(const void* at, std::size_t alignment) {
  if (reinterpret_cast<std::uintptr_t>(at) % alignment)
    throw KernelError("misaligned address: an access of " + std::to_string(alignment) + " bytes");
}

// Relaxed, as CUDA's atomics: they order nothing else.
template <typename T, typename F> T update(T* p, F&& f) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  static_assert(sizeof(T) == sizeof(Bits), "atomics work on 4 or 8 bytes");
  auto* address = reinterpret_cast<Bits*>(p);
  Bits old = __atomic_load_n(address, __ATOMIC_RELAXED);
  T before;
  Bits after;
  do {
    std::memcpy(&before, &old, sizeof before);
    const T changed = f(before);
    std::memcpy(&after, &changed, sizeof after);
  } while (!__atomic_compare_exchange_n(address, &old, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

}  // namespace fokker::emu

#define FK_EMU_TEXT_(x) #x
#define FK_EMU_TEXT(x) FK_EMU_TEXT_(x)
#define FK_EMU_SITE __FILE__ ":" FK_EMU_TEXT(__LINE__)
#define __syncthreads() ((void)::fokker::emu::barrier(::fokker::emu::Op::barrier, 1, FK_EMU_SITE))
#define __syncthreads_count(p) ::fokker::emu::barrier(::fokker::emu::Op::barrier_count, (p), FK_EMU_SITE)
#define __syncthreads_and(p) ::fokker::emu::barrier(::fokker::emu::Op::barrier_and, (p), FK_EMU_SITE)
#define __syncthreads_or(p) ::fokker::emu::barrier(::fokker::emu::Op::barrier_or, (p), FK_EMU_SITE)

inline void __syncwarp(unsigned mask = ~0u) { fokker::emu::meet(fokker::emu::Op::sync, mask); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

template <typename T> T __shfl_sync(unsigned mask, T v, int source, int width = 32) {
  return fokker::emu::shuffle(mask, v, int(fokker::emu::lane() & ~unsigned(width - 1)) | (source & (width - 1)));
}
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32) {
  const int me = int(fokker::emu::lane()), other = me ^ flip;
  return fokker::emu::shuffle(mask, v, (other & ~(width - 1)) <= (me & ~(width - 1)) ? other : me);
}
template <typename T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int me = int(fokker::emu::lane()), other = me + int(by);
  return fokker::emu::shuffle(mask, v, other <= (me | (width - 1)) ? other : me);
}
template <typename T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int me = int(fokker::emu::lane()), other = me - int(by);
  return fokker::emu::shuffle(mask, v, other >= (me & ~(width - 1)) ? other : me);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(fokker::emu::meet(fokker::emu::Op::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <typename T> unsigned __match_any_sync(unsigned mask, T v) {
  return unsigned(fokker::emu::meet(fokker::emu::Op::match, mask, fokker::emu::pack(v)));
}
#define FK_EMU_REDUCE(name, expression)                                                                                \
  template <typename T> T name(unsigned mask, T v) {                                                                   \
    static_assert(std::is_integral_v<T> && sizeof(T) == 4, "warp reductions take 32-bit integers");                    \
    return fokker::emu::unpack<T>(                                                                                     \
        fokker::emu::meet(fokker::emu::Op::fold, mask, fokker::emu::pack(v), 0, [](std::uint64_t p, std::uint64_t q) { \
          const T a = fokker::emu::unpack<T>(p), b = fokker::emu::unpack<T>(q);                                        \
          return fokker::emu::pack(T(expression));                                                                     \
        }));                                                                                                           \
  }
FK_EMU_REDUCE(__reduce_add_sync, std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b))
FK_EMU_REDUCE(__reduce_min_sync, b < a ? b : a)
FK_EMU_REDUCE(__reduce_max_sync, a < b ? b : a)
FK_EMU_REDUCE(__reduce_and_sync, a& b)
FK_EMU_REDUCE(__reduce_or_sync, a | b)
FK_EMU_REDUCE(__reduce_xor_sync, a ^ b)
#undef FK_EMU_REDUCE

template <typename T> T atomicAdd(T* p, T v) {
  return fokker::emu::update(p, [v](T a) { return T(a + v); });
}
template <typename T> T atomicMin(T* p, T v) {
  return fokker::emu::update(p, [v](T a) { return v < a ? v : a; });
}
template <typename T> T atomicMax(T* p, T v) {
  return fokker::emu::update(p, [v](T a) { return a < v ? v : a; });
}
template <typename T> T atomicOr(T* p, T v) {
  return fokker::emu::update(p, [v](T a) { return T(a | v); });
}
template <typename T> T atomicExch(T* p, T v) {
  return fokker::emu::update(p, [v](T) { return v; });
}
template <typename T> T atomicCAS(T* p, T expected, T v) {
  return fokker::emu::update(p, [=](T a) { return a == expected ? v : a; });
}

template <typename T> T __ldg(const T* p) { return *p; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(std::uint64_t(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(Wide(a) * b >> 64);
}
inline int __float_as_int(float x) { return fokker::emu::unpack<int>(fokker::emu::pack(x)); }
inline float __int_as_float(int x) { return fokker::emu::unpack<float>(fokker::emu::pack(x)); }
inline unsigned __float_as_uint(float x) { return fokker::emu::unpack<unsigned>(fokker::emu::pack(x)); }
inline float __uint_as_float(unsigned x) { return fokker::emu::unpack<float>(fokker::emu::pack(x)); }
inline long long __double_as_longlong(double x) { return fokker::emu::unpack<long long>(fokker::emu::pack(x)); }
inline double __longlong_as_double(long long x) { return fokker::emu::unpack<double>(fokker::emu::pack(x)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
