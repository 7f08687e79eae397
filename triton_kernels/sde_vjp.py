"""The vector-Jacobian product of an SDE step in Triton: csrc/cuda/sde_vjp.cu.

A program takes one tile of one sample: the gradients of the results are read once, those of the vectors written once,
and the coefficients' are sums in float64 over the tile; torch adds up a sample's tiles, in order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import const, exp, mad
from .random import COUNTERS
from .sde_tiles import TERMS, Walk, clipped, coefficient, noise_of, row_of, terms_of, tile_of, total
from .strided import launching, load, store


@triton.jit(do_not_specialize=COUNTERS)
def vjp_kernel(
    x, m1, m2, m3, m4, m5, m6, m7, m8, g1, g2, g3, d0, d1, d2, d3, d4, d5, d6, d7, d8, sums, table, row_at, seed_at,
    step_at, ids, blocks, first_block, shift, n, tiles, steps, row: tl.int64, step_stride, sample_stride,
    row_stride, column_stride, seed: tl.int64, counter1: tl.int64, first_id: tl.int64, K: tl.constexpr, R: tl.constexpr,
    NOISY: tl.constexpr, EXPONENTIAL: tl.constexpr, CLIPPED: tl.constexpr, WANTED: tl.constexpr, SUMS: tl.constexpr,
    C: tl.constexpr, WIDE: tl.constexpr, ROW: tl.constexpr, SEED: tl.constexpr, STEP: tl.constexpr, IDS: tl.constexpr,
    CLIP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """With h_r the gradient in what result r's coefficients are linear in: sums of h_r over the results for a vector,
    inner products with h_r for the C coefficients. Bit k of WANTED: d_k is written."""
    b, block, mask, at, inside = tile_of(blocks, first_block, shift, n, tiles, WIDE, BLOCK)
    z = noise_of(seed_at, step_at, ids, b, block, seed, counter1, first_id, mask, NOISY, WIDE, SEED, STEP, IDS)
    z = tl.where(inside, z, 0.0)
    row, has_row = row_of(row_at, row, steps, b, ROW)
    base = row * step_stride + b * sample_stride
    u = z * 0.0
    v = ()
    if EXPONENTIAL or CLIPPED or SUMS:
        u = load(x, at, inside, 0.0)
        v = terms_of(m1, m2, m3, m4, m5, m6, m7, m8, at, inside, z, K)
    grads = terms_of(g1, g2, g3, g3, g3, g3, g3, g3, at, inside, z, R)
    to = sums + tl.program_id(0).to(tl.int64) * (R * C)
    to_x = z * 0.0
    hs = ()  # what each result passes to the terms
    cut = ()  # ... to the first, where it is clipped, before its factor q
    for r in tl.static_range(R):
        h = grads[r]
        first = base + r * row_stride
        a = coefficient(table, first, has_row, mask).to(z.dtype)[:, None]
        p = a * 0.0
        q = p
        w = v
        if CLIPPED:
            last = first + (C - 2) * column_stride
            p = coefficient(table, last, has_row, mask).to(z.dtype)[:, None]
            q = coefficient(table, last + column_stride, has_row, mask).to(z.dtype)[:, None]
            raw = mad(q, v[0], p * u)
            w = (clipped(raw, CLIP),) + v[1:]
        if EXPONENTIAL:
            s = a + z * 0.0
            for k in tl.static_range(K):
                s = mad(coefficient(table, first + (k + 1) * column_stride, has_row, mask)[:, None], w[k], s)
            if NOISY:
                s = mad(coefficient(table, first + (K + 1) * column_stride, has_row, mask)[:, None], z, s)
            scaled = h * exp(s)
            to_x += scaled
            h = scaled * u
            if SUMS:
                tl.store(to + r * C, total(h, h * 0.0 + 1.0))
        else:
            to_x = mad(a, h, to_x)
            if SUMS:
                tl.store(to + r * C, total(h, u))
        if CLIPPED:
            bound = const(raw, CLIP)
            weight = coefficient(table, first + column_stride, has_row, mask).to(z.dtype)[:, None]
            through = tl.where((raw >= -bound) & (raw <= bound), weight * h, 0.0)
            to_x = mad(p, through, to_x)
            cut = cut + (q * through,)
            if SUMS:
                tl.store(to + (r * C + C - 2), total(through, u))
                tl.store(to + (r * C + C - 1), total(through, v[0]))
        if SUMS:
            for k in tl.static_range(K):
                tl.store(to + (r * C + 1 + k), total(h, w[k]))
            if NOISY:
                tl.store(to + (r * C + 1 + K), total(h, z))
        hs = hs + (h,)
    if WANTED & 1:
        store(d0, at, to_x, inside)
    for k in tl.static_range(1, K + 1):
        if (WANTED >> k) & 1:
            found = z * 0.0
            for r in tl.static_range(R):
                if CLIPPED and k == 1:
                    found += cut[r]
                else:
                    c = coefficient(table, base + r * row_stride + k * column_stride, has_row, mask)[:, None]
                    found = mad(c, hs[r], found)
            d = d1 if k == 1 else d2 if k == 2 else d3 if k == 3 else d4 if k == 4 else d5 if k == 5 else d6 if k == 6 \
                else d7 if k == 7 else d8  # fmt: skip
            store(d, at, found, inside)


def affine_vjp(args: Any, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Fill what is wanted of ``found``; the arguments are those of `_sde_ops.affine_vjp`."""
    x, table = args[0], args[1]
    results, wanted = args[-2:]
    terms = [t for t in args[2 : 2 + TERMS] if t is not None]
    row_tensor, seed, step, ids = args[10:14]
    grads = [g.contiguous() for g in args[14 : 14 + results]]
    row, noisy, *place, exponential, clip = args[17:-2]
    if not x.numel():
        return found
    with_sums = bool(wanted >> (1 + TERMS) & 1)
    noisy = noisy and (exponential or with_sums)
    dense = [t.contiguous() for t in (x, *terms)]
    walk = Walk(dense[0], x.dtype is torch.float64, noisy, (seed, step, ids, *place))
    columns = table.shape[-1]
    sums = walk.sums(results * columns) if with_sums else dense[0]
    stepped = row_tensor is not None or row >= 0
    strides = table.stride()
    by_sample = table.dim() - stepped > (2 if results > 1 else 1)
    outs = [t if not wanted >> k & 1 or t.is_contiguous() else torch.empty(t.shape, dtype=t.dtype, device=t.device)
            for k, t in enumerate(found[: 1 + TERMS])]  # fmt: skip
    with launching(x):
        vjp_kernel[walk.grid](
            *dense, *[dense[0]] * (1 + TERMS - len(dense)), *grads, *[grads[0]] * (3 - results), *outs, sums, table,
            table if row_tensor is None else row_tensor, *walk.pointers, *walk.sizes,
            table.shape[0] if stepped else 1, max(row, 0) if stepped else 0, strides[0] if stepped else 0,
            strides[stepped] if by_sample else 0, strides[-2] if results > 1 else 0, strides[-1], *walk.counters,
            K=len(terms), R=results, EXPONENTIAL=exponential, CLIPPED=clip is not None, WANTED=wanted & 511,
            SUMS=with_sums, C=columns, ROW=row_tensor is not None, CLIP=0.0 if clip is None else clip,
            BLOCK=walk.chosen.block, **walk.flags, **walk.chosen.options,
        )  # fmt: skip
    for to, made in zip(found, outs, strict=False):
        if to is not made:
            to.copy_(made)
    if with_sums:
        found[-1].copy_(sums.sum(1).reshape(found[-1].shape))
    return found
