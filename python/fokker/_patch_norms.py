"""Replacements of norms: torch's, timm's and diffusers'."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._patch_rules import HALVES, class_name, is_layer_norm, is_ours, ours, plain, quiet, ready, rule
from .denoiser import group_norm_silu, layer_norm_modulate, rms_norm_modulate

DIFFUSERS = "diffusers.models.normalization."
_FAST = "timm's fast norm, which returns another dtype under autocast"


def _one_dimension(module: Any) -> str | None:
    if getattr(module, "_fast_norm", False):
        return _FAST
    shape = module.normalized_shape
    return None if len(shape) == 1 else f"normalises over {len(shape)} dimensions"


# ---- plain norms ----------------------------------------------------------------------------------------------------
@rule(
    DIFFUSERS + "FP32LayerNorm",
    "timm.layers.norm.LayerNormFp32",
    what="layer norm in float32 of half-precision numbers",
    refuse=_one_dimension,
)
def float32_layer_norm(self: Any, x: Tensor) -> Tensor:
    """A cast before and after are saved; without casts torch's norm is one pass too."""
    if not ready(x, self.weight, self.bias) or x.dim() < 2 or x.dtype not in HALVES:
        return plain(self, x)
    return layer_norm_modulate(x, None, None, self.weight, self.bias, self.eps)


@rule(
    "torch.nn.modules.normalization.RMSNorm",
    "timm.layers.norm.RmsNorm",
    "timm.layers.norm.RmsNormFp32",
    what="RMS norm",
    refuse=_one_dimension,
)
def rms_norm(self: Any, x: Tensor) -> Tensor:
    if not ready(x, self.weight) or x.dim() < 2:
        return plain(self, x)
    eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
    return rms_norm_modulate(x, None, None, self.weight, eps)


def _diffusers_rms(module: Any) -> str | None:
    if module.bias is not None:
        return "an RMS norm with a bias"
    return None if len(module.dim) == 1 else f"normalises over {len(module.dim)} dimensions"


@rule(DIFFUSERS + "RMSNorm", what="RMS norm", refuse=_diffusers_rms)
def diffusers_rms_norm(self: Any, x: Tensor) -> Tensor:
    if not ready(x, self.weight) or x.dim() < 2 or (self.weight is not None and self.weight.dtype is not x.dtype):
        return plain(self, x)
    return rms_norm_modulate(x, None, None, self.weight, self.eps)


def _groups_ready(norm: Any, x: Any) -> bool:
    return ready(x, norm.weight, norm.bias) and x.dim() >= 2 and x.numel() > 0


def _silu_after(module: Any) -> str | None:
    if module._fast_norm:
        return _FAST
    return None if type(module.act) is nn.SiLU else f"its activation is {type(module.act).__name__}, not SiLU"


@rule(
    "timm.layers.norm_act.GroupNormAct",
    "timm.layers.norm_act.GroupNorm1Act",
    what="group norm and SiLU",
    refuse=_silu_after,
)
def group_norm_act(self: Any, x: Tensor) -> Tensor:
    if not _groups_ready(self, x) or not quiet(self.act, self.drop) or type(self.drop) is not nn.Identity:
        return plain(self, x)
    return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)


def is_group_norm(module: Any) -> bool:
    return isinstance(module, nn.Module) and class_name(module) == "torch.nn.modules.normalization.GroupNorm"


def group_norm_then_silu(
    norm: Any, act: Any, x: Tensor, shift: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """silu(GN(x) (1 + scale) + shift) in one pass, where that is the same; shift and scale (B, C)."""
    if _groups_ready(norm, x) and ready(x, shift, scale) and quiet(norm, act):
        scale, shift = (m if m is None else m.to(x.dtype) for m in (scale, shift))  # half-precision under autocast
        return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, scale, shift, eps=norm.eps)
    y = norm(x)
    if scale is not None and shift is not None:
        end = (..., *(None,) * (x.dim() - 2))
        y = y * (1 + scale[end]) + shift[end]
    return act(y)


#: classes that call their module ``conv_act`` on nothing but what ``conv_norm_out`` gave
_LAST_PAIR = (
    "diffusers.models.unets.unet_2d.UNet2DModel",
    "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel",
    "diffusers.models.autoencoders.vae.Encoder",
    "diffusers.models.autoencoders.vae.Decoder",
)


def last_pair(model: Any) -> tuple[Any, Any] | None:
    """The group norm and SiLU that end a model, two modules that its forward calls one after the other."""
    if class_name(model) not in _LAST_PAIR:
        return None
    norm, act = model.conv_norm_out, model.conv_act
    return (norm, act) if is_group_norm(norm) and type(act) is nn.SiLU else None


def _pair_ready(model: Any, x: Any) -> bool:
    """The same of the norm's input and of its result, so that both modules decide alike."""
    pair = last_pair(model)
    if pair is None or not (is_ours(pair[0]) and is_ours(pair[1]) and quiet(*pair) and _groups_ready(pair[0], x)):
        return False
    return not torch.is_autocast_enabled(x.device.type)  # which would change the dtype between them


@ours
def left_to_the_activation(self: Any, model: Any, x: Tensor) -> Tensor:
    return x if _pair_ready(model, x) else plain(self, x)


@ours
def norm_and_activation(self: Any, model: Any, x: Tensor) -> Tensor:
    return group_norm_then_silu(model.conv_norm_out, self, x) if _pair_ready(model, x) else plain(self, x)


def _has_pair(module: Any) -> str | None:
    layers = list(module)
    return None if any(is_group_norm(a) and type(b) is nn.SiLU for a, b in pairwise(layers)) else ""


@rule("torch.nn.modules.container.Sequential", what="group norm and SiLU", refuse=_has_pair)
def sequential(self: Any, x: Any) -> Any:
    layers = list(self)
    while layers:
        layer = layers.pop(0)
        if layers and is_group_norm(layer) and type(layers[0]) is nn.SiLU:
            x = group_norm_then_silu(layer, layers.pop(0), x)
        else:
            x = layer(x)
    return x


# ---- adaptive norms -------------------------------------------------------------------------------------------------
def _layer_norm_inside(module: Any) -> str | None:
    return None if is_layer_norm(module.norm) else f"its norm is a {type(module.norm).__name__}"


def modulated(norm: Any, x: Tensor, shift: Any, scale: Any) -> Tensor:
    """norm(x) (1 + scale) + shift with a layer norm's own parameters; shift and scale as the op takes them."""
    return layer_norm_modulate(x, shift, scale, norm.weight, norm.bias, norm.eps)


def norm_ready(norm: Any, x: Any, *others: Tensor | None) -> bool:
    return ready(x, norm.weight, norm.bias, *others) and x.dim() == 3 and quiet(norm)


@rule(DIFFUSERS + "AdaLayerNorm", what="layer norm and modulation", refuse=_layer_norm_inside)
def ada_layer_norm(self: Any, x: Tensor, timestep: Tensor | None = None, temb: Tensor | None = None) -> Tensor:
    m = self.linear(self.silu(temb if self.emb is None else self.emb(timestep)))
    batched = self.chunk_dim == 1  # shift, scale of each sample; else scale, shift of all
    shift, scale = m.chunk(2, dim=1) if batched else reversed(m.chunk(2, dim=0))
    if norm_ready(self.norm, x, m) and m.dim() == 1 + batched:
        return modulated(self.norm, x, shift, scale)
    if batched:
        shift, scale = shift[:, None, :], scale[:, None, :]
    return self.norm(x) * (1 + scale) + shift


@rule(DIFFUSERS + "AdaLayerNormZero", what="layer norm and modulation", refuse=_layer_norm_inside)
def ada_layer_norm_zero(
    self: Any, x: Tensor, timestep: Any = None, class_labels: Any = None, hidden_dtype: Any = None, emb: Any = None
) -> Any:
    given = emb if self.emb is None else self.emb(timestep, class_labels, hidden_dtype=hidden_dtype)
    shift, scale, *rest = self.linear(self.silu(given)).chunk(6, dim=1)
    if norm_ready(self.norm, x, shift):
        return (modulated(self.norm, x, shift, scale), *rest)
    return (self.norm(x) * (1 + scale[:, None]) + shift[:, None], *rest)


@rule(DIFFUSERS + "AdaLayerNormZeroSingle", what="layer norm and modulation", refuse=_layer_norm_inside)
def ada_layer_norm_zero_single(self: Any, x: Tensor, emb: Any = None) -> Any:
    shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
    if norm_ready(self.norm, x, shift):
        return modulated(self.norm, x, shift, scale), gate
    return self.norm(x) * (1 + scale[:, None]) + shift[:, None], gate


@rule(DIFFUSERS + "SD35AdaLayerNormZeroX", what="layer norm and two modulations", refuse=_layer_norm_inside)
def sd35_ada_layer_norm_zero(self: Any, hidden_states: Tensor, emb: Any = None) -> Any:
    m = self.linear(self.silu(emb))
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, shift2, scale2, gate2 = m.chunk(9, dim=1)
    if norm_ready(self.norm, hidden_states, m):
        y, y2 = (modulated(self.norm, hidden_states, b, a) for b, a in ((shift, scale), (shift2, scale2)))
    else:
        n = self.norm(hidden_states)
        y, y2 = (n * (1 + a[:, None]) + b[:, None] for b, a in ((shift, scale), (shift2, scale2)))
    return y, gate, shift_mlp, scale_mlp, gate_mlp, y2, gate2


def _continuous(module: Any) -> str | None:
    norm = module.norm
    if class_name(norm) == DIFFUSERS + "RMSNorm":
        return _diffusers_rms(norm)
    return _layer_norm_inside(module)


@rule(DIFFUSERS + "AdaLayerNormContinuous", what="norm and modulation", refuse=_continuous)
def ada_layer_norm_continuous(self: Any, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
    scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
    norm = self.norm
    if not ready(x, norm.weight, norm.bias, scale) or x.dim() != 3 or not quiet(norm):
        return norm(x) * (1 + scale)[:, None, :] + shift[:, None, :]
    if is_layer_norm(norm):
        return modulated(norm, x, shift, scale)
    return rms_norm_modulate(x, shift, scale, norm.weight, norm.eps)


def _rms_inside(module: Any) -> str | None:
    if class_name(module.norm) != DIFFUSERS + "RMSNorm":
        return f"its norm is a {type(module.norm).__name__}"
    return _diffusers_rms(module.norm)


@rule(DIFFUSERS + "LuminaRMSNormZero", what="RMS norm and modulation", refuse=_rms_inside)
def lumina_rms_norm_zero(self: Any, x: Tensor, emb: Any = None) -> Any:
    scale, *rest = self.linear(self.silu(emb)).chunk(4, dim=1)
    if ready(x, self.norm.weight, scale) and x.dim() == 3 and quiet(self.norm):
        return (rms_norm_modulate(x, None, scale, self.norm.weight, self.norm.eps), *rest)
    return (self.norm(x) * (1 + scale[:, None]), *rest)


@rule(
    "diffusers.models.transformers.sana_transformer.SanaModulatedNorm",
    what="layer norm and modulation by table and time",
    refuse=_layer_norm_inside,
)
def sana_modulated_norm(self: Any, hidden_states: Tensor, temb: Tensor, scale_shift_table: Tensor) -> Tensor:
    if not norm_ready(self.norm, hidden_states, temb, scale_shift_table) or temb.dim() != 2:
        return plain(self, hidden_states, temb, scale_shift_table)
    shift, scale = ((row, temb) for row in scale_shift_table.unbind(0))
    return modulated(self.norm, hidden_states, shift, scale)


@rule(DIFFUSERS + "AdaGroupNorm", what="group norm and modulation")
def ada_group_norm(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    m = self.linear(self.act(emb) if self.act else emb)
    if not ready(x, m) or x.numel() == 0:
        return plain(self, x, emb)
    scale, shift = m.to(x.dtype).chunk(2, dim=1)
    return group_norm_silu(x, self.num_groups, None, None, scale, shift, eps=self.eps, activation=None)
