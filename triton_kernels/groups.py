"""Group norms in Triton, forward and backward: the formulas of csrc/math/group_norm.h.

Two kernels walk x, a tile of positions by channels at a time in the layout it has: the first sums each channel of each
sample, the second makes the results from coefficients a channel, which torch puts together in float64 in between (a
few numbers a channel). x is read twice, every result written once. Tensors that are not dense in x's layout are copied.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import denoiser_groups as reference
from ..reference.sde import arithmetic
from .configurations import configuration
from .elementary import const, divide, mad, one_plus_exp
from .strided import collapse, launching, load, store

NONE = tl.constexpr(0)
SILU = tl.constexpr(1)
RELU = tl.constexpr(2)


@triton.jit
def activated(u, ACTIVATION: tl.constexpr):
    if ACTIVATION == SILU:
        return divide(u, one_plus_exp(u))
    elif ACTIVATION == RELU:
        return tl.where(u <= 0.0, const(u, 0.0), u)  # nan stays
    else:
        return u


@triton.jit
def through(u, grad, ACTIVATION: tl.constexpr):
    """The gradient before the activation."""
    if ACTIVATION == SILU:
        sigmoid = divide(const(u, 1.0), one_plus_exp(u))
        return grad * (sigmoid * mad(u, 1.0 - sigmoid, const(u, 1.0)))
    elif ACTIVATION == RELU:
        return tl.where(u > 0.0, grad, const(u, 0.0))
    else:
        return grad


@triton.jit
def summed(x, residual, at, inside, SUM: tl.constexpr):
    """x, or x + residual as rounded to its dtype."""
    v = load(x, at, inside, 0.0)
    if SUM:
        v = v + load(residual, at, inside, 0.0)
        if x.dtype.element_ty != v.dtype:
            v = v.to(x.dtype.element_ty).to(v.dtype)
    return v


@triton.jit
def sums_kernel(
    x, residual, total, grad, mean, factor, addend, pivot, first, second, channels, positions, batch_stride,
    channel_stride, position_stride,
    SUM: tl.constexpr, BACKWARD: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """Forward: the mean of a channel's first tile, and the sums of deviations from it and of their squares; backward:
    the sums of du and du (x - mean). A tile has BM channels."""
    BP: tl.constexpr = BLOCK // BM
    parts = (channels + BM - 1) // BM
    c = (tl.program_id(0) % parts) * BM + tl.arange(0, BM)
    b = (tl.program_id(0) // parts).to(tl.int64)
    real = c < channels
    entry = b * channels + c
    base = (b * batch_stride + c.to(tl.int64) * channel_stride)[None, :]
    i = tl.arange(0, BP)
    inside = (i < positions)[:, None] & real[None, :]
    v = summed(x, residual, base + i.to(tl.int64)[:, None] * position_stride, inside, SUM)
    a = v * 0.0
    e = v * 0.0
    if BACKWARD:
        m = load(mean, entry, real, 0.0)[None, :]
        f = load(factor, entry, real, 0.0)[None, :]
        d = load(addend, entry, real, 0.0)[None, :]
    else:
        few = tl.sum(inside.to(v.dtype), 0)
        m = divide(tl.sum(v, 0), tl.maximum(few, const(few, 1.0)))[None, :]
    for start in range(0, positions, BP):
        i = start + tl.arange(0, BP)
        inside = (i < positions)[:, None] & real[None, :]
        at = base + i.to(tl.int64)[:, None] * position_stride
        v = summed(x, residual, at, inside, SUM)
        if SUM:
            store(total, at, v, inside)
        if BACKWARD:
            du = through(mad(v - m, f, d), load(grad, at, inside, 0.0), ACTIVATION)
            du = tl.where(inside, du, 0.0)
            a += du
            e = mad(du, v - m, e)
        else:
            step = tl.where(inside, v - m, 0.0)
            a += step
            e = mad(step, step, e)
    if not BACKWARD:
        store(pivot, entry, tl.sum(m, 0), real)
    store(first, entry, tl.sum(a, 0), real)
    store(second, entry, tl.sum(e, 0), real)


@triton.jit
def apply_kernel(
    x, grad, grad_sum, out, mean, factor, addend, pivot, slope, offset, channels, positions, tiles, batch_stride,
    channel_stride, position_stride,
    BACKWARD: tl.constexpr, ABOVE: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """One tile: act(factor (x - mean) + addend), or the gradient in x."""
    BP: tl.constexpr = BLOCK // BM
    parts = (channels + BM - 1) // BM
    strip = tl.program_id(0) // tiles
    c = (strip % parts) * BM + tl.arange(0, BM)
    b = (strip // parts).to(tl.int64)
    i = (tl.program_id(0) % tiles) * BP + tl.arange(0, BP)
    real = c < channels
    entry = b * channels + c
    inside = (i < positions)[:, None] & real[None, :]
    at = b * batch_stride + c.to(tl.int64)[None, :] * channel_stride + i.to(tl.int64)[:, None] * position_stride
    v = load(x, at, inside, 0.0)
    f = load(factor, entry, real, 0.0)[None, :]
    u = mad(v - load(mean, entry, real, 0.0)[None, :], f, load(addend, entry, real, 0.0)[None, :])
    if BACKWARD:
        du = through(u, load(grad, at, inside, 0.0), ACTIVATION)
        k, s = load(pivot, entry, real, 0.0)[None, :], load(slope, entry, real, 0.0)[None, :]
        y = mad(f, du, -mad(s, v - k, load(offset, entry, real, 0.0)[None, :]))
        if ABOVE:
            y += load(grad_sum, at, inside, 0.0)
    else:
        y = activated(u, ACTIVATION)
    store(out, at, y, inside)


def _dense(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """The tensors in one dense layout: x's, or contiguous where positions have no single step in it."""
    made = torch.empty_like(x)
    if made.dim() > 2 and len(collapse(made.shape[2:], made.stride()[2:])[0]) > 1:
        made = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    strides = made.stride()
    return [t if t is None or t.stride() == strides else torch.empty_like(made).copy_(t) for t in (x, *others)]


def _walk(x: Tensor) -> tuple[int, tuple[int, int, int], Any, int]:
    """Positions, the strides of batch, channel and position, the configuration, and the channels of a tile."""
    flat = x.flatten(2) if x.dim() > 2 else x[..., None]
    _, channels, positions = flat.shape
    last = channels > 1 and (positions == 1 or flat.stride(2) > 1)
    chosen = configuration("groups_last" if last else "groups", arithmetic(x.dtype))
    return positions, flat.stride(), chosen, chosen.columns or 1


def _coefficients(
    x: Tensor, weight: Any, bias: Any, scale: Any, shift: Any, mean: Tensor, rstd: Tensor, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean taken off, factor and addend of each channel in x's arithmetic; (1 + scale) weight in float64."""
    to, shape = arithmetic(x.dtype), x.shape[:2]
    mean, rstd = (reference._to_channels(t, shape[1]) for t in (mean, rstd))
    gain = 1 + (torch.zeros_like(rstd) if scale is None else scale.double())
    k = gain if weight is None else gain * weight.double()
    used = mean if centred else torch.zeros_like(mean)
    addend = (0 if shift is None else shift.double()) - rstd * k * (used - used.to(to).double())
    if bias is not None:
        addend = addend + gain * bias.double()
    return used.to(to), (rstd * k).to(to).contiguous(), addend.to(to).contiguous(), k


def group_norm(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """([x + residual,] y, statistics), as the registered ops return them."""
    weight, bias, scale, shift, std, groups, eps, activation, centred = rest
    batch = x.shape[0]
    total, y = torch.empty_like(x) if residual is not None else None, torch.empty_like(x)
    if not x.numel():
        stats = torch.zeros((batch, groups, 2), dtype=torch.float64, device=x.device)
        return (y, stats) if total is None else (total, y, stats)
    x, residual = _dense(x.resolve_neg(), residual)
    channels = x.shape[1]
    positions, strides, chosen, columns = _walk(x)
    put = torch.empty_like(x)
    kept = torch.empty_like(x) if residual is not None else x
    sums = [torch.empty((batch, channels), dtype=arithmetic(x.dtype), device=x.device) for _ in range(3)]
    blocks = triton.cdiv(channels, columns)
    with launching(x):
        if std is None or residual is not None:
            sums_kernel[(batch * blocks,)](
                x, x if residual is None else residual, kept, x, *sums, *sums, channels, positions, *strides,
                SUM=residual is not None, BACKWARD=False, ACTIVATION=0, BLOCK=chosen.block, BM=columns,
                **chosen.options,
            )  # fmt: skip
    if std is None:
        pivot, first, second = (t.double() for t in sums)
        squares = (second - first * first / positions).unflatten(1, (groups, -1))
        means = (pivot + first / positions).unflatten(1, (groups, -1))
        mean = means.mean(-1)
        squares = squares.sum(-1) + positions * (means - mean[..., None]).square().sum(-1)
        rstd = (squares / (channels // groups * positions) + eps).rsqrt()
    else:
        rstd = 1 / std.double()
        mean = torch.zeros_like(rstd)
    used, factor, addend, _ = _coefficients(x, weight, bias, scale, shift, mean, rstd, centred)
    used = used.contiguous()
    tiles = triton.cdiv(positions, chosen.block // columns)
    with launching(x):
        apply_kernel[(batch * tiles * blocks,)](
            kept, x, x, put, used, factor, addend, used, used, used, channels, positions, tiles, *strides,
            BACKWARD=False, ABOVE=False, ACTIVATION=activation, BLOCK=chosen.block, BM=columns, **chosen.options,
        )  # fmt: skip
    stats = torch.stack([mean, rstd], -1)
    y = put if put.stride() == y.stride() else y.copy_(put)
    if total is None:
        return y, stats
    return kept if kept.stride() == total.stride() else total.copy_(kept), y, stats


def group_norm_vjp(x: Tensor, grad: Tensor, to_sum: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """The gradient in x, and the sums A and E of each channel."""
    weight, bias, scale, shift, std, stats, groups, _, activation, centred = rest
    batch, channels = x.shape[:2]
    to_x = torch.empty_like(x)
    if not x.numel():
        return to_x, torch.zeros((batch, channels, 2), dtype=torch.float64, device=x.device)
    x, grad, to_sum = _dense(x.resolve_neg(), grad, to_sum)
    positions, strides, chosen, columns = _walk(x)
    put, to = torch.empty_like(x), arithmetic(x.dtype)
    mean, rstd = stats.unbind(-1)
    used, factor, addend, k = _coefficients(x, weight, bias, scale, shift, mean, rstd, centred)
    used = used.contiguous()
    first, second = (torch.empty((batch, channels), dtype=to, device=x.device) for _ in range(2))
    blocks, tiles = triton.cdiv(channels, columns), triton.cdiv(positions, chosen.block // columns)
    with launching(x):
        sums_kernel[(batch * blocks,)](
            x, x, x, grad, used, factor, addend, first, first, second, channels, positions, *strides,
            SUM=False, BACKWARD=True, ACTIVATION=activation, BLOCK=chosen.block, BM=columns, **chosen.options,
        )  # fmt: skip
    a, e = first.double(), second.double()
    means, rstds = (reference._to_channels(t, channels) for t in (mean, rstd))
    if centred:
        e = e - (means - used.double()) * a
    e = e * rstds
    pivot = means.to(to)
    if std is None:
        ka, ke = (reference._to_channels(reference._group_means(k * t, groups), channels) / positions for t in (a, e))
        slope = rstds.square() * ke
        offset = (rstds * ka if centred else 0) - slope * (means - pivot.double())
    else:
        slope = offset = torch.zeros_like(a)
    pivot, slope, offset = (t.to(to).contiguous() for t in (pivot, slope, offset))
    with launching(x):
        apply_kernel[(batch * tiles * blocks,)](
            x, grad, x if to_sum is None else to_sum, put, used, factor, addend, pivot, slope, offset, channels,
            positions, tiles, *strides, BACKWARD=True, ABOVE=to_sum is not None, ACTIVATION=activation,
            BLOCK=chosen.block, BM=columns, **chosen.options,
        )  # fmt: skip
    return put if put.stride() == to_x.stride() else to_x.copy_(put), torch.stack([a, e], -1)
