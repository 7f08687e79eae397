// Gradients of von Mises-Fisher samples: dw/dk at a fixed probability, and the vector-Jacobian product of the rows.
//
// Formulas: math/vmf_sample.h. dx = w dmu - (x.dmu) mu as mu turns, dx = (mu - w xi / sqrt(1 - w^2)) dw as w moves, so
//   grad_mean = w g - (g.mu) x,   grad_w = g.mu - w (g.(x - mu) + (1 - w) g.mu) / (1 - w^2).
// Bytes a row of the second: g, x and grad_mean once from memory, the mean from the cache; g and x again from the
// cache.
#include "cuda/kernels.h"
#include "cuda/rows.cuh"
#include "math/vmf_sample.h"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T> __global__ void __launch_bounds__(kThreads)
    vmf_cosine_gradient_kernel(std::int64_t dim, const T* __restrict__ k, const T* __restrict__ mean,
                               const T* __restrict__ complement, const T* __restrict__ w,
                               const T* __restrict__ one_minus_w, T* __restrict__ out, std::int64_t n) {
  const std::int64_t i = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const auto tail = math::vmf_tail(dim, k[i], mean[i], complement[i], w[i], one_minus_w[i]);
  double sum = 0;
#pragma unroll
  for (int node = 0; node < math::vmf_nodes; ++node)  // unrolled, or the rule's nodes and weights become local memory
    sum += math::vmf_weight(node) * math::vmf_tail_term(tail, math::vmf_node(node));
  out[i] = T(math::vmf_tail_result(tail, sum));
}

// No __restrict__ on grad and grad_mean: they may be one array.
template <typename T, bool kWide> __global__ void __launch_bounds__(kRowThreads)
    vmf_sample_backward_kernel(const T* grad, const T* __restrict__ x, const T* __restrict__ mean,
                               std::int64_t mean_stride, std::int64_t batch, const T* __restrict__ w,
                               const T* __restrict__ one_minus_w, std::int64_t dim, std::int64_t n, T* grad_mean,
                               T* __restrict__ grad_cosine, int lanes) {
  const Team<kWide> team{lanes};
  const std::int64_t row = team_row(team, n), i = row < 0 ? 0 : row;
  const std::int64_t length = row < 0 ? 0 : dim;  // a team without a row must not read what another one is writing
  const T *g = grad + i * dim, *xi = x + i * dim, *mu = mean + i % batch * mean_stride;
  T along = 0, across = 0;
  for (std::int64_t j = team.lane(); j < length; j += team.size()) {
    along += g[j] * mu[j];
    across += g[j] * (xi[j] - mu[j]);
  }
  const double along_sum = team.sum(double(along)), across_sum = team.sum(double(across));
  if (row < 0) return;
  if (team.lane() == 0) {
    const double rest = double(one_minus_w[i]), square = rest * (2.0 - rest);
    const double tangent = across_sum + rest * along_sum;
    grad_cosine[i] = T(square == 0.0 ? 0.0 : along_sum - double(w[i]) * tangent / square);
  }
  const T scale = w[i], back = T(along_sum);
  for (std::int64_t j = team.lane(); j < dim; j += team.size()) grad_mean[i * dim + j] = scale * g[j] - back * xi[j];
}

}  // namespace

template <typename T> void vmf_cosine_gradient(std::int64_t dim, const T* concentration, const T* mean_resultant,
                                               const T* complement, const T* w, const T* one_minus_w, T* out,
                                               std::int64_t n, cudaStream_t stream) {
  if (n == 0) return;
  FK_LAUNCH((vmf_cosine_gradient_kernel<T>), blocks_for(n, kThreads), kThreads, 0, stream, dim, concentration,
            mean_resultant, complement, w, one_minus_w, out, n);
  check_launch("vmf_cosine_gradient");
}

template <typename T> void vmf_sample_backward(const T* grad, const T* x, const T* mean, std::int64_t mean_stride,
                                               std::int64_t batch, const T* w, const T* one_minus_w, std::int64_t dim,
                                               std::int64_t n, T* grad_mean, T* grad_cosine, cudaStream_t stream) {
  if (n == 0) return;
  const int lanes = team_lanes(dim);
  if (dim >= kWideRow)
    FK_LAUNCH((vmf_sample_backward_kernel<T, true>), team_blocks<true>(n, lanes), kRowThreads, 0, stream, grad, x, mean,
              mean_stride, batch, w, one_minus_w, dim, n, grad_mean, grad_cosine, lanes);
  else
    FK_LAUNCH((vmf_sample_backward_kernel<T, false>), team_blocks<false>(n, lanes), kRowThreads, 0, stream, grad, x,
              mean, mean_stride, batch, w, one_minus_w, dim, n, grad_mean, grad_cosine, lanes);
  check_launch("vmf_sample_backward");
}

#define FK_INSTANTIATE(T)                                                                                            \
  template void vmf_cosine_gradient<T>(std::int64_t, const T*, const T*, const T*, const T*, const T*, T*,           \
                                       std::int64_t, cudaStream_t);                                                  \
  template void vmf_sample_backward<T>(const T*, const T*, const T*, std::int64_t, std::int64_t, const T*, const T*, \
                                       std::int64_t, std::int64_t, T*, T*, cudaStream_t);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cuda
