"""Multiplicative noise: geometric Brownian motion, and the exponential steps that run it back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import random
from ._sde_processes import Process, as_time, log_normal_density, positive, spread
from ._sde_samplers import Sampler, without_last_noise
from ._sde_table import Row
from .random import Stream

__all__ = ["GeometricBrownian", "GeometricStep"]


class GeometricBrownian:
    r"""dX = mu X dt + sigma X dW, elementwise on positive data: log X_t = log X_0 + (mu - sigma^2 / 2) t + sigma W_t.

    Multiplicative noise (Black and Scholes's), for data shifted into a positive range, [1, 2] say; the model gives
    h = X score(X), the score of prediction "hyvarinen". The reversal in log X is dl = (sigma^2 h - mu + 3/2 sigma^2)
    dtau + sigma dW: a step that keeps signs. The prior is the log-normal law of X_{t_max} from X_0 = 1.
    """

    prior_std = 1.0
    to_zero = True

    def __init__(self, mu: float | None = None, sigma: float = 0.8, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        positive(sigma=sigma, t_min=t_min, t_max=t_max)
        self.mu, self.volatility = 0.5 * sigma**2 if mu is None else float(mu), float(sigma)
        self.t_min, self.t_max = t_min, t_max

    def marginal(self, x0: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Mean ``(B, ...)`` and standard deviation of log X_t given X_0."""
        t = as_time(t)
        mean = torch.log(x0) + spread((self.mu - 0.5 * self.volatility**2) * t, x0)
        return mean, spread(self.volatility * torch.sqrt(t), x0)

    def prior_sample(
        self, batch: int, shape: Any, *, seed: Any = None, sample_ids: Any = None, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """A sample of the log-normal prior, ``(batch, *shape)``, of stream INITIAL_LATENT."""
        place = {"stream": Stream.INITIAL_LATENT, "sample_ids": sample_ids, "dtype": dtype, "device": device}
        mean, std = self._prior()
        return torch.exp(mean + std * random.normal(batch, shape, seed=seed, **place))

    def _prior(self) -> tuple[float, float]:
        return (self.mu - 0.5 * self.volatility**2) * self.t_max, self.volatility * math.sqrt(self.t_max)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of the prior, ``(B,)`` in float64; NaN where x <= 0."""
        mean, std = self._prior()
        logs = torch.log(x.double().flatten(1))
        return log_normal_density(logs - mean, std) - logs.sum(1)

    def drift(self, x: Tensor, t: Any) -> Tensor:
        """mu x."""
        return self.mu * x

    def diffusion(self, x: Tensor, t: Any) -> Tensor:
        """sigma x."""
        return self.volatility * x

    def reverse_drift(self, x: Tensor, t: Any, score: Tensor) -> Tensor:
        """mu x - 2 sigma^2 x - sigma^2 x^2 score: f - d(g^2)/dx - g^2 score."""
        return x * (self.mu - self.volatility**2 * (2 + x * score))

    def probability_flow(self, x: Tensor, t: Any, score: Tensor) -> Tensor:
        """mu x - sigma^2 x - sigma^2 x^2 score / 2."""
        return x * (self.mu - self.volatility**2 * (1 + 0.5 * x * score))

    __repr__ = Process.__repr__


@dataclass(frozen=True)
class GeometricStep(Sampler):
    r"""X' = X exp(sigma^2 h d - (mu - 3/2 sigma^2) d + c d^{1/2} sigma z), h = X score: signs are kept.

    The reversal of `GeometricBrownian`, exact but for h's change over a step (order 1 in law, of log X); ``flow``: its
    probability flow, X exp((sigma^2 - mu + sigma^2 h / 2) d). d = dt, or ``delta``; each level is repeated ``repeats``
    times, and c starts at 1 and shrinks by ``anneal`` a step; ``final`` noise-free steps of the last level follow.
    """

    flow: bool = False
    repeats: int = 1
    delta: float | None = None
    anneal: float = 1.0
    final: int = 0
    last_mean: bool = True
    native = "hyvarinen"

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        if not isinstance(process, GeometricBrownian):
            raise TypeError(f"GeometricStep takes a GeometricBrownian process, got {type(process).__name__}")
        mu, v = process.mu, process.volatility**2
        t, rows, c = times.tolist(), [], 1.0
        plan = [(i, t[i]) for i in range(len(t) - 1) for _ in range(self.repeats)]
        plan += [(len(t) - 2, t[-2])] * self.final
        for k, (i, at) in enumerate(plan):
            d = t[i] - t[i + 1] if self.delta is None else self.delta
            if self.flow:
                weights = {"x": (v - mu) * d, "m0": 0.5 * v * d}
            else:
                noise = {} if k >= len(plan) - self.final else {"z": c * math.sqrt(v * d)}
                weights = {"x": (1.5 * v - mu) * d, "m0": v * d, **noise}
            rows.append(Row(i, at, {"x": weights}, number=k, multiplicative=True))
            c *= self.anneal
        return without_last_noise(rows, self.last_mean)
