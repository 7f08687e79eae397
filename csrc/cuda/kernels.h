// CUDA launchers on raw device pointers: asynchronous on the given stream, capturable, no allocation, no pybind11, no
// torch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/elementwise.h"
#include "math/bessel_fn.h"

namespace fokker {
struct KdeSums;
struct RandomPlan;
}  // namespace fokker

namespace fokker::math {
enum class VmfFn : int;
}

namespace fokker::cuda {

// Elementwise ops: inputs of any layout, f16, bf16 and f32 for T = float, f64 for T = double; contiguous outputs.

// Inputs v, x. Order 0: the value; 1: (d/dv, d/dx); 2: (d2/dv2, d2/dvdx, d2/dx2). A null output is not computed.
template <typename T>
void bessel(math::Fn fn, int order, const Elementwise& e, DType out_dtype, void* const* out, cudaStream_t stream);

template <typename T> void vmf_scalar(math::VmfFn fn, std::int64_t dim, const Elementwise& e, DType out_dtype,
                                      void* out, cudaStream_t stream);

// Inputs k1, k2; out: the Bregman divergence of the log-partition function and its two derivatives, null where not
// wanted.
template <typename T>
void vmf_bregman(std::int64_t dim, const Elementwise& e, DType out_dtype, void* const* out, cudaStream_t stream);

// out = log C(k) + k mu.x, in double until it is stored; inputs: rows of x, rows of the mean (offsets of their first
// elements), concentrations.
template <typename T> void vmf_log_prob(std::int64_t dim, const Elementwise& e, T* out, cudaStream_t stream);

// out (n, dim) by rows, w and one_minus_w (n). Sample i has mean row (i % batch) mean_stride, concentration entry
// (i % batch) concentration_stride, and the id sample_ids[i], or first_id + i where that is null; step < 2^24.
template <typename T> void vmf_sample(const T* mean, std::int64_t mean_stride, const T* concentration,
                                      std::int64_t concentration_stride, std::int64_t batch,
                                      const std::int64_t* sample_ids, std::int64_t first_id, std::uint64_t seed,
                                      std::uint32_t step, std::int64_t dim, std::int64_t n, T* out, T* w,
                                      T* one_minus_w, cudaStream_t stream);

// The vector-Jacobian product of samples x: grad (n, dim) into grad_mean (n, dim; may be grad) and the gradient in each
// w.
template <typename T> void vmf_sample_backward(const T* grad, const T* x, const T* mean, std::int64_t mean_stride,
                                               std::int64_t batch, const T* w, const T* one_minus_w, std::int64_t dim,
                                               std::int64_t n, T* grad_mean, T* grad_cosine, cudaStream_t stream);

// dw/dk of samples at a fixed probability; mean_resultant = A, complement = 1 - A; all of n entries.
template <typename T> void vmf_cosine_gradient(std::int64_t dim, const T* concentration, const T* mean_resultant,
                                               const T* complement, const T* w, const T* one_minus_w, T* out,
                                               std::int64_t n, cudaStream_t stream);

// x (n, d), weights (n) or null; out (d + 2), double: weighted column sums, sum of weights, max | |x_i|^2 - 1 |.
// partial: workspace of partial_rows rows of d + 2. The result depends on partial_rows and on nothing else of the
// device.
template <typename T> void resultant(const T* x, const T* weights, std::int64_t n, std::int64_t d, double* partial,
                                     int partial_rows, double* out, cudaStream_t stream);

// out (n) = log sum_k exp(logits + bias) over the rows of logits (n, k); with `softmax` the logits become the shares.
template <typename T>
void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax, cudaStream_t stream);

// Density sums (common/kde_sums.h); for float32 with `highest` the rows that float leaves in doubt are done in double.
template <typename T> void kde_sums(const KdeSums& s, cudaStream_t stream);

// Random numbers, or sums of normals, into p.out (common/random_plan.h); batch and n positive.
void random_fill(const RandomPlan& p, cudaStream_t stream);

}  // namespace fokker::cuda
