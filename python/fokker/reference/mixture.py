"""Gaussian mixtures in plain PyTorch: dense covariances in float64, one Cholesky factor a query and component.

The meaning of `fokker.mixture`, not a way to go: everything holds an N x K x d x d array at worst. ``means`` (K, d),
``covariances`` (K, d, d), ``weights`` (K,) (scaled to sum to one); ``alpha`` and ``sigma`` are tensors or numbers that
broadcast to the batch of ``x`` (..., d).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def dense(covariance: Any, covariance_type: str, dim: int) -> Tensor:
    """Covariance matrices (..., d, d) in float64 of any covariance type."""
    unit = torch.eye(dim, dtype=torch.float64)
    if covariance_type == "lowrank":
        w, t = (a.double() for a in covariance)
        return w @ w.mT + t[..., None, None] * unit
    c = covariance.double()
    if covariance_type == "isotropic":
        return c[..., None, None] * unit
    return torch.diag_embed(c) if covariance_type == "diag" else c


def _solved(
    x: Tensor, means: Tensor, covariances: Tensor, alpha: Any, sigma: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # delta (..., K, d), C^-1 delta, log det C (..., K), alpha (..., 1, 1)
    x, means, covariances = x.double(), means.double(), covariances.double()
    batch = x.shape[:-1]
    a, s = (torch.as_tensor(v, dtype=torch.float64).expand(batch)[..., None] for v in (alpha, sigma))
    unit = torch.eye(x.shape[-1], dtype=torch.float64)
    c = (a**2)[..., None, None] * covariances + (s**2)[..., None, None] * unit
    delta = x[..., None, :] - a[..., None] * means
    root = torch.linalg.cholesky(c)
    solved = torch.cholesky_solve(delta[..., None], root)[..., 0]
    return delta, solved, 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1), a[..., None]


def log_joint(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, alpha: Any = 1.0, sigma: Any = 0.0
) -> Tensor:
    """log w_k N(x; alpha mu_k, alpha^2 S_k + sigma^2 I), (..., K)."""
    delta, solved, log_det, _ = _solved(x, means, covariances, alpha, sigma)
    w = weights.double()
    constant = x.shape[-1] * math.log(2 * math.pi)
    return torch.log(w / w.sum()) - 0.5 * ((delta * solved).sum(-1) + log_det + constant)


def log_prob(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, alpha: Any = 1.0, sigma: Any = 0.0
) -> Tensor:
    """log p(x), (...)."""
    return torch.logsumexp(log_joint(x, means, covariances, weights, alpha, sigma), -1)


def responsibilities(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, alpha: Any = 1.0, sigma: Any = 0.0
) -> Tensor:
    """Posterior probabilities of the components, (..., K)."""
    return torch.softmax(log_joint(x, means, covariances, weights, alpha, sigma), -1)


def score(x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
    """grad log p(x), (..., d)."""
    r = responsibilities(x, means, covariances, weights, alpha, sigma)
    return -(r[..., None] * _solved(x, means, covariances, alpha, sigma)[1]).sum(-2)


def posterior_mean(
    x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, alpha: Any = 1.0, sigma: Any = 0.0
) -> Tensor:
    """E[x_0 | x], (..., d)."""
    r = responsibilities(x, means, covariances, weights, alpha, sigma)
    _, solved, _, a = _solved(x, means, covariances, alpha, sigma)
    shrunk = (covariances.double() @ solved[..., None])[..., 0]
    return (r[..., None] * (means.double() + a * shrunk)).sum(-2)


def mahalanobis(x: Tensor, means: Tensor, covariances: Tensor, alpha: Any = 1.0, sigma: Any = 0.0) -> Tensor:
    """Mahalanobis distances, (..., K)."""
    delta, solved, _, _ = _solved(x, means, covariances, alpha, sigma)
    return torch.sqrt((delta * solved).sum(-1))


# ---- the sums that everything is made of, of differences delta_ki = x_i - m_k ----------------------------------------
def _deltas(x: Tensor, means: Tensor) -> Tensor:
    return x.double() - means.double()[:, None, :]


def _apply(matrix: Tensor, delta: Tensor) -> Tensor:
    # diagonal (K, d) or (K, rows, d), or one for all, at (K, N, d)
    matrix = matrix.double()
    return matrix[:, None, :] * delta if matrix.dim() == 2 else delta @ matrix.mT


def joint(
    x: Tensor, means: Tensor, root: Tensor, bias: Tensor, triangular: bool, shares: bool
) -> tuple[Tensor, Tensor]:
    """log sum_k exp(l_ki) (N,), and l_ki = b_k - |A_k delta_ki|^2 / 2 or its softmax over k (K, N)."""
    root = root.tril() if triangular and root.dim() == 3 else root
    logits = bias.double()[:, None] - 0.5 * _apply(root, _deltas(x, means)).square().sum(-1)
    top = logits.detach().amax(0)
    top = torch.where(top.abs() == torch.inf, 0.0, top)
    total = torch.exp(logits - top).sum(0)
    some = total != 0
    log_sum = torch.where(some, torch.log(torch.where(some, total, 1.0)) + top, -torch.inf)
    found = torch.exp(logits - torch.where(some, log_sum, 0.0)) if shares else logits
    return log_sum.to(x.dtype), found.to(x.dtype)


def log_sum(x: Tensor, means: Tensor, root: Tensor, bias: Tensor, triangular: bool) -> Tensor:
    """log sum_k exp(b_k - |A_k delta_ki|^2 / 2), (N,)."""
    return joint(x, means, root, bias, triangular, False)[0]


def pull(weight: Tensor, x: Tensor, means: Tensor, matrix: Tensor, offset: Tensor | None) -> Tensor:
    """sum_k w_ki (B_k delta_ki + o_k), (N, rows)."""
    vectors = _apply(matrix, _deltas(x, means))
    if offset is not None:
        vectors = vectors + offset.double()[:, None, :]
    return (weight.double()[..., None] * vectors).sum(0).to(x.dtype)


def moments(weight: Tensor, x: Tensor, means: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i w_ki (K,), sum_i w_ki delta_ki (K, d), and second moments (K, d) or (K, d, d)."""
    delta = _deltas(x, means)
    scaled = weight.double()[..., None] * delta
    second = scaled.mT @ delta if full else (scaled * delta).sum(1)
    return tuple(t.to(x.dtype) for t in (weight.double().sum(1), scaled.sum(1), second))


def levels(
    x: Tensor, alpha: Tensor, noise: Tensor, bias: Tensor, means: Tensor, variance: Tensor, basis: Tensor | None,
    floor: Tensor | None, outputs: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Sums over components N(a_i m_k, a_i^2 S_k + s_i I), s = ``noise``, with b_k = ``bias`` for log w_k.

    S_k is diag(v_k), or P_k diag(v_k) P_k^T with orthonormal P_k = ``basis``, or with a ``floor`` P_k P_k^T + t_k I,
    whose columns are orthogonal. log sum_k exp(b_k - (delta^T C^-1 delta + log det C) / 2) (N,), then score (N, d),
    posterior mean (N, d), shares (K, N) and squared distances (K, N), each empty unless its bit 2, 4, 1, 8 is set.
    """
    a, s = (t.double().expand(x.shape[0])[:, None] for t in (alpha, noise))
    delta = x.double() - a * means.double()[:, None, :]
    v = variance.double()[:, None, :]
    p = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)[None] if basis is None else basis.double()
    if floor is None:
        v = v.expand(*v.shape[:2], x.shape[1])
        c = a**2 * v + s
        along = delta @ p
        squared, log_det = (along**2 / c).sum(-1), torch.log(c).sum(-1)
        solved, shrunk = (along / c) @ p.mT, (v * along / c) @ p.mT
    else:
        t = floor.double()[:, None, None]
        c0 = a**2 * t + s
        c = c0 + a**2 * v
        inner = (delta @ p / c) @ p.mT
        solved = (delta - a**2 * inner) / c0
        shrunk = inner + t * solved
        squared = c0[..., 0] * solved.square().sum(-1) + (a[:, 0] * (delta @ p / c).norm(dim=-1)) ** 2
        log_det = torch.log(c).sum(-1) + (x.shape[1] - v.shape[-1]) * torch.log(c0[..., 0])
    logits = bias.double()[:, None] - 0.5 * (squared + log_det)
    total = torch.logsumexp(logits, 0)
    shares = torch.exp(logits - torch.where(total == -torch.inf, 0.0, total))
    score = -(shares[..., None] * solved).sum(0)
    posterior = (shares[..., None] * (means.double()[:, None, :] + a * shrunk)).sum(0)
    found = (score, posterior, shares, squared)
    wanted = (t if outputs & bit else t.new_empty(0) for t, bit in zip(found, (2, 4, 1, 8), strict=True))
    return tuple(t.to(x.dtype) for t in (total, *wanted))
