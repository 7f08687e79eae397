"""What is a sum of distances over pairs: energy distance, distance covariance, and the scores of ensembles."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._pairwise_arguments import (
    HALVES,
    choice,
    clouds,
    compute_dtype,
    distinct,
    give,
    simplex,
    takes_reference,
    tensor,
)
from ._pairwise_tiles import centred_products, distance_sums
from .reference import pairwise as reference

__all__ = [
    "crps",
    "distance_correlation",
    "distance_covariance",
    "energy_distance",
    "energy_score",
    "joint_distance_covariance",
]

ESTIMATORS = ("biased", "unbiased")
SCORES = ("plain", "fair", "almost_fair")


def energy_distance(x: Any, y: Any, *, estimator: str = "biased", x_weights: Any = None, y_weights: Any = None) -> Any:
    r"""The energy distance of two samples, 2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013).

    The biased one is that of the two empirical laws: never negative, 0 only where they are equal (its root is a
    metric). "unbiased" leaves out the pairs i = j and divides by the weight of the others; it can be negative.

    Args:
        x: ``(..., N, d)``.
        y: ``(..., M, d)``.
        estimator: "biased" or "unbiased".
        x_weights: ``(..., N)``, >= 0, scaled to sum to one; None for equal ones.
        y_weights: ``(..., M)``, likewise.

    Returns:
        ``(...)`` in the dtype of x and y, summed in float64. d = 1: 2 int (F - G)^2 by one sort, O((N + M) log), where
        nothing cancels; d > 1: by tiles, O(N + M) memory. Differentiable twice (0 for the direction of equal points).

    Raises:
        ValueError: shapes that do not fit, weights that are negative or all zero, an empty sample, an unknown
            estimator, "unbiased" with fewer than two points.
        TypeError: complex, sparse or unlike devices.
    """
    choice("energy_distance", "estimator", estimator, ESTIMATORS)
    unbiased = estimator == "unbiased"
    names = {"x_weights": x_weights, "y_weights": y_weights}
    c = clouds("energy_distance", {"x": x, "y": y}, names, 2 if unbiased else 1)
    z, w = c.points, (c.mass(0), c.mass(1))
    if takes_reference():
        return c.restore(reference.energy_distance(*z, *w, unbiased))
    if z[0].shape[2] == 1:
        total, within = _energy_line(z[0][..., 0], z[1][..., 0], *w)
        if unbiased:  # E|x - x'| over i != j is larger by the share of the pairs i = j
            for k in range(2):
                share = distinct(c.weights[k], z[k].shape[1])
                total = total - within[k] * (1.0 - share) / share
        return c.restore(total)
    between = (w[0] * distance_sums(z[0], z[1], w[1])).sum(-1)
    for k in range(2):
        within_k = (w[k] * distance_sums(z[k], z[k], w[k])).sum(-1)
        between = between - 0.5 * (within_k / distinct(c.weights[k], z[k].shape[1]) if unbiased else within_k)
    return c.restore(2.0 * between)


def _energy_line(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    # 2 int (F - G)^2, and E|x - x'| = 2 int F (1 - F) of each
    z, order = torch.cat([x, y], 1).double().sort(dim=1)
    gap = z[:, 1:] - z[:, :-1]
    f = torch.cat([a, torch.zeros_like(b)], 1).gather(1, order).cumsum(1)[:, :-1]
    g = torch.cat([torch.zeros_like(a), b], 1).gather(1, order).cumsum(1)[:, :-1]
    total = 2.0 * ((f - g).square() * gap).sum(1)
    return total, (2.0 * (f * (1.0 - f) * gap).sum(1), 2.0 * (g * (1.0 - g) * gap).sum(1))


def _joint(function: str, variables: dict[str, Any], c: float, estimator: str) -> tuple[Any, Tensor]:
    choice(function, "estimator", estimator, ESTIMATORS)
    unbiased = estimator == "unbiased"
    found = [clouds(function, {name: v}) for name, v in variables.items()]
    first = found[0]
    for name, other in zip(variables, found, strict=True):
        if other.batch != first.batch or other.points[0].shape[1] != first.points[0].shape[1]:
            raise ValueError(
                f"{function}: {name} must hold one point for each of {next(iter(variables))}, in the same batch; got "
                f"{(*other.batch, *other.points[0].shape[1:])} and {(*first.batch, *first.points[0].shape[1:])}"
            )
    n = first.points[0].shape[1]
    if unbiased and n < 4:
        raise ValueError(f"{function}: estimator='unbiased' needs at least 4 points, got {n}")
    dtype = functools.reduce(torch.promote_types, (v.dtype for v in found))
    z = [v.points[0].to(torch.float32 if dtype in HALVES else dtype) for v in found]
    numpy = all(v.numpy for v in found)

    def restore(value: Tensor) -> Any:
        return give(value.to(dtype).reshape(first.batch), numpy)

    if takes_reference():
        return restore, reference.joint_distance_covariance(z, c, unbiased)
    ones = torch.ones(z[0].shape[:2], dtype=torch.float64, device=z[0].device)
    sums = torch.stack([distance_sums(v, v, ones) for v in z], -1)
    centres = reference.centres(sums, unbiased)
    rows = centred_products(torch.cat(z, -1), centres, tuple(v.shape[2] for v in z), c, unbiased)
    return restore, rows.sum(-1) / (n * (n - 3) if unbiased else n * n)


def _root(square: Tensor) -> Tensor:
    some = square > 0
    return torch.where(square.isnan(), square, torch.where(some, torch.sqrt(torch.where(some, square, 1.0)), 0.0))


def _squared(function: str, squared: bool, estimator: str) -> None:
    if estimator == "unbiased" and not squared:
        raise ValueError(f"{function}: estimator='unbiased' estimates the square: it needs squared=True")


def distance_covariance(x: Any, y: Any, *, estimator: str = "biased", squared: bool = False) -> Any:
    r"""The distance covariance of paired samples (Szekely, Rizzo and Bakirov 2007).

        dCov^2 = 1 / N^2 sum_ij A_ij B_ij,  A_ij = a_ij - mean_j a_ij - mean_i a_ij + mean_ij a_ij, a_ij = |x_i - x_j|;

    0 only where x and y are independent in the sample's law. "unbiased" is the U-centred estimate of the square
    (Szekely and Rizzo 2014), which can be negative.

    Args:
        x: ``(..., N, d)``.
        y: ``(..., N, e)``, row i belonging to row i of x.
        estimator: "biased", or "unbiased" (N >= 4, squared only).
        squared: return dCov^2 instead of dCov.

    Returns:
        ``(...)``; products are summed after centring, in float64, by tiles: O(N) memory. Differentiable twice in x and
        y; the root's gradient at 0 is taken as 0.

    Raises:
        ValueError: unequal numbers of points, too few of them, an unknown estimator, a root of the unbiased one.
    """
    _squared("distance_covariance", squared, estimator)
    restore, value = _joint("distance_covariance", {"x": x, "y": y}, 0.0, estimator)
    return restore(value if squared else _root(value))


def distance_correlation(x: Any, y: Any, *, estimator: str = "biased", squared: bool = False) -> Any:
    r"""dCov(x, y) / sqrt(dCov(x, x) dCov(y, y)), between 0 and 1; 0 where x or y is constant.

    Arguments, results and errors are `distance_covariance`'s. The unbiased one is the bias-corrected square of Szekely
    and Rizzo (2014), between -1 and 1.
    """
    name = "distance_correlation"
    _squared(name, squared, estimator)
    restore, value = _joint(name, {"x": x, "y": y}, 0.0, estimator)
    scale = _joint(name, {"x": x, "x ": x}, 0.0, estimator)[1] * _joint(name, {"y": y, "y ": y}, 0.0, estimator)[1]
    some = ~(scale <= 0)
    value = torch.where(some, value / _root(torch.where(some, scale, 1.0)), 0.0)
    return restore(value if squared else _root(value))


def joint_distance_covariance(*variables: Any, c: float = 1.0, estimator: str = "biased", squared: bool = False) -> Any:
    r"""The joint distance covariance of two or more samples in step (Chakraborty and Zhang, JASA 2019).

        JdCov^2 = 1 / N^2 sum_ij prod_k (c - A^k_ij) - c^K,

    A^k as in `distance_covariance`: a sum over all subsets of variables of c^(K - |S|) dCov^2(S), 0 only where all are
    mutually independent (pairwise is not enough). Small c weighs high orders more.

    Args:
        variables: two or more ``(..., N, d_k)``.
        c: not negative.
        estimator: "biased", or "unbiased" (their bias-corrected one: A U-centred, pairs i != j, over N (N - 3)).
        squared: return JdCov^2 instead of its root.

    Returns:
        ``(...)``, as in `distance_covariance`.

    Raises:
        ValueError: fewer than two variables, c < 0, and as in `distance_covariance`.
    """
    name = "joint_distance_covariance"
    if len(variables) < 2:
        raise ValueError(f"{name}: variables must be two or more, got {len(variables)}")
    if not c >= 0:
        raise ValueError(f"{name}: c must not be negative, got {c}")
    _squared(name, squared, estimator)
    restore, value = _joint(name, {f"variable {k}": v for k, v in enumerate(variables)}, float(c), estimator)
    return restore(value if squared else _root(value))


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
        ``(...)``: by tiles, summed in float64. Differentiable in ensemble, observation and weights.
    """
    x, y, w, batch, dtype, numpy = _ensemble("energy_score", ensemble, observation, weights, estimator, alpha, 1)
    members, d = x.shape[-1], x.shape[-2]
    x, y = x.mT.reshape(-1, members, d), y.reshape(-1, 1, d)
    mass = torch.full(x.shape[:2], 1.0 / members, dtype=torch.float64, device=x.device) if w is None else w
    factor = reference.spread_factor(mass, estimator, alpha)
    if takes_reference():
        value = reference.energy_score(x, y, mass, factor)
    else:
        spread = (mass * distance_sums(x, x, mass)).sum(-1)
        value = distance_sums(y, x, mass)[:, 0] - 0.5 * factor * spread
    return give(value.to(dtype).reshape(batch[:-1]), numpy)
