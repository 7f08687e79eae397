r"""The coefficients of the published sampler steps, each formula once, for fokker.schedulers and fokker._k_diffusion.

All functions take and return NumPy float64 arrays (or floats), one entry a step, so a whole schedule is one call.
Names: x_t = alpha x0 + sigma eps; lambda = log(alpha / sigma); D a prediction of x0, E one of eps; the history m0, m1,
m2 is the newest first; a step's result is ``a x + b0 m0 + b1 m1 + .. + c z``, returned as ``(a, [b0, b1, ..], c)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any  # a float64 array, or a float

#: nodes and weights on [-1, 1], exact up to degree 15: products of differences of up to 16 sigmas
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def before(values: np.ndarray, steps: int) -> np.ndarray:
    """``values`` so many steps earlier; nan where there is none."""
    if steps == 0:
        return values
    return np.concatenate([np.full(min(steps, len(values)), np.nan), values[:-steps]])


# ---- what the model predicts ----------------------------------------------------------------------------------------
def x0_prediction(kind: str, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(p, q) with x0 = p x + q model_output, for x = alpha x0 + sigma eps."""
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    if kind == "epsilon":
        return 1 / alpha, -sigma / alpha
    if kind == "sample":
        return zero, one
    if kind == "v_prediction":  # v = alpha eps - sigma x0 (Salimans and Ho 2022), with alpha^2 + sigma^2 = 1
        return alpha, -sigma
    if kind == "flow_prediction":  # v = eps - x0, with alpha = 1 - sigma
        return one, -sigma
    raise ValueError(f"prediction_type must be epsilon, sample, v_prediction or flow_prediction, got {kind!r}")


def noise_prediction(kind: str, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(p, q) with eps = p x + q model_output, for x = alpha x0 + sigma eps."""
    if kind == "epsilon":
        return np.zeros_like(alpha), np.ones_like(alpha)
    if kind == "v_prediction":
        return sigma, alpha
    p, q = x0_prediction(kind, alpha, sigma)
    return (1 - alpha * p) / sigma, -alpha * q / sigma


def edm_prediction(kind: str, sigma: Array) -> tuple[Array, Array]:
    """(p, q) with x0 = p x + q model_output in Karras' coordinates x = x0 + sigma eps.

    The model itself sees x / sqrt(1 + sigma^2), which a v prediction is about.
    """
    if kind == "v_prediction":
        return 1 / (sigma * sigma + 1), -sigma / np.sqrt(sigma * sigma + 1)
    return x0_prediction("sample" if kind == "original_sample" else kind, np.ones_like(sigma), sigma)


def variance_preserving(sigma: Array) -> tuple[Array, Array, Array]:
    """(alpha, sigma, lambda) of x_t from the noise-to-signal ratio sigma of Karras' coordinates."""
    alpha = 1 / np.sqrt(sigma * sigma + 1)
    with np.errstate(divide="ignore"):
        return alpha, sigma * alpha, -np.log(sigma)


def straight(sigma: Array) -> tuple[Array, Array, Array]:
    """(alpha, sigma, lambda) of the flow x_t = (1 - sigma) x0 + sigma eps."""
    with np.errstate(divide="ignore"):
        return 1 - sigma, sigma, np.log1p(-sigma) - np.log(sigma)


def edm(sigma: Array) -> tuple[Array, Array, Array]:
    """(alpha, sigma, lambda) of x = x0 + sigma eps."""
    with np.errstate(divide="ignore"):
        return np.ones_like(sigma), sigma, -np.log(sigma)


# ---- one-step samplers ----------------------------------------------------------------------------------------------
def ddpm(kept: Array, kept_to: Array) -> tuple[Array, Array, Array]:
    """(of x, of x0, variance) of the posterior q(x_to | x, x0); kept: product of alphas (Ho et al. 2020, eq. 7)."""
    ratio = kept / kept_to
    fresh = (kept_to - kept) / kept_to
    left = 1 - kept
    return (
        np.sqrt(ratio) * (1 - kept_to) / left,
        np.sqrt(kept_to) * fresh / left,
        (1 - kept_to) / left * fresh,
    )


def ddim(kept: Array, kept_to: Array, eta: float) -> tuple[Array, Array, Array]:
    """(of x0, of eps, of z) of a step between products of alphas (Song et al. 2021, eq. 12 and 16)."""
    deviation = eta * np.sqrt(ddpm(kept, kept_to)[2])
    return np.sqrt(kept_to), np.sqrt(np.maximum(1 - kept_to - deviation * deviation, 0.0)), deviation


def euler(sigma: Array, sigma_to: Array) -> tuple[Array, Array]:
    """(of x, of D) of Euler's step of the probability flow dx/dsigma = (x - D) / sigma."""
    return sigma_to / sigma, 1 - sigma_to / sigma


def ancestral(sigma: Array, sigma_to: Array, eta: float = 1.0) -> tuple[Array, Array]:
    """(sigma_down, sigma_up): integrate to sigma_down, then add noise of deviation sigma_up, to be at sigma_to."""
    if not eta:
        return sigma_to + 0.0 * sigma, 0.0 * sigma
    up = np.minimum(sigma_to, eta * sigma_to * np.sqrt(np.maximum(sigma * sigma - sigma_to * sigma_to, 0.0)) / sigma)
    return np.sqrt((sigma_to - up) * (sigma_to + up)), up


def shared_noise(sigma: Array, middle: Array, sigma_to: Array) -> Array:
    """Correlation of a Brownian path's increments from sigma to middle and from sigma to sigma_to (further down)."""
    return np.sqrt((sigma - middle) / (sigma - sigma_to))


def churn(sigma: Array, steps: int, amount: float, low: float, high: float) -> Array:
    """The raised sigma of Karras et al. 2022, algorithm 2."""
    gamma = min(amount / steps, 2**0.5 - 1)
    return np.where((sigma >= low) & (sigma <= high), sigma * (gamma + 1), sigma)


# ---- exponential integrators ----------------------------------------------------------------------------------------
def _history(order: int, first: Array, w1: Array, w2: Array, r0: Array, r1: Array) -> list[Array]:
    """Weights of m0.. from those of m0 and of the first and second divided difference in lambda (in units of h)."""
    if order == 1:
        return [first]
    if order == 2:
        return [first + w1 / r0, -w1 / r0]
    newer = w1 + (w1 * r0 + w2) / (r0 + r1)
    older = -(w1 * r0 + w2) / (r0 + r1)
    return [first + newer / r0, -newer / r0 + older / r1, -older / r1]


def _spans(order: int, to: Array, lambdas: list[Array]) -> tuple[Array, Array, Array]:
    """(h, r0, r1): the step in lambda and the steps before it in units of it."""
    h = to - lambdas[0]
    r0 = (lambdas[0] - lambdas[1]) / h if order > 1 else 0.0
    r1 = (lambdas[1] - lambdas[2]) / h if order > 2 else 0.0
    return h, r0, r1


def dpm_data(
    order: int, heun: bool, alpha_to: Array, sigma_to: Array, lambda_to: Array, sigma: Array, lambdas: list[Array],
    eta: float = 0.0,
) -> tuple[Array, list[Array], Array]:  # fmt: skip
    r"""DPM-Solver++ of order 1 to 3 in D (Lu et al. 2022, arXiv 2211.01095), eta = 1 its SDE, by multisteps.

    With k = (1 + eta) h: the exact integral of a constant D is -alpha expm1(-k); the difference is weighted by half of
    that (midpoint) or by phi2 = expm1(-k) / k + 1 (heun, and order 3), the second one by phi3 = phi2 / k - 1/2, which
    is half of what a third order takes: the authors' code and all that follow it have the accuracy of order 2.
    """
    h, r0, r1 = _spans(order, lambda_to, lambdas)
    noisy = eta * h if eta else np.zeros_like(h)
    k = h + noisy
    first = -alpha_to * np.expm1(-k)
    w1 = w2 = 0.0
    if order > 1:
        w1 = alpha_to * (np.expm1(-k) / k + 1) if heun or order > 2 else first / 2
    if order > 2:
        w2 = -(w1 / k - alpha_to / 2)
    scale = sigma_to / sigma * np.exp(-noisy)
    return scale, _history(order, first, w1, w2, r0, r1), sigma_to * np.sqrt(-np.expm1(-2 * noisy))


def second_difference(weight: Array, to: Array, lambdas: list[Array]) -> list[Array]:
    """Weights of m0, m1, m2 in ``weight`` times the second divided difference of `dpm_data`."""
    _, r0, r1 = _spans(3, to, lambdas)
    return _history(3, np.zeros_like(weight), np.zeros_like(weight), weight, r0, r1)


def dpm_noise(
    order: int, heun: bool, alpha_to: Array, sigma_to: Array, lambda_to: Array, alpha: Array, lambdas: list[Array],
    stochastic: bool = False,
) -> tuple[Array, list[Array], Array]:  # fmt: skip
    """DPM-Solver of order 1 to 3 in E (Lu et al. 2022, arXiv 2206.00927) by multisteps, and its SDE (orders 1, 2)."""
    h, r0, r1 = _spans(order, lambda_to, lambdas)
    share = 2.0 if stochastic else 1.0
    first = -share * sigma_to * np.expm1(h)
    w1 = w2 = 0.0
    if order > 1:
        w1 = -share * sigma_to * (np.expm1(h) / h - 1) if heun or order > 2 else first / 2
    if order > 2:
        w2 = -sigma_to * ((np.expm1(h) - h) / (h * h) - 0.5)
    noise = sigma_to * np.sqrt(np.expm1(2 * h)) if stochastic else np.zeros_like(h)
    return alpha_to / alpha, _history(order, first, w1, w2, r0, r1), noise


def unipc(
    order: int, corrector: bool, bh1: bool, data: bool, to: tuple[Array, Array, Array],
    start: tuple[Array, Array, Array], lambdas: list[Array],
) -> tuple[Array, list[Array]]:  # fmt: skip
    r"""UniPC's predictor or corrector (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 to 8): (of x, of the outputs).

    ``to`` and ``start`` are (alpha, sigma, lambda); ``lambdas`` those of the outputs m1, m2.. before m0. The
    corrector's last weight is that of the output at ``to``. The weights rho solve R rho = b with R_ij = r_j^i and
    b_i = (i + 1)! phi_{i+2}(h) / B(h); the half at order 1 (corrector) and 2 (predictor) is the paper's choice.
    """
    h = to[2] - start[2]
    hh = -h if data else h
    phi1 = np.expm1(hh)
    b_h = hh if bh1 else phi1
    ratios = [(lam - start[2]) / h for lam in lambdas[: order - 1]]
    nodes = np.stack(np.broadcast_arrays(*ratios, np.ones_like(h)), -1)
    phi, factorial, right = phi1 / hh - 1, 1.0, []
    for i in range(1, order + 1):
        right.append(phi * factorial / b_h)
        factorial *= i + 1
        phi = phi / hh - 1 / factorial
    size = order if corrector else order - 1
    if size == 0:
        rho = np.zeros((*np.shape(h), 0))
    elif order == (1 if corrector else 2):
        rho = np.full((*np.shape(h), 1), 0.5)
    else:
        powers = np.stack([nodes[..., :size] ** i for i in range(size)], -2)
        powers = np.where(np.isfinite(h)[..., None, None], powers, np.eye(size))  # no such step at sigma = 0
        rho = np.linalg.solve(powers, np.stack(right[:size], -1)[..., None])[..., 0]
    scale = to[0] if data else to[1]
    differences = [-scale * b_h * rho[..., i] / (ratios[i] if i < order - 1 else 1.0) for i in range(size)]
    of_x = to[1] / start[1] if data else to[0] / start[0]
    return of_x, [-scale * phi1 - sum(differences), *differences]


def deis(order: int, rho_to: Array, rhos: list[Array]) -> list[Array]:
    r"""DEIS in log rho, rho = sigma / alpha (Zhang and Chen 2023, arXiv 2204.13902): weights of E in x / alpha.

    They integrate Lagrange's polynomials in v = log(rho / rho_0) over rho, whose moments are rho_0 int v^k e^v dv.
    """
    v = np.log(rho_to / rhos[0])
    grown = np.exp(v)
    moments = [np.expm1(v), grown * (v - 1) + 1, grown * (v * v - 2 * v + 2) - 2]
    nodes = [np.log(rho / rhos[0]) for rho in rhos[:order]]
    found = []
    for j, node in enumerate(nodes):
        others = [n for k, n in enumerate(nodes) if k != j]
        if order == 1:
            weight = moments[0]
        elif order == 2:
            weight = (moments[1] - others[0] * moments[0]) / (node - others[0])
        else:
            p, q = others
            weight = (moments[2] - (p + q) * moments[1] + p * q * moments[0]) / ((node - p) * (node - q))
        found.append(rhos[0] * weight)
    return found


def adams_bashforth(sigma_to: Array, sigmas: list[Array]) -> list[Array]:
    """Weights of dx/dsigma at ``sigmas`` (the newest first) in x(sigma_to) - x(sigmas[0]), for variable steps."""
    half = (sigma_to - sigmas[0]) / 2
    at = np.multiply.outer(_NODES + 1, half) + sigmas[0]
    found = []
    for j, node in enumerate(sigmas):
        values = np.ones_like(at)
        for k, other in enumerate(sigmas):
            if k != j:
                values = values * (at - other) / (node - other)
        found.append(half * np.tensordot(_WEIGHTS, values, 1))
    return found
