"""Expectation maximisation for Gaussian mixtures: sums of one pass over the rows, and the parameters they imply.

Second moments are taken about the means of the step before and shifted to the new ones, so nothing cancels once EM
settles. Everything is float64, in tiles; a low-rank step needs S_k W_k alone, never a d x d matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._gaussian_levels import level_sums, takes
from ._gaussian_ops import gaussian_joint, gaussian_moments, row_tiles
from ._gaussian_tiles import _LOG_2_PI, DISTANCE, SHARES, Factors, component_tiles
from ._gaussian_whitened import whiten

_LOST = 1e-12  # share of the weight below which a component has no points to say where it is


class Parameters(NamedTuple):
    """Weights (K,), means (K, d) and the covariance, in float64.

    isotropic, diag and full: one tensor, (K,), (K, d), (K, d, d). tied: (1, d, d). lowrank: W (K, d, r) and t (K,).
    """

    kind: str
    weights: Tensor
    means: Tensor
    covariance: tuple[Tensor, ...]

    def factors(self) -> Factors:
        """A low-rank covariance as tiles take it."""
        first = self.covariance[0]
        values, vectors = torch.linalg.eigh(first.mT @ first)
        return Factors("lowrank", first, self.covariance[1], vectors, values.clamp(min=0.0))


class Sums(NamedTuple):
    """Masses (K,), sums of r (x - mu) (K, d), their second moments by type, and the log-likelihood's sum.

    Second moments of r: isotropic |delta|^2 (K,); diag delta^2 (K, d); full and tied delta delta^T; lowrank delta
    (delta^T W) (K, d, r), with ``square`` = |delta|^2 (K,).
    """

    mass: Tensor
    first: Tensor
    second: Tensor
    square: Tensor
    log_likelihood: float


class Rows(NamedTuple):
    """Rows (n, d) of any float dtype, their weights (n,), and component labels (n,) with -1 for unknown, or None."""

    x: Tensor
    weights: Tensor
    labels: Tensor | None


def expect(rows: Rows, now: Parameters, fixed: Tensor | None = None) -> Sums:
    """The E step: responsibilities, in tiles, and what the M step needs of them.

    A labelled row belongs to its component, and counts log w_k N(x; mu_k, S_k). ``fixed`` (n,) labels all rows.
    """
    k = now.means.shape[0]
    sums = _empty(now)
    total = 0.0
    densities = joint_of(now)
    labels = fixed if fixed is not None else rows.labels
    for begin, end in row_tiles(len(rows.x), k, rows.x.device):
        x, w = rows.x[begin:end].double(), rows.weights[begin:end].double()
        lse, share = densities(x, labels is None)
        if labels is not None:
            label, joint = labels[begin:end], share
            known = label >= 0
            at = label.clamp(min=0)
            share = torch.exp(joint - torch.where(lse == -math.inf, 0.0, lse))
            share = torch.where(known, torch.nn.functional.one_hot(at, k).mT.double(), share)
            lse = torch.where(known, joint.gather(0, at[None])[0], lse)
        total += float((w * lse).sum())
        _accumulate(sums, now, share * w, x)
    return Sums(*sums, total)


def joint_of(now: Parameters) -> Callable[[Tensor, bool], tuple[Tensor, Tensor]]:
    """(x, shares) -> the log densities of points, and the joint ones or the shares (K, points)."""
    d, log_w = now.means.shape[1], torch.log(now.weights)
    if now.kind == "lowrank" and takes(now.kind, now.means):
        factors, one = now.factors(), torch.ones(1, dtype=torch.float64, device="cpu")
        t = factors.noise
        log_det = torch.log(factors.values + t[:, None]).sum(1) + (d - factors.values.shape[1]) * torch.log(t)
        bias = log_w - 0.5 * (log_det + d * _LOG_2_PI)

        def low_rank(x: Tensor, shares: bool) -> tuple[Tensor, Tensor]:
            outputs = SHARES if shares else DISTANCE
            found = level_sums(x, one, 0.0 * one, log_w, now.means, factors, outputs, torch.float64)
            if shares:
                return found["log_prob"], found["responsibilities"].mT
            return found["log_prob"], bias[:, None] - 0.5 * found["mahalanobis"].mT

        return low_rank
    covariance = now.covariance if now.kind == "lowrank" else now.covariance[0]
    white = whiten("full" if now.kind == "tied" else now.kind, covariance, d)
    bias = white.bias(log_w)
    return lambda x, shares: gaussian_joint(x, now.means, white.root, bias, white.triangular, shares)


def _empty(now: Parameters) -> tuple[Tensor, ...]:
    k, d = now.means.shape
    shape = {"isotropic": (k,), "diag": (k, d), "full": (k, d, d), "tied": (1, d, d)}.get(now.kind)
    zeros = [(k,), (k, d), shape if shape is not None else tuple(now.covariance[0].shape), (k,)]
    return tuple(torch.zeros(s, dtype=torch.float64, device="cpu") for s in zeros)


def _accumulate(sums: tuple[Tensor, ...], now: Parameters, share: Tensor, x: Tensor) -> None:
    mass, first, second, square = sums
    if now.kind == "lowrank":
        mass += share.sum(1)
        for i, j in component_tiles(len(mass), len(x), x.shape[1]):
            delta = x - now.means[i:j, None, :]
            scaled = share[i:j, :, None] * delta
            first[i:j] += scaled.sum(1)
            second[i:j] += scaled.mT @ (delta @ now.covariance[0][i:j])
            square[i:j] += (scaled * delta).sum((1, 2))
        return
    here = gaussian_moments(share, x, now.means, now.kind in ("full", "tied"))
    mass += here[0]
    first += here[1]
    second += here[2].sum(1) if now.kind == "isotropic" else here[2].sum(0) if now.kind == "tied" else here[2]


def maximise(sums: Sums, last: Parameters, floor: float) -> Parameters:
    """The M step: maximises the expected log-likelihood with no variance in any direction below ``floor``.

    Clipping the eigenvalues at the floor is that maximum (isotropic, diag, full, tied), so the likelihood never falls;
    lowrank takes one step of EM in the latent variables (Tipping and Bishop 1999, appendix), which raises it too.
    """
    mass = sums.mass
    lost = ~(mass > _LOST * mass.sum())
    safe = torch.where(lost, 1.0, mass)
    shift = torch.where(lost[:, None], 0.0, sums.first / safe[:, None])
    means = last.means + shift
    weights = mass.clamp(min=torch.finfo(torch.float64).tiny) / mass.sum()
    kind, d = last.kind, last.means.shape[1]
    if kind == "isotropic":
        found: tuple[Tensor, ...] = ((sums.second / safe / d - shift.square().mean(1)).clamp(min=floor),)
    elif kind == "diag":
        found = ((sums.second / safe[:, None] - shift.square()).clamp(min=floor),)
    elif kind == "full":
        found = (clipped(sums.second / safe[:, None, None] - shift[:, :, None] * shift[:, None, :], floor),)
    elif kind == "tied":
        between = (shift * mass[:, None]).mT @ shift
        found = (clipped((sums.second - between) / mass.sum(), floor),)
    else:
        found = _low_rank_step(sums, last, safe, shift, floor)
    if kind != "tied":
        keep = [lost.reshape(-1, *(1,) * (t.dim() - 1)) for t in found]
        found = tuple(torch.where(m, old, new) for m, old, new in zip(keep, last.covariance, found, strict=True))
    return Parameters(kind, weights, means, found)


def _low_rank_step(sums: Sums, last: Parameters, safe: Tensor, shift: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    # With A the covariance of the rows and M = W^T W + t I: W' = A W (t I + M^-1 W^T A W)^-1 and
    # t' = tr(A - A W M^-1 W'^T) / d. All of A that is needed is A W and its trace.
    w, t = last.covariance
    d, rank = w.shape[1:]
    unit = torch.eye(rank, dtype=torch.float64, device="cpu")
    aw = sums.second / safe[:, None, None] - shift[:, :, None] * (shift[:, None, :] @ w)
    trace = sums.square / safe - shift.square().sum(1)
    m = w.mT @ w + t[:, None, None] * unit
    inner = t[:, None, None] * unit + torch.linalg.solve(m, w.mT @ aw)
    new = torch.linalg.solve(inner, aw, left=False)
    fitted = (aw * torch.linalg.solve(m, new, left=False)).sum((1, 2))
    return new, ((trace - fitted) / d).clamp(min=floor)


def clipped(covariance: Tensor, floor: float) -> Tensor:
    """Symmetric matrices with their eigenvalues raised to ``floor`` where they are below.

    What is below d eps of the largest is rounding (as in numpy.linalg.matrix_rank), and no Cholesky factor survives it.
    """
    covariance = 0.5 * (covariance + covariance.mT)
    values, vectors = torch.linalg.eigh(covariance)
    low = (values[..., -1:] * (values.shape[-1] * torch.finfo(values.dtype).eps)).clamp(min=floor)
    if bool((values >= low).all()):
        return covariance
    return (vectors * torch.maximum(values, low)[..., None, :]) @ vectors.mT


def n_parameters(kind: str, k: int, d: int, rank: int) -> int:
    """Free parameters of a mixture: covariances, means and weights."""
    each = {
        "isotropic": k,
        "diag": k * d,
        "full": k * d * (d + 1) // 2,
        "tied": d * (d + 1) // 2,
        "lowrank": k * (d * rank - rank * (rank - 1) // 2 + 1),
    }
    return each[kind] + k * d + k - 1
