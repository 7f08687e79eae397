"""Sums over samples for score-matching losses in Triton, and the multiplicative one's gradient: csrc/cuda/losses.cu.

A program takes a piece of one sample, or some short samples whole; arithmetic and sums are in float64, by a fixed tree
inside a piece, and torch adds up a sample's pieces in order. Bytes: each vector once, where it lies (and the gradient).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import divide, log, mad
from .strided import by_strides, launching, load, offset, store, walk

#: steps of a program along a long sample
STEPS = 4
#: no workspace is handed in (csrc/bind's modules say the elements of a tile)
sde_tile = 0


@triton.jit
def piece_of(batch, n, pieces, STEP: tl.constexpr, STEPS: tl.constexpr, BM: tl.constexpr, BLOCK: tl.constexpr):
    """Samples (BM, 1), their elements in the whole batch (BM, BLOCK) and which of them there are."""
    program = tl.program_id(0).to(tl.int64)
    b = (program // pieces * BM + tl.arange(0, BM))[:, None]
    e = (program % pieces * (STEPS * BLOCK) + STEP * BLOCK + tl.arange(0, BLOCK))[None, :]
    return b, b * n + e, (b < batch) & (e < n)


@triton.jit
def write_sums(sums, b, batch, pieces, r, total, R: tl.constexpr):
    """Sum r of R of this piece of each sample."""
    to = (b * pieces + tl.program_id(0).to(tl.int64) % pieces) * R + r
    tl.store(sums + to, tl.sum(total, 1)[:, None], mask=b < batch)


@triton.jit
def forms_kernel(
    u0, u1, u2, u3, table, sums, batch, n, pieces, table_batch, n1, n2, n3, a0, a1, a2, a3, b0, b1, b2, b3,
    c0, c1, c2, c3, d0, d1, d2, d3,
    K: tl.constexpr, R: tl.constexpr, STEPS: tl.constexpr, DIMS: tl.constexpr, BM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Linear forms p, q, d of K vectors: <p, p>, <p, q>, sum |d|, the first R of them."""
    square = tl.zeros([BM, BLOCK], tl.float64)
    product = square
    absolute = square
    for step in tl.static_range(STEPS):
        b, i, inside = piece_of(batch, n, pieces, step, STEPS, BM, BLOCK)
        p = tl.zeros([BM, BLOCK], tl.float64)
        q = p
        d = p
        for k in tl.static_range(K):
            if k == 0:
                v = load(u0, offset(i, n1, n2, n3, a0, a1, a2, a3, DIMS), inside, 0.0)
            elif k == 1:
                v = load(u1, offset(i, n1, n2, n3, b0, b1, b2, b3, DIMS), inside, 0.0)
            elif k == 2:
                v = load(u2, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), inside, 0.0)
            else:
                v = load(u3, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), inside, 0.0)
            v = v.to(tl.float64)
            at = table + b * table_batch + k
            p = mad(tl.load(at, mask=b < batch, other=0.0), v, p)
            if R > 1:
                q = mad(tl.load(at + K, mask=b < batch, other=0.0), v, q)
            if R > 2:
                d = mad(tl.load(at + 2 * K, mask=b < batch, other=0.0), v, d)
        square = mad(p, p, square)
        product = mad(p, q, product)
        absolute += tl.abs(d)
    write_sums(sums, b, batch, pieces, 0, square, R)
    if R > 1:
        write_sums(sums, b, batch, pieces, 1, product, R)
    if R > 2:
        write_sums(sums, b, batch, pieces, 2, absolute, R)


@triton.jit
def lognormal_kernel(
    s, x, data, out, table, sums, batch, n, pieces, table_batch, n1, n2, n3, a0, a1, a2, a3, b0, b1, b2, b3,
    c0, c1, c2, c3, d0, d1, d2, d3,
    MULTIPLIED: tl.constexpr, GRADIENT: tl.constexpr, STEPS: tl.constexpr, DIMS: tl.constexpr, BM: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """Sums of squares of r = a x s + log(x / x_0) + c (without that x where not MULTIPLIED), or 2 g a x r."""
    total = tl.zeros([BM, BLOCK], tl.float64)
    for step in tl.static_range(STEPS):
        b, i, inside = piece_of(batch, n, pieces, step, STEPS, BM, BLOCK)
        at = load(x, offset(i, n1, n2, n3, b0, b1, b2, b3, DIMS), inside, 1.0).to(tl.float64)
        begin = load(data, offset(i, n1, n2, n3, c0, c1, c2, c3, DIMS), inside, 1.0).to(tl.float64)
        score = load(s, offset(i, n1, n2, n3, a0, a1, a2, a3, DIMS), inside, 0.0).to(tl.float64)
        row = table + b * table_batch
        factor = tl.load(row, mask=b < batch, other=0.0) + tl.zeros([BM, BLOCK], tl.float64)
        if MULTIPLIED:
            factor = factor * at
        shift = tl.load(row + 1, mask=b < batch, other=0.0)
        r = tl.where(inside, mad(factor, score, log(divide(at, begin)) + shift), 0.0)
        if GRADIENT:
            slope = 2.0 * tl.load(row + 2, mask=b < batch, other=0.0) * factor
            store(out, offset(i, n1, n2, n3, d0, d1, d2, d3, DIMS), slope * r, inside)
        else:
            total = mad(r, r, total)
    if not GRADIENT:
        write_sums(sums, b, batch, pieces, 0, total, 1)


def _launch(
    kernel: Any, tensors: list[Tensor], coefficients: Tensor, sums: Tensor | None, columns: int, **flags: Any
) -> list[Tensor]:
    """The tensors as the kernel walked them: the four slots, filled up with the first."""
    first = tensors[0]
    batch, n = first.shape[0], first.numel() // max(first.shape[0], 1)
    slots = by_strides(*tensors, *[first] * (4 - len(tensors)), leading=1)
    if not first.numel():
        return slots
    _, views, dims, integers = walk(*slots)
    chosen = configuration("losses", torch.float64)
    block = min(triton.next_power_of_2(n), chosen.block)
    bm, steps = chosen.block // block, STEPS if n > block else 1
    pieces = triton.cdiv(n, steps * block)
    work = coefficients if sums is None else first.new_empty((batch, pieces, columns), dtype=torch.float64)
    with launching(first):
        kernel[(triton.cdiv(batch, bm) * pieces,)](
            *views, coefficients, work, batch, n, pieces, 0 if len(coefficients) == 1 else coefficients.stride(0),
            *integers, **flags, STEPS=steps, DIMS=dims, BM=bm, BLOCK=block, **chosen.options,
        )  # fmt: skip
    if sums is not None:
        sums.copy_(work.sum(1).view_as(sums))
    return views


def loss_forms(vectors: list[Tensor], coefficients: Tensor, out: Tensor, partial: None) -> None:
    """Fill out (B, 1, R) with the sums of `forms_kernel`; coefficients (B or 1, R, K) in float64, contiguous."""
    rows = coefficients.shape[1]
    _launch(forms_kernel, vectors, coefficients, out, rows, K=len(vectors), R=rows)


def loss_lognormal(
    vectors: list[Tensor], coefficients: Tensor, multiplied: bool, sums: Tensor | None, out: Tensor | None,
    partial: None,
) -> None:  # fmt: skip
    """Fill sums (B, 1, 1) or out, the gradient in s; vectors: s, x, x_0; coefficients (B or 1, 1, 3): a, c, g."""
    tensors = vectors if out is None else [*vectors, out]
    views = _launch(
        lognormal_kernel, tensors, coefficients, sums, 1, MULTIPLIED=multiplied, GRADIENT=out is not None
    )  # fmt: skip
    if out is not None and views[3].data_ptr() != out.data_ptr():
        by_strides(vectors[0], out, leading=1)[1].copy_(views[3])
