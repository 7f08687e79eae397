"""Sums of distances over pairs and their gradients in Triton, as csrc/cuda/distance.cu; all in float64.

x is (batch, d, n), as the slope is: the numbers of queries lie side by side. Distances are sums of squared differences,
which are 0 for equal points. A slope is read and written once a tile of BM data.

Bytes: x once a tile of data, from the caches after the first; the data once a block of queries.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import mad, square_root
from .strided import launching


@triton.jit
def distance_kernel(x, y, weight, sums, slope, n, m, d, SLOPE: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr):
    """sum_j w_j |x_i - y_j| of BLOCK queries, and with SLOPE its gradient in x_i; program (query block, batch)."""
    blocks = tl.cdiv(n, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    queries = i < n
    x += batch * d * n
    slope += batch * d * n
    total = tl.zeros((BLOCK,), tl.float64)
    for j0 in range(0, m, BM):
        j = j0 + tl.arange(0, BM)
        data = j < m
        row = y + (batch * m + j) * d
        square = tl.zeros((BLOCK, BM), tl.float64)
        x_at, y_at = x + i, row
        for _ in range(0, d):
            here = tl.load(x_at, mask=queries, other=0.0)
            step = here[:, None] - tl.load(y_at, mask=data, other=0.0)[None, :]
            square = mad(step, step, square)
            x_at, y_at = x_at + n, y_at + 1
        w = tl.load(weight + batch * m + j, mask=data, other=0.0)[None, :]
        length = square_root(square)
        # past the end there is no datum: its distance may be infinite, and no product of it is 0
        total += tl.sum(tl.where(data[None, :], w * length, 0.0), 1)
        if SLOPE:
            zero = (length == 0.0) | (j >= m)[None, :]
            share = tl.where(zero, 0.0, w / tl.where(zero, 1.0, length))
            x_at, y_at, s_at = x + i, row, slope + i
            for _ in range(0, d):
                here = tl.load(x_at, mask=queries, other=0.0)
                step = here[:, None] - tl.load(y_at, mask=data, other=0.0)[None, :]
                part = tl.sum(tl.where((j < m)[None, :], share * step, 0.0), 1)
                so_far = tl.load(s_at, mask=queries & (i < tl.where(j0 > 0, n, 0)), other=0.0)
                tl.store(s_at, so_far + part, mask=queries)
                x_at, y_at, s_at = x_at + n, y_at + 1, s_at + n
            tl.debug_barrier()  # other threads may read what these wrote
    tl.store(sums + batch * n + i, total, mask=queries)


def distance_sums(x: Tensor, y: Tensor, weight: Tensor, total: Tensor, slope: Tensor | None) -> None:
    """As the native binding: `total` (b, n), `slope` (b, d, n) or None; x (b, d, n), y (b, m, d), weight (b, m)."""
    (batch, d, n), m = x.shape, y.shape[1]
    if batch == 0 or n == 0:
        return
    if slope is not None and m == 0:
        slope.zero_()
    chosen = configuration("distance", x.dtype)
    with launching(x):
        distance_kernel[(triton.cdiv(n, chosen.block) * batch,)](
            x, y, weight, total, total if slope is None else slope, n, m, d, SLOPE=slope is not None,
            BLOCK=chosen.block, BM=chosen.columns, **chosen.options,
        )  # fmt: skip
