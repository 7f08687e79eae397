"""Gaussian mixtures in Triton: weighted distances, their log-sum-exp, weighted sums over components and over queries.

As csrc/cuda/gaussian.cu: x is (d, n) and the result of a pull (rows, n), so that the numbers of queries lie side by
side; matrices are (k, d), diagonal, or (k, rows, d), with a `stride` of 0 where one serves all components. Products
with matrices are `tl.dot` of differences; none is rounded to tf32: float32 operands are split into three bfloat16 terms
each ("bf16x6": as accurate as float32 products), and sums over BK columns are added up outside of the tensor cores,
which truncate. Moments are summed in float64 by parts of the queries, and the parts then in their order.

Bytes: joint (k, n) is written once and read three times by its log-sum-exp, or read once a block of rows of the pull.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import any_of, divide, log_normal, mad, matmul
from .kde import INF, weight_of
from .strided import dot_precision, launching

BK = 16
QUERIES_A_PART, MOST_PROGRAMS = 8192, 2048  # of the moments


@triton.jit
def place(n, BLOCK: tl.constexpr):
    """A program's queries, and which of the blocks' other halves it takes (of components or of rows)."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(n, BLOCK)
    return (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK), (pid // blocks).to(tl.int64)


@triton.jit
def joint_diagonal_kernel(x, mean, root, bias, joint, n, k, d, stride, BLOCK: tl.constexpr, BM: tl.constexpr):
    """bias_k - |a_k (x_i - m_k)|^2 / 2 of BM components at BLOCK queries, coordinate by coordinate."""
    i, group = place(n, BLOCK)
    c = group * BM + tl.arange(0, BM)
    queries = i < n
    components = c < k
    total = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    at, m_at, a_at = x + i, mean + c * d, root + c * stride
    for _ in range(0, d):
        m = tl.load(m_at, mask=components, other=0.0)
        a = tl.load(a_at, mask=components, other=0.0)
        t = (tl.load(at, mask=queries, other=0.0)[None, :] - m[:, None]) * a[:, None]
        total = mad(t, t, total)
        at, m_at, a_at = at + n, m_at + 1, a_at + 1
    b = tl.load(bias + c, mask=components, other=0.0)
    out = joint + c[:, None] * n + i[None, :]
    tl.store(out, b[:, None] - 0.5 * total, mask=components[:, None] & queries[None, :])


@triton.jit
def differences(x, mean, i, j, n, d):
    """x_i - m at BLOCK queries and BK columns, 0 outside."""
    queries, columns = i < n, j < d
    here = tl.load(x + j[None, :] * n + i[:, None], mask=queries[:, None] & columns[None, :], other=0.0)
    m = tl.load(mean + j, mask=columns, other=0.0)
    return tl.where(queries[:, None], here - m[None, :], 0.0)


@triton.jit
def transposed(matrix, j, r, d, rows):
    """BK columns of BR rows of a matrix (rows, d), as the right operand of a product."""
    return tl.load(matrix + r[None, :] * d + j[:, None], mask=(j < d)[:, None] & (r < rows)[None, :], other=0.0)


@triton.jit
def joint_kernel(
    x, mean, root, bias, joint, n, k, d, stride,
    TRIANGULAR: tl.constexpr, BLOCK: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """bias_k - |A_k (x_i - m_k)|^2 / 2 of one component at BLOCK queries, BR rows of A_k at a time."""
    i, c = place(n, BLOCK)
    mean += c * d
    root += c * stride
    total = tl.zeros((BLOCK,), x.dtype.element_ty)
    for r0 in range(0, d, BR):
        r = r0 + tl.arange(0, BR).to(tl.int64)
        product = tl.zeros((BLOCK, BR), x.dtype.element_ty)
        for j0 in range(0, min(d, r0 + BR) if TRIANGULAR else d, BK):
            j = j0 + tl.arange(0, BK).to(tl.int64)
            delta = differences(x, mean, i, j, n, d)
            product += matmul(delta, transposed(root, j, r, d, d), SPLIT)
        total += tl.sum(tl.where((r < d)[None, :], product * product, 0.0), 1)
    tl.store(joint + c * n + i, tl.load(bias + c) - 0.5 * total, mask=i < n)


@triton.jit
def log_sum_kernel(joint, log_sum, n, k, SHARES: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr):
    """log sum_k exp(joint_ki) of BLOCK queries, by tiles of BM components; then, with SHARES, exp(joint - log_sum)."""
    i, _ = place(n, BLOCK)
    queries = i < n
    top = tl.full((BLOCK,), -INF, joint.dtype.element_ty)
    for c0 in range(0, k, BM):
        c = c0 + tl.arange(0, BM).to(tl.int64)
        t = tl.load(joint + c[:, None] * n + i[None, :], mask=(c < k)[:, None] & queries[None, :], other=-INF)
        top = tl.maximum(top, tl.max(tl.where(t == t, t, -INF), 0))  # a NaN shows in the sum
    shift = tl.where((top == -INF) | (top == INF), 0.0, top)  # all -inf: the sum is 0 and its log -inf
    total = tl.zeros((BLOCK,), joint.dtype.element_ty)
    for c0 in range(0, k, BM):
        c = c0 + tl.arange(0, BM).to(tl.int64)
        t = tl.load(joint + c[:, None] * n + i[None, :], mask=(c < k)[:, None] & queries[None, :], other=-INF)
        total += tl.sum(tl.where(t == INF, INF, weight_of(t - shift[None, :])), 0)
    some = (total > 0.0) & (total < INF)
    found = shift + log_normal(tl.where(some, total, 1.0))
    found = tl.where(some, found, tl.where(total == 0.0, -INF, total))  # infinite, or a NaN
    tl.store(log_sum + i, found, mask=queries)
    if SHARES:
        scale = tl.where(total == 0.0, 0.0, divide(total * 0.0 + 1.0, tl.where(total == 0.0, 1.0, total)))
        for c0 in range(0, k, BM):
            c = c0 + tl.arange(0, BM).to(tl.int64)
            inside = (c < k)[:, None] & queries[None, :]
            at = joint + c[:, None] * n + i[None, :]
            t = tl.load(at, mask=inside, other=-INF)
            e = tl.where(t == INF, INF, weight_of(t - shift[None, :]))
            tl.store(at, e * scale[None, :], mask=inside)


@triton.jit
def pull_diagonal_kernel(
    weight, x, mean, pull, offset, out, n, k, d, stride, OFFSET: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr
):  # fmt: skip
    """sum_k w_ki (b_k (x_i - m_k) + o_k) of BM coordinates at BLOCK queries; no weight, no sum."""
    i, group = place(n, BLOCK)
    j = group * BM + tl.arange(0, BM)
    queries, inside = i < n, j < d
    both = inside[:, None] & queries[None, :]
    here = tl.load(x + j[:, None] * n + i[None, :], mask=both, other=0.0)
    total = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    for _ in range(0, k):
        w = tl.load(weight + i, mask=queries, other=0.0)[None, :]
        m = tl.load(mean + j, mask=inside, other=0.0)[:, None]
        b = tl.load(pull + j, mask=inside, other=0.0)[:, None]
        total = mad(tl.where(w == 0.0, 0.0, w * (here - m)), b, total)
        if OFFSET:
            total = mad(w, tl.load(offset + j, mask=inside, other=0.0)[:, None], total)
            offset += d
        weight, mean, pull = weight + n, mean + d, pull + stride
    tl.store(out + j[:, None] * n + i[None, :], total, mask=both)


@triton.jit
def pull_kernel(
    weight, x, mean, pull, offset, out, n, k, d, rows, stride,
    OFFSET: tl.constexpr, BLOCK: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """sum_k w_ki (B_k (x_i - m_k) + o_k) of BR rows at BLOCK queries; components without weight there are not read."""
    i, group = place(n, BLOCK)
    r = group * BR + tl.arange(0, BR)
    queries = i < n
    total = tl.zeros((BLOCK, BR), x.dtype.element_ty)
    for _ in range(0, k):
        w = tl.load(weight + i, mask=queries, other=0.0)
        for j0 in range(0, tl.where(any_of(w != 0.0), d, 0), BK):
            j = j0 + tl.arange(0, BK).to(tl.int64)
            delta = differences(x, mean, i, j, n, d)
            scaled = tl.where((w == 0.0)[:, None], 0.0, w[:, None] * delta)
            total += matmul(scaled, transposed(pull, j, r, d, rows), SPLIT)
        if OFFSET:
            total = mad(w[:, None], tl.load(offset + r, mask=r < rows, other=0.0)[None, :], total)
            offset += rows
        weight, mean, pull = weight + n, mean + d, pull + stride
    tl.store(out + r[None, :] * n + i[:, None], total, mask=queries[:, None] & (r < rows)[None, :])


@triton.jit
def moments_kernel(weight, x, mean, sums, n, k, d, span, BLOCK: tl.constexpr, BM: tl.constexpr):
    """sum_i w_ki (1, delta, delta^2), delta = x_i - m_k, of `span` queries: row (part, k) of sums, 1 + 2 d wide."""
    c, j = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64) * BM + tl.arange(0, BM)
    part = tl.program_id(2).to(tl.int64)
    inside = j < d
    m = tl.load(mean + c * d + j, mask=inside, other=0.0).to(tl.float64)
    mass = tl.zeros((BLOCK,), tl.float64)
    first = tl.zeros((BM, BLOCK), tl.float64)
    second = tl.zeros((BM, BLOCK), tl.float64)
    for i0 in range(0, span, BLOCK):
        i = part * span + i0 + tl.arange(0, BLOCK)
        queries = (i0 + tl.arange(0, BLOCK) < span) & (i < n)
        w = tl.load(weight + c * n + i, mask=queries, other=0.0).to(tl.float64)
        here = tl.load(x + j[:, None] * n + i[None, :], mask=inside[:, None] & queries[None, :], other=0.0)
        delta = tl.where((w == 0.0)[None, :], 0.0, here.to(tl.float64) - m[:, None])  # no weight, no sum
        mass += w
        scaled = w[None, :] * delta
        first += scaled
        second = mad(scaled, delta, second)
    row = sums + (part * k + c) * (1 + 2 * d)
    tl.store(row + j * 0, tl.sum(mass, 0) + tl.zeros((BM,), tl.float64), mask=j == 0)
    tl.store(row + 1 + j, tl.sum(first, 1), mask=inside)
    tl.store(row + 1 + d + j, tl.sum(second, 1), mask=inside)


def _stride(matrix: Tensor) -> int:
    """From component to component; 0 where one serves all."""
    return 0 if matrix.shape[0] == 1 else matrix[0].numel()


def _products(x: Tensor, rows: int) -> dict[str, int | str | None]:
    """How products with matrices of so many rows are taken."""
    split = dot_precision(x.dtype is torch.float64)
    return {"BR": min(64, max(16, triton.next_power_of_2(rows))), "BK": BK, "SPLIT": split}


def gaussian_joint(
    x: Tensor, mean: Tensor, root: Tensor, bias: Tensor, triangular: bool, joint: Tensor, log_sum: Tensor, shares: bool
) -> None:
    """As the native binding: `joint` (k, n) and `log_sum` (n,) of x (d, n), from a root (k, d) or (k, d, d, 1)."""
    (d, n), k = x.shape, mean.shape[0]
    if n == 0:
        return
    chosen = configuration("gaussian", x.dtype)
    tile = {"BLOCK": chosen.block, **chosen.options}
    blocks, stride = triton.cdiv(n, chosen.block), _stride(root)
    arguments = x, mean, root, bias, joint, n, k, d, stride
    with launching(x):
        if root.dim() == 2:
            joint_diagonal_kernel[(blocks * triton.cdiv(k, chosen.columns),)](*arguments, BM=chosen.columns, **tile)
        else:
            joint_kernel[(blocks * k,)](*arguments, TRIANGULAR=triangular, **_products(x, d), **tile)
        log_sum_kernel[(blocks,)](joint, log_sum, n, k, SHARES=shares, BM=chosen.columns, **tile)


def gaussian_pull(weight: Tensor, x: Tensor, mean: Tensor, pull: Tensor, offset: Tensor | None, out: Tensor) -> None:
    """As the native binding: `out` (rows, n) of x (d, n), from a matrix (k, d) or (k, rows, d, 1)."""
    (d, n), k, rows = x.shape, mean.shape[0], out.shape[0]
    if n == 0:
        return
    chosen = configuration("gaussian", x.dtype)
    tile = {"BLOCK": chosen.block, "OFFSET": offset is not None, **chosen.options}
    blocks, stride = triton.cdiv(n, chosen.block), _stride(pull)
    arguments = weight, x, mean, pull, mean if offset is None else offset, out, n, k, d
    with launching(x):
        if pull.dim() == 2:
            grid = (blocks * triton.cdiv(d, chosen.columns),)
            pull_diagonal_kernel[grid](*arguments, stride, BM=chosen.columns, **tile)
        else:
            how = _products(x, rows)
            pull_kernel[(blocks * triton.cdiv(rows, how["BR"]),)](*arguments, rows, stride, **how, **tile)


def gaussian_moments(weight: Tensor, x: Tensor, mean: Tensor, mass: Tensor, first: Tensor, second: Tensor) -> None:
    """As the native binding: mass (k,), first and second (k, d) of x (d, n)."""
    (d, n), k = x.shape, mean.shape[0]
    chosen = configuration("gaussian_moments", x.dtype)
    chunks = triton.cdiv(d, chosen.columns)
    parts = max(1, min(triton.cdiv(n, QUERIES_A_PART), triton.cdiv(MOST_PROGRAMS, k * chunks)))
    sums = x.new_empty(parts, k, 1 + 2 * d, dtype=torch.float64)
    tile = {"BLOCK": chosen.block, "BM": chosen.columns, **chosen.options}
    with launching(x):
        moments_kernel[(k, chunks, parts)](weight, x, mean, sums, n, k, d, triton.cdiv(n, parts), **tile)
    total = sums.sum(0)
    for out, found in zip((mass, first, second), (total[:, 0], *total[:, 1:].split(d, 1)), strict=True):
        out.copy_(found)
