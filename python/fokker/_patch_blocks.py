"""Replacements of whole blocks: diffusers' transformers and residual blocks, with the sums fused into the norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._patch_gates import linear_then_gelu
from ._patch_norms import group_norm_then_silu, is_group_norm, modulated
from ._patch_rules import class_name, is_layer_norm, plain, quiet, ready, rule
from .denoiser import gate_residual, residual_gate_norm_modulate


def _sum_norm(
    norm: Any, x: Tensor, branch: Tensor, gate: Any, shift: Any = None, scale: Any = None
) -> tuple[Tensor, Tensor]:
    """x + gate * branch, and its modulated layer norm."""
    return residual_gate_norm_modulate(x, branch, gate, shift, scale, norm.weight, norm.bias, norm.eps)


def _stream(x: Any, *norms: Any) -> bool:
    """Whether (B, T, C) may go through the fused sums around these norms."""
    parameters = [t for n in norms if n is not None for t in (n.weight, n.bias)]
    return ready(x, *parameters) and x.dim() == 3 and quiet(*norms)


def _pairs(block: Any, x: Tensor, timestep: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Six modulations, each a row of the block's table and a part of the time's."""
    times = timestep.reshape(x.shape[0], 6, -1).unbind(1)
    return list(zip(block.scale_shift_table.unbind(0), times, strict=True))


def _refuse(*wanted: str) -> Any:
    """A reason, where one of the norms is none that is known."""

    def reason(module: Any) -> str | None:
        for name in wanted:
            norm = getattr(module, name, None)
            if norm is not None and not is_layer_norm(norm):
                return f"its {name} is a {type(norm).__name__}"
        return None

    return reason


# ---- diffusers' BasicTransformerBlock: DiT, PixArt, Latte, and the transformers inside U-Nets -----------------------
def _basic_refuse(block: Any) -> str | None:
    if block.norm_type not in ("layer_norm", "ada_norm_zero", "ada_norm_single"):
        return f"norm_type {block.norm_type!r}"
    if block.norm_type == "ada_norm_zero" and block.attn2 is not None:
        return "adaLN-Zero with cross-attention"
    if hasattr(block, "fuser"):
        return "gated (GLIGEN) attention"
    if block.pos_embed is not None:
        return "positions added inside"
    reason: str | None = _refuse(*(() if block.norm_type == "ada_norm_zero" else ("norm1", "norm2")), "norm3")(block)
    return reason


@rule(
    "diffusers.models.attention.BasicTransformerBlock",
    what="gated sums, norms and modulations between attention and feed-forward",
    refuse=_basic_refuse,
)
def basic_transformer_block(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Any = None,
    encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None,
    timestep: Any = None,
    cross_attention_kwargs: Any = None,
    class_labels: Any = None,
    added_cond_kwargs: Any = None,
) -> Tensor:
    x, kind = hidden_states, self.norm_type
    single = kind == "ada_norm_single"
    last = self.norm2 if single else self.norm3
    norms = (self.norm1, last) if single else (self.norm2, last)
    tables = (self.scale_shift_table, timestep) if single else ()
    if not _stream(x, *norms) or not ready(x, *tables) or self._chunk_size is not None or cross_attention_kwargs:
        return plain(
            self, x, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, cross_attention_kwargs,
            class_labels, added_cond_kwargs,
        )  # fmt: skip
    gate: Any = None
    shift_mlp = scale_mlp = gate_mlp = None
    if kind == "ada_norm_zero":
        h, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(x, timestep, class_labels, hidden_dtype=x.dtype)
    elif single:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _pairs(self, x, timestep)
        h = modulated(self.norm1, x, shift, scale)
    else:
        h = self.norm1(x)
    branch = self.attn1(
        h,
        encoder_hidden_states=encoder_hidden_states if self.only_cross_attention else None,
        attention_mask=attention_mask,
    )
    if self.attn2 is not None:
        if single:  # without a norm
            x = h = gate_residual(x, branch, gate)
        else:
            x, h = _sum_norm(self.norm2, x, branch, gate)
        branch, gate = (
            self.attn2(h, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask),
            None,
        )
    x, h = _sum_norm(last, x, branch, gate, shift_mlp, scale_mlp)
    h = self.ff(h)
    return x + h if gate_mlp is None else gate_residual(x, h, gate_mlp)


# ---- SD3 ------------------------------------------------------------------------------------------------------------
def _half(block: Any, suffix: str, x: Tensor, branches: Any, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
    """What follows attention: gated sums, norm, feed-forward, gated sum."""
    for branch, by in branches[:-1]:
        x = gate_residual(x, branch, by)
    x, h = _sum_norm(getattr(block, f"norm2{suffix}"), x, *branches[-1], shift, scale)
    return gate_residual(x, getattr(block, f"ff{suffix}")(h), gate)


@rule(
    "diffusers.models.attention.JointTransformerBlock",
    what="gated sums, norms and modulations of both streams",
    refuse=_refuse("norm2", "norm2_context"),
)
def joint_transformer_block(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, joint_attention_kwargs: Any = None
) -> tuple[Tensor | None, Tensor]:
    x, context = hidden_states, encoder_hidden_states
    if not (_stream(x, self.norm2) and _stream(context, self.norm2_context)) or self._chunk_size is not None:
        return plain(self, hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)
    more = joint_attention_kwargs or {}
    h, gate, shift_mlp, scale_mlp, gate_mlp, *second = self.norm1(x, emb=temb)
    if self.context_pre_only:
        c = self.norm1_context(context, temb)
    else:
        c, c_gate, c_shift, c_scale, c_gate_mlp = self.norm1_context(context, emb=temb)
    branch, c_branch = self.attn(hidden_states=h, encoder_hidden_states=c, **more)
    branches = [(branch, gate)]
    if self.use_dual_attention:
        branches.append((self.attn2(hidden_states=second[0], **more), second[1]))
    x = _half(self, "", x, branches, shift_mlp, scale_mlp, gate_mlp)
    if self.context_pre_only:
        return None, x
    return _half(self, "_context", context, [(c_branch, c_gate)], c_shift, c_scale, c_gate_mlp), x


# ---- Flux -----------------------------------------------------------------------------------------------------------
def _clip(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


@rule(
    "diffusers.models.transformers.transformer_flux.FluxTransformerBlock",
    what="gated sums, norms and modulations of both streams",
    refuse=_refuse("norm2", "norm2_context"),
)
def flux_transformer_block(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None,
    joint_attention_kwargs: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, context = hidden_states, encoder_hidden_states
    if not (_stream(x, self.norm2) and _stream(context, self.norm2_context)):
        return plain(self, x, context, temb, image_rotary_emb, joint_attention_kwargs)
    h, gate, shift, scale, gate_mlp = self.norm1(x, emb=temb)
    c, c_gate, c_shift, c_scale, c_gate_mlp = self.norm1_context(context, emb=temb)
    branch, c_branch, *adapter = self.attn(
        hidden_states=h, encoder_hidden_states=c, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {})
    )
    x = _half(self, "", x, [(branch, gate)], shift, scale, gate_mlp)
    if adapter:
        x = x + adapter[0]
    return _clip(_half(self, "_context", context, [(c_branch, c_gate)], c_shift, c_scale, c_gate_mlp)), x


@rule("diffusers.models.transformers.transformer_flux.FluxSingleTransformerBlock", what="bias and GELU, gated sum")
def flux_single_transformer_block(
    self: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any = None,
    joint_attention_kwargs: Any = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if not ready(hidden_states) or hidden_states.dim() != 3:
        return plain(self, hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
    x = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    h, gate = self.norm(x, emb=temb)
    if getattr(self.act_mlp, "approximate", None) == "tanh" and quiet(self.act_mlp):
        mlp = linear_then_gelu(self.proj_mlp, h)
    else:
        mlp = self.act_mlp(self.proj_mlp(h))
    branch = self.attn(hidden_states=h, image_rotary_emb=image_rotary_emb, **(joint_attention_kwargs or {}))
    x = _clip(gate_residual(x, self.proj_out(torch.cat([branch, mlp], dim=2)), gate))
    text = encoder_hidden_states.shape[1]
    return x[:, :text], x[:, text:]


# ---- Sana -----------------------------------------------------------------------------------------------------------
@rule(
    "diffusers.models.transformers.sana_transformer.SanaTransformerBlock",
    what="gated sums, norms and modulations",
    refuse=_refuse("norm1", "norm2"),
)
def sana_transformer_block(
    self: Any, hidden_states: Tensor, attention_mask: Any = None, encoder_hidden_states: Any = None,
    encoder_attention_mask: Any = None, timestep: Any = None, height: Any = None, width: Any = None,
) -> Tensor:  # fmt: skip
    x = hidden_states
    if not (_stream(x, self.norm1, self.norm2) and ready(x, self.scale_shift_table, timestep)) or self.attn2 is None:
        return plain(
            self, x, attention_mask, encoder_hidden_states, encoder_attention_mask, timestep, height, width
        )  # fmt: skip
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _pairs(self, x, timestep)
    x = gate_residual(x, self.attn1(modulated(self.norm1, x, shift, scale)), gate)
    branch = self.attn2(x, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask)
    x, h = _sum_norm(self.norm2, x, branch, None, shift_mlp, scale_mlp)
    h = self.ff(h.unflatten(1, (height, width)).permute(0, 3, 1, 2)).flatten(2, 3).permute(0, 2, 1)
    return gate_residual(x, h, gate_mlp)


# ---- residual blocks of U-Nets --------------------------------------------------------------------------------------
def _resnet_refuse(block: Any) -> str | None:
    if type(block.nonlinearity) is not nn.SiLU:
        return f"its activation is {type(block.nonlinearity).__name__}, not SiLU"
    for name in ("norm1", "norm2"):
        if not is_group_norm(getattr(block, name)):
            return f"its {name} is a {type(getattr(block, name)).__name__}"
    return None


@rule("diffusers.models.resnet.ResnetBlock2D", what="group norms, modulation and SiLU", refuse=_resnet_refuse)
def resnet_block_2d(self: Any, input_tensor: Tensor, temb: Any, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs or (temb is None and self.time_embedding_norm == "scale_shift"):
        return plain(self, input_tensor, temb, *args, **kwargs)
    x, h = input_tensor, group_norm_then_silu(self.norm1, self.nonlinearity, input_tensor)
    resample = self.upsample if self.upsample is not None else self.downsample
    if resample is not None:
        if self.upsample is not None and h.shape[0] >= 64:  # nearest upsampling of large channels_last batches fails
            x, h = x.contiguous(), h.contiguous()
        x, h = resample(x), resample(h)
    h = self.conv1(h)
    m = None
    if self.time_emb_proj is not None:
        m = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
    if self.time_embedding_norm == "scale_shift":
        scale, shift = m.chunk(2, dim=1)
        h = group_norm_then_silu(self.norm2, self.nonlinearity, h, shift, scale)
    else:
        h = group_norm_then_silu(self.norm2, self.nonlinearity, h if m is None else h + m[:, :, None, None])
    h = self.conv2(self.dropout(h))
    if self.conv_shortcut is not None:
        x = self.conv_shortcut(x.contiguous() if self.training else x)
    return (x + h) / self.output_scale_factor


# ---- timm -----------------------------------------------------------------------------------------------------------
def _timm_refuse(block: Any) -> str | None:
    for name in ("ls1", "ls2"):
        if class_name(getattr(block, name)) not in (_SCALE, _IDENTITY):
            return f"its {name} is a {type(getattr(block, name)).__name__}"
    return _refuse("norm2")(block)  # type: ignore[no-any-return]


_SCALE, _IDENTITY = "timm.layers.layer_scale.LayerScale", "torch.nn.modules.linear.Identity"


@rule("timm.models.vision_transformer.Block", what="scaled sums and a norm between them", refuse=_timm_refuse)
def timm_block(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    first, second = (None if class_name(s) == _IDENTITY else s.gamma for s in (self.ls1, self.ls2))
    paths = (self.drop_path1, self.drop_path2)
    whole = all(type(p) is nn.Identity or not self.training for p in paths) and quiet(self.ls1, self.ls2, *paths)
    if not whole or not _stream(x, self.norm2) or not ready(x, first, second):
        return plain(self, x, *args, **kwargs)
    x, h = _sum_norm(self.norm2, x, self.attn(self.norm1(x), *args, **kwargs), first)
    h = self.mlp(h)
    return x + h if second is None else gate_residual(x, h, second)
