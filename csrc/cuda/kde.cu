// Density sums on the GPU: the launcher (which kernel for which call) and the kernels for any dimension.
#include "cuda/kde_launch.h"
#include "cuda/kde_tile.cuh"
#include "cuda/kernels.h"

namespace fokker::cuda {
namespace {

using kde::Form;

template <typename C> void run_tile(const KdeSums& s, Form form, bool single, bool again, cudaStream_t stream) {
  const unsigned blocks = blocks_for(s.n, kde::kSide);
  const auto launch = [&](auto tag) {
    FK_LAUNCH((kde::kde_tile<C, decltype(tag)::value>), blocks, kde::kTileThreads, 0, stream, s, single, again);
  };
  if (form == Form::gaussian) launch(std::integral_constant<Form, Form::gaussian>());
  else if (form == Form::absolute) launch(std::integral_constant<Form, Form::absolute>());
  else launch(std::integral_constant<Form, Form::general>());
}

}  // namespace

template <typename T> void kde_sums(const KdeSums& s, cudaStream_t stream) {
  if (s.n <= 0) return;
  const Form form = s.kernel == math::Kernel::gaussian  ? Form::gaussian
                    : s.kernel == math::Kernel::laplace ? Form::absolute
                                                        : Form::general;
  const bool highest = sizeof(T) == 4 && s.highest;
  // Marks are written to log_sum. A fixed top says nothing about how near the edge of a compact kernel the pairs are.
  const bool marks = highest && s.log_sum && !(s.shift && math::is_compact(s.kernel));
  if (highest && !marks) {
    run_tile<double>(s, form, true, false, stream);
  } else {
    const bool own_values = s.v && s.weighting == KdeSums::Values::weight;
    if (s.d <= 8 && !own_values) kde::run_small<T>(s, form, stream);
    else run_tile<T>(s, form, false, false, stream);
    if (marks) run_tile<double>(s, form, true, true, stream);
  }
  check_launch("kde_sums");
}

template void kde_sums<float>(const KdeSums&, cudaStream_t);
template void kde_sums<double>(const KdeSums&, cudaStream_t);

}  // namespace fokker::cuda
