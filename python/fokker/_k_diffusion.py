r"""k-diffusion's samplers as functions: ``x = sample_dpmpp_2m_sde(model, x, sigmas, ...)``, each update one fused pass.

``model(x, sigma, **extra_args)`` gives the denoised prediction D of x = x0 + sigma eps, sigma of shape (B,);
``sigmas`` is a decreasing sequence of N + 1 numbers, the last of which may be 0. Arguments are k-diffusion's:

    callback        called before each update with a dict of x, i, sigma, sigma_hat and denoised
    disable         True: no progress bar (tqdm's, where that is installed); None: one on a terminal only
    eta, s_noise    how much of the noise is put back in, and a factor on it
    s_churn, s_tmin, s_tmax    Karras et al. 2022, algorithm 2
    noise_sampler   ``noise_sampler(sigma, sigma_next)`` gives the noise of a step instead of the kernel

and, by keyword, ``seed`` (an int or an int64 tensor; None: drawn from torch's default generator) and ``sample_ids`` of
the noise that is made inside the kernel (`fokker.random`): step i of a run has counter step i (2 i and 2 i + 1 in
``sample_dpmpp_sde``, which shares a Brownian path between its two stages, as k-diffusion does), so the noise of a
sample does not depend on the batch.

Everything is differentiable in x and the model. ValueError for sigmas that do not decrease, TypeError for wrong types.
Sources: Karras et al. 2022 (arXiv 2206.00364), Lu et al. 2022 (2211.01095); the coefficients' formulas and theirs in
`fokker._schedulers_coefficients`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._k_diffusion_run import (
    Model,
    NoiseSampler,
    Run,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
)

__all__ = [
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]


# ---- one- and two-stage methods -------------------------------------------------------------------------------------
def sample_euler(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """Euler's method for the probability flow, with churn (Karras et al. 2022, algorithm 2 without its correction)."""
    run = Run(model, x, sigmas, extra_args, callback, disable, None, seed, sample_ids)
    raised, up = run.churned(s_churn, s_tmin, s_tmax, s_noise)
    rows, at = run.rows([*formulas.euler(raised, run.to)]), run.inputs(raised)
    for i in run:
        x = up(x, i)
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised, at[i])
        x = run.update(x, (denoised,), rows, i)
    return x


def sample_euler_ancestral(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """Euler steps to sigma_down, then noise up to the next sigma."""
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    down, up = formulas.ancestral(run.now, run.to, eta)
    rows, at = run.rows([*formulas.euler(run.now, down), s_noise * up], noisy=True), run.inputs(run.now)
    for i in run:
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised)
        x = run.update(x, (denoised,), rows, i, run.to[i])
    return x


def sample_heun(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """Heun's method for the probability flow, with churn (Karras et al. 2022, algorithm 2)."""
    run = Run(model, x, sigmas, extra_args, callback, disable, None, seed, sample_ids)
    raised, up = run.churned(s_churn, s_tmin, s_tmax, s_noise)
    first = run.rows([*formulas.euler(raised, run.to)])
    half = (run.to - raised) / 2
    with np.errstate(all="ignore"):  # no second stage at sigma = 0
        second = run.rows([1 + half / raised, -half / raised, half / run.to, -half / run.to])
    at, at_next = run.inputs(raised), run.inputs(run.to)
    for i in run:
        x = up(x, i)
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised, at[i])
        ahead = run.update(x, (denoised,), first, i)
        if run.to[i] == 0:
            x = ahead
        else:
            x = run.update(x, (denoised, ahead, run.denoise(ahead, at_next[i])), second, i)
    return x


def sample_dpm_2(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """The midpoint method in log sigma, with churn (k-diffusion's DPM-Solver-2 of Karras et al.'s form)."""
    run = Run(model, x, sigmas, extra_args, callback, disable, None, seed, sample_ids)
    raised, up = run.churned(s_churn, s_tmin, s_tmax, s_noise)
    return _midpoint(run, x, raised, run.to, np.zeros(run.steps), up)


def sample_dpm_2_ancestral(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """The midpoint method in log sigma to sigma_down, then noise up to the next sigma."""
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    down, up = formulas.ancestral(run.now, run.to, eta)
    return _midpoint(run, x, run.now, down, s_noise * up, lambda x, i: x)


def _midpoint(run: Run, x: Tensor, start: np.ndarray, to: np.ndarray, noise: np.ndarray, up: Any) -> Tensor:
    """From ``start`` to ``to`` with the slope at their geometric mean, Euler's step where ``to`` is 0."""
    middle = np.sqrt(start * to)
    only, first = run.rows([*formulas.euler(start, to)]), run.rows([*formulas.euler(start, middle)])
    with np.errstate(all="ignore"):
        slope = (to - start) / middle
    second = run.rows([1.0, slope, -slope, noise], noisy=True)
    at, at_middle = run.inputs(start), run.inputs(middle)
    for i in run:
        x = up(x, i)
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised, at[i])
        if to[i] == 0:
            x = run.update(x, (denoised,), only, i)
        else:
            ahead = run.update(x, (denoised,), first, i)
            x = run.update(x, (ahead, run.denoise(ahead, at_middle[i])), second, i, run.to[i])
    return x


def sample_dpmpp_2s_ancestral(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2S) to sigma_down, then noise up to the next sigma."""
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    down, up = formulas.ancestral(run.now, run.to, eta)
    middle = np.sqrt(run.now * down)
    first = run.rows([*formulas.euler(run.now, middle)])
    second = run.rows([*formulas.euler(run.now, down), s_noise * up], noisy=True)
    at, at_middle = run.inputs(run.now), run.inputs(middle)
    for i in run:
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised)
        if down[i] > 0:
            ahead = run.update(x, (denoised,), first, i)
            denoised = run.denoise(ahead, at_middle[i])
        x = run.update(x, (denoised,), second, i, run.to[i])
    return x


def sample_dpmpp_sde(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, r: float = 0.5, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ in two stages (the middle at ``r`` in log sigma) with noise in both, of one Brownian path in sigma.

    A noise sampler is asked for (sigma, middle) and for (sigma, next). The kernel's noise has those increments' law:
    the second stage mixes the first one's numbers with fresh ones.
    """
    if not 0 < r <= 1:
        raise ValueError(f"r must be in (0, 1], got {r}")
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    now, to = run.now, run.to
    middle = now ** (1 - r) * to**r
    down, up = formulas.ancestral(now, middle, eta)
    lines = [[*formulas.euler(now, down), s_noise * up]]
    ours = noise_sampler is None and bool(eta)
    if ours:
        lines.append([0.0, 0.0, 1.0])  # the first stage's noise, for the second
    first = run.rows(*lines, noisy=True)
    down, up = formulas.ancestral(now, to, eta)
    of_x, of_x0 = formulas.euler(now, down)
    newer, up = 1 / (2 * r), s_noise * up
    share = formulas.shared_noise(now, middle, to)
    noise = [up * share, up * np.sqrt(np.maximum(1 - share * share, 0.0))] if ours else [up]
    second = run.rows([of_x, of_x0 * (1 - newer), of_x0 * newer, *noise], noisy=True)
    last = run.rows([*formulas.euler(now, to)])
    at, at_middle = run.inputs(now), run.inputs(middle)
    for i in run:
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised)
        if to[i] == 0:
            x = run.update(x, (denoised,), last, i)
            continue
        ahead = run.update(x, (denoised,), first, i, middle[i], 2 * i)
        ahead, *kept = ahead if ours else (ahead,)
        terms = (denoised, run.denoise(ahead, at_middle[i]), *kept)
        x = run.update(x, terms, second, i, to[i], 2 * i + 1)
    return x


# ---- multistep methods ----------------------------------------------------------------------------------------------
def sample_lms(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    order: int = 4,
) -> Tensor:  # fmt: skip
    """Linear multistep (Adams-Bashforth with variable steps) of order 1 to 8, its integrals exact."""
    if not 1 <= order <= 8:
        raise ValueError(f"order must be in [1, 8], got {order}")
    run = Run(model, x, sigmas, extra_args, callback, disable, None, None, None)
    now, at, tables, history = run.now, run.inputs(run.now), [], []
    for size in range(1, min(order, run.steps) + 1):
        with np.errstate(all="ignore"):
            newest, *older = formulas.adams_bashforth(run.to, [formulas.before(now, k) for k in range(size)])
        step = [1 + newest / now, -newest / now, *older]
        tables.append(run.rows(step, [1 / now, -1 / now, *[0.0] * (size - 1)]))
    for i in run:
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised)
        x, slope = run.update(x, (denoised, *history), tables[len(history)], i)
        history = [slope, *history][: order - 1]
    return x


def sample_dpmpp_2m(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
) -> Tensor:
    """DPM-Solver++(2M)."""
    run = Run(model, x, sigmas, extra_args, callback, disable, None, None, None)
    return _multistep(run, x, 2, False, 0.0, 1.0)


def sample_dpmpp_2m_sde(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, solver_type: str = "midpoint", *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) of the SDE; ``solver_type`` is midpoint or heun."""
    if solver_type not in ("midpoint", "heun"):
        raise ValueError(f"solver_type must be 'midpoint' or 'heun', got {solver_type!r}")
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    return _multistep(run, x, 2, solver_type == "heun", eta, s_noise)


def sample_dpmpp_3m_sde(
    model: Model, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None,
    eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler | None = None, *,
    seed: Any = None, sample_ids: Any = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(3M) of the SDE."""
    run = Run(model, x, sigmas, extra_args, callback, disable, noise_sampler, seed, sample_ids)
    return _multistep(run, x, 3, True, eta, s_noise)


def _multistep(run: Run, x: Tensor, order: int, heun: bool, eta: float, s_noise: float) -> Tensor:
    """DPM-Solver++ of growing order; a step to sigma = 0 gives D."""
    alpha, sigma, lam = formulas.edm(run.levels)
    tables = []
    for size in range(1, order + 1):
        lambdas = [formulas.before(lam[:-1], k) for k in range(size)]
        with np.errstate(all="ignore"):
            of_x, weights, noise = formulas.dpm_data(size, heun, alpha[1:], sigma[1:], lam[1:], run.now, lambdas, eta)
        tables.append(run.rows([of_x, *weights, s_noise * noise], noisy=True))
    at, history = run.inputs(run.now), []
    for i in run:
        denoised = run.denoise(x, at[i])
        run.report(x, i, denoised)
        older = history if run.to[i] > 0 else []
        x = run.update(x, (denoised, *older), tables[len(older)], i, run.to[i])
        history = [denoised, *history][: order - 1]
    return x
