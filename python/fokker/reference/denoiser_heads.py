r"""Attention heads and gated activations of diffusion transformers in plain PyTorch: what the kernels compute.

Everything is computed in float64 for float64 tensors, else in float32, and a result is rounded once.
"""

from __future__ import annotations

import math

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


def norm_rope(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    norm: int,
    eps: float,
    interleaved: bool,
) -> Tensor:
    """x (B, H, T, D): norm over D, weight and bias (D,), then each pair turned by its token's angle."""
    wide = arithmetic(x.dtype)
    n = normalized(x.to(wide), norm, eps)
    if weight is not None:
        n = n * weight.to(wide)
    if bias is not None:
        n = n + bias.to(wide)
    if cos is not None and sin is not None:
        c, s = (whole_table(t.to(wide), x.shape[-1], interleaved).unsqueeze(-3) for t in (cos, sin))
        n = n * c + rotated(n, interleaved) * s
    return n.to(x.dtype)


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
) -> tuple[Tensor, Tensor]:
    """Queries and keys, each as `norm_rope`."""
    return (
        norm_rope(q, q_weight, q_bias, cos, sin, norm, eps, interleaved),
        norm_rope(k, k_weight, k_bias, cos, sin, norm, eps, interleaved),
    )


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The same from packed (B, T, 3, H, D); values are copied."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    heads = qk_norm_rope(q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, norm, eps, interleaved)
    return (*heads, v.clone())


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


def gated_activation(x: Tensor, bias: Tensor | None, kind: int, gated: bool, gate_first: bool, dim: int) -> Tensor:
    """act(x + bias), or with ``gated`` act(gate) * value of the halves of x + bias along ``dim``."""
    wide = arithmetic(x.dtype)
    u = x.to(wide)
    if bias is not None:
        u = u + bias.to(wide).reshape(-1, *(1,) * (x.dim() - 1 - dim))
    if not gated:
        return activation(u, kind).to(x.dtype)
    first, second = u.chunk(2, dim)
    gate, value = (first, second) if gate_first else (second, first)
    return (activation(gate, kind) * value).to(x.dtype)


def pixel_norm(x: Tensor, dim: int, eps: float) -> Tensor:
    """x / (eps + sqrt(mean over ``dim`` of x^2)) (Karras et al. 2024, EDM2, eq. 30)."""
    u = x.to(arithmetic(x.dtype))
    size = torch.linalg.vector_norm(u, dim=dim, keepdim=True) / math.sqrt(x.shape[dim])
    return (u / (eps + size)).to(x.dtype)
