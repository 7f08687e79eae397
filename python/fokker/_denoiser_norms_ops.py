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
from ._op import Kernel, Op, native_kernels, triton_kernel
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
            kernels={**native_kernels(self._kernel), "triton": self._triton()},
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

    def _triton(self) -> Kernel:
        gated, normed = self.gated, self.normed

        def run(*args: Any, out: Sequence[Tensor] | None = None) -> Any:
            from .triton_kernels import norms

            x = args[0]
            found = [x.new_empty(x.shape) for _ in range(gated + normed)] if out is None else list(out)
            norms.norm_modulate(found, *args)
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
        given: dict[int, Tensor] = {}  # gradients that are there already
        x, shift = saved[0], saved[4]
        if needs[0] and grad is None and grad_sum is not None:
            given[0] = grad_sum.to(x.dtype)
        if needs[4] and grad is not None and shift.shape == x.shape:
            given[4] = grad.to(shift.dtype)
        wanted &= ~sum(1 << k for k in given)
        if not wanted:
            return tuple(given.get(k) for k in range(_COUNT))
        found = norm_vjp(*saved, grad_sum, grad, *extra, wanted)
        return tuple(given.get(k, t) if need else None for k, (t, need) in enumerate(zip(found, needs, strict=True)))


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


def _per_token(m: Tensor | None) -> bool:
    return m is not None and m.shape[1] > 1


def _vjp_kernel(module: Any) -> Kernel:
    def run(*args: Any) -> tuple[Tensor, ...]:
        x, branch, gate, gate_table, shift, _, scale, scale_table, weight, bias = args[:_COUNT]
        grad_sum, grad, eps, norm, wanted = args[_COUNT:]
        wide = reference.arithmetic(x.dtype)
        batch, _, columns = x.shape
        want = [t is not None and bool(wanted >> k & 1) for k, t in enumerate(args[:_COUNT])]
        found = [x.new_empty(0) for _ in range(_COUNT)]
        for k in (0, 1):
            if want[k]:
                found[k] = args[k].new_empty(x.shape)
        normed = norm != 0 and grad is not None
        by_token = {"gate": _per_token(gate), "scale": _per_token(scale), "shift": _per_token(shift)}

        def sums(needed: bool) -> Tensor | None:
            if not needed:
                return None
            return (x.new_empty if x.numel() else x.new_zeros)((batch, columns), dtype=wide)

        def rows(needed: bool, main: int) -> Tensor | None:
            if not needed:
                return None
            whole = not want[main + 1] and args[main].shape == x.shape  # nothing left to add up
            return x.new_empty(x.shape, dtype=args[main].dtype if whole else wide)

        # the sums of p and p norm(x), p = grad, give the gradients in shift, scale, weight and bias; where the scale
        # changes by token, p = grad (1 + scale) gives those in weight and bias, and the scale's is a tensor of its own
        affine, scaled = want[8] or want[9], want[6] or want[7]
        shifted = (want[4] and not by_token["shift"]) or want[5]
        weighted = by_token["scale"] and affine
        pair = normed and (affine or (scaled and not by_token["scale"]) or (shifted and not weighted))
        to_scale = rows(normed and scaled and by_token["scale"], 6)
        gated = want[2] or want[3]
        to_gate = rows(gated and by_token["gate"], 2)
        sum_p, sum_pn, sum_gate = sums(pair), sums(pair), sums(gated and not by_token["gate"])
        partial = None
        if module.norm_token_block and (count := 2 * pair + (sum_gate is not None)):
            blocks = -(-x.shape[1] // module.norm_token_block)
            partial = x.new_empty(batch * blocks * count * columns, dtype=wide)
        module.norm_modulate_vjp(
            x, branch, gate, gate_table, scale, scale_table, weight, bias, grad_sum, grad if normed else None, eps,
            norm, weighted, found[0] if want[0] else None, found[1] if want[1] else None, to_gate, to_scale,
            sum_p, sum_pn, sum_gate, partial,
        )  # fmt: skip

        def put(k: int, value: Tensor | None) -> None:
            if want[k]:
                t = args[k]
                g = torch.zeros_like(t) if value is None else reduce_to(value, t).to(t.dtype)
                found[k] = (g.clone() if g is grad else g).contiguous()

        tokens = grad.to(wide) if normed and shifted and weighted else None
        to_shift = sum_p[:, None] if sum_p is not None and not weighted else tokens
        if want[4] and by_token["shift"]:
            put(4, grad if normed else None)
        else:
            put(4, to_shift)
        put(5, to_shift)
        if to_scale is None and sum_pn is not None and not by_token["scale"]:
            to_scale = sum_pn if weight is None else sum_pn * weight.to(wide)
            to_scale = (to_scale if bias is None else torch.addcmul(to_scale, sum_p, bias.to(wide)))[:, None]
        put(6, to_scale)
        put(7, to_scale)
        if affine and sum_p is not None:
            scale_now = None if weighted else reference.total(_pair(scale, scale_table), sum_p[:, None])
            for k, s in ((8, sum_pn), (9, sum_p)):
                put(k, s[:, None] if scale_now is None else s[:, None] * (1 + scale_now))
        else:
            put(8, None)
            put(9, None)
        to_gate = to_gate if sum_gate is None else sum_gate[:, None]
        put(2, to_gate)
        put(3, to_gate)
        return tuple(found)

    return run


#: gradients in the ten slots, empty where bit k of ``wanted`` is not set
norm_vjp = Op(
    f"denoiser_norm_vjp({_SCHEMA}, Tensor? grad_sum, Tensor? grad, float eps, int norm, int wanted) -> "
    f"({', '.join(['Tensor'] * _COUNT)})",
    tensors=_COUNT + 2,
    reference=_vjp_reference,
    fake=_vjp_fake,
    kernels={**native_kernels(_vjp_kernel), "triton": triton_kernel(_vjp_kernel, "norms_vjp")},
)

norm_modulate = Forward("denoiser_norm", gated=False, normed=True).op
gate_norm_modulate = Forward("denoiser_gate_norm", gated=True, normed=True).op
gate_residual = Forward("denoiser_gate", gated=True, normed=False).op
