"""Gated activations act(gate + b) (value + b') in Triton and their gradients: the formulas of csrc/math/activation.h.

Each half is read once, each result written once, where it lies; with the halves, the gradient is read once too.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, exp, horner, mad, one_plus_exp, pick
from .strided import by_strides, launching, load, offset, store, walk

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
def activation_kernel(
    gate, value, gate_bias, value_bias, out, grad, to_value, n, n1, n2, n3, g0, g1, g2, g3, v0, v1, v2, v3,
    c0, c1, c2, c3, d0, d1, d2, d3, s0, s1, s2, s3, e0, e1, e2, e3, t0, t1, t2, t3,
    KIND: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, BACKWARD: tl.constexpr, DIMS: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """act(gate + gate_bias) (value + value_bias), or from its gradient those in the gate (out) and in the value."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = load(gate, offset(i, n1, n2, n3, g0, g1, g2, g3, DIMS), mask, 0.0)
    if BIAS:
        x = x + load(gate_bias, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), mask, 0.0)
    y, slope = activated(x, KIND)
    if BACKWARD:
        dy = load(grad, offset(i, n1, n2, n3, e0, e1, e2, e3, DIMS), mask, 0.0)
        if GATED:
            store(to_value, offset(i, n1, n2, n3, t0, t1, t2, t3, DIMS), dy * y, mask)
        y = dy * slope
    if GATED:
        u = load(value, offset(i, n1, n2, n3, v0, v1, v2, v3, DIMS), mask, 0.0)
        if BIAS:
            u = u + load(value_bias, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), mask, 0.0)
        y = y * u
    store(out, offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS), y, mask)


def _launch(
    x: Tensor, bias: Any, grad: Tensor | None, kind: int, gated: bool, gate_first: bool, dim: int, out: Tensor
) -> None:
    if not out.numel():
        return
    half = x.shape[dim] // 2 if gated else x.shape[dim]

    def halves(t: Tensor, along: int) -> list[Tensor]:
        if not gated:
            return [t, t]
        first, second = t.narrow(along, 0, half), t.narrow(along, half, half)
        return [first, second] if gate_first else [second, first]

    gate, value = halves(x, dim)
    biases = [gate, value]
    if bias is not None:
        shape = [1] * x.dim()
        shape[dim] = half
        biases = [b.reshape(shape).expand_as(gate) for b in halves(bias, 0)]
    results = halves(out, dim) if gated and grad is not None else [out]
    slots = [gate, value, *biases, results[0], gate if grad is None else grad, results[-1]]
    _, views, dims, integers = walk(*by_strides(*slots))
    chosen = configuration("gates", x.dtype)
    with launching(x):
        activation_kernel[(triton.cdiv(gate.numel(), chosen.block),)](
            *views, gate.numel(), *integers, KIND=kind, GATED=gated, BIAS=bias is not None, BACKWARD=grad is not None,
            DIMS=dims, BLOCK=chosen.block, **chosen.options,
        )  # fmt: skip
    if views[4].data_ptr() != results[0].data_ptr():  # many dimensions: results of their own
        for to, made in zip(by_strides(gate, *results)[1:], (views[4], views[6]), strict=False):
            to.copy_(made)


def heads_activation(x: Tensor, bias: Any, kind: int, gated: bool, gate_first: bool, dim: int, out: Tensor) -> None:
    """Write the result; the bias is in what is computed in, the other arguments are the native modules'."""
    _launch(x, bias, None, kind, gated, gate_first, dim, out)


def heads_activation_vjp(
    x: Tensor, bias: Any, grad: Tensor, kind: int, gated: bool, gate_first: bool, dim: int, to_x: Tensor
) -> None:
    """Write the gradient in x."""
    _launch(x, bias, grad, kind, gated, gate_first, dim, to_x)
