"""What a step of the published methods costs beside its model calls, against the same step in plain PyTorch."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import sde
from ..systems import dmcmc, feynman_kac, mixed_ode_sde, particle_posterior, score_sde, superdiff
from .benches import Bench


def benches() -> Iterator[Bench]:
    """All of them: models return a tensor that is there."""
    yield _dmcmc((64, 3, 32, 32), 1000, 20)
    for make in (_score_sde, _superdiff_or, _superdiff_and, _feynman_kac, _particle_posterior, _rollout, _training):
        for shape, steps in (((64, 3, 32, 32), 20), ((64, 3, 64, 64), 10)):
            name, ours, plain = make(shape, steps)
            yield Bench(
                f"{name}, {steps} steps of {' x '.join(str(n) for n in shape)}",
                {"fokker": ours, "torch": plain},
                {"torch": 3.0},
                elements=steps * math.prod(shape),
                note="all but the models, which return a tensor that is there",
            )


def _dmcmc(shape: tuple[int, ...], count: int, steps: int) -> Bench:
    """Langevin and Gibbs steps over ``count`` noise levels, the state of least sigma kept of every ten."""
    sigmas, batch = dmcmc.levels(0.01, 50.0, count), shape[0]
    x0, score, logits = torch.randn(shape), torch.randn(shape), torch.randn(batch, count)
    first = sigmas[torch.arange(batch) * count // batch]
    ours = functools.partial(
        dmcmc.chain, lambda x, s: score, lambda x: logits, sigmas, shape, steps // 10, 0,
        skip=10, prediction="score", start=x0, sigma=first,
    )  # fmt: skip
    levels = sigmas.float()

    def plain() -> list[tuple[Tensor, Tensor]]:
        x, s, kept = x0, first.float(), []
        for _ in range(steps // 10):
            best, least = x, torch.full_like(s, math.inf)
            for _ in range(10):
                eta = (0.5 * s).square()[:, None, None, None]
                x = x + 0.5 * eta * score + eta.sqrt() * torch.randn_like(x)
                s = levels[torch.multinomial(torch.softmax(logits, 1), 1)[:, 0]]
                better = s < least
                best, least = torch.where(better[:, None, None, None], x, best), torch.where(better, s, least)
            kept.append((best, least))
        return kept

    return Bench(
        f"dmcmc, {steps} steps of {' x '.join(str(n) for n in shape)}, {count} levels",
        {"fokker": ours, "torch": plain},
        {"torch": 3.0},
        elements=steps * math.prod(shape),
        note="all but the model and the classifier",
    )


Contenders = tuple[str, Callable[[], object], Callable[[], object]]


def _wide(v: Tensor) -> Tensor:
    return v[:, None, None, None]


def _grid(process: sde.Process, steps: int) -> list[tuple[float, float, float]]:
    """(f, g^2, dt) of each step."""
    t = sde.uniform(process, steps)
    columns = (process.rate(t[:-1]), process.variance_rate(t[:-1]), -t.diff())
    return list(zip(*(c.tolist() for c in columns), strict=True))


def _score_sde(shape: tuple[int, ...], steps: int) -> Contenders:
    """Reverse diffusion with one Langevin correction a step (Song et al. 2021, algorithms 3 and 5), VP."""
    x0, score, process, snr = torch.randn(shape), torch.randn(shape), sde.VP(), 0.16
    t = sde.uniform(process, steps)
    ratios = (process.alpha(t[:-1]) / process.alpha(t[1:])).square().tolist()

    def plain() -> Tensor:
        x = x0
        for a in ratios:
            z = torch.randn_like(x)
            lengths = [v.reshape(len(v), -1).norm(dim=-1).mean() for v in (score, z)]
            k = torch.full((len(x),), a) * 2 * (snr * lengths[1] / lengths[0]) ** 2
            x = x + _wide(k) * score + _wide((2 * k).sqrt()) * z
            f, g = math.sqrt(a) * x - x, torch.full((len(x),), math.sqrt(1 - a))
            z = torch.randn_like(x)
            mean = x - (f - _wide(g) ** 2 * score)
            x = mean + _wide(g) * z
        return mean

    ours = functools.partial(
        score_sde.predictor_corrector, lambda x, t: score, process, shape, None, 0, times=t, start=x0, norms="batch",
        snr=snr,
    )  # fmt: skip
    return "score_sde, predictor and corrector", ours, plain


def _superposition(shape: tuple[int, ...], steps: int, mode: str) -> Contenders:
    """Two models: the densities' estimates and the weights of OR (algorithm 1) or of AND (proposition 6)."""
    x0, s1, s2, process = torch.randn(shape), torch.randn(shape), torch.randn(shape), sde.VP()
    d = math.prod(shape[1:])

    def total(v: Tensor) -> Tensor:
        return v.flatten(1).sum(1)

    def plain() -> Tensor:
        x, logs = x0, torch.zeros(len(x0), 2)
        for f, g2, dt in _grid(process, steps):
            z = torch.randn_like(x)
            noise = math.sqrt(g2 * dt) * z
            if mode == "and":
                gap = s1 - s2
                dx = (-f * x + g2 * s2) * dt + noise
                kappa = 0.5 * g2 * dt * (total(s1**2) - total(s2**2)) - total((dx + f * dt * x) * gap)
                kappa = kappa / (g2 * dt * total(gap**2))
                score = s2 + _wide(kappa) * gap
            else:
                kappa = torch.softmax(logs, 1)
                score = _wide(kappa[:, 0]) * s1 + _wide(kappa[:, 1]) * s2
            dx = (-f * x + g2 * score) * dt + noise
            changes = [total(s * dx) + (d * f + f * total(x * s) - 0.5 * g2 * total(s**2)) * dt for s in (s1, s2)]
            logs = logs + torch.stack(changes, 1)
            x = x + dx
        return x

    models = [lambda x, t: s1, lambda x, t: s2]
    ours = functools.partial(
        superdiff.SuperDiff(models, mode).sample, process, shape, steps, 0, start=x0, prediction="score"
    )
    return f"superdiff, {mode.upper()} of two models", ours, plain


def _superdiff_or(shape: tuple[int, ...], steps: int) -> Contenders:
    return _superposition(shape, steps, "or")


def _superdiff_and(shape: tuple[int, ...], steps: int) -> Contenders:
    return _superposition(shape, steps, "and")


def _drawn(x: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Systematic resampling where the effective sample size is below a half."""
    w = torch.softmax(logs, 0)
    if 1 / w.square().sum() < 0.5 * len(w):
        at = (torch.rand(()) + torch.arange(len(w))) / len(w)
        return x[torch.searchsorted(w.cumsum(0), at).clamp(max=len(w) - 1)], torch.zeros_like(logs)
    return x, logs


def _feynman_kac(shape: tuple[int, ...], steps: int) -> Contenders:
    """Classifier-free guidance with its weights (proposition 3.3) and resampling, VP."""
    x0, s1, s2, process, w = torch.randn(shape), torch.randn(shape), torch.randn(shape), sde.VP(), 1.5

    def plain() -> Tensor:
        x, logs = x0, torch.zeros(len(x0))
        for f, g2, dt in _grid(process, steps):
            score = (1 - w) * s1 + w * s2
            dx = (-f * x + g2 * score) * dt + math.sqrt(g2 * dt) * torch.randn_like(x)
            logs = logs + 0.5 * g2 * dt * w * (w - 1) * ((s1 - s2) ** 2).flatten(1).sum(1)
            x, logs = _drawn(x + dx, logs)
        return x

    method = feynman_kac.guide(lambda x, t: s2, lambda x, t: s1, w)
    return "feynman_kac, guidance", _quiet(method, process, shape, steps, x0), plain


def _particle_posterior(shape: tuple[int, ...], steps: int) -> Contenders:
    """AFDPS with a misfit whose value, gradient and Laplacian are there, EDM."""
    x0, score, slope = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    value, curve, process = torch.rand(shape[0]).double(), torch.rand(shape[0]).double(), sde.EDM()

    class Known(particle_posterior.Measurement):
        def evaluate(self, run: object, u: Tensor, probes: object) -> tuple[Tensor, Tensor, Tensor]:
            return value, slope, curve

    measurement = Known(torch.ones(1, math.prod(shape[1:])), torch.ones(1), 1.0)
    t = sde.karras(process, steps).tolist()

    def plain() -> Tensor:
        x, logs = x0, torch.zeros(len(x0))
        for now, then in itertools.pairwise(t):
            dt, r2, r2_then = now - then, 1 + now**2, 1 + then**2
            slope_mu = slope / r2
            dx = 2 * now * (score - slope_mu) * dt + math.sqrt(2 * now * dt) * torch.randn_like(x)
            change = now * ((slope_mu**2).flatten(1).sum(1) - curve / r2)
            change = change - 2 * now * (score * slope_mu).flatten(1).sum(1)
            logs = logs + (dt * change - value * (1 / r2_then - 1 / r2)).float()
            x, logs = _drawn(x + dx, logs)
        return x

    method = particle_posterior.ParticlePosterior(lambda x, t: score, measurement)
    return "particle_posterior", _quiet(method, process, shape, steps, x0), plain


def _quiet(method: Any, process: Any, shape: tuple[int, ...], steps: int, start: Tensor) -> Callable[[], object]:
    """A run whose weights say nothing, models being constants, without the warning about it."""

    def run() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return method.sample(process, shape, steps, 0, start=start, prediction="score")

    return run


def _rollout(shape: tuple[int, ...], steps: int) -> Contenders:
    """Flow-GRPO's steps with their log-probabilities, all inside the window."""
    x0, v = torch.randn(shape), torch.randn(shape)
    ours = functools.partial(mixed_ode_sde.rollout, lambda x, t: v, shape, steps, (0, steps), 0, start=x0)
    t = sde.uniform(sde.RectifiedFlow(), steps).tolist()

    def plain() -> tuple[Tensor, list[Tensor]]:
        x, logs, states = x0, [], [x0]
        for now, then in itertools.pairwise(t):
            x, log_prob = _flow_step(x, v, now, then)
            logs.append(log_prob)
            states.append(x)
        return x, logs

    return "mixed_ode_sde, rollout", ours, plain


def _flow_step(x: Tensor, v: Tensor, now: float, then: float, after: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Flow-GRPO's equation 9 and the log-probability of the step, as written."""
    dt, k = torch.tensor(then - now), torch.tensor(0.7 * math.sqrt(now / (1 - (now if now < 1 else then))))
    mean = x * (1 + k**2 / (2 * now) * dt) + v * (1 + k**2 * (1 - now) / (2 * now)) * dt
    std = k * torch.sqrt(-dt)
    x = mean + std * torch.randn_like(x) if after is None else after
    log_prob = -((x.detach() - mean) ** 2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return x, log_prob.mean(dim=tuple(range(1, x.dim())))


def _training(shape: tuple[int, ...], steps: int) -> Contenders:
    """The clipped objective of stored steps and its gradient in the velocity."""
    v = torch.randn(shape, requires_grad=True)
    with torch.no_grad():
        found = mixed_ode_sde.rollout(lambda x, t: v, shape, steps, (0, steps), 0)
    a, t = mixed_ode_sde.advantages(torch.randn(shape[0]), 16), found.times.tolist()

    def ours() -> None:
        v.grad = None
        mixed_ode_sde.loss(lambda x, t: v, found, a, backward=True)

    def plain() -> None:
        v.grad = None
        for i, k in enumerate(found.steps):
            _, logs = _flow_step(found.states[i], v, t[k], t[k + 1], found.states[i + 1])
            rho = torch.exp(logs - found.log_probs[i])
            losses = torch.maximum(-a * rho, -a * torch.clamp(rho, 1 - 1e-4, 1 + 1e-4))
            (losses.mean() / len(found.steps)).backward()

    return "mixed_ode_sde, objective and gradient", ours, plain
