r"""Analytical teleportation: the first part of the probability flow by the data's Gaussian, in closed form.

B. Wang and J. J. Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models and its
Applications", TMLR 2024 (arXiv 2412.09726). At high noise the score of any bounded law is that of a Gaussian (or of a
few) with its moments; a Gaussian's flow is linear, so that it is known where it leads without one call of a network.
For x_t = alpha x_0 + sigma z, y = x / alpha, k = sigma / alpha, and data of mean mu and covariance S = U diag(l) U^T +
v (I - U U^T), delta = y - mu (the paper's Gaussian score and its solution, there with alpha = 1 and v = 0):

    score of y      -(delta - U diag((l - v) / (l + k^2)) U^T delta) / (v + k^2)
    flow k -> k'    y' = mu + r (delta - U U^T delta) + U diag(((k'^2 + l) / (k^2 + l))^{1/2}) U^T delta,
                    r = ((k'^2 + v) / (k^2 + v))^{1/2}

Laws are `fokker.mixture.Mixture`s of type "lowrank": `gaussian` and `mixture_of` make them from data, `denoiser` makes
their exact model for any sampler of `fokker.sde`, `trajectory` is the flow (of several Gaussians by adaptive
Runge-Kutta steps, still without a network), `sample` teleports and hands over to a sampler.

What differs: the residual v (the paper cuts the spectrum: v = 0); its code's variance-preserving mixture score divides
by alpha where alpha^2 belongs (marked "error?" there). Two matrix products and one fused pass a trajectory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import mixture, sde
from .._sde_processes import Process, as_time

__all__ = ["denoiser", "gaussian", "mixture_of", "sample", "trajectory"]

TITLE = "the start of the probability flow in closed form, by the data's Gaussian, then any sampler"
PAPER = "Wang and Vastola, 2024, arXiv 2412.09726"
EXAMPLE = "teleport.sample(model, sde.EDM(), sde.Heun(), (64, 3, 32, 32), 8, law=teleport.gaussian(data), time=5.0)"


def _rows(data: Tensor) -> Tensor:
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise TypeError(f"data must be a float tensor, got {getattr(data, 'dtype', type(data).__name__)}")
    if data.dim() < 2 or len(data) < 2 or not data[0].numel():
        raise ValueError(f"data must be (N, ...) with N >= 2, got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite")
    return data.flatten(1).double()


def _rank(rank: int | None, most: int) -> int:
    if rank is None:
        return most
    if not isinstance(rank, int) or not 0 < rank <= most:
        raise ValueError(f"rank must be an int in [1, {most}], got {rank!r}")
    return rank


def _moments(rows: Tensor, rank: int, residual: bool) -> tuple[Tensor, Tensor, Tensor]:
    """mu (d,), W (d, rank) and v of rows (N, d), S = W W^T + v I; directions beyond N - 1 are columns of zeros."""
    mean, d = rows.mean(0), rows.shape[1]
    _, s, v = torch.linalg.svd(rows - mean, full_matrices=False)
    l = s.square() / len(rows)
    top, rest = l[:rank], l.new_zeros(())
    if residual and rank < d:
        rest = l[rank:].sum() / (d - rank)
    w = v[: len(top)].T * (top - rest).clamp(min=0).sqrt()
    return mean, torch.nn.functional.pad(w, (0, rank - len(top))), rest


def gaussian(data: Tensor, rank: int | None = None, *, residual: bool = True) -> mixture.Mixture:
    """The Gaussian of the data's mean and covariance: a mixture of one component, "lowrank", in float64.

    Args:
        data: ``(N, ...)``, d elements a sample.
        rank: how many principal directions are kept; None: all there are.
        residual: spread the variance of the others over them evenly, as v (probabilistic principal components; Tipping
            and Bishop 1999); False: v = 0, as the paper has it.
    """
    rows = _rows(data)
    mean, w, v = _moments(rows, _rank(rank, min(len(rows) - 1, rows.shape[1])), residual)
    return mixture.Mixture(mean[None], (w[None], v[None]), None, "lowrank")


def mixture_of(data: Tensor, labels: Tensor, rank: int | None = None, *, residual: bool = True) -> mixture.Mixture:
    """One such Gaussian a label ``(N,)`` (int64: classes, clusters), weighted by its number of samples."""
    rows = _rows(data)
    if not isinstance(labels, Tensor) or labels.shape != rows.shape[:1] or labels.dtype is not torch.int64:
        raise ValueError(f"labels must be an int64 tensor ({len(rows)},), got {getattr(labels, 'shape', labels)}")
    groups = [rows[labels == k] for k in labels.unique()]
    rank = _rank(rank, min(max(len(g) for g in groups) - 1, rows.shape[1]) or 1)
    mean, w, v = (torch.stack(p) for p in zip(*(_moments(g, rank, residual) for g in groups), strict=True))
    sizes = torch.tensor([len(g) for g in groups], dtype=torch.float64, device=mean.device)
    return mixture.Mixture(mean, (w, v), sizes, "lowrank")


def _check(law: Any, process: Any, d: int) -> None:
    if not isinstance(law, mixture.Mixture):
        raise TypeError(f"law must be a fokker.mixture.Mixture, got {type(law).__name__}")
    if not isinstance(process, Process):
        raise TypeError(f"process must be a Gaussian one (VP, VE, ...), got {type(process).__name__}")
    if law.dim != d:
        raise ValueError(f"x has {d} elements a sample, the law {law.dim}")


def denoiser(law: mixture.Mixture, process: Process) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] of a law, as a model (x ``(B, ...)``, t ``(B,)``) of prediction "x0"."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        found = mixture.posterior_mean(x.flatten(1), law, alpha=process.alpha(t), sigma=process.sigma(t))
        return found.to(x.dtype).reshape(x.shape)

    return model


def trajectory(x: Tensor, law: mixture.Mixture, process: Process, t: float, s: float) -> Tensor:
    """Where the probability flow of a law takes x ``(B, ...)`` from time t to time s, in the dtype of x.

    Exact, in closed form, for a low-rank Gaussian (one component), in either direction; for other laws solved to
    relative 1e-8 of a step (from float32 states 1e-5), s < t. At s = 0 (no noise) of v = 0 the directions beyond the
    rank are gone, as they must be.
    """
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64) or x.dim() < 2:
        raise TypeError(f"x must be (B, ...) of float32 or float64, got {getattr(x, 'dtype', type(x).__name__)}")
    _check(law, process, math.prod(x.shape[1:]))
    if law.n_components > 1 or law.covariance_type != "lowrank":
        tolerance = 1e-8 if x.dtype == torch.float64 else 1e-5
        flow = sde.ProbabilityFlow(rtol=tolerance, atol=tolerance)
        return sde.sample(denoiser(law, process), process, flow, x.shape, times=(t, s), start=x, dtype=x.dtype)
    a, a_new = float(process.alpha(t)), float(process.alpha(s))
    k2, new2 = float(process.ratio(as_time(t))) ** 2, float(process.ratio(as_time(s))) ** 2
    if not (math.isfinite(k2) and math.isfinite(new2)):
        raise ValueError(f"the flow needs alpha > 0 at both times, got alpha({t}) = {a} and alpha({s}) = {a_new}")
    f = law.factors()
    u = f.base[0] @ f.vectors[0]  # U (l - v)^{1/2}
    extra, v = f.values[0], float(f.noise[0])
    if k2 + v == 0:
        raise ValueError(f"x has no noise at time {t}: give a later one, or a law with a residual")
    r = math.sqrt((new2 + v) / (k2 + v))
    gain = torch.sqrt((new2 + v + extra) / (k2 + v + extra)) - r
    gain = torch.where(extra > 0, gain / torch.where(extra > 0, extra, 1.0), 0.0)
    rows, mean = x.flatten(1), law.means.double()
    inner = (rows / a - mean.to(x.dtype)) @ u.to(x.dtype)
    moved = (inner * gain.to(x.dtype)) @ u.T.to(x.dtype)
    weights = torch.tensor([a_new * r / a, a_new, a_new * (1 - r)], dtype=torch.float64, device="cpu").to(x)
    return sde.affine_step(rows, [moved, mean.to(x.dtype).expand_as(rows)], weights).reshape(x.shape)


def sample(
    model: Callable[..., Any],
    process: Process,
    sampler: Any,
    shape: Sequence[int],
    steps: int | None = None,
    seed: int | None = None,
    *,
    law: mixture.Mixture,
    time: float,
    start: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Noise, teleported from t_max to ``time`` by the law, then ``steps`` steps of a sampler with the model.

    Args:
        law: of the data, from `gaussian` or `mixture_of`.
        time: in [t_min, t_max): where the model takes over; sigma / alpha there should be a few times what the law
            leaves unexplained (the paper: after 15 to 30 % of a grid's steps).
        start: the state at t_max; None: a sample of the prior.
        options: as in `fokker.sde.sample`, whose other arguments and result these are.
    """
    if not process.t_min <= time < process.t_max:
        raise ValueError(f"time must lie in [{process.t_min}, {process.t_max}), got {time}")
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    if start is None:
        place = {"sample_ids": options.get("sample_ids"), "dtype": dtype, "device": options.get("device")}
        start = process.prior_sample(shape[0], tuple(shape[1:]), seed=seed, **place)
    rest = copy.copy(process)
    rest.t_max = float(time)
    there = trajectory(start, law, process, process.t_max, time)
    return sde.sample(model, rest, sampler, shape, steps, seed, start=there, dtype=dtype, **options)
