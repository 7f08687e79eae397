"""Score-matching and score-difference losses, as public functions: one read forward, one pass backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_losses_ops as ops
from ._denoiser_losses_arguments import (
    check_batch,
    check_choice,
    constant,
    elements,
    per_sample,
    reduced,
)

__all__ = [
    "DIVERGENCES",
    "denoising_score_matching",
    "divergence_weight",
    "multiplicative_score_matching",
    "score_difference",
]

KINDS = ("epsilon", "x0", "v", "flow", "score", "F")
_SPACES = {**{k: k for k in KINDS}, "vp": "epsilon", "ve": "epsilon", "edm": "F"}
#: a residual r of a kind is one of c r in x_0, with c = sigma^i alpha^j / (the number that `_divisor` gives)
_POWERS = {"epsilon": (1, -1), "x0": (0, 0), "v": (1, 0), "flow": (1, 0), "score": (2, -1), "F": (1, 0)}


def _divisor(kind: str, sigma: Tensor, alpha: Tensor, sigma_data: float) -> Tensor | float:
    if kind in ("epsilon", "x0", "score"):
        return -1.0 if kind == "epsilon" else 1.0
    if kind == "v":
        return -(alpha**2 + sigma**2)
    if kind == "flow":
        return -(alpha + sigma)
    return (sigma**2 + sigma_data**2).sqrt() / sigma_data


def _squared_change(kind: str, space: str, sigma: Tensor, alpha: Tensor, sigma_data: float) -> Tensor | float:
    """The square of what turns a residual of one kind into one of another."""
    if kind == space:
        return 1.0
    ratio = _divisor(space, sigma, alpha, sigma_data) / _divisor(kind, sigma, alpha, sigma_data)
    for base, power, other in zip((sigma, alpha), _POWERS[kind], _POWERS[space], strict=True):
        if power != other:
            ratio = ratio * base ** (power - other)
    return ratio**2


def _target(kind: str, sigma: Tensor, alpha: Tensor, sigma_data: float) -> tuple[Any, Any]:
    """The coefficients of data and noise in the target; None where there is none."""
    if kind == "epsilon":
        return None, torch.ones_like(sigma)
    if kind == "x0":
        return torch.ones_like(sigma), None
    if kind == "v":
        return -sigma, alpha
    if kind == "flow":
        return -torch.ones_like(sigma), torch.ones_like(sigma)
    if kind == "score":
        return None, -1.0 / sigma
    root = (sigma**2 + sigma_data**2).sqrt()
    return sigma / (sigma_data * root), -sigma_data / root


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def denoising_score_matching(
    prediction: Tensor,
    sigma: Tensor | float,
    alpha: Tensor | float = 1.0,
    *,
    data: Tensor | None = None,
    noise: Tensor | None = None,
    noisy: Tensor | None = None,
    kind: str = "epsilon",
    weighting: str | None = None,
    weight: Tensor | float = 1.0,
    sigma_data: float = 0.5,
    reduction: str = "mean",
) -> Tensor:
    r"""Denoising score matching: squared error of a network's prediction beside its target, which is never stored.

    .. math:: L_b = w_b\, \lambda_b\, \mathrm{mean}\, |\mathrm{prediction} - \mathrm{target}(x_0, \epsilon)|^2,
        \qquad x_t = \alpha x_0 + \sigma \epsilon

    ========= ==================================== ===================================
    kind      target                               residual in x_0, times the residual
    ========= ==================================== ===================================
    epsilon   eps                                  -sigma / alpha
    x0        x_0                                  1
    v         alpha eps - sigma x_0                -sigma / (alpha^2 + sigma^2)
    flow      eps - x_0                            -sigma / (alpha + sigma)
    score     -eps / sigma                         sigma^2 / alpha
    F         (x_0 - c_skip x_t) / c_out, alpha 1  c_out = sigma s_d / sqrt(sigma^2 + s_d^2)
    ========= ==================================== ===================================

    Args:
        prediction: what the network gave for x_t, (B, *shape); float32, float64, bfloat16 or float16, any strides.
        sigma, alpha: numbers, or tensors (B,) (or (B, 1, ...)): the noise level and the scale of the signal.
        data, noise, noisy: x_0, eps and x_t, of the prediction's shape and any of these dtypes: what the target
            is made of, or any two of the three. Where more are given than are needed, data and noise are read.
        kind: what the network predicts, as above; ``F`` is EDM's raw network of D = c_skip x_t + c_out F, with
            standard deviation ``sigma_data`` of the data.
        weighting: the space in which the residual is measured: any kind, or ``vp`` and ``ve`` (that of epsilon:
            lambda = sigma^2 on scores, 1 / sigma^2 on x_0) or ``edm`` (that of F: lambda = (sigma^2 + s_d^2) /
            (sigma s_d)^2 on x_0). None: the kind's own.
        weight: w, a number or (B,).
        reduction: ``mean`` over all numbers, ``sum`` over all numbers, or ``none``: L_b (B,), means over a sample.

    Returns:
        float64 where a tensor is, else float32. Residuals and sums are computed in float64; a sample's result does
        not depend on the batch it is in. sigma = 0 or alpha = 0 give nan where a formula above divides by it.

    Differentiable in prediction, data, noise, noisy, sigma, alpha and weight, any number of times. One read of each
    tensor forward, one pass backward; nothing is kept for it but the arguments.
    ValueError names a wrong shape, value or choice, TypeError a wrong type, dtype or device.
    Source: Vincent 2011; Song et al. 2021 (arXiv 2011.13456, equation 7); Karras et al. 2022 (2206.00364, equation 8
    and table 1); v: Salimans and Ho 2022 (2202.00512); flow: Lipman et al. 2023 (2210.02747).
    """
    check_choice(kind, "kind", KINDS)
    check_choice(weighting, "weighting", (None, *_SPACES))
    given = {"data": data, "noise": noise, "noisy": noisy}
    x = check_batch({"prediction": prediction, **{k: v for k, v in given.items() if v is not None}})
    s, a = per_sample(sigma, "sigma", x), per_sample(alpha, "alpha", x)
    if kind == "F" and (isinstance(alpha, Tensor) or alpha != 1):
        raise ValueError("kind 'F' is defined for alpha = 1 (scale x_t and sigma by 1 / alpha)")
    if not sigma_data > 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    to_data, to_noise = _target(kind, s, a, sigma_data)
    to_noisy = None
    if to_noise is not None and noise is None:  # eps = (x_t - alpha x_0) / sigma
        to_noisy, to_data, to_noise = to_noise / s, _plus(to_data, -to_noise * a / s), None
    elif to_data is not None and data is None:  # x_0 = (x_t - sigma eps) / alpha
        to_noisy, to_noise, to_data = to_data / a, _plus(to_noise, -to_data * s / a), None
    parts = {"data": to_data, "noise": to_noise, "noisy": to_noisy}
    if any(c is not None and given[k] is None for k, c in parts.items()):
        needs = {"x0": "data, or noise and noisy"}
        needs |= dict.fromkeys(("epsilon", "score"), "noise, or data and noisy")
        seen = " and ".join(k for k, t in given.items() if t is not None) or "none of them"
        raise ValueError(f"kind {kind!r} needs {needs.get(kind, 'two of data, noise and noisy')}, got {seen}")
    vectors, row = [prediction], [torch.ones_like(s)]
    for name, c in parts.items():
        if c is not None:
            vectors.append(given[name])
            row.append(-c)
    table = torch.stack(torch.broadcast_tensors(*row), -1)[:, None]
    pad = [None] * (ops.VECTORS - len(vectors))
    squares = ops.forms(*vectors, *pad, table, (1 << len(vectors)) - 1)[0]
    scale = per_sample(weight, "weight", x)
    if weighting is not None:
        scale = scale * _squared_change(kind, _SPACES[weighting], s, a, sigma_data)
    return reduced(squares * (scale / elements(x)), x, reduction, vectors)


def multiplicative_score_matching(
    prediction: Tensor,
    noisy: Tensor,
    data: Tensor,
    log_mean: Tensor | float,
    log_variance: Tensor | float,
    *,
    hyvarinen: bool = False,
    weight: Tensor | float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    r"""Score matching under multiplicative noise, x = x_0 exp(m + sqrt(v) z): the one log-normal data want.

    .. math:: L_b = w_b\, \mathrm{mean}\, \big| v\, x s(x) + \log(x / x_0) - m + v \big|^2

    which is least where s is the score of x. For geometric Brownian motion dX = mu X dt + sigma X dW at time k:
    m = (mu - sigma^2 / 2) k and v = sigma^2 k, so that the loss is
    |k sigma^2 x s + log(x_k / x_0) - mu k + 1.5 sigma^2 k|^2.

    Args:
        prediction: s(x), or with ``hyvarinen`` the Hyvarinen score x s(x); (B, *shape) of any float dtype and strides.
        noisy, data: x and x_0, of its shape; both positive, or of one sign (else nan).
        log_mean, log_variance: m and v, numbers or (B,).
        weight, reduction: as in `denoising_score_matching`.

    Returns:
        float64 where a tensor is, else float32; logarithms and sums are computed in float64.

    Differentiable in everything, any number of times; one read forward, one pass backward for the prediction.
    ValueError names a wrong shape or choice, TypeError a wrong type, dtype or device.
    Source: "Dale meets Langevin", multiplicative denoising score matching with geometric Brownian motion.
    """
    x = check_batch({"prediction": prediction, "noisy": noisy, "data": data})
    m, v = per_sample(log_mean, "log_mean", x), per_sample(log_variance, "log_variance", x)
    table = torch.stack(torch.broadcast_tensors(v, v - m), -1)
    squares = ops.lognormal(prediction, noisy, data, table, not hyvarinen)
    scale = per_sample(weight, "weight", x) / elements(x)
    return reduced(squares * scale, x, reduction, (prediction, noisy, data))


#: divergence -> h(r) = r^2 f''(r) as a function of log r
DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,
    "forward_kl": torch.exp,
    "jensen_shannon": torch.sigmoid,
    "squared_hellinger": lambda l: 0.25 * torch.exp(0.5 * l),
    "jeffreys": lambda l: 1.0 + torch.exp(l),
    "softened_reverse_kl": lambda l: torch.sigmoid(-l),
    "neyman": lambda l: torch.exp(-l),
    "pearson": lambda l: torch.exp(2.0 * l),
    "le_cam": lambda l: 4.0 * torch.sigmoid(l) ** 2 * torch.sigmoid(-l),
}


def divergence_weight(
    log_ratio: Tensor,
    divergence: str = "reverse_kl",
    *,
    clamp: float | None = 10.0,
    normalize: bool = False,
) -> Tensor:
    r"""The weight h(r) = r^2 f''(r) of an f-divergence D_f(p || q) = E_q f(p / q) at the density ratio r = p / q.

    While both densities are smoothed by Gaussian noise of variance sigma^2,
    :math:`dD_f / d\sigma^2 = -\tfrac12 E_q[h(r) |s_p - s_q|^2]`: what a score-difference loss is weighted by to
    follow D_f rather than the reverse KL divergence.

    ===================== ==================================== ===============
    divergence            f(r)                                 h(r)
    ===================== ==================================== ===============
    reverse_kl            -log r                               1
    forward_kl            r log r                              r
    jensen_shannon        r log r - (r + 1) log((r + 1) / 2)   r / (1 + r)
    squared_hellinger     1 - sqrt(r)                          sqrt(r) / 4
    jeffreys              (r - 1) log r                        1 + r
    softened_reverse_kl   (r + 1) log((r + 1) / (2 r))         1 / (1 + r)
    neyman                (r - 1)^2 / (2 r)                    1 / r
    pearson               (r - 1)^2 / 2                        r^2
    le_cam                (r - 1)^2 / (2 (r + 1))              4 r^2 / (1 + r)^3
    ===================== ==================================== ===============

    Args:
        log_ratio: log r, (B,) of a float dtype: the logit of a discriminator of p (real) from q (generated).
        clamp: log r is first clamped to [-clamp, clamp]; None: not.
        normalize: divide by the mean over the batch, which couples its samples.

    Returns:
        h of log_ratio's shape and dtype, differentiable (a distillation loss takes it as a constant: detach it).

    Source: Xu, Nie and Vahdat 2025 (f-distill, arXiv 2502.15681, proposition 1 and table 1).
    """
    check_choice(divergence, "divergence", tuple(DIVERGENCES))
    if not isinstance(log_ratio, Tensor) or not log_ratio.is_floating_point():
        seen = getattr(log_ratio, "dtype", type(log_ratio).__name__)
        raise TypeError(f"log_ratio must be a floating-point tensor, got {seen}")
    if clamp is not None:
        if not clamp > 0:
            raise ValueError(f"clamp must be positive or None, got {clamp}")
        log_ratio = log_ratio.clamp(-clamp, clamp)
    h = DIVERGENCES[divergence](log_ratio)
    return h / h.mean() if normalize else h


def _rows(rows: list[tuple[Any, ...]], x: Tensor) -> Tensor:
    """(1 or B, R, K) of numbers, or of tensors (1 or B,) among them."""
    flat = [c for row in rows for c in row]
    if not any(isinstance(c, Tensor) for c in flat):
        return constant(tuple(rows), x.device)
    made = torch.broadcast_tensors(*(per_sample(c, "coefficients", x) for c in flat))
    return torch.stack(made, -1).unflatten(-1, (len(rows), len(rows[0])))


def score_difference(
    y: Tensor,
    teacher: Tensor,
    fake: Tensor,
    *,
    kind: str = "vsd",
    alpha: Tensor | float = 1.2,
    weight: Tensor | float = 1.0,
    scale: Tensor | None = None,
    floor: float = 1e-5,
    reduction: str = "mean",
) -> Tensor:
    r"""The distance between two scores at a generator's samples, as one-step distillation trains on it.

    With denoised predictions D_r of the teacher and D_f of the fake score at a noised sample y + sigma n,
    Delta = D_r - D_f, and a number a sample w = max(mean |y - D_r|, floor) that carries no gradient:

    ======== ============================================== ==============================================
    kind     value, a mean over the sample                  gradients, over the number of elements
    ======== ============================================== ==============================================
    ``vsd``  h^2 Delta^2 / (2 w^2)                          y: -h Delta / w; D_r, D_f: none
    ``sid``  h (Delta (D_r - y) - alpha Delta^2) / w        y: -h Delta / w; D_r: h (D_r - y + Delta
                                                            - 2 alpha Delta) / w; D_f: h (2 alpha Delta
                                                            - D_r + y) / w
    ``sim``  h Delta (D_f - y) / w                          y: -h Delta / w; D_r: h (D_f - y) / w; D_f:
                                                            h (Delta - D_f + y) / w
    ======== ============================================== ==============================================

    ``vsd`` is the gradient of variational score distillation and of DMD, ``sid`` score identity distillation, ``sim``
    score implicit matching, which Uni-Instruct weights by h.

    Args:
        y: samples of the generator (not noised), (B, *shape); float32, float64, bfloat16 or float16, any strides.
        teacher, fake: D_r and D_f, of its shape and any of these dtypes.
        alpha: of ``sid``, a number or (B,); ``sim`` is ``sid`` at alpha = 1.
        weight: h, a number or (B,); that of an f-divergence is `divergence_weight`.
        scale: w (B,), instead of the mean above; positive. floor: the least w.
        reduction: ``mean`` or ``sum`` over all numbers, ``none``: means over each sample (B,).

    Returns:
        float64 where a tensor is, else float32. Differences and sums are computed in float64; a sample's result does
        not depend on its batch. Anything not finite comes out as nan.

    Differentiable in y, D_r, D_f, alpha and weight as said. One read of the three tensors forward, one pass backward;
    nothing is kept for it but the arguments and a few numbers a sample.
    ValueError names a wrong shape, value or choice, TypeError a wrong type, dtype or device.
    Source: Yin et al. 2024 (DMD2, arXiv 2405.14867; the weight: DMD, 2311.18828, equation 8); Zhou et al. 2024 (SiD,
    2404.04057, equation 23); Luo et al. 2024 (SIM, 2410.16794); Xu et al. 2025 (f-distill, 2502.15681); Wang et al.
    2025 (Uni-Instruct, 2505.20755).
    """
    check_choice(kind, "kind", ("vsd", "sid", "sim"))
    x = check_batch({"y": y, "teacher": teacher, "fake": fake})
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}")
    h = weight if type(weight) in (int, float) else per_sample(weight, "weight", x)
    rows: list[tuple[Any, ...]]
    if kind == "vsd":  # p = D_f - D_r, q = y
        teacher, fake = teacher.detach(), fake.detach()
        rows, pattern = [(0.0, -1.0, 1.0), (1.0, 0.0, 0.0)], 0b001_110
    elif kind == "sid":  # p = Delta, q = D_r - y - alpha Delta
        a = per_sample(alpha, "alpha", x) if isinstance(alpha, Tensor) else float(alpha)
        rows, pattern = [(0.0, 1.0, -1.0), (-1.0, 1.0 - a, a)], 0b111_110
    else:  # q = D_f - y
        rows, pattern = [(0.0, 1.0, -1.0), (-1.0, 0.0, 1.0)], 0b101_110
    if scale is None:
        rows, pattern = [*rows, (1.0, -1.0, 0.0)], pattern | 0b011 << 6
    n = elements(x)
    squares, product, absolute = ops.forms(y, teacher, fake, None, _rows(rows, x), pattern)
    if scale is None:
        w = (absolute.detach() / n).clamp(min=floor)
    else:
        w = per_sample(scale, "scale", x).detach()
    share = h / w
    if kind == "vsd":
        share = share.detach()
        along = product * (share / n)
        # the value is that of half a square; its gradient goes through the inner product, which is linear in y
        values = (0.5 / n) * share**2 * squares.detach() + (along - along.detach())
    else:
        values = product * (share / n)
    return reduced(values, x, reduction, (y, teacher, fake))
