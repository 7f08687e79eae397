r"""Diffusion processes: marginals, prior, drift and diffusion of the SDE, its time reversal and its probability flow.

A Gaussian process here is dx = f(t) x dt + g(t) dW from data at t = 0 to noise at t = t_max, so that

    x_t = alpha(t) x_0 + sigma(t) z,    f = alpha' / alpha,    g^2 = 2 sigma^2 d/dt log(sigma / alpha)

(Song et al., "Score-based generative modeling through SDEs", ICLR 2021; Kingma et al., "Variational diffusion models",
2021). Its time reversal is dx = (f x - g^2 score) dt + g dW (Anderson 1982), its probability flow dx/dt = f x - g^2
score / 2. Functions of time take numbers or tensors and compute in float64; times of a batch are ``(B,)`` and spread
over a state ``(B, ...)``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import random
from .random import Stream

__all__ = ["EDM", "VE", "VP", "Process", "RectifiedFlow", "SubVP"]


def as_time(t: Any) -> Tensor:
    """A time in float64."""
    return t.double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")


def spread(value: Tensor, x: Tensor) -> Tensor:
    """``()`` or ``(B,)`` numbers as ones that multiply a state ``(B, ...)`` in its dtype."""
    value = value.to(x)
    return value.reshape(-1, *(1,) * (x.dim() - 1)) if value.dim() else value


def positive(**values: Any) -> None:
    """Numbers that must be finite and > 0."""
    for name, v in values.items():
        if not (isinstance(v, (int, float)) and math.isfinite(v) and v > 0):
            raise ValueError(f"{name} must be a finite number > 0, got {v!r}")


def log_normal_density(x: Tensor, std: float) -> Tensor:
    """log N(x; 0, std^2 I), ``(B,)`` in float64."""
    x = x.double().flatten(1)
    return -0.5 * (x / std).square().sum(1) - x.shape[1] * (math.log(std) + 0.5 * math.log(2 * math.pi))


class Process:
    """A Gaussian path x_t = alpha x_0 + sigma z; subclasses give log alpha, sigma, f, g^2 and the inverse of the ratio.

    ``t_min``: where sampling stops, ``t_max``: where it starts, ``prior_std``: of the state there.
    """

    t_min: float
    t_max: float
    prior_std: float = 1.0
    #: whether sampling's last time is 0, where sigma = 0 (the last step then returns the mean)
    to_zero: bool = False
    #: the grid that `sample` takes by itself
    grid: str = "uniform"

    # ---- what a subclass gives ------------------------------------------------------------------------------------
    def log_alpha(self, t: Any) -> Tensor:
        """log alpha(t)."""
        raise NotImplementedError

    def sigma(self, t: Any) -> Tensor:
        """sigma(t)."""
        raise NotImplementedError

    def rate(self, t: Any) -> Tensor:
        """f(t), the drift over x."""
        raise NotImplementedError

    def variance_rate(self, t: Any) -> Tensor:
        """g(t)^2."""
        raise NotImplementedError

    def time_of_ratio(self, ratio: Any) -> Tensor:
        """The time where sigma / alpha = ratio."""
        raise NotImplementedError

    # ---- the rest follows -----------------------------------------------------------------------------------------
    def alpha(self, t: Any) -> Tensor:
        """alpha(t)."""
        return torch.exp(self.log_alpha(t))

    def ratio(self, t: Any) -> Tensor:
        """sigma / alpha, the noise level of x / alpha (inf where alpha = 0)."""
        return self.sigma(t) / self.alpha(t)

    def log_snr(self, t: Any) -> Tensor:
        """lambda = log(alpha / sigma), half the log of the signal-to-noise ratio."""
        return self.log_alpha(t) - torch.log(self.sigma(t))

    def time_of_log_snr(self, value: Any) -> Tensor:
        """The time where log(alpha / sigma) = value."""
        return self.time_of_ratio(torch.exp(-as_time(value)))

    def slopes(self, t: Any) -> tuple[Tensor, Tensor]:
        """(alpha', sigma') at times > 0."""
        f, s = self.rate(t), self.sigma(t)
        return f * self.alpha(t), f * s + self.variance_rate(t) / (2 * s)

    def marginal(self, x0: Tensor, t: Any) -> tuple[Tensor, Tensor]:
        """Mean ``(B, ...)`` and standard deviation of x_t given x_0."""
        t = as_time(t)
        return spread(self.alpha(t), x0) * x0, spread(self.sigma(t), x0)

    def diffuse(self, x0: Tensor, t: Any, *, seed: Any = None, step: Any = 0, sample_ids: Any = None) -> Tensor:
        """A sample of x_t given x_0, ``(B, ...)``: alpha x_0 + sigma z, z of stream TRAINING_NOISE."""
        place = {"step": step, "stream": Stream.TRAINING_NOISE, "sample_ids": sample_ids, "device": x0.device}
        z = random.normal(x0.shape[0], tuple(x0.shape[1:]), seed=seed, dtype=x0.dtype, **place)
        mean, std = self.marginal(x0, t)
        return mean + std * z

    def prior_sample(
        self, batch: int, shape: Any, *, seed: Any = None, sample_ids: Any = None, dtype: Any = None, device: Any = None
    ) -> Tensor:
        """A sample of N(0, prior_std^2 I), ``(batch, *shape)``, of stream INITIAL_LATENT."""
        place = {"stream": Stream.INITIAL_LATENT, "sample_ids": sample_ids, "dtype": dtype, "device": device}
        return self.prior_std * random.normal(batch, shape, seed=seed, **place)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log density of the prior, ``(B,)`` in float64."""
        return log_normal_density(x, self.prior_std)

    def drift(self, x: Tensor, t: Any) -> Tensor:
        """f(t) x."""
        return spread(self.rate(as_time(t)), x) * x

    def diffusion(self, t: Any) -> Tensor:
        """g(t)."""
        return torch.sqrt(self.variance_rate(as_time(t)))

    def reverse_drift(self, x: Tensor, t: Any, score: Tensor) -> Tensor:
        """f x - g^2 score: the drift of the time reversal, which runs from t_max down."""
        t = as_time(t)
        return spread(self.rate(t), x) * x - spread(self.variance_rate(t), x) * score

    def probability_flow(self, x: Tensor, t: Any, score: Tensor) -> Tensor:
        """f x - g^2 score / 2: the slope of the ordinary differential equation with the same marginals."""
        t = as_time(t)
        return spread(self.rate(t), x) * x - 0.5 * spread(self.variance_rate(t), x) * score

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in vars(self).items() if not k.startswith("_"))
        return f"{type(self).__name__}({inside})"


class VP(Process):
    r"""Variance preserving: alpha^2 + sigma^2 = 1, dx = -beta(t) x / 2 dt + beta(t)^{1/2} dW.

    schedule "linear": beta = beta_min + t (beta_max - beta_min) (Ho et al. 2020; Song et al. 2021, equation 33).
    "cosine": alpha = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)), s = 0.008 (Nichol and Dhariwal 2021,
    equation 17), up to t = 0.9946 where beta has not yet diverged (Lu et al. 2022, appendix E.4).
    """

    def __init__(
        self, schedule: str = "linear", *, beta_min: float = 0.1, beta_max: float = 20.0, offset: float = 0.008,
        t_min: float = 1e-3, t_max: float | None = None,
    ) -> None:  # fmt: skip
        if schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be 'linear' or 'cosine', got {schedule!r}")
        self.schedule, self.beta_min, self.beta_max, self.offset = schedule, beta_min, beta_max, offset
        self.t_min, self.t_max = t_min, (1.0 if schedule == "linear" else 0.9946) if t_max is None else t_max
        positive(beta_min=beta_min, beta_max=beta_max, offset=offset, t_min=t_min, t_max=self.t_max)
        if schedule == "cosine" and self.t_max >= 1:
            raise ValueError(f"t_max must be below 1 for the cosine schedule, where alpha = 0, got {self.t_max}")

    def _angle(self, t: Any) -> Tensor:
        return math.pi / 2 * (as_time(t) + self.offset) / (1 + self.offset)

    def beta(self, t: Any) -> Tensor:
        """beta(t) = g^2 = -2 f."""
        t = as_time(t)
        if self.schedule == "linear":
            return self.beta_min + t * (self.beta_max - self.beta_min)
        return math.pi / (1 + self.offset) * torch.tan(self._angle(t))

    def _integral(self, t: Any) -> Tensor:
        """The integral of beta from 0 to t, -2 log alpha."""
        t = as_time(t)
        if self.schedule == "linear":
            return t * (self.beta_min + t * (0.5 * (self.beta_max - self.beta_min)))
        # log cos b - log cos a by the sine of the difference, which keeps its digits at small t
        a, b = self._angle(torch.zeros_like(t)), self._angle(t)
        return -2 * torch.log1p(-2 * torch.sin((a + b) / 2) * torch.sin((b - a) / 2) / torch.cos(a))

    def log_alpha(self, t: Any) -> Tensor:
        return -0.5 * self._integral(t)

    def sigma(self, t: Any) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def rate(self, t: Any) -> Tensor:
        return -0.5 * self.beta(t)

    def variance_rate(self, t: Any) -> Tensor:
        return self.beta(t)

    def _time_of_integral(self, b: Tensor) -> Tensor:
        if self.schedule == "linear":
            slope = self.beta_max - self.beta_min
            return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * b))
        first = self._angle(0.0)
        angle = torch.acos(torch.exp(-0.5 * b) * torch.cos(first))
        return (angle - first) * (2 / math.pi) * (1 + self.offset)

    def time_of_ratio(self, ratio: Any) -> Tensor:
        return self._time_of_integral(torch.log1p(as_time(ratio).square()))


class SubVP(VP):
    """dx = -beta x / 2 dt + (beta (1 - e^{-2 B}))^{1/2} dW, B the integral of beta: sigma = 1 - alpha^2, below VP's.

    Source: Song et al. 2021, section 3.4 and equation 29 (with the standard deviation, not the variance, 1 - alpha^2).
    """

    def __init__(
        self, *, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        super().__init__("linear", beta_min=beta_min, beta_max=beta_max, t_min=t_min, t_max=t_max)

    def sigma(self, t: Any) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def variance_rate(self, t: Any) -> Tensor:
        return self.beta(t) * -torch.expm1(-2 * self._integral(t))

    def time_of_ratio(self, ratio: Any) -> Tensor:
        k = as_time(ratio)  # (1 - a^2) / a = k, so log a = -asinh(k / 2)
        return self._time_of_integral(2 * torch.asinh(k / 2))


class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, equation 31)."""

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0, *, t_min: float = 0.0) -> None:
        positive(sigma_min=sigma_min, sigma_max=sigma_max)
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max must exceed sigma_min, got {sigma_max} and {sigma_min}")
        self.sigma_min, self.sigma_max, self.t_min, self.t_max = sigma_min, sigma_max, t_min, 1.0
        self.prior_std = sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Any) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Any) -> Tensor:
        return self.sigma_min * torch.exp(as_time(t) * self._log_ratio)

    def rate(self, t: Any) -> Tensor:
        return torch.zeros_like(as_time(t))

    def variance_rate(self, t: Any) -> Tensor:
        return 2 * self._log_ratio * self.sigma(t).square()

    def time_of_ratio(self, ratio: Any) -> Tensor:
        return torch.log(as_time(ratio) / self.sigma_min) / self._log_ratio


class EDM(Process):
    """alpha = 1 and sigma = t: time is the noise level (Karras et al. 2022); sigma_data belongs to prediction "edm"."""

    to_zero = True
    grid = "karras"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, *, sigma_data: float = 0.5) -> None:
        positive(sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data)
        if sigma_max <= sigma_min:
            raise ValueError(f"sigma_max must exceed sigma_min, got {sigma_max} and {sigma_min}")
        self.sigma_data, self.t_min, self.t_max, self.prior_std = sigma_data, sigma_min, sigma_max, sigma_max

    def log_alpha(self, t: Any) -> Tensor:
        return torch.zeros_like(as_time(t))

    def sigma(self, t: Any) -> Tensor:
        return as_time(t)

    def rate(self, t: Any) -> Tensor:
        return torch.zeros_like(as_time(t))

    def variance_rate(self, t: Any) -> Tensor:
        return 2 * as_time(t)

    def slopes(self, t: Any) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(as_time(t))
        return 0 * one, one

    def time_of_ratio(self, ratio: Any) -> Tensor:
        return as_time(ratio)


class RectifiedFlow(Process):
    """alpha = 1 - t, sigma = t: straight paths (Liu et al. 2023; Lipman et al. 2023), noise at t = 1.

    The network is usually one of prediction "flow", dx/dt = z - x_0. f and g diverge at t = 1, where alpha = 0.
    """

    to_zero = True

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        positive(t_min=t_min, t_max=t_max)
        if t_max > 1:
            raise ValueError(f"t_max must be at most 1, got {t_max}")
        self.t_min, self.t_max = t_min, t_max

    def log_alpha(self, t: Any) -> Tensor:
        return torch.log1p(-as_time(t))

    def alpha(self, t: Any) -> Tensor:
        return 1 - as_time(t)

    def sigma(self, t: Any) -> Tensor:
        return as_time(t)

    def rate(self, t: Any) -> Tensor:
        return -1 / (1 - as_time(t))

    def variance_rate(self, t: Any) -> Tensor:
        t = as_time(t)
        return 2 * t / (1 - t)

    def slopes(self, t: Any) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(as_time(t))
        return -one, one

    def time_of_ratio(self, ratio: Any) -> Tensor:
        r = as_time(ratio)
        return torch.where(r.isinf(), 1.0, r / (1 + r))
