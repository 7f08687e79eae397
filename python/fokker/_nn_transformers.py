"""Whole diffusion transformers: DiT, and FiT for images of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._nn_blocks import DiTBlock, FiTBlock
from ._nn_modulation import FinalLayer, LabelEmbedding, Pending, TimestepEmbedding, modulation, multiple
from .denoiser import rope_table_2d


class PatchEmbedding(nn.Module):
    """Patches of images (B, C, H, W) as tokens (B, H W / p^2, dim); parameters ``proj.*``."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, patch_size)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TokenEmbedding(nn.Module):
    """Patches that are rows already, (B, T, p^2 C), as tokens; parameters ``proj.*``."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(patch, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


def sincos_2d(dim: int, side: int) -> Tensor:
    """Sines and cosines of column and row, (side^2, dim): half for the column, half for the row (Peebles and Xie)."""
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    at = torch.arange(side, dtype=torch.float64)[:, None] * omega
    waves = torch.cat((at.sin(), at.cos()), 1)
    column, row = waves[None].expand(side, -1, -1), waves[:, None].expand(-1, side, -1)
    return torch.cat((column, row), -1).reshape(side * side, dim).to(torch.get_default_dtype())


def start_linears(model: nn.Module) -> None:
    """Xavier weights and zero biases, where a layer is not zero on purpose."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.is_meta and bool(layer.weight.detach().any()):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class DiT(nn.Module):
    r"""The diffusion transformer (Peebles and Xie 2023), with the parameter names of facebookresearch/DiT.

    ``forward(x, t, y)``: images x (B, in_channels, H, W) with H = W = input_size, times t (B,), labels y (B,) int64;
    returns (B, out, H, W), out twice in_channels with ``learn_sigma``. The sums that end a block are done in the first
    pass of the next one.

    ``state_dict`` holds ``x_embedder.proj.*``, ``t_embedder.mlp.*``, ``y_embedder.embedding_table.weight``,
    ``pos_embed``, ``blocks.i.*`` (`DiTBlock`), ``final_layer.*``. DiT-XL/2: ``DiT(32, hidden_size=1152, depth=28,
    num_heads=16)``.

    Raises ValueError for sizes that do not divide.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
    ) -> None:
        super().__init__()
        multiple("input_size", input_size, "patch_size", patch_size)
        multiple("hidden_size", hidden_size, "4, for the sines of two axes", 4)
        self.input_size, self.patch_size, self.out_channels = input_size, patch_size, in_channels * (1 + learn_sigma)
        self.x_embedder = PatchEmbedding(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes, hidden_size, class_dropout_prob)
        self.pos_embed = nn.Parameter(sincos_2d(hidden_size, input_size // patch_size)[None], requires_grad=False)
        self.blocks = nn.ModuleList(DiTBlock(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * self.out_channels)
        start_linears(self.blocks)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        p, side = self.patch_size, self.input_size
        if x.shape[2:] != (side, side):
            raise ValueError(f"x must hold images of {side} x {side}, not {' x '.join(map(str, x.shape[2:]))}")
        h = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        pending: Pending | None = None
        for block in self.blocks:
            h, pending = block(h, c, pending, defer=True)
        out = self.final_layer(h, c, pending).unflatten(2, (p, p, self.out_channels))
        out = out.unflatten(1, (x.shape[2] // p, x.shape[3] // p))
        return out.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.out_channels, *x.shape[2:])


class FiT(nn.Module):
    r"""The flexible vision transformer (Lu et al. 2024; FiTv2, Wang et al. 2024), with the names of whlzy/FiT.

    ``forward(x, t, y, grid, mask=None)``: patches x (B, T, patch_size^2 in_channels), times t (B,), labels y (B,),
    ``grid`` (B, 2, T) with each token's column (first) and row; returns (B, T, patch_size^2 out), out twice in_channels
    with ``learn_sigma``. mask (B, T): a token sees those of its own number, 0 where a row of x is padding (and the
    result is 0), else 1, or the numbers of several images packed into one row. ``rope`` has options of
    `fokker.denoiser.rope_table_2d`, which has FiT's interpolations.

    FiT-XL/2: ``FiT(hidden_size=1152, depth=28, num_heads=16, mlp="swiglu_large")``; FiTv2-XL/2: ``depth=36,
    mlp="swiglu", learn_sigma=False, qk_norm="layer", adaln_lora_dim=288``. Buffers of rotary tables in a checkpoint are
    not loaded: the tables are computed.

    Raises ValueError for sizes that do not divide.
    """

    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        mlp: str = "swiglu",
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        qk_norm: str | None = None,
        qk_norm_weight: bool = False,
        adaln_lora_dim: int | None = None,
        rope: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        multiple("hidden_size", hidden_size, "four times num_heads, for pairs on two axes", 4 * num_heads)
        self.head_dim, self.rope = hidden_size // num_heads, dict(rope or {})
        self.x_embedder = TokenEmbedding(patch_size**2 * in_channels, hidden_size)
        self.t_embedder = TimestepEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(num_classes, hidden_size, class_dropout_prob)
        self.global_adaLN_modulation = None if adaln_lora_dim is None else modulation(hidden_size, 6)
        self.blocks = nn.ModuleList(
            FiTBlock(hidden_size, num_heads, mlp_ratio, mlp, qk_norm, qk_norm_weight, adaln_lora_dim)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * in_channels * (1 + learn_sigma))
        start_linears(self.x_embedder)
        start_linears(self.blocks)
        self.register_load_state_dict_pre_hook(_without_tables)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, grid: Tensor, mask: Tensor | None = None) -> Tensor:
        if grid.shape != (x.shape[0], 2, x.shape[1]):
            wanted = (x.shape[0], 2, x.shape[1])
            raise ValueError(f"grid must be {wanted}: column and row of each token; it is {tuple(grid.shape)}")
        if mask is not None and mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be {tuple(x.shape[:2])}, a number for each token; it is {tuple(mask.shape)}")
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        cos, sin = rope_table_2d(grid.flip(1).transpose(1, 2), self.head_dim, **{"dtype": wide, **self.rope})
        seen = None if mask is None else mask[:, None, :, None] == mask[:, None, None, :]
        h = self.x_embedder(x)
        c = self.t_embedder(t) + self.y_embedder(y)
        shared = None if self.global_adaLN_modulation is None else self.global_adaLN_modulation(c)
        pending: Pending | None = None
        for block in self.blocks:
            h, pending = block(h, c, seen, cos, sin, shared, pending, defer=True)
        out = self.final_layer(h, c, pending)
        return out if mask is None else out * (mask != 0)[..., None]


def _without_tables(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for key in [k for k in state if k.startswith(f"{prefix}rel_pos_embed.")]:
        del state[key]
