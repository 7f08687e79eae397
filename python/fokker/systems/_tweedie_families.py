"""The families of `fokker.systems.tweedie`, whose page has their formulas, and the checks of states and scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import random
from .._sde_processes import positive
from ..random import Stream

__all__ = ["Binomial", "ExponentialFamily", "Gamma", "Gaussian", "Poisson", "Score", "checked", "state"]

Score = Callable[[Tensor], Tensor]


def state(y: Any) -> Tensor:
    if not isinstance(y, Tensor) or y.dtype not in (torch.float32, torch.float64) or y.dim() < 1:
        raise TypeError(f"y must be (B, ...) of float32 or float64, got {getattr(y, 'dtype', type(y).__name__)}")
    return y


def _inside(y: Tensor, low: float, high: float, family: str) -> None:
    if y.numel() and not y.is_cuda and not (bool((y >= low).all()) and bool((y <= high).all())):
        raise ValueError(f"y of a {family} must lie in [{low}, {high}], got {float(y.min())} to {float(y.max())}")


def checked(score: Score, y: Tensor) -> Tensor:
    """score(y), checked."""
    s = score(y)
    if not isinstance(s, Tensor) or s.shape != y.shape or s.dtype != y.dtype:
        seen = f"{tuple(s.shape)} of {s.dtype}" if isinstance(s, Tensor) else type(s).__name__
        raise ValueError(f"score must return {tuple(y.shape)} of {y.dtype}, as y is, got {seen}")
    if not s.is_cuda and not bool(s.isfinite().all()):
        raise ValueError(f"score must be finite, got {int((~s.isfinite()).sum())} values that are not")
    return s


def _with_slope(score: Score, y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(l', diagonal of l''): e (l'' e) of signs e, exact where the score acts elementwise, else unbiased."""
    with torch.enable_grad():
        x = y.detach().requires_grad_()
        s = checked(score, x)
        if not s.requires_grad:
            raise ValueError("score must be differentiable by autograd for form='second_order'")
        e = random.rademacher(
            y.shape[0], tuple(y.shape[1:]), seed=seed, stream=Stream.HUTCHINSON, dtype=y.dtype, device=y.device
        )
        (back,) = torch.autograd.grad(s, x, e)
    return s.detach(), back * e


def _form(form: str, *names: str) -> None:
    if form not in names:
        raise ValueError(f"form must be one of {', '.join(names)}, got {form!r}")


@dataclass(frozen=True)
class Gaussian:
    """y = x + sigma z. ``sigma``: in units of y."""

    sigma: float

    def __post_init__(self) -> None:
        positive(sigma=self.sigma)

    def denoise(self, y: Tensor, score: Score) -> Tensor:
        """E[x | y], of y's shape, exact for the true score."""
        return y + self.sigma**2 * checked(score, state(y))


@dataclass(frozen=True)
class Poisson:
    """y = gain k >= 0 with k ~ Poisson(x / gain) counts; forms as on the module's page.

    "midpoint" is right to third order, for scores that act elementwise (or one element a sample); "second_order", for
    joint scores, reads the diagonal of l'' through autograd. That is so for the true score: a learned one, smooth over
    counts where the law is not, can be wrong enough at y = 0 that "published", smaller there, has the smaller error.
    """

    gain: float = 1.0
    form: str = "midpoint"

    def __post_init__(self) -> None:
        positive(gain=self.gain)
        _form(self.form, "midpoint", "second_order", "published")

    def denoise(self, y: Tensor, score: Score, *, seed: int = 0) -> Tensor:
        """An estimate of E[x | y], of y's shape; ``seed``: of the signs of "second_order"."""
        g = self.gain
        _inside(state(y), 0.0, math.inf, "Poisson")
        if self.form == "published":
            return (y + 0.5 * g) * torch.exp(g * checked(score, y))
        if self.form == "midpoint":
            return (y + g) * torch.exp(g * checked(score, y + 0.5 * g))
        s, slope = _with_slope(score, y, seed)
        return (y + g) * torch.exp(g * s + 0.5 * g * g * slope)

    def exact(self, y: Tensor, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
        """E[x | y] from log p of single elements at the counts themselves: (y + gain) p(y + gain) / p(y)."""
        _inside(state(y), 0.0, math.inf, "Poisson")
        return (y + self.gain) * torch.exp(log_prob(y + self.gain) - log_prob(y))


@dataclass(frozen=True)
class Gamma:
    """y = x g > 0 with g of mean 1 and variance 1 / shape (speckle of ``shape`` looks), shape > 1.

    form "published": 1 / E[1 / x | y]; "second_order": E[x | y] up to third moments of 1 / x.
    """

    shape: float
    form: str = "second_order"

    def __post_init__(self) -> None:
        _form(self.form, "second_order", "published")
        if not 1 < self.shape < math.inf:
            raise ValueError(f"shape must be finite and > 1, got {self.shape}")

    def denoise(self, y: Tensor, score: Score, *, seed: int = 0) -> Tensor:
        """An estimate of x, of y's shape; NaN where (shape - 1) / y <= l', which no true score reaches."""
        k = self.shape
        _inside(state(y), torch.finfo(y.dtype).tiny, math.inf, "Gamma")
        if self.form == "published":
            s, factor = checked(score, y), 1.0
        else:
            s, slope = _with_slope(score, y, seed)
            factor = 1 + (slope + (k - 1) / y.square()).clamp(min=0) / ((k - 1) / y - s).square()
        rate = (k - 1) / y - s  # E[k / x | y]
        return torch.where(rate > 0, k / rate * factor, torch.nan)


@dataclass(frozen=True)
class Binomial:
    """y of ``trials`` drawn, each with chance x in [0, 1], counts as floats."""

    trials: int

    def __post_init__(self) -> None:
        if not isinstance(self.trials, int) or self.trials < 1:
            raise ValueError(f"trials must be an int >= 1, got {self.trials!r}")

    def bounds(self, y: Tensor, score: Score) -> tuple[Tensor, Tensor]:
        """Numbers that E[x | y] lies between: 1 / (1 + E[1/odds]) and E[odds] / (1 + E[odds]) (Jensen).

        Score per count, at half counts in [1/2, trials - 1/2]: log p(k + 1) - log p(k) = l'(k + 1/2) to third order.
        """
        n = self.trials
        _inside(state(y), 0.0, n, "Binomial")
        up, down = (checked(score, (y + d).clamp(0.5, max(n - 0.5, 0.5))) for d in (0.5, -0.5))
        odds, inverse = (y + 1) / (n - y) * torch.exp(up), (n - y + 1) / y * torch.exp(-down)
        return 1 / (1 + inverse), 1 / (1 + 1 / odds)

    def denoise(self, y: Tensor, score: Score) -> Tensor:
        """An estimate of E[x | y] within `bounds`, of y's shape: high / (1 + high - low), exact for beta laws of x."""
        low, high = self.bounds(y, score)
        return high / (1 + high - low)


@dataclass(frozen=True)
class ExponentialFamily:
    """p(y | e) = h(y) exp(e T(y) - A(e)) an element; log_base is log h, statistic T (None: y), both elementwise."""

    log_base: Callable[[Tensor], Tensor]
    statistic: Callable[[Tensor], Tensor] | None = None

    def denoise(self, y: Tensor, score: Score) -> Tensor:
        """E[e | y], the mean of the *natural* parameter, of y's shape (Efron 2011)."""
        with torch.enable_grad():
            x = state(y).detach().requires_grad_()
            (base,) = torch.autograd.grad(self.log_base(x).sum(), x)
            slope: Any = 1.0
            if self.statistic is not None:
                (slope,) = torch.autograd.grad(self.statistic(x).sum(), x)
        return (checked(score, y) - base) / slope
