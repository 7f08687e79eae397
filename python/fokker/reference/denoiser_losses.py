r"""Score-matching and distillation losses in plain PyTorch: what the kernels of `fokker.denoiser` compute.

A batch has samples (B, *shape); <a, b> and sums are over the elements of one sample, in float64 whatever the dtype.
The noisy state is x_t = alpha x_0 + sigma epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _rows(t: Tensor) -> Tensor:
    """(B, elements) in float64."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:])).double()


def forms(vectors: Sequence[Tensor], coefficients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the linear forms p, q, d = sum_k c_rk v_k, rows r of coefficients (B or 1, R, K): R of them, at most 3.

    Returns <p, p>, <p, q> and sum |d|, each (B,) in float64; empty where there is no q or no d.
    """
    v = torch.stack([_rows(t) for t in vectors], 1)
    u = coefficients @ v
    none = v.new_empty(0)
    product = (u[:, 0] * u[:, 1]).sum(-1) if u.shape[1] > 1 else none
    absolute = u[:, 2].abs().sum(-1) if u.shape[1] > 2 else none.clone()
    return u[:, 0].square().sum(-1), product, absolute


def lognormal(s: Tensor, x: Tensor, data: Tensor, coefficients: Tensor, multiplied: bool) -> Tensor:
    """Sums (B,) of squares of r = a x s + log(x / x_0) + c (without that x where not ``multiplied``), in float64.

    coefficients: (B or 1, 2), a and c.
    """
    s, x, data = _rows(s), _rows(x), _rows(data)
    a, c = coefficients.unsqueeze(-1).unbind(1)
    return (a * (x * s if multiplied else s) + torch.log(x / data) + c).square().sum(1)


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    """A number a sample, of a shape that broadcasts over x, in float64."""
    value = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    return value.reshape(-1, *(1,) * (x.dim() - 1))


def target(kind: str, data: Tensor, noise: Tensor, sigma: Tensor, alpha: Tensor, sigma_data: float) -> Tensor:
    """What a network of this kind is trained towards."""
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return data
    if kind == "v":
        return alpha * noise - sigma * data
    if kind == "flow":
        return noise - data
    if kind == "score":
        return -noise / sigma
    root = (sigma**2 + sigma_data**2).sqrt()  # F of D = c_skip x + c_out F
    skip, out = sigma_data**2 / root**2, sigma * sigma_data / root
    return (data - skip * (data + sigma * noise)) / out


def denoised_scale(kind: str, sigma: Tensor, alpha: Tensor, sigma_data: float) -> Tensor:
    """c with: a residual r of the prediction is a residual c r of the implied prediction of x_0."""
    if kind == "epsilon":
        return -sigma / alpha
    if kind == "x0":
        return torch.ones_like(sigma)
    if kind == "v":
        return -sigma / (alpha**2 + sigma**2)
    if kind == "flow":
        return -sigma / (alpha + sigma)
    if kind == "score":
        return sigma**2 / alpha
    return sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()


def denoising_score_matching(
    prediction: Tensor,
    data: Tensor,
    noise: Tensor,
    sigma: Tensor | float,
    alpha: Tensor | float = 1.0,
    kind: str = "epsilon",
    weighting: str | None = None,
    weight: Tensor | float = 1.0,
    sigma_data: float = 0.5,
) -> Tensor:
    """(B,): means over the sample of weight |prediction - target|^2, measured in the space of ``weighting``."""
    s, a = _like(sigma, prediction), _like(alpha, prediction)
    residual = prediction.double() - target(kind, data.double(), noise.double(), s, a, sigma_data)
    if weighting is not None:
        residual = residual * denoised_scale(kind, s, a, sigma_data) / denoised_scale(weighting, s, a, sigma_data)
    return torch.as_tensor(weight, dtype=torch.float64, device=prediction.device) * _rows(residual).square().mean(1)


def multiplicative_score_matching(
    prediction: Tensor,
    x: Tensor,
    data: Tensor,
    log_mean: Tensor | float,
    log_variance: Tensor | float,
    weight: Tensor | float = 1.0,
    hyvarinen: bool = False,
) -> Tensor:
    """(B,): means of |v x s + log(x / x_0) - m + v|^2 for x = x_0 exp(m + sqrt(v) z); ``hyvarinen``: h = x s given."""
    m, v = _like(log_mean, x), _like(log_variance, x)
    h = prediction.double() if hyvarinen else x.double() * prediction.double()
    residual = v * h + (x.double() / data.double()).log() - m + v
    return torch.as_tensor(weight, dtype=torch.float64, device=x.device) * _rows(residual).square().mean(1)


def score_difference(
    y: Tensor,
    teacher: Tensor,
    fake: Tensor,
    kind: str = "vsd",
    alpha: Tensor | float = 1.2,
    weight: Tensor | float = 1.0,
    scale: Tensor | None = None,
    floor: float = 1e-5,
) -> Tensor:
    """(B,): the loss of each sample, a mean over its elements; see `fokker.denoiser.score_difference`."""
    y, teacher, fake = y.double(), teacher.double(), fake.double()
    if scale is None:
        scale = _rows(y - teacher).abs().mean(1).clamp(min=floor)
    scale = _like(scale.detach(), y)
    weight = _like(weight, y)
    if kind == "vsd":
        gradient = weight * (fake - teacher) / scale
        return 0.5 * _rows(y - (y - gradient).detach()).square().mean(1)
    delta = teacher - fake
    if kind == "sid":
        terms = delta * (teacher - y) - _like(alpha, y) * delta**2
    else:
        terms = delta * (fake - y)
    return _rows(weight * terms / scale).mean(1)


def divergence_weight(log_ratio: Tensor, divergence: str) -> Tensor:
    """h(r) = r^2 f''(r) at r = exp(log_ratio) = p / q, for the generators f of `fokker.denoiser.divergence_weight`."""
    r = log_ratio.exp()
    return {
        "reverse_kl": torch.ones_like(r),
        "forward_kl": r,
        "jensen_shannon": r / (1 + r),
        "squared_hellinger": r.sqrt() / 4,
        "jeffreys": 1 + r,
        "softened_reverse_kl": 1 / (1 + r),
        "neyman": 1 / r,
        "pearson": r**2,
        "le_cam": 4 * r**2 / (1 + r) ** 3,
    }[divergence]
