// Threads around the kernels of Gaussian mixtures.
#include "cpu/gaussian.h"

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/parallel.h"

namespace fokker::cpu {
namespace {

constexpr std::int64_t kGrain = 65536;  // multiply-adds below which a second thread costs more than it gives

std::int64_t cost(const GaussianMatrix& m, std::int64_t d) { return (m.diagonal ? d : m.rows * d) + 8; }

// f(begin, end) over tiles of queries; `work` multiply-adds a query.
template <typename T, typename F> void over_tiles(std::int64_t n, std::int64_t work, F&& f) {
  const std::int64_t tile = FK_PER_ISA(gaussian_tile, T)(nullptr);
  parallel_for((n + tile - 1) / tile, std::max<std::int64_t>(1, kGrain / (tile * std::max<std::int64_t>(work, 1))), f);
}

}  // namespace

template <typename T> void gaussian_joint(const GaussianJoint& p) {
  const auto kernel = FK_PER_ISA(gaussian_joint_tiles, T);
  over_tiles<T>(p.n, p.k * cost(p.matrix, p.d), [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

template <typename T> void gaussian_pull(const GaussianPull& p) {
  const auto kernel = FK_PER_ISA(gaussian_pull_tiles, T);
  over_tiles<T>(p.n, p.k * cost(p.matrix, p.d), [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

template <typename T> void gaussian_moments(const GaussianMoments& p) {
  const auto kernel = FK_PER_ISA(gaussian_moments_of, T);
  parallel_for(p.k, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(p.n * p.d, 1)),
               [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

template <typename T> void gaussian_levels(const GaussianLevels& p) {
  const auto kernel = FK_PER_ISA(gaussian_levels_tiles, T);
  const std::int64_t products = p.basis ? 2 * p.rank * p.d : 0;
  over_tiles<T>(p.n, p.k * (products + 8 * p.d), [&](std::int64_t begin, std::int64_t end) { kernel(p, begin, end); });
}

#define FK_INSTANTIATE(T)                                      \
  template void gaussian_joint<T>(const GaussianJoint& p);     \
  template void gaussian_pull<T>(const GaussianPull& p);       \
  template void gaussian_moments<T>(const GaussianMoments& p); \
  template void gaussian_levels<T>(const GaussianLevels& p);
FK_INSTANTIATE(float)
FK_INSTANTIATE(double)
#undef FK_INSTANTIATE

}  // namespace fokker::cpu
