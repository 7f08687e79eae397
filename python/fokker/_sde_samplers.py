r"""One-step samplers as tables: Euler-Maruyama, reverse diffusion, ancestral, DDIM, Langevin correction, and others.

A sampler is a small frozen dataclass whose ``rows(process, times)`` gives its affine steps (`_sde_table.Row`) in
float64. Below x -> x' goes from time t to t' with levels alpha, sigma and alpha', sigma'; D is the predicted x_0, s the
score, z fresh noise, dt = t - t' > 0 and h = log(alpha' / sigma') - log(alpha / sigma) > 0. The last step returns its
mean unless ``last_mean=False``.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ._sde_processes import Process
from ._sde_table import Row
from .random import Stream

__all__ = [
    "DDIM", "Ancestral", "ConsistencyTrajectory", "EulerAncestral", "EulerMaruyama",
    "PredictorCorrector", "ReverseDiffusion", "Sampler",
]  # fmt: skip


class Level(NamedTuple):
    """A time of the grid and what the process is there."""

    t: float
    a: float  #: alpha
    s: float  #: sigma
    l: float  #: log(alpha / sigma)


def levels(process: Any, times: Tensor) -> list[Level]:
    """The levels at all times, in float64."""
    if not isinstance(process, Process):
        raise TypeError(f"this sampler takes a Gaussian process (VP, VE, ...), got {type(process).__name__}")
    columns = (times, process.alpha(times), process.sigma(times), process.log_snr(times))
    return [Level(*v) for v in zip(*(c.tolist() for c in columns), strict=True)]


def step_up(old: Level, new: Level) -> float:
    """h > 0, infinite where a level has no signal or no noise."""
    return new.l - old.l


class Sampler:
    """What every sampler has: ``rows``, and ``native``, the prediction its rows are written in."""

    native: str = "x0"
    #: how many earlier predictions a step reads: restarting from a bare state begins with lower orders
    history: int = 0
    #: whether it runs with rising times
    forward: bool = False

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        """The affine steps from times[0] to times[-1]."""
        raise NotImplementedError


def without_last_noise(rows: list[Row], last_mean: bool) -> list[Row]:
    if last_mean and rows:
        row = rows[-1]
        results = {k: {n: w for n, w in v.items() if n != "z"} for k, v in row.results.items()}
        rows[-1] = row._replace(results=results, log_prob=None)
    return rows


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """x' = x - (f x - g^2 s) dt + g dt^{1/2} z (Song et al. 2021, appendix E). Order 1 in law."""

    last_mean: bool = True
    native = "score"

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = []
        grid = levels(process, times)
        f, g2 = process.rate(times).tolist(), process.variance_rate(times).tolist()
        for i in range(len(grid) - 1):
            dt = grid[i].t - grid[i + 1].t
            weights = {"x": 1 - f[i] * dt, "m0": g2[i] * dt, "z": math.sqrt(g2[i] * dt)}
            rows.append(Row(i, grid[i].t, {"x": weights}))
        return without_last_noise(rows, self.last_mean)


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    """x' = (2 - r) x + G^2 s + G z, r = alpha / alpha', G^2 = sigma^2 - r^2 sigma'^2: the forward step's reversal.

    Song et al. 2021, equation 46 and appendix E: for VP (2 - (1 - b)^{1/2}) x + b s + b^{1/2} z, b = 1 - r^2; for VE
    x + (sigma^2 - sigma'^2) s + (sigma^2 - sigma'^2)^{1/2} z. Order 1 in law.
    """

    last_mean: bool = True
    native = "score"

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = []
        grid = levels(process, times)
        for i, (old, new) in enumerate(itertools.pairwise(grid)):
            r, g2 = old.a / new.a, -(old.s**2) * math.expm1(-2 * step_up(old, new))
            rows.append(Row(i, old.t, {"x": {"x": 2 - r, "m0": g2, "z": math.sqrt(g2)}}))
        return without_last_noise(rows, self.last_mean)


@dataclass(frozen=True)
class Ancestral(Sampler):
    """A draw from the posterior q(x_t' | x_t, x_0 = D) (Ho et al. 2020, equations 6, 7; Kingma et al. 2021).

    x' = (sigma' / sigma) e^{-h} x + alpha' (1 - e^{-2h}) D + s z. variance "small": the posterior's, s = sigma' (1 -
    e^{-2h})^{1/2}; "large": the forward step's, s = sigma (1 - e^{-2h})^{1/2}. Order 1 in law.
    """

    variance: str = "small"
    last_mean: bool = True

    def __post_init__(self) -> None:
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance must be 'small' or 'large', got {self.variance!r}")

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = []
        grid = levels(process, times)
        for i, (old, new) in enumerate(itertools.pairwise(grid)):
            h = step_up(old, new)
            share = -math.expm1(-2 * h)
            std = (new.s if self.variance == "small" else old.s) * math.sqrt(share)
            rows.append(Row(i, old.t, {"x": {"x": new.s / old.s * math.exp(-h), "m0": new.a * share, "z": std}}))
        return without_last_noise(rows, self.last_mean)


@dataclass(frozen=True)
class DDIM(Sampler):
    """x' = alpha' D + (sigma'^2 - v^2)^{1/2} (x - alpha D) / sigma + v z, v = eta sigma' (1 - e^{-2h})^{1/2}.

    Song, Meng and Ermon 2021, equation 12 (any alpha, sigma). eta = 0: the probability flow's first-order solver, order
    1; eta = 1: `Ancestral`, order 1 in law.
    """

    eta: float = 0.0
    last_mean: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a finite number >= 0, got {self.eta}")

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = []
        grid = levels(process, times)
        for i, (old, new) in enumerate(itertools.pairwise(grid)):
            up = min(1.0, self.eta * math.sqrt(-math.expm1(-2 * step_up(old, new))))
            keep = new.s / old.s * math.sqrt(1 - up * up)
            rows.append(Row(i, old.t, {"x": {"x": keep, "m0": new.a - keep * old.a, "z": up * new.s}}))
        return without_last_noise(rows, self.last_mean)


@dataclass(frozen=True)
class EulerAncestral(DDIM):
    """Euler to the level sigma_down, then noise up to sigma' (k-diffusion; Karras et al. 2022 on the levels).

    On x / alpha with levels sigma / alpha: sigma_up = min(sigma', eta (sigma'^2 (sigma^2 - sigma'^2) / sigma^2)^{1/2}),
    sigma_down = (sigma'^2 - sigma_up^2)^{1/2}; in other words `DDIM` of this eta. Order 1 in law.
    """

    eta: float = 1.0


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Langevin steps at each level, then the predictor's step (Song et al. 2021, algorithms 2 to 5).

    x' = x + k s + (2 k)^{1/2} z with rule "norm": k = 2 a (snr |z| / |s|)^2, norms taken a sample (norms="sample", for
    states of many elements) or, as published code has it, averaged over the batch (norms="batch", which makes samples
    depend on their company); rule "std": k = 2 a (snr sigma)^2 (annealed Langevin). a = (alpha / alpha')^2. Its bias is
    that of Langevin's steps, O(snr^2), whatever the number of steps; `sample`'s clip does not reach their score.
    """

    predictor: Sampler = field(default_factory=ReverseDiffusion)
    snr: float = 0.16
    corrections: int = 1
    rule: str = "norm"
    norms: str = "sample"

    def __post_init__(self) -> None:
        if self.rule not in ("norm", "std") or self.norms not in ("sample", "batch"):
            raise ValueError(
                f"rule must be 'norm' or 'std' and norms 'sample' or 'batch', got {self.rule!r} and {self.norms!r}"
            )
        if not 0 < self.snr < math.inf:
            raise ValueError(f"snr must be a finite number > 0, got {self.snr}")
        if self.corrections < 0:
            raise ValueError(f"corrections must be >= 0, got {self.corrections}")
        if self.predictor.history:
            raise ValueError("predictor must be a one-step sampler: corrections would fall into its history")

    @property
    def native(self) -> str:  # type: ignore[override]
        return self.predictor.native

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = levels(process, times)
        rows = []
        for row in self.predictor.rows(process, times):
            old, new = grid[row.step], grid[row.step + 1]
            a = (old.a / new.a) ** 2
            for j in range(self.corrections):
                more = {"stream": Stream.CORRECTOR, "number": row.step * self.corrections + j, "native": "score"}
                if self.rule == "std":
                    k = 2 * a * (self.snr * old.s) ** 2
                    rows.append(Row(row.step, old.t, {"x": {"x": 1.0, "m0": k, "z": math.sqrt(2 * k)}}, **more))
                else:
                    rule = (self.snr, a, float(self.norms == "batch"))
                    rows.append(Row(row.step, old.t, {"x": {"x": 1.0, "m0": 0.0}}, langevin=rule, **more))
            rows.append(row)
        return rows


@dataclass(frozen=True)
class ConsistencyTrajectory(Sampler):
    """Jumps along the flow by a network of two times, each with noise put back (Kim et al., "CTM", 2024, algorithm 3).

    On x / alpha with level sigma / alpha: x' = G(x, t, s) + gamma sigma' z where s is the time of level (1 -
    gamma^2)^{1/2} sigma'. gamma = 0: along the flow; gamma = 1: multistep consistency (Song et al. 2023). The model is
    called as model(x, t, s): output "jump": it returns x at s; "residual": g with x(s) = (sigma_s / sigma_t) x + (1 -
    sigma_s / sigma_t) g on that scale. In law exact at any number of steps where the model is.
    """

    gamma: float = 0.0
    output: str = "jump"
    native = "raw"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")
        if self.output not in ("jump", "residual"):
            raise ValueError(f"output must be 'jump' or 'residual', got {self.output!r}")

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        rows = []
        grid = levels(process, times)
        for i, (old, new) in enumerate(itertools.pairwise(grid)):
            level = math.sqrt(1 - self.gamma**2) * new.s / new.a
            target = float(process.time_of_ratio(level)) if 0 < level < new.s / new.a else (new.t if level else 0.0)
            if not level and float(process.sigma(0.0)):
                target = process.t_min
            there = levels(process, times.new_tensor([target]))[0]
            back = new.a / there.a
            weights = {"m0": back, "z": self.gamma * new.s}
            if self.output == "residual":
                weights["x"] = back * there.s / old.s
                weights["m0"] = back * (there.a - old.a * there.s / old.s)
            rows.append(Row(i, old.t, {"x": weights}, target=target))
        return rows
