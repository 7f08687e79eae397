// Group norms of channels_last samples: the channels of a position lie side by side, so that a group is a strip of it.
//
// Three launches: two sums of each channel over chunks of positions; those of a group's channels and chunks put
// together, and the coefficients of each channel; the results. x is read twice, by whole rows (the second time from the
// second cache where the batch fits in it). Bytes an element of s bytes: forward 3 s, backward 5 s.
#include "cuda/groups.cuh"

namespace fokker::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPivotRows = 4;  // of them the pivot of a chunk is the mean

// A thread takes a pack of channels and every rows-th position of a chunk.
struct Strip {
  int columns, rows, column, row;
  std::int64_t b, chunk, from, to;
  __device__ __forceinline__ explicit Strip(const GroupPlan& p, int columns_)
      : columns(columns_), rows(kThreads / columns_), column(threadIdx.x % columns_), row(threadIdx.x / columns_) {
    const std::int64_t chunks = group_chunks(p);
    b = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
    from = chunk * kGroupChunk;
    to = from + kGroupChunk < p.positions ? from + kGroupChunk : p.positions;
  }
  __device__ __forceinline__ double* partial(const GroupPlan& p, std::int64_t c) const {
    return p.work + (std::int64_t(blockIdx.x) * p.channels + c) * 2;
  }
};
template <typename T> struct Coefficients {
  GroupChannel<T> channel;
  GroupSlope<T> slope;
};
template <typename T>
__device__ __forceinline__ Coefficients<T>& coefficients(const GroupPlan& p, std::int64_t b, std::int64_t c) {
  const std::int64_t chunks = group_chunks(p);
  double* const at = p.work + p.batch * chunks * p.channels * 2 + (b * p.channels + c) * 6;
  return *reinterpret_cast<Coefficients<T>*>(at);
}

// Forward: mean, and sum of squares about it, of each channel over a chunk; backward: the sums of du and du (x - mean).
template <typename S, int V> __global__ void __launch_bounds__(kThreads, 1)
    group_last_sums(const __grid_constant__ GroupPlan p, int columns) {
  using T = typename GroupWide<S>::type;
  FK_SHARED(double, shared, 2 * kThreads * V);
  const Strip at(p, columns);
  const double count = static_cast<double>(at.to - at.from);
  for (std::int64_t first_pack = 0; first_pack < p.channels / V; first_pack += columns) {
    const std::int64_t c = (first_pack + at.column) * V;
    const bool mine = c < p.channels;
    T pivot[V], sum[V], second[V];
    GroupChannel<T> by[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      pivot[j] = sum[j] = second[j] = T(0);
      by[j] = {T(0), T(0), T(0)};
    }
    if (mine) {
      if (p.backward) {
        const double* const stats = p.stats + 2 * (at.b * p.groups);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const std::int64_t g = (c + j) / p.per_group();
          by[j] = math::group_channel<T>(p, at.b, c + j, stats[2 * g], stats[2 * g + 1]);
        }
      } else {
        const std::int64_t few = at.from + kPivotRows < at.to ? at.from + kPivotRows : at.to;
        for (std::int64_t i = at.from; i < few; ++i) {
          const Pack<S, V> x = read_summed<S, V>(p, at.b, i, c);
#pragma unroll
          for (int j = 0; j < V; ++j) pivot[j] += x.at(j);
        }
#pragma unroll
        for (int j = 0; j < V; ++j) pivot[j] /= static_cast<T>(few - at.from);
      }
    }
    if (p.residual.data) __syncthreads();  // sums may go where the residual lies: the pivots are read
    if (mine)
      for (std::int64_t i = at.from + at.row; i < at.to; i += at.rows) {
        if (p.backward) {
          const Pack<S, V> x = read<S, V>(p.x, p.x.row(at.b, i) + c),
                           grad = read<S, V>(p.grad, p.grad.row(at.b, i) + c);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const T du = through(p.activation, before(by[j], x.at(j)), grad.at(j));
            sum[j] += du;
            second[j] = math::fma(du, x.at(j) - by[j].mean, second[j]);
          }
        } else {
          const Pack<S, V> x = read_summed<S, V>(p, at.b, i, c);
          if (p.residual.data) write(p.sum, p.sum.row(at.b, i) + c, x);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const T d = x.at(j) - pivot[j];
            sum[j] += d;
            second[j] = math::fma(d, d, second[j]);
          }
        }
      }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      shared[(0 * V + j) * kThreads + threadIdx.x] = static_cast<double>(sum[j]);
      shared[(1 * V + j) * kThreads + threadIdx.x] = static_cast<double>(second[j]);
    }
    __syncthreads();
    if (mine && at.row == 0) {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        double a = 0, e = 0;
        for (int r = 0; r < at.rows; ++r) {
          a += shared[(0 * V + j) * kThreads + r * columns + at.column];
          e += shared[(1 * V + j) * kThreads + r * columns + at.column];
        }
        double* const to = at.partial(p, c + j);
        to[0] = p.backward ? a : static_cast<double>(pivot[j]) + a / count;
        to[1] = p.backward ? e : e - a * (a / count);
      }
    }
    __syncthreads();
  }
}

// One block a group of a sample.
template <typename T> __global__ void __launch_bounds__(kThreads, 1)
    group_last_merge(const __grid_constant__ GroupPlan p) {
  const std::int64_t b = blockIdx.x / p.groups, g = blockIdx.x % p.groups, per = p.per_group(), from = g * per;
  const std::int64_t chunks = group_chunks(p);
  const auto entry = [&](std::int64_t k, std::int64_t c) {
    return p.work + ((b * chunks + k) * p.channels + from + c) * 2;
  };
  if (p.backward) {
    const double mean = p.stats[2 * blockIdx.x], rstd = p.stats[2 * blockIdx.x + 1];
    double ka = 0, ke = 0;
    for (std::int64_t c = threadIdx.x; c < per; c += kThreads) {
      double a = 0, e = 0;
      for (std::int64_t k = 0; k < chunks; ++k) a += entry(k, c)[0], e += entry(k, c)[1];
      e = math::group_second<T>(p, mean, rstd, a, e);
      double* const to = p.sums + (b * p.channels + from + c) * 2;
      to[0] = a, to[1] = e;
      const double gain = math::group_gain(p, b, from + c);
      ka += gain * a;
      ke += gain * e;
    }
    ka = block_reduce<kThreads>(ka, Sum{});
    ke = block_reduce<kThreads>(ke, Sum{});
    const GroupSlope<T> slope = math::group_slope<T>(p, mean, rstd, ka, ke);
    for (std::int64_t c = threadIdx.x; c < per; c += kThreads)
      coefficients<T>(p, b, from + c) = {math::group_channel<T>(p, b, from + c, mean, rstd), slope};
    return;
  }
  const auto count = [&](std::int64_t k) {
    const std::int64_t left = p.positions - k * kGroupChunk;
    return static_cast<double>(left < kGroupChunk ? left : kGroupChunk);
  };
  double mean = 0, rstd = 0;
  if (p.std.data) {
    rstd = 1 / math::group_parameter(p.std, b, g, 1);
  } else {
    double squares = 0;
    for (std::int64_t i = threadIdx.x; i < chunks * per; i += kThreads)
      mean += count(i / per) * entry(i / per, i % per)[0];
    mean = block_reduce<kThreads>(mean, Sum{}) / p.count();
    for (std::int64_t i = threadIdx.x; i < chunks * per; i += kThreads) {
      const double* const of = entry(i / per, i % per);
      squares += of[1] + count(i / per) * ((of[0] - mean) * (of[0] - mean));
    }
    rstd = 1 / math::sqrt(block_reduce<kThreads>(squares, Sum{}) / p.count() + p.eps);
  }
  if (threadIdx.x == 0) p.stats[2 * blockIdx.x] = mean, p.stats[2 * blockIdx.x + 1] = rstd;
  for (std::int64_t c = threadIdx.x; c < per; c += kThreads)
    coefficients<T>(p, b, from + c).channel = math::group_channel<T>(p, b, from + c, mean, rstd);
}

template <typename S, int V> __global__ void __launch_bounds__(kThreads, 1)
    group_last_apply(const __grid_constant__ GroupPlan p, int columns) {
  using T = typename GroupWide<S>::type;
  const Strip at(p, columns);
  const GroupMap& of = p.residual.data ? p.sum : p.x;
  for (std::int64_t c = std::int64_t(at.column) * V; c < p.channels; c += std::int64_t(columns) * V) {
    GroupChannel<T> by[V];
    GroupSlope<T> slope[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Coefficients<T>& held = coefficients<T>(p, at.b, c + j);
      by[j] = held.channel;
      slope[j] = p.backward ? held.slope : GroupSlope<T>{T(0), T(0), T(0)};
    }
    for (std::int64_t i = at.from + at.row; i < at.to; i += at.rows) {
      const Pack<S, V> x = read<S, V>(of, of.row(at.b, i) + c);
      Pack<S, V> to;
      if (p.backward) {
        const Pack<S, V> grad = read<S, V>(p.grad, p.grad.row(at.b, i) + c);
        Pack<S, V> above{};
        if (p.grad_sum.data) above = read<S, V>(p.grad_sum, p.grad_sum.row(at.b, i) + c);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const T du = through(p.activation, before(by[j], x.at(j)), grad.at(j));
          const T v = gradient(by[j], slope[j], x.at(j), du);
          to.set(j, p.grad_sum.data ? v + above.at(j) : v);
        }
      } else {
#pragma unroll
        for (int j = 0; j < V; ++j) to.set(j, activated(p.activation, before(by[j], x.at(j))));
      }
      write(p.out, p.out.row(at.b, i) + c, to);
    }
  }
}

}  // namespace

void group_last(const GroupPlan& p, cudaStream_t stream) {
  const std::int64_t blocks = p.batch * group_chunks(p), groups = p.batch * p.groups;
  if (blocks > kMaxBlocks || groups > kMaxBlocks)
    raise<ValueError>("x takes ", blocks > groups ? blocks : groups, " blocks, at most ", kMaxBlocks, " are supported");
  with_packs(p, [&](auto s, auto pack) {
    using S = decltype(s);
    constexpr int V = decltype(pack)::value;
    int columns = 1;
    while (columns < kThreads && columns * V < p.channels) columns *= 2;
    if (p.backward || !p.std.data || p.residual.data)
      FK_LAUNCH((group_last_sums<S, V>), unsigned(blocks), kThreads, 0, stream, p, columns);
    FK_LAUNCH((group_last_merge<typename GroupWide<S>::type>), unsigned(groups), kThreads, 0, stream, p);
    FK_LAUNCH((group_last_apply<S, V>), unsigned(blocks), kThreads, 0, stream, p, columns);
  });
  check_launch("group_norm");
}

}  // namespace fokker::cuda
