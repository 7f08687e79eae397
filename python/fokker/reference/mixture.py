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
