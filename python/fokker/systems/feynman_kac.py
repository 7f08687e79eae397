r"""Feynman-Kac correctors: samples of powers, products and tilts of diffusion models, unbiased by weights.

M. Skreta, T. Akhound-Sadegh, V. Ohanesian, R. Bondesan, A. Aspuru-Guzik, A. Doucet, R. Brekelmans, A. Tong and
K. Neklyudov, "Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts", ICML 2025 (arXiv
2503.02819).

With the scores s_i of models q_i, exponents b_i, a reward r and a schedule beta, the target at every time is

    p ~ q_1^{b_1} ... q_M^{b_M} e^{beta r},    S = sum_i b_i s_i,    B = sum_i b_i,    U = S + beta grad r.

Down the time of a process dx = f x dt + g dW in D dimensions (dtau > 0), particles and their log weights move by

    dx = (-f x + g^2 (S + zeta^2 U) / 2) dtau + zeta g dW
    dw = [(B - 1) D f - f beta <x, grad r> + g^2 (<S, U> - sum_i b_i |s_i|^2) / 2] dtau + r dbeta

which is the paper's propositions 3.1 (annealing: one model, b), 3.2 (products: b = 1, 1), 3.3 (geometric averages and
classifier-free guidance: b = 1 - w, w) and its reward tilting in one formula, for noise of any share zeta: drift and
noise are tied (annealing at zeta = 1 / b^{1/2} has drift g^2 (b + 1) s / 2 and more uneven weights). What is
usually done, the drift without the weights, is ``correct=False``: it samples another law.

Differences from the paper's code: weights accumulate until a population is resampled and are reset only there; they are
neither centred nor clamped over the batch; the noise is exactly the one the weights are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._driver import Method, Particles, Run, Step, drive

__all__ = ["FeynmanKac", "anneal", "geometric", "guide", "product", "tilt"]

TITLE = "Feynman-Kac correctors: annealed, guided, averaged, multiplied and reward-tilted models, unbiased by weights"
PAPER = "Skreta et al., ICML 2025, arXiv 2503.02819"
EXAMPLE = "feynman_kac.product([model_a, model_b]).sample(sde.VP(), (512, 2), 200, seed=0)"


class FeynmanKac(Method):
    """Weighted samples of q_1^{b_1} ... q_M^{b_M} e^r.

    Args:
        models: one model or several, called as model(x, t) as in `fokker.sde.sample`.
        exponents: b, one number a model; their sum must be > 0, as the start is N(0, prior_std^2 / B).
        reward: r, called as reward(x), differentiable: ``(B, ...)`` -> ``(B,)``. None: no tilt.
        schedule: beta at a time of the process, from 0 at its t_max to 1; None: the share of the steps done.
        noise: zeta > 0, the share of the noise g; less than 1 over a long range makes the weights heavy-tailed.
        correct: whether to weigh and resample; without it this is the usual heuristic.
    """

    def __init__(
        self, models: Any, exponents: float | Sequence[float] = 1.0, *,
        reward: Callable[[Tensor], Tensor] | None = None, schedule: Callable[[float], float] | None = None,
        noise: float = 1.0, correct: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(models)
        given = [exponents] * len(self.models) if isinstance(exponents, (int, float)) else exponents
        b = [float(e) for e in given]
        if len(b) != len(self.models):
            raise ValueError(f"exponents must be one number a model ({len(self.models)}), got {len(b)}")
        if not (all(map(math.isfinite, b)) and sum(b) > 0):
            raise ValueError(f"exponents must be finite with a sum > 0, got {b}")
        if not 0 < noise < math.inf:
            raise ValueError(f"noise must be finite and > 0 (twins of a resampled particle must part), got {noise}")
        self.exponents, self.reward, self.schedule, self.noise = b, reward, schedule, float(noise)
        self.weighted, self.spread = correct, sum(b) ** -0.5
        if reward is not None:
            self.extra, self.reads_x = ("the reward's gradient",), True

    def sample(
        self, process: Any, shape: Sequence[int], steps: int | None = None, seed: Any = None, **options: Any
    ) -> Particles:
        """Weighted samples of the target at the end of the grid; options of `fokker.systems._driver.drive`."""
        return drive(self, process, shape, steps, seed, **options)

    def begin(self, run: Run, x: Tensor) -> None:
        b, zeta, steps = self.exponents, self.noise, run.steps
        times = [*(k.t for k in steps), steps[-1].t - steps[-1].dt]
        self.beta = [0.0] * len(times)
        if self.reward is not None:
            share = [i / len(steps) for i in range(len(times))]
            self.beta = share if self.schedule is None else [float(self.schedule(t)) for t in times]
        rows = [[1 - k.f * k.dt, *(0.5 * (1 + zeta**2) * k.g2 * k.dt * e for e in b)] for k in steps]
        if self.reward is not None:
            for k, row in zip(steps, rows, strict=True):
                row.append(0.5 * zeta**2 * k.g2 * k.dt * self.beta[k.index])
        self.table = run.table([[*row, zeta * math.sqrt(k.g2 * k.dt)] for k, row in zip(steps, rows, strict=True)])
        e = torch.tensor(b, dtype=torch.float64, device="cpu")
        self.square = (torch.outer(e, e) - torch.diag(e)).to(x.device)  # |S|^2 - sum b |s|^2 as a form of the s
        self.weights = e.to(x.device)
        if self.beta[0] and self.weighted:
            run.weigh(self.beta[0] * rewarded(run, self.reward, x)[0])

    def step(self, run: Run, k: Step, x: Tensor) -> Tensor:
        m = run.outputs(k, x)
        now, then = self.beta[k.index : k.index + 2]
        value, extra = (None, ()) if self.reward is None else rewarded(run, self.reward, x)
        y, p = run.move(k, x, m, self.table, row=k.index, extra=extra, noisy=False)
        if self.weighted:
            form = (p.ss * self.square).sum((1, 2))
            if value is not None:
                form = form + now * (p.se[:, :, 0] @ self.weights)
            change = 0.5 * k.g2 * k.dt * form + (sum(self.exponents) - 1) * run.dim * k.f * k.dt
            if value is not None:
                change = change - k.f * k.dt * now * p.ex[:, 0] + (then - now) * value
            run.weigh(change)
        return y


def rewarded(run: Run, reward: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor]]:
    """r ``(B,)`` in float64 and its gradient."""
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        value = run.checked("reward", reward(y), x.shape[:1])
        if not value.requires_grad:
            raise ValueError("reward must be differentiable in x: its result has no gradient")
        (slope,) = torch.autograd.grad(value.sum(), y)
    return value.detach().double(), (slope,)


def anneal(model: Any, beta: float, **options: Any) -> FeynmanKac:
    """q^beta: sharper for beta > 1 (proposition 3.1)."""
    return FeynmanKac(model, beta, **options)


def product(models: Sequence[Any], exponents: float | Sequence[float] = 1.0, **options: Any) -> FeynmanKac:
    """The product of models, each to its exponent (proposition 3.2)."""
    return FeynmanKac(models, exponents, **options)


def geometric(models: Sequence[Any], weights: Sequence[float], **options: Any) -> FeynmanKac:
    """The geometric average: exponents that sum to one (proposition 3.3)."""
    if abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"weights must sum to one, got {sum(weights)}")
    return FeynmanKac(models, weights, **options)


def guide(model: Any, unconditional: Any, weight: float, **options: Any) -> FeynmanKac:
    """Classifier-free guidance: q_unconditional^{1 - w} q^w, w > 1 away from the unconditional model."""
    return FeynmanKac([unconditional, model], [1 - weight, weight], **options)


def tilt(model: Any, reward: Callable[[Tensor], Tensor], **options: Any) -> FeynmanKac:
    """q e^r."""
    return FeynmanKac(model, 1.0, reward=reward, **options)
