// Between the launcher of density sums and the kernels for few dimensions, which are compiled on their own.
#pragma once

#include <cuda_runtime_api.h>

#include "common/kde_sums.h"

namespace fokker::cuda::kde {

// gaussian and laplace have the distance itself as exponent; the others go through math::kernel_pair.
enum class Form : int { gaussian, absolute, general };

// d <= 8, values none, the slope or y - x_i.
template <typename T> void run_small(const KdeSums& s, Form form, cudaStream_t stream);
template <> void run_small<float>(const KdeSums& s, Form form, cudaStream_t stream);
template <> void run_small<double>(const KdeSums& s, Form form, cudaStream_t stream);

}  // namespace fokker::cuda::kde
