r"""Solvers of the probability flow in a variable of their own as tables: Euler, Heun, and EDM's Heun with churn.

The flow of x / scale in a variable v is linear in state and predicted data D, d/dv (x / scale) = p x + q D:

    v = time                        scale = 1      p = sigma' / sigma    q = alpha' - alpha sigma' / sigma
    v = sigma / alpha ("sigma")     scale = alpha  p = 1 / sigma         q = -alpha / sigma

(Song et al. 2021, equation 13; Karras et al. 2022, equations 1 and 4).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ._sde_samplers import Level, Sampler, levels
from ._sde_table import Row
from .random import Stream

__all__ = ["EDMHeun", "Euler", "Heun"]

VARIABLES = ("auto", "sigma", "time")


class Slope(NamedTuple):
    """A level in the solver's variable."""

    t: float
    scale: float
    v: float
    p: float
    q: float


def _slope(level: Level, process: Any, by_time: bool) -> Slope:
    if by_time:
        if not level.s:
            return Slope(level.t, 1.0, level.t, math.inf, math.inf)
        da, ds = (float(c) for c in process.slopes(level.t))
        return Slope(level.t, 1.0, level.t, ds / level.s, da - level.a * ds / level.s)
    if not level.a:
        raise ValueError(f"variable='sigma' needs alpha > 0, which is 0 at time {level.t:.6g}: use variable='time'")
    p = 1 / level.s if level.s else math.inf
    return Slope(level.t, level.a, level.s / level.a, p, -level.a * p)


def _slopes(process: Any, times: Tensor, variable: str) -> list[Slope]:
    grid = levels(process, times)
    # a path that ends in noise alone is finite in time only
    by_time = variable == "time" or (variable == "auto" and not grid[0].a)
    return [_slope(level, process, by_time) for level in grid]


def _check_variable(variable: str) -> None:
    if variable not in VARIABLES:
        raise ValueError(f"variable must be one of {', '.join(VARIABLES)}, got {variable!r}")


def _euler(old: Slope, new: Slope) -> dict[str, float]:
    dv = new.v - old.v
    return {"x": new.scale * (1 / old.scale + dv * old.p), "m0": new.scale * dv * old.q}


@dataclass(frozen=True)
class Euler(Sampler):
    """x / scale + dv (p x + q D), order 1. In sigma it is `DDIM` with eta = 0; "auto": time where alpha starts at 0."""

    variable: str = "auto"

    def __post_init__(self) -> None:
        _check_variable(self.variable)

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = _slopes(process, times, self.variable)
        return [Row(i, grid[i].t, {"x": _euler(grid[i], grid[i + 1])}) for i in range(len(grid) - 1)]


def _heun(step: int, old: Slope, new: Slope) -> list[Row]:
    first = Row(step, old.t, {"x": _euler(old, new)}, keep=True)
    if not math.isfinite(new.p):
        return [first._replace(keep=False)]
    half = 0.5 * (new.v - old.v) * new.scale
    weights = {"s": new.scale / old.scale + half * old.p, "m1": half * old.q, "x": half * new.p, "m0": half * new.q}
    return [first, Row(step, new.t, {"x": weights})]


@dataclass(frozen=True)
class Heun(Sampler):
    """Euler's step, then the mean of the slopes at its two ends: order 2, two calls a step (one where sigma' = 0)."""

    variable: str = "auto"

    def __post_init__(self) -> None:
        _check_variable(self.variable)

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = _slopes(process, times, self.variable)
        return [row for i in range(len(grid) - 1) for row in _heun(i, grid[i], grid[i + 1])]


@dataclass(frozen=True)
class EDMHeun(Sampler):
    r"""Heun in sigma with noise added before each step (Karras et al. 2022, algorithm 2).

    From level s = sigma / alpha within [s_min, s_max] noise of variance noise^2 (s_hat^2 - s^2) takes x / alpha up to
    s_hat = s (1 + min(churn / steps, 2^{1/2} - 1)); Heun's step leads from there to s'. The noise is of stream CHURN.
    Order 2; with churn, whose noise is exact, in law.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.churn < math.inf and self.noise >= 0 and 0 <= self.s_min <= self.s_max):
            raise ValueError(
                "churn and noise must be >= 0 and s_min <= s_max, "
                f"got churn={self.churn}, noise={self.noise}, s_min={self.s_min}, s_max={self.s_max}"
            )

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = levels(process, times)
        rows = []
        for i, (old, new) in enumerate(itertools.pairwise(grid)):
            s = old.s / old.a if old.a else math.inf
            gamma = min(self.churn / (len(grid) - 1), math.sqrt(2) - 1) if self.s_min <= s <= self.s_max else 0.0
            if gamma and math.isfinite(s):
                up = levels(process, process.time_of_ratio(times.new_tensor([s * (1 + gamma)])))[0]
                # (s_hat^2 - s^2)^{1/2} by the product, which keeps its digits
                noise = up.a * self.noise * s * math.sqrt(gamma * (2 + gamma))
                rows.append(Row(i, None, {"x": {"x": up.a / old.a, "z": noise}}, stream=Stream.CHURN))
                old = up
            rows += _heun(i, _slope(old, process, False), _slope(new, process, False))
        return rows
