"""Gradients of modulated norms and gated residuals in Triton: the formulas of csrc/cuda/norms_vjp.cu.

A program takes a block of a sample's tokens, row by row: in registers where a row fits a block, and with it the sums of
its columns; else in as many chunks, read again from the caches, whose sums go through memory. Sums of blocks are added
up by torch, in order and in float64. Bytes: x, branch and gradients once, results once.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import const, divide, mad
from .norms import block_of, modulation, row_of, rstd_of, strides
from .strided import launching, load, store

#: tokens of a program
norm_token_block = 16
#: the kernel's pointers by what they point to (tools/triton_aot.py)
POINTERS = (
    "x", "branch", "gate", "gate_table", "scale", "scale_table", "weight", "bias", "grad_sum", "grad", "to_x",
    "to_branch", "to_gate", "to_scale", "partial",
)  # fmt: skip


@triton.jit
def columns_of(
    x, branch, gate, gate_table, grad, scale, scale_table, weight, b, t, c, columns, sx0, sx1, sx2, sh0, sh1, sh2, sg0,
    sg1, sg2, sgt, sd0, sd1, sd2, sc0, sc1, sc2, sct, sw,
    GATED: tl.constexpr, GATE: tl.constexpr, GATE_TABLE: tl.constexpr, NORMED: tl.constexpr, SCALE: tl.constexpr,
    SCALE_TABLE: tl.constexpr, WEIGHT: tl.constexpr
):  # fmt: skip
    """Columns c of row (b, t): what `row_of` gives; grad, that times 1 + scale, and times the weight besides."""
    mask = c < columns
    v, h, by = row_of(
        x, branch, gate, gate_table, b, t, c, mask, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt, GATED, GATE,
        GATE_TABLE,
    )  # fmt: skip
    dy = const(v, 0.0)
    scaled = dy
    g = dy
    if NORMED:
        dy = load(grad, b * sd0 + t * sd1 + c * sd2, mask, 0.0).to(v.dtype)
        factor = const(v, 1.0)
        if SCALE:
            at = b * sc0 + t * sc1 + c * sc2
            factor = factor + modulation(scale, at, scale_table, sct, c, mask, factor, SCALE, SCALE_TABLE)
        scaled = dy * factor
        if WEIGHT:
            factor = load(weight, c * sw, mask, 0.0).to(v.dtype) * factor
        g = dy * factor
    return v, h, by, dy, scaled, g


@triton.jit
def norm_vjp_kernel(
    x, branch, gate, gate_table, scale, scale_table, weight, bias, grad_sum, grad, to_x, to_branch, to_gate, to_scale,
    partial, tokens, columns, blocks, chunks, sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt, sc0, sc1, sc2, sct, sw,
    sb, sa0, sa1, sa2, sd0, sd1, sd2,
    NORM: tl.constexpr, NORMED: tl.constexpr, ABOVE: tl.constexpr, GATED: tl.constexpr, GATE: tl.constexpr,
    GATE_TABLE: tl.constexpr, SCALE: tl.constexpr, SCALE_TABLE: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, WEIGHTED: tl.constexpr, TO_X: tl.constexpr, TO_BRANCH: tl.constexpr, TO_GATE: tl.constexpr,
    TO_SCALE: tl.constexpr, SUM_P: tl.constexpr, SUM_GATE: tl.constexpr, EPS: tl.constexpr, WIDE: tl.constexpr,
    TOKENS: tl.constexpr, LONG: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """TOKENS tokens a program. With g = grad (1 + scale) weight, d = above + rstd (g - mean g - n mean(g n)) is the
    gradient in x; sums over tokens of p and p n (p = grad, WEIGHTED: grad (1 + scale)) and of d branch."""
    i = tl.program_id(0).to(tl.int64)
    b = i // blocks
    from_token = i % blocks * TOKENS
    lane = tl.arange(0, BLOCK).to(tl.int64)
    kind: tl.constexpr = tl.float64 if WIDE else tl.float32
    count = (tl.zeros([1], tl.int64) + columns).to(kind)
    sums: tl.constexpr = 2 * SUM_P + SUM_GATE
    to_sums = partial + i * (sums * columns)
    if not LONG:
        sum_p = tl.zeros([BLOCK], kind)
        sum_pn = sum_p
        sum_gate = sum_p
    for step in range(tl.minimum(tokens - from_token, TOKENS)):
        t = from_token + step
        row = (b * tokens + t) * columns
        if not LONG:
            v, h, factor, dy, scaled, g = columns_of(
                x, branch, gate, gate_table, grad, scale, scale_table, weight, b, t, lane, columns, sx0, sx1, sx2, sh0,
                sh1, sh2, sg0, sg1, sg2, sgt, sd0, sd1, sd2, sc0, sc1, sc2, sct, sw, GATED, GATE, GATE_TABLE, NORMED,
                SCALE, SCALE_TABLE, WEIGHT,
            )  # fmt: skip
        mean = tl.zeros([1], kind)
        rest = mean
        level = mean
        along = mean
        rstd = mean
        if NORMED:
            total = tl.zeros([BLOCK], kind)
            total_g = total
            for k in range(chunks if LONG else 1):
                if LONG:
                    v, h, factor, dy, scaled, g = columns_of(
                        x, branch, gate, gate_table, grad, scale, scale_table, weight, b, t, lane + k * BLOCK, columns,
                        sx0, sx1, sx2, sh0, sh1, sh2, sg0, sg1, sg2, sgt, sd0, sd1, sd2, sc0, sc1, sc2, sct, sw, GATED,
                        GATE, GATE_TABLE, NORMED, SCALE, SCALE_TABLE, WEIGHT,
                    )  # fmt: skip
                total += v
                total_g += g
            sum_g = tl.sum(total_g, 0) + mean
            if NORM == 1:
                mean = divide(tl.sum(total, 0) + mean, count)
            deviations = tl.zeros([BLOCK], kind)
            squares = deviations
            products = deviations
            for k in range(chunks if LONG else 1):
                c = lane + k * BLOCK
                if LONG:
                    v, h, factor, dy, scaled, g = columns_of(
                        x, branch, gate, gate_table, grad, scale, scale_table, weight, b, t, c, columns, sx0, sx1, sx2,
                        sh0, sh1, sh2, sg0, sg1, sg2, sgt, sd0, sd1, sd2, sc0, sc1, sc2, sct, sw, GATED, GATE,
                        GATE_TABLE, NORMED, SCALE, SCALE_TABLE, WEIGHT,
                    )  # fmt: skip
                d = tl.where(c < columns, v - mean, 0.0)
                deviations += d
                squares = mad(d, d, squares)
                products = mad(g, d, products)
            if NORM == 1:
                rest = divide(tl.sum(deviations, 0) + rest, count)
                level = divide(sum_g, count)
            rstd = rstd_of(divide(tl.sum(squares, 0) + level * 0.0, count) - rest * rest, EPS)
            along = divide(rstd * (tl.sum(products, 0) - rest * sum_g), count)
        for k in range(chunks if LONG else 1):
            c = lane + k * BLOCK
            mask = c < columns
            if LONG:
                v, h, factor, dy, scaled, g = columns_of(
                    x, branch, gate, gate_table, grad, scale, scale_table, weight, b, t, c, columns, sx0, sx1, sx2, sh0,
                    sh1, sh2, sg0, sg1, sg2, sgt, sd0, sd1, sd2, sc0, sc1, sc2, sct, sw, GATED, GATE, GATE_TABLE,
                    NORMED, SCALE, SCALE_TABLE, WEIGHT,
                )  # fmt: skip
                old = mask & (step > 0)
                if SUM_P:
                    sum_p = load(to_sums, c, old, 0.0)
                    sum_pn = load(to_sums, c + columns, old, 0.0)
                if SUM_GATE:
                    sum_gate = load(to_sums, c + (sums - 1) * columns, old, 0.0)
            found = const(v, 0.0)
            if ABOVE:
                found = load(grad_sum, b * sa0 + t * sa1 + c * sa2, mask, 0.0).to(kind)
            if NORMED:
                hat = mad(v - mean, rstd, -rest * rstd)
                found = mad(rstd, mad(-hat, along, g - level), found)
                if SUM_P:
                    p = scaled if WEIGHTED else dy
                    sum_p += p
                    sum_pn = mad(p, hat, sum_pn)
                if TO_SCALE:
                    if WEIGHT:
                        hat = hat * load(weight, c * sw, mask, 0.0).to(kind)
                    if BIAS:
                        hat = hat + load(bias, c * sb, mask, 0.0).to(kind)
                    store(to_scale, row + c, dy * hat, mask)
            if SUM_GATE:
                sum_gate += found * h
            if TO_GATE:
                store(to_gate, row + c, found * h, mask)
            if TO_BRANCH:
                store(to_branch, row + c, factor * found, mask)
            if TO_X:
                store(to_x, row + c, found, mask)
            if LONG:
                if SUM_P:
                    tl.store(to_sums + c, sum_p, mask=mask)
                    tl.store(to_sums + (c + columns), sum_pn, mask=mask)
                if SUM_GATE:
                    tl.store(to_sums + (c + (sums - 1) * columns), sum_gate, mask=mask)
        if LONG and sums > 0:
            tl.debug_barrier()  # the next token goes on from these
    if not LONG:
        mask = lane < columns
        if SUM_P:
            tl.store(to_sums + lane, sum_p, mask=mask)
            tl.store(to_sums + (lane + columns), sum_pn, mask=mask)
        if SUM_GATE:
            tl.store(to_sums + (lane + (sums - 1) * columns), sum_gate, mask=mask)


def norm_modulate_vjp(
    x: Tensor, branch: Any, gate: Any, gate_table: Any, scale: Any, scale_table: Any, weight: Any, bias: Any,
    grad_sum: Any, grad: Any, eps: float, norm: int, weighted: bool, to_x: Any, to_branch: Any, to_gate: Any,
    to_scale: Any, sum_p: Any, sum_pn: Any, sum_gate: Any, partial: Any,
) -> None:  # fmt: skip
    """Fill what is not None of the results, all of them contiguous; as the native modules' function of this name."""
    batch, tokens, columns = x.shape
    if not x.numel():
        return
    chosen, block = block_of(x, "norms_vjp")
    inputs = (x, branch, gate, gate_table, scale, scale_table, weight, bias, grad_sum, grad)
    columns_apart = any(t is not None and columns > 1 and t.stride(-1) != 1 for t in inputs)
    chunks, blocks = triton.cdiv(columns, block), triton.cdiv(tokens, norm_token_block)
    outputs = (to_x, to_branch, to_gate, to_scale, partial)
    steps = tuple(0 if t is None else t.stride(0) for t in (gate_table, scale_table, weight, bias))
    with launching(x):
        norm_vjp_kernel[(batch * blocks,)](
            *(x if t is None else t for t in (*inputs, *outputs)), tokens, columns, blocks, chunks, *x.stride(),
            *strides(branch), *strides(gate), steps[0], *strides(scale), *steps[1:], *strides(grad_sum),
            *strides(grad), NORM=norm, NORMED=norm != 0 and grad is not None, ABOVE=grad_sum is not None,
            GATED=branch is not None, GATE=gate is not None, GATE_TABLE=gate_table is not None,
            SCALE=scale is not None, SCALE_TABLE=scale_table is not None, WEIGHT=weight is not None,
            BIAS=bias is not None, WEIGHTED=weighted, TO_X=to_x is not None, TO_BRANCH=to_branch is not None,
            TO_GATE=to_gate is not None, TO_SCALE=to_scale is not None, SUM_P=sum_p is not None,
            SUM_GATE=sum_gate is not None, EPS=eps, WIDE=x.dtype is torch.float64, TOKENS=norm_token_block,
            LONG=chunks > 1 or columns_apart, BLOCK=block, **chosen.options,
        )  # fmt: skip
    wanted = [t for t in (sum_p, sum_pn, sum_gate) if t is not None]
    if wanted:
        rows = partial.view(batch, blocks, len(wanted), columns).sum(1, dtype=torch.float64)
        for k, to in enumerate(wanted):
            to.copy_(rows[:, k])
