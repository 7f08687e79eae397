r"""Group norm with FiLM and an activation, and its bias-free form, in plain PyTorch: what `fokker.denoiser` computes.

    y = act(shift + (weight x_hat + bias) (1 + scale)),    x_hat = (x - mean) / std  or, bias-free,  x / std

for x (B, C, ...) with mean and std over the C / G channels of a group and all positions, weight and bias (C,), scale
and shift (B, C). Group norm: Wu and He 2018 (arXiv 1803.08494); scale and shift (FiLM) of U-Nets: Dhariwal and Nichol
2021 (2105.05233), appendix A; bias-free: Mohan et al. 2020 (1906.05478), Kadkhodaie et al. 2024 (2310.02557).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .sde import arithmetic

#: the number of each activation in the ops
ACTIVATIONS = {None: 0, "silu": 1, "relu": 2}


def _over(t: Tensor, x: Tensor) -> Tensor:
    """Numbers (B, C) or (C,) over the positions of x (B, C, ...)."""
    return t.reshape(*t.shape, *(1,) * (x.dim() - 2))


def _to_channels(t: Tensor, channels: int) -> Tensor:
    """Numbers of groups (B, G) at each of their channels, (B, C)."""
    return t[..., None].expand(*t.shape, channels // t.shape[1]).flatten(1)


def _group_means(t: Tensor, groups: int) -> Tensor:
    """Means (B, G) of numbers (B, C)."""
    return t.unflatten(1, (groups, t.shape[1] // groups)).mean(-1)


def _sum_positions(t: Tensor) -> Tensor:
    return t.sum(tuple(range(2, t.dim()))) if t.dim() > 2 else t


def statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each sample and group, (B, G)."""
    grouped = x.unflatten(1, (groups, x.shape[1] // groups))
    over = tuple(range(2, grouped.dim()))
    mean = grouped.mean(over, keepdim=True)
    variance = (grouped - mean).square().mean(over)
    return mean.reshape(variance.shape), (variance + eps).rsqrt()


def _wide(x: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    to = arithmetic(x.dtype)
    return [None if t is None else t.to(to) for t in (x, *tensors)]


def normalised(
    x: Tensor, groups: int, std: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_hat, x - mean, and mean and 1 / std as (B, C, 1, ...); with a given ``std`` (B, G) the mean is 0.

    The statistics and x - mean are float64's, so that a mean far from 0 costs no digits.
    """
    wide = x.double()
    if std is None:
        mean, rstd = (_over(_to_channels(t, x.shape[1]), x) for t in statistics(wide, groups, eps))
    else:
        rstd = _over(_to_channels(1 / std.double(), x.shape[1]), x)
        mean = torch.zeros_like(rstd)
    from_mean, rstd = (wide - mean).to(x.dtype), rstd.to(x.dtype)
    return (from_mean if centred else x) * rstd, from_mean, mean, rstd


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    std: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = "silu",
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """The result in x's dtype, and [mean, 1 / std] of each sample and group, (B, G, 2) in float64."""
    dtype, (x, weight, bias, scale, shift, std) = x.dtype, _wide(x, weight, bias, scale, shift, std)
    u, _, mean, rstd = normalised(x, groups, std, eps, centred)
    per = x.shape[1] // groups
    found = torch.stack([t.flatten(1)[:, ::per].double() for t in (mean, rstd)], -1)
    if weight is not None:
        u = u * _over(weight, u)
    if bias is not None:
        u = u + _over(bias, u)
    if scale is not None:
        u = u * _over(1 + scale, u)
    if shift is not None:
        u = u + _over(shift, u)
    if activation == "silu":
        u = torch.nn.functional.silu(u)
    elif activation == "relu":
        u = u.relu()
    return u.to(dtype), found


def group_norm_vjp(
    x: Tensor,
    grad: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    std: Tensor | None = None,
    *,
    eps: float = 1e-5,
    activation: str | None = "silu",
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""The gradient in x, and the two sums (B, C, 2) that those in the parameters are made of.

    With du the gradient before the activation, A = \sum du and E = \sum du x_hat over positions, and
    k = (1 + scale) weight: dx = rstd (k du - mean_group(k du) - x_hat mean_group(k du x_hat)); bias-free the last
    x_hat is (x - mean) / std and the term before it is missing, with a given std both are.
    """
    dtype, (x, weight, bias, scale, shift, std, grad) = x.dtype, _wide(x, weight, bias, scale, shift, std, grad)
    x_hat, from_mean, _, rstd = normalised(x, groups, std, eps, centred)
    gain = None if scale is None else 1 + scale
    k = gain if weight is None else weight if gain is None else gain * weight  # (C,) or (B, C)
    u = x_hat if k is None else x_hat * _over(k, x)
    if bias is not None:
        u = u + _over(bias if gain is None else bias * gain, x)
    if shift is not None:
        u = u + _over(shift, x)
    if activation == "silu":
        sigmoid = u.sigmoid()
        du = sigmoid * (1 + u * (1 - sigmoid)) * grad  # u's first: results keep the layout of x, not of grad
    elif activation == "relu":
        du = torch.where(u > 0, grad, 0.0)
    else:
        du = torch.ones_like(u) * grad
    sums = torch.stack([_sum_positions(du), _sum_positions(du * x_hat)], -1)
    to_x = du if k is None else du * _over(k, x)
    if std is None:
        a, e = ((t if k is None else t * k) / max(math.prod(x.shape[2:]), 1) for t in sums.unbind(-1))
        a, e = (_over(_to_channels(_group_means(t, groups), x.shape[1]), x) for t in (a, e))
        to_x = to_x - from_mean * rstd * e
        if centred:
            to_x = to_x - a
    return (rstd * to_x).to(dtype), sums.double()


def parameter_gradients(
    sums: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Gradients in weight, bias, scale and shift (None where there is no such parameter) from the sums A and E."""
    a, e = sums.unbind(-1)
    gain = 1.0 if scale is None else 1 + scale.double()
    to_scale = None
    if scale is not None:
        to_scale = e if weight is None else e * weight.double()
        if bias is not None:
            to_scale = to_scale + a * bias.double()
    found = (
        None if weight is None else (gain * e).sum(0),
        None if bias is None else (gain * a).sum(0),
        to_scale,
        None if shift is None else a,
    )
    of = (weight, bias, scale, shift)
    return tuple(None if g is None else g.to(p.dtype) for g, p in zip(found, of, strict=True))
