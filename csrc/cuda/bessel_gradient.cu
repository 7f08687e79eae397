// Instantiates the log-Bessel kernels for first derivatives, float and double.
#include "cuda/bessel.cuh"

namespace fokker::cuda::bessel_detail {

template <Fn F, typename T> void run_wanted(const Elementwise& e, const Outputs& out, cudaStream_t stream) {
  if (out.data[0]) run<F, 1, Want::all, T>(e, out, stream);
  else run<F, 1, Want::last, T>(e, out, stream);
}
template <typename T> void run_gradient(Fn fn, const Elementwise& e, const Outputs& out, cudaStream_t stream) {
  switch (fn) {
    case Fn::log_iv:
      return run_wanted<Fn::log_iv, T>(e, out, stream);
    case Fn::log_ive:
      return run_wanted<Fn::log_ive, T>(e, out, stream);
    case Fn::log_kv:
      return run_wanted<Fn::log_kv, T>(e, out, stream);
    case Fn::log_kve:
      return run_wanted<Fn::log_kve, T>(e, out, stream);
    case Fn::iv_ratio:
      return run_wanted<Fn::iv_ratio, T>(e, out, stream);
    case Fn::kv_ratio:
      return run_wanted<Fn::kv_ratio, T>(e, out, stream);
  }
}

template void run_gradient<float>(Fn, const Elementwise&, const Outputs&, cudaStream_t);
template void run_gradient<double>(Fn, const Elementwise&, const Outputs&, cudaStream_t);

}  // namespace fokker::cuda::bessel_detail
