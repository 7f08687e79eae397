// Kernels of Gaussian mixtures (common/gaussian_plan.h).
#pragma once

#include "common/gaussian_plan.h"

namespace fokker::cpu {

// On several threads where there is much to do; the same bits whatever their number.
template <typename T> void gaussian_joint(const GaussianJoint& p);
template <typename T> void gaussian_pull(const GaussianPull& p);
template <typename T> void gaussian_moments(const GaussianMoments& p);
template <typename T> void gaussian_levels(const GaussianLevels& p);

}  // namespace fokker::cpu

#define FK_DECLARE(isa)                                                                                            \
  namespace fokker::cpu::isa {                                                                                     \
  template <typename T> std::int64_t gaussian_tile(const T*);                                                      \
  /* Tiles [begin, end) of gaussian_tile queries. */                                                               \
  template <typename T> void gaussian_joint_tiles(const GaussianJoint& p, std::int64_t begin, std::int64_t end);   \
  template <typename T> void gaussian_pull_tiles(const GaussianPull& p, std::int64_t begin, std::int64_t end);     \
  template <typename T> void gaussian_levels_tiles(const GaussianLevels& p, std::int64_t begin, std::int64_t end); \
  /* Components [begin, end). */                                                                                   \
  template <typename T> void gaussian_moments_of(const GaussianMoments& p, std::int64_t begin, std::int64_t end);  \
  }
FK_DECLARE(baseline)
FK_DECLARE(avx2)
FK_DECLARE(avx512)
#undef FK_DECLARE
