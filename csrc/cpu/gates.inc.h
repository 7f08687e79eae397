// Gated activations, compiled once per instruction set: pieces of rows of the innermost dimension.
#include "cpu/heads.h"
#include "cpu/sde_tile.inc.h"

namespace fokker::cpu::FK_ISA {
namespace {

using math::Activation;

constexpr int kGateTile = 512;

template <typename T> struct GateBuffers {
  alignas(64) T gate[kGateTile], value[kGateTile], gate_bias[kGateTile], value_bias[kGateTile], grad[kGateTile];
  alignas(64) T to_gate[kGateTile], to_value[kGateTile];
};

template <Activation A, bool kGated, bool kBias, typename T>
inline void gate_forward(const T* gate, const T* value, const T* gate_bias, const T* value_bias, T* out, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const T g = kBias ? gate[i] + gate_bias[i] : gate[i];
    T y = math::activate<A>(g).value;
    if (kGated) y *= kBias ? value[i] + value_bias[i] : value[i];
    out[i] = y;
  }
}
template <Activation A, bool kGated, bool kBias, typename T>
inline void gate_backward(const T* gate, const T* value, const T* gate_bias, const T* value_bias, const T* grad,
                          T* to_gate, T* to_value, int n) {
#pragma omp simd
  for (int i = 0; i < n; ++i) {
    const auto a = math::activate<A>(kBias ? gate[i] + gate_bias[i] : gate[i]);
    const T d = grad[i];
    if (kGated) {
      to_value[i] = d * a.value;
      to_gate[i] = d * a.slope * (kBias ? value[i] + value_bias[i] : value[i]);
    } else {
      to_gate[i] = d * a.slope;
    }
  }
}

// Numbers from the first cache to memory, past the others, while what gate and value hold behind them is asked for.
template <typename T> inline void write_past(const T* from, T* to, int n, const T* gate, const T* value) {
  constexpr int lanes = kLanesOf<T>, ahead = 8192 / static_cast<int>(sizeof(T));
  int i = 0;
  for (; i + lanes <= n; i += lanes) {
    __builtin_prefetch(gate + i + ahead);
    if (value) __builtin_prefetch(value + i + ahead);
    stream(to + i, load(from + i));
  }
  for (; i < n; ++i) to[i] = from[i];
}

// Adds numbers to the sums of their channels: neighbours (step 1), or one.
template <typename T> inline void add_to_sums(const T* from, int n, std::int64_t step, double* sums) {
  if (step == 1) {
#pragma omp simd
    for (int i = 0; i < n; ++i) sums[i] += static_cast<double>(from[i]);
    return;
  }
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; ++i) sum += static_cast<double>(from[i]);
  *sums += sum;
}

template <Activation A, bool kGated, bool kBias, typename T>
void run_pieces(const GatePlan& p, std::int64_t pieces, std::int64_t begin, std::int64_t end, double* sums) {
  GateBuffers<T> buffer;
  const int last = p.ndim - 1;
  const std::int64_t row = p.ndim ? p.shape[last] : 1;
  const bool native = p.dtype == (p.wide ? DType::f64 : DType::f32);
  const bool large = p.n * std::int64_t(sizeof(T)) >= kGateStreamBytes;
  const auto stride = [&](GateSlot s) { return p.ndim ? p.slot(s).strides[last] : 1; };
  for (std::int64_t item = begin; item < end; ++item) {
    const std::int64_t from = item % pieces * kGatePiece, to = std::min(row, from + kGatePiece);
    std::int64_t base[kGateOperands];
    for (int k = 0; k < kGateOperands; ++k)
      base[k] = p.at[k].data ? p.offset(static_cast<GateSlot>(k), item / pieces * row) : 0;
    const auto start = [&](GateSlot s, std::int64_t i) { return base[static_cast<int>(s)] + i * stride(s); };
    const auto read = [&](GateSlot s, std::int64_t i, int n, T* copy) -> const T* {
      const void* const data = p.slot(s).data;
      if (native && stride(s) == 1) return static_cast<const T*>(data) + start(s, i);
      take_any(data, p.dtype, start(s, i), stride(s), n, copy);
      return copy;
    };
    const auto read_bias = [&](GateSlot s, std::int64_t i, int n, T* copy) -> const T* {
      const T* const data = static_cast<const T*>(p.slot(s).data) + start(s, i);
      const std::int64_t step = stride(s);
      if (step == 1) return data;
      for (int j = 0; j < n; ++j) copy[j] = data[j * step];
      return copy;
    };
    const auto place = [&](GateSlot s, std::int64_t i, T* copy) -> T* {
      return native && stride(s) == 1 ? static_cast<T*>(p.slot(s).data) + start(s, i) : copy;
    };
    const auto give = [&](GateSlot s, std::int64_t i, int n, const T* y, const T* copy) {
      if (y == copy) give_any(copy, p.slot(s).data, p.dtype, start(s, i), stride(s), n);
    };
    for (std::int64_t i = from; i < to; i += kGateTile) {
      const int n = static_cast<int>(std::min<std::int64_t>(kGateTile, to - i));
      const T* const gate = read(GateSlot::gate, i, n, buffer.gate);
      const T* const value = kGated ? read(GateSlot::value, i, n, buffer.value) : nullptr;
      const T* const gate_bias = kBias ? read_bias(GateSlot::gate_bias, i, n, buffer.gate_bias) : nullptr;
      const T* const value_bias = kBias && kGated ? read_bias(GateSlot::value_bias, i, n, buffer.value_bias) : nullptr;
      if (!p.backward) {
        T* const y = place(GateSlot::out, i, buffer.to_gate);
        const bool past = large && y != buffer.to_gate && reinterpret_cast<std::uintptr_t>(y) % kVectorBytes == 0;
        T* const made = past ? buffer.to_gate : y;
        gate_forward<A, kGated, kBias>(gate, value, gate_bias, value_bias, made, n);
        if (past) write_past(made, y, n, gate, value);
        give(GateSlot::out, i, n, y, buffer.to_gate);
      } else {
        const T* const grad = read(GateSlot::grad, i, n, buffer.grad);
        T* const to_gate = place(GateSlot::to_gate, i, buffer.to_gate);
        T* const to_value = kGated ? place(GateSlot::to_value, i, buffer.to_value) : nullptr;
        gate_backward<A, kGated, kBias>(gate, value, gate_bias, value_bias, grad, to_gate, to_value, n);
        if (kBias && sums) {
          const std::int64_t step = stride(GateSlot::gate_bias);
          add_to_sums(to_gate, n, step, sums + p.gate_at + start(GateSlot::gate_bias, i));
          if (kGated) add_to_sums(to_value, n, step, sums + p.value_at + start(GateSlot::value_bias, i));
        }
        give(GateSlot::to_gate, i, n, to_gate, buffer.to_gate);
        if (kGated) give(GateSlot::to_value, i, n, to_value, buffer.to_value);
      }
    }
  }
  if (large) finish_streams();
}

template <Activation A, typename T>
void run_kind(const GatePlan& p, std::int64_t pieces, std::int64_t begin, std::int64_t end, double* sums) {
  const bool bias = p.slot(GateSlot::gate_bias).data != nullptr;
  if (p.gated)
    return bias ? run_pieces<A, true, true, T>(p, pieces, begin, end, sums)
                : run_pieces<A, true, false, T>(p, pieces, begin, end, sums);
  if (bias) return run_pieces<A, false, true, T>(p, pieces, begin, end, sums);
  run_pieces<A, false, false, T>(p, pieces, begin, end, sums);
}
template <typename T>
void run_type(const GatePlan& p, std::int64_t pieces, std::int64_t begin, std::int64_t end, double* sums) {
  switch (p.kind) {
    case Activation::silu:
      return run_kind<Activation::silu, T>(p, pieces, begin, end, sums);
    case Activation::gelu_tanh:
      return run_kind<Activation::gelu_tanh, T>(p, pieces, begin, end, sums);
    case Activation::gelu:
      return run_kind<Activation::gelu, T>(p, pieces, begin, end, sums);
    case Activation::mp_silu:
      return run_kind<Activation::mp_silu, T>(p, pieces, begin, end, sums);
  }
}

}  // namespace

void gates_run(const GatePlan& p, std::int64_t pieces, std::int64_t begin, std::int64_t end, double* sums) {
  if (p.wide) run_type<double>(p, pieces, begin, end, sums);
  else run_type<float>(p, pieces, begin, end, sums);
}

}  // namespace fokker::cpu::FK_ISA
