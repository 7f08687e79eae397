// Fills with random numbers: one thread makes one Philox block of four words, and what becomes of it.
//
// Every number is a function of (seed, step, stream, sample id, element) alone: neither the launch nor the layout of
// the output enters. Bytes: the output written once. seed and step may lie in device memory, so that a replayed graph
// makes fresh noise.
#include "common/half.h"
#include "common/random_plan.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace fokker::cuda {
namespace {

using math::RandomKind;
constexpr int kThreads = 256;
template <typename S> inline constexpr int kPer = sizeof(S) == 8 ? 2 : 4;  // elements of a block

template <typename S> struct alignas(16) Made {
  S v[kPer<S>];
};
template <RandomKind kind, typename S> __device__ __forceinline__ Made<S> made_of(math::Words w) {
  if constexpr (kind == RandomKind::bits) {
    return {{w.w0, w.w1, w.w2, w.w3}};
  } else if constexpr (sizeof(S) == 8) {
    const auto z = math::random_pair<kind>(w);
    return {{z.first, z.second}};
  } else {
    const auto a = math::random_pair<kind>(w.w0, w.w1), b = math::random_pair<kind>(w.w2, w.w3);
    return {{a.first, a.second, b.first, b.second}};
  }
}
__device__ __forceinline__ math::Words words(std::uint64_t key, std::uint32_t counter1, std::uint64_t id,
                                             std::int64_t block) {
  return math::philox({static_cast<std::uint32_t>(block), counter1, static_cast<std::uint32_t>(id),
                       static_cast<std::uint32_t>(id >> 32)},
                      static_cast<std::uint32_t>(key), static_cast<std::uint32_t>(key >> 32));
}

template <typename To, typename S> __device__ __forceinline__ To converted(S x) {
  if constexpr (sizeof(To) == 2) {
    if constexpr (std::is_same_v<To, Half>) return to_half(x);
    else return to_bfloat16(x);
  } else if constexpr (std::is_same_v<To, double> && std::is_same_v<S, float>) {  // only signs: 1 or -1
    return math::bit_cast<double>(0x3ff0000000000000ull | std::uint64_t(math::bit_cast<std::uint32_t>(x) >> 31) << 63);
  } else {
    return static_cast<To>(x);
  }
}

// The elements of a block: all at once at `to` where `packed`, else one by one, each where `at` says (-1: nowhere).
template <typename To, typename S>
__device__ __forceinline__ void put(void* out, bool packed, const std::int64_t* at, const Made<S>& z) {
  To* to = static_cast<To*>(out);
  if (packed) {
    struct alignas(sizeof(To) * kPer<S>) Pack {
      To v[kPer<S>];
    } pack;
#pragma unroll
    for (int j = 0; j < kPer<S>; ++j) pack.v[j] = converted<To>(z.v[j]);
    store_pack(to + at[0], pack);
    return;
  }
#pragma unroll
  for (int j = 0; j < kPer<S>; ++j)
    if (at[j] >= 0) to[at[j]] = converted<To>(z.v[j]);
}
// Where an element of a sample lies; short division where the sample allows it.
__device__ __forceinline__ std::int64_t place(const RandomPlan& p, std::int64_t i) {
  if (p.adjacent()) return i;
  if (p.n > 0x7fffffff) return p.offset(i);
  std::uint32_t rest = static_cast<std::uint32_t>(i);
  std::int64_t o = 0;
  for (int d = p.ndim - 1; d > 0; --d) {
    const std::uint32_t size = static_cast<std::uint32_t>(p.shape[d]), next = rest / size;
    o += (rest - next * size) * p.strides[d];
    rest = next;
  }
  return o + rest * p.strides[0];
}
// The elements of a block that belong to sample b.
template <typename S> __device__ __forceinline__ void store(const RandomPlan& p, bool packed, std::int64_t b,
                                                            std::int64_t block, const Made<S>& z) {
  const std::int64_t base = b * p.batch_stride, i = block * kPer<S> - p.element_offset;
  std::int64_t at[kPer<S>];
  at[0] = base + i;
  if (!packed) {
#pragma unroll
    for (int j = 0; j < kPer<S>; ++j) at[j] = i + j >= 0 && i + j < p.n ? base + place(p, i + j) : -1;
  }
  if constexpr (sizeof(S) == 8) {
    put<double>(p.out, packed, at, z);
  } else if constexpr (std::is_same_v<S, std::uint32_t>) {
    if (p.dtype == DType::i64) put<std::int64_t>(p.out, packed, at, z);
    else put<std::uint32_t>(p.out, packed, at, z);
  } else {
    switch (p.dtype) {
      case DType::f16:
        return put<Half>(p.out, packed, at, z);
      case DType::bf16:
        return put<BFloat16>(p.out, packed, at, z);
      case DType::f64:
        return put<double>(p.out, packed, at, z);
      default:
        return put<float>(p.out, packed, at, z);
    }
  }
}

// kTerms: a sum of normals of several counters, else one number of the kind an element. `channels` > 0: neighbouring
// threads take the channels of the same four pixels, which lie side by side in a channels_last output.
template <RandomKind kind, typename S, bool kTerms> __global__ void __launch_bounds__(kThreads)
    random_fill_kernel(const __grid_constant__ RandomPlan p, std::int64_t blocks, std::int64_t channels, bool packed) {
  const std::uint64_t key = p.key();
  const std::uint32_t counter1 = kTerms ? 0 : p.counter1();
  const std::int64_t total = p.batch * blocks, first = p.first_block();
  for (std::int64_t t = std::int64_t(blockIdx.x) * kThreads + threadIdx.x; t < total;
       t += std::int64_t(gridDim.x) * kThreads) {
    std::int64_t b, q;
    if (total <= 0x7fffffff) {
      b = static_cast<std::uint32_t>(t) / static_cast<std::uint32_t>(blocks);
      q = static_cast<std::uint32_t>(t) % static_cast<std::uint32_t>(blocks);
    } else {
      b = t / blocks;
      q = t % blocks;
    }
    if (channels) q = q % channels * (blocks / channels) + q / channels;
    const std::uint64_t id = p.id(b);
    const std::int64_t block = first + q;
    if constexpr (kTerms) {
      const S* c = static_cast<const S*>(p.coefficients) + b * p.coefficient_stride;
      const std::int64_t* node = p.nodes + b * p.node_stride;
      Made<S> sum{};
      for (int j = 0; j < p.terms; ++j) {
        const S coefficient = c[j];
        if (coefficient == S(0)) continue;
        const Made<S> z = made_of<kind, S>(words(key, static_cast<std::uint32_t>(node[j]), id, block));
#pragma unroll
        for (int i = 0; i < kPer<S>; ++i) sum.v[i] = math::fma(coefficient, z.v[i], sum.v[i]);
      }
      store(p, packed, b, block, sum);
    } else {
      store(p, packed, b, block, made_of<kind, S>(words(key, counter1, id, block)));
    }
  }
}

template <RandomKind kind, typename S, bool kTerms> void launch(const RandomPlan& p, cudaStream_t stream) {
  const std::int64_t blocks = p.blocks(), size = p.dtype == DType::f32                            ? 4
                                                 : p.dtype == DType::f64 || p.dtype == DType::i64 ? 8
                                                                                                  : 2;
  const bool whole = p.element_offset % kPer<S> == 0 && p.n % kPer<S> == 0;
  const bool packed = p.adjacent() && whole && (p.batch == 1 || p.batch_stride % kPer<S> == 0) &&
                      reinterpret_cast<std::uintptr_t>(p.out) % (kPer<S> * size) == 0;
  const bool pixels = p.interleaved() && whole && p.shape[1] % kPer<S> == 0;
  FK_LAUNCH((random_fill_kernel<kind, S, kTerms>), blocks_for(p.batch * blocks, kThreads), kThreads, 0, stream, p,
            blocks, pixels ? p.shape[0] : std::int64_t(0), packed);
}

}  // namespace

void random_fill(const RandomPlan& p, cudaStream_t stream) {
  const bool wide = p.dtype == DType::f64;
  if (p.terms) {
    if (wide) launch<RandomKind::normal, double, true>(p, stream);
    else launch<RandomKind::normal, float, true>(p, stream);
    return check_launch("random_fill");
  }
  switch (p.kind) {
    case RandomKind::bits:
      launch<RandomKind::bits, std::uint32_t, false>(p, stream);
      break;
    case RandomKind::rademacher:
      launch<RandomKind::rademacher, float, false>(p, stream);
      break;
#define FK_KIND(kind)                                             \
  case RandomKind::kind:                                          \
    if (wide) launch<RandomKind::kind, double, false>(p, stream); \
    else launch<RandomKind::kind, float, false>(p, stream);       \
    break;
      FK_KIND(uniform)
      FK_KIND(normal)
      FK_KIND(gumbel)
      FK_KIND(exponential)
#undef FK_KIND
  }
  check_launch("random_fill");
}

}  // namespace fokker::cuda
