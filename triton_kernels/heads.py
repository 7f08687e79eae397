"""Norm and rotary embedding of attention heads in Triton: the formulas of csrc/cuda/heads.cuh.

A program takes a few rows (one head of one token each) with the pairs of a head beside each other: queries and keys are
read once and written once, whatever their strides.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, mad, square_root
from .strided import launching, load, store

LAYER = tl.constexpr(2)


@triton.jit
def places(pair, DIM: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The two elements of a pair; those that are not turned are paired with their neighbours."""
    if INTERLEAVED:
        return 2 * pair, 2 * pair + 1
    elif ROTARY == DIM:
        return pair, pair + DIM // 2
    else:
        still = pair >= ROTARY // 2
        first = tl.where(still, 2 * pair, pair)
        return first, first + tl.where(still, 1, ROTARY // 2)


@triton.jit
def entries(table, at, pair, still, DIM: tl.constexpr, ROTARY: tl.constexpr, mask, INTERLEAVED: tl.constexpr,
            WHOLE: tl.constexpr):  # fmt: skip
    """The table's numbers for both elements of a pair, or what leaves it still."""
    turned = mask & (pair < ROTARY // 2)
    if WHOLE:
        first, second = places(pair, DIM, ROTARY, INTERLEAVED)
        return load(table, at + first, turned, still), load(table, at + second, turned, still)
    else:
        both = load(table, at + pair, turned, still)
        return both, both


@triton.jit
def places_of_rows(row, heads, tokens, rows, DIM: tl.constexpr, ROTARY: tl.constexpr, PAIRS: tl.constexpr,
                   INTERLEAVED: tl.constexpr):  # fmt: skip
    """Batch, head and token of rows; the pairs of a head, their two elements, and which there are."""
    pair = tl.arange(0, PAIRS).to(tl.int64)[None, :]
    there = (row < rows)[:, None] & (pair < DIM // 2)
    i, j = places(pair, DIM, ROTARY, INTERLEAVED)
    return row // heads // tokens, row % heads, row // heads % tokens, pair, i, j, there


@triton.jit
def unit_rows(x, from_row, xd, i, j, there, DIM: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):
    """Both elements of the pairs of rows as the norm makes them, before its weight, and what it multiplied them by."""
    p = load(x, from_row + i * xd, there, 0.0)
    q = load(x, from_row + j * xd, there, 0.0)
    if NORM == LAYER:
        total = tl.sum(p + q, 1)
        mean = divide(total, const(total, DIM))[:, None]
        p = tl.where(there, p - mean, 0.0)
        q = tl.where(there, q - mean, 0.0)
    square = tl.sum(mad(p, p, q * q), 1)
    rstd = const(square, 1.0)[:, None]
    if NORM != 0:
        size = square_root(divide(square, const(square, DIM)) + const(square, EPS))
        rstd = divide(const(square, 1.0), size)[:, None]
        p = p * rstd
        q = q * rstd
    return p, q, rstd


@triton.jit
def norm_rope_kernel(
    x, out, weight, bias, cos, sin, rows, heads, tokens, xb, xh, xt, xd, ob, oh, ot, od, table_batch, width,
    DIM: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, INTERLEAVED: tl.constexpr,
    WHOLE: tl.constexpr, ROPE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """y = n cos + R(n) sin, n = norm(x) w + b; WHOLE: a table entry for each element, not each pair."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b, h, t, pair, i, j, there = places_of_rows(row, heads, tokens, rows, DIM, ROTARY, PAIRS, INTERLEAVED)
    from_row = (b * xb + h * xh + t * xt)[:, None]
    p, q, _ = unit_rows(x, from_row, xd, i, j, there, DIM, NORM, EPS)
    inside = pair < DIM // 2
    if WEIGHT:
        p = p * load(weight, i, inside, 0.0)
        q = q * load(weight, j, inside, 0.0)
    if BIAS:
        p = p + load(bias, i, inside, 0.0)
        q = q + load(bias, j, inside, 0.0)
    if ROPE:
        at = (b * table_batch + t * width)[:, None]
        cp, cq = entries(cos, at, pair, 1.0, DIM, ROTARY, there, INTERLEAVED, WHOLE)
        sp, sq = entries(sin, at, pair, 0.0, DIM, ROTARY, there, INTERLEAVED, WHOLE)
        turned = mad(p, cp, -(q * sp))
        q = mad(q, cq, p * sq)
        p = turned
    to_row = (b * ob + h * oh + t * ot)[:, None]
    store(out, to_row + i * od, p, there)
    store(out, to_row + j * od, q, there)


def arguments(
    x: Tensor,
    dim: int,
    weight: Any,
    bias: Any,
    cos: Any,
    sin: Any,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a kernel is given of a part: the small operands (x where there is none) and strides of the tables; flags."""
    width = 0 if cos is None else cos.shape[-1]
    one = cos is None or cos.shape[0] == 1
    small = tuple(x if t is None else t for t in (weight, bias, cos, sin))
    flags = {
        "DIM": dim, "ROTARY": rotary, "NORM": norm, "EPS": eps, "INTERLEAVED": interleaved, "WHOLE": width == rotary,
        "ROPE": cos is not None, "WEIGHT": weight is not None, "PAIRS": triton.next_power_of_2(dim // 2),
    }  # fmt: skip
    return (*small, 0 if one else x.shape[2] * width, width), flags


def heads_norm_rope(
    parts: list[Tensor], weights: list[Any], biases: list[Any], cos: Any, sin: Any, norm: int, eps: float,
    interleaved: bool, rotary: int, outs: list[Tensor],
) -> None:  # fmt: skip
    """Results of queries and keys (B, H, T, D); values, the third part, are copied by torch."""
    for k, (x, out) in enumerate(zip(parts, outs, strict=True)):
        if k == 2:
            out.copy_(x)
            continue
        if not x.numel():
            continue
        batch, heads, tokens, dim = x.shape
        rows = batch * heads * tokens
        (*small, table_batch, width), flags = arguments(
            x, dim, weights[k], biases[k], cos, sin, norm, eps, interleaved, rotary
        )
        chosen = configuration("heads", x.dtype)
        block = max(1, chosen.block // flags["PAIRS"])
        with launching(x):
            norm_rope_kernel[(triton.cdiv(rows, block),)](
                x, out, *small, rows, heads, tokens, *x.stride(), *out.stride(), table_batch, width,
                BIAS=biases[k] is not None, BLOCK=block, **flags, **chosen.options,
            )  # fmt: skip
