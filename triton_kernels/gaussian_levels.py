"""Gaussian mixtures whose queries each have their noise level, in Triton: densities, and sums over components.

As csrc/cuda/gaussian_levels.cu, isotropic and diagonal covariances; x is (d, n) and so are the sums, so that the
numbers of queries lie side by side. Bytes: joint (k, n) is written once, read by its log-sum-exp, then once a block of
coordinates by the sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import divide, log, mad
from .gaussian import log_sum_kernel, place
from .strided import launching


@triton.jit
def level_of(alpha, noise, i, queries, ONE_ALPHA: tl.constexpr, ONE_NOISE: tl.constexpr):
    """alpha and sigma^2 of a block's queries."""
    a = tl.load(alpha + (i * 0 if ONE_ALPHA else i), mask=queries, other=1.0)
    s = tl.load(noise + (i * 0 if ONE_NOISE else i), mask=queries, other=1.0)
    return a, s


@triton.jit
def joint_levels_kernel(
    x, alpha, noise, bias, mean, variance, joint, squared, n, k, d, stride,
    ISOTROPIC: tl.constexpr, DISTANCES: tl.constexpr, ONE_ALPHA: tl.constexpr, ONE_NOISE: tl.constexpr,
    LEAST: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """bias_k - (delta^T C^-1 delta + log det C) / 2, C = a^2 diag(v_k) + s I, of BM components at BLOCK queries."""
    i, group = place(n, BLOCK)
    c = group * BM + tl.arange(0, BM)
    queries, components = i < n, c < k
    both = components[:, None] & queries[None, :]
    a, s = level_of(alpha, noise, i, queries, ONE_ALPHA, ONE_NOISE)
    total = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    log_det = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    regular = tl.full((BM, BLOCK), 1, tl.int32)
    at, m_at, v_at = x + i, mean + c * d, variance + c * stride
    v = tl.load(v_at, mask=components, other=1.0)
    spread = mad((a * a)[None, :], v[:, None], s[None, :])
    for _ in range(0, d):
        m = tl.load(m_at, mask=components, other=0.0)
        t = mad(-a[None, :], m[:, None], tl.load(at, mask=queries, other=0.0)[None, :])
        if ISOTROPIC:
            total = mad(t, t, total)
        else:
            v = tl.load(v_at, mask=components, other=1.0)
            spread = mad((a * a)[None, :], v[:, None], s[None, :])
            total = mad(divide(t, tl.where(both, spread, 1.0)), t, total)
            log_det += log(spread)
            regular = tl.where(spread >= LEAST, regular, 0)
            v_at += 1
        at, m_at = at + n, m_at + 1
    if ISOTROPIC:
        total = divide(total, tl.where(both, spread, 1.0))
        log_det = log(spread) * d
        regular = tl.where(spread >= LEAST, 1, 0)
    b = tl.load(bias + c, mask=components, other=0.0)
    out = c[:, None] * n + i[None, :]
    found = b[:, None] - 0.5 * (total + log_det)
    tl.store(joint + out, tl.where(regular == 1, found, float("nan")), mask=both)
    if DISTANCES:
        tl.store(squared + out, total, mask=both)


@triton.jit
def pull_levels_kernel(
    x, alpha, noise, mean, variance, joint, score, posterior, n, k, d, stride,
    ISOTROPIC: tl.constexpr, SCORE: tl.constexpr, MEAN: tl.constexpr, ONE_ALPHA: tl.constexpr, ONE_NOISE: tl.constexpr,
    BLOCK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """-sum_k r C^-1 delta and sum_k r (m + a v C^-1 delta) of BM coordinates at BLOCK queries; no share, no sum."""
    i, group = place(n, BLOCK)
    j = group * BM + tl.arange(0, BM)
    queries, inside = i < n, j < d
    both = inside[:, None] & queries[None, :]
    a, s = level_of(alpha, noise, i, queries, ONE_ALPHA, ONE_NOISE)
    here = tl.load(x + j[:, None] * n + i[None, :], mask=both, other=0.0)
    slope = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    toward = tl.zeros((BM, BLOCK), x.dtype.element_ty)
    for _ in range(0, k):
        w = tl.load(joint + i, mask=queries, other=0.0)[None, :]
        m = tl.load(mean + j, mask=inside, other=0.0)[:, None]
        v = tl.load(variance + (j * 0 if ISOTROPIC else j), mask=inside, other=1.0)[:, None]
        spread = tl.where(both, mad((a * a)[None, :], v, s[None, :]), 1.0)
        solved = tl.where(w == 0.0, 0.0, divide(mad(-a[None, :], m, here), spread))
        if SCORE:
            slope = mad(w, solved, slope)
        if MEAN:
            toward = mad(w, mad(a[None, :] * v, solved, m), toward)
        joint, mean, variance = joint + n, mean + d, variance + stride
    out = j[:, None] * n + i[None, :]
    if SCORE:
        tl.store(score + out, -slope, mask=both)
    if MEAN:
        tl.store(posterior + out, toward, mask=both)


def gaussian_levels(
    x: Tensor, alpha: Tensor, noise: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, basis: Tensor | None,
    turned: Tensor | None, floor: Tensor | None, log_sum: Tensor, score: Tensor | None, posterior: Tensor | None,
    joint: Tensor, squared: Tensor | None, shares: bool,
) -> None:  # fmt: skip
    """As the native binding: of x (d, n) and variances (k or 1, 1 or d), without a basis."""
    if basis is not None:
        raise ValueError("basis must be None: this backend has no bases")
    (d, n), k = x.shape, mean.shape[0]
    if n == 0:
        return
    chosen = configuration("gaussian", x.dtype)
    rank = variance.shape[1]
    size, blocks = (n, k, d, 0 if variance.shape[0] == 1 else rank), triton.cdiv(n, chosen.block)
    levels = {"ONE_ALPHA": alpha.shape[0] == 1, "ONE_NOISE": noise.shape[0] == 1, "ISOTROPIC": rank == 1}
    tile = {"BLOCK": chosen.block, "BM": chosen.columns, **chosen.options}
    sums = score is not None or posterior is not None
    distances = joint if squared is None else squared
    with launching(x):
        joint_levels_kernel[(blocks * triton.cdiv(k, chosen.columns),)](
            x, alpha, noise, bias, mean, variance, joint, distances, *size,
            DISTANCES=squared is not None, LEAST=torch.finfo(x.dtype).tiny, **levels, **tile,
        )  # fmt: skip
        log_sum_kernel[(blocks,)](joint, log_sum, n, k, SHARES=shares or sums, **tile)
        if sums:
            pull_levels_kernel[(blocks * triton.cdiv(d, chosen.columns),)](
                x, alpha, noise, mean, variance, joint, x if score is None else score,
                x if posterior is None else posterior, *size,
                SCORE=score is not None, MEAN=posterior is not None, **levels, **tile,
            )  # fmt: skip
