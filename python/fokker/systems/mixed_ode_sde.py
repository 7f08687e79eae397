r"""MixGRPO: policy gradients of a flow whose steps are noisy inside a sliding window and deterministic outside.

J. Li, Y. Cui, T. Huang, Y. Ma, C. Fan, M. Yang, Z. Zhong, L. Bo, "MixGRPO: Unlocking Flow-based GRPO Efficiency with
Mixed ODE-SDE", 2025 (arXiv 2507.21802); J. Liu et al., "Flow-GRPO", 2025 (arXiv 2505.05470).

A step of a rectified flow with velocity v, from sigma down to sigma' (dt = sigma' - sigma < 0), is Euler's x + v dt
outside the window, and inside it a draw from a Gaussian policy (Flow-GRPO, equation 9)

    x' = x (1 + k^2 dt / (2 sigma)) + v (1 + k^2 (1 - sigma) / (2 sigma)) dt + S z,
    k = a (sigma / (1 - sigma))^{1/2},    S = k (-dt)^{1/2},

with the same marginals. Samples of one prompt are a group; their rewards give advantages A = (r - mean) / std, and the
window's steps alone are trained by

    -mean min(rho A, clip(rho, 1 - e, 1 + e) A),        rho = exp(log p_new(x' | x) - log p_old(x' | x)),

log p averaged over the elements, as both repositories have it (``reduction="sum"`` is the density itself). The window
slides from the noise towards the data as training goes on.

Differences from the papers' code: log-probabilities exist for noisy steps only and are those of the stored x' (not of
fresh noise); the exact Gaussian divergence beside Flow-GRPO's, which leaves out -dt. Steps are `fokker.sde.FlowWindow`,
the loop is `fokker.sde.sample`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random, sde
from ._particles import finite

__all__ = ["Objective", "Rollout", "SlidingWindow", "advantages", "divergence", "loss", "objective", "rollout"]

TITLE = (
    "policy gradients of flows with noise in a sliding window of steps: log-probabilities, group advantages, clipping"
)
PAPER = "Li et al., 2025, arXiv 2507.21802"
EXAMPLE = "mixed_ode_sde.loss(flow, mixed_ode_sde.rollout(flow, (64, 2), 16, (0, 4), seed=0), advantages).backward()"


@dataclass(frozen=True)
class SlidingWindow:
    """Where the window is at an iteration of training: (first, behind the last) of ``steps`` steps.

    It moves by ``stride`` steps after ``interval`` iterations and begins again behind the last place. strategy
    "progressive": as said; "decay": place l is kept for interval exp(-rate max(0, l - after)) iterations, at least one
    (the paper's exponential decay); "random": a place drawn for each iteration; "frozen": the first place for ever.
    """

    steps: int
    size: int
    stride: int = 1
    interval: int = 25
    strategy: str = "progressive"
    rate: float = 0.1
    after: int = 13
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in ("progressive", "decay", "random", "frozen"):
            raise ValueError(f"strategy must be 'progressive', 'decay', 'random' or 'frozen', got {self.strategy!r}")
        if not 1 <= self.size <= self.steps:
            raise ValueError(f"size must be in [1, {self.steps}], the steps, got {self.size}")
        if self.stride < 1 or self.interval < 1:
            raise ValueError(f"stride and interval must be >= 1, got {self.stride} and {self.interval}")

    def __call__(self, iteration: int) -> tuple[int, int]:
        """The window of an iteration, counted from 0."""
        places = range(0, self.steps - self.size + 1, self.stride)
        first = 0
        if self.strategy == "random":
            first = int(random.bits(1, (), seed=self.seed, step=iteration)) % (self.steps - self.size + 1)
        elif self.strategy != "frozen":
            lengths = [self.interval] * len(places)
            if self.strategy == "decay":
                lengths = [max(1, round(self.interval * math.exp(-self.rate * max(0, p - self.after)))) for p in places]
            left = iteration % sum(lengths)
            for first, length in zip(places, lengths, strict=True):  # noqa: B007
                if left < length:
                    break
                left -= length
        return first, first + self.size


class Rollout(NamedTuple):
    """Samples, and what training needs of the noisy steps."""

    x: Tensor  #: at the end, ``(B, ...)``
    states: tuple[Tensor, ...]  #: before each noisy step and behind the last one
    log_probs: Tensor  #: ``(noisy steps, B)`` in float64
    steps: tuple[int, ...]  #: which ones are noisy
    times: Tensor
    sampler: sde.FlowWindow
    reduction: str


def rollout(
    model: Callable[..., Tensor], shape: Sequence[int], steps: int | None, window: tuple[int, int], seed: Any = None, *,
    noise: float = 0.7, kind: str = "flow", times: Any = None, reduction: str = "mean",
    process: sde.RectifiedFlow | None = None, prediction: str = "flow", **options: Any,
) -> Rollout:  # fmt: skip
    """Samples with noise in the steps ``window`` = (first, behind the last) and Euler's steps outside.

    Args:
        model: the velocity (or what ``prediction`` says), called as model(x, t) as in `fokker.sde.sample`, whose other
            options go through. For one start a group: ``start``, samples of `process.prior_sample` repeated.
        kind: "flow", "dance" or "cps", see `fokker.sde.FlowWindow`. The last step of all is the mean, without noise.
        reduction: of log-probabilities over elements, "mean" or "sum".
    """
    flow, sampler = process or sde.RectifiedFlow(), sde.FlowWindow(noise, window, kind)
    before: list[Tensor] = []
    if options.pop("callback", None) is not None:
        raise ValueError("callback is taken: it keeps the window's states")

    def keep(state: sde.State) -> None:
        if window[0] <= state.step <= window[1]:
            before.append(state.x)

    if window[0] == 0:  # the state that no step has made
        if options.get("start") is None:
            place = {"sample_ids": options.get("sample_ids"), "device": options.get("device")}
            seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
            options["start"] = flow.prior_sample(
                shape[0], tuple(shape[1:]), seed=seed, dtype=options.get("dtype", torch.float32), **place
            )
        before.append(options["start"])
    found = sde.sample(
        model, flow, sampler, shape, steps, seed, times=times, prediction=prediction, callback=keep, full=True,
        log_prob_reduction=reduction, **options,
    )  # fmt: skip
    noisy = found.log_prob_steps
    return Rollout(
        finite(found.x), tuple(before[: len(noisy) + 1]), found.log_probs, noisy, found.times, sampler, reduction
    )


def advantages(rewards: Tensor, group: int, *, scale: bool = True, limit: float = 5.0, floor: float = 1e-8) -> Tensor:
    """(r - mean) / std of each group of ``group`` samples that follow one another, ``(B,)`` in float64.

    scale: whether to divide by the standard deviation (without it: the unbiased advantage of "Dr. GRPO"). A group of
    equal rewards has advantage 0. limit: clamped to it.
    """
    if not isinstance(rewards, Tensor) or rewards.dim() != 1:
        seen = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ValueError(f"rewards must have shape (B,), got {seen}")
    if group < 2 or len(rewards) % group:
        raise ValueError(f"group must be at least 2 and divide the {len(rewards)} rewards, got {group}")
    r = rewards.detach().double().reshape(-1, group)
    left = r - r.mean(1, keepdim=True)
    if scale:
        left = left / r.std(1, keepdim=True).clamp(min=floor)
    return left.clamp(-limit, limit).flatten()


class Objective(NamedTuple):
    """The clipped objective of one step."""

    loss: Tensor
    ratio: Tensor  #: rho, ``(B,)``
    clipped: Tensor  #: the share of samples outside the clip


def objective(new: Tensor, old: Tensor, advantage: Tensor, clip: float = 1e-4) -> Objective:
    """-mean min(rho A, clip(rho, 1 - clip, 1 + clip) A), differentiable in ``new``; all ``(B,)``.

    The papers' clip of 1e-4 is for log-probabilities averaged over the elements.
    """
    if not new.shape == old.shape == advantage.shape:
        raise ValueError(
            f"new {tuple(new.shape)}, old {tuple(old.shape)} and advantage {tuple(advantage.shape)} must be alike"
        )
    rho = torch.exp(new - old.detach())
    held = rho.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(rho * advantage, held * advantage)
    return Objective(-gain.mean(), rho.detach(), (rho.detach() != held.detach()).double().mean())


def _velocity(model: Any, found: Rollout, i: int) -> Tensor:
    x = found.states[i]
    v = model(x, x.new_full((x.shape[0],), float(found.times[found.steps[i]])))
    if not isinstance(v, Tensor) or v.shape != x.shape:
        seen = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"the model must return a tensor of x's shape {tuple(x.shape)}, got {seen}")
    return v


def loss(
    model: Callable[..., Tensor], found: Rollout, advantage: Tensor, *, clip: float = 1e-4,
    reference: Callable[..., Tensor] | None = None, weight: float = 0.0, kind: str = "exact", backward: bool = False,
) -> Tensor:  # fmt: skip
    """The objective averaged over the window's steps, and ``weight`` times the divergence from a ``reference`` model.

    model: the velocity, called once a step. backward: each step's gradient is added at once and its graph freed, so
    that memory holds one call; the result is then detached.
    """
    if not found.steps:
        raise ValueError("the rollout has no noisy step: nothing to train on")
    if advantage.shape != found.x.shape[:1]:
        raise ValueError(f"advantage must have shape ({found.x.shape[0]},), got {tuple(advantage.shape)}")
    total: Any = 0.0
    for i, step in enumerate(found.steps):
        v = _velocity(model, found, i)
        x, after = found.states[i], found.states[i + 1]
        new = sde.step_log_prob(x, after, v, found.sampler, found.times, step, reduction=found.reduction)
        part = objective(new, found.log_probs[i], advantage, clip).loss
        if weight and reference is not None:
            with torch.no_grad():
                fixed = _velocity(reference, found, i)
            part = part + weight * divergence(v, fixed, found, i, kind=kind).mean()
        part = part / len(found.steps)
        if backward:
            part.backward()
            part = part.detach()
        total = total + part
    return total


def divergence(velocity: Tensor, reference: Tensor, found: Rollout, i: int, *, kind: str = "exact") -> Tensor:
    """KL of the window's i-th step between two velocities, ``(B,)``, averaged or summed as log-probabilities are.

    "exact": |difference of means|^2 / (2 S^2); "flow_grpo": over 2 k^2, as its code has it, that is -dt times it.
    """
    if kind not in ("exact", "flow_grpo"):
        raise ValueError(f"kind must be 'exact' or 'flow_grpo', got {kind!r}")
    t, step = found.times.tolist(), found.steps[i]
    _, b, s = found.sampler.step(t, step)
    square = (velocity - reference).double().square().flatten(1)
    square = square.mean(1) if found.reduction == "mean" else square.sum(1)
    return 0.5 * (b / s) ** 2 * square * (t[step] - t[step + 1] if kind == "flow_grpo" else 1.0)
