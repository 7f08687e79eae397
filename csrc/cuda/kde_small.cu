// Density sums for d <= 8: instances and launch.
#include "cuda/kde_small.cuh"

namespace fokker::cuda::kde {
namespace {

template <typename T, Form form, bool kSums, int D> void run(const KdeSums& s, cudaStream_t stream) {
  constexpr int Q = kQueries<T, D>;
  // Few queries: several threads share one, down to 128 data each, until the device is about full.
  const std::int64_t slots = (s.n + Q - 1) / Q;
  int split = 1;
  while (split < kWarp && slots * split < 131072 && s.m >= 256 * split) split *= 2;
  FK_LAUNCH((kde_small<T, form, D, kSums>), blocks_for(slots, kSmallThreads / split), kSmallThreads, 0, stream, s,
            split);
}

// The least of the dimensions that is enough.
template <typename T, Form form, bool kSums, int D, int... more> void choose(const KdeSums& s, cudaStream_t stream) {
  if constexpr (sizeof...(more) == 0) run<T, form, kSums, D>(s, stream);
  else if (s.d <= D) run<T, form, kSums, D>(s, stream);
  else choose<T, form, kSums, more...>(s, stream);
}

}  // namespace

template <> void run_small<float>(const KdeSums& s, Form form, cudaStream_t stream) {
  const bool sums = s.weighting == KdeSums::Values::none && !s.square && !s.delta;
  if (form == Form::gaussian && sums) choose<float, Form::gaussian, true, 1, 2, 3, 4, 8>(s, stream);
  else if (form == Form::gaussian) choose<float, Form::gaussian, false, 1, 2, 3, 4, 8>(s, stream);
  else if (form == Form::absolute) choose<float, Form::absolute, false, 2, 4, 8>(s, stream);
  else choose<float, Form::general, false, 2, 4, 8>(s, stream);
}
template <> void run_small<double>(const KdeSums& s, Form form, cudaStream_t stream) {
  if (form == Form::gaussian) choose<double, Form::gaussian, false, 2, 4, 8>(s, stream);
  else if (form == Form::absolute) choose<double, Form::absolute, false, 4, 8>(s, stream);
  else choose<double, Form::general, false, 4, 8>(s, stream);
}

}  // namespace fokker::cuda::kde
