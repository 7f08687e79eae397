r"""Posterior samples of inverse problems by weighted particles under a diffusion prior, without approximation.

H. Chen, Y. Ren, M. R. Min, L. Ying and Z. Izzo, "Solving Inverse Problems via Diffusion-Based Priors: An
Approximation-Free Ensemble Sampling Approach", 2025 (arXiv 2506.03979; AFDPS).

With the prior's diffused density p_t, its score s, and a measurement y = A(x_0) + noise of standard deviation sigma_y,
the target at time t is pi_t ~ p_t(x) e^{-mu_t(x)},

    mu_t(x) = |A(x / alpha) - y|^2 / (2 r_t^2),        r_t^2 = sigma_y^2 + (gamma sigma / alpha)^2,

which is the posterior at the end. Their modified Fokker-Planck equation has a drift, a diffusion and a rate of birth
and death; as stochastic weighted particles, down the time of dx = f x dt + g dW (dtau > 0),

    dx = [-f x + g^2 ((1 + zeta^2) s / 2 - c grad mu)] dtau + zeta g dW
    dw = g^2 [h |grad mu|^2 - (1/2 + h) <s, grad mu> - h Lap mu] dtau - d mu at fixed x / alpha,     h = c - zeta^2 / 2.

zeta = c = 1 are theirs (with f = 0 and g^2 = 2 t: 2 t (s - grad mu) and t (|grad mu|^2 - Lap mu) - 2 t <s, grad mu>);
c = zeta^2 / 2 needs no Laplacian, and has had the more even weights here.

Differences from the paper's code: any Gaussian process; the rise of mu_t as r_t falls enters the weights, so gamma > 0
stays exact (it tames the start, and explicit guidance, which wants c g^2 dt |grad A|^2 < (alpha r)^2: operators that
grow faster than x diverge at high noise); a particle that is not finite is an error, not a weight of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random
from ..random import Stream
from ._driver import Method, Particles, Run, Step, drive

__all__ = ["Measurement", "ParticlePosterior"]

TITLE = "posterior samples of linear and nonlinear inverse problems by weighted particles under a diffusion prior"
PAPER = "Chen et al., 2025, arXiv 2506.03979"
EXAMPLE = (
    "particle_posterior.ParticlePosterior(model, Measurement(A, y, 0.5)).sample(sde.EDM(), (1024, 64), 100, seed=0)"
)


class Measurement:
    """y = A(x_0) + noise_std z.

    Args:
        operator: a matrix ``(m, D)`` over the flattened sample, or a function of ``(B, ...)`` with results
            ``(B, *y.shape)``, differentiable (twice, where a Laplacian is wanted).
        y: what was measured, without a batch dimension.
        noise_std: sigma_y > 0.
        inflation: gamma >= 0.
    """

    def __init__(
        self, operator: Tensor | Callable[[Tensor], Tensor], y: Tensor, noise_std: float, inflation: float = 1.0
    ) -> None:
        if not isinstance(y, Tensor):
            raise TypeError(f"y must be a tensor, got {type(y).__name__}")
        if isinstance(operator, Tensor):
            if operator.dim() != 2 or operator.shape[0] != y.numel():
                raise ValueError(f"operator must be a matrix ({y.numel()}, D) for y, got {tuple(operator.shape)}")
        elif not callable(operator):
            raise TypeError(f"operator must be a matrix or a function, got {type(operator).__name__}")
        if not 0 < noise_std < math.inf:
            raise ValueError(f"noise_std must be finite and > 0, got {noise_std}")
        if not 0 <= inflation < math.inf:
            raise ValueError(f"inflation must be finite and >= 0, got {inflation}")
        self.operator, self.y, self.noise_std, self.inflation = operator, y, float(noise_std), float(inflation)
        # the Laplacian of the misfit of a matrix, the same everywhere
        self._curve = operator.double().square().sum() if isinstance(operator, Tensor) else None

    def residual(self, run: Run, u: Tensor) -> Tensor:
        """A(u) - y, ``(B, m)``."""
        y = self.y.to(u)
        if isinstance(self.operator, Tensor):
            if self.operator.shape[1] != run.dim:
                raise ValueError(f"operator must have {run.dim} columns, one an element, got {self.operator.shape[1]}")
            return u.flatten(1) @ self.operator.to(u).T - y.flatten()
        return (run.checked("operator", self.operator(u), (u.shape[0], *y.shape)) - y).flatten(1)

    def evaluate(self, run: Run, u: Tensor, probes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Any]:
        """R = |A(u) - y|^2 / 2 ``(B,)``, its gradient and, as the mean over probes, its Laplacian."""
        if isinstance(self.operator, Tensor):
            left = self.residual(run, u)
            slope = (left @ self.operator.to(u)).reshape(u.shape)
            return 0.5 * left.double().square().sum(1), slope, self._curve
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            value = 0.5 * self.residual(run, u).double().square().sum(1)
            if not value.requires_grad:
                raise ValueError("operator must be differentiable in its argument: its result has no gradient")
            (slope,) = torch.autograd.grad(value.sum(), u, create_graph=bool(len(probes)))
            total: Any = 0.0
            for e in probes:
                (curve,) = torch.autograd.grad(slope, u, e, retain_graph=True)
                total = total + (curve * e).double().flatten(1).sum(1) / len(probes)
        return value.detach(), slope.detach(), total


class ParticlePosterior(Method):
    """Weighted samples of the posterior of x_0 given a measurement.

    Args:
        model: the prior's, called as model(x, t) as in `fokker.sde.sample`.
        measurement: a `Measurement`.
        noise: zeta > 0.
        guidance: c; 1 as the paper has it.
        laplacian: for operators that are functions: "exact" (as many backward passes as a sample has elements, divided
            by nothing), or the number of Hutchinson probes a step, whose noise enters the weights. Matrices are exact.
        weigh: without it the same particles unweighted, which sample another law.
    """

    extra = ("the measurement's gradient",)

    def __init__(
        self, model: Any, measurement: Measurement, *, noise: float = 1.0, guidance: float = 1.0,
        laplacian: str | int = 1, weigh: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(model)
        if len(self.models) != 1:
            raise ValueError(f"model must be one model, got {len(self.models)}")
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement must be a Measurement, got {type(measurement).__name__}")
        if not (0 < noise < math.inf and math.isfinite(guidance)):  # twins of a resampled particle must part
            raise ValueError(f"noise must be finite and > 0 and guidance finite, got {noise} and {guidance}")
        if laplacian != "exact" and not (isinstance(laplacian, int) and laplacian >= 1):
            raise ValueError(f"laplacian must be 'exact' or a number of probes >= 1, got {laplacian!r}")
        self.measurement, self.noise, self.guidance, self.laplacian = measurement, noise, guidance, laplacian
        self.weighted = weigh

    def sample(
        self, process: Any, shape: Sequence[int], steps: int | None = None, seed: Any = None, **options: Any
    ) -> Particles:
        """Particles at the end of the grid (x / alpha is x_0 there); options of `fokker.systems._driver.drive`."""
        return drive(self, process, shape, steps, seed, **options)

    def begin(self, run: Run, x: Tensor) -> None:
        m, zeta = self.measurement, self.noise
        self.h = self.guidance - 0.5 * zeta**2
        # 1 / r^2 at every time; nothing is left of the inflation at the end
        self.precision = [1 / (m.noise_std**2 + (m.inflation * k.sigma / k.alpha) ** 2) for k in run.steps]
        self.precision.append(m.noise_std**-2)
        rows = []
        for k, precision in zip(run.steps, self.precision, strict=False):
            pull = k.g2 * k.dt
            push = -self.guidance * pull * precision / k.alpha
            rows.append([1 - k.f * k.dt, 0.5 * (1 + zeta**2) * pull, push, zeta * math.sqrt(pull)])
        self.table = run.table(rows)
        if self.weighted:
            run.weigh(-self.precision[0] * m.evaluate(run, x / run.steps[0].alpha, ())[0])

    def probes(self, run: Run, k: Step, x: Tensor) -> list[Tensor]:
        """What the Laplacian is taken along."""
        if not (self.weighted and self.h) or isinstance(self.measurement.operator, Tensor):
            return []
        if self.laplacian == "exact":
            unit = torch.eye(run.dim, dtype=x.dtype, device=x.device).reshape(-1, 1, *x.shape[1:])
            return [math.sqrt(run.dim) * e.expand(x.shape) for e in unit]
        place = {"seed": run.seed, "stream": Stream.HUTCHINSON, "sample_ids": run.ids, "device": x.device}
        at = range(k.index * self.laplacian, (k.index + 1) * self.laplacian)  # type: ignore[operator]
        return [random.rademacher(len(x), tuple(x.shape[1:]), step=j, dtype=x.dtype, **place) for j in at]

    def step(self, run: Run, k: Step, x: Tensor) -> Tensor:
        m = run.outputs(k, x)
        value, slope, curve = self.measurement.evaluate(run, x / k.alpha if k.alpha != 1 else x, self.probes(run, k, x))
        y, p = run.move(k, x, m, self.table, row=k.index, extra=(slope,), noisy=False)
        if self.weighted:
            now, then = self.precision[k.index : k.index + 2]
            scale = now / k.alpha  # grad mu over the slope
            along = self.h * scale**2 * p.ee[:, 0, 0] - (0.5 + self.h) * scale * p.se[:, 0, 0]
            run.weigh(k.g2 * k.dt * (along - self.h * scale / k.alpha * curve) - (then - now) * value)
        return y
