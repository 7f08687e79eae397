"""Sums over the components of a Gaussian mixture, tile by tile: distances, shares, score and posterior mean.

Component k of a diffused mixture is N(a mu_k, C_k), C_k = a^2 S_k + s^2 I. What a tile needs of it, with
delta = x - a mu_k, is delta^T C_k^-1 delta, log det C_k, and the vectors C_k^-1 delta and S_k C_k^-1 delta. Full
covariances come as S = Q diag(e) Q^T, low-rank ones as W W^T + t I with W^T W = V diag(g) V^T, so every noise level
costs a pair O(d^2) or O(d r). No array of all queries by all components by d exists, in the backward pass neither:
tiles are computed again there.

The decompositions are constants to autograd, whose own derivative of eigenvectors is infinite where eigenvalues are
equal. Derivatives come through E = Q^T (S - detach S) Q, which is zero: C^-1 and log det C are expanded in it to second
order, so first and second derivatives are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ._op import _functorch_level, _is_compiling

_ELEMENTS = 1 << 17  # of a tile's components x queries x d array
_LOG_2_PI = math.log(2 * math.pi)
SHARES, SCORE, MEAN, DISTANCE = 1, 2, 4, 8


class Factors(NamedTuple):
    """A covariance as tiles take it; every tensor has one row a component, or one row for all.

    isotropic and diag: variances (K,) or (K, d). full: matrices (K, d, d) or None where no derivative is wanted, with
    eigenvectors (K, d, d) and eigenvalues (K, d). lowrank: W (K, d, r), its t (K,), and eigenvectors (K, r, r) and
    eigenvalues (K, r) of W^T W.
    """

    kind: str
    base: Tensor | None
    noise: Tensor | None = None
    vectors: Tensor | None = None
    values: Tensor | None = None

    def cut(self, begin: int, end: int) -> Factors:
        """Those of components begin to end."""
        tensors = (t if t is None or t.shape[0] == 1 else t[begin:end] for t in self[1:])
        return Factors(self.kind, *tensors)

    def to(self, dtype: torch.dtype) -> Factors:
        """In another dtype."""
        return Factors(self.kind, *(None if t is None else t.to(dtype) for t in self[1:]))


class Terms(NamedTuple):
    """What a tile of components says of a tile of queries: (k, n) and, when called, (k, n, d)."""

    squared: Tensor
    log_det: Tensor
    solved: Callable[[], Tensor]
    shrunk: Callable[[], Tensor]


def terms(delta: Tensor, factors: Factors, alpha: Tensor, noise: Tensor) -> Terms:
    """Terms of C = alpha^2 S + noise I at delta (k, n, d); alpha and noise are (n,) or (1,)."""
    square = alpha.square()
    if factors.kind == "isotropic":
        return _isotropic(delta, factors, square, noise)
    if factors.kind == "diag":
        return _diagonal(delta, factors, square, noise)
    return (_full if factors.kind == "full" else _low_rank)(delta, factors, square, noise)


def _isotropic(delta: Tensor, factors: Factors, square: Tensor, noise: Tensor) -> Terms:
    v = factors.base[:, None]  # type: ignore[index]
    c = square * v + noise
    return Terms(
        delta.square().sum(-1) / c,
        delta.shape[-1] * torch.log(c),
        lambda: delta / c[..., None],
        lambda: delta * (v / c)[..., None],
    )


def _diagonal(delta: Tensor, factors: Factors, square: Tensor, noise: Tensor) -> Terms:
    v = factors.base[:, None, :]  # type: ignore[index]
    c = square[:, None] * v + noise[:, None]
    solved = delta / c
    return Terms((delta * solved).sum(-1), torch.log(c).sum(-1), lambda: solved, lambda: solved * v)


def _full(delta: Tensor, factors: Factors, square: Tensor, noise: Tensor) -> Terms:
    q, e = factors.vectors, factors.values[:, None, :]  # type: ignore[index]
    c = square[:, None] * e + noise[:, None]
    u = delta @ q
    change = None if factors.base is None else q.mT @ (factors.base - factors.base.detach()) @ q  # type: ignore[union-attr]
    w, log_det = _solve(u, c, square, change)

    def shrunk() -> Tensor:
        inner = e * w if change is None else e * w + w @ change
        return inner @ q.mT  # type: ignore[union-attr]

    return Terms((u * w).sum(-1), log_det, lambda: w @ q.mT, shrunk)  # type: ignore[union-attr]


def _low_rank(delta: Tensor, factors: Factors, square: Tensor, noise: Tensor) -> Terms:
    # M = c0 I + a^2 W^T W is all that is inverted; with h = M^-1 W^T delta and z = delta - a^2 W h,
    # C^-1 delta = z / c0, and the squared distance is |z|^2 / c0 + a^2 |h|^2: a sum of squares, nothing cancels.
    w, v = factors.base, factors.vectors
    assert w is not None and factors.noise is not None and v is not None and factors.values is not None
    t = factors.noise[:, None]
    c0 = square * t + noise
    gram = w.mT @ w
    change = v.mT @ (gram - gram.detach()) @ v if _tracked(w) else None
    y, log_det = _solve(delta @ w @ v, square[:, None] * factors.values[:, None, :] + c0[..., None], square, change)
    h = y @ v.mT
    z = delta - square[:, None] * (h @ w.mT)
    rest = delta.shape[-1] - w.shape[-1]
    return Terms(
        z.square().sum(-1) / c0 + square * h.square().sum(-1),
        log_det + rest * torch.log(c0),
        lambda: z / c0[..., None],
        lambda: h @ w.mT + z * (t / c0)[..., None],
    )


def _solve(u: Tensor, c: Tensor, square: Tensor, change: Tensor | None) -> tuple[Tensor, Tensor]:
    """(diag(c) + square E)^-1 u and the log determinant, with E = ``change`` to second order."""
    log_det = torch.log(c).sum(-1)
    w = u / c
    if change is None:
        return w, log_det
    a = square[:, None]
    first = a * (w @ change) / c
    second = a * (first @ change) / c
    inverse = 1 / c
    trace = (inverse * change.diagonal(dim1=-2, dim2=-1)[:, None, :]).sum(-1)
    squares = ((inverse @ (change * change.mT)) * inverse).sum(-1)
    return w - first + second, log_det + square * trace - 0.5 * square.square() * squares


def _tracked(t: Tensor) -> bool:
    return t.requires_grad or _transformed()


def _transformed() -> bool:
    return _is_compiling() or bool(_functorch_level()) or torch.autograd.forward_ad._current_level >= 0


def log_sum(logits: Tensor, dim: int) -> Tensor:
    """log sum exp; -inf with gradient zero where all are -inf."""
    top = logits.detach().amax(dim, keepdim=True)
    top = torch.where(top.abs() == torch.inf, 0.0, top)
    total = torch.exp(logits - top).sum(dim)
    some = total != 0
    return torch.where(some, torch.log(torch.where(some, total, 1.0)) + top.squeeze(dim), -torch.inf)


def _shares(logits: Tensor, total: Tensor) -> Tensor:
    return torch.exp(logits - torch.where(total == -torch.inf, 0.0, total))


def component_tiles(k: int, n: int, d: int) -> Iterator[tuple[int, int]]:
    """Ranges of components whose array with n queries fits a tile."""
    step = max(1, _ELEMENTS // max(1, n * d))
    for begin in range(0, k, step):
        yield begin, min(k, begin + step)


def query_rows(n: int, k: int, d: int) -> int:
    """Queries a tile: all components together if they leave it 64 queries, else components are cut as well."""
    return max(1, min(n, max(64, _ELEMENTS // max(1, k * d)), max(1, 8 * _ELEMENTS // max(1, k))))


def _tile(
    outputs: int, kind: str, dtype: torch.dtype, x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor,
    *tensors: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    factors = Factors(kind, *tensors).to(dtype)
    x, alpha, noise, log_w, mean = (t.to(dtype) for t in (x, alpha, noise, log_w, mean))
    n, d = x.shape
    parts: list[tuple[Tensor, ...]] = []
    for begin, end in component_tiles(mean.shape[0], n, d):
        centre = mean[begin:end, None, :]
        delta = x - alpha[:, None] * centre
        found = terms(delta, factors.cut(begin, end), alpha, noise)
        logits = log_w[begin:end, None] - 0.5 * (found.squared + found.log_det + d * _LOG_2_PI)
        total = log_sum(logits, 0)
        share = _shares(logits, total)[:, :, None] if outputs & (SCORE | MEAN) else None
        here = [total]
        if outputs & SCORE:
            here.append(-(share * found.solved()).sum(0))
        if outputs & MEAN:
            here.append((share * (centre + alpha[:, None] * found.shrunk())).sum(0))
        if outputs & SHARES:
            here.append(logits)
        if outputs & DISTANCE:
            here.append(found.squared)
        parts.append(tuple(here))
    totals = torch.stack([p[0] for p in parts])
    total = log_sum(totals, 0)
    results = [total]
    vectors = bool(outputs & SCORE) + bool(outputs & MEAN)
    across = _shares(totals, total)[..., None] if vectors else None
    for i in range(1, 1 + vectors):
        results.append((across * torch.stack([p[i] for p in parts])).sum(0))
    if outputs & SHARES:
        results.append(_shares(torch.cat([p[1 + vectors] for p in parts]), total).mT)
    if outputs & DISTANCE:
        results.append(torch.cat([p[-1] for p in parts]).mT)
    return tuple(results)


def mixture_sums(
    x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor, factors: Factors, outputs: int,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The log density (n,), then score (n, d), posterior mean (n, d), shares (n, K), squared distances (n, K) as asked.

    ``alpha`` and ``noise`` = sigma^2 are (n,) or (1,); ``log_w`` (K,) may hold -inf. Computed in ``dtype``.
    """
    n, d = x.shape
    constants = (log_w, mean, *factors[1:])
    differentiable = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, alpha, noise, *constants)
    )
    rows = n if _is_compiling() else query_rows(n, mean.shape[0], d)
    found = []
    for begin in range(0, max(n, 1), max(rows, 1)):
        own = (t if t.shape[0] == 1 and n != 1 else t[begin : begin + rows] for t in (alpha, noise))
        arguments = (outputs, factors.kind, dtype, x[begin : begin + rows], *own, *constants)
        if differentiable and rows < n and not _transformed():
            tile = checkpoint(_tile, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            tile = _tile(*arguments)
        found.append(tile)
    return found[0] if len(found) == 1 else tuple(torch.cat(parts) for parts in zip(*found, strict=True))
