// Instantiates the log-Bessel kernels for values, float and double.
#include "cuda/bessel.cuh"

namespace fokker::cuda::bessel_detail {

template <typename T> void run_value(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream) {
  switch (fn) {
    case Fn::log_iv:
      return run<Fn::log_iv, 0, Want::all, T>(e, out, stream);
    case Fn::log_ive:
      return run<Fn::log_ive, 0, Want::all, T>(e, out, stream);
    case Fn::log_kv:
      return run<Fn::log_kv, 0, Want::all, T>(e, out, stream);
    case Fn::log_kve:
      return run<Fn::log_kve, 0, Want::all, T>(e, out, stream);
    case Fn::iv_ratio:
      return run<Fn::iv_ratio, 0, Want::all, T>(e, out, stream);
    case Fn::kv_ratio:
      return run<Fn::kv_ratio, 0, Want::all, T>(e, out, stream);
  }
}

template void run_value<float>(Fn, const Elementwise&, const Outputs&, cudaStream_t);
template void run_value<double>(Fn, const Elementwise&, const Outputs&, cudaStream_t);

}  // namespace fokker::cuda::bessel_detail
