"""The registered ops behind `fokker.denoiser`'s attention heads and activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._op import Op
from .reference import denoiser_heads as reference

_AFFINE = "Tensor? q_weight, Tensor? k_weight, Tensor? q_bias, Tensor? k_bias, Tensor? cos, Tensor? sin"
_SETTINGS = "int norm, float eps, bool interleaved"
_TABLES = 6  # weights, biases, cos, sin


# ---- queries and keys ------------------------------------------------------------------------------------------------
def _unpacked(qkv: Tensor) -> list[Tensor]:
    """(B, H, T, D) views of packed (B, T, 3, H, D)."""
    return list(qkv.permute(2, 0, 3, 1, 4).unbind(0))


class Heads:
    """Queries and keys as two tensors (B, H, T, D), or packed with the values, (B, T, 3, H, D); and the gradient."""

    def __init__(self, packed: bool) -> None:
        self.packed, self.inputs = packed, 1 if packed else 2
        self.tensors = self.inputs + _TABLES
        name, into = ("qkv_norm_rope", "Tensor qkv") if packed else ("qk_norm_rope", "Tensor q, Tensor k")
        function = reference.qkv_norm_rope if packed else reference.qk_norm_rope
        self.formula = reference.qkv_norm_rope_vjp if packed else reference.qk_norm_rope_vjp
        outputs = 3 if packed else 2
        results = ", ".join(["Tensor"] * outputs)
        self.op = Op(
            f"{name}({into}, {_AFFINE}, {_SETTINGS}) -> ({results})",
            tensors=self.tensors,
            reference=function,
            fake=lambda *args: tuple(torch.empty_like(t) for t in self._parts(args)),
            kernels={},
            backward=self._backward,
        )
        grads = ", ".join(f"Tensor grad_{n}" for n in "qkv"[:outputs])
        self.vjp = Op(
            f"{name}_vjp({into}, {_AFFINE}, {grads}, {_SETTINGS}, int wanted) -> "
            f"({', '.join(['Tensor'] * (self.inputs + 4))})",
            tensors=self.tensors + outputs,
            reference=self._vjp_reference,
            fake=self._vjp_empty,
            kernels={},
        )

    def _parts(self, args: Sequence[Any]) -> list[Tensor]:
        return _unpacked(args[0]) if self.packed else list(args[:2])

    def _backward(self, needs: Any, saved: Any, extra: Any, *grads: Tensor) -> list[Tensor | None]:
        if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
            found = self.formula(*saved, *extra, *grads)
            return [t if n else None for t, n in zip(found, needs, strict=False)] + [None, None]
        wanted = sum(1 << k for k in range(self.inputs + 4) if needs[k] and saved[k] is not None)
        found = self.vjp(*saved, *grads, *extra, wanted)
        return [t if wanted >> k & 1 else None for k, t in enumerate(found)] + [None, None]

    def _vjp_reference(self, *args: Any) -> tuple[Tensor, ...]:
        wanted = args[-1]
        found = self.formula(*args[: self.tensors], *args[-4:-1], *args[self.tensors : -4])
        none = args[0].new_empty(0)
        return tuple(t.contiguous() if t is not None and wanted >> k & 1 else none.clone() for k, t in enumerate(found))

    def _vjp_empty(self, *args: Any) -> tuple[Tensor, ...]:
        wanted = args[-1]
        return tuple(
            torch.empty(t.shape, dtype=t.dtype, device=t.device) if wanted >> k & 1 else args[0].new_empty(0)
            for k, t in enumerate(args[: self.inputs + 4])
        )


heads = Heads(packed=False)
packed_heads = Heads(packed=True)


# ---- activations -----------------------------------------------------------------------------------------------------
_ACTIVATION = "int kind, bool gated, bool gate_first, int dim"


def _activation_fake(x: Tensor, bias: Tensor | None, kind: int, gated: bool, gate_first: bool, dim: int) -> Tensor:
    return torch.empty_like(x.narrow(dim, 0, x.shape[dim] // 2) if gated else x)


def _activation_backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> list[Tensor | None]:
    x, bias = saved
    if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
        dx = reference.gated_activation_vjp(x, bias, grad, *extra)
    else:
        dx = activation_vjp(x, bias, grad, *extra)
    to_bias = None
    if bias is not None and needs[1]:
        dim = extra[-1]
        others = [d for d in range(x.dim()) if d != dim]
        wide = reference.arithmetic(x.dtype)
        to_bias = (dx.sum(others, dtype=wide) if others else dx).to(bias.dtype)
    return [dx if needs[0] else None, to_bias]


def _activation_vjp_reference(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x).copy_(reference.gated_activation_vjp(x, *rest))


activation = Op(
    f"gated_activation(Tensor x, Tensor? bias, {_ACTIVATION}) -> Tensor",
    tensors=2,
    reference=reference.gated_activation,
    fake=_activation_fake,
    kernels={},
    backward=_activation_backward,
)
activation_vjp = Op(
    f"gated_activation_vjp(Tensor x, Tensor? bias, Tensor grad, {_ACTIVATION}) -> Tensor",
    tensors=3,
    reference=_activation_vjp_reference,
    fake=lambda x, bias, grad, *extra: torch.empty_like(x),
    kernels={},
)
