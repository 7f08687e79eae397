"""Modulated norms and gated residuals in Triton: the formulas of csrc/cuda/norms.cu.

A program takes a row: in registers where it fits a block, else in as many chunks, read again from the caches for its
statistics. Bytes: x, branch and per-token modulations once, results once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import Configuration, configuration
from .elementary import const, divide, mad, square_root
from .strided import launching, load, store

#: the kernel's pointers by what they point to (tools/triton_aot.py)
POINTERS = (
    "x", "branch", "gate", "gate_table", "shift", "shift_table", "scale", "scale_table", "weight", "bias", "summed",
    "out",
)  # fmt: skip


@triton.jit
def modulation(main, at, table, table_step, c, mask, none, MAIN: tl.constexpr, TABLE: tl.constexpr):
    """A row of a modulation: its tensor, its table, their sum, or ``none``."""
    value = none
    if MAIN:
        value = load(main, at, mask, 0.0).to(none.dtype)
        if TABLE:
            value += load(table, c * table_step, mask, 0.0).to(none.dtype)
    return value


@triton.jit
def row_of(
    x, branch, gate, gate_table, b, t, c, mask, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt,
    GATED: tl.constexpr, GATE: tl.constexpr, GATE_TABLE: tl.constexpr
):  # fmt: skip
    """x + gate branch, or x, of columns c of row (b, t); the branch (or x), and the gate (or 1)."""
    v = load(x, b * sx0 + t * sx1 + c * sx2, mask, 0.0)
    h = v
    factor = const(v, 1.0)
    if GATED:
        h = load(branch, b * sh0 + t * sh1 + c * sh2, mask, 0.0).to(v.dtype)
        factor = modulation(gate, b * sg0 + t * sg1 + c * sg2, gate_table, sgt, c, mask, factor, GATE, GATE_TABLE)
        v = mad(factor, h, v)
    return v, h, factor


@triton.jit
def rstd_of(variance, EPS: tl.constexpr):
    """1 / sqrt(variance + EPS) of one number, which rounding may have made negative."""
    variance = tl.where(variance < 0.0, 0.0, variance) + const(variance, EPS)
    return divide(const(variance, 1.0), square_root(variance))


@triton.jit
def write_row(
    v, mean, rstd, rest, shift, shift_table, scale, scale_table, weight, bias, out, b, t, c, row, mask,
    ss0, ss1, ss2, sst, sc0, sc1, sc2, sct, sw, sb,
    SHIFT: tl.constexpr, SHIFT_TABLE: tl.constexpr, SCALE: tl.constexpr, SCALE_TABLE: tl.constexpr,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    """The normalized, modulated columns c of a row."""
    factor = v * 0.0 + 1.0
    addend = factor - factor
    if SCALE:
        at = b * sc0 + t * sc1 + c * sc2
        factor = 1.0 + modulation(scale, at, scale_table, sct, c, mask, factor, SCALE, SCALE_TABLE)
    if SHIFT:
        at = b * ss0 + t * ss1 + c * ss2
        addend = modulation(shift, at, shift_table, sst, c, mask, addend, SHIFT, SHIFT_TABLE)
    if BIAS:
        addend = mad(load(bias, c * sb, mask, 0.0).to(v.dtype), factor, addend)
    if WEIGHT:
        factor = load(weight, c * sw, mask, 0.0).to(v.dtype) * factor
    store(out, row + c, mad(mad(v - mean, rstd, rest), factor, addend), mask)


@triton.jit
def norm_kernel(
    x, branch, gate, gate_table, shift, shift_table, scale, scale_table, weight, bias, summed, out, tokens, columns,
    sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt, ss0, ss1, ss2, sst, sc0, sc1, sc2, sct, sw, sb,
    NORM: tl.constexpr, GATED: tl.constexpr, GATE: tl.constexpr, GATE_TABLE: tl.constexpr, SHIFT: tl.constexpr,
    SHIFT_TABLE: tl.constexpr, SCALE: tl.constexpr, SCALE_TABLE: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, EPS: tl.constexpr, WIDE: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row a program; NORM: 0 none, 1 layer, 2 RMS."""
    i = tl.program_id(0).to(tl.int64)
    b = i // tokens
    t = i % tokens
    row = i * columns
    lane = tl.arange(0, BLOCK).to(tl.int64)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    count = (tl.zeros([1], tl.int64) + columns).to(kind)
    first, _, _ = row_of(
        x, branch, gate, gate_table, b, t, lane, lane < columns, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt,
        GATED, GATE, GATE_TABLE,
    )  # fmt: skip
    mean = tl.zeros([1], kind)
    if NORM == 1:
        total = first
        for k in tl.static_range(1, CHUNKS):
            c = lane + k * BLOCK
            v, _, _ = row_of(
                x, branch, gate, gate_table, b, t, c, c < columns, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt,
                GATED, GATE, GATE_TABLE,
            )  # fmt: skip
            total += v
        mean = divide(tl.sum(total, 0) + mean, count)
    d = tl.where(lane < columns, first - mean, 0.0)
    squares = d * d
    for k in tl.static_range(1, CHUNKS):
        c = lane + k * BLOCK
        v, _, _ = row_of(
            x, branch, gate, gate_table, b, t, c, c < columns, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt,
            GATED, GATE, GATE_TABLE,
        )  # fmt: skip
        e = tl.where(c < columns, v - mean, 0.0)
        d += e
        squares = mad(e, e, squares)
    rest = tl.zeros([1], kind)
    if NORM == 1:
        rest = divide(tl.sum(d, 0) + rest, count)
    rstd = rstd_of(divide(tl.sum(squares, 0) + tl.zeros([1], kind), count) - rest * rest, EPS)
    for k in tl.static_range(CHUNKS):
        c = lane + k * BLOCK
        mask = c < columns
        v = first
        if k > 0:
            v, _, _ = row_of(
                x, branch, gate, gate_table, b, t, c, mask, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt,
                GATED, GATE, GATE_TABLE,
            )  # fmt: skip
        if GATED:
            store(summed, row + c, v, mask)
        if NORM != 0:
            write_row(
                v, mean, rstd, -rest * rstd, shift, shift_table, scale, scale_table, weight, bias, out, b, t, c, row,
                mask, ss0, ss1, ss2, sst, sc0, sc1, sc2, sct, sw, sb,
                SHIFT, SHIFT_TABLE, SCALE, SCALE_TABLE, WEIGHT, BIAS,
            )  # fmt: skip


def strides(t: Tensor | None) -> tuple[int, int, int]:
    """Strides of (batch, tokens, columns), 0 where a dimension is one entry for all."""
    if t is None:
        return 0, 0, 0
    return tuple(0 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True))  # type: ignore[return-value]


def block_of(x: Tensor, kernel: str) -> tuple[Configuration, int]:
    """The configuration of a kernel for rows of x, and the columns that it takes at once."""
    chosen = configuration(kernel, torch.float64 if x.dtype is torch.float64 else torch.float32)
    return chosen, min(triton.next_power_of_2(x.shape[-1]), chosen.block)


def norm_modulate(found: list[Tensor], *args: Any) -> None:
    """Write x' and y, those that the op has, into contiguous tensors; arguments as `_denoiser_norms_ops` has them."""
    x, branch, gate, gate_table, shift, shift_table, scale, scale_table, weight, bias, eps, norm = args
    batch, tokens, columns = x.shape
    if not x.numel():
        return
    chosen, block = block_of(x, "norms")
    steps = tuple(0 if t is None else t.stride(0) for t in (gate_table, shift_table, scale_table, weight, bias))
    with launching(x):
        norm_kernel[(batch * tokens,)](
            *(x if t is None else t for t in args[:10]), found[0], found[-1], tokens, columns,
            *x.stride(), *strides(branch), *strides(gate), steps[0], *strides(shift), steps[1], *strides(scale),
            steps[2], steps[3], steps[4],
            NORM=norm, GATED=branch is not None, GATE=gate is not None, GATE_TABLE=gate_table is not None,
            SHIFT=shift is not None, SHIFT_TABLE=shift_table is not None, SCALE=scale is not None,
            SCALE_TABLE=scale_table is not None, WEIGHT=weight is not None, BIAS=bias is not None, EPS=eps,
            WIDE=x.dtype is torch.float64, CHUNKS=triton.cdiv(columns, block), BLOCK=block, **chosen.options,
        )  # fmt: skip
