r"""Stochastic interpolants between two laws, and their samplers in both directions as tables.

x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z runs from x_0 at t = 0 to x_1 at t = 1. With the velocity b = E[d/dt x_t |
x_t] and the score s = -E[z | x_t] / gamma of its law, for any epsilon(t) >= 0,

    forward    dx = (b + epsilon s) dt + (2 epsilon)^{1/2} dW
    backward   dx = (b - epsilon s) dt + (2 epsilon)^{1/2} dW,   time running from 1 to 0

have its marginals; epsilon = 0 is the flow (Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", 2023,
theorems 6 and 8, corollaries 10 and 18).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import random
from ._sde_processes import as_time, log_normal_density, spread
from ._sde_samplers import Sampler, without_last_noise
from ._sde_table import Row
from .random import Stream

__all__ = ["InterpolantStep", "StochasticInterpolant"]

PATHS = ("linear", "trigonometric", "encoding-decoding", "mirror")
GAMMAS = ("brownian", "quadratic", "sine", "none")


class StochasticInterpolant:
    r"""alpha, beta and gamma of an interpolant, and their derivatives.

    path: "linear" (1 - t, t); "trigonometric" (cos pi t / 2, sin pi t / 2); "encoding-decoding" (cos^2 pi t before 1/2,
    then 0; 0, then cos^2 pi t), with gamma "sine"; "mirror" (0, 1): x_1 itself, noised and cleaned. gamma: "brownian"
    (a t (1 - t))^{1/2}; "quadratic" t (1 - t); "sine" sin^2 pi t; "none". ``one_sided``: x_0 is standard normal, takes
    the place of z, and gamma is none; a velocity alone then gives the score. Albergo et al. 2023, table 8.
    """

    prior_std = 1.0
    to_zero = False

    def __init__(
        self, path: str = "linear", gamma: str = "brownian", *, a: float = 1.0, one_sided: bool = False,
        t_min: float = 0.0, t_max: float = 1.0,
    ) -> None:  # fmt: skip
        if path not in PATHS or gamma not in GAMMAS:
            raise ValueError(
                f"path must be one of {', '.join(PATHS)} and gamma one of {', '.join(GAMMAS)}, got {path!r}, {gamma!r}"
            )
        if path == "encoding-decoding" and (gamma != "sine" or one_sided):
            raise ValueError("path 'encoding-decoding' needs gamma='sine', or x_t is 0 in the middle")
        if one_sided and path == "mirror":
            raise ValueError("a mirror interpolant has no first end to be one-sided in")
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"t_min and t_max must be in [0, 1] and in order, got {t_min} and {t_max}")
        if not 0 < a < math.inf:
            raise ValueError(f"a must be a finite number > 0, got {a}")
        self.path, self.gamma_kind, self.a, self.one_sided = path, "none" if one_sided else gamma, a, one_sided
        self.t_min, self.t_max = t_min, t_max

    def coefficients(self, t: Any) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, beta, gamma at t in float64."""
        t = as_time(t)
        one, pi = torch.ones_like(t), math.pi
        if self.path == "linear":
            alpha, beta = 1 - t, t
        elif self.path == "trigonometric":
            alpha, beta = torch.cos(pi / 2 * t), torch.sin(pi / 2 * t)
        elif self.path == "mirror":
            alpha, beta = 0 * one, one
        else:
            bump = torch.cos(pi * t).square()
            alpha, beta = torch.where(t < 0.5, bump, 0.0), torch.where(t > 0.5, bump, 0.0)
        gamma = {
            "brownian": lambda: torch.sqrt((self.a * t * (1 - t)).clamp(min=0)),
            "quadratic": lambda: t * (1 - t),
            "sine": lambda: torch.sin(pi * t).square(),
            "none": lambda: 0 * one,
        }[self.gamma_kind]()
        return alpha, beta, gamma

    def slopes(self, t: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Their derivatives in t; gamma' of "brownian" is infinite at both ends."""
        t = as_time(t)
        one, pi = torch.ones_like(t), math.pi
        if self.path == "linear":
            alpha, beta = -one, one
        elif self.path == "trigonometric":
            alpha, beta = -pi / 2 * torch.sin(pi / 2 * t), pi / 2 * torch.cos(pi / 2 * t)
        elif self.path == "mirror":
            alpha, beta = 0 * one, 0 * one
        else:
            bump = -pi * torch.sin(2 * pi * t)
            alpha, beta = torch.where(t < 0.5, bump, 0.0), torch.where(t > 0.5, bump, 0.0)
        gamma = {
            "brownian": lambda: 0.5 * math.sqrt(self.a) * (1 - 2 * t) / torch.sqrt(t * (1 - t)),
            "quadratic": lambda: 1 - 2 * t,
            "sine": lambda: pi * torch.sin(2 * pi * t),
            "none": lambda: 0 * one,
        }[self.gamma_kind]()
        return alpha, beta, gamma

    def bridge(self, x0: Tensor, x1: Tensor, t: Any, *, seed: Any = None, sample_ids: Any = None) -> Tensor:
        """x_t of a pair, ``(B, ...)``, z of stream TRAINING_NOISE."""
        mean, std = self.marginal(x0, x1, t)
        place = {"stream": Stream.TRAINING_NOISE, "sample_ids": sample_ids, "device": x0.device}
        return mean + std * random.normal(x0.shape[0], tuple(x0.shape[1:]), seed=seed, dtype=x0.dtype, **place)

    def marginal(self, x0: Tensor, x1: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t given the pair."""
        alpha, beta, gamma = (spread(c, x0) for c in self.coefficients(as_time(t)))
        return alpha * x0 + beta * x1, gamma

    def velocity_target(self, x0: Tensor, x1: Tensor, z: Tensor, t: Any) -> Tensor:
        """d/dt x_t = alpha' x_0 + beta' x_1 + gamma' z, what a velocity is trained on."""
        alpha, beta, gamma = (spread(c, x0) for c in self.slopes(as_time(t)))
        return alpha * x0 + beta * x1 + gamma * z

    def prior_sample(
        self, batch: int, shape: Any, *, seed: Any = None, sample_ids: Any = None, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """x_0 of a one-sided interpolant: standard normal, ``(batch, *shape)``, of stream INITIAL_LATENT."""
        if not self.one_sided:
            raise ValueError("start must be given: samples of the law that the interpolant starts from")
        place = {"stream": Stream.INITIAL_LATENT, "sample_ids": sample_ids, "dtype": dtype, "device": device}
        return random.normal(batch, shape, seed=seed, **place)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of a one-sided interpolant's x_0, ``(B,)`` in float64."""
        if not self.one_sided:
            raise ValueError("an interpolant between two laws of data has no prior of its own")
        return log_normal_density(x, 1.0)

    def forward_drift(self, x: Tensor, t: Any, velocity: Tensor, score: Tensor, epsilon: float) -> Tensor:
        """b + epsilon s."""
        return velocity + epsilon * score

    def reverse_drift(self, x: Tensor, t: Any, velocity: Tensor, score: Tensor, epsilon: float) -> Tensor:
        """b - epsilon s."""
        return velocity - epsilon * score

    def probability_flow(self, x: Tensor, t: Any, velocity: Tensor) -> Tensor:
        """b."""
        return velocity

    def diffusion(self, epsilon: float) -> float:
        """(2 epsilon)^{1/2}."""
        return math.sqrt(2 * epsilon)

    def __repr__(self) -> str:
        return (
            f"StochasticInterpolant(path={self.path!r}, gamma={self.gamma_kind!r}, a={self.a}, "
            f"one_sided={self.one_sided})"
        )


@dataclass(frozen=True)
class InterpolantStep(Sampler):
    r"""Euler (or, for the flow, Heun) steps of an interpolant's SDE, forward or backward in time.

    x' = x + (b + epsilon s) dt + (2 epsilon dt)^{1/2} z forward, x' = x - (b - epsilon s) dt + (2 epsilon dt)^{1/2} z
    backward, dt > 0. ``epsilon``: a number, or a function of t. The model returns b, or with epsilon > 0 the pair
    (b, second): second "denoiser" E[z | x] (s = -second / gamma, so epsilon must vanish where gamma does, and is given
    as epsilon = scale gamma with ``proportional=True``) or "score"; one-sided interpolants need b alone. Order 1 (in
    law, with noise); heun: order 2. The last step returns its mean unless ``last_mean=False``.
    """

    epsilon: float | Callable[[float], float] = 0.0
    backward: bool = False
    heun: bool = False
    second: str = "denoiser"
    proportional: bool = False
    last_mean: bool = True
    native = "raw"

    def __post_init__(self) -> None:
        if self.second not in ("denoiser", "score"):
            raise ValueError(f"second must be 'denoiser' or 'score', got {self.second!r}")
        if not callable(self.epsilon) and not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be finite and >= 0, got {self.epsilon}")
        if self.heun and self.epsilon:
            raise ValueError("heun=True is for the flow: epsilon must be 0")

    @property
    def forward(self) -> bool:  # type: ignore[override]
        return not self.backward

    @property
    def pair(self) -> bool:
        """Whether the model returns two tensors."""
        return bool(self.epsilon)

    def _noise(self, t: float, gamma: float) -> tuple[float, float]:
        """(epsilon, epsilon / gamma) at t."""
        given = self.epsilon(t) if callable(self.epsilon) else self.epsilon
        if not (given >= 0 and math.isfinite(given)):
            raise ValueError(f"epsilon must be finite and >= 0, got {given} at time {t:.6g}")
        if self.proportional:
            return given * gamma, given
        if not gamma and given and self.second == "denoiser":
            raise ValueError(f"epsilon is {given:.3g} at time {t:.6g}, where gamma = 0: use proportional=True")
        return given, given / gamma if given else 0.0

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        if not isinstance(process, StochasticInterpolant):
            raise TypeError(f"InterpolantStep takes a StochasticInterpolant, got {type(process).__name__}")
        sign, rows, t = (-1.0 if self.backward else 1.0), [], times.tolist()
        if process.one_sided and self.pair and self.proportional:
            raise ValueError("a one-sided interpolant has no gamma: proportional must be False")
        for i in range(len(t) - 1):
            dt = abs(t[i + 1] - t[i])
            weights = {"x": 1.0, "m0": sign * dt}
            if self.pair:
                alpha, beta, gamma = (float(c) for c in process.coefficients(t[i]))
                if process.one_sided:
                    da, db, _ = (float(c) for c in process.slopes(t[i]))
                    epsilon = self._noise(t[i], 1.0)[0]
                    # s = -E[z] / alpha with E[z] = (beta' x - beta b) / (alpha beta' - alpha' beta)
                    d = alpha * (alpha * db - da * beta)
                    weights["x"] -= epsilon * dt * db / d
                    weights["m0"] += epsilon * dt * beta / d
                else:
                    epsilon, over = self._noise(t[i], gamma)
                    weights["second"] = dt * (-over if self.second == "denoiser" else epsilon)
                weights["z"] = math.sqrt(2 * epsilon * dt)
            rows.append(Row(i, t[i], {"x": weights}, keep=self.heun))
            if self.heun:
                half = 0.5 * sign * dt
                rows.append(Row(i, t[i + 1], {"x": {"s": 1.0, "m1": half, "m0": half}}))
        return without_last_noise(rows, self.last_mean) if self.pair else rows
