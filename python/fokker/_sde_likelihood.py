r"""Likelihoods: along the probability flow by adaptive Runge-Kutta steps, and along the reverse SDE by Ito's formula.

The flow dx/dt = v(x, t) carries p_{t_min} into p_{t_max}, so log p(x) = log p_{t_max}(x(t_max)) + int div v dt (Song et
al. 2021, equation 39), div v = trace of dv/dx: exactly, or by Hutchinson's estimator E <e, (dv/dx) e> with signs e of
stream HUTCHINSON, one vector a sample and probe for the whole path. Dormand and Prince's pair 5(4) (1980) with steps
of each sample's own: a sample's result does not depend on the batch that it is in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import random
from ._sde_grids import make_times
from ._sde_processes import Process
from ._sde_samplers import EulerMaruyama
from ._sde_step import affine_step
from ._sde_table import conversion, conversions
from .random import Stream

__all__ = ["Likelihood", "ProbabilityFlow", "log_likelihood", "sample_with_log_density"]

_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
#: of the fifth-order result, less those of the embedded fourth-order one
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Likelihood(NamedTuple):
    """What `log_likelihood` finds, for each sample."""

    log_prob: Tensor  #: nats, ``(B,)`` in float64
    latent: Tensor  #: the state at t_max, ``(B, ...)``
    evaluations: Tensor  #: calls of the model until the sample arrived, ``(B,)``


Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def solve(
    slope: Slope, x: Tensor, first: float, last: float, rtol: float, atol: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(x, integral of the scalar, evaluations) at ``last`` of d(x, l)/dt = slope(x, t), from l = 0 at ``first``."""
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be > 0, got {rtol} and {atol}")
    batch, d, span = x.shape[0], max(1, math.prod(x.shape[1:])), last - first
    if not batch:
        return x, x.new_zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.int64, device=x.device)
    # s in [0, 1] is the way done, h the step in it
    s = torch.zeros(batch, dtype=torch.float64, device=x.device)
    total, h = torch.zeros_like(s), torch.full_like(s, 1e-3)
    count = torch.ones_like(s, dtype=torch.int64)
    k, l = slope(x, first + span * s)
    for _ in range(max_steps):
        going = s < 1
        if not bool(going.any()):
            return x, total, count
        h = torch.minimum(h, 1 - s)
        ks, ls = [k], [l]
        for stage in range(1, 7):
            y = _combine(x, ks, _STAGES[stage], span * h)
            k_new, l_new = slope(y, first + span * (s + _NODES[stage] * h))
            ks.append(k_new)
            ls.append(l_new)
        count += 6 * going
        error = _combine(x, ks, _ERROR, span * h, 0.0).abs().double().flatten(1)
        scale = atol + rtol * torch.maximum(x.abs(), y.abs()).double().flatten(1)
        change = sum(c * v for c, v in zip(_STAGES[6], ls, strict=False)) * span * h
        slack = sum(c * v for c, v in zip(_ERROR, ls, strict=True)) * span * h / d
        norm = (error / scale).square().mean(1).sqrt()
        norm = torch.maximum(norm, slack.abs() / (atol + rtol * (total + change).abs() / d))
        # a NaN would be tried again for ever: it goes through instead
        good = going & ~(norm > 1)
        wide = good.reshape(-1, *(1,) * (x.dim() - 1))
        x, k = torch.where(wide, y, x), torch.where(wide, ks[6], k)
        total, l = torch.where(good, total + change, total), torch.where(good, ls[6], l)
        s = torch.where(good, torch.where(h >= 1 - s, 1.0, s + h), s)
        h = h * (0.9 * norm.clamp(min=1e-10) ** -0.2).nan_to_num(1.0).clamp(0.2, 10.0)
    raise ValueError(f"not there after max_steps={max_steps} steps: larger rtol and atol, or a smoother model")


def _combine(x: Tensor, ks: Sequence[Tensor], weights: Sequence[float], h: Tensor, own: float = 1.0) -> Tensor:
    used = [(k, w) for k, w in zip(ks, weights, strict=False) if w]
    columns = torch.stack([torch.full_like(h, own), *(w * h for _, w in used)], 1)
    return affine_step(x, [k for k, _ in used], columns.to(x.dtype))


def _flow(model: Any, process: Process, prediction: str, dtype: torch.dtype) -> Callable[..., Any]:
    """v = P x + Q m at per-sample times: (model output, P, Q)."""

    def parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, q = conversions(process, t.cpu(), prediction, "flow")
        if prediction == "edm":
            sigma = process.sigma(t)
            c = (sigma.square() + process.sigma_data**2).rsqrt().to(dtype)  # type: ignore[attr-defined]
            out = model(x * c.reshape(-1, *(1,) * (x.dim() - 1)), (torch.log(sigma) / 4).to(dtype))
        else:
            out = model(x, t.to(dtype))
        return out, p.to(x.device), q.to(x.device)

    return parts


def _divergence(out: Tensor, x: Tensor, probes: Sequence[Tensor]) -> Tensor:
    """The mean over probes of <e, (dm/dx)^T e>, or for ``probes`` of None the trace itself, ``(B,)`` in float64."""
    found = []
    for i, e in enumerate(probes):
        (back,) = torch.autograd.grad(out, x, e, retain_graph=i + 1 < len(probes))
        found.append((back * e).double().flatten(1).sum(1))
    return torch.stack(found).sum(0)


def log_likelihood(
    model: Callable[..., Any],
    process: Process,
    x: Tensor,
    *,
    prediction: str = "x0",
    divergence: str = "hutchinson",
    probes: int = 1,
    seed: int | None = 0,
    sample_ids: Any = None,
    condition: Mapping[str, Any] | None = None,
    times: tuple[float, float] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 10_000,
) -> Likelihood:
    """log p of the law at ``times[0]``, by the probability flow up to ``times[1]`` (t_min and t_max).

    Args:
        model, prediction, condition: as in `fokker.sde.sample`; differentiable in its state.
        x: ``(B, ...)``, float32 or float64.
        divergence: "exact", as many backward passes a call as a sample has elements; or "hutchinson", as many as
            ``probes``, unbiased.
        seed, sample_ids: of the probes.
        rtol, atol: of a step, on the root mean square over a sample's elements, and on log p per element.

    Returns:
        `Likelihood`: nats of each sample, ``(B,)``. The error is that of the steps and of the prior, whose density
        stands for that of p_{t_max} (to first order alpha x(t_max) . E[x_0] / prior_std^2: centre the data). Not
        differentiable; float32 costs about 1e-6 a step.

    Raises:
        ValueError: times out of order, an unknown name, tolerances not positive, ``max_steps`` passed.
    """
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    if probes < 1:
        raise ValueError(f"probes must be >= 1, got {probes}")
    if x.dtype not in (torch.float32, torch.float64) or x.dim() < 1:
        raise TypeError(f"x must be (B, ...) of float32 or float64, got {tuple(x.shape)} of {x.dtype}")
    low, high = (process.t_min, process.t_max) if times is None else times
    if not 0 <= low < high <= process.t_max:
        raise ValueError(f"times must be in order and in [0, {process.t_max}], got {low} and {high}")
    model = functools.partial(model, **condition) if condition else model
    shape = tuple(x.shape[1:])
    d = math.prod(shape)
    if divergence == "exact":
        unit = torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *shape)
        vectors = [e.expand(x.shape) for e in unit]
    else:
        place = {"seed": seed, "stream": Stream.HUTCHINSON, "sample_ids": sample_ids, "device": x.device}
        vectors = [random.rademacher(x.shape[0], shape, step=j, dtype=x.dtype, **place) for j in range(probes)]
    count = 1 if divergence == "exact" else probes
    parts = _flow(model, process, prediction, x.dtype)

    def slope(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            out, p, q = parts(y, t)
            trace = _divergence(out, y, vectors) / count
        weights = torch.stack([p, q], 1).to(y.dtype)
        return affine_step(y.detach(), [out.detach()], weights), p * d + q * trace

    with torch.no_grad():
        latent, change, evaluations = solve(slope, x.detach(), low, high, rtol, atol, max_steps)
        return Likelihood(process.prior_log_prob(latent) + change, latent, evaluations)


@dataclass(frozen=True)
class ProbabilityFlow:
    """The probability flow by adaptive Runge-Kutta steps, as a sampler: ``steps`` and grid do not count.

    Each sample takes its own steps from t_max to t_min, to tolerances as in `log_likelihood`.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000
    #: the options of `sample` that it heeds
    takes = frozenset(("times", "prediction", "condition", "start", "sample_ids", "dtype", "device"))

    def run(
        self, model: Any, process: Process, shape: Any, steps: Any, seed: Any, *, times: Any = None,
        prediction: str | None = None, condition: Any = None, start: Any = None, sample_ids: Any = None,
        dtype: Any = torch.float32, device: Any = None,
    ) -> Tensor:  # fmt: skip
        """What `sample` calls."""
        ends = (process.t_max, process.t_min) if times is None else (float(times[0]), float(times[-1]))
        if not 0 <= ends[1] < ends[0] <= process.t_max:
            raise ValueError(f"times must fall and lie in [0, {process.t_max}], got {ends[0]} and {ends[1]}")
        if start is None:
            place = {"seed": seed, "sample_ids": sample_ids, "dtype": dtype, "device": device}
            start = process.prior_sample(shape[0], tuple(shape[1:]), **place)
        if tuple(start.shape) != tuple(shape):
            raise ValueError(f"start must have shape {tuple(shape)}, got {tuple(start.shape)}")
        x = start.to(dtype)
        model = functools.partial(model, **condition) if condition else model
        parts = _flow(model, process, prediction or "x0", dtype)

        def slope(y: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            out, p, q = parts(y, t)
            return affine_step(y, [out], torch.stack([p, q], 1).to(y.dtype)), torch.zeros_like(t)

        with torch.no_grad():
            return solve(slope, x, *ends, self.rtol, self.atol, self.max_steps)[0]


def sample_with_log_density(
    model: Callable[..., Any],
    process: Process,
    shape: Sequence[int],
    steps: int | None = None,
    seed: int | None = None,
    *,
    times: Any = None,
    grid: Any = None,
    prediction: str = "x0",
    condition: Mapping[str, Any] | None = None,
    start: Tensor | None = None,
    start_log_prob: Tensor | None = None,
    sample_ids: Any = None,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> tuple[Tensor, Tensor]:
    r"""Samples by Euler-Maruyama with the log density at each sample, found on the way: (x, log q ``(B,)`` in float64).

    d log q = <s, dx> + [D f + f <x, s> - g^2 |s|^2 / 2] dtau along the reverse SDE with noise exactly g (Skreta et al.,
    "The superposition of diffusion models", 2024, theorem 1): no derivative of the model, the inner products come with
    the step's own pass. Strong order 1/2: the error of a sample shrinks as steps^{-1/2}. Every step has its noise.

    Args as in `fokker.sde.sample`; ``start_log_prob``: the density at ``start`` (the prior's where None).
    """
    t = make_times(process, steps, times, grid or process.grid, False)
    if seed is None:
        seed = int(torch.randint(0, 2**63 - 1, ()))
    place = {"seed": seed, "sample_ids": sample_ids}
    if start is None:
        start = process.prior_sample(shape[0], tuple(shape[1:]), dtype=dtype, device=device, **place)
    x = start.to(dtype)
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"start must have shape {tuple(shape)}, got {tuple(x.shape)}")
    log_q = process.prior_log_prob(x) if start_log_prob is None else start_log_prob.double()
    d = x[0].numel()
    f, g2 = process.rate(t).tolist(), process.variance_rate(t).tolist()
    with torch.no_grad():
        for row in EulerMaruyama(last_mean=False).rows(process, t):
            i = row.step
            dt, w = float(t[i] - t[i + 1]), row.results["x"]
            p, q = conversion(process, float(t[i]), prediction, "score")
            m = model(x, torch.full((x.shape[0],), float(t[i]), dtype=dtype, device=x.device), **(condition or {}))
            weights = torch.tensor([w["x"] + w["m0"] * p, w["m0"] * q, 0.0, w["z"]], dtype=torch.float64, device="cpu")
            x, products = affine_step(
                x, [m, x], weights.to(dtype).to(x.device), step=i, stream=Stream.PREDICTOR, dots=True, **place
            )
            dxs = q * products[:, 0, 1] + p * products[:, 0, 2]
            xs = q * products[:, 1, 2] + p * products[:, 2, 2]
            ss = q * q * products[:, 1, 1] + 2 * p * q * products[:, 1, 2] + p * p * products[:, 2, 2]
            log_q = log_q + dxs + (d * f[i] + f[i] * xs - 0.5 * g2[i] * ss) * dt
    return x, log_q
