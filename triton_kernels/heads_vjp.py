"""Gradients of the norm and rotary embedding of attention heads in Triton: the formulas of csrc/cuda/heads_vjp.cu.

A program takes some tiles of rows, one after the other: x and the gradient are read once, the gradient in x is written
once. Sums for weights and biases stay in registers, then go through memory in float64, a row a program, whose number
does not depend on the device.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, divide, mad
from .heads import LAYER, arguments, entries, places, places_of_rows, unit_rows
from .strided import launching, load, store

#: programs at most, where sums are wanted
PROGRAMS = 1024


@triton.jit
def norm_rope_vjp_kernel(
    x, grad, out, weight, cos, sin, sums, rows, heads, tokens, tiles, xb, xh, xt, xd, gb, gh, gt, gd, ob, oh, ot, od,
    table_batch, width,
    DIM: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, INTERLEAVED: tl.constexpr,
    WHOLE: tl.constexpr, ROPE: tl.constexpr, WEIGHT: tl.constexpr, WANTED: tl.constexpr, SUMS: tl.constexpr,
    PAIRS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dn = g cos - R(g sin), a = dn w, dx = rstd (a - x^ mean(a x^)) (layer norm: - mean a); sums of dn x^ and dn."""
    program = tl.program_id(0).to(tl.int64)
    kind: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    weight_p = tl.zeros([BLOCK, PAIRS], kind)
    weight_q = tl.zeros([BLOCK, PAIRS], kind)
    bias_p = tl.zeros([BLOCK, PAIRS], kind)
    bias_q = tl.zeros([BLOCK, PAIRS], kind)
    for tile in range(tiles):
        row = (program * tiles + tile) * BLOCK + tl.arange(0, BLOCK)
        b, h, t, pair, i, j, there = places_of_rows(row, heads, tokens, rows, DIM, ROTARY, PAIRS, INTERLEAVED)
        p, q, rstd = unit_rows(x, (b * xb + h * xh + t * xt)[:, None], xd, i, j, there, DIM, NORM, EPS)
        from_row = (b * gb + h * gh + t * gt)[:, None]
        a = load(grad, from_row + i * gd, there, 0.0)
        c = load(grad, from_row + j * gd, there, 0.0)
        if ROPE:
            at = (b * table_batch + t * width)[:, None]
            cp, cq = entries(cos, at, pair, 1.0, DIM, ROTARY, there, INTERLEAVED, WHOLE)
            sp, sq = entries(sin, at, pair, 0.0, DIM, ROTARY, there, INTERLEAVED, WHOLE)
            turned = mad(a, cp, c * sq)
            c = mad(c, cq, -(a * sp))
            a = turned
        if SUMS:
            weight_p = mad(a, p, weight_p)
            weight_q = mad(c, q, weight_q)
            bias_p += a
            bias_q += c
        if WANTED:
            if WEIGHT:
                inside = pair < DIM // 2
                a = a * load(weight, i, inside, 0.0)
                c = c * load(weight, j, inside, 0.0)
            if NORM != 0:
                along = tl.sum(mad(a, p, c * q), 1)
                along = divide(along, const(along, DIM))[:, None]
                if NORM == LAYER:
                    level = tl.sum(a + c, 1)
                    level = divide(level, const(level, DIM))[:, None]
                    a = a - level
                    c = c - level
                a = mad(-p, along, a) * rstd
                c = mad(-q, along, c) * rstd
            to_row = (b * ob + h * oh + t * ot)[:, None]
            store(out, to_row + i * od, a, there)
            store(out, to_row + j * od, c, there)
    if SUMS:
        to = sums + program * (2 * DIM)
        i, j = places(tl.arange(0, PAIRS), DIM, ROTARY, INTERLEAVED)
        inside = tl.arange(0, PAIRS) < DIM // 2
        tl.store(to + i, tl.sum(weight_p.to(tl.float64), 0), mask=inside)
        tl.store(to + j, tl.sum(weight_q.to(tl.float64), 0), mask=inside)
        tl.store(to + (DIM + i), tl.sum(bias_p.to(tl.float64), 0), mask=inside)
        tl.store(to + (DIM + j), tl.sum(bias_q.to(tl.float64), 0), mask=inside)


def heads_blocks(rows: int) -> int:
    """The rows of the workspace that is to be handed in: none, since it depends on the tiles."""
    return 0


def heads_norm_rope_vjp(
    parts: list[Tensor], weights: list[Any], biases: list[Any], cos: Any, sin: Any, norm: int, eps: float,
    interleaved: bool, rotary: int, grads: list[Tensor], outs: list[Any], sums: Tensor | None, partial: None,
) -> None:  # fmt: skip
    """Fill the wanted gradients (None: not wanted), and sums (2, 2, D), [weight, bias] of queries and of keys."""
    for k, (x, grad, out) in enumerate(zip(parts, grads, outs, strict=True)):
        if k == 2:
            if out is not None:
                out.copy_(grad)
            continue
        if not x.numel() or (out is None and sums is None):
            continue
        batch, heads, tokens, dim = x.shape
        rows = batch * heads * tokens
        (w, _, c, s, table_batch, width), flags = arguments(
            x, dim, weights[k], biases[k], cos, sin, norm, eps, interleaved, rotary
        )
        chosen = configuration("heads_vjp", x.dtype)
        block = max(1, chosen.block // flags["PAIRS"])
        tiles = 1 if sums is None else triton.cdiv(triton.cdiv(rows, block), PROGRAMS)
        programs = triton.cdiv(rows, tiles * block)
        work = x if sums is None else torch.empty((programs, 2, dim), dtype=torch.float64, device=x.device)
        put = x if out is None else out
        with launching(x):
            norm_rope_vjp_kernel[(programs,)](
                x, grad, put, w, c, s, work, rows, heads, tokens, tiles, *x.stride(), *grad.stride(), *put.stride(),
                table_batch, width, WANTED=out is not None, SUMS=sums is not None, BLOCK=block, **flags,
                **chosen.options,
            )  # fmt: skip
        if sums is not None:
            sums[k] = work.sum(0)
