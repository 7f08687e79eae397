"""Replacements of gated and other activations: torch's, timm's and diffusers'."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._patch_rules import plain, quiet, ready_gate, rule
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


@rule("timm.layers.mlp.SwiGLU", what="biases and SiLU gate of two projections", refuse=_silu_gate)
def timm_swiglu(self: Any, x: Tensor) -> Tensor:
    layers = (self.fc1_g, self.fc1_x)
    if not ready_gate(x) or not quiet(self.act):
        return plain(self, x)
    if all(type(n) is nn.Linear and n.bias is not None for n in layers) and quiet(*layers):
        gate, value = (nn.functional.linear(x, n.weight) for n in layers)
        h = swiglu((gate, value), (self.fc1_g.bias, self.fc1_x.bias))
    else:
        gate, value = (n(x) for n in layers)
        same = ready_gate(gate) and ready_gate(value) and gate.dtype is value.dtype
        h = swiglu((gate, value)) if same else self.act(gate) * value
    return self.drop2(self.fc2(self.norm(self.drop1(h))))
