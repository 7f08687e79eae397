"""Score-difference losses of one-step distillation, and the weights of f-divergences, as public functions."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _denoiser_losses_direct as direct
from . import _denoiser_losses_ops as ops
from ._denoiser_heads import check_number, check_positive
from ._denoiser_losses_arguments import REDUCTIONS, check_batch, check_choice, elements, reduced, rows_of

__all__ = ["DIVERGENCES", "divergence_weight", "score_difference"]

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
        if not isinstance(clamp, numbers.Real) or isinstance(clamp, bool):
            raise TypeError(f"clamp must be a number or None, got {type(clamp).__name__}")
        if not clamp > 0:
            raise ValueError(f"clamp must be positive or None, got {clamp}")
        log_ratio = log_ratio.clamp(-clamp, clamp)
    h = DIVERGENCES[divergence](log_ratio)
    return h / h.mean() if normalize else h


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

    Differentiable in y, D_r, D_f, alpha and weight as said. In eager mode the gradients of float32 and float64 tensors
    are made with the value of a ``mean`` or ``sum``, and kept for the backward; else that is a pass of its own, for
    which nothing is kept but the arguments.
    ValueError names a wrong shape, value or choice, TypeError a wrong type, dtype or device.
    Source: Yin et al. 2024 (DMD2, arXiv 2405.14867; the weight: DMD, 2311.18828, equation 8); Zhou et al. 2024 (SiD,
    2404.04057, equation 23); Luo et al. 2024 (SIM, 2410.16794); Xu et al. 2025 (f-distill, 2502.15681); Wang et al.
    2025 (Uni-Instruct, 2505.20755).
    """
    check_choice(kind, "kind", ("vsd", "sid", "sim"))
    check_choice(reduction, "reduction", REDUCTIONS)
    check_batch({"y": y, "teacher": teacher, "fake": fake})
    check_positive("floor", floor)
    if not isinstance(alpha, Tensor):
        check_number("alpha", alpha)
    if kind == "vsd":
        teacher, fake = teacher.detach(), fake.detach()
    vectors, given = (y, teacher, fake), (alpha, weight, scale)
    module = direct.module_for(vectors, given[: 2 if scale is None else 3], reduction, (0, 1, 2))
    with direct.quiet(module):
        return _difference(vectors, given, kind, floor, reduction, module)


def _difference(
    vectors: Sequence[Tensor], given: Sequence[Any], kind: str, floor: float, reduction: str, module: Any = None
) -> Tensor:
    """The loss by the registered op, or by a compiled module at once."""
    x, n = vectors[0], elements(vectors[0])
    alpha, weight, scale = given
    h = direct.number(weight, "weight", x, module)
    rows: list[tuple[Any, ...]]
    if kind == "vsd":  # p = D_f - D_r, q = y
        rows, pattern = [(0.0, -1.0, 1.0), (1.0, 0.0, 0.0)], 0b001_110
    elif kind == "sid":  # p = Delta, q = D_r - y - alpha Delta
        a = direct.number(alpha, "alpha", x, module) if isinstance(alpha, Tensor) else float(alpha)
        rows, pattern = [(0.0, 1.0, -1.0), (-1.0, 1.0 - a, a)], 0b111_110
    else:  # q = D_f - y
        rows, pattern = [(0.0, 1.0, -1.0), (-1.0, 0.0, 1.0)], 0b101_110
    if scale is None:
        rows, pattern = [*rows, (1.0, -1.0, 0.0)], pattern | 0b011 << 6
    else:
        w = direct.number(scale, "scale", x, module)
    if module is not None:
        known = scale is not None
        part = direct.share(reduction, x)
        factor = (h / w if known else h) * part

        def make(vectors: Sequence[Tensor], grads: Sequence[Any]) -> Tensor:
            sums = direct.forms(module, vectors, rows, (0.0, factor), 0.0 if known else floor, grads)
            share = factor
            if not known:
                mean = sums[:, 2] / n
                share = factor / (mean.clamp(min=floor) if isinstance(mean, Tensor) else np.maximum(mean, floor))
            if kind != "vsd":
                return direct.total(sums[:, 1] * share, reduction, vectors)
            # h^2 Delta^2 / (2 w^2), of which one h / w is without what the reduction multiplies by
            return direct.total(0.5 / part * share**2 * sums[:, 0], reduction, vectors)

        return direct.loss(make, lambda v, m: _difference(v, m, kind, floor, reduction), vectors, given)
    squares, product, absolute = ops.forms(*vectors, None, rows_of(rows, x), pattern)
    if scale is None:
        w = (absolute.detach() / n).clamp(min=floor)
    share = h / w.detach()
    if kind == "vsd":
        share = share.detach()
        along = product * (share / n)
        # the value is that of half a square; its gradient goes through the inner product, which is linear in y
        values = (0.5 / n) * share**2 * squares.detach() + (along - along.detach())
    else:
        values = product * (share / n)
    return reduced(values, x, reduction, vectors)
