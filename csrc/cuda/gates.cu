// Gated activations act(gate + b) (value + b') and their gradients; a thread takes four neighbouring elements where
// every operand has them in one aligned piece, else one.
//
// Bytes: each half once in, the result once out; backward: the halves and the gradient in, both gradients out, with the
// sums for a bias taken on the way, over a block, then over the blocks, whose number does not depend on the device.
#include "cuda/heads.cuh"

namespace fokker::cuda {
namespace {

constexpr int kGateThreads = 256;

template <typename T> __device__ __forceinline__ math::Activated<T> activated(math::Activation kind, T x) {
  switch (kind) {
    case math::Activation::silu:
      return math::activate<math::Activation::silu>(x);
    case math::Activation::gelu_tanh:
      return math::activate<math::Activation::gelu_tanh>(x);
    case math::Activation::gelu:
      return math::activate<math::Activation::gelu>(x);
    default:
      return math::activate<math::Activation::mp_silu>(x);
  }
}

// Offset of element i of the plan: few plans have 2^31 elements, and then the division is short.
__device__ __forceinline__ std::int64_t gate_offset(const GatePlan& p, GateSlot s, std::int64_t i) {
  if (p.ndim <= 1) return p.ndim ? i * p.slot(s).strides[0] : 0;
  if (p.n > 0x7fffffff) return p.offset(s, i);
  const auto& o = p.slot(s);
  auto rest = static_cast<std::uint32_t>(i);
  std::int64_t at = 0;
  for (int d = p.ndim - 1; d > 0; --d) {
    const auto size = static_cast<std::uint32_t>(p.shape[d]), next = rest / size;
    at += (rest - next * size) * o.strides[d];
    rest = next;
  }
  return at + rest * o.strides[0];
}

template <typename T, typename S, int kPer> struct GatePiece {
  T v[kPer];
};
template <typename T, typename S, int kPer>
__device__ __forceinline__ GatePiece<T, S, kPer> read_piece(const GatePlan& p, GateSlot s, std::int64_t i) {
  const auto pack = load_pack<Packed<S, kPer>>(static_cast<const S*>(p.slot(s).data) + gate_offset(p, s, i));
  GatePiece<T, S, kPer> x;
#pragma unroll
  for (int j = 0; j < kPer; ++j) x.v[j] = number<T>(pack.v[j]);
  return x;
}
template <typename T, typename S, int kPer>
__device__ __forceinline__ void write_piece(const GatePlan& p, GateSlot s, std::int64_t i,
                                            const GatePiece<T, S, kPer>& x) {
  Packed<S, kPer> pack;
#pragma unroll
  for (int j = 0; j < kPer; ++j) pack.v[j] = stored<S>(x.v[j]);
  store_pack(static_cast<S*>(p.slot(s).data) + gate_offset(p, s, i), pack);
}
template <typename T, typename S, int kPer>
__device__ __forceinline__ void add_bias(const GatePlan& p, GateSlot s, std::int64_t i, GatePiece<T, S, kPer>& x) {
  const auto& o = p.slot(s);
  const std::int64_t at = gate_offset(p, s, i), step = p.ndim ? o.strides[p.ndim - 1] : 0;
#pragma unroll
  for (int j = 0; j < kPer; ++j) x.v[j] += static_cast<const T*>(o.data)[at + j * step];
}

// Neighbours from the plan's element i on: the result, or the gradients in gate and value, written.
template <typename T, typename S, int kPer, bool kBackward>
__device__ __forceinline__ void gate_piece(const GatePlan& p, std::int64_t i, GatePiece<T, S, kPer>& first,
                                           GatePiece<T, S, kPer>& second) {
  using Piece = GatePiece<T, S, kPer>;
  Piece gate = read_piece<T, S, kPer>(p, GateSlot::gate, i), value{}, grad{};
  if (p.gated) value = read_piece<T, S, kPer>(p, GateSlot::value, i);
  if (kBackward) grad = read_piece<T, S, kPer>(p, GateSlot::grad, i);
  if (p.slot(GateSlot::gate_bias).data) {
    add_bias(p, GateSlot::gate_bias, i, gate);
    if (p.gated) add_bias(p, GateSlot::value_bias, i, value);
  }
#pragma unroll
  for (int j = 0; j < kPer; ++j) {
    const auto a = activated(p.kind, gate.v[j]);
    if (!kBackward) {
      first.v[j] = p.gated ? a.value * value.v[j] : a.value;
    } else {
      second.v[j] = grad.v[j] * a.value;
      first.v[j] = grad.v[j] * a.slope;
      if (p.gated) first.v[j] *= value.v[j];
    }
  }
  if (!kBackward) return write_piece(p, GateSlot::out, i, first);
  write_piece(p, GateSlot::to_gate, i, first);
  if (p.gated) write_piece(p, GateSlot::to_value, i, second);
}

template <typename T, typename S, int kPer, bool kBackward> __global__ void __launch_bounds__(kGateThreads)
    gates_kernel(const __grid_constant__ GatePlan p) {
  const std::int64_t i = (std::int64_t(blockIdx.x) * kGateThreads + threadIdx.x) * kPer;
  if (i >= p.n) return;
  GatePiece<T, S, kPer> first, second;
  gate_piece<T, S, kPer, kBackward>(p, i, first, second);
}

// How the gradients of a plan are walked for the sums over all but its channels: the plan's first dimension, or with
// `kAlong` its last. A block takes a tile of channels and a part of each channel's elements, `across` threads wide.
struct GateWalk {
  int across = 1;  // a power of two
  std::int64_t channels = 1, others = 1, tiles = 1, part = 1;
};

template <typename T, typename S, int kPer, bool kAlong> __global__ void __launch_bounds__(kGateThreads, 1)
    gates_sums_kernel(const __grid_constant__ GatePlan p, const __grid_constant__ GateWalk w) {
  constexpr int kSums = kAlong ? kPer : 1, kStep = kAlong ? 1 : kPer;  // channels and others of a piece
  FK_SHARED(double, total, 2 * kSums * kGateThreads);
  const int x = threadIdx.x & (w.across - 1), y = threadIdx.x / w.across, down = kGateThreads / w.across;
  const std::int64_t part = blockIdx.x / w.tiles, tile = (blockIdx.x - part * w.tiles) * w.across * kSums;
  const std::int64_t c = tile + x * kSums, begin = part * w.part,
                     end = begin + w.part < w.others ? begin + w.part : w.others;
  T sums[2 * kSums] = {};
  if (c < w.channels)
    for (std::int64_t j = begin + y * kStep; j < end; j += down * kStep) {
      GatePiece<T, S, kPer> first, second;
      gate_piece<T, S, kPer, true>(p, kAlong ? j * w.channels + c : c * w.others + j, first, second);
#pragma unroll
      for (int k = 0; k < kPer; ++k) {
        sums[kAlong ? k : 0] += first.v[k];
        sums[kSums + (kAlong ? k : 0)] += second.v[k];
      }
    }
#pragma unroll
  for (int k = 0; k < 2 * kSums; ++k) total[k * kGateThreads + threadIdx.x] = static_cast<double>(sums[k]);
  __syncthreads();
  for (int s = threadIdx.x; s < 2 * kSums * w.across; s += kGateThreads) {
    const int k = s / w.across, column = s & (w.across - 1);
    const std::int64_t channel = tile + column * kSums + k % kSums;
    if (channel >= w.channels || (k >= kSums && !p.gated)) continue;
    double sum = 0.0;
    for (int row = 0; row < down; ++row) sum += total[k * kGateThreads + row * w.across + column];
    p.partial[part * p.sum_count + (k < kSums ? p.gate_at : p.value_at) + channel] = sum;
  }
}

bool in_fours(const GatePlan& p) {
  const std::size_t size = p.dtype == DType::f64 ? 8 : p.dtype == DType::f32 ? 4 : 2;
  if (p.ndim == 0 || p.shape[p.ndim - 1] % 4) return false;
  for (int k = 0; k < kGateOperands; ++k) {
    const auto& o = p.at[k];
    if (!o.data || k == static_cast<int>(GateSlot::gate_bias) || k == static_cast<int>(GateSlot::value_bias)) continue;
    if (o.strides[p.ndim - 1] != 1 || reinterpret_cast<std::uintptr_t>(o.data) % (4 * size)) return false;
    for (int d = 0; d + 1 < p.ndim; ++d)
      if (o.strides[d] % 4) return false;
  }
  return true;
}
template <typename T, typename S, int kPer> void launch_gates(const GatePlan& p, cudaStream_t stream) {
  const unsigned blocks = blocks_for((p.n + kPer - 1) / kPer, kGateThreads);
  if (p.backward) FK_LAUNCH((gates_kernel<T, S, kPer, true>), blocks, kGateThreads, 0, stream, p);
  else FK_LAUNCH((gates_kernel<T, S, kPer, false>), blocks, kGateThreads, 0, stream, p);
}
template <typename T, typename S, int kPer> void launch_sums(GatePlan p, cudaStream_t stream) {
  GateWalk w;
  int dim = p.ndim - 1;
  while (dim >= 0 && p.slot(GateSlot::gate_bias).strides[dim] == 0) --dim;
  const bool along = dim >= 0 && dim == p.ndim - 1;
  if (dim >= 0) w.channels = p.shape[dim];
  w.others = p.n / w.channels;
  for (int d = along ? 0 : dim; d > 0; --d) {  // the channels first
    std::swap(p.shape[d], p.shape[d - 1]);
    for (auto& o : p.at) std::swap(o.strides[d], o.strides[d - 1]);
  }
  const int per = along ? kPer : 1;
  while (along && w.across < kWarp && w.across * per < w.channels) w.across *= 2;
  w.tiles = (w.channels + w.across * per - 1) / (w.across * per);
  std::int64_t parts = gates_blocks(w.others);
  if (!along) parts = std::min(parts, (w.others + 8 * kGateThreads - 1) / (8 * kGateThreads));
  w.part = ((w.others + parts - 1) / parts + 3) / 4 * 4;
  parts = (w.others + w.part - 1) / w.part;
  const unsigned blocks = all_blocks(w.tiles * parts);
  if (along) FK_LAUNCH((gates_sums_kernel<T, S, kPer, true>), blocks, kGateThreads, 0, stream, p, w);
  else FK_LAUNCH((gates_sums_kernel<T, S, kPer, false>), blocks, kGateThreads, 0, stream, p, w);
  add_partial(p.partial, parts, static_cast<int>(p.sum_count), p.sums, stream);
}
template <typename T, typename S> void launch_type(const GatePlan& p, cudaStream_t stream) {
  if (p.sums) {
    if (in_fours(p)) launch_sums<T, S, 4>(p, stream);
    else launch_sums<T, S, 1>(p, stream);
  } else if (in_fours(p)) {
    launch_gates<T, S, 4>(p, stream);
  } else {
    launch_gates<T, S, 1>(p, stream);
  }
}

}  // namespace

void gates(const GatePlan& p, cudaStream_t stream) {
  if (p.dtype == DType::f64) launch_type<double, double>(p, stream);
  else if (p.dtype == DType::f32) launch_type<float, float>(p, stream);
  else if (p.dtype == DType::f16) launch_type<float, Half>(p, stream);
  else launch_type<float, BFloat16>(p, stream);
  check_launch("gated_activation");
}

}  // namespace fokker::cuda
