// The vector-Jacobian product of a step: with h_r the gradient in what the coefficients of result r are linear in, the
// gradient in a vector is a sum of h_r over the results, and in a coefficient an inner product with h_r.
//
// Bytes: gradients of the results once, those of the vectors once; the vectors where the step is not linear in them or
// the coefficients' gradients are wanted.
#include "cuda/sde.cuh"

namespace fokker::cuda {
namespace {

template <typename T, int K, bool Sums> __device__ __forceinline__ void vjp_at(const AffinePlan& p, const SdeWalk& w,
                                                                               bool has_row, std::int64_t b,
                                                                               std::int64_t q, double* sum) {
  constexpr int columns = K + 4;  // of `sum`, a row a result: a, b_1 .. b_K, c, p, q
  const Spot<T> s = spot<T>(p, w, b, q);
  Lot<T> v[K + 1], z{}, to[K + 1];
  const bool reads = p.exponential || p.clipped || Sums;
#pragma unroll
  for (int k = 0; k <= K; ++k) {
    to[k] = Lot<T>{};
    v[k] = Lot<T>{};
    if (reads && k < p.vectors) v[k] = read<T>(p, w, p.in[k], s);
  }
  if (p.noisy) z = noise_at<T>(p, w, s);
#pragma unroll
  for (int r = 0; r < kMaxResults; ++r) {
    if (r >= p.results) break;
    Lot<T> h = read<T>(p, w, p.grad[r], s), first = v[K > 0 ? 1 : 0], through{};
    const T a = coefficient<T>(p, has_row, b, r, 0);
    T pc = T(0), qc = T(0);
    if (K > 0 && p.clipped) {
      pc = coefficient<T>(p, has_row, b, r, p.columns - 2), qc = coefficient<T>(p, has_row, b, r, p.columns - 1);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j)
        first.v[j] = math::clipped(v[0].v[j], first.v[j], pc, qc, static_cast<T>(p.clip));
    }
    if (p.exponential) {
      Lot<T> total;
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) total.v[j] = a;
#pragma unroll
      for (int k = 1; k <= K; ++k) {
        if (k >= p.vectors) break;
        const T c = coefficient<T>(p, has_row, b, r, k);
#pragma unroll
        for (int j = 0; j < kPer<T>; ++j) total.v[j] = math::plus_term(total.v[j], c, k == 1 ? first.v[j] : v[k].v[j]);
      }
      if (p.noisy) {
        const T c = coefficient<T>(p, has_row, b, r, p.vectors);
#pragma unroll
        for (int j = 0; j < kPer<T>; ++j) total.v[j] = math::plus_term(total.v[j], c, z.v[j]);
      }
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) {
        const T scaled = h.v[j] * math::exp(total.v[j]);
        to[0].v[j] += scaled;
        h.v[j] = scaled * v[0].v[j];
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) to[0].v[j] = math::plus_term(to[0].v[j], a, h.v[j]);
    }
    if (K > 0 && p.clipped) {
      const T weight = coefficient<T>(p, has_row, b, r, 1);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) {
        through.v[j] =
            math::unclipped(v[0].v[j], v[K > 0 ? 1 : 0].v[j], pc, qc, static_cast<T>(p.clip)) ? weight * h.v[j] : T(0);
        to[0].v[j] = math::plus_term(to[0].v[j], pc, through.v[j]);
      }
    }
#pragma unroll
    for (int k = 1; k <= K; ++k) {
      if (k >= p.vectors) break;
      const bool by_clip = k == 1 && p.clipped;
      const T c = by_clip ? qc : coefficient<T>(p, has_row, b, r, k);
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) to[k].v[j] = math::plus_term(to[k].v[j], c, by_clip ? through.v[j] : h.v[j]);
    }
    if constexpr (Sums) {
      double* const row = sum + r * columns;
      if (p.exponential) {
#pragma unroll
        for (int j = 0; j < kPer<T>; ++j) row[0] += static_cast<double>(h.v[j]);
      } else {
        add_product(h, v[0], row[0]);
      }
#pragma unroll
      for (int k = 1; k <= K; ++k) add_product(h, k == 1 ? first : v[k], row[k]);
      add_product(h, z, row[K + 1]);
      add_product(through, v[0], row[K + 2]);
      if (K > 0) add_product(through, v[1 % (K + 1)], row[K + 3]);
    }
  }
#pragma unroll
  for (int k = 0; k <= K; ++k)
    if (k < p.vectors && p.out[k].data) write(p, w, p.out[k], s, to[k]);
}

template <typename T, int K, bool kPacked> __global__ void __launch_bounds__(kSdeThreads, 1)
    sde_vjp_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk walk) {
  const SdeWalk w = fixed<kPacked>(walk);
  const bool has_row = p.has_row();
  each_block(p, w, [&](std::int64_t b, std::int64_t q) { vjp_at<T, K, false>(p, w, has_row, b, q, nullptr); });
}

template <typename T, int K> __global__ void __launch_bounds__(kSdeThreads, 1)
    sde_vjp_sums_kernel(const __grid_constant__ AffinePlan p, const __grid_constant__ SdeWalk w) {
  constexpr int columns = K + 4;
  const bool has_row = p.has_row();
  double sum[kMaxResults * columns] = {};
  each_of_tile(w, [&](std::int64_t b, std::int64_t q) { vjp_at<T, K, true>(p, w, has_row, b, q, sum); });
  double* const row = p.partial + std::int64_t(blockIdx.x) * p.sum_count();
  int to = 0;
#pragma unroll
  for (int r = 0; r < kMaxResults; ++r)
#pragma unroll
    for (int k = 0; k < columns; ++k) {
      const bool has = k == K + 1 ? p.noisy : k > K + 1 ? p.clipped : k < p.vectors;
      if (r >= p.results || !has) continue;
      const double total = block_reduce<kSdeThreads>(sum[r * columns + k], Sum{});
      if (threadIdx.x == 0) row[to] = total;
      ++to;
    }
}

template <typename T, int K, bool kPacked>
void launch_flat(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  FK_LAUNCH((sde_vjp_kernel<T, K, kPacked>), blocks_for(p.batch * w.blocks, kSdeThreads), kSdeThreads, 0, stream, p, w);
}
template <typename T, int K> void launch_sums(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  FK_LAUNCH((sde_vjp_sums_kernel<T, K>), all_blocks(tiles_of(p, w)), kSdeThreads, 0, stream, p, w);
  sde_add_tiles(p, tiles_of(p, w) / p.batch, p.sum_count(), stream);
}
template <typename T> void launch(const AffinePlan& p, const SdeWalk& w, cudaStream_t stream) {
  if (p.sums) {
    if (p.terms() <= 2) launch_sums<T, 2>(p, w, stream);
    else launch_sums<T, 8>(p, w, stream);
  } else if (!w.packed) {
    launch_flat<T, 8, false>(p, w, stream);
  } else if (p.terms() <= 2) {
    launch_flat<T, 2, true>(p, w, stream);
  } else {
    launch_flat<T, 8, true>(p, w, stream);
  }
}

}  // namespace

void sde_vjp(const AffinePlan& p, cudaStream_t stream) {
  const Operand* all[2 * kMaxVectors + kMaxResults];
  int count = 0;
  for (int k = 0; k < p.vectors; ++k) {
    all[count++] = &p.in[k];
    if (p.out[k].data) all[count++] = &p.out[k];
  }
  for (int r = 0; r < p.results; ++r) all[count++] = &p.grad[r];
  const SdeWalk w = walk_of(p, all, count);
  if (p.wide) launch<double>(p, w, stream);
  else launch<float>(p, w, stream);
  check_launch("sde_vjp");
}

}  // namespace fokker::cuda
