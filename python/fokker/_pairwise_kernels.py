"""Maximum mean discrepancies of two samples by fused kernel sums, and what other kernel measures share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._kde_arguments import Call, arrange, is_number
from ._kde_ops import SQUARE
from ._op import _is_compiling
from ._pairwise_arguments import (
    Clouds,
    choice,
    clouds,
    distinct,
    positive,
    takes_reference,
    tensor,
)
from .reference import pairwise as reference

__all__ = [
    "MultiPopulation",
    "bandwidth_ladder",
    "median_bandwidth",
    "mmd2",
    "multi_population_objective",
]

#: positive definite ones
KERNELS = ("gaussian", "laplace", "exponential", "matern32", "matern52", "student_t", "cauchy", "vmf")
ESTIMATORS = ("biased", "unbiased")
_MEDIAN = 1000  # points that the median distance is taken over
_WITHIN = 1024  # points whose pairs are not worth halving


class MultiPopulation(NamedTuple):
    """What `multi_population_objective` returns."""

    #: discrepancy / sqrt(variance + regularization): what training maximises
    objective: Any
    #: the mean over i != j of H_ij
    discrepancy: Any
    #: the asymptotic variance of sqrt(N) discrepancy
    variance: Any


def median_bandwidth(x: Any, y: Any = None) -> Any:
    r"""The median of |z_i - z_j| over i < j, z being the points of x (and y) together (Gretton et al. 2012, section 8).

    Of more than 1000 points, 1000 at even strides are taken. Not differentiable.

    Args:
        x: ``(..., N, d)``.
        y: ``(..., M, d)`` or None.

    Returns:
        ``(...)`` in the dtype of x; 0 where most points coincide.

    Raises:
        ValueError: shapes that do not fit; fewer than two points.
    """
    c = clouds("median_bandwidth", {"x": x} if y is None else {"x": x, "y": y})
    return c.restore(_median("median_bandwidth", c))


@torch.no_grad()
def _median(function: str, c: Clouds) -> Tensor:
    z = torch.cat(c.points, 1)
    if z.shape[1] < 2:
        raise ValueError(f"{function}: the median distance needs at least 2 points, got {z.shape[1]}")
    if z.shape[1] > _MEDIAN:
        z = z[:, torch.linspace(0, z.shape[1] - 1, _MEDIAN).round().long().to(z.device)]
    i, j = torch.triu_indices(z.shape[1], z.shape[1], 1, device=z.device)
    r = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")[:, i, j]
    middle = r.sort(-1).values[:, [(r.shape[1] - 1) // 2, r.shape[1] // 2]]
    return middle.mean(-1)


def bandwidths_of(function: str, value: Any, c: Clouds) -> list[Any]:
    """Positive numbers, and tensors () or (B, 1, 1)."""
    if isinstance(value, str):
        choice(function, "bandwidth", value, ("median",))
        return [_median(function, c)[:, None, None].double()]
    if is_number(value):
        return [positive(function, "bandwidth", value)]
    if isinstance(value, (list, tuple)):
        values = list(value)
    else:
        t = tensor(function, "bandwidth", value, c.points[0].device)
        if t.dim() > 1:
            raise ValueError(f"{function}: bandwidth must be a number or a sequence of numbers, got {tuple(t.shape)}")
        values = [t] if t.dim() == 0 else list(t.unbind())
    if not values:
        raise ValueError(f"{function}: bandwidth must hold at least one number, got none")
    return [h if isinstance(h, Tensor) else positive(function, "bandwidth", h) for h in values]


def columns(bandwidths: list[Any], like: Tensor) -> list[Tensor]:
    """Bandwidths as the reference takes them: (B, 1, 1), NaN where they are not positive."""
    full = [torch.as_tensor(h, dtype=torch.float64, device=like.device) for h in bandwidths]
    full = [torch.where(h > 0, h, torch.nan) for h in full]
    return [h.expand(like.shape[0], 1, 1) if h.dim() != 3 else h for h in full]


def log_rows(c: Call) -> Tensor:
    """log sum_j of the kernel with its biases, (B, N) float64."""
    total = c.sums(0)[0]
    return total + c.vmf_row() if c.vmf else total


def kernel_call(
    function: str, x: Tensor, y: Tensor, h: Any, kernel: str, nu: float, exclude_self: bool, b: Tensor | None
) -> Call:
    """The density sum of x over y with weights b (B, M), or 1 each."""
    c = arrange(function, x, y, h, None, kernel, nu, exclude_self, "highest", KERNELS)
    if b is None:
        return c
    return c.with_bias(torch.where(b == 0, -torch.inf, torch.log(torch.where(b == 0, 1.0, b))))


def _mean(w: Tensor | None, rows: Tensor) -> Tensor:
    return rows.mean(-1) if w is None else (w * rows).sum(-1)


def _sum(w: Tensor | None, rows: Tensor) -> Tensor:
    return rows.sum(-1) if w is None else (w * rows).sum(-1)


class _Sums:
    """Sums of kernels over pairs of two clouds, one bandwidth after another or, where possible, two in one pass."""

    def __init__(self, function: str, c: Clouds, bandwidths: list[Any], kernel: str, nu: float) -> None:
        self.function, self.c, self.kernel, self.nu = function, c, kernel, nu
        self.bandwidths = bandwidths

    def rows(self, i: int, j: int, exclude_self: bool) -> Tensor:
        """sum_h of the mean over points of cloud j, (B, N_i); with ``exclude_self`` of the sum without j = i."""
        x, y, b = self.c.points[i], self.c.points[j], self.c.weights[j]
        rows = self._rows(x, y, b, exclude_self)
        return rows if b is not None else rows / y.shape[1]

    def _rows(self, x: Tensor, y: Tensor, b: Tensor | None, exclude_self: bool) -> Tensor:
        """sum_h sum_j b_j k(x_i, y_j), (B, N); b is 1 where None."""
        total = torch.zeros(x.shape[:2], dtype=torch.float64, device=x.device)
        waiting = list(self.bandwidths)
        while waiting:
            h = waiting.pop(0)
            call = kernel_call(self.function, x, y, h, self.kernel, self.nu, exclude_self, b)
            if b is None and self._pair(h, waiting):
                # K_{h / sqrt 2} = K_h^2: both from one exponential
                log_sum, _, square, _ = call.sums(SQUARE)
                s = torch.exp(log_sum)
                total = total + s + s.square() * square
            else:
                total = total + torch.exp(log_rows(call))
        return total

    def _apart(self, x: Tensor, w: Tensor | None) -> Tensor:
        """sum over j != k of w_j w_k k(x_j, x_k), (B,): every pair once, by halves."""
        n = x.shape[1]
        if not isinstance(n, int) or n <= _WITHIN or _is_compiling():
            return _sum(w, self._rows(x, x, w, True))
        a, b = x.split([n // 2, n - n // 2], 1)
        u, v = (None, None) if w is None else w.split([n // 2, n - n // 2], 1)
        return self._apart(a, u) + self._apart(b, v) + 2.0 * _sum(u, self._rows(a, b, v, False))

    def _pair(self, h: Any, waiting: list[Any]) -> bool:
        c = self.c
        numbers = isinstance(h, float) and waiting and isinstance(waiting[0], float)
        grad = torch.is_grad_enabled() and any(p.requires_grad for p in c.points)
        if self.kernel != "gaussian" or not numbers or grad:
            return False
        if abs(waiting[0] * math.sqrt(2.0) / h - 1.0) > 1e-14:
            return False
        waiting.pop(0)
        return True

    def within(self, i: int, unbiased: bool) -> Tensor:
        """sum_jk w_j w_k k(x_j, x_k), or over j != k and divided by their weight."""
        w, n = self.c.weights[i], self.c.points[i].shape[1]
        others = self._apart(self.c.points[i], w)
        others = others / n**2 if w is None else others
        if unbiased:
            return others / distinct(w, n)
        # K(0) = 1 exactly: the diagonal is not left to rounding
        diagonal = 1.0 / n if w is None else w.square().sum(-1)
        return others + len(self.bandwidths) * diagonal

    def between(self, i: int, j: int) -> Tensor:
        """sum_jk w_j w_k k(x_j, y_k)."""
        return _mean(self.c.weights[i], self.rows(i, j, False))


def mmd2(
    x: Any,
    y: Any,
    *,
    bandwidth: Any = "median",
    kernel: str = "gaussian",
    nu: float = 1.0,
    estimator: str = "biased",
    x_weights: Any = None,
    y_weights: Any = None,
) -> Any:
    r"""The squared maximum mean discrepancy of two samples (Gretton et al., JMLR 2012, equations 3 and 5).

        MMD^2 = sum_ij a_i a_j k(x_i, x_j) + sum_ij b_i b_j k(y_i, y_j) - 2 sum_ij a_i b_j k(x_i, y_j),

    with k(x, y) = sum over the bandwidths of K(|x - y| / h), K(0) = 1 as in `fokker.kde`. "unbiased" takes the first
    two sums over i != j and divides them by the weight of those pairs; it can be negative.

    Args:
        x: ``(..., N, d)``.
        y: ``(..., M, d)``.
        bandwidth: a number, a 0-d tensor, a sequence or 1-d tensor of them (their kernels are added, see
            `bandwidth_ladder`), or "median" (`median_bandwidth`). Plain numbers in the ratio sqrt 2 of a gaussian
            kernel share one pass where no gradient is wanted.
        kernel: gaussian, laplace, exponential, matern32, matern52, student_t, cauchy or (unit vectors) vmf.
        nu: degrees of freedom of student_t.
        estimator: "biased" (never negative but for rounding) or "unbiased".
        x_weights: a ``(..., N)``, >= 0, scaled to sum to one; None for equal ones.
        y_weights: b ``(..., M)``, likewise.

    Returns:
        ``(...)`` in the dtype of x and y, NumPy where both came so; sums are kept in float64 before. In float32 the
        error is about 1e-7. Differentiable twice in x and y and in the bandwidths; memory O(N + M).

    Raises:
        ValueError: shapes that do not fit, a bandwidth number that is not positive, weights that are negative or all
            zero, an unknown name, an empty sample, "unbiased" with fewer than two points.
        TypeError: complex, sparse or unlike devices.
    """
    choice("mmd2", "kernel", kernel, KERNELS)
    choice("mmd2", "estimator", estimator, ESTIMATORS)
    unbiased = estimator == "unbiased"
    c = clouds("mmd2", {"x": x, "y": y}, {"x_weights": x_weights, "y_weights": y_weights}, 2 if unbiased else 1)
    h = bandwidths_of("mmd2", bandwidth, c)
    if takes_reference():
        full = columns(h, c.points[0])
        return c.restore(reference.mmd2(*c.points, c.mass(0), c.mass(1), full, kernel, nu, unbiased))
    s = _Sums("mmd2", c, h, kernel, nu)
    return c.restore(s.within(0, unbiased) + s.within(1, unbiased) - 2.0 * s.between(0, 1))


def bandwidth_ladder(bandwidth: float, count: int) -> list[float]:
    """h, h / sqrt 2, h / 2, ...: ``count`` bandwidths, of which `mmd2` takes two a pass.

    Args:
        bandwidth: h, a positive number.
        count: an integer >= 1.

    Raises:
        ValueError: numbers out of these ranges.
    """
    h = positive("bandwidth_ladder", "bandwidth", bandwidth)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"bandwidth_ladder: count must be an integer >= 1, got {count!r}")
    return [h * 2.0 ** (-0.5 * i) for i in range(count)]


def multi_population_objective(
    x: Any,
    y: Any,
    *,
    bandwidth: Any = "median",
    kernel: str = "gaussian",
    nu: float = 1.0,
    regularization: float = 1e-8,
) -> MultiPopulation:
    r"""The objective of MMD-MP for a y pooled from many populations (Zhang et al., ICLR 2024, arXiv 2402.16041).

        H_ij = k(x_i, x_j) - k(x_i, y_j) - k(y_i, x_j)
        discrepancy = sum_{i != j} H_ij / (N (N - 1)),     variance = 4 / N^3 sum_i (sum_j H_ij)^2
                                                                     - 4 / N^4 (sum_ij H_ij)^2.

    The squared MMD without the term within y, whose variance grows with the number of populations; kernels are trained
    to raise objective = discrepancy / sqrt(variance + regularization). The discrepancy is no distance: it can be
    negative, and is -E k(y, y') where x and y have one law.

    Args:
        x: the single population ``(..., N, d)`` (features of human text), N >= 2.
        y: as many points ``(..., N, d)`` of the pooled ones.
        bandwidth, kernel, nu: as in `mmd2`.
        regularization: >= 0, added to the variance.

    Returns:
        `MultiPopulation` of ``(...)`` results, differentiable as `mmd2` is; memory O(N).

    Raises:
        ValueError: as `mmd2`; unequal numbers of points.
    """
    name = "multi_population_objective"
    choice(name, "kernel", kernel, KERNELS)
    if not regularization >= 0:
        raise ValueError(f"{name}: regularization must not be negative, got {regularization}")
    c = clouds(name, {"x": x, "y": y}, least=2)
    n = c.points[0].shape[1]
    if c.points[1].shape[1] != n:
        raise ValueError(f"{name}: x and y must hold as many points, got {n} and {c.points[1].shape[1]}")
    h = bandwidths_of(name, bandwidth, c)
    if takes_reference():
        found = reference.multi_population(*c.points, columns(h, c.points[0]), kernel, nu)
    else:
        s = _Sums(name, c, h, kernel, nu)
        within = s.rows(0, 0, True)
        discrepancy = (within - s.rows(0, 1, True) - s.rows(1, 0, True)).mean(-1) * (n / (n - 1))
        rows = within + len(h) / n - s.rows(0, 1, False) - s.rows(1, 0, False)
        found = discrepancy, 4.0 * rows.var(-1, correction=0)
    discrepancy, variance = found
    objective = discrepancy / torch.sqrt(variance + regularization)
    return MultiPopulation(c.restore(objective), c.restore(discrepancy), c.restore(variance))
