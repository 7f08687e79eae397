"""The residual block of ADM, DDPM++ and NCSN++, and the convolution with resampling it is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._nn_modulation import multiple
from .denoiser import group_norm_silu


def groups_of(channels: int) -> int:
    """min(32, channels / 4) groups."""
    return min(32, max(1, channels // 4))


class GroupNorm(nn.Module):
    """A group norm with its activation, in one pass; parameters ``weight``, ``bias``."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        if channels % groups_of(channels):
            raise ValueError(f"channels ({channels}) must be a multiple of its {groups_of(channels)} groups")
        self.groups, self.eps = groups_of(channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x: Tensor, activation: str | None = "silu", scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        return group_norm_silu(
            x, self.groups, self.weight, self.bias, scale, shift, eps=self.eps, activation=activation
        )


class Resampled(nn.Module):
    """A convolution after resampling by two with a separable filter, or with ``kernel=0`` the resampling alone.

    With ``filter_last`` the convolution comes first, at full size. Parameters ``weight``, ``bias``; buffer
    ``resample_filter`` where it resamples.
    """

    def __init__(
        self,
        inward: int,
        outward: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        taps: tuple[int, ...] = (1, 1),
        zero: bool = False,
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down = inward, outward, up, down
        self.box, self.filter_last = tuple(taps) == (1, 1), filter_last
        self.weight = nn.Parameter(torch.zeros(outward, inward, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(outward)) if kernel else None
        f = torch.tensor(taps, dtype=torch.float32)
        f = f.outer(f) / f.sum() ** 2
        self.register_buffer("resample_filter", f[None, None] if up or down else None)
        if self.weight is not None and not zero:
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        if self.resample_filter is None or self.weight is None:
            return self._convolved(self._resampled(x), 0)
        if self.filter_last:
            margin = (self.resample_filter.shape[-1] - 1) // 2
            return self._resampled(self._convolved(x, margin), padded=False)
        return self._convolved(self._resampled(x), 0)

    def _convolved(self, x: Tensor, margin: int) -> Tensor:
        if self.weight is None:
            return x
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=self.weight.shape[-1] // 2 + margin)

    def _resampled(self, x: Tensor, padded: bool = True) -> Tensor:
        if self.resample_filter is None:
            return x
        if self.box:  # neighbours repeated, or averaged
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels, pad = x.shape[1], (self.resample_filter.shape[-1] - 1) // 2 if padded else 0
        f = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * f, groups=channels, stride=2, padding=pad)
        return F.conv2d(x, f, groups=channels, stride=2, padding=pad)


class ResnetBlock2D(nn.Module):
    r"""Norm, silu, convolution, twice, around a skip; the time shifts and scales the second norm; maybe attention.

    ``forward(x, emb)``: x (B, in_channels, H, W), contiguous or channels_last, emb (B, emb_channels); returns
    (B, out_channels, H', W'), H' doubled with ``up``, halved with ``down``. With ``adaptive_scale`` (ADM) the second
    norm is silu(shift + GN(x) (1 + scale)), else silu(GN(x + shift)) (DDPM++). Norms have min(32, channels / 4) groups.

    Parameters ``norm0.*``, ``conv0.*``, ``affine.*``, ``norm1.*``, ``conv1.*``, where the shape changes ``skip.*``, and
    with ``heads`` ``norm2.*``, ``qkv.*``, ``proj.*`` (NVlabs/edm; chunks: scale, shift). Dhariwal and Nichol 2021,
    Karras et al. 2022, table 7.

    Raises ValueError for heads that do not divide, channels that their groups do not divide, and ``up`` with ``down``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        taps: tuple[int, ...] = (1, 1),
        project_resampled: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("up and down cannot both be asked for")
        if heads:
            multiple("out_channels", out_channels, "heads", heads)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Resampled(in_channels, out_channels, 3, up, down, taps)
        self.affine = nn.Linear(emb_channels, out_channels * (1 + adaptive_scale))
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Resampled(out_channels, out_channels, 3, zero=True)
        self.skip: Resampled | None = None
        if out_channels != in_channels or up or down:
            kernel = int(project_resampled or out_channels != in_channels)
            self.skip = Resampled(in_channels, out_channels, kernel, up, down, taps)
        if heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Resampled(out_channels, 3 * out_channels, 1)
            self.proj = Resampled(out_channels, out_channels, 1, zero=True)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self.norm0(x))
        modulation = self.affine(emb)
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, 1)
            h = self.norm1(h, scale=scale, shift=shift)
        else:
            h = self.norm1(h + modulation.to(h.dtype)[:, :, None, None])
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self._sum(h, x if self.skip is None else self.skip(x))
        return self._sum(self._attention(x), x) if self.heads else x

    def _sum(self, h: Tensor, x: Tensor) -> Tensor:
        x = x + h
        return x if self.skip_scale == 1 else x * self.skip_scale

    def _attention(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm2(x, activation=None))
        # A head's channels are triples: query, key, value of its first channel, of its second, ...
        heads, width = self.heads, self.out_channels // self.heads
        q, k, v = qkv.reshape(x.shape[0], heads, width, 3, x.shape[2] * x.shape[3]).transpose(2, 4).unbind(3)
        out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3)
        return self.proj(out.reshape(x.shape))
