"""Gated activations act(gate + b) (value + b') in Triton and their gradients: the formulas of csrc/math/activation.h.

Each half is read once, each result written once, where it lies; with the halves, the gradient is read once too.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, exp, horner, mad, one_plus_exp, pick
from .strided import by_strides, launching, load, offset, store, walk

#: programs at most that share the elements of a channel, where they are summed
PROGRAMS = 256

SILU = tl.constexpr(0)  # the order of math::Activation
GELU_TANH = tl.constexpr(1)
GELU = tl.constexpr(2)
MP_SILU = tl.constexpr(3)

MILLS_64 = tl.constexpr(
    (
        0.47205320650984467042, -0.096703477326525381546, 0.013999634724428892513, 0.028600364053505494518,
        -0.032197837428283090597, 0.01793609748107815471, -0.0050023785865798547952, -0.00028562311770235676143,
        0.0006948970517556370979, -9.4430103939480043423e-5, -8.7852813885295428968e-5, 2.1249380968267437094e-5,
        1.3625238441129698e-5, -3.4304145328046226989e-6, -2.608255853187153021e-6, 4.0176734524103035202e-7,
        5.4344105814634967855e-7, 3.2686804949770532613e-9, -1.0119494760026601281e-7, -1.9238134933652708248e-8,
        1.1284365545767842934e-8, 4.4630550944359418677e-9, 2.4345278475385341821e-10,
    )
)  # fmt: skip
MILLS_32 = tl.constexpr(
    (
        0.47205320654, -0.096703467992, 0.013999623554, 0.028600026226, -0.032197625729, 0.017939629014,
        -0.0050030000566, -0.00030111531255, 0.00069179583211, -6.4484069978e-5, -7.341340565e-5,
    )
)  # fmt: skip


@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x)."""
    return divide(const(x, 1.0), one_plus_exp(x))


@triton.jit
def upper_tail(z):
    """1 - Phi(z) and e^(-z^2 / 2) for z >= 0, 0 far out; the rounding error of z^2 is made good."""
    double: tl.constexpr = z.dtype == tl.float64
    far: tl.constexpr = pick(double, 37.4, 13.19)  # where exp ends
    inside = z < far
    near = tl.where(inside, z, const(z, far))
    square = near * near
    e = exp(const(z, -0.5) * square)
    density = tl.where(inside, mad(e, const(z, -0.5) * mad(near, near, -square), e), 0.0)
    t = divide(near - 4.0, near + 4.0)
    return density * divide(horner(t, pick(double, MILLS_64, MILLS_32)), near + 1.0), density


@triton.jit
def activated(x, KIND: tl.constexpr):
    """silu, GELU by tanh, GELU, or silu / 0.596; and its derivative."""
    if KIND == GELU:
        tail, density = upper_tail(tl.abs(x))
        below = tl.where(x < 0.0, tail, 1.0 - tail)
        inside = tl.where(density > 0.0, x, 0.0)  # no inf times 0
        slope = mad(inside, density * const(x, 0.39894228040143267794), below)  # 1 / sqrt(2 pi)
        return x * below, tl.where(x == x, slope, x)
    elif KIND == GELU_TANH:
        cube = x * x * x
        s = sigmoid(const(x, 1.5957691216057307117) * mad(const(x, 0.044715), cube, x))
        low = tl.where(x < -40.0, const(x, -40.0), x)
        near = tl.where(low > 40.0, const(x, 40.0), low)  # beyond, s is 0 or 1
        rise = const(x, 1.5957691216057307117) * mad(const(x, 0.134145), near * near, const(x, 1.0))
        return x * s, s * mad(near * (1.0 - s), rise, const(x, 1.0))
    else:
        s = sigmoid(x)
        slope = s * mad(x, 1.0 - s, const(x, 1.0))
        if KIND == MP_SILU:
            return divide(x * s, const(x, 0.596)), divide(slope, const(x, 0.596))
        else:
            return x * s, slope


@triton.jit
def gradients(
    gate, value, gate_bias, value_bias, to_gate, grad, to_value, i, mask, n1, n2, n3, g0, g1, g2, g3, v0, v1, v2, v3,
    c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3, e0, e1, e2, e3, t0, t1, t2, t3,
    KIND: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, DIMS: tl.constexpr
):  # fmt: skip
    """The gradients in the gate and (0 without one) in the value at elements i, stored and given."""
    x = load(gate, offset(i, n1, n2, n3, g0, g1, g2, g3, DIMS), mask, 0.0)
    if BIAS:
        x = x + load(gate_bias, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), mask, 0.0)
    y, slope = activated(x, KIND)
    dy = load(grad, offset(i, n1, n2, n3, e0, e1, e2, e3, DIMS), mask, 0.0)
    in_gate = dy * slope
    in_value = dy * y
    if GATED:
        u = load(value, offset(i, n1, n2, n3, v0, v1, v2, v3, DIMS), mask, 0.0)
        if BIAS:
            u = u + load(value_bias, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), mask, 0.0)
        in_gate = in_gate * u
        store(to_value, offset(i, n1, n2, n3, t0, t1, t2, t3, DIMS), in_value, mask)
    store(to_gate, offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS), in_gate, mask)
    return in_gate, in_value


@triton.jit
def activation_kernel(
    gate, value, gate_bias, value_bias, out, grad, to_value, n, n1, n2, n3, g0, g1, g2, g3, v0, v1, v2, v3,
    c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3, e0, e1, e2, e3, t0, t1, t2, t3,
    KIND: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, BACKWARD: tl.constexpr, DIMS: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """act(gate + gate_bias) (value + value_bias), or from its gradient those in the gate (out) and in the value."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    if BACKWARD:
        gradients(
            gate, value, gate_bias, value_bias, out, grad, to_value, i, mask, n1, n2, n3, g0, g1, g2, g3,
            v0, v1, v2, v3, c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3, e0, e1, e2, e3, t0, t1, t2, t3,
            KIND, GATED, BIAS, DIMS,
        )  # fmt: skip
    else:
        x = load(gate, offset(i, n1, n2, n3, g0, g1, g2, g3, DIMS), mask, 0.0)
        if BIAS:
            x = x + load(gate_bias, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), mask, 0.0)
        y, _ = activated(x, KIND)
        if GATED:
            u = load(value, offset(i, n1, n2, n3, v0, v1, v2, v3, DIMS), mask, 0.0)
            if BIAS:
                u = u + load(value_bias, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), mask, 0.0)
            y = y * u
        store(out, offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS), y, mask)


@triton.jit
def sums_kernel(
    gate, value, gate_bias, value_bias, out, grad, to_value, sums, channels, others, along, across, part, at_gate,
    at_value, count, n1, n2, n3, g0, g1, g2, g3, v0, v1, v2, v3, c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3,
    e0, e1, e2, e3, t0, t1, t2, t3,
    KIND: tl.constexpr, GATED: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """The gradients, and their sums over `part` tiles of COLUMNS channels and BLOCK / COLUMNS elements of each."""
    ROWS: tl.constexpr = BLOCK // COLUMNS
    tile = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1).to(tl.int64)
    channel = tile * COLUMNS + tl.arange(0, COLUMNS)
    kind: tl.constexpr = tl.float64 if gate.dtype.element_ty == tl.float64 else tl.float32
    sum_gate = tl.zeros([ROWS, COLUMNS], kind)
    sum_value = tl.zeros([ROWS, COLUMNS], kind)
    for step in range(part):
        row = (program * part + step) * ROWS + tl.arange(0, ROWS)
        mask = (row < others)[:, None] & (channel < channels)[None, :]
        i = (row * along)[:, None] + (channel * across)[None, :]
        x, u = gradients(
            gate, value, gate_bias, value_bias, out, grad, to_value, i, mask, n1, n2, n3, g0, g1, g2, g3,
            v0, v1, v2, v3, c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3, e0, e1, e2, e3, t0, t1, t2, t3,
            KIND, GATED, True, DIMS,
        )  # fmt: skip
        sum_gate += x  # 0 outside, as grad is
        sum_value += u
    to = sums + program * count + channel
    tl.store(to + at_gate, tl.sum(sum_gate.to(tl.float64), 0), mask=channel < channels)
    if GATED:
        tl.store(to + at_value, tl.sum(sum_value.to(tl.float64), 0), mask=channel < channels)


def _halves(t: Any, other: Any, along: int, gated: bool, gate_first: bool) -> list[Any]:
    """Gate and value: a tensor and its other, or the halves of one; or one twice."""
    if t is None or not gated:
        return [t, t]
    if other is not None:
        return [t, other]
    first, second = t.chunk(2, along)
    return [first, second] if gate_first else [second, first]


def _launch(
    x: Tensor, value: Any, bias: Any, value_bias: Any, grad: Tensor | None, kind: int, gated: bool, gate_first: bool,
    dim: int, out: Tensor, to_value: Any, sums: Any = None,
) -> None:  # fmt: skip
    if not out.numel():
        return
    gate, other = _halves(x, value, dim, gated, gate_first)
    biases = [gate, other]
    if bias is not None:
        shape = [1] * x.dim()
        shape[dim] = -1
        halves = _halves(bias, value_bias, 0, gated, gate_first)
        biases = [b.reshape(shape).expand_as(gate) for b in halves]
    results = _halves(out, to_value, dim, gated and grad is not None, gate_first)
    slots = [gate, other, *biases, results[0], gate if grad is None else grad, results[-1]]
    ordered = by_strides(*slots)
    chosen = configuration("gates", x.dtype)
    if sums is not None:  # the channels last, where they lie beside each other, else first
        order = sorted(range(x.dim()), key=lambda d: -gate.stride(d))
        at, last = order.index(dim), gate.stride(dim) == 1 and gate.shape[dim] > 1
        ordered = [t.movedim(at, -1 if last else 0) for t in ordered]
    _, views, dims, integers = walk(*ordered)
    flags = {"KIND": kind, "GATED": gated, "DIMS": dims, **chosen.options}
    with launching(x):
        if sums is None:
            activation_kernel[(triton.cdiv(gate.numel(), chosen.block),)](
                *views, gate.numel(), *integers, BIAS=bias is not None, BACKWARD=grad is not None, BLOCK=chosen.block,
                **flags,
            )  # fmt: skip
        else:
            channels = gate.shape[dim]
            others = gate.numel() // channels
            columns = min(32, triton.next_power_of_2(channels)) if last else 1
            rows = chosen.block // columns
            part = triton.cdiv(triton.cdiv(others, rows), PROGRAMS)
            programs = triton.cdiv(others, part * rows)
            work = torch.empty((programs, sums.numel()), dtype=torch.float64, device=x.device)
            swapped = gated and value is None and not gate_first
            sums_kernel[(triton.cdiv(channels, columns), programs)](
                *views, work, channels, others, channels if last else 1, 1 if last else others, part,
                channels * swapped, channels * (not swapped), sums.numel(), *integers, BLOCK=chosen.block,
                COLUMNS=columns, **flags,
            )  # fmt: skip
            sums.copy_(work.sum(0))
    if views[4].data_ptr() != results[0].data_ptr():  # many dimensions: results of their own
        for k in (4, 6) if results[1] is not results[0] else (4,):
            ordered[k].copy_(views[k])


def heads_activation(
    x: Tensor, value: Any, bias: Any, value_bias: Any, kind: int, gated: bool, gate_first: bool, dim: int, out: Tensor
) -> None:
    """Write the result; biases are in what is computed in, the other arguments are the native modules'."""
    _launch(x, value, bias, value_bias, None, kind, gated, gate_first, dim, out, None)


def gates_blocks(rows: int) -> int:
    """The rows of the workspace that is to be handed in: none, since it depends on the tiles."""
    return 0


def heads_activation_vjp(
    x: Tensor, value: Any, bias: Any, value_bias: Any, grad: Tensor, kind: int, gated: bool, gate_first: bool, dim: int,
    to_x: Tensor, to_value: Any, sums: Any, partial: None,
) -> None:  # fmt: skip
    """Write the gradients in x (and value), and sums over the channels of what was rounded to them."""
    _launch(x, value, bias, value_bias, grad, kind, gated, gate_first, dim, to_x, to_value, sums)
