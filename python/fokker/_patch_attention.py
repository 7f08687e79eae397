"""Replacements of attention layers that norm (and turn) their queries and keys: Flux's, SD3's and timm's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ._patch_rules import class_name, is_layer_norm, plain, quiet, ready, rule
from .denoiser import qk_norm_rope, qkv_norm_rope

_RMS = ("torch.nn.modules.normalization.RMSNorm", "diffusers.models.normalization.RMSNorm")


def _rms_pair(q: Any, k: Any) -> bool:
    """Two RMS norms over heads with the same eps."""
    return all(class_name(n) in _RMS and getattr(n, "bias", None) is None for n in (q, k)) and q.eps == k.eps


def _normed(
    q_norm: nn.Module, k_norm: nn.Module, q: Tensor, k: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, T, D), normed and, with tables, turned (pairs are neighbours)."""
    eps = torch.finfo(q.dtype).eps if q_norm.eps is None else q_norm.eps
    return qk_norm_rope(q, k, q_norm.weight, k_norm.weight, cos, sin, norm="rms", eps=eps, interleaved=True)


def _heads(layers: tuple[nn.Module, ...], x: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    """Projections of x as (B, H, T, D), of which one is known."""
    return [layer(x).unflatten(-1, shape).transpose(1, 2) for layer in layers]


def _norms(layer: Any) -> tuple[Any, ...]:
    return tuple(getattr(layer, n, None) for n in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"))


def _may_fuse(layer: Any, *streams: Any) -> bool:
    norms = _norms(layer)
    return quiet(*norms) and all(ready(x, *(n.weight for n in norms if n is not None)) for x in streams)


def _attention_refuse(processor: str) -> Any:
    def reason(layer: Any) -> str | None:
        q, k, added_q, added_k = _norms(layer)
        if q is None and k is None:
            return ""
        if type(layer.processor).__name__ != processor:
            return f"its processor is {type(layer.processor).__name__}, not {processor}"
        if not _rms_pair(q, k) or (added_q is not None and not _rms_pair(added_q, added_k)):
            return "its queries and keys are not normed by RMS norms"
        return None

    return reason


# ---- Flux -----------------------------------------------------------------------------------------------------------
_FLUX = "FluxAttnProcessor"


@rule(
    "diffusers.models.transformers.transformer_flux.FluxAttention",
    what="RMS norm and rotary embedding of queries and keys",
    refuse=_attention_refuse(_FLUX),
)
def flux_attention(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None,
    image_rotary_emb: Any = None, **kwargs: Any,
) -> Any:  # fmt: skip
    x, context, processor = hidden_states, encoder_hidden_states, self.processor
    streams = (x,) if context is None else (context, x)
    usual = type(processor).__name__ == _FLUX and not kwargs and not self.fused_projections
    if not usual or (context is None) != (self.added_kv_proj_dim is None) or not _may_fuse(self, *streams):
        return plain(self, x, context, attention_mask, image_rotary_emb, **kwargs)
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    cos, sin = (None, None) if image_rotary_emb is None else (t.to(x.device) for t in image_rotary_emb)
    text = 0 if context is None else context.shape[1]
    q, k, v = _heads((self.to_q, self.to_k, self.to_v), x, (-1, self.head_dim))
    q, k = _normed(self.norm_q, self.norm_k, q, k, *(t if t is None else t[text:] for t in (cos, sin)))
    if context is not None:
        cq, ck, cv = _heads((self.add_q_proj, self.add_k_proj, self.add_v_proj), context, (-1, self.head_dim))
        tables = (t if t is None else t[:text] for t in (cos, sin))
        cq, ck = _normed(self.norm_added_q, self.norm_added_k, cq, ck, *tables)
        q, k, v = (torch.cat(pair, 2) for pair in ((cq, q), (ck, k), (cv, v)))
    out = dispatch_attention_fn(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=attention_mask,
        backend=processor._attention_backend, parallel_config=processor._parallel_config,
    ).flatten(2, 3).to(q.dtype)  # fmt: skip
    if context is None:
        return out
    first, rest = out.split_with_sizes([text, out.shape[1] - text], dim=1)
    return self.to_out[1](self.to_out[0](rest.contiguous())), self.to_add_out(first.contiguous())


# ---- SD3 ------------------------------------------------------------------------------------------------------------
_JOINT = "JointAttnProcessor2_0"


@rule(
    "diffusers.models.attention_processor.Attention",
    what="RMS norm of queries and keys",
    refuse=_attention_refuse(_JOINT),
)
def joint_attention(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None, **kwargs: Any
) -> Any:
    x, context = hidden_states, encoder_hidden_states
    streams = (x,) if context is None else (x, context)
    usual = type(self.processor).__name__ == _JOINT and not kwargs and x.dim() == 3
    if not usual or self.norm_q is None or not _may_fuse(self, *streams):
        return plain(self, x, context, attention_mask, **kwargs)
    q, k, v = _heads((self.to_q, self.to_k, self.to_v), x, (self.heads, -1))
    q, k = _normed(self.norm_q, self.norm_k, q, k)
    if context is not None:
        cq, ck, cv = _heads((self.add_q_proj, self.add_k_proj, self.add_v_proj), context, (self.heads, -1))
        if self.norm_added_q is not None:
            cq, ck = _normed(self.norm_added_q, self.norm_added_k, cq, ck)
        q, k, v = (torch.cat(pair, 2) for pair in ((q, cq), (k, ck), (v, cv)))
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(q.dtype)
    image, text = out.split_with_sizes([x.shape[1], out.shape[1] - x.shape[1]], dim=1)
    y = self.to_out[1](self.to_out[0](image))
    if context is None:
        return y
    return y, text if self.context_pre_only else self.to_add_out(text)


# ---- timm -----------------------------------------------------------------------------------------------------------
_TIMM_RMS = ("torch.nn.modules.normalization.RMSNorm", "timm.layers.norm.RmsNorm")


def _timm_refuse(layer: Any) -> str | None:
    q, k = layer.q_norm, layer.k_norm
    if type(q) is nn.Identity and type(k) is nn.Identity:
        return ""
    rms = all(class_name(n) in _TIMM_RMS and not getattr(n, "_fast_norm", False) and n.eps is not None for n in (q, k))
    if not (rms or (is_layer_norm(q) and is_layer_norm(k))) or q.eps != k.eps:
        return "its queries and keys are not normed alike by layer or RMS norms"
    if layer.head_dim % 2:
        return f"its heads have {layer.head_dim} elements, an odd number"
    return None if layer.fused_attn else "its attention is not torch's fused one"


@rule("timm.layers.attention.Attention", what="norm of queries and keys", refuse=_timm_refuse)
def timm_attention(self: Any, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
    norms, layer = (self.q_norm, self.k_norm), is_layer_norm(self.q_norm)
    biases = [n.bias if layer else None for n in norms]
    usual = quiet(*norms) and x.dim() == 3 and not torch.is_autocast_enabled(x.device.type)
    if not usual or not ready(x, *(n.weight for n in norms), *biases):
        return plain(self, x, attn_mask, is_causal)
    q, k, v = qkv_norm_rope(
        self.qkv(x), self.num_heads, *(n.weight for n in norms), q_bias=biases[0], k_bias=biases[1],
        norm="layer" if layer else "rms", eps=norms[0].eps,
    )  # fmt: skip
    dropout = self.attn_drop.p if self.training else 0.0
    out = scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout, is_causal=is_causal)
    out = self.norm(out.transpose(1, 2).flatten(2))
    if self.gate is not None:
        out = out * self.gate(x).sigmoid()
    return self.proj_drop(self.proj(out))
