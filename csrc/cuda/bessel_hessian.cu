// Instantiates the log-Bessel kernels for second derivatives, float and double.
#include "cuda/bessel.cuh"

namespace fokker::cuda::bessel_detail {

// The scaled functions differ from the others by a multiple of x alone, which a second derivative does not see.
template <typename T> void run_hessian(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream) {
  switch (fn) {
    case Fn::log_iv:
    case Fn::log_ive:
      return run<Fn::log_iv, 2, Want::all, T>(e, out, stream);
    case Fn::log_kv:
    case Fn::log_kve:
      return run<Fn::log_kv, 2, Want::all, T>(e, out, stream);
    case Fn::iv_ratio:
      return run<Fn::iv_ratio, 2, Want::all, T>(e, out, stream);
    case Fn::kv_ratio:
      return run<Fn::kv_ratio, 2, Want::all, T>(e, out, stream);
  }
}

template void run_hessian<float>(Fn, const Elementwise&, const Outputs&, cudaStream_t);
template void run_hessian<double>(Fn, const Elementwise&, const Outputs&, cudaStream_t);

}  // namespace fokker::cuda::bessel_detail
