"""Attention heads and gated activations in Triton: the formulas of csrc/math/activation.h, forward only.

A program takes a few rows (one head of one token each) with the pairs of a head beside each other: queries and keys are
read once and written once, whatever their strides.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, exp, horner, mad, pick, square_root
from .strided import launching, load, offset, store, walk

SILU = tl.constexpr(0)  # the order of math::Activation
GELU_TANH = tl.constexpr(1)
GELU = tl.constexpr(2)
MP_SILU = tl.constexpr(3)
RMS = tl.constexpr(1)
LAYER = tl.constexpr(2)

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


# ---- queries and keys ------------------------------------------------------------------------------------------------
@triton.jit
def places(pair, DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The two elements of a pair."""
    if INTERLEAVED:
        return 2 * pair, 2 * pair + 1
    else:
        return pair, pair + DIM // 2


@triton.jit
def entries(table, at, pair, DIM: tl.constexpr, mask, INTERLEAVED: tl.constexpr, WHOLE: tl.constexpr):
    """The table's numbers for both elements of a pair."""
    if WHOLE:
        first, second = places(pair, DIM, INTERLEAVED)
        return load(table, at + first, mask, 0.0), load(table, at + second, mask, 0.0)
    else:
        both = load(table, at + pair, mask, 0.0)
        return both, both


@triton.jit
def norm_rope_kernel(
    x, out, weight, bias, cos, sin, rows, heads, tokens, xb, xh, xt, xd, ob, oh, ot, od, table_batch, width,
    DIM: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, INTERLEAVED: tl.constexpr, WHOLE: tl.constexpr,
    ROPE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y = n cos + R(n) sin, n = norm(x) w + b; WHOLE: a table entry for each element, not each pair."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.arange(0, PAIRS)[None, :]
    there = (row < rows)[:, None] & (pair < DIM // 2)
    h = row % heads
    t = row // heads % tokens
    b = row // heads // tokens
    i, j = places(pair, DIM, INTERLEAVED)
    from_row = (b * xb + h * xh + t * xt)[:, None]
    p = load(x, from_row + i * xd, there, 0.0)
    q = load(x, from_row + j * xd, there, 0.0)
    if NORM == LAYER:
        total = tl.sum(p + q, 1)
        mean = divide(total, const(total, DIM))[:, None]
        p = tl.where(there, p - mean, 0.0)
        q = tl.where(there, q - mean, 0.0)
    if NORM != 0:
        square = tl.sum(mad(p, p, q * q), 1)
        size = square_root(divide(square, const(square, DIM)) + const(square, EPS))
        rstd = divide(const(square, 1.0), size)[:, None]
        p = p * rstd
        q = q * rstd
    inside = pair < DIM // 2
    if WEIGHT:
        p = p * load(weight, i, inside, 0.0)
        q = q * load(weight, j, inside, 0.0)
    if BIAS:
        p = p + load(bias, i, inside, 0.0)
        q = q + load(bias, j, inside, 0.0)
    if ROPE:
        at = (b * table_batch + t * width)[:, None]
        cp, cq = entries(cos, at, pair, DIM, there, INTERLEAVED, WHOLE)
        sp, sq = entries(sin, at, pair, DIM, there, INTERLEAVED, WHOLE)
        turned = mad(p, cp, -(q * sp))
        q = mad(q, cq, p * sq)
        p = turned
    to_row = (b * ob + h * oh + t * ot)[:, None]
    store(out, to_row + i * od, p, there)
    store(out, to_row + j * od, q, there)


def norm_rope(
    parts: list[Tensor], weights: list[Any], biases: list[Any], cos: Any, sin: Any, norm: int, eps: float,
    interleaved: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Results of queries and keys (B, H, T, D); values, the third part, are copied by torch."""
    found = []
    for k, x in enumerate(parts):
        out = torch.empty_like(x)
        found.append(out)
        if k == 2:
            out.copy_(x)
            continue
        if not x.numel():
            continue
        batch, heads, tokens, dim = x.shape
        rows, pairs = batch * heads * tokens, triton.next_power_of_2(dim // 2)
        chosen = configuration("heads", x.dtype)
        block = max(1, chosen.block // pairs)
        width = 0 if cos is None else cos.shape[-1]
        one = cos is None or cos.shape[0] == 1
        with launching(x):
            norm_rope_kernel[(triton.cdiv(rows, block),)](
                x, out, *(x if t is None else t for t in (weights[k], biases[k], cos, sin)), rows, heads, tokens,
                *x.stride(), *out.stride(), 0 if one else tokens * width, width,
                DIM=dim, NORM=norm, EPS=eps, INTERLEAVED=interleaved, WHOLE=width == dim, ROPE=cos is not None,
                WEIGHT=weights[k] is not None, BIAS=biases[k] is not None, PAIRS=pairs, BLOCK=block, **chosen.options,
            )  # fmt: skip
    return tuple(found)


# ---- activations -----------------------------------------------------------------------------------------------------
@triton.jit
def sigmoid(x):
    """1 / (1 + e^-x), where e^-x would overflow that of x = -87 (float64: -700)."""
    end: tl.constexpr = pick(x.dtype == tl.float64, 700.0, 87.0)
    one = const(x, 1.0)
    x = tl.where(x < -end, const(x, -end), x)
    return divide(one, one + exp(-tl.where(x > end, const(x, end), x)))


@triton.jit
def upper_tail(z):
    """1 - Phi(z) for z >= 0, 0 far out; the rounding error of z^2 is made good."""
    double: tl.constexpr = z.dtype == tl.float64
    far: tl.constexpr = pick(double, 37.0, 13.0)
    near = tl.where(z < far, z, const(z, far))
    square = near * near
    e = exp(const(z, -0.5) * square)
    density = mad(e, const(z, -0.5) * mad(near, near, -square), e)
    t = divide(near - 4.0, near + 4.0)
    return density * divide(horner(t, pick(double, MILLS_64, MILLS_32)), near + 1.0)


@triton.jit
def activate(x, KIND: tl.constexpr):
    """silu, GELU by tanh, GELU, or silu / 0.596."""
    if KIND == GELU:
        tail = upper_tail(tl.abs(x))
        y = x * tl.where(x < 0.0, tail, 1.0 - tail)
    elif KIND == GELU_TANH:
        cube = x * x * x
        y = x * sigmoid(const(x, 1.5957691216057307117) * mad(const(x, 0.044715), cube, x))
    else:
        y = x * sigmoid(x)
        if KIND == MP_SILU:
            y = divide(y, const(x, 0.596))
    return y


@triton.jit
def activation_kernel(
    gate, value, gate_bias, value_bias, out, n, n1, n2, n3, g0, g1, g2, g3, v0, v1, v2, v3, c0, c1, c2, c3,
    d0, d1, d2, d3, s0, s1, s2, s3,
    KIND: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, DIMS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """act(gate + gate_bias) (value + value_bias)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x = load(gate, offset(i, n1, n2, n3, g0, g1, g2, g3, DIMS), mask, 0.0)
    if BIAS:
        x = x + load(gate_bias, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), mask, 0.0)
    y = activate(x, KIND)
    if GATED:
        u = load(value, offset(i, n1, n2, n3, v0, v1, v2, v3, DIMS), mask, 0.0)
        if BIAS:
            u = u + load(value_bias, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), mask, 0.0)
        y = y * u
    store(out, offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS), y, mask)


def activation(x: Tensor, bias: Any, kind: int, gated: bool, gate_first: bool, dim: int) -> Tensor:
    """The arguments are those of `_denoiser_heads_ops.activation`, the bias in what is computed in."""
    half = x.shape[dim] // 2 if gated else x.shape[dim]

    def halves(t: Tensor, along: int) -> list[Tensor]:
        if not gated:
            return [t, t]
        first, second = t.narrow(along, 0, half), t.narrow(along, half, half)
        return [first, second] if gate_first else [second, first]

    gate, value = halves(x, dim)
    out = torch.empty_like(gate)
    if not out.numel():
        return out
    biases = [gate, value]
    if bias is not None:
        biases = [b.reshape(-1, *(1,) * (x.dim() - 1 - dim)) for b in halves(bias, 0)]
    _, views, dims, integers = walk(gate, value, *biases, out)
    chosen = configuration("gates", x.dtype)
    with launching(x):
        activation_kernel[(triton.cdiv(out.numel(), chosen.block),)](
            *views, out.numel(), *integers, KIND=kind, GATED=gated, BIAS=bias is not None, DIMS=dims,
            BLOCK=chosen.block, **chosen.options,
        )  # fmt: skip
    return out if views[-1].data_ptr() == out.data_ptr() else out.copy_(views[-1])
