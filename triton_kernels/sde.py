"""Affine and exponential steps of SDE samplers, and inner products, in Triton: the formulas of csrc/math/sde_update.h.

A lane makes one Philox block, and with it the four elements (float64: two) that it belongs to: neighbours, read and
written at once. The state and the terms are read once, each result is written once. Operands that are not contiguous
are copied first, the only kernels of the family that do.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import sde as reference
from .configurations import configuration
from .elementary import exp, mad
from .random import COUNTERS
from .sde_tiles import TERMS, Walk, clipped, coefficient, noise_of, row_of, terms_of, tile_of, total
from .strided import launching, load, store


@triton.jit(do_not_specialize=COUNTERS)
def affine_kernel(
    x, m1, m2, m3, m4, m5, m6, m7, m8, o1, o2, o3, table, row_at, seed_at, step_at, ids, batch, blocks, first_block,
    shift, n, steps, row: tl.int64, step_stride, sample_stride, row_stride, column_stride, seed: tl.int64,
    counter1: tl.int64, first_id: tl.int64,
    K: tl.constexpr, R: tl.constexpr, NOISY: tl.constexpr, EXPONENTIAL: tl.constexpr, CLIPPED: tl.constexpr,
    WIDE: tl.constexpr, ROW: tl.constexpr, SEED: tl.constexpr, STEP: tl.constexpr, IDS: tl.constexpr,
    CLIP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A Philox block a row of the tile; ROW, SEED, STEP, IDS: read from memory."""
    t = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b = t // blocks
    mask = b < batch  # a product may leave 32 bits
    block = first_block + t % blocks
    row, has_row = row_of(row_at, row, steps, t, ROW)
    base = row * step_stride + b * sample_stride
    z = noise_of(seed_at, step_at, ids, b, block, seed, counter1, first_id, mask, NOISY, WIDE, SEED, STEP, IDS)
    per: tl.constexpr = 2 if WIDE else 4
    i = (block * per - shift)[:, None] + tl.arange(0, per)[None, :]
    inside = mask[:, None] & (i >= 0) & (i < n)
    at = (b * n)[:, None] + i
    u = load(x, at, inside, 0.0)
    v = terms_of(m1, m2, m3, m4, m5, m6, m7, m8, at, inside, u, K)
    for r in tl.static_range(R):
        first = base + r * row_stride
        total = coefficient(table, first, has_row, mask).to(u.dtype)[:, None]
        if not EXPONENTIAL:
            total = total * u
        for k in tl.static_range(K):
            w = v[k]
            if CLIPPED and k == 0:
                last = first + (K + 1 + NOISY) * column_stride
                p = coefficient(table, last, has_row, mask)[:, None]
                q = coefficient(table, last + column_stride, has_row, mask)[:, None]
                w = clipped(mad(q, w, p * u), CLIP)
            total = mad(coefficient(table, first + (k + 1) * column_stride, has_row, mask)[:, None], w, total)
        if NOISY:
            total = mad(coefficient(table, first + (K + 1) * column_stride, has_row, mask)[:, None], z, total)
        if EXPONENTIAL:
            total = u * exp(total)
        store(o1 if r == 0 else o2 if r == 1 else o3, at, total, inside)


@triton.jit(do_not_specialize=COUNTERS)
def gram_kernel(
    a0, a1, a2, a3, a4, a5, a6, a7, a8, sums, seed_at, step_at, ids, blocks, first_block, shift, n, tiles,
    seed: tl.int64, counter1: tl.int64, first_id: tl.int64, K: tl.constexpr, NOISY: tl.constexpr, WIDE: tl.constexpr,
    SEED: tl.constexpr, STEP: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Inner products of a0, K vectors more and the noise, over one tile."""
    b, block, mask, at, inside = tile_of(blocks, first_block, shift, n, tiles, WIDE, BLOCK)
    z = noise_of(seed_at, step_at, ids, b, block, seed, counter1, first_id, mask, NOISY, WIDE, SEED, STEP, IDS)
    v = (load(a0, at, inside, 0.0).to(z.dtype),) + terms_of(a1, a2, a3, a4, a5, a6, a7, a8, at, inside, z, K)
    if NOISY:
        v = v + (tl.where(inside, z, 0.0),)
    J: tl.constexpr = 1 + K + NOISY
    to = sums + tl.program_id(0).to(tl.int64) * (J * J)
    for j in tl.static_range(J):
        for k in tl.static_range(j, J):
            product = total(v[j], v[k])
            tl.store(to + (j * J + k), product)
            tl.store(to + (k * J + j), product)


def affine_step(results: int, dots: bool, *args: Any, out: Any = None) -> tuple[Tensor, ...]:
    """The results of a step, then the inner products; the arguments are those of `_sde_ops.AFFINE`."""
    x, table = args[0], args[1]
    terms = [t for t in args[2 : 2 + TERMS] if t is not None]
    row_tensor, seed, step, ids, row, noisy, seed_value, step_value, stream, first, offset = args[10:21]
    exponential, clip = args[21:]
    wide = x.dtype is torch.float64
    dense = [t.contiguous() for t in (x, *terms)]
    dtypes = [x.dtype if out is None else out[r].dtype for r in range(results)]
    if dots:  # which are of the result before it is rounded
        dtypes[0] = reference.arithmetic(x.dtype)
    found = [torch.empty_like(dense[0], dtype=dtype) for dtype in dtypes]
    batch = x.shape[0]
    n = x.numel() // max(batch, 1)
    if x.numel():
        stepped = row_tensor is not None or row >= 0
        strides = table.stride()
        inner = table.shape[1:] if stepped else table.shape
        by_sample = len(inner) > (2 if results > 1 else 1)
        per = 2 if wide else 4
        shift = offset if noisy else 0
        first_block = shift // per
        blocks = (shift + n + per - 1) // per - first_block
        chosen = configuration("random", torch.float64 if wide else torch.float32)
        # what a program does not use still wants a pointer
        slots = dense[1:] + [dense[0]] * (TERMS - len(terms))
        outs = found + [found[0]] * (3 - results)
        with launching(x):
            affine_kernel[(triton.cdiv(batch * blocks, chosen.block),)](
                dense[0], *slots, *outs, table, *(table if t is None else t for t in (row_tensor, seed, step, ids)),
                batch, blocks, first_block, shift, n, table.shape[0] if stepped else 1, max(row, 0) if stepped else 0,
                strides[0] if stepped else 0, strides[stepped] if by_sample else 0, strides[-2] if results > 1 else 0,
                strides[-1], seed_value, step_value | stream << 24, first,
                K=len(terms), R=results, NOISY=noisy, EXPONENTIAL=exponential, CLIPPED=clip is not None,
                CLIP=0.0 if clip is None else clip, WIDE=wide,
                ROW=row_tensor is not None, SEED=noisy and seed is not None, STEP=noisy and step is not None,
                IDS=noisy and ids is not None, BLOCK=chosen.block, **chosen.options,
            )  # fmt: skip
    products: tuple[Tensor, ...] = ()
    if dots:
        products = (_products(dense, table, found[0], results, args),)
    shaped: list[Tensor] = []
    for r, y in enumerate(found):
        to = torch.empty_like(x) if out is None else out[r]
        same = out is None and to.stride() == y.stride() and to.dtype is y.dtype
        shaped.append(y if same else to.copy_(y))
    return (*shaped, *products)


def _products(dense: list[Tensor], table: Tensor, y: Tensor, results: int, args: Any) -> Tensor:
    """Inner products of a step's vectors: one more pass, over the difference that the step made."""
    row_tensor, seed, step, ids, row, noisy, *place = args[10:21]
    clip = args[22]
    u, *used = dense
    if clip is not None:
        stepped = row_tensor if row_tensor is not None else row if row >= 0 else None
        rows = reference.coefficient_rows(table, stepped, results)[:, 0]
        p, q = (c.reshape(-1, *(1,) * (u.dim() - 1)) for c in (rows[:, -2], rows[:, -1]))
        used[0] = (p * u + q * used[0]).clamp(-clip, clip)
    return gram([y - u, *used], noisy, seed, step, ids, *place)


def gram(vectors: list[Tensor], noisy: bool, *place: Any) -> Tensor:
    """(B, J, J) in float64; place: seed, step and ids as tensors, then seed, step, stream, first id and offset."""
    x = vectors[0]
    j = len(vectors) + noisy
    if not x.numel():
        return torch.zeros(x.shape[0], j, j, dtype=torch.float64, device=x.device)
    wide = reference.arithmetic(x.dtype)
    dense = [v.contiguous() for v in vectors]
    walk = Walk(dense[0], wide is torch.float64, noisy, place)
    found = walk.sums(j * j)
    with launching(x):
        gram_kernel[walk.grid](
            *dense, *[dense[0]] * (1 + TERMS - len(dense)), found, *walk.pointers, *walk.sizes, *walk.counters,
            K=len(dense) - 1, BLOCK=walk.chosen.block, **walk.flags, **walk.chosen.options,
        )  # fmt: skip
    return found.sum(1).reshape(-1, j, j)
