// Launcher of the log-Bessel kernels: chooses by the order of the derivative.
#include "cuda/bessel.cuh"

namespace fokker::cuda {

template <typename T>
void bessel(math::Fn fn, int order, const Elementwise& e, DType out_dtype, void* const* out, cudaStream_t stream) {
  if (e.numel == 0) return;
  bessel_detail::Outputs to{{nullptr, nullptr, nullptr}, out_dtype};
  for (int k = 0; k <= order; ++k) to.data[k] = out[k];
  if (order == 0) bessel_detail::run_value<T>(fn, e, to, stream);
  else if (order == 1) bessel_detail::run_gradient<T>(fn, e, to, stream);
  else bessel_detail::run_hessian<T>(fn, e, to, stream);
}

template void bessel<float>(math::Fn, int, const Elementwise&, DType, void* const*, cudaStream_t);
template void bessel<double>(math::Fn, int, const Elementwise&, DType, void* const*, cudaStream_t);

}  // namespace fokker::cuda
