"""Denoising and multiplicative score matching, as public functions: one read forward, one pass backward at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_losses_direct as direct
from . import _denoiser_losses_ops as ops
from ._denoiser_heads import check_positive
from ._denoiser_losses_arguments import REDUCTIONS, check_batch, check_choice, elements, reduced, rows_of

__all__ = ["denoising_score_matching", "multiplicative_score_matching"]

KINDS = ("epsilon", "x0", "v", "flow", "score", "F")
_SPACES = {**{k: k for k in KINDS}, "vp": "epsilon", "ve": "epsilon", "edm": "F"}
#: a residual r of a kind is one of c r in x_0, with c = sigma^i alpha^j / (the number that `_divisor` gives)
_POWERS = {"epsilon": (1, -1), "x0": (0, 0), "v": (1, 0), "flow": (1, 0), "score": (2, -1), "F": (1, 0)}


def _divisor(kind: str, sigma: Any, alpha: Any, sigma_data: float) -> Any:
    if kind in ("epsilon", "x0", "score"):
        return -1.0 if kind == "epsilon" else 1.0
    if kind == "v":
        return -(alpha**2 + sigma**2)
    if kind == "flow":
        return -(alpha + sigma)
    return (sigma**2 + sigma_data**2) ** 0.5 / sigma_data


def _squared_change(kind: str, space: str, sigma: Any, alpha: Any, sigma_data: float) -> Any:
    """The square of what turns a residual of one kind into one of another."""
    if kind == space:
        return 1.0
    ratio = _divisor(space, sigma, alpha, sigma_data) / _divisor(kind, sigma, alpha, sigma_data)
    for base, power, other in zip((sigma, alpha), _POWERS[kind], _POWERS[space], strict=True):
        if power != other:
            ratio = ratio * base ** (power - other)
    return ratio**2


def _target(kind: str, sigma: Any, alpha: Any, sigma_data: float) -> tuple[Any, Any]:
    """The coefficients of data and noise in the target; None where there is none."""
    if kind == "epsilon":
        return None, 1.0
    if kind == "x0":
        return 1.0, None
    if kind == "v":
        return -sigma, alpha
    if kind == "flow":
        return -1.0, 1.0
    if kind == "score":
        return None, -1.0 / sigma
    root = (sigma**2 + sigma_data**2) ** 0.5
    return sigma / (sigma_data * root), -sigma_data / root


def _plus(a: Any, b: Any) -> Any:
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

    Differentiable in prediction, data, noise, noisy, sigma, alpha and weight, any number of times. In eager mode the
    gradient of a ``mean`` or ``sum`` in a float32 or float64 prediction alone is made in the pass that reads the
    tensors, and kept for the backward; else that is a pass of its own, for which nothing is kept but the arguments.
    ValueError names a wrong shape, value or choice, TypeError a wrong type, dtype or device.
    Source: Vincent 2011; Song et al. 2021 (arXiv 2011.13456, equation 7); Karras et al. 2022 (2206.00364, equation 8
    and table 1); v: Salimans and Ho 2022 (2202.00512); flow: Lipman et al. 2023 (2210.02747).
    """
    check_choice(kind, "kind", KINDS)
    check_choice(weighting, "weighting", (None, *_SPACES))
    given = {"data": data, "noise": noise, "noisy": noisy}
    check_choice(reduction, "reduction", REDUCTIONS)
    x = check_batch({"prediction": prediction, **{k: v for k, v in given.items() if v is not None}})
    if kind == "F" and (isinstance(alpha, Tensor) or alpha != 1):
        raise ValueError("kind 'F' is defined for alpha = 1 (scale x_t and sigma by 1 / alpha)")
    check_positive("sigma_data", sigma_data)
    named = {"prediction": x, **{k: t for k, t in given.items() if t is not None}}
    module = direct.module_for(tuple(named.values()), (sigma, alpha, weight), reduction)
    with direct.quiet(module):
        return _denoising(named, (sigma, alpha, weight), kind, weighting, sigma_data, reduction, module)


def _denoising(
    named: Mapping[str, Tensor], numbers: Sequence[Any], kind: str, weighting: str | None, sigma_data: float,
    reduction: str, module: Any = None
) -> Tensor:  # fmt: skip
    """The loss by the registered op, or by a compiled module at once."""
    x = named["prediction"]
    names = ("sigma", "alpha", "weight")
    s, a, scale = (direct.number(v, name, x, module) for v, name in zip(numbers, names, strict=True))
    row = {"prediction": 1.0, **_residual(kind, named, s, a, sigma_data)}
    if weighting is not None:
        scale = scale * _squared_change(kind, _SPACES[weighting], s, a, sigma_data)
    vectors, rows = [named[k] for k in row], [tuple(row.values())]
    if module is not None:
        weights = scale * direct.share(reduction, x)

        def make(vectors: Sequence[Tensor], grads: Sequence[Any]) -> Tensor:
            sums = direct.forms(module, vectors, rows, (weights, 0.0), 0.0, grads)
            return direct.total(sums[:, 0] * weights, reduction, vectors)

        def again(tensors: Sequence[Tensor], numbers: Sequence[Any]) -> Tensor:
            same = dict(zip(row, tensors, strict=True))
            return _denoising(same, numbers, kind, weighting, sigma_data, reduction)

        return direct.loss(make, again, vectors, numbers)
    pad = [None] * (ops.VECTORS - len(vectors))
    squares = ops.forms(*vectors, *pad, rows_of(rows, x), (1 << len(vectors)) - 1)[0]
    return reduced(squares * (scale / elements(x)), x, reduction, vectors)


def _residual(kind: str, given: Mapping[str, Tensor], s: Any, a: Any, sigma_data: float) -> dict[str, Any]:
    """The coefficients of data, noise and noisy in minus the target, of those that matter."""
    to_data, to_noise = _target(kind, s, a, sigma_data)
    to_noisy = None
    if to_noise is not None and "noise" not in given:  # eps = (x_t - alpha x_0) / sigma
        to_noisy, to_data, to_noise = to_noise / s, _plus(to_data, -to_noise * a / s), None
    elif to_data is not None and "data" not in given:  # x_0 = (x_t - sigma eps) / alpha
        to_noisy, to_noise, to_data = to_data / a, _plus(to_noise, -to_data * s / a), None
    parts = {"data": to_data, "noise": to_noise, "noisy": to_noisy}
    if any(c is not None and k not in given for k, c in parts.items()):
        needs = {"x0": "data, or noise and noisy"}
        needs |= dict.fromkeys(("epsilon", "score"), "noise, or data and noisy")
        seen = " and ".join(k for k in given if k != "prediction") or "none of them"
        raise ValueError(f"kind {kind!r} needs {needs.get(kind, 'two of data, noise and noisy')}, got {seen}")
    return {k: -c for k, c in parts.items() if c is not None}


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
        float64 where a tensor is, else float32. Residuals and sums are computed in float64, logarithms to 2e-8 of
        themselves (in float64 where a tensor is).

    Differentiable in everything, any number of times; the gradient in the prediction as in `denoising_score_matching`.
    ValueError names a wrong shape or choice, TypeError a wrong type, dtype or device.
    Source: "Dale meets Langevin", multiplicative denoising score matching with geometric Brownian motion.
    """
    check_choice(reduction, "reduction", REDUCTIONS)
    x = check_batch({"prediction": prediction, "noisy": noisy, "data": data})
    vectors, numbers = (x, noisy, data), (log_mean, log_variance, weight)
    module = direct.module_for(vectors, numbers, reduction)
    with direct.quiet(module):
        return _multiplicative(vectors, numbers, not hyvarinen, reduction, module)


def _multiplicative(
    vectors: Sequence[Tensor], numbers: Sequence[Any], multiplied: bool, reduction: str, module: Any = None
) -> Tensor:
    """The loss by the registered op, or by a compiled module at once."""
    x = vectors[0]
    names = ("log_mean", "log_variance", "weight")
    m, v, w = (direct.number(n, name, x, module) for n, name in zip(numbers, names, strict=True))
    if module is not None:
        weights = w * direct.share(reduction, x)

        def make(vectors: Sequence[Tensor], grads: Sequence[Any]) -> Tensor:
            sums = direct.lognormal(module, vectors, (v, v - m, weights), multiplied, grads)
            return direct.total(sums * weights, reduction, vectors)

        def again(tensors: Sequence[Tensor], numbers: Sequence[Any]) -> Tensor:
            return _multiplicative(tensors, numbers, multiplied, reduction)

        return direct.loss(make, again, vectors, numbers)
    table = torch.stack(torch.broadcast_tensors(v, v - m), -1)
    squares = ops.lognormal(*vectors, table, multiplied)
    return reduced(squares * (w / elements(x)), x, reduction, vectors)
