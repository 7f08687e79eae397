"""Scores of ensembles against an observation: CRPS by one sort, the energy score by tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._pairwise_arguments import choice, compute_dtype, give, simplex, takes_reference, tensor
from ._pairwise_tiles import distance_sums, within_sums
from .reference import pairwise as reference

__all__ = ["crps", "energy_score"]

SCORES = ("plain", "fair", "almost_fair")


def _ensemble(
    function: str, ensemble: Any, observation: Any, weights: Any, estimator: str, alpha: float, features: int
) -> tuple[Tensor, Tensor, Tensor | None, torch.Size, torch.dtype, bool]:
    choice(function, "estimator", estimator, SCORES)
    if not 0 <= alpha <= 1:
        raise ValueError(f"{function}: alpha must be in [0, 1], got {alpha}")
    numpy = not isinstance(ensemble, Tensor) and not isinstance(observation, Tensor)
    x = tensor(function, "ensemble", ensemble)
    y = tensor(function, "observation", observation, x.device)
    shape = "(..., M, d)" if features else "(..., M)"
    if x.dim() < 1 + features or y.dim() < features or (features and x.shape[-1] != y.shape[-1]):
        want = f"ensemble {shape} and observation {shape.replace(' M,', '').replace(', M', '')}"
        raise ValueError(f"{function}: wants {want}, got {tuple(x.shape)} and {tuple(y.shape)}")
    x, y = x.movedim(-1 - features, -1), y  # members last
    members, least = x.shape[-1], 1 if estimator == "plain" else 2
    if members < least:
        raise ValueError(f"{function}: estimator={estimator!r} needs at least {least} member(s), got {members}")
    dtype, compute = compute_dtype(x, y)
    try:
        batch = torch.broadcast_shapes(x.shape[:-1], y.shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: the batches of ensemble and observation do not broadcast together: "
            f"{tuple(x.shape[:-1])} and {tuple(y.shape)}"
        ) from None
    w = None
    if weights is not None:
        lead = batch[: len(batch) - features]
        w = simplex(function, "weights", weights, (*lead, members), x.device).reshape(-1, members)
    return x.to(compute).expand(*batch, members), y.to(compute).expand(batch), w, batch, dtype, numpy


def crps(
    ensemble: Any,
    observation: Any,
    *,
    estimator: str = "fair",
    alpha: float = 0.95,
    weights: Any = None,
) -> Any:
    r"""The continuous ranked probability score of an ensemble, E|X - y| - s / 2 E|X - X'|; lower is better.

    plain: s = 1, the score of the empirical law, int (F - 1{y <= z})^2 dz (Gneiting and Raftery 2007). fair: over pairs
    of different members, s = M / (M - 1): its expectation does not depend on M (Ferro 2014). almost_fair: alpha fair +
    (1 - alpha) plain, the loss of Lang et al. (arXiv 2412.15832), under which no member can run away unpunished.

    Args:
        ensemble: members last, ``(..., M)``.
        observation: ``(...)``.
        estimator: "fair", "almost_fair" or "plain".
        alpha: of almost_fair, in [0, 1].
        weights: ``(..., M)``, >= 0, scaled to sum to one (then 1 / (1 - sum w^2) stands for M / (M - 1)); None for
            equal ones.

    Returns:
        ``(...)``: by one sort, O(M log M), as a sum of gaps times factors that are not negative, so nothing cancels.
        Differentiable in ensemble, observation and weights. A NaN touches its own score.

    Raises:
        ValueError: shapes that do not fit, fewer than two members (one if plain), alpha outside [0, 1], weights that
            are negative or all zero, an unknown estimator.
        TypeError: complex, sparse or unlike devices.
    """
    x, y, w, batch, dtype, numpy = _ensemble("crps", ensemble, observation, weights, estimator, alpha, 0)
    members = x.shape[-1]
    x, y = x.reshape(-1, members), y.reshape(-1, 1)
    mass = w if w is not None else torch.full_like(x[:1], 1.0 / members, dtype=torch.float64)
    factor = reference.spread_factor(mass, estimator, alpha)
    if takes_reference():
        value = reference.energy_score(x[..., None], y[..., None], mass.expand(x.shape), factor)
    else:
        z, order = torch.cat([x, y], 1).sort(dim=1)
        gap = (z[:, 1:] - z[:, :-1]).double()
        after = (order == members).cumsum(1)[:, :-1] > 0  # gaps that lie above the observation
        if w is None:
            # the distribution function at a gap is the number of members below it
            below = torch.arange(members + 1, dtype=torch.float64, device=x.device) / members
            lower, upper = _gap_factors(below, factor)
            value = (gap * torch.where(after, upper[:-1], lower[1:])).sum(1)
        else:
            below = torch.cat([w, torch.zeros_like(w[:, :1])], 1).gather(1, order).cumsum(1)[:, :-1]
            lower, upper = _gap_factors(below, factor[:, None])
            value = (gap * torch.where(after, upper, lower)).sum(1)
    return give(value.to(dtype).reshape(batch), numpy)


def _gap_factors(below: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    # d/dz of E|X - y| - s / 2 E|X - X'| along a gap: F - s F (1 - F) below the observation, 1 - F - s F (1 - F) above
    spread = factor * below * (1.0 - below)
    return below - spread, 1.0 - below - spread


def energy_score(
    ensemble: Any,
    observation: Any,
    *,
    estimator: str = "fair",
    alpha: float = 0.95,
    weights: Any = None,
) -> Any:
    r"""The energy score of an ensemble of vectors, E|X - y| - s / 2 E|X - X'| (Gneiting and Raftery 2007).

    `crps` for d > 1, with the same estimators, arguments and errors.

    Args:
        ensemble: ``(..., M, d)``.
        observation: ``(..., d)``.
        estimator, alpha, weights: as in `crps`; weights ``(..., M)``.

    Returns:
        ``(...)``: summed in float64. Differentiable in ensemble, observation and weights.
    """
    x, y, w, batch, dtype, numpy = _ensemble("energy_score", ensemble, observation, weights, estimator, alpha, 1)
    members, d = x.shape[-1], x.shape[-2]
    x, y = x.mT.reshape(-1, members, d), y.reshape(-1, 1, d)
    mass = torch.full(x.shape[:2], 1.0 / members, dtype=torch.float64, device=x.device) if w is None else w
    factor = reference.spread_factor(mass, estimator, alpha)
    if takes_reference():
        value = reference.energy_score(x, y, mass, factor)
    else:
        spread = within_sums(x, mass)
        value = distance_sums(y, x, mass)[:, 0] - 0.5 * factor * spread
    return give(value.to(dtype).reshape(batch[:-1]), numpy)
