// The _cpu module: every op's binding over the CPU launchers.
#include "bind/group_ops.h"
#include "bind/distance_ops.h"
#include "bind/gaussian_ops.h"
#include "bind/heads_ops.h"
#include "bind/kde_ops.h"
#include "bind/loss_ops.h"
#include "bind/norm_ops.h"
#include "bind/ops.h"
#include "bind/particle_ops.h"
#include "bind/pixel_ops.h"
#include "bind/sde_ops.h"
#include "bind/wave_ops.h"
#include "cpu/backend.h"
#include "cpu/groups.h"
#include "cpu/distance.h"
#include "cpu/gaussian.h"
#include "cpu/heads.h"
#include "cpu/kde.h"
#include "cpu/limits.h"
#include "cpu/norms.h"
#include "cpu/particles.h"
#include "cpu/pixels.h"
#include "cpu/sde.h"
#include "cpu/waves.h"

namespace {

using fokker::DType;
using fokker::Elementwise;
using fokker::TensorView;
namespace cpu = fokker::cpu;
namespace math = fokker::math;

struct Cpu {
  static constexpr fokker::Device device = fokker::Device::cpu;
  struct Guard {
    explicit Guard(const TensorView&) {}
  };

  template <typename T>
  static void bessel(math::Fn fn, int order, const Elementwise& e, DType dtype, void* const* out, Guard&) {
    cpu::bessel<T>(fn, order, e, dtype, out);
  }
  template <typename T> static void vmf_scalar(math::VmfFn fn, std::int64_t dim, const Elementwise& e, DType dtype,
                                               void* const* out, Guard&) {
    cpu::vmf_scalar<T>(fn, dim, e, dtype, out);
  }
  template <typename T>
  static void vmf_bregman(std::int64_t dim, const Elementwise& e, DType dtype, void* const* out, Guard&) {
    cpu::vmf_bregman<T>(dim, e, dtype, out);
  }
  template <typename T> static void vmf_log_prob(std::int64_t dim, const Elementwise& e, T* out, Guard&) {
    cpu::vmf_log_prob<T>(dim, e, out);
  }
  template <typename T> static void vmf_sample(const T* mean, std::int64_t mean_stride, const T* k,
                                               std::int64_t k_stride, std::int64_t batch, const std::int64_t* ids,
                                               std::int64_t first_id, std::uint64_t seed, std::uint32_t step,
                                               std::int64_t dim, std::int64_t n, T* out, T* w, T* one_minus_w, Guard&) {
    const auto kernel = FK_PER_ISA(vmf_sample, T);
    cpu::parallel_for(n, 1 + cpu::kSampleGrain / dim, [&](std::int64_t begin, std::int64_t end) {
      kernel(mean, mean_stride, k, k_stride, ids, first_id, seed, step, dim, out, w, one_minus_w, begin, end, batch);
    });
  }
  template <typename T> static void vmf_sample_backward(const T* grad, const T* x, const T* mean,
                                                        std::int64_t mean_stride, std::int64_t batch, const T* w,
                                                        const T* one_minus_w, std::int64_t dim, std::int64_t n,
                                                        T* grad_mean, T* grad_cosine, Guard&) {
    const auto kernel = FK_PER_ISA(vmf_sample_backward, T);
    cpu::parallel_for(n, 1 + cpu::kSampleGrain / dim, [&](std::int64_t begin, std::int64_t end) {
      kernel(grad, x, mean, mean_stride, w, one_minus_w, dim, grad_mean, grad_cosine, begin, end, batch);
    });
  }
  template <typename T> static void vmf_cosine_gradient(std::int64_t dim, const T* k, const T* a, const T* complement,
                                                        const T* w, const T* one_minus_w, T* out, std::int64_t n,
                                                        Guard&) {
    const auto kernel = FK_PER_ISA(vmf_cosine_gradient, T);
    cpu::parallel_for(n, 64, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; i += cpu::kChunk)
        kernel(dim, k + i, a + i, complement + i, w + i, one_minus_w + i, out + i,
               static_cast<int>(std::min<std::int64_t>(cpu::kChunk, end - i)));
    });
  }
  template <typename T> static void resultant(const T* x, const T* weights, std::int64_t n, std::int64_t d,
                                              double* partial, int blocks, double* out, Guard&) {
    cpu::resultant<T>(x, weights, n, d, partial, blocks, out);
  }
  template <typename T>
  static void row_logsumexp(T* logits, const T* bias, std::int64_t n, std::int64_t k, T* out, bool softmax, Guard&) {
    cpu::row_logsumexp<T>(logits, bias, n, k, out, softmax);
  }
  static constexpr bool adjacent_queries = false;
  static void distance_sums(const fokker::DistanceSums& p, Guard&) { cpu::distance_sums(p); }
  template <typename T> static void nearest_data(const fokker::NearestData& p, Guard&) { cpu::nearest_data<T>(p); }
  template <typename T> static void gaussian_joint(const fokker::GaussianJoint& p, Guard&) {
    cpu::gaussian_joint<T>(p);
  }
  template <typename T> static void gaussian_pull(const fokker::GaussianPull& p, Guard&) { cpu::gaussian_pull<T>(p); }
  template <typename T> static void gaussian_moments(const fokker::GaussianMoments& p, Guard&) {
    cpu::gaussian_moments<T>(p);
  }
  template <typename T> static void gaussian_levels(const fokker::GaussianLevels& p, Guard&) {
    cpu::gaussian_levels<T>(p);
  }
  template <typename T> static void kde_sums(const fokker::KdeSums& s, Guard&) { cpu::kde_sums<T>(s); }
  static void random_fill(const fokker::RandomPlan& p, Guard&) { cpu::random_fill(p); }
  static constexpr bool folds = true;
  static constexpr int sde_tile = 0;
  static std::int64_t sde_workspace(const fokker::AffinePlan&) { return 0; }
  static void sde_run(const fokker::AffinePlan& p, Guard&) { cpu::sde_run(p); }
  static std::int64_t heads_blocks(std::int64_t) { return 0; }
  static std::int64_t gates_blocks(std::int64_t) { return 0; }
  static void heads(const fokker::HeadsPlan& p, Guard&) { cpu::heads(p); }
  static void gates(const fokker::GatePlan& p, Guard&) { cpu::gates(p); }
  static void pixels(const fokker::PixelsPlan& p, Guard&) { cpu::pixels(p); }
  static void weighted_cat(const fokker::CatPlan& p, Guard&) { cpu::weighted_cat(p); }
  static void waves(const fokker::WavesPlan& p, Guard&) { cpu::waves(p); }
  static void resample(const fokker::ResamplePlan& p, Guard&) { cpu::resample(p); }
  static void absorb(const fokker::AbsorbPlan& p, Guard&) { cpu::absorb(p); }
  static constexpr int norm_token_block = 0;
  static void norm_run(const fokker::NormPlan& p, Guard&) { cpu::norm_run(p); }
  static std::int64_t group_work(const fokker::GroupPlan&) { return 0; }
  static void group_run(const fokker::GroupPlan& p, Guard&) { cpu::group_run(p); }
};

}  // namespace

PYBIND11_MODULE(_cpu, m, pybind11::mod_gil_not_used()) {
  m.doc() = "fokker's CPU kernels; called through the public functions, which check and promote.";
  fokker::bind::bind_ops<Cpu>(m);
  fokker::bind::bind_distance_ops<Cpu>(m);
  fokker::bind::bind_gaussian_ops<Cpu>(m);
  fokker::bind::bind_heads_ops<Cpu>(m);
  fokker::bind::bind_kde_ops<Cpu>(m);
  fokker::bind::bind_sde_ops<Cpu>(m);
  fokker::bind::bind_wave_ops<Cpu>(m);
  fokker::bind::bind_pixel_ops<Cpu>(m);
  fokker::bind::bind_loss_ops<Cpu>(m);
  fokker::bind::bind_particle_ops<Cpu>(m);
  fokker::bind::bind_norm_ops<Cpu>(m);
  fokker::bind::bind_group_ops<Cpu>(m);
  m.def(
      "set_parallel_for", [](std::uintptr_t f) { cpu::torch_parallel_for() = reinterpret_cast<cpu::ParallelForFn>(f); },
      pybind11::arg("address"));
  m.def(
      "spin",
      [](bool exponentials, bool wide, std::int64_t n) {
        return wide ? FK_PER_ISA(spin, double)(exponentials, n) : FK_PER_ISA(spin, float)(exponentials, n);
      },
      pybind11::arg("exponentials"), pybind11::arg("wide"), pybind11::arg("n"));
  m.def("isa", &cpu::isa_name);
  m.def("set_isa", &cpu::set_isa, pybind11::arg("name"));
  cpu::active_isa();  // a wrong FOKKER_CPU_ISA fails the import, with its own words
}
