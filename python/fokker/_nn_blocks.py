"""Transformer blocks with adaptive norms: DiT's and FiT's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from ._nn_modulation import AdaLNLoRA, Pending, choice, closed, modulation, multiple, opened
from .denoiser import gelu_tanh, qkv_norm_rope, swiglu


class Attention(nn.Module):
    """Self-attention of x (B, T, dim) with packed projections; queries and keys may be normed, then turned.

    Parameters ``qkv.*``, ``proj.*``, with ``norm_weight`` also ``q_norm.weight`` and ``k_norm.weight``.
    """

    def __init__(self, dim: int, heads: int, norm: str | None = None, norm_weight: bool = False) -> None:
        super().__init__()
        multiple("hidden_size", dim, "num_heads", heads)
        choice("qk_norm", norm, None, "layer", "rms")
        self.heads, self.norm = heads, norm
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for name in ("q_norm", "k_norm"):
            if norm == "layer":
                setattr(self, name, nn.LayerNorm(dim // heads, 1e-6, norm_weight, bias=False))
            elif norm == "rms":
                setattr(self, name, nn.RMSNorm(dim // heads, 1e-6, norm_weight))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cos: Tensor | None = None, sin: Tensor | None = None
    ) -> Tensor:
        """``mask`` broadcasts to (B, heads, T, T), true where a key is seen; cos, sin as `qkv_norm_rope` takes."""
        qkv = self.qkv(x)
        if self.norm is None and cos is None:
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            weights = (None, None) if self.norm is None else (self.q_norm.weight, self.k_norm.weight)
            q, k, v = qkv_norm_rope(
                qkv, self.heads, *weights, cos=cos, sin=sin, norm=self.norm, eps=1e-6, interleaved=True
            )
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with a GELU (by tanh) between them; the first bias is added inside the activation's pass."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = linear(x, self.fc1.weight)
        return self.fc2(gelu_tanh(h, bias=self.fc1.bias))


class SwiGLU(nn.Module):
    """fc2(silu(fc1_g x) fc1_x x); both first layers are one matrix product.

    Parameters ``fc1_g.*``, ``fc1_x.*``, ``fc2.*`` (timm's names). Shazeer 2020, equation 6.
    """

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        h = linear(x, torch.cat((self.fc1_g.weight, self.fc1_x.weight)))
        bias = torch.cat((self.fc1_g.bias, self.fc1_x.bias))
        return self.fc2(swiglu(h, bias=bias, gate_first=True))


class DiTBlock(nn.Module):
    r"""A block of a diffusion transformer: x + gate attn(adaLN(x)), then x + gate mlp(adaLN(x)) (adaLN-Zero).

    ``forward(x, c)``: x (B, T, hidden_size), c (B, hidden_size); returns x's shape and dtype. The first sum and the
    second norm are one pass. With ``defer=True`` it returns the stream and what is still to be added to it,
    ``(x, (branch, gate))``, which the next block takes as ``pending`` and adds in the pass of its first norm.

    Parameters ``attn.qkv.*``, ``attn.proj.*``, ``mlp.fc1.*``, ``mlp.fc2.*``, ``adaLN_modulation.1.*``, chunks in the
    order shift, scale, gate, twice (facebookresearch/DiT). Peebles and Xie 2023, section 3.2.

    Raises ValueError where num_heads does not divide hidden_size.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, num_heads)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio))
        self.adaLN_modulation = modulation(hidden_size, 6)

    def forward(
        self, x: Tensor, c: Tensor, pending: Pending | None = None, defer: bool = False
    ) -> Tensor | tuple[Tensor, Pending]:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, 1)
        x, h = opened(x, pending, shift, scale, 1e-6)
        x, h = opened(x, (self.attn(h), gate), shift_mlp, scale_mlp, 1e-6)
        after = (self.mlp(h), gate_mlp)
        return (x, after) if defer else closed(x, after)


class FiTBlock(nn.Module):
    r"""A block of FiT: DiT's with rotary embedding, SwiGLU, and in FiTv2 normed queries and keys and adaLN of low rank.

    ``forward(x, c, mask=None, cos=None, sin=None, shared=None)``: x (B, T, hidden_size), c (B, hidden_size), mask as
    `torch.nn.functional.scaled_dot_product_attention` takes it, cos and sin as `fokker.denoiser.qkv_norm_rope`
    (pairs are neighbours), shared (B, 6 hidden_size), the modulation common to all blocks. ``pending`` and ``defer`` as
    in `DiTBlock`.

    Parameters ``attn.qkv.*``, ``attn.proj.*``, ``attn.q_norm.weight`` and ``attn.k_norm.weight`` (with
    ``qk_norm_weight``), ``mlp.fc1_g.*``, ``mlp.fc1_x.*``, ``mlp.fc2.*`` (or ``mlp.fc1.*``, ``mlp.fc2.*``),
    ``adaLN_modulation.1.*`` and with ``adaln_lora_dim`` ``adaLN_modulation.2.*`` (whlzy/FiT). Lu et al. 2024; Wang et
    al. 2024.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        mlp: str = "swiglu",
        qk_norm: str | None = None,
        qk_norm_weight: bool = False,
        adaln_lora_dim: int | None = None,
    ) -> None:
        super().__init__()
        choice("mlp", mlp, "swiglu", "swiglu_large", "gelu")
        hidden = int(hidden_size * mlp_ratio)
        self.attn = Attention(hidden_size, num_heads, qk_norm, qk_norm_weight)
        if mlp == "gelu":
            self.mlp: nn.Module = Mlp(hidden_size, hidden)
        else:
            self.mlp = SwiGLU(hidden_size, hidden if mlp == "swiglu_large" else 2 * hidden // 3)
        self.adaLN_modulation: nn.Module
        if adaln_lora_dim is None:
            self.adaLN_modulation = modulation(hidden_size, 6)
        else:
            self.adaLN_modulation = AdaLNLoRA(hidden_size, adaln_lora_dim)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        mask: Tensor | None = None,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        shared: Tensor | None = None,
        pending: Pending | None = None,
        defer: bool = False,
    ) -> Tensor | tuple[Tensor, Pending]:
        six = self.adaLN_modulation(c)
        if shared is not None:
            six = six + shared
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = six.chunk(6, 1)
        x, h = opened(x, pending, shift, scale, 1e-6)
        x, h = opened(x, (self.attn(h, mask, cos, sin), gate), shift_mlp, scale_mlp, 1e-6)
        after = (self.mlp(h), gate_mlp)
        return (x, after) if defer else closed(x, after)
