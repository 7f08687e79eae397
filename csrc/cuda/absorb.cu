// The absorbing step of masked diffusion: a Gumbel race over the tokens at each position that opens now.
//
// One block of threads a position; a thread takes Philox blocks of four tokens (double: two) in turn. Bytes: the tokens
// once, the logits of opening positions once; neither softmax nor noise is stored.
#include "common/half.h"
#include "common/particle_plan.h"
#include "cuda/launch.h"
#include "cuda/particles.h"
#include "cuda/reduce.cuh"
#include "math/random.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T> struct Best {
  T score;
  std::int64_t index;
};
template <typename T> __device__ __forceinline__ Best<T> shuffle_xor(Best<T> v, int flip) {
  return {__shfl_xor_sync(kFullWarp, v.score, flip), __shfl_xor_sync(kFullWarp, v.index, flip)};
}
// The higher score; of equal ones the lower index. Commutes, so that every lane gets the same.
struct Better {
  template <typename T> __device__ __forceinline__ Best<T> operator()(Best<T> a, Best<T> b) const {
    const bool second = b.score > a.score || (b.score == a.score && b.index < a.index);
    return second ? b : a;
  }
};

template <typename T> __device__ __forceinline__ T number_at(const void* data, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::f16:
      return static_cast<T>(to_float(static_cast<const Half*>(data)[i]));
    case DType::bf16:
      return static_cast<T>(to_float(static_cast<const BFloat16*>(data)[i]));
    case DType::f64:
      return static_cast<T>(static_cast<const double*>(data)[i]);
    default:
      return static_cast<T>(static_cast<const float*>(data)[i]);
  }
}

template <typename T> __global__ void __launch_bounds__(kThreads) absorb_kernel(const __grid_constant__ AbsorbPlan p) {
  constexpr int per = sizeof(T) == 8 ? 2 : 4;
  for (std::int64_t q = blockIdx.x; q < p.batch * p.length; q += gridDim.x) {
    const std::int64_t b = q / p.length, l = q % p.length;
    const std::int64_t token = p.tokens[b * p.token_strides[0] + l * p.token_strides[1]];
    const std::uint64_t id = p.at.id(b);
    bool open = token == p.mask_id;
    if (open) {
      const math::Words w = p.at.words(p.unmask_stream, id, static_cast<std::uint32_t>(l / 4));
      const std::uint32_t word = (l & 3) == 0 ? w.w0 : (l & 3) == 1 ? w.w1 : (l & 3) == 2 ? w.w2 : w.w3;
      open = math::uniform(word) <= p.probability[b * p.probability_stride];
    }
    if (!open) {  // the whole block of threads
      if (threadIdx.x == 0) p.out[q] = token;
      continue;
    }
    const std::int64_t at = b * p.logit_strides[0] + l * p.logit_strides[1];
    const std::int64_t begin = l * p.size, end = begin + p.size;  // of the sample's noise
    const T scale = static_cast<T>(p.scale);
    Best<T> best{-math::infinity<T>(), p.size};
    for (std::int64_t block = begin / per + threadIdx.x; block * per < end; block += kThreads) {
      T noise[per] = {};
      if (!p.greedy) {
        const math::Words w = p.at.words(p.race_stream, id, static_cast<std::uint32_t>(block));
        if constexpr (per == 2) {
          noise[0] = math::gumbel(w.w0, w.w1), noise[1] = math::gumbel(w.w2, w.w3);
        } else {
          noise[0] = math::gumbel(w.w0), noise[1] = math::gumbel(w.w1);
          noise[2] = math::gumbel(w.w2), noise[3] = math::gumbel(w.w3);
        }
      }
#pragma unroll
      for (int j = 0; j < per; ++j) {
        const std::int64_t v = block * per + j - begin;
        if (v < 0 || v >= p.size || v == p.mask_id) continue;
        const T score = number_at<T>(p.logits, p.dtype, at + v) * scale + noise[j];
        if (score > best.score) best = {score, v};
      }
    }
    best = block_reduce<kThreads>(best, Better{});
    if (threadIdx.x == 0) p.out[q] = best.index < p.size ? best.index : token;
  }
}

}  // namespace

void absorb(const AbsorbPlan& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for(p.batch * p.length, 1);
  if (p.dtype == DType::f64) FK_LAUNCH((absorb_kernel<double>), blocks, kThreads, 0, stream, p);
  else FK_LAUNCH((absorb_kernel<float>), blocks, kThreads, 0, stream, p);
  check_launch("absorb");
}

}  // namespace fokker::cuda
