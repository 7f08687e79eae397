// Gated activations act(gate + b) (value + b') and their gradients; a thread takes four neighbouring elements where
// every operand has them in one aligned piece, else one.
//
// Bytes: each half once in, the result once out; backward: the halves and the gradient in, both gradients out.
#include "cuda/heads_launch.h"
#include "cuda/sde.cuh"

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

template <typename T, typename S, int kPer, bool kBackward> __global__ void __launch_bounds__(kGateThreads)
    gates_kernel(const __grid_constant__ GatePlan p) {
  const std::int64_t i = (std::int64_t(blockIdx.x) * kGateThreads + threadIdx.x) * kPer;
  if (i >= p.n) return;
  using Piece = GatePiece<T, S, kPer>;
  Piece gate = read_piece<T, S, kPer>(p, GateSlot::gate, i), value{}, grad{};
  if (p.gated) value = read_piece<T, S, kPer>(p, GateSlot::value, i);
  if (kBackward) grad = read_piece<T, S, kPer>(p, GateSlot::grad, i);
  if (p.slot(GateSlot::gate_bias).data) {
    add_bias(p, GateSlot::gate_bias, i, gate);
    if (p.gated) add_bias(p, GateSlot::value_bias, i, value);
  }
  Piece first, second{};
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
template <typename T, typename S> void launch_type(const GatePlan& p, cudaStream_t stream) {
  if (in_fours(p)) launch_gates<T, S, 4>(p, stream);
  else launch_gates<T, S, 1>(p, stream);
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
