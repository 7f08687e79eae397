"""The registered ops behind the norm family of `fokker.denoiser`: rows of (batch, tokens, columns), one pass each.

All ops share ten tensor slots: x and branch (B, N, C); gate, shift and scale, each (1 or B, 1 or N, C) and beside it a
table (C,) that is added inside; weight and bias (C,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._elementwise import reduce_to
from ._op import Kernel, Op
from .reference import denoiser_norms as reference

SLOTS = ("x", "branch", "gate", "gate_table", "shift", "shift_table", "scale", "scale_table", "weight", "bias")
#: by the number that the ops are given
NORMS = (None, "layer", "rms")
_SCHEMA = "Tensor x, " + ", ".join(f"Tensor? {name}" for name in SLOTS[1:])
_COUNT = len(SLOTS)


def _pair(main: Tensor | None, table: Tensor | None) -> reference.Modulation:
    return main if table is None else (table, main)


def _contiguous(t: Tensor) -> Tensor:
    return t.contiguous()


# ---- forward --------------------------------------------------------------------------------------------------------
def _reference(*args: Any) -> Any:
    x, branch, gate, gate_table, shift, shift_table, scale, scale_table, weight, bias, eps, norm = args
    by, plus, times = _pair(gate, gate_table), _pair(shift, shift_table), _pair(scale, scale_table)
    if not norm:
        return _contiguous(reference.gate_residual(x, branch, by))
    if branch is not None:
        found = reference.residual_gate_norm_modulate(
            x, branch, by, plus, times, weight, bias, eps, norm=str(NORMS[norm])
        )
        return tuple(_contiguous(t) for t in found)
    if norm == 1:
        return _contiguous(reference.layer_norm_modulate(x, plus, times, weight, bias, eps))
    return _contiguous(reference.rms_norm_modulate(x, plus, times, weight, eps))


class Forward:
    """An op with x' (gated), y (normed) or both as results."""

    def __init__(self, name: str, gated: bool, normed: bool) -> None:
        self.gated, self.normed = gated, normed
        both = gated and normed
        self.op = Op(
            f"{name}({_SCHEMA}, float eps, int norm) -> {'(Tensor, Tensor)' if both else 'Tensor'}",
            tensors=_COUNT,
            reference=_reference,
            fake=self._fake,
            kernels={},
            backward=self._backward,
            partial_grads=True,
        )

    def _fake(self, *args: Any) -> Any:
        x = args[0]
        found = tuple(x.new_empty(x.shape) for _ in range(self.gated + self.normed))
        return found if len(found) > 1 else found[0]

    def _kernel(self, module: Any) -> Kernel:
        gated, normed = self.gated, self.normed

        def run(*args: Any, out: Sequence[Tensor] | None = None) -> Any:
            x = args[0]
            found = [x.new_empty(x.shape) for _ in range(gated + normed)] if out is None else out
            module.norm_modulate(*args, found[0] if gated else None, found[-1] if normed else None)
            return found[0] if len(found) == 1 else tuple(found)

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    def _backward(self, needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_sum = grads[0] if self.gated else None
        grad = grads[-1] if self.normed else None
        if grad_sum is None and grad is None:
            return (None,) * _COUNT
        wanted = sum(1 << k for k, need in enumerate(needs) if need)
        if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
            return tuple(_reduced(saved, grad_sum, grad, *extra, wanted))
        found = norm_vjp(*saved, grad_sum, grad, *extra, wanted)
        return tuple(t if need else None for t, need in zip(found, needs, strict=True))


# ---- its vector-Jacobian product -------------------------------------------------------------------------------------
def _reduced(
    tensors: Sequence[Tensor | None], grad_sum: Tensor | None, grad: Tensor | None, eps: float, norm: int, wanted: int
) -> list[Tensor | None]:
    """The wanted gradients, of the shapes and dtypes of their slots."""
    x, branch, gate, gate_table, _, _, scale, scale_table, weight, bias = tensors
    assert x is not None
    full = reference.vjp(
        x, branch, _pair(gate, gate_table), _pair(scale, scale_table), weight, bias, grad_sum, grad, eps, NORMS[norm]
    )
    found: list[Tensor | None] = []
    for k, (name, t) in enumerate(zip(SLOTS, tensors, strict=True)):
        if t is None or not wanted >> k & 1:
            found.append(None)
            continue
        g = full.get(name.removesuffix("_table"))
        found.append(torch.zeros_like(t) if g is None else reduce_to(g, t).to(t.dtype))
    return found


def _vjp_reference(*args: Any) -> tuple[Tensor, ...]:
    found = _reduced(args[:_COUNT], *args[_COUNT:])
    none = args[0].new_empty(0)
    return tuple(none.clone() if g is None else g.clone(memory_format=torch.contiguous_format) for g in found)


def _vjp_fake(*args: Any) -> tuple[Tensor, ...]:
    wanted = args[-1]
    none = args[0].new_empty
    return tuple(
        none(0) if t is None or not wanted >> k & 1 else t.new_empty(t.shape) for k, t in enumerate(args[:_COUNT])
    )


#: gradients in the ten slots, empty where bit k of ``wanted`` is not set
norm_vjp = Op(
    f"denoiser_norm_vjp({_SCHEMA}, Tensor? grad_sum, Tensor? grad, float eps, int norm, int wanted) -> "
    f"({', '.join(['Tensor'] * _COUNT)})",
    tensors=_COUNT + 2,
    reference=_vjp_reference,
    fake=_vjp_fake,
    kernels={},
)

norm_modulate = Forward("denoiser_norm", gated=False, normed=True).op
gate_norm_modulate = Forward("denoiser_gate_norm", gated=True, normed=True).op
gate_residual = Forward("denoiser_gate", gated=True, normed=False).op
