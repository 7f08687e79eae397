"""Gaussian mixtures at one noise level, through the kernels: a root A_k of each inverse covariance, then their sums.

A_k^T A_k = C_k^-1 with C_k = a^2 S_k + s^2 I. Full covariances are factored once a call (A_k is the inverse of a
Cholesky factor), which is differentiable where eigenvectors are not. Of low-rank ones C_k = c_0 I + a^2 W W^T it is
Andrews' root (AIAA J. 6, 1968): with the Cholesky factor L of M = c_0 I + a^2 W^T W,

    A_k = (I - a^2 W (L^T + c_0^(1/2) I)^-1 L^-1 W^T) / c_0^(1/2),

whose rounding errors grow with the root of C_k's condition only, as d x d matrices formed first would not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._gaussian_ops import gaussian_joint, gaussian_log_sum, gaussian_pull, row_tiles
from ._gaussian_tiles import _LOG_2_PI, DISTANCE, MEAN, SCORE, SHARES


class Whitened(NamedTuple):
    """Roots (K, d) or (K, d, d), lower triangular if full, and log det C (K,); one component, or one for all.

    low rank: C^-1 and S C^-1 besides.
    """

    root: Tensor
    log_det: Tensor
    inverse: Tensor | None = None
    shrink: Tensor | None = None

    @property
    def triangular(self) -> bool:
        """Whether the roots are lower triangular matrices."""
        return self.root.dim() == 3 and self.inverse is None

    def precision(self) -> Tensor:
        """C^-1, diagonal or dense."""
        if self.inverse is not None:
            return self.inverse
        return self.root.mT @ self.root if self.triangular else self.root.square()

    def bias(self, log_w: Tensor) -> Tensor:
        """log w_k - log sqrt det(2 pi C_k), (K,)."""
        return log_w - 0.5 * (self.log_det + self.root.shape[-1] * _LOG_2_PI)


def whiten(kind: str, covariance: Any, dim: int, square: Any = 1.0, noise: Any = 0.0) -> Whitened:
    """Roots of the inverses of square S + noise I for isotropic (K,), diag (K, d) or full (K, d, d) covariances S.

    lowrank: S as a pair W (K, d, r), t (K,). NaN where that is not positive definite.
    """
    if kind == "lowrank":
        return _whiten_low_rank(*covariance, square, noise)
    if kind == "full":
        unit = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
        factor = _cholesky(square * covariance + noise * unit)
        root = torch.linalg.solve_triangular(factor, unit.expand_as(factor), upper=False)
        return Whitened(root, 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1))
    c = square * covariance + noise
    if kind == "isotropic":
        return Whitened(torch.rsqrt(c)[:, None].expand(-1, dim), dim * torch.log(c))
    return Whitened(torch.rsqrt(c), torch.log(c).sum(-1))


def root_pays(n: Any, dim: int) -> bool:
    """Whether n points at a noise level are faster by d x d roots of their own than by tiles.

    Measured on a CPU at 10 to 100 components, of rank d / 8 if low. A tile takes O(d r) a pair if low-rank, and full
    covariances' eigenvectors serve every level; few points do not pay back what the roots cost.
    """
    return dim <= 128 and not (isinstance(n, int) and 16 * n < dim * dim)


def _cholesky(matrix: Tensor) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.where((failed == 0)[:, None, None], factor, torch.nan)


def _whiten_low_rank(w: Tensor, t: Tensor, square: Any, noise: Any) -> Whitened:
    d, rank = w.shape[1:]
    c = (square * t + noise)[:, None, None]
    half = torch.sqrt(c)
    unit, small = (torch.eye(n, dtype=w.dtype, device=w.device) for n in (d, rank))
    factor = _cholesky(square * (w.mT @ w) + c * small)
    solved = torch.linalg.solve_triangular(factor, w.mT, upper=False)
    inner = torch.linalg.solve_triangular(factor.mT + half * small, solved, upper=True)
    root = (unit - square * (w @ inner)) / half
    log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1) + (d - rank) * torch.log(c[:, 0, 0])
    within = solved.mT @ solved  # W M^-1 W^T
    inverse = (unit - square * within) / c
    return Whitened(root, log_det, inverse, within + t[:, None, None] * inverse)


def whitened_sums(
    x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, mean: Tensor, kind: str, covariance: Any, outputs: int,
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
        if white.shrink is not None:
            shrink = alpha * white.shrink
        elif kind == "full":
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
