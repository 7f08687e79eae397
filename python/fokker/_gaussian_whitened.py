"""Gaussian mixtures at one noise level, through the kernels: a root A_k of each inverse covariance, then their sums.

A_k^T A_k = C_k^-1 with C_k = a^2 S_k + s^2 I. Full covariances are factored once a call (A_k is the inverse of a
Cholesky factor), which is differentiable where eigenvectors are not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._gaussian_ops import gaussian_joint, gaussian_log_sum, gaussian_pull, row_tiles
from ._gaussian_tiles import _LOG_2_PI, DISTANCE, MEAN, SCORE, SHARES


class Whitened(NamedTuple):
    """Roots (K, d) or lower triangular (K, d, d), and log det C (K,); one component, or one for all."""

    root: Tensor
    log_det: Tensor

    @property
    def triangular(self) -> bool:
        """Whether the roots are matrices."""
        return self.root.dim() == 3

    def precision(self) -> Tensor:
        """C^-1, diagonal or dense."""
        return self.root.mT @ self.root if self.triangular else self.root.square()

    def bias(self, log_w: Tensor) -> Tensor:
        """log w_k - log sqrt det(2 pi C_k), (K,)."""
        return log_w - 0.5 * (self.log_det + self.root.shape[-1] * _LOG_2_PI)


def whiten(kind: str, covariance: Tensor, dim: int, square: Any = 1.0, noise: Any = 0.0) -> Whitened:
    """Roots of the inverses of square S + noise I for isotropic (K,), diag (K, d) or full (K, d, d) covariances S.

    NaN where that is not positive definite.
    """
    if kind == "full":
        unit = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
        factor, failed = torch.linalg.cholesky_ex(square * covariance + noise * unit)
        factor = torch.where((failed == 0)[:, None, None], factor, torch.nan)
        root = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
        return Whitened(root, 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1))
    c = square * covariance + noise
    if kind == "isotropic":
        return Whitened(torch.rsqrt(c)[:, None].expand(-1, dim), dim * torch.log(c))
    return Whitened(torch.rsqrt(c), torch.log(c).sum(-1))


def whitened_sums(
    x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor, kind: str, covariance: Tensor, outputs: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:  # fmt: skip
    """What `fokker.mixture.evaluate` is asked for, by name, with squared distances; alpha and noise = sigma^2 (1,)."""
    n, d = x.shape
    k = mean.shape[0]
    white = whiten(kind, covariance, d, alpha.square(), noise)
    x, root, bias, centre = (t.to(dtype) for t in (x, white.root, white.bias(log_w), alpha * mean))
    found: dict[str, Tensor] = {}
    if not outputs:
        return {"log_prob": gaussian_log_sum(x, centre, root, bias, white.triangular)}
    if outputs & DISTANCE:
        zero = torch.zeros_like(bias)
        tiles = row_tiles(n, k, x.device)
        joint = [gaussian_joint(x[i:j], centre, root, zero, white.triangular, False)[1] for i, j in tiles]
        found["mahalanobis"] = -2 * torch.cat(joint, 1).mT
        outputs &= ~DISTANCE
    precision = white.precision() if outputs & (SCORE | MEAN) else None
    pulls: dict[str, tuple[Tensor, Tensor | None]] = {}
    if outputs & SCORE:
        pulls["score"] = (-precision).to(dtype), None  # type: ignore[operator]
    if outputs & MEAN:
        if kind == "full":
            shrink = alpha * (covariance @ precision)
        else:
            shrink = alpha * precision * (covariance[:, None] if kind == "isotropic" else covariance)  # type: ignore[operator]
        pulls["posterior_mean"] = shrink.to(dtype), mean.to(dtype)
    parts: dict[str, list[Tensor]] = {}
    for i, j in row_tiles(n, k, x.device):
        rows = x[i:j]
        log_sum, shares = gaussian_joint(rows, centre, root, bias, white.triangular, True)
        here = {"log_prob": log_sum}
        if outputs & SHARES:
            here["responsibilities"] = shares.mT
        for name, (matrix, offset) in pulls.items():
            here[name] = gaussian_pull(shares, rows, centre, matrix, offset)
        for name, value in here.items():
            parts.setdefault(name, []).append(value)
    return found | {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in parts.items()}
