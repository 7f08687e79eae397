"""Replacements of gated and other activations: torch's, timm's and diffusers'."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._patch_rules import class_name, plain, quiet, ready_gate, rule
from .denoiser import geglu, gelu_tanh, silu_gate, swiglu


@rule("diffusers.models.activations.GEGLU", what="GELU gate of packed halves")
def diffusers_geglu(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args or kwargs:
        return plain(self, hidden_states, *args, **kwargs)
    h = self.proj(hidden_states)
    if ready_gate(h):
        return geglu(h, approximate="none")
    value, gate = h.chunk(2, dim=-1)
    return value * self.gelu(gate)


@rule("diffusers.models.activations.SwiGLU", what="SiLU gate of packed halves")
def diffusers_swiglu(self: Any, hidden_states: Tensor) -> Tensor:
    h = self.proj(hidden_states)
    if ready_gate(h) and quiet(self.activation):
        return swiglu(h, gate_first=False)
    value, gate = h.chunk(2, dim=-1)
    return value * self.activation(gate)


def _by_tanh(module: Any) -> str | None:
    return None if module.approximate == "tanh" else "an exact GELU is one pass in torch already"


@rule("torch.nn.modules.activation.GELU", what="GELU by tanh", refuse=_by_tanh)
def torch_gelu(self: Any, x: Tensor) -> Tensor:
    return gelu_tanh(x) if ready_gate(x) and x.dim() else plain(self, x)


def linear_then_gelu(layer: Any, x: Tensor) -> Tensor:
    """gelu_tanh(layer(x)), the bias of a plain projection added in the activation's pass."""
    if type(layer) is nn.Linear and quiet(layer):
        return gelu_tanh(nn.functional.linear(x, layer.weight), layer.bias)
    return gelu_tanh(layer(x))


@rule("diffusers.models.activations.GELU", what="bias and GELU by tanh", refuse=_by_tanh)
def diffusers_gelu(self: Any, hidden_states: Tensor) -> Tensor:
    return linear_then_gelu(self.proj, hidden_states) if ready_gate(hidden_states) else plain(self, hidden_states)


def _gated_conv(module: Any) -> str | None:
    return None if type(module.nonlinearity) is nn.SiLU else f"its activation is {type(module.nonlinearity).__name__}"


@rule(
    "diffusers.models.transformers.sana_transformer.GLUMBConv", what="SiLU gate of channel halves", refuse=_gated_conv
)
def glu_mb_conv(self: Any, hidden_states: Tensor) -> Tensor:
    h = self.conv_depth(self.nonlinearity(self.conv_inverted(hidden_states)))
    if ready_gate(h):
        h = silu_gate(h, dim=1)
    else:
        value, gate = h.chunk(2, dim=1)
        h = value * self.nonlinearity(gate)
    h = self.conv_point(h)
    if self.norm_type == "rms_norm":
        h = self.norm(h.movedim(1, -1)).movedim(-1, 1)
    return h + hidden_states if self.residual_connection else h


def _silu_gate(module: Any) -> str | None:
    return None if type(module.act) is nn.SiLU else f"its activation is {type(module.act).__name__}, not SiLU"


@rule("timm.layers.mlp.GluMlp", what="SiLU gate of packed halves", refuse=_silu_gate)
def timm_glu(self: Any, x: Tensor) -> Tensor:
    h = self.fc1(x)
    if not ready_gate(h) or not quiet(self.act):
        first, second = h.chunk(2, dim=self.chunk_dim)
        h = first * self.act(second) if self.gate_last else self.act(first) * second
    else:
        h = swiglu(h, gate_first=not self.gate_last, dim=self.chunk_dim)
    return self.drop2(self.fc2(self.norm(self.drop1(h))))


# ---- two projections ------------------------------------------------------------------------------------------------
def gated(gate: Any, value: Any, act: Any, x: Tensor) -> Tensor:
    """act(gate(x)) * value(x), the biases of plain projections added in the activation's pass; act: a SiLU."""
    layers = (gate, value)
    if all(type(n) is nn.Linear and n.bias is not None for n in layers) and quiet(*layers):
        return swiglu(tuple(nn.functional.linear(x, n.weight) for n in layers), (gate.bias, value.bias))
    first, second = (n(x) for n in layers)
    same = ready_gate(first) and ready_gate(second) and first.dtype is second.dtype and first.shape == second.shape
    return swiglu((first, second)) if same else act(first) * second


@rule("timm.layers.mlp.SwiGLU", what="biases and SiLU gate of two projections", refuse=_silu_gate)
def timm_swiglu(self: Any, x: Tensor) -> Tensor:
    if not ready_gate(x) or not quiet(self.act):
        return plain(self, x)
    h = gated(self.fc1_g, self.fc1_x, self.act, x)
    return self.drop2(self.fc2(self.norm(self.drop1(h))))


_TRANSFORMERS = "diffusers.models.transformers."
#: class -> the names of its gate, its value and what takes their product
_TWO = {
    "diffusers.models.attention.LuminaFeedForward": ("linear_1", "linear_3", "linear_2"),
    _TRANSFORMERS + "auraflow_transformer_2d.AuraFlowFeedForward": ("linear_1", "linear_2", "out_projection"),
    _TRANSFORMERS + "ace_step_transformer.AceStepMLP": ("gate_proj", "up_proj", "down_proj"),
    _TRANSFORMERS + "transformer_hidream_image.HiDreamImageFeedForwardSwiGLU": ("w1", "w3", "w2"),
    _TRANSFORMERS + "transformer_ideogram4.Ideogram4MLP": ("w1", "w3", "w2"),
    _TRANSFORMERS + "transformer_krea2.Krea2SwiGLU": ("gate", "up", "down"),
    _TRANSFORMERS + "transformer_z_image.FeedForward": ("w1", "w3", "w2"),
}


@rule(*_TWO, what="SiLU gate of two projections")
def two_projections(self: Any, x: Tensor) -> Tensor:
    act = getattr(self, "silu", None)  # Lumina's, in float32
    if not ready_gate(x) or not quiet(act):
        return plain(self, x)
    gate, value, out = (getattr(self, n) for n in _TWO[class_name(self)])
    return out(gated(gate, value, act or nn.functional.silu, x))
