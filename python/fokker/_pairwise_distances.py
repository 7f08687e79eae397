"""What is a sum of distances over pairs: energy distance and distance covariance."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._pairwise_arguments import (
    HALVES,
    choice,
    clouds,
    distinct,
    give,
    takes_reference,
)
from ._pairwise_tiles import centred_products, distance_sums, within_sums
from .reference import pairwise as reference

__all__ = [
    "distance_correlation",
    "distance_covariance",
    "energy_distance",
    "joint_distance_covariance",
]

ESTIMATORS = ("biased", "unbiased")


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
        nothing cancels; d > 1: by a kernel, O(N + M) memory. Differentiable twice (0 for directions of equal points).

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
        within_k = within_sums(z[k], w[k])
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
