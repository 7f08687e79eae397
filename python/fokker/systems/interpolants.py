r"""Stochastic interpolants: the family, its losses, fields, samplers in both directions and likelihoods.

M. Albergo, N. Boffi and E. Vanden-Eijnden, "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions",
2023 (arXiv 2303.08797). Between x_0 and x_1 of two laws, z normal (table 8 there; `FAMILY` here):

    x_t = I(t, x_0, x_1) + gamma(t) z,    I = alpha(t) x_0 + beta(t) x_1.

Learned are the drift b and the denoiser eta, the minimisers of (theorems 6 and 8)

    L_b = E |b|^2 / 2 - (dI/dt + gamma' z) . b         b = E[dI/dt + gamma' z | x_t]
    L_eta = E |eta|^2 / 2 - z . eta                    eta = E[z | x_t]

of which velocity and score follow, v = E[dI/dt | x_t] = b - gamma' eta and s = -eta / gamma (for
one-sided interpolants, where x_0 is z, b alone gives eta = (beta' x - beta b) / (alpha beta' - alpha' beta) and
s = -eta / alpha). For any eps(t) >= 0 the equations (corollaries 10 and 18)

    forward    dX = (b + eps s) dt + (2 eps)^{1/2} dW
    backward   dX = (b - eps s) dt + (2 eps)^{1/2} dW,  t from 1 to 0

have the marginals rho_t. Likelihoods: along the flow, log rho_1(x) = log rho_0(X_0) - int div b dt; and by Feynman and
Kac's formula, rho_1(x) = E rho_0(Y_0) exp(-int div b_F dt) with dY = b_F dt + (2 eps)^{1/2} dW from Y_1 = x backwards,
b_F = b + eps s.

Models are called as model(x ``(B, ...)``, t ``(B,)``) and return the pair (b, eta) of x's shape, one-sided ones b. The
laws are `fokker.sde.StochasticInterpolant`s, the steps `fokker.sde.InterpolantStep`. What differs from the paper's code
(formulas only are taken): both signs of z in one batch of the loss are an option (their antithetic sampling), noise
comes from counters, the flow is solved to tolerances of each sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random, sde
from .._sde_grids import make_times
from .._sde_likelihood import _divergence, solve
from .._sde_processes import spread
from ..random import Stream

__all__ = ["FAMILY", "Fields", "density", "fields", "interpolant", "log_likelihood", "loss", "sample"]

TITLE = "bridges between two laws: drift and score, SDEs of any diffusion both ways, likelihoods"
PAPER = "Albergo et al., 2023, arXiv 2303.08797"
EXAMPLE = "interpolants.sample(model, interpolants.interpolant('linear'), x0, steps=50, epsilon=0.5, seed=0)"

#: the published ones by name: path and gamma (others: any pair that `fokker.sde.StochasticInterpolant` takes)
FAMILY: dict[str, dict[str, Any]] = {
    "linear": {"path": "linear", "gamma": "brownian"},
    "trigonometric": {"path": "trigonometric", "gamma": "brownian"},
    "encoding-decoding": {"path": "encoding-decoding", "gamma": "sine"},
    "one-sided linear": {"path": "linear", "one_sided": True},
    "one-sided trigonometric": {"path": "trigonometric", "one_sided": True},
    "mirror": {"path": "mirror", "gamma": "brownian"},
    "linear, deterministic": {"path": "linear", "gamma": "none"},
}

Interpolant = sde.StochasticInterpolant
Model = Callable[..., Any]


def interpolant(name: str, **options: Any) -> Interpolant:
    """A member of `FAMILY`; options: a different gamma ("brownian", "quadratic", "sine"), a, t_min, t_max."""
    if name not in FAMILY:
        raise ValueError(f"name must be one of {', '.join(FAMILY)}, got {name!r}")
    return Interpolant(**{**FAMILY[name], **options})


def _outputs(model: Model, x: Tensor, t: Tensor, one_sided: bool) -> tuple[Tensor, Tensor | None]:
    """(b, eta), (b, None) of a one-sided one, checked."""
    found = model(x, t)
    parts = found if isinstance(found, (tuple, list)) else (found,)
    want = 1 if one_sided else 2
    if len(parts) != want:
        raise ValueError(f"model must return {'b' if one_sided else 'the pair (b, eta)'}, got {len(parts)} tensors")
    for name, value in zip(("b", "eta"), parts, strict=False):
        if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype:
            seen = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"model's {name} must be {tuple(x.shape)} of {x.dtype}, as x is, got {seen}")
    return (*parts, None)[:2]  # type: ignore[return-value]


class Fields(NamedTuple):
    """All of one point in time; each of x's shape."""

    drift: Tensor  #: b
    velocity: Tensor  #: v = E[dI/dt | x_t]
    denoiser: Tensor  #: eta = E[z | x_t]
    score: Tensor  #: s; NaN where gamma (alpha of a one-sided one) is 0


def fields(model: Model, law: Interpolant, x: Tensor, t: Tensor) -> Fields:
    """b, v, eta and s at times ``(B,)`` in (0, 1), from what the model returns."""
    b, eta = _outputs(model, x, t, law.one_sided)
    alpha, beta, gamma = (spread(c, x) for c in law.coefficients(t))
    da, db, dg = (spread(c, x) for c in law.slopes(t))
    if eta is None:
        # alpha eta + beta E[x_1] = x and alpha' eta + beta' E[x_1] = b; x_0 is z, so dI/dt holds it
        eta = (db * x - beta * b) / (alpha * db - da * beta)
        return Fields(b, b, eta, torch.where(alpha > 0, -eta / alpha, torch.nan))
    return Fields(b, b - dg * eta, eta, torch.where(gamma > 0, -eta / gamma, torch.nan))


def loss(
    model: Model, x0: Tensor, x1: Tensor, law: Interpolant, *, times: Tensor | None = None, antithetic: bool = True,
    seed: int | None = None, step: int = 0,
) -> Tensor:  # fmt: skip
    """L_b + L_eta of pairs ``(B, ...)``, a mean over elements, ``(B,)``; one-sided: L_b. Differentiable in the model.

    times: ``(B,)``; None: uniform in [t_min, t_max] of the law (stream TRAINING_TIME), short of the ends, where gamma'
    is infinite. ``antithetic``: the mean over z and -z, whose variance stays bounded at the ends.
    """
    if x0.shape != x1.shape or x0.dtype != x1.dtype:
        raise ValueError(f"x0 {tuple(x0.shape)} of {x0.dtype} and x1 {tuple(x1.shape)} of {x1.dtype} must be alike")
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    place: dict[str, Any] = {"seed": seed, "step": step, "device": x0.device}
    if times is None:
        u = random.uniform(x0.shape[0], stream=Stream.TRAINING_TIME, dtype=torch.float64, **place)
        times = (law.t_min + (law.t_max - law.t_min) * u).clamp(1e-6, 1 - 1e-6)
    z = random.normal(x0.shape[0], tuple(x0.shape[1:]), stream=Stream.TRAINING_NOISE, dtype=x0.dtype, **place)
    mean, gamma = law.marginal(x0, x1, times)
    total: Any = 0.0
    signs = (1.0, -1.0) if antithetic and not law.one_sided and law.gamma_kind != "none" else (1.0,)
    for sign in signs:
        target = law.velocity_target(x0, x1, sign * z, times)
        b, eta = _outputs(model, mean + gamma * (sign * z), times.to(x0.dtype), law.one_sided)
        value = 0.5 * b.square() - target * b
        if eta is not None:
            value = value + 0.5 * eta.square() - sign * z * eta
        total = total + value.flatten(1).mean(1) / len(signs)
    return total


def sample(
    model: Model, law: Interpolant, start: Tensor | None, steps: int | None = None, seed: int | None = None, *,
    epsilon: float | Callable[[float], float] = 0.0, backward: bool = False, proportional: bool | None = None,
    heun: bool = False, last_mean: bool = True, shape: Sequence[int] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """x_1 from x_0 (``backward``: x_0 from x_1) by Euler-Maruyama's steps with diffusion eps; eps = 0: the flow.

    Args:
        start: ``(B, ...)``; None with ``shape`` draws the normal x_0 of a one-sided law.
        epsilon: a number or a function of t. With ``proportional`` (two-sided laws by default) eps = epsilon gamma(t),
            which vanishes where the score, -eta / gamma, is infinite.
        heun: second order, of the flow only.
        options: as in `fokker.sde.sample`, whose result it is; times rise forward and fall backward.
    """
    pair = bool(epsilon)
    if start is None and (not law.one_sided or shape is None):
        raise ValueError("start must be given: samples of the law that the way begins at (or shape, one-sided)")
    near = (not law.one_sided) if proportional is None else proportional
    step = sde.InterpolantStep(epsilon, backward, heun, proportional=near and pair, last_mean=last_mean)

    def network(x: Tensor, t: Tensor, **condition: Any) -> Any:
        b, eta = _outputs(functools.partial(model, **condition), x, t, law.one_sided)
        return (b, eta) if pair and eta is not None else b  # a step of one-sided laws reads b alone

    size = tuple(shape) if start is None else tuple(start.shape)
    if start is None:
        start = law.prior_sample(
            size[0], size[1:], seed=seed, sample_ids=options.get("sample_ids"), dtype=options.get("dtype"),
            device=options.get("device"),
        )  # fmt: skip
    return sde.sample(network, law, step, size, steps, seed, start=start, **{"dtype": start.dtype, **options})


# ---- likelihoods ----------------------------------------------------------------------------------------------------
def _base(law: Interpolant, base_log_prob: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    """log rho at t_min, ``(B,)`` in float64."""
    if base_log_prob is None:
        if not law.one_sided or law.t_min:
            raise ValueError("base_log_prob must be given: log rho at t_min (known of one-sided laws at t_min = 0)")
        return law.prior_log_prob(x)
    found = base_log_prob(x)
    if not isinstance(found, Tensor) or found.shape != x.shape[:1]:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"base_log_prob must return ({x.shape[0]},), got {seen}")
    return found.double()


def _probes(x: Tensor, divergence: str, count: int, seed: int) -> tuple[list[Tensor], int]:
    """Vectors e of <e, (db/dx)^T e>, and by how much to divide."""
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    shape = tuple(x.shape[1:])
    if divergence == "exact":
        d = math.prod(shape)
        unit = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *shape)
        return [e.expand(x.shape) for e in unit], 1
    if count < 1:
        raise ValueError(f"probes must be >= 1, got {count}")
    place = {"seed": seed, "stream": Stream.HUTCHINSON, "dtype": x.dtype, "device": x.device}
    return [random.rademacher(x.shape[0], shape, step=j, **place) for j in range(count)], count


def log_likelihood(
    model: Model, law: Interpolant, x: Tensor, base_log_prob: Callable[[Tensor], Tensor] | None = None, *,
    divergence: str = "hutchinson", probes: int = 1, seed: int = 0, rtol: float = 1e-5, atol: float = 1e-5,
    max_steps: int = 10_000,
) -> sde.Likelihood:  # fmt: skip
    """log rho at t_max of x ``(B, ...)``, by the flow back to t_min, as `fokker.sde.Likelihood`.

    base_log_prob: log rho at t_min, ``(B, ...)`` -> ``(B,)``; None: that of a one-sided law. Other arguments as in
    `fokker.sde.log_likelihood`; the model must be differentiable in x.
    """
    vectors, count = _probes(x, divergence, probes, seed)

    def slope(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            b, _ = _outputs(model, y, t.to(y.dtype), law.one_sided)
            return b.detach(), _divergence(b, y, vectors) / count

    with torch.no_grad():
        latent, change, evaluations = solve(slope, x.detach(), law.t_max, law.t_min, rtol, atol, max_steps)
        return sde.Likelihood(_base(law, base_log_prob, latent) + change, latent, evaluations)


def density(
    model: Model, law: Interpolant, x: Tensor, base_log_prob: Callable[[Tensor], Tensor] | None = None, *,
    epsilon: float = 0.5, steps: int = 200, paths: int = 64, seed: int = 0, divergence: str = "exact", probes: int = 1,
) -> Tensor:  # fmt: skip
    """log of Feynman and Kac's estimate of rho at t_max of x ``(B, ...)``, by ``paths`` each, ``(B,)`` in float64.

    The estimate of rho itself is unbiased but for the steps (order 1), so that of log rho is low by about half its
    relative variance. The diffusion is epsilon gamma(t) (alpha(t)^2 of one-sided laws, whose score is -eta / alpha).
    """
    if paths < 1 or not 0 < epsilon < math.inf:
        raise ValueError(f"paths must be >= 1 and epsilon finite and > 0, got {paths} and {epsilon}")
    many = x.detach().repeat_interleave(paths, 0)
    vectors, count = _probes(many, divergence, probes, seed)
    t = make_times(law, steps, None, "uniform", True).flip(0)
    total, left = torch.zeros(len(many), dtype=torch.float64, device=x.device), iter((-t.diff()).tolist())

    def network(y: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """(b_F, 0), its divergence taken on the way."""
        nonlocal total
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            b, eta = _outputs(model, y, time, law.one_sided)
            if eta is None:
                alpha, beta, _ = (spread(c, y) for c in law.coefficients(time))
                da, db, _ = (spread(c, y) for c in law.slopes(time))
                push = -epsilon * alpha * (db * y - beta * b) / (alpha * db - da * beta)
            else:
                push = -epsilon * eta
            total = total + _divergence(b + push, y, vectors) / count * next(left)
        return (b + push).detach(), torch.zeros_like(y)

    def noise(time: float) -> float:
        alpha, _, gamma = law.coefficients(time)
        return epsilon * float(alpha.square() if law.one_sided else gamma)

    # the table reads the diffusion and the times alone: a law whose gamma is positive inside will do
    inside = Interpolant("linear", "brownian", t_min=law.t_min, t_max=law.t_max)
    step = sde.InterpolantStep(noise, backward=True, second="score", last_mean=False)
    start = sde.sample(network, inside, step, many.shape, None, seed, times=t, start=many, dtype=many.dtype)
    logs = (_base(law, base_log_prob, start) - total).reshape(x.shape[0], paths)
    return torch.logsumexp(logs, 1) - math.log(paths)
