"""Norm and rotary embedding of attention heads in Triton: the formulas of csrc/cuda/heads.cuh.

A program takes a few rows (one head of one token each) with the pairs of a head beside each other: queries and keys are
read once and written once, whatever their strides.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, mad, square_root
from .strided import launching, load, store

RMS = tl.constexpr(1)
LAYER = tl.constexpr(2)


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
