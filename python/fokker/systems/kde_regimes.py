r"""The three regimes of a kernel density estimate of normal data in many dimensions (Biroli and Mezard 2024).

With N = exp(alpha d) data from N(0, I_d), a gaussian kernel of bandwidth h and d large, the sum over the data at a
typical new point is, as h falls: an average over exponentially many data that obeys the central limit theorem
(h > h_CLT); one that is still right on average but dominated by rare data (h_G < h < h_CLT); and condensed on a few
data, where the estimate is no longer a density's but the nearest datum's (h < h_G), as in a random energy model. With
u = 1 / h^2 and

    g(u) = lim (1/d) log E exp(-|x - y|^2 / 2h^2) = -log(1 + u) / 2 - u / (2 (1 + u))

(for |x|^2 = d), the boundaries solve

    h_G:    alpha + g(u) - u g'(u) = 0,        h_CLT:   alpha = g(2u) - 2 g(u).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import kde

__all__ = ["clt_bandwidth", "condensation_bandwidth", "effective_sizes", "free_energy"]

TITLE = "where a kernel density estimate in many dimensions obeys the central limit theorem, and where it condenses"
PAPER = "Biroli and Mezard, 2024, arXiv 2408.05807"
EXAMPLE = "kde_regimes.condensation_bandwidth(alpha=0.2)"


def free_energy(u: float) -> float:
    """g(u) for N(0, I) data."""
    return -0.5 * math.log1p(u) - 0.5 * u / (1.0 + u)


def _falling_root(f: Callable[[float], float]) -> float:
    low, high = -40.0, 40.0  # log u
    for _ in range(200):
        middle = 0.5 * (low + high)
        if f(math.exp(middle)) > 0:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))


def _check(alpha: float) -> None:
    if not alpha > 0 or math.isinf(alpha):
        raise ValueError(f"alpha = log(N) / d must be a positive number, got {alpha}")


def condensation_bandwidth(alpha: float) -> float:
    """h_G(alpha): below it a few data carry the sum. alpha = log(N) / d > 0."""
    _check(alpha)
    # g - u g' = -log(1 + u)/2 + u / (2 (1 + u)^2), falling in u
    return _falling_root(lambda u: alpha - 0.5 * math.log1p(u) + 0.5 * u / (1.0 + u) ** 2) ** -0.5


def clt_bandwidth(alpha: float) -> float:
    """h_CLT(alpha) > h_G(alpha): above it the central limit theorem holds for the sum. alpha = log(N) / d > 0."""
    _check(alpha)
    return _falling_root(lambda u: alpha - (free_energy(2.0 * u) - 2.0 * free_energy(u))) ** -0.5


def effective_sizes(x: Tensor, data: Tensor, bandwidths: Tensor) -> Tensor:
    """The mean effective sample size over the queries, a number a bandwidth: it falls to 1 below h_G."""
    return torch.stack([kde.effective_sample_size(x, data, float(h)).double().mean() for h in bandwidths])
