r"""Rectified flow with noise inside a window of steps, and the log-probabilities of its steps (policy gradients).

With sigma = t, dt = t' - t < 0 and the velocity v of the network, a noisy step is x' = mean + S z:

    "flow"   mean = x (1 + k^2 dt / (2 t)) + v (1 + k^2 (1 - t) / (2 t)) dt,  S = k (-dt)^{1/2},
             k = noise (t / (1 - t))^{1/2}
    "dance"  the same with k = noise
    "cps"    mean = (1 - t') (x - t v) + (t'^2 - S^2)^{1/2} (x + (1 - t) v),  S = t' sin(noise pi / 2)

(Liu et al., "Flow-GRPO", 2025, equation 9; Xue et al., "DanceGRPO", 2025, equation 8; Wang and Yu, "Coefficients-
preserving sampling", 2025), and outside the window Euler's x + v dt (Li et al., "MixGRPO", 2025). Step
log-probabilities are of N(x'; mean, S^2 I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._sde_processes import RectifiedFlow
from ._sde_samplers import Sampler, without_last_noise
from ._sde_step import gram
from ._sde_table import Row

__all__ = ["FlowWindow", "gaussian_log_prob", "step_log_prob"]

KINDS = ("flow", "dance", "cps")


@dataclass(frozen=True)
class FlowWindow(Sampler):
    """Steps ``window`` = (first, behind the last) with noise, the others without; None: all of them.

    "flow" and "dance" have the flow's marginals as the steps shrink (order 1 in law); the noise of "cps" does not
    shrink with them, and its marginals are off by design.
    """

    noise: float = 0.7
    window: tuple[int, int] | None = None
    kind: str = "flow"
    last_mean: bool = True
    native = "flow"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and >= 0, got {self.noise}")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window must be (first, behind the last) with 0 <= first <= last, got {self.window}")

    def step(self, t: Sequence[float], i: int) -> tuple[float, float, float]:
        """(weight of x, weight of v, S) of step i between the times t."""
        now, dt = t[i], t[i + 1] - t[i]
        if not self.noise or (self.window is not None and not self.window[0] <= i < self.window[1]):
            return 1.0, dt, 0.0
        if self.kind == "cps":
            s = t[i + 1] * math.sin(self.noise * math.pi / 2)
            keep = math.sqrt(t[i + 1] ** 2 - s * s)
            return 1 - t[i + 1] + keep, -(1 - t[i + 1]) * now + keep * (1 - now), s
        k = self.noise
        if self.kind == "flow":  # at t = 1, where it is infinite, k is that of the next time
            k *= math.sqrt(now / (1 - (now if now < 1 else t[1])))
        half = 0.5 * k * k * dt / now
        return 1 + half, dt + half * (1 - now), k * math.sqrt(-dt)

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        if not isinstance(process, RectifiedFlow):
            raise TypeError(f"FlowWindow takes a RectifiedFlow process, got {type(process).__name__}")
        t, rows = times.tolist(), []
        for i in range(len(t) - 1):
            a, b, s = self.step(t, i)
            weights = {"x": a, "m0": b, **({"z": s} if s else {})}
            rows.append(Row(i, t[i], {"x": weights}, log_prob=s or None))
        return without_last_noise(rows, self.last_mean)


def gaussian_log_prob(square: Tensor, std: float, elements: int, reduction: str) -> Tensor:
    """log N(std z; 0, std^2 I) of |z|^2 ``(B,)``, summed or averaged over the elements."""
    total = -0.5 * square - elements * (math.log(std) + 0.5 * math.log(2 * math.pi))
    return total / elements if reduction == "mean" else total


def step_log_prob(
    x: Tensor, x_next: Tensor, velocity: Tensor, sampler: FlowWindow, times: Sequence[float] | Tensor, step: int, *,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """log N(x_next; mean(x, velocity), S^2 I) of a stored step, ``(B,)`` in float64.

    Args:
        x, x_next: ``(B, ...)`` before and after the step.
        velocity: the network's output at x, in whose parameters the result is differentiable.
        times: those of the run; ``step`` counts from 0.
        reduction: "mean" or "sum" over a sample's elements.

    Raises:
        ValueError: a step without noise, which has no density; a step that does not exist; an unknown reduction.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    t = [float(v) for v in times]
    if not 0 <= step < len(t) - 1:
        raise ValueError(f"step must be in [0, {len(t) - 1}), got {step}")
    a, b, s = sampler.step(t, step)
    if not s or (sampler.last_mean and step == len(t) - 2):
        raise ValueError(f"step {step} has no noise, and so no density")
    # |x_next - a x - b velocity|^2 / S^2 from inner products, whose float64 sums can bear the cancellation: one read of
    # each tensor, and one more for the gradient
    weights = torch.tensor([1 / s, -a / s, -b / s], dtype=torch.float64, device="cpu")
    form = torch.outer(weights, weights).flatten().to(x.device)
    square = gram([x_next.to(x.dtype), x, velocity]).flatten(1) @ form
    return gaussian_log_prob(square, s, x[0].numel(), reduction)
