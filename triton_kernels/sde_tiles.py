"""What Triton's kernels of SDE steps share: operands, coefficients, noise and tiles of one sample."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const
from .random import NORMAL, counters_of, rows_at
from .strided import load

TERMS = 8


@triton.jit
def coefficient(table, at, has_row, mask):
    """A coefficient of each lane's sample; nan where the row does not exist."""
    c = tl.load(table + at, mask=mask & has_row, other=0.0)
    return tl.where(has_row, c, float("nan"))


@triton.jit
def row_of(row_at, row, steps, like, ROW: tl.constexpr):
    """The row of the table, and for each lane whether there is one."""
    if ROW:
        row = tl.load(row_at)
    rows = like * 0 + row
    return row, (rows < steps) & (rows >= 0)


@triton.jit
def noise_of(
    seed_at, step_at, ids, b, block, seed, counter1, first_id, mask, NOISY: tl.constexpr, WIDE: tl.constexpr,
    SEED: tl.constexpr, STEP: tl.constexpr, IDS: tl.constexpr
):  # fmt: skip
    """The normal numbers of a block a lane, (lanes, 4) or, in float64, (lanes, 2)."""
    if NOISY:
        seed, counter1, sample = counters_of(
            seed_at, step_at, ids, b, seed, counter1, first_id, mask, SEED, STEP, IDS
        )  # fmt: skip
        return rows_at(seed, block, counter1, sample, NORMAL, WIDE)
    else:
        return tl.zeros([b.shape[0], 2 if WIDE else 4], tl.float64 if WIDE else tl.float32)


@triton.jit
def clipped(raw, CLIP: tl.constexpr):
    """clamp(raw, -CLIP, CLIP), which keeps a nan."""
    bound = const(raw, CLIP)
    raw = tl.where(raw < -bound, -bound, raw)
    return tl.where(raw > bound, bound, raw)


@triton.jit
def terms_of(m1, m2, m3, m4, m5, m6, m7, m8, at, inside, like, K: tl.constexpr):
    """The first K of eight operands, a tuple."""
    found = ()
    for k in tl.static_range(K):
        m = m1 if k == 0 else m2 if k == 1 else m3 if k == 2 else m4 if k == 3 else m5 if k == 4 else m6 if k == 5 \
            else m7 if k == 6 else m8  # fmt: skip
        found = found + (load(m, at, inside, 0.0).to(like.dtype),)
    return found


@triton.jit
def tile_of(blocks, first_block, shift, n, tiles, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """Sample, Philox blocks, whether each is one of the sample's, places of their elements and which there are."""
    pid = tl.program_id(0).to(tl.int64)
    t = (pid % tiles) * BLOCK + tl.arange(0, BLOCK)
    per: tl.constexpr = 2 if WIDE else 4
    b = t * 0 + pid // tiles
    i = ((first_block + t) * per - shift)[:, None] + tl.arange(0, per)[None, :]
    inside = (t < blocks)[:, None] & (i >= 0) & (i < n)
    return b, first_block + t, t < blocks, (b * n)[:, None] + i, inside


@triton.jit
def total(u, v):
    """The sum of products over a tile, in float64."""
    return tl.sum(tl.reshape(u.to(tl.float64) * v.to(tl.float64), [u.shape[0] * u.shape[1]]), 0)


class Walk:
    """How the tiles of a batch are launched, and the arguments of its noise."""

    def __init__(self, like: Tensor, wide: bool, noisy: bool, place: Any) -> None:
        seed, step, ids, seed_value, step_value, stream, first, offset = place
        per = 2 if wide else 4
        self.chosen = configuration("random", torch.float64 if wide else torch.float32)
        self.batch, self.n = like.shape[0], like.numel() // max(like.shape[0], 1)
        shift = offset if noisy else 0
        first_block = shift // per
        blocks = (shift + self.n + per - 1) // per - first_block
        self.tiles = triton.cdiv(blocks, self.chosen.block)
        self.pointers = [like if t is None else t for t in (seed, step, ids)]
        self.sizes = (blocks, first_block, shift, self.n, self.tiles)
        self.counters = (seed_value, step_value | stream << 24, first)
        self.flags = {"NOISY": noisy, "WIDE": wide} | {
            name: noisy and t is not None for name, t in (("SEED", seed), ("STEP", step), ("IDS", ids))
        }
        self.grid = (self.batch * self.tiles,)

    def sums(self, count: int) -> Tensor:
        return torch.empty(self.batch, self.tiles, count, dtype=torch.float64, device=self.pointers[0].device)
