"""Adaptive norms, what makes their shifts and scales, and the layers before and after a transformer's blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import (
    gate_residual,
    layer_norm_modulate,
    residual_gate_norm_modulate,
    rms_norm_modulate,
    timestep_embedding,
)

#: what one half of a block leaves for the next to add: its branch and the gate
Pending = tuple[Tensor, Tensor]


def modulation(dim: int, chunks: int, bias: bool = True) -> nn.Sequential:
    """SiLU and one linear layer from a condition to ``chunks`` shifts, scales and gates; zero at the start."""
    layer = nn.Sequential(nn.SiLU(), nn.Linear(dim, chunks * dim, bias=bias))
    nn.init.zeros_(layer[1].weight)
    if bias:
        nn.init.zeros_(layer[1].bias)
    return layer


def opened(x: Tensor, pending: Pending | None, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The stream with what is pending added, and its modulated norm: one read of both."""
    if pending is None:
        return x, layer_norm_modulate(x, shift, scale, eps=eps)
    return residual_gate_norm_modulate(x, *pending, shift, scale, eps=eps)


def closed(x: Tensor, pending: Pending | None) -> Tensor:
    """The stream with what is pending added."""
    return x if pending is None else gate_residual(x, *pending)


class AdaLayerNormZero(nn.Module):
    """y = LN(x) (1 + scale) + shift with six chunks of a linear layer of silu(condition) (adaLN-Zero).

    ``forward(x, emb)`` takes x (B, T, dim), emb (B, dim); returns ``y, gate, shift_mlp, scale_mlp, gate_mlp``, the last
    four (B, dim). Parameters: ``linear.weight``, ``linear.bias`` (diffusers' names and order). Peebles and Xie 2023,
    section 3.2.
    """

    def __init__(self, dim: int, bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.silu = nn.SiLU()
        self.linear = nn.Linear(dim, 6 * dim, bias=bias)

    def forward(self, x: Tensor, emb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        shift, scale, *rest = self.linear(self.silu(emb)).chunk(6, 1)
        return (layer_norm_modulate(x, shift, scale, eps=self.eps), *rest)  # type: ignore[return-value]


class AdaLayerNormContinuous(nn.Module):
    """y = norm(x) (1 + scale) + shift; a linear layer of silu(condition) gives scale, then shift.

    ``forward(x, condition)``: x (B, T, dim), condition (B, condition_dim). Parameters: ``linear.*``, and with
    ``elementwise_affine`` ``norm.weight`` and (layer norm) ``norm.bias``: diffusers' names and order.
    """

    def __init__(
        self,
        dim: int,
        condition_dim: int,
        elementwise_affine: bool = True,
        eps: float = 1e-5,
        bias: bool = True,
        norm_type: str = "layer_norm",
    ) -> None:
        super().__init__()
        if norm_type not in ("layer_norm", "rms_norm"):
            raise ValueError(f"norm_type must be 'layer_norm' or 'rms_norm', not {norm_type!r}")
        self.silu = nn.SiLU()
        self.linear = nn.Linear(condition_dim, 2 * dim, bias=bias)
        self.norm: nn.LayerNorm | nn.RMSNorm
        if norm_type == "rms_norm":
            self.norm = nn.RMSNorm(dim, eps, elementwise_affine)
        else:
            self.norm = nn.LayerNorm(dim, eps, elementwise_affine, bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(self.silu(condition).to(x.dtype)).chunk(2, 1)
        norm = self.norm
        if isinstance(norm, nn.RMSNorm):
            return rms_norm_modulate(x, shift, scale, norm.weight, norm.eps)
        return layer_norm_modulate(x, shift, scale, norm.weight, norm.bias, norm.eps)


class AdaLNLoRA(nn.Sequential):
    """Shifts, scales and gates by two linear layers of low rank on top of a term shared by all blocks.

    ``forward(condition, shared=None)``: condition (B, dim), shared (B, chunks dim) or None; returns (B, chunks dim).
    Parameters ``1.weight``, ``1.bias`` (rank, dim), ``2.weight``, ``2.bias`` (chunks dim, rank). FiTv2 (Wang et al.
    2024, section 3.2), Cosmos.
    """

    def __init__(self, dim: int, rank: int, chunks: int = 6, bias: bool = True) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, rank, bias=bias), nn.Linear(rank, chunks * dim, bias=bias))
        nn.init.zeros_(self[2].weight)
        if bias:
            nn.init.zeros_(self[2].bias)

    def forward(self, condition: Tensor, shared: Tensor | None = None) -> Tensor:
        out = super().forward(condition)
        return out if shared is None else out + shared


class TimestepEmbedding(nn.Module):
    """A time as a vector: sinusoids (cosines first, base 10000), then two linear layers with a silu between them.

    ``forward(t)``: t (B,) of any dtype; returns (B, dim). Parameters ``mlp.0.*``, ``mlp.2.*`` (facebookresearch/DiT's
    ``t_embedder``).
    """

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        for layer in (self.mlp[0], self.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequencies, dtype=self.mlp[0].weight.dtype))


class LabelEmbedding(nn.Module):
    """A table of classes; with ``dropout`` one more row, which takes a label's place that often in training."""

    def __init__(self, classes: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.classes, self.dropout = classes, dropout
        self.embedding_table = nn.Embedding(classes + (dropout > 0), dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        if self.training and self.dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = torch.where(dropped, self.classes, labels)
        return self.embedding_table(labels)


class FinalLayer(nn.Module):
    """linear(LN(x) (1 + scale) + shift): what turns tokens into patches.

    ``forward(x, c)``: x (B, T, dim), c (B, dim); returns (B, T, out). Parameters ``linear.*`` and
    ``adaLN_modulation.1.*`` (facebookresearch/DiT); chunks: shift, scale.
    """

    def __init__(self, dim: int, out: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = modulation(dim, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, c: Tensor, pending: Pending | None = None) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(opened(x, pending, shift, scale, self.eps)[1])


def multiple(name: str, value: int, of: str, divisor: int) -> None:
    """An error that names both, where ``value`` is no multiple of ``divisor``."""
    if divisor <= 0 or value % divisor:
        raise ValueError(f"{name} ({value}) must be a multiple of {of} ({divisor})")


def choice(name: str, value: Any, *allowed: Any) -> None:
    """An error that names the argument, where ``value`` is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
