// Built twice: as _cuda over the GPU, and as _emu (FOKKER_EMU), where the same kernels run on the host.
#include "bind/distance_ops.h"
#include "bind/gaussian_ops.h"
#include "bind/group_ops.h"
#include "bind/heads_ops.h"
#include "bind/kde_ops.h"
#include "bind/loss_ops.h"
#include "bind/norm_ops.h"
#include "bind/ops.h"
#include "bind/particle_ops.h"
#include "bind/pixel_ops.h"
#include "bind/sde_ops.h"
#include "bind/wave_ops.h"
#include "cuda/distance.h"
#include "cuda/gaussian.h"
#include "cuda/groups.h"
#include "cuda/heads_launch.h"
#include "cuda/kernels.h"
#include "cuda/norms.h"
#include "cuda/particles.h"
#include "cuda/pixels.h"
#include "cuda/sde_launch.h"
#include "cuda/waves.h"

namespace {

using fokker::DType;
using fokker::Elementwise;
using fokker::TensorView;
namespace cuda = fokker::cuda;
namespace math = fokker::math;

struct Cuda {
  // Makes the tensors' device current for the call, and holds the stream that torch works on there.
  struct Guard {
    int previous = 0;
    bool changed = false;
    cudaStream_t stream = nullptr;
    explicit Guard([[maybe_unused]] const TensorView& t) {
#ifndef FOKKER_EMU
      stream = static_cast<cudaStream_t>(fokker::bind::current_stream(t.device_id));
      cudaError_t e = cudaGetDevice(&previous);
      changed = e == cudaSuccess && previous != t.device_id;
      if (changed) e = cudaSetDevice(t.device_id);
      if (e != cudaSuccess) fokker::raise<fokker::CudaError>("device ", t.device_id, ": ", cudaGetErrorString(e));
#endif
    }
    ~Guard() {
      if (changed) cudaSetDevice(previous);
    }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
  };
#ifdef FOKKER_EMU
  static constexpr fokker::Device device = fokker::Device::cpu;
#else
  static constexpr fokker::Device device = fokker::Device::cuda;
#endif

  template <typename T>
  static void bessel(math::Fn fn, int order, const Elementwise& e, DType dtype, void* const* out, Guard& g) {
    cuda::bessel<T>(fn, order, e, dtype, out, g.stream);
  }
  template <typename T> static void vmf_scalar(math::VmfFn fn, std::int64_t dim, const Elementwise& e, DType dtype,
                                               void* const* out, Guard& g) {
    cuda::vmf_scalar<T>(fn, dim, e, dtype, out[0], g.stream);
  }
  template <typename T>
  static void vmf_bregman(std::int64_t dim, const Elementwise& e, DType dtype, void* const* out, Guard& g) {
    cuda::vmf_bregman<T>(dim, e, dtype, out, g.stream);
  }
  template <typename T> static void vmf_log_prob(std::int64_t dim, const Elementwise& e, T* out, Guard& g) {
    cuda::vmf_log_prob<T>(dim, e, out, g.stream);
  }
  template <typename T>
  static void vmf_sample(const T* mean, std::int64_t mean_stride, const T* k, std::int64_t k_stride, std::int64_t batch,
                         const std::int64_t* ids, std::int64_t first_id, std::uint64_t seed, std::uint32_t step,
                         std::int64_t dim, std::int64_t n, T* out, T* w, T* one_minus_w, Guard& g) {
    cuda::vmf_sample<T>(mean, mean_stride, k, k_stride, batch, ids, first_id, seed, step, dim, n, out, w, one_minus_w,
                        g.stream);
  }
  template <typename T> static void vmf_sample_backward(const T* grad, const T* x, const T* mean,
                                                        std::int64_t mean_stride, std::int64_t batch, const T* w,
                                                        const T* one_minus_w, std::int64_t dim, std::int64_t n,
                                                        T* grad_mean, T* grad_cosine, Guard& g) {
    cuda::vmf_sample_backward<T>(grad, x, mean, mean_stride, batch, w, one_minus_w, dim, n, grad_mean, grad_cosine,
                                 g.stream);
  }
  template <typename T> static void vmf_cosine_gradient(std::int64_t dim, const T* k, const T* a, const T* complement,
                                                        const T* w, const T* one_minus_w, T* out, std::int64_t n,
                                                        Guard& g) {
    cuda::vmf_cosine_gradient<T>(dim, k, a, complement, w, one_minus_w, out, n, g.stream);
  }
  template <typename T> static void resultant(const T* x, const T* weights, std::int64_t n, std::int64_t d,
                                              double* partial, int blocks, double* out, Guard& g) {
    cuda::resultant<T>(x, weights, n, d, partial, blocks, out, g.stream);
  }
  template <typename T>
  static void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax, Guard& g) {
    cuda::row_logsumexp<T>(logits, bias, n, k, out, softmax, g.stream);
  }
  static constexpr bool adjacent_queries = true;
  static void distance_sums(const fokker::DistanceSums& p, Guard& g) { cuda::distance_sums(p, g.stream); }
  template <typename T> static void nearest_data(const fokker::NearestData& p, Guard& g) {
    cuda::nearest_data<T>(p, g.stream);
  }
  template <typename T> static void gaussian_joint(const fokker::GaussianJoint& p, Guard& g) {
    cuda::gaussian_joint<T>(p, g.stream);
  }
  template <typename T> static void gaussian_pull(const fokker::GaussianPull& p, Guard& g) {
    cuda::gaussian_pull<T>(p, g.stream);
  }
  template <typename T> static void gaussian_moments(const fokker::GaussianMoments& p, Guard& g) {
    cuda::gaussian_moments<T>(p, g.stream);
  }
  template <typename T> static void gaussian_levels(const fokker::GaussianLevels& p, Guard& g) {
    cuda::gaussian_levels<T>(p, g.stream);
  }
  template <typename T> static void kde_sums(const fokker::KdeSums& s, Guard& g) { cuda::kde_sums<T>(s, g.stream); }
  static void random_fill(const fokker::RandomPlan& p, Guard& g) { cuda::random_fill(p, g.stream); }
  static constexpr bool folds = false;
  static constexpr int sde_tile = 2 * cuda::kSdeTileBlocks;  // of doubles, the shorter ones
  static std::int64_t sde_workspace(const fokker::AffinePlan& p) { return cuda::sde_workspace(p); }
  static void sde_run(const fokker::AffinePlan& p, Guard& g) {
    if (p.task == fokker::SdeTask::step) cuda::sde_step(p, g.stream);
    else if (p.task == fokker::SdeTask::vjp) cuda::sde_vjp(p, g.stream);
    else if (p.task == fokker::SdeTask::gram) cuda::sde_gram(p, g.stream);
    else cuda::losses(p, g.stream);
  }
  template <typename T> static void rescale(T* x, std::int64_t n, const T* factor, Guard& g) {
    cuda::rescale(x, n, factor, g.stream);
  }
  static std::int64_t heads_blocks(std::int64_t rows) { return cuda::heads_blocks(rows); }
  static std::int64_t gates_blocks(std::int64_t rows) { return cuda::gates_blocks(rows); }
  static void heads(const fokker::HeadsPlan& p, Guard& g) { cuda::heads(p, g.stream); }
  static void gates(const fokker::GatePlan& p, Guard& g) { cuda::gates(p, g.stream); }
  static void pixels(const fokker::PixelsPlan& p, Guard& g) { cuda::pixels(p, g.stream); }
  static void weighted_cat(const fokker::CatPlan& p, Guard& g) { cuda::weighted_cat(p, g.stream); }
  static void waves(const fokker::WavesPlan& p, Guard& g) { cuda::waves(p, g.stream); }
  static void resample(const fokker::ResamplePlan& p, Guard& g) { cuda::resample(p, g.stream); }
  static void absorb(const fokker::AbsorbPlan& p, Guard& g) { cuda::absorb(p, g.stream); }
  static std::int64_t group_work(const fokker::GroupPlan& p) { return cuda::group_work(p); }
  static void group_run(const fokker::GroupPlan& p, Guard& g) { cuda::group_run(p, g.stream); }
  static constexpr int norm_token_block = 16;
  static void norm_run(const fokker::NormPlan& p, Guard& g) {
    if (p.backward) cuda::norm_backward(p, g.stream);
    else cuda::norm_forward(p, g.stream);
  }
};

}  // namespace

PYBIND11_MODULE(FK_MODULE, m, pybind11::mod_gil_not_used()) {
  fokker::bind::bind_ops<Cuda>(m);
  fokker::bind::bind_distance_ops<Cuda>(m);
  fokker::bind::bind_gaussian_ops<Cuda>(m);
  fokker::bind::bind_heads_ops<Cuda>(m);
  fokker::bind::bind_kde_ops<Cuda>(m);
  fokker::bind::bind_sde_ops<Cuda>(m);
  fokker::bind::bind_wave_ops<Cuda>(m);
  fokker::bind::bind_pixel_ops<Cuda>(m);
  fokker::bind::bind_loss_ops<Cuda>(m);
  m.def("loss_rescale", &fokker::bind::loss_rescale<Cuda>, pybind11::arg("x"), pybind11::arg("factor"));
  fokker::bind::bind_particle_ops<Cuda>(m);
  fokker::bind::bind_group_ops<Cuda>(m);
  fokker::bind::bind_norm_ops<Cuda>(m);
  m.attr("cuda_version") = CUDART_VERSION;  // of the build: 1000 major + 10 minor
#ifdef FOKKER_EMU
  m.doc() = "fokker's CUDA kernels on a host emulator, for tests.";
  m.def(
      "set_order",
      [](const std::string& order, std::uint64_t seed) {
        if (!fokker::emu::set_order(order, seed))
          fokker::raise<fokker::ValueError>("order must be forward, reverse or random, got '", order, "'");
      },
      pybind11::arg("order"), pybind11::arg("seed") = 0);
#else
  m.doc() = "fokker's CUDA kernels; called through the public functions, which check and promote.";
#endif
}
