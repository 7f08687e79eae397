// The von Mises-Fisher functions of the concentration, the Bregman divergence, and log densities of rows.
//
// Formulas and regimes: math/vmf.h, math/vmf_bregman.h. What depends on the dimension alone is computed on the host and
// passed by value. Elementwise kernels read and write each element once; vmf_log_prob reads each row of x once.
#include "cuda/elementwise.cuh"
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "math/vmf_bregman.h"

namespace fokker::cuda {
namespace {

using math::VmfConstants;
using math::VmfFn;

constexpr int kThreads = 128;

// A model calls with the same dimension over and over.
template <typename T> const VmfConstants<T>& constants(std::int64_t dim) {
  static thread_local VmfConstants<T> c{};
  if (c.dim != dim) math::fill_vmf_constants(dim, &c);
  return c;
}

template <VmfFn F, typename T> __global__ void __launch_bounds__(kThreads)
    vmf_scalar_kernel(const __grid_constant__ Elementwise e, const __grid_constant__ VmfConstants<T> c, void* out,
                      DType dtype) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < e.numel) store_element(out, dtype, i, math::vmf_element<F>(c, load_element<T>(e, 0, i)));
}
template <VmfFn F, typename T>
void run(std::int64_t dim, const Elementwise& e, DType dtype, void* out, cudaStream_t stream) {
  FK_LAUNCH((vmf_scalar_kernel<F, T>), blocks_for(e.numel, kThreads), kThreads, 0, stream, e, constants<T>(dim), out,
            dtype);
  check_launch("vmf_scalar");
}

struct Outputs {
  void* data[3];
  DType dtype;
};
template <typename T> __global__ void __launch_bounds__(kThreads)
    vmf_bregman_kernel(const __grid_constant__ Elementwise e, const __grid_constant__ VmfConstants<T> c,
                       const __grid_constant__ Outputs out) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= e.numel) return;
  const T k1 = load_element<T>(e, 0, i), k2 = load_element<T>(e, 1, i);
  const bool inside = k1 >= T(0) && k2 >= T(0);
  T y[3];
  math::vmf_bregman_element(c, k1, k2, y);
#pragma unroll
  for (int k = 0; k < 3; ++k) store_element(out.data[k], out.dtype, i, inside ? y[k] : math::quiet_nan<T>());
}

template <typename T> __device__ __forceinline__ const T* row_of(const Elementwise& e, int k, std::int64_t i) {
  return static_cast<const T*>(e.data[k]) + offset_of(e, k, i);
}
template <typename T>
__device__ __forceinline__ double dot(const T* x, const T* mean, std::int64_t dim, int first, int step) {
  double sum = 0;
  for (std::int64_t j = first; j < dim; j += step) sum = math::mad(double(x[j]), double(mean[j]), sum);
  return sum;
}

template <typename T> __device__ __forceinline__ T log_density(const Elementwise& e, std::int64_t i, std::int64_t dim,
                                                               double k, double log_c, double sum) {
  if (k == math::infinity<double>()) return math::vmf_point_mass(row_of<T>(e, 0, i), row_of<T>(e, 1, i), dim);
  return T(log_c + k * sum);
}

// A warp computes log C of `group` rows at once, one a lane, then teams of `lanes` take the rows.
template <typename T> __global__ void __launch_bounds__(kRowThreads)
    vmf_log_prob_teams(const __grid_constant__ Elementwise e, const __grid_constant__ VmfConstants<double> c,
                       T* __restrict__ out, int group, int lanes) {
  const int lane = threadIdx.x % kWarp, teams = kWarp / lanes;
  const std::int64_t base = (std::int64_t(blockIdx.x) * (kRowThreads / kWarp) + threadIdx.x / kWarp) * group;
  if (base >= e.numel) return;  // a whole warp
  const std::int64_t mine = base + (lane & (group - 1)), safe = mine < e.numel ? mine : e.numel - 1;
  const double k = double(*row_of<T>(e, 2, safe)), log_c = math::vmf_element<VmfFn::log_normalizer>(c, k);
  const Team<false> team{lanes};
  for (int first = 0; first < group; first += teams) {
    const int slot = first + lane / lanes;
    const bool valid = slot < group && base + slot < e.numel;
    const std::int64_t i = valid ? base + slot : e.numel - 1;
    const double row_k = __shfl_sync(kFullWarp, k, slot & (kWarp - 1)),
                 row_c = __shfl_sync(kFullWarp, log_c, slot & (kWarp - 1));
    const double sum = team.sum(dot(row_of<T>(e, 0, i), row_of<T>(e, 1, i), c.dim, team.lane(), lanes));
    if (valid && team.lane() == 0) out[i] = log_density<T>(e, i, c.dim, row_k, row_c, sum);
  }
}
template <typename T> __global__ void __launch_bounds__(kRowThreads)
    vmf_log_prob_blocks(const __grid_constant__ Elementwise e, const __grid_constant__ VmfConstants<double> c,
                        T* __restrict__ out) {
  const std::int64_t i = blockIdx.x;
  const double partial = dot(row_of<T>(e, 0, i), row_of<T>(e, 1, i), c.dim, threadIdx.x, kRowThreads);
  const double sum = block_reduce<kRowThreads>(partial, Sum{}), k = double(*row_of<T>(e, 2, i));
  if (threadIdx.x < kWarp) {
    const double log_c = math::vmf_element<VmfFn::log_normalizer>(c, k);
    if (threadIdx.x == 0) out[i] = log_density<T>(e, i, c.dim, k, log_c, sum);
  }
}

}  // namespace

template <typename T>
void vmf_scalar(VmfFn fn, std::int64_t dim, const Elementwise& e, DType out_dtype, void* out, cudaStream_t stream) {
  if (e.numel == 0) return;
  switch (fn) {
#define FK_CASE(name) \
  case VmfFn::name:   \
    return run<VmfFn::name, T>(dim, e, out_dtype, out, stream);
    FK_CASE(log_normalizer)
    FK_CASE(mean_resultant)
    FK_CASE(complement)
    FK_CASE(resultant_derivative)
    FK_CASE(resultant_second)
    FK_CASE(entropy)
    FK_CASE(kl_uniform)
    FK_CASE(concentration_from_resultant)
    FK_CASE(concentration_from_complement)
#undef FK_CASE
  }
}

template <typename T>
void vmf_bregman(std::int64_t dim, const Elementwise& e, DType out_dtype, void* const* out, cudaStream_t stream) {
  if (e.numel == 0) return;
  const Outputs to{{out[0], out[1], out[2]}, out_dtype};
  FK_LAUNCH((vmf_bregman_kernel<T>), blocks_for(e.numel, kThreads), kThreads, 0, stream, e, constants<T>(dim), to);
  check_launch("vmf_bregman");
}

template <typename T> void vmf_log_prob(std::int64_t dim, const Elementwise& e, T* out, cudaStream_t stream) {
  if (e.numel == 0) return;
  const VmfConstants<double>& c = constants<double>(dim);
  const int group = warp_group(e.numel);
  if (dim >= kWideRow) FK_LAUNCH((vmf_log_prob_blocks<T>), blocks_for(e.numel, 1), kRowThreads, 0, stream, e, c, out);
  else
    FK_LAUNCH((vmf_log_prob_teams<T>), blocks_for(e.numel, std::int64_t(kRowThreads / kWarp) * group), kRowThreads, 0,
              stream, e, c, out, group, team_lanes(dim));
  check_launch("vmf_log_prob");
}

#define FK_INSTANTIATE(T)                                                                            \
  template void vmf_scalar<T>(VmfFn, std::int64_t, const Elementwise&, DType, void*, cudaStream_t);  \
  template void vmf_bregman<T>(std::int64_t, const Elementwise&, DType, void* const*, cudaStream_t); \
  template void vmf_log_prob<T>(std::int64_t, const Elementwise&, T*, cudaStream_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cuda
