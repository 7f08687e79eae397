r"""Diffusion by geometric Brownian motion: multiplicative noise, score matching and samplers for positive data.

N. Shetty, M. Prasath and C. S. Seelamantula, "Dale meets Langevin: A Multiplicative Denoising Diffusion Model", 2025
(arXiv 2510.02730). Forward, elementwise on positive data (shifted to [1, 2] there, mu = sigma^2 / 2, sigma = 0.8):

    dX = mu X dt + sigma X dW,        X_k = X_0 exp((mu - sigma^2 / 2) k + sigma k^{1/2} z)

With the Hyvarinen score h = X grad log p(X) a network is fitted by multiplicative denoising score matching

    E | k sigma^2 h(X_k, k) + log(X_k / X_0) - mu k + 3/2 sigma^2 k |^2,

which differs from E | k sigma^2 (h - h*) |^2, h* the true one of X_k's law, by a constant (the paper's M-DSM theorem).
Back from a log-normal prior, delta = the step in time (or given), a = 1 shrinking by ``anneal`` a step:

    DLS   X <- X exp(delta sigma^2 h - delta (mu - 3/2 sigma^2) + a delta^{1/2} sigma z)         signs are kept (Dale)
    UMS   X <- X (1 + 2 delta sigma^2 - delta mu + delta sigma^2 h + a delta^{1/2} sigma z)      signs may flip

DLS is `fokker.sde.GeometricStep`, one fused pass; "log" is DLS on log X, an affine step without an exponential in it
(nothing overflows; the model still sees X). UMS is an affine step of the terms X h and X z, so that two products come
before its pass: no op carries x (1 + ...) in one. What differs from the paper's code: the prior may have the data's own
log moments (exact for log-normal data), not those of X_0 = 1 alone; noise from counters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import kde, random, sde
from .._sde_processes import as_time, spread
from .._sde_samplers import Sampler
from .._sde_table import Row
from ..random import Stream

__all__ = ["LogStep", "UnsignedStep", "empirical", "forward", "log_moments", "loss", "prior", "residual", "sample"]

TITLE = "multiplicative noise on positive data: its score matching, samplers that keep signs and that do not"
PAPER = "Shetty et al., 2025, arXiv 2510.02730"
EXAMPLE = "gbm_diffusion.sample(model, sde.GeometricBrownian(), (64, 1, 28, 28), steps=1000, seed=0)"

METHODS = ("dls", "log", "ums")


def _positive(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.dim() < 1:
        raise TypeError(f"{name} must be (B, ...) of float32 or float64, got {getattr(x, 'dtype', type(x).__name__)}")
    if not x.is_cuda and not bool(((x > 0) & x.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, got {float(x.min())} to {float(x.max())}")
    return x


def forward(
    x0: Tensor, process: sde.GeometricBrownian, k: float | Tensor, *, seed: Any = None, step: Any = 0,
    sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """X_k given X_0 > 0 ``(B, ...)``, at times ``()`` or ``(B,)``; noise of stream TRAINING_NOISE."""
    mean, std = process.marginal(_positive(x0, "x0"), k)
    place = {"step": step, "stream": Stream.TRAINING_NOISE, "sample_ids": sample_ids, "device": x0.device}
    return torch.exp(mean + std * random.normal(x0.shape[0], tuple(x0.shape[1:]), seed=seed, dtype=x0.dtype, **place))


def residual(h: Tensor, x: Tensor, x0: Tensor, process: sde.GeometricBrownian, k: float | Tensor) -> Tensor:
    """k sigma^2 h + log(x / x0) - mu k + 3/2 sigma^2 k, what the loss squares, of x's shape."""
    v, k = process.volatility**2, as_time(k)
    return spread(k * v, x) * h + torch.log(x / x0) + spread((1.5 * v - process.mu) * k, x)


def loss(
    model: Callable[[Tensor, Tensor], Tensor], x0: Tensor, process: sde.GeometricBrownian, *,
    times: Tensor | None = None, seed: int | None = None, step: int = 0,
) -> Tensor:  # fmt: skip
    """The mean square of `residual` over a sample's elements, ``(B,)``, differentiable in the model.

    model: (X_k, k ``(B,)``) -> h of X_k's shape. times: ``(B,)``; None: uniform in [t_min, t_max], of stream
    TRAINING_TIME (the paper: t / N, t of 1 .. N = 1000).
    """
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    if times is None:
        place = {"stream": Stream.TRAINING_TIME, "dtype": torch.float64, "device": x0.device}
        u = random.uniform(x0.shape[0], seed=seed, step=step, **place)
        times = process.t_min + (process.t_max - process.t_min) * u
    x = forward(x0, process, times, seed=seed, step=step)
    h = model(x, times.to(x.dtype))
    if not isinstance(h, Tensor) or h.shape != x.shape:
        raise ValueError(f"model must return {tuple(x.shape)}, as x is, got {getattr(h, 'shape', type(h).__name__)}")
    return residual(h, x, x0, process, times).square().flatten(1).mean(1)


# ---- the way back ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class LogStep(sde.GeometricStep):
    """DLS on log X: x' = x + sigma^2 d m + c d^{1/2} sigma z with m = h - mu / sigma^2 + 3/2."""

    native = "raw"

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = super().rows(process, times)
        return [r._replace(results={"x": {**r.results["x"], "x": 1.0}}, multiplicative=False) for r in rows]


@dataclass(frozen=True)
class UnsignedStep(sde.GeometricStep):
    """UMS: x' = (1 + (2 sigma^2 - mu) d) x + sigma^2 d (x h) + c d^{1/2} sigma (x z), Euler-Maruyama's step."""

    native = "raw"

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        found = []
        for r in super().rows(process, times):
            w = dict(r.results["x"])
            w["x"] = 1 + w["x"] + 0.5 * w["m0"]
            found.append(r._replace(results={"x": w}, multiplicative=False))
        return found


def log_moments(data: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of log data, over everything."""
    logs = torch.log(_positive(data, "data").double())
    return float(logs.mean()), float(logs.std(correction=0))


def prior(
    process: sde.GeometricBrownian, batch: int, shape: Sequence[int], *, moments: tuple[float, float] = (0.0, 0.0),
    seed: Any = None, sample_ids: Any = None, dtype: torch.dtype = torch.float32, device: Any = None,
) -> Tensor:  # fmt: skip
    """X at t_max of log-normal data of these log moments, ``(batch, *shape)``; (0, 0): of X_0 = 1, the paper's."""
    mean = moments[0] + (process.mu - 0.5 * process.volatility**2) * process.t_max
    std = math.sqrt(moments[1] ** 2 + process.volatility**2 * process.t_max)
    place = {"stream": Stream.INITIAL_LATENT, "sample_ids": sample_ids, "dtype": dtype, "device": device}
    return torch.exp(mean + std * random.normal(batch, tuple(shape), seed=seed, **place))


def sample(
    model: Callable[..., Tensor], process: sde.GeometricBrownian, shape: Sequence[int], steps: int | None = None,
    seed: int | None = None, *, method: str = "dls", moments: tuple[float, float] = (0.0, 0.0),
    repeats: int = 1, delta: float | None = None, anneal: float = 1.0, final: int = 0, last_mean: bool = True,
    start: Tensor | None = None, dtype: torch.dtype = torch.float32, sample_ids: Any = None, device: Any = None,
    **options: Any,
) -> Any:  # fmt: skip
    """Positive samples ``(B, ...)`` from the log-normal prior, by "dls", "log" or "ums".

    model: (X, k ``(B,)``) -> h = X score(X). repeats, delta, anneal, final: as in `fokker.sde.GeometricStep` (the paper
    on CIFAR-10: DLS delta 1.14e-4, 6 repeats, anneal 0.9995; UMS 1.44e-4, 5 repeats; 25 final steps). Other options and
    the result are those of `fokker.sde.sample`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not isinstance(process, sde.GeometricBrownian):
        raise TypeError(f"process must be a GeometricBrownian, got {type(process).__name__}")
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    place = {"seed": seed, "sample_ids": sample_ids, "dtype": dtype}
    if start is None:
        start = prior(process, shape[0], shape[1:], moments=moments, device=device, **place)
    elif method != "ums":
        _positive(start, "start")
    step: Sampler = {"dls": sde.GeometricStep, "log": LogStep, "ums": UnsignedStep}[method](
        repeats=repeats, delta=delta, anneal=anneal, final=final, last_mean=last_mean
    )
    network: Callable[..., Tensor] = model
    if method == "log":
        start, shift = torch.log(start), 1.5 - process.mu / process.volatility**2
        network = lambda l, k, **c: model(torch.exp(l), k, **c) + shift  # noqa: E731
    elif method == "ums":
        network = lambda x, k, **c: x * model(x, k, **c)  # noqa: E731

        def noise(stream: int, number: int, x: Tensor) -> Tensor:
            at = {"step": number, "stream": stream, "device": x.device}
            return x * random.normal(x.shape[0], tuple(x.shape[1:]), **place, **at)

        options = {"noise": noise, **options}
    found = sde.sample(network, process, step, shape, steps, start=start, **place, **options)
    if method != "log":
        return found
    return found._replace(x=torch.exp(found.x)) if isinstance(found, sde.Run) else torch.exp(found)


def empirical(data: Tensor, process: sde.GeometricBrownian, *, bandwidth: float = 0.0) -> Callable[..., Tensor]:
    """The exact h of a data set ``(N, ...)`` (each log smoothed by ``bandwidth``): a density sum in log coordinates.

    h(x, k) = grad_l log p(l) - 1 at l = log x, p the Gaussian mixture about log data + (mu - sigma^2 / 2) k of variance
    sigma^2 k + bandwidth^2.
    """
    logs = torch.log(_positive(data, "data")).flatten(1)

    def h(x: Tensor, k: Tensor) -> Tensor:
        k = as_time(k).expand(x.shape[0])
        width = torch.sqrt(process.volatility**2 * k + bandwidth**2).to(x.dtype)[:, None]
        rows = torch.log(x).flatten(1) - spread((process.mu - 0.5 * process.volatility**2) * k, x.flatten(1))
        return (kde.score(rows, logs.to(x.dtype), width) - 1).reshape(x.shape)

    return h
