// The affine and exponential steps: y_r = a_r x + sum_k b_rk m_k + c_r z, or x exp(of that without x).
//
// Bytes: x, the terms and the results once each. With inner products each block of threads takes a tile of one sample.
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

// K: terms, or with !Exact at most that many.
template <typename T, int K, bool Exact, bool Dots>
__device__ __forceinline__ void step_at(const AffinePlan& p, const SdeWalk& w, bool has_row, std::int64_t b,
                                        std::int64_t q, double* sum) {
  const int vectors = Exact ? K + 1 : p.vectors;
  const Spot<T> s = spot<T>(p, w, b, q);
  Lot<T> v[K + 1], z{};
#pragma unroll
  for (int k = 0; k <= K; ++k)
    if (k < vectors) v[k] = read<T>(p, w, p.in[k], s);
    else v[k] = Lot<T>{};
  if (p.noisy) z = noise_at<T>(p, w, s);
  for (int r = 0; r < p.results; ++r) {
    Lot<T> first = v[K > 0 ? 1 : 0], y;
    if (K > 0 && p.clipped) {
      const T pc = coefficient<T>(p, has_row, b, r, p.columns - 2),
              qc = coefficient<T>(p, has_row, b, r, p.columns - 1);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j)
        first.v[j] = math::clipped(v[0].v[j], first.v[j], pc, qc, static_cast<T>(p.clip));
    }
    const T a = coefficient<T>(p, has_row, b, r, 0);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) y.v[j] = p.exponential ? a : a * v[0].v[j];
#pragma unroll
    for (int k = 1; k <= K; ++k) {
      if (k >= vectors) break;
      const T c = coefficient<T>(p, has_row, b, r, k);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) y.v[j] = math::plus_term(y.v[j], c, k == 1 ? first.v[j] : v[k].v[j]);
    }
    if (p.noisy) {
      const T c = coefficient<T>(p, has_row, b, r, vectors);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) y.v[j] = math::plus_term(y.v[j], c, z.v[j]);
    }
    if (p.exponential) {
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) y.v[j] = v[0].v[j] * math::exp(y.v[j]);
    }
    if (Dots && r == 0) {
      Lot<T> dx;
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) dx.v[j] = !w.packed && s.at[j] < 0 ? T(0) : y.v[j] - v[0].v[j];
      // The upper triangle by rows of [dx, m_1 .., z] as if there were K terms and noise; absent ones are 0.
      int at = 0;
#pragma unroll
      for (int i = 0; i <= K + 1; ++i)
#pragma unroll
        for (int k = i; k <= K + 1; ++k, ++at) {
          const auto of = [&](int n) -> const Lot<T>& { return n == 0 ? dx : n > K ? z : n == 1 ? first : v[n]; };
          add_product(of(i), of(k), sum[at]);
        }
    }
    write(p, w, p.out[r], s, y);
  }
}

// Packed: every operand's lots lie whole and aligned; then K is the number of terms.
template <typename T, int K, bool kPacked> __global__ void __launch_bounds__(kSdeThreads, kPacked ? 2 : 1)
    sde_step_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk walk) {
  const SdeWalk w = fixed<kPacked>(walk);
  const bool has_row = p.has_row();
  each_block(p, w,
             [&](std::int64_t b, std::int64_t q) { step_at<T, K, kPacked, false>(p, w, has_row, b, q, nullptr); });
}

template <typename T, int K> __global__ void __launch_bounds__(kSdeThreads, 1)
    sde_step_dots_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  constexpr int size = (K + 2) * (K + 3) / 2;
  const bool has_row = p.has_row();
  double sum[size] = {};
  each_of_tile(w, [&](std::int64_t b, std::int64_t q) { step_at<T, K, false, true>(p, w, has_row, b, q, sum); });
  // Only the pairs that the plan has.
  double* const row = p.partial + std::int64_t(blockIdx.x) * p.pairs();
  int at = 0, to = 0;
#pragma unroll
  for (int i = 0; i <= K + 1; ++i)
#pragma unroll
    for (int k = i; k <= K + 1; ++k, ++at) {
      const bool left = i == K + 1 ? p.noisy : i < p.vectors, right = k == K + 1 ? p.noisy : k < p.vectors;
      if (!left || !right) continue;
      const double total = block_reduce<kSdeThreads>(sum[at], Sum{});
      if (threadIdx.x == 0) row[to] = total;
      ++to;
    }
}

template <typename T, int K, bool kPacked>
void launch_step(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  FK_LAUNCH((sde_step_kernel<T, K, kPacked>), blocks_for(p.batch * w.blocks, kSdeThreads), kSdeThreads, 0, stream, p,
            w);
}
template <typename T> void launch(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  if (p.sums) {
    const unsigned blocks = all_blocks(tiles_of(p, w));
    if (p.vectors <= 3) FK_LAUNCH((sde_step_dots_kernel<T, 2>), blocks, kSdeThreads, 0, stream, p, w);
    else if (p.vectors <= 5) FK_LAUNCH((sde_step_dots_kernel<T, 4>), blocks, kSdeThreads, 0, stream, p, w);
    else FK_LAUNCH((sde_step_dots_kernel<T, 8>), blocks, kSdeThreads, 0, stream, p, w);
    return sde_add_tiles(p, tiles_of(p, w) / p.batch, p.pairs(), stream);
  }
  if (!w.packed) {
    if (p.vectors <= 3) launch_step<T, 2, false>(p, w, stream);
    else launch_step<T, 8, false>(p, w, stream);
    return;
  }
  switch (p.terms()) {
#define FK_TERMS(K) \
  case K:           \
    return launch_step<T, K, true>(p, w, stream);
    FK_TERMS(0) FK_TERMS(1) FK_TERMS(2) FK_TERMS(3) FK_TERMS(4) FK_TERMS(5) FK_TERMS(6) FK_TERMS(7) FK_TERMS(8)
#undef FK_TERMS
  }
}

}  // namespace

void sde_step(const AffinePlan& p, cudaStream_t stream) {
  const Operand* all[kMaxVectors + kMaxResults];
  int count = 0;
  for (int k = 0; k < p.vectors; ++k) all[count++] = &p.in[k];
  for (int r = 0; r < p.results; ++r) all[count++] = &p.out[r];
  const SdeWalk w = walk_of(p, all, count);
  if (p.wide) launch<double>(p, w, stream);
  else launch<float>(p, w, stream);
  check_launch("sde_step");
}

}  // namespace fokker::cuda
