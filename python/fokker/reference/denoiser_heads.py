r"""Attention heads and gated activations of diffusion transformers in plain PyTorch: what the kernels compute.

Everything is computed in float64 for float64 tensors, else in float32, and a result is rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

NORMS = ("none", "rms", "layer")
ACTIVATIONS = ("silu", "gelu_tanh", "gelu", "mp_silu")


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What an op on a tensor of this dtype computes in."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def normalized(x: Tensor, norm: int, eps: float) -> Tensor:
    """x over the last dimension: as it is, x / sqrt(mean x^2 + eps), or (x - mean) / sqrt(var + eps)."""
    if NORMS[norm] == "layer":
        x = x - x.mean(-1, keepdim=True)
    if NORMS[norm] != "none":
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return x


def rotated(x: Tensor, interleaved: bool) -> Tensor:
    """A quarter turn of each pair (a, b) -> (-b, a); pairs are neighbours, or elements i and i + D/2."""
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((-b, a), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def whole_table(table: Tensor, dim: int, interleaved: bool) -> Tensor:
    """A number for each of ``dim`` elements, from one for each or one for each pair."""
    if table.shape[-1] == dim:
        return table
    return table.repeat_interleave(2, -1) if interleaved else torch.cat((table, table), -1)


def turned(x: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool, rotary: int) -> Tensor:
    """Each pair of the first ``rotary`` elements turned by its token's angle, the others as they are."""
    if cos is None or sin is None:
        return x
    c, s = (whole_table(t.to(x.dtype), rotary, interleaved).unsqueeze(-3) for t in (cos, sin))
    first = x[..., :rotary]
    y = first * c + rotated(first, interleaved) * s
    return y if rotary == x.shape[-1] else torch.cat((y, x[..., rotary:]), -1)


def norm_rope(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
) -> Tensor:
    """x (B, H, T, D): norm over D, weight and bias (D,), then the rotation of the first ``rotary`` elements."""
    wide = arithmetic(x.dtype)
    n = normalized(x.to(wide), norm, eps)
    if weight is not None:
        n = n * weight.to(wide)
    if bias is not None:
        n = n + bias.to(wide)
    return turned(n, cos, sin, interleaved, rotary).to(x.dtype)


def turned_back(grad: Tensor, cos: Tensor | None, sin: Tensor | None, interleaved: bool, rotary: int) -> Tensor:
    """The gradient in what was turned: R^T = -R."""
    if cos is None or sin is None:
        return grad
    c, s = (whole_table(t.to(grad.dtype), rotary, interleaved).unsqueeze(-3) for t in (cos, sin))
    first = grad[..., :rotary]
    d = first * c - rotated(first * s, interleaved)
    return d if rotary == grad.shape[-1] else torch.cat((d, grad[..., rotary:]), -1)


def norm_rope_vjp(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
    grad: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients in x, weight and bias: the turn undone, then the norm's own projection."""
    wide = arithmetic(x.dtype)
    u, dn = x.to(wide), turned_back(grad.to(wide), cos, sin, interleaved, rotary)
    if NORMS[norm] == "layer":
        u = u - u.mean(-1, keepdim=True)
    unit = normalized(x.to(wide), norm, eps)
    to_weight = None if weight is None else (dn * unit).sum((0, 1, 2)).to(weight.dtype)
    to_bias = None if bias is None else dn.sum((0, 1, 2)).to(bias.dtype)
    dx = dn if weight is None else dn * weight.to(wide)
    if NORMS[norm] == "layer":
        dx = dx - dx.mean(-1, keepdim=True)
    if NORMS[norm] != "none":
        rstd = torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
        dx = rstd * (dx - unit * (dx * unit).mean(-1, keepdim=True))
    return dx.to(x.dtype), to_weight, to_bias


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
) -> tuple[Tensor, Tensor]:
    """Queries and keys, each as `norm_rope`."""
    return (
        norm_rope(q, q_weight, q_bias, cos, sin, norm, eps, interleaved, rotary),
        norm_rope(k, k_weight, k_bias, cos, sin, norm, eps, interleaved, rotary),
    )


def qk_norm_rope_vjp(q: Tensor, k: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """The gradients in q, k, their weights and their biases; rest: the other arguments, then the results' gradients."""
    qw, kw, qb, kb, *settings, grad_q, grad_k = rest
    dq, dqw, dqb = norm_rope_vjp(q, qw, qb, *settings, grad_q)
    dk, dkw, dkb = norm_rope_vjp(k, kw, kb, *settings, grad_k)
    return dq, dk, dqw, dkw, dqb, dkb


def qkv_norm_rope(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    q_bias: Tensor | None,
    k_bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
    rotary: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from packed (B, T, 3, H, D); values are copied."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    heads = qk_norm_rope(q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, norm, eps, interleaved, rotary)
    return (*heads, v.clone())


def qkv_norm_rope_vjp(qkv: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """The gradients in qkv, weights and biases."""
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    dq, dk, *others = qk_norm_rope_vjp(q, k, *rest[:-1])
    return torch.stack((dq, dk, rest[-1].to(qkv.dtype)), 0).permute(1, 3, 0, 2, 4), *others


def activation(x: Tensor, kind: int) -> Tensor:
    """silu, GELU by tanh, GELU by erf, or EDM2's silu of unit magnitude."""
    name = ACTIVATIONS[kind]
    if name == "silu":
        return x * torch.sigmoid(x)
    if name == "mp_silu":
        return x * torch.sigmoid(x) / 0.596
    if name == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * torch.erfc(-x * math.sqrt(0.5))


def activation_slope(x: Tensor, kind: int) -> Tensor:
    """The derivative of `activation`."""
    name = ACTIVATIONS[kind]
    if name in ("silu", "mp_silu"):
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s)) / (0.596 if name == "mp_silu" else 1.0)
    if name == "gelu_tanh":
        root = math.sqrt(2 / math.pi)
        t = torch.tanh(root * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t.square()) * root * (1 + 3 * 0.044715 * x.square())
    return 0.5 * torch.erfc(-x * math.sqrt(0.5)) + x * torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _shifted(x: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    """x + bias in the type of the arithmetic; the bias runs along ``dim``."""
    u = x.to(arithmetic(x.dtype))
    return u if bias is None else u + bias.to(u.dtype).reshape(-1, *(1,) * (x.dim() - 1 - dim))


def _halves(x: Tensor, bias: Tensor | None, gated: bool, gate_first: bool, dim: int) -> tuple[Tensor, Tensor | None]:
    """Gate and value (None without) of x + bias."""
    u = _shifted(x, bias, dim)
    if not gated:
        return u, None
    first, second = u.chunk(2, dim)
    return (first, second) if gate_first else (second, first)


def gated_activation(x: Tensor, bias: Tensor | None, kind: int, gated: bool, gate_first: bool, dim: int) -> Tensor:
    """act(x + bias), or with ``gated`` act(gate) * value of the halves of x + bias along ``dim``."""
    gate, value = _halves(x, bias, gated, gate_first, dim)
    y = activation(gate, kind)
    return (y if value is None else y * value).to(x.dtype)


def _gate_vjp(gate: Tensor, value: Tensor | None, grad: Tensor, kind: int) -> tuple[Tensor, Tensor | None]:
    """The gradients in gate and value, in the type of the arithmetic."""
    g = grad.to(gate.dtype)
    to_gate = g * activation_slope(gate, kind)
    return (to_gate, None) if value is None else (to_gate * value, g * activation(gate, kind))


def _bias_gradient(terms: Tensor, bias: Tensor | None, dim: int) -> Tensor | None:
    """Over all but the channels, of gradients that are not rounded."""
    if bias is None:
        return None
    others = [d for d in range(terms.dim()) if d != dim]
    return (terms.sum(others) if others else terms).to(bias.dtype)


def gated_activation_vjp(
    x: Tensor, bias: Tensor | None, grad: Tensor, kind: int, gated: bool, gate_first: bool, dim: int
) -> tuple[Tensor, Tensor | None]:
    """The gradients in x and in the bias."""
    terms, to_value = _gate_vjp(*_halves(x, bias, gated, gate_first, dim), grad, kind)
    if to_value is not None:
        terms = torch.cat((terms, to_value) if gate_first else (to_value, terms), dim)
    return terms.to(x.dtype), _bias_gradient(terms, bias, dim)


def gated_pair(
    gate: Tensor, value: Tensor, gate_bias: Tensor | None, value_bias: Tensor | None, kind: int, dim: int
) -> Tensor:
    """act(gate + gate_bias) (value + value_bias)."""
    y = activation(_shifted(gate, gate_bias, dim), kind) * _shifted(value, value_bias, dim)
    return y.to(gate.dtype)


def gated_pair_vjp(
    gate: Tensor,
    value: Tensor,
    gate_bias: Tensor | None,
    value_bias: Tensor | None,
    grad: Tensor,
    kind: int,
    dim: int,
) -> tuple[Tensor | None, ...]:
    """The gradients in gate, value and their biases."""
    terms = _gate_vjp(_shifted(gate, gate_bias, dim), _shifted(value, value_bias, dim), grad, kind)
    biases = (_bias_gradient(t, b, dim) for t, b in zip(terms, (gate_bias, value_bias), strict=True))
    return *(t.to(gate.dtype) for t in terms), *biases


def pixel_norm(x: Tensor, dim: int, eps: float) -> Tensor:
    """x / (eps + sqrt(mean over ``dim`` of x^2)) (Karras et al. 2024, EDM2, eq. 30)."""
    u = x.to(arithmetic(x.dtype))
    size = torch.linalg.vector_norm(u, dim=dim, keepdim=True) / math.sqrt(x.shape[dim])
    return (u / (eps + size)).to(x.dtype)


def pixel_norm_vjp(x: Tensor, grad: Tensor, dim: int, eps: float) -> Tensor:
    """The gradient in x: with s = 1 / (eps + r), grad s - x s^2 mean(grad x) / r; grad / eps where r = 0."""
    u, g = x.to(arithmetic(x.dtype)), grad.to(arithmetic(x.dtype))
    r = torch.linalg.vector_norm(u, dim=dim, keepdim=True) / math.sqrt(x.shape[dim])
    s = 1 / (eps + r)
    along = (g * u).mean(dim, keepdim=True) * torch.where(r > 0, 1 / torch.where(r > 0, r, 1), 0)
    return (g * s - u * s.square() * along).to(x.dtype)
