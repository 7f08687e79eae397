// von Mises-Fisher samples: the cosine by rejection, the tangent from normals, mapped to the sphere in one kernel.
//
// Formulas: math/vmf_sample.h. Noise is a function of (seed, step, sample id) alone, the same words and normals as on
// the CPU. Bytes a sample: the row written, the mean read; normals stay in registers up to 512 elements (double: 256),
// above that they are put in the output row and read back from the cache.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "math/normal.h"
#include "math/vmf_sample.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = kRowThreads, kWarps = kThreads / kWarp;
template <typename T> inline constexpr int kPer = 16 / sizeof(T);  // normals of one noise block

template <typename T> struct Samples {
  const T* mean;
  std::int64_t mean_stride;
  const T* concentration;
  std::int64_t concentration_stride, batch;
  const std::int64_t* ids;
  std::int64_t first_id;
  std::uint64_t seed;
  std::uint32_t step;
  std::int64_t dim, n;
  T *out, *w, *one_minus_w;
  bool aligned;  // rows of mean and out allow 16-byte accesses

  __device__ __forceinline__ std::uint64_t id(std::int64_t i) const {
    return std::uint64_t(ids ? ids[i] : first_id + i);
  }
  __device__ __forceinline__ const T* mean_row(std::int64_t i) const { return mean + i % batch * mean_stride; }
  __device__ __forceinline__ double k(std::int64_t i) const {
    return double(concentration[i % batch * concentration_stride]);
  }
};

template <typename T> struct alignas(16) Pack {
  T v[kPer<T>];
};
__device__ __forceinline__ Pack<float> normals_of(math::Words words, float) {
  const auto z = math::normal_block(words);
  return {{z.z0, z.z1, z.z2, z.z3}};
}
__device__ __forceinline__ Pack<double> normals_of(math::Words words, double) {
  const auto z = math::normal_pair(words);
  return {{z.first, z.second}};
}
// The elements of noise block b of sample `id`; element 0 and what lies past the row are 0.
template <typename T>
__device__ __forceinline__ Pack<T> tangent_normals(const Samples<T>& s, std::uint64_t id, std::int64_t b) {
  Pack<T> z = normals_of(math::noise(s.seed, s.step, math::Stream::vmf_tangent, id, std::uint32_t(b)), T(0));
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j)
    if (b * kPer<T> + j >= s.dim || b + j == 0) z.v[j] = T(0);
  return z;
}
template <typename T> __device__ __forceinline__ Pack<T> load_block(const Samples<T>& s, const T* row, std::int64_t b) {
  Pack<T> p;
  if (s.aligned) return load_pack<Pack<T>>(reinterpret_cast<const Pack<T>*>(row) + b);
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) p.v[j] = b * kPer<T> + j < s.dim ? row[b * kPer<T> + j] : T(0);
  return p;
}
template <typename T>
__device__ __forceinline__ void store_block(const Samples<T>& s, T* row, std::int64_t b, Pack<T> p) {
  if (s.aligned) {
    store_pack(reinterpret_cast<Pack<T>*>(row) + b, p);
    return;
  }
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j)
    if (b * kPer<T> + j < s.dim) row[b * kPer<T> + j] = p.v[j];
}

// The cosines of `group` samples (a power of two), one a slot; lane l tries attempt l / group, + 32 / group, ... of
// slot l % group, and the first that is accepted counts, as if they had been tried in turn.
__device__ __forceinline__ math::VmfCosine draw_cosine(std::int64_t dim, double k, std::uint64_t seed,
                                                       std::uint32_t step, std::uint64_t id, int group, bool wanted) {
  const math::VmfEnvelope envelope = math::vmf_envelope(dim, k);
  if (dim == 3) return math::vmf_cosine_dim3(envelope, math::noise(seed, step, math::Stream::vmf_rejection, id, 0));
  const int lane = threadIdx.x % kWarp, slot = lane & (group - 1);
  const unsigned slots = group == kWarp ? 1u : kFullWarp / ((1u << group) - 1u);  // slot 0's lanes
  math::VmfCosine cosine{math::quiet_nan<double>(), math::quiet_nan<double>()};
  bool done = !wanted;
  for (std::uint32_t first = 0; first < math::vmf_max_attempts; first += kWarp / group) {
    const std::uint32_t attempt = first + lane / group, block = math::vmf_blocks_per_attempt * attempt;
    const auto proposal = math::noise(seed, step, math::Stream::vmf_rejection, id, block);
    const auto test = math::noise(seed, step, math::Stream::vmf_rejection, id, block + 1);
    const auto a = math::vmf_attempt(dim, envelope, proposal, test);
    const unsigned accepted = __ballot_sync(kFullWarp, a.accepted) >> slot & slots;
    const int winner = accepted ? slot + __ffs(int(accepted)) - 1 : lane;
    const double w = __shfl_sync(kFullWarp, a.cosine.w, winner);
    const double one_minus_w = __shfl_sync(kFullWarp, a.cosine.one_minus_w, winner);
    if (!done && accepted) cosine = {w, one_minus_w};
    done = done || accepted;
    if (__all_sync(kFullWarp, done)) break;
  }
  return cosine;
}

// Scale and slope of the map, and the row's first element.
template <typename T> struct Map {
  T scale, slope, head;
};
template <typename T> __device__ __forceinline__ Map<T> map_of(const math::VmfCosine& c, const T* mean, double squares,
                                                               double products, bool& degenerate) {
  degenerate = squares == 0.0;  // normals that are all 0: take the first tangent axis
  const auto t =
      math::vmf_tangent(c, double(mean[0]), degenerate ? 1.0 : squares, degenerate ? double(mean[1]) : products);
  return {T(t.scale), T(t.slope), T(t.head)};
}
template <typename T> __device__ __forceinline__ Pack<T> mapped(const Map<T>& m, Pack<T> z, const Pack<T>& mean,
                                                                std::int64_t b, bool degenerate) {
#pragma unroll
  for (int j = 0; j < kPer<T>; ++j) {
    const std::int64_t e = b * kPer<T> + j;
    const T zj = degenerate && e == 1 ? T(1) : z.v[j];
    z.v[j] = e == 0 ? m.head : m.scale * zj + m.slope * mean.v[j];
  }
  return z;
}

// Rows of at most lanes kBlocks noise blocks: a warp draws `group` cosines at once, then teams of `lanes` write the
// rows.
template <typename T, int kBlocks> __global__ void __launch_bounds__(kThreads)
    vmf_sample_teams(const __grid_constant__ Samples<T> s, int group, int lanes) {
  const int lane = threadIdx.x % kWarp, teams = kWarp / lanes;
  const std::int64_t base = (std::int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) * group;
  if (base >= s.n) return;  // a whole warp
  const std::int64_t mine = base + (lane & (group - 1)), safe = mine < s.n ? mine : s.n - 1;
  const auto drawn = draw_cosine(s.dim, s.k(safe), s.seed, s.step, s.id(safe), group, mine < s.n);
  if (lane < group && mine < s.n) {
    if (s.w) s.w[mine] = T(drawn.w);
    if (s.one_minus_w) s.one_minus_w[mine] = T(drawn.one_minus_w);
  }
  const std::int64_t blocks = (s.dim + kPer<T> - 1) / kPer<T>;
  for (int first = 0; first < group; first += teams) {
    const int slot = first + lane / lanes;
    const math::VmfCosine cosine{__shfl_sync(kFullWarp, drawn.w, slot),
                                 __shfl_sync(kFullWarp, drawn.one_minus_w, slot)};
    const bool valid = slot < group && base + slot < s.n;
    const std::int64_t i = valid ? base + slot : s.n - 1;
    const T* mean = s.mean_row(i);
    Pack<T> z[kBlocks], mu[kBlocks];
    T squares = 0, products = 0;
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const std::int64_t b = m * lanes + (lane & (lanes - 1));
      z[m] = mu[m] = Pack<T>{};
      if (b < blocks) {
        z[m] = tangent_normals(s, s.id(i), b);
        mu[m] = load_block(s, mean, b);
      }
#pragma unroll
      for (int j = 0; j < kPer<T>; ++j) {
        squares += z[m].v[j] * z[m].v[j];
        products += mu[m].v[j] * z[m].v[j];
      }
    }
    double total_squares = double(squares), total_products = double(products);
    for (int flip = lanes / 2; flip > 0; flip /= 2) {
      total_squares += shuffle_xor(total_squares, flip);
      total_products += shuffle_xor(total_products, flip);
    }
    bool degenerate;
    const Map<T> map = map_of(cosine, mean, total_squares, total_products, degenerate);
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const std::int64_t b = m * lanes + (lane & (lanes - 1));
      if (valid && b < blocks) store_block(s, s.out + i * s.dim, b, mapped(map, z[m], mu[m], b, degenerate));
    }
  }
}

// One block a sample of any dimension; the output row holds the normals between the two passes.
template <typename T> __global__ void __launch_bounds__(kThreads)
    vmf_sample_blocks(const __grid_constant__ Samples<T> s) {
  FK_SHARED(double, drawn, 2);
  const std::int64_t i = blockIdx.x, blocks = (s.dim + kPer<T> - 1) / kPer<T>;
  const std::uint64_t id = s.id(i);
  if (threadIdx.x < kWarp) {
    const auto c = draw_cosine(s.dim, s.k(i), s.seed, s.step, id, 1, true);
    if (threadIdx.x == 0) {
      drawn[0] = c.w;
      drawn[1] = c.one_minus_w;
      if (s.w) s.w[i] = T(c.w);
      if (s.one_minus_w) s.one_minus_w[i] = T(c.one_minus_w);
    }
  }
  const T* mean = s.mean_row(i);
  T* row = s.out + i * s.dim;
  T squares = 0, products = 0;
  for (std::int64_t b = threadIdx.x; b < blocks; b += kThreads) {
    const Pack<T> z = tangent_normals(s, id, b), mu = load_block(s, mean, b);
#pragma unroll
    for (int j = 0; j < kPer<T>; ++j) {
      squares += z.v[j] * z.v[j];
      products += mu.v[j] * z.v[j];
    }
    store_block(s, row, b, z);
  }
  const double total_squares = block_reduce<kThreads>(double(squares), Sum{});  // its barriers also publish `drawn`
  const double total_products = block_reduce<kThreads>(double(products), Sum{});
  bool degenerate;
  const Map<T> map = map_of(math::VmfCosine{drawn[0], drawn[1]}, mean, total_squares, total_products, degenerate);
  for (std::int64_t b = threadIdx.x; b < blocks; b += kThreads)  // each thread reads what it wrote
    store_block(s, row, b, mapped(map, load_block(s, row, b), load_block(s, mean, b), b, degenerate));
}

bool allows_packs(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % 16 == 0; }

}  // namespace

template <typename T> void vmf_sample(const T* mean, std::int64_t mean_stride, const T* concentration,
                                      std::int64_t concentration_stride, std::int64_t batch,
                                      const std::int64_t* sample_ids, std::int64_t first_id, std::uint64_t seed,
                                      std::uint32_t step, std::int64_t dim, std::int64_t n, T* out, T* w,
                                      T* one_minus_w, cudaStream_t stream) {
  if (n == 0) return;
  const bool aligned = dim % kPer<T> == 0 && mean_stride % kPer<T> == 0 && allows_packs(mean) && allows_packs(out);
  const Samples<T> s{
      mean, mean_stride, concentration, concentration_stride, batch, sample_ids, first_id, seed, step, dim, n, out,
      w,    one_minus_w, aligned};
  const std::int64_t blocks = (dim + kPer<T> - 1) / kPer<T>;
  const int group = warp_group(n);
  const unsigned grid = blocks_for(n, std::int64_t(kWarps) * group);
  if (blocks <= kWarp) FK_LAUNCH((vmf_sample_teams<T, 1>), grid, kThreads, 0, stream, s, group, team_lanes(blocks));
  else if (blocks <= 4 * kWarp) FK_LAUNCH((vmf_sample_teams<T, 4>), grid, kThreads, 0, stream, s, group, kWarp);
  else FK_LAUNCH((vmf_sample_blocks<T>), blocks_for(n, 1), kThreads, 0, stream, s);
  check_launch("vmf_sample");
}

#define FK_INSTANTIATE(T)                                                                                         \
  template void vmf_sample<T>(const T*, std::int64_t, const T*, std::int64_t, std::int64_t, const std::int64_t*,  \
                              std::int64_t, std::uint64_t, std::uint32_t, std::int64_t, std::int64_t, T*, T*, T*, \
                              cudaStream_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cuda
