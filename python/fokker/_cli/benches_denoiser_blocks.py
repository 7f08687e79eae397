"""Whole blocks, forward and backward: `fokker.nn`'s beside the same block in plain torch, eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import nn as fused
from .benches import Bench, Run


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PlainDiTBlock(nn.Module):
    """DiT's block as it is published, in torch.nn."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, 1e-6, elementwise_affine=False)
        self.attn, self.mlp = _Attention(width, heads), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        x = x + gate * self.attn(self.norm1(x) * (1 + scale) + shift)
        h = self.mlp.fc1(self.norm2(x) * (1 + scale2) + shift2)
        return x + gate2 * self.mlp.fc2(F.gelu(h, approximate="tanh"))


class PlainResnetBlock(nn.Module):
    """ADM's residual block without attention, in torch.nn."""

    def __init__(self, channels: int, emb: int) -> None:
        super().__init__()
        groups = min(32, channels // 4)
        self.norm0, self.conv0 = nn.GroupNorm(groups, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1, self.conv1 = nn.GroupNorm(groups, channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.affine = nn.Linear(emb, 2 * channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, 1)
        h = self.norm1(self.conv0(F.silu(self.norm0(x))))
        return x + self.conv1(F.silu(h * (1 + scale) + shift))


def _forward_backward(block: Any, *arguments: Tensor) -> Run:
    def go() -> None:
        y = block(*arguments)
        y.backward(y)
        for t in (*arguments, *block.parameters()):
            t.grad = None

    return go


def _bench(name: str, ours: nn.Module, plain: nn.Module, *arguments: Tensor) -> Bench:
    """The three contenders with the same weights."""
    plain.load_state_dict(ours.state_dict())
    return Bench(
        f"{name}, forward and backward",
        {
            "fokker": _forward_backward(ours, *arguments),
            "torch.compile": _forward_backward(torch.compile(plain), *arguments),
            "torch": _forward_backward(plain, *arguments),
        },
        elements=arguments[0].numel(),
        note="matrix products, convolutions and attention are torch's in all three",
    )


def benches() -> Iterator[Bench]:
    """A transformer block in two dtypes, a residual block in two layouts."""
    shape, heads = (4, 256, 384), 6
    for dtype in (torch.float32, torch.bfloat16):
        pair = [cls(shape[2], heads).to(dtype) for cls in (fused.DiTBlock, PlainDiTBlock)]
        for p in pair[0].parameters():
            nn.init.normal_(p, std=0.02)
        x, c = (torch.randn(s, dtype=dtype, requires_grad=True) for s in (shape, (shape[0], shape[2])))
        yield _bench(f"DiT block {str(dtype)[6:]}, 4 x 256 x 384", *pair, x, c)
    size, emb = (4, 64, 32, 32), 256
    for name, layout in (("NCHW", torch.contiguous_format), ("channels_last", torch.channels_last)):
        ours = fused.ResnetBlock2D(size[1], size[1], emb).to(memory_format=layout)
        for p in ours.parameters():
            nn.init.normal_(p, std=0.05)
        plain = PlainResnetBlock(size[1], emb).to(memory_format=layout)
        x = torch.randn(size).to(memory_format=layout).requires_grad_()
        yield _bench(
            f"ADM block float32 {name}, 4 x 64 x 32 x 32", ours, plain, x, torch.randn(4, emb, requires_grad=True)
        )
