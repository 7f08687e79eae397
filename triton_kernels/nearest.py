"""The nearest datum of every query in Triton, as csrc/cuda/nearest.cu: differences first, the first of equals stays.

x is (batch, d, n): the numbers of queries lie side by side. Bytes: x once a tile of data, from the caches after the
first; the data once a block of queries.
"""

import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import mad
from .kde import INF
from .strided import launching


@triton.jit
def nearest_kernel(
    x, y, index, n, m, d, exclude,
    EXCLUDE: tl.constexpr, ABSOLUTE: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The first j of least |x_i - y_j| of BLOCK queries, -1 where none is finite; program (query block, batch)."""
    blocks = tl.cdiv(n, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    queries = i < n
    x += batch * d * n
    best = tl.full((BLOCK,), INF, x.dtype.element_ty)
    found = tl.full((BLOCK,), -1, tl.int64)
    for j0 in range(0, m, BM):
        j = j0 + tl.arange(0, BM).to(tl.int64)
        data = j < m
        total = tl.zeros((BLOCK, BM), x.dtype.element_ty)
        x_at, y_at = x + i, y + (batch * m + j) * d
        for _ in range(0, d):
            here = tl.load(x_at, mask=queries, other=0.0)
            step = here[:, None] - tl.load(y_at, mask=data, other=0.0)[None, :]
            if ABSOLUTE:
                total += tl.abs(step)
            else:
                total = mad(step, step, total)
            x_at, y_at = x_at + n, y_at + 1
        counts = data[None, :] & (total < INF)  # neither past the end nor a NaN
        if EXCLUDE:
            counts = counts & (j[None, :] != (i + exclude)[:, None])
        total = tl.where(counts, total, INF)
        least = tl.min(total, 1)
        # the first of the tile's equals
        first = tl.min(tl.where((total == least[:, None]) & counts, j[None, :], m), 1)
        nearer = least < best
        found = tl.where(nearer, first, found)
        best = tl.where(nearer, least, best)
    tl.store(index + batch * n + i, found, mask=queries)


def nearest_data(x: Tensor, y: Tensor, index: Tensor, exclude: int, absolute: bool) -> None:
    """As the native binding: `index` (b, n) of x (b, d, n), y (b, m, d); an `exclude` of -2^63 leaves nothing out."""
    (batch, d, n), m = x.shape, y.shape[1]
    if batch == 0 or n == 0:
        return
    chosen = configuration("distance", x.dtype)
    some = exclude != -(2**63)
    with launching(x):
        nearest_kernel[(triton.cdiv(n, chosen.block) * batch,)](
            x, y, index, n, m, d, exclude if some else 0, EXCLUDE=some, ABSOLUTE=absolute,
            BLOCK=chosen.block, BM=chosen.columns, **chosen.options,
        )  # fmt: skip
