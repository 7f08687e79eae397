// Group norms whose channels hold their positions side by side: one block a group of a sample.
//
// The group is read once and kept in shared memory, as it lies, where it fits (227 KB on sm_90: 16 x 256 x 64 x 64 in
// 32 groups does, in any float type forward, in halves backward); else it is read twice. Bytes an element of s bytes:
// forward 2 s (3 s), backward 3 s (5 s). Sums run over deviations from the mean of the group's first packs, in double
// past a pack, so that a mean far from 0 costs no digits.
#include "cuda/groups.cuh"

namespace fokker::cuda {
namespace {

// Threads of a block, where a group has many packs and where it has few.
constexpr int kForward = 512, kBackward = 256, kFew = 64;

template <typename S, int V, int kThreads> __global__ void __launch_bounds__(kThreads, 1)
    group_rows_kernel(const __grid_constant__ GroupPlan p, bool held) {
  using T = typename GroupWide<S>::type;
  FK_DYNAMIC_SMEM(unsigned char, memory);
  const std::int64_t b = blockIdx.x / p.groups, g = blockIdx.x % p.groups, per = p.per_group(), from = g * per;
  const unsigned row = static_cast<unsigned>(p.positions / V), packs = static_cast<unsigned>(per) * row;
  Pack<S, V>* const kept = reinterpret_cast<Pack<S, V>*>(memory);
  GroupChannel<T>* const channel =
      reinterpret_cast<GroupChannel<T>*>(memory + (held ? (packs * sizeof(Pack<S, V>) + 15) & ~std::size_t(15) : 0));
  double mean = 0, rstd;
  if (p.std.data) {
    rstd = 1 / math::group_parameter(p.std, b, g, 1);
    if (p.residual.data)
      for (unsigned k = threadIdx.x; k < packs; k += kThreads) {
        const std::int64_t c = from + k / row, i = std::int64_t(k % row) * V;
        const Pack<S, V> x = read_summed<S, V>(p, b, c, i);
        write(p.sum, p.sum.row(b, c) + i, x);
        if (held) kept[k] = x;
      }
  } else {
    double some = 0;
    if (threadIdx.x < packs) {
      const Pack<S, V> x = read_summed<S, V>(p, b, from + threadIdx.x / row, std::int64_t(threadIdx.x % row) * V);
#pragma unroll
      for (int j = 0; j < V; ++j) some += static_cast<double>(x.at(j));
    }
    const unsigned few = packs < kThreads ? packs : kThreads;
    const T pivot = static_cast<T>(block_reduce<kThreads>(some, Sum{}) / static_cast<double>(few * V));
    double first = 0, second = 0;
    for (unsigned k = threadIdx.x; k < packs; k += kThreads) {
      const std::int64_t c = from + k / row, i = std::int64_t(k % row) * V;
      const Pack<S, V> x = read_summed<S, V>(p, b, c, i);
      if (p.residual.data) write(p.sum, p.sum.row(b, c) + i, x);
      if (held) kept[k] = x;
      T sum = 0, square = 0;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const T d = x.at(j) - pivot;
        sum += d;
        square = math::fma(d, d, square);
      }
      first += static_cast<double>(sum);
      second += static_cast<double>(square);
    }
    first = block_reduce<kThreads>(first, Sum{});
    second = block_reduce<kThreads>(second, Sum{});
    mean = static_cast<double>(pivot) + first / p.count();
    rstd = 1 / math::sqrt((second - first * (first / p.count())) / p.count() + p.eps);
  }
  if (threadIdx.x == 0) p.stats[2 * blockIdx.x] = mean, p.stats[2 * blockIdx.x + 1] = rstd;
  for (std::int64_t c = threadIdx.x; c < per; c += kThreads)
    channel[c] = math::group_channel<T>(p, b, from + c, mean, rstd);
  __syncthreads();
  const bool from_kept = held && (!p.std.data || p.residual.data);
  const GroupMap& of = p.residual.data ? p.sum : p.x;
  for (unsigned k = threadIdx.x; k < packs; k += kThreads) {
    const std::int64_t c = from + k / row, i = std::int64_t(k % row) * V;
    Pack<S, V> x = from_kept ? kept[k] : read<S, V>(of, of.row(b, c) + i);
    const GroupChannel<T> by = channel[c - from];
#pragma unroll
    for (int j = 0; j < V; ++j) x.set(j, activated(p.activation, before(by, x.at(j))));
    write(p.out, p.out.row(b, c) + i, x);
  }
}

// A warp takes a part of a channel, `split` of them each.
template <typename S, int V, int kThreads> __global__ void __launch_bounds__(kThreads, 1)
    group_rows_vjp_kernel(const __grid_constant__ GroupPlan p, unsigned split, bool held) {
  using T = typename GroupWide<S>::type;
  FK_DYNAMIC_SMEM(unsigned char, memory);
  const std::int64_t b = blockIdx.x / p.groups, g = blockIdx.x % p.groups, per = p.per_group(), from = g * per;
  const unsigned row = static_cast<unsigned>(p.positions / V), packs = static_cast<unsigned>(per) * row;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const double mean = p.stats[2 * blockIdx.x], rstd = p.stats[2 * blockIdx.x + 1];
  Pack<S, V>* const kept = reinterpret_cast<Pack<S, V>*>(memory);
  double* const parts =
      reinterpret_cast<double*>(memory + (held ? (2 * packs * sizeof(Pack<S, V>) + 15) & ~std::size_t(15) : 0));
  const auto each = [&](auto&& take) {
    for (unsigned u = warp; u < per * split; u += kThreads / kWarp) {
      const unsigned c = u / split, part = u % split, whole = row / split;
      take(u, c, c * row + whole * part, c * row + (part + 1 == split ? row : whole * (part + 1)));
    }
  };
  each([&](unsigned u, unsigned c, unsigned begin, unsigned end) {
    const GroupChannel<T> by = math::group_channel<T>(p, b, from + c, mean, rstd);
    double first = 0, second = 0;
    for (unsigned k = begin + lane; k < end; k += kWarp) {
      const std::int64_t i = std::int64_t(k - c * row) * V;
      const Pack<S, V> x = read<S, V>(p.x, p.x.row(b, from + c) + i);
      const Pack<S, V> grad = read<S, V>(p.grad, p.grad.row(b, from + c) + i);
      if (held) kept[k] = x, kept[packs + k] = grad;
      T a = 0, e = 0;
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const T du = through(p.activation, before(by, x.at(j)), grad.at(j));
        a += du;
        e = math::fma(du, x.at(j) - by.mean, e);
      }
      first += static_cast<double>(a);
      second += static_cast<double>(e);
    }
    first = warp_reduce(first, Sum{});
    second = warp_reduce(second, Sum{});
    if (lane == 0) parts[2 * u] = first, parts[2 * u + 1] = second;
  });
  __syncthreads();
  double ka = 0, ke = 0;
  for (std::int64_t c = threadIdx.x; c < per; c += kThreads) {
    double a = 0, e = 0;
    for (unsigned k = 0; k < split; ++k) a += parts[2 * (c * split + k)], e += parts[2 * (c * split + k) + 1];
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
  each([&](unsigned, unsigned c, unsigned begin, unsigned end) {
    const GroupChannel<T> by = math::group_channel<T>(p, b, from + c, mean, rstd);
    for (unsigned k = begin + lane; k < end; k += kWarp) {
      const std::int64_t i = std::int64_t(k - c * row) * V;
      const Pack<S, V> x = held ? kept[k] : read<S, V>(p.x, p.x.row(b, from + c) + i);
      const Pack<S, V> grad = held ? kept[packs + k] : read<S, V>(p.grad, p.grad.row(b, from + c) + i);
      Pack<S, V> above{}, to;
      if (p.grad_sum.data) above = read<S, V>(p.grad_sum, p.grad_sum.row(b, from + c) + i);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const T du = through(p.activation, before(by, x.at(j)), grad.at(j)), v = gradient(by, slope, x.at(j), du);
        to.set(j, p.grad_sum.data ? v + above.at(j) : v);
      }
      write(p.out, p.out.row(b, from + c) + i, to);
    }
  });
}

// Shared memory of a block: what it must have, and the group if there is room; the kernel is told.
template <typename K> std::int64_t reserve(K* kernel, std::int64_t needed, std::int64_t group, bool& held) {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const std::int64_t own = 2048;  // the static arrays of the reductions
  held = needed + group + own <= most;
  const std::int64_t bytes = needed + (held ? group : 0);
  if (bytes + own > most)
    raise<ValueError>("groups of ", needed, " bytes of coefficients do not fit in the shared memory of a block");
  // The most there is, not what this launch takes: another thread may be about to launch the kernel with more.
  if (bytes > 46 * 1024) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(most - own));
  return bytes;
}

}  // namespace

void group_rows(const GroupPlan& p, cudaStream_t stream) {
  const std::int64_t blocks = p.batch * p.groups, per = p.per_group();
  if (blocks > kMaxBlocks)
    raise<ValueError>("x has ", blocks, " groups in all, at most ", kMaxBlocks, " are supported");
  if (per * p.positions >= std::int64_t(1) << 31)
    raise<ValueError>("x has groups of ", per * p.positions, " numbers, fewer than 2^31 are supported");
  with_packs(p, [&](auto s, auto pack) {
    using S = decltype(s);
    constexpr int V = decltype(pack)::value;
    const std::int64_t group = per * p.positions * std::int64_t(sizeof(S));
    bool held = false;
    const auto forward = [&](auto threads) {
      constexpr int kThreads = decltype(threads)::value;
      const std::int64_t bytes = reserve(group_rows_kernel<S, V, kThreads>,
                                         per * std::int64_t(sizeof(GroupChannel<double>)) + 16, group, held);
      FK_LAUNCH((group_rows_kernel<S, V, kThreads>), unsigned(blocks), kThreads, bytes, stream, p, held);
    };
    const auto backward = [&](auto threads) {
      constexpr int kThreads = decltype(threads)::value, warps = kThreads / kWarp;
      const unsigned split = per >= warps ? 1 : warps / static_cast<unsigned>(per);
      const std::int64_t bytes = reserve(group_rows_vjp_kernel<S, V, kThreads>, 16 * per * split + 16, 2 * group, held);
      FK_LAUNCH((group_rows_vjp_kernel<S, V, kThreads>), unsigned(blocks), kThreads, bytes, stream, p, split, held);
    };
    const bool few = per * p.positions / V <= 4 * kFew;
    if (p.backward && few) backward(std::integral_constant<int, kFew>{});
    else if (p.backward) backward(std::integral_constant<int, kBackward>{});
    else if (few) forward(std::integral_constant<int, kFew>{});
    else forward(std::integral_constant<int, kForward>{});
  });
  check_launch("group_norm");
}

}  // namespace fokker::cuda
