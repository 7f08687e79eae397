"""The registered ops behind `fokker.denoiser`'s attention heads and activations, and how their kernels are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, native_kernels, triton_kernel
from .reference import denoiser_heads as reference

_AFFINE = "Tensor? q_weight, Tensor? k_weight, Tensor? q_bias, Tensor? k_bias, Tensor? cos, Tensor? sin"
_SETTINGS = "int norm, float eps, bool interleaved, int rotary"
_TABLES = 6  # weights, biases, cos, sin


# ---- queries and keys ------------------------------------------------------------------------------------------------
def _ready(t: Tensor | None, like: Tensor) -> Tensor | None:
    """A small operand as kernels read it: contiguous, in what they compute in."""
    return None if t is None else t.to(reference.arithmetic(like.dtype)).contiguous()


def _operands(x: Tensor, tables: Sequence[Tensor | None]) -> tuple[list[Any], list[Any], Any, Any]:
    """Weights, biases (of queries, of keys), cos and sin (1 or B, T, D/2 or D)."""
    qw, kw, qb, kb, cos, sin = (_ready(t, x) for t in tables)
    if cos is not None and sin is not None and cos.dim() == 2:
        cos, sin = cos[None], sin[None]
    return [qw, kw], [qb, kb], cos, sin


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
            kernels={**native_kernels(self._kernel), "triton": triton_kernel(self._kernel, "heads", True)},
            backward=self._backward,
        )
        grads = ", ".join(f"Tensor grad_{n}" for n in "qkv"[:outputs])
        self.vjp = Op(
            f"{name}_vjp({into}, {_AFFINE}, {grads}, {_SETTINGS}, int wanted) -> "
            f"({', '.join(['Tensor'] * (self.inputs + 4))})",
            tensors=self.tensors + outputs,
            reference=self._vjp_reference,
            fake=self._vjp_empty,
            kernels={**native_kernels(self._vjp_kernel), "triton": triton_kernel(self._vjp_kernel, "heads_vjp")},
        )

    def _parts(self, args: Sequence[Any]) -> list[Tensor]:
        return _unpacked(args[0]) if self.packed else list(args[:2])

    def _kernel(self, module: Any) -> Kernel:
        def run(*args: Any, out: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
            parts = self._parts(args)
            outs = [torch.empty_like(t) for t in parts] if out is None else list(out)
            weights, biases, cos, sin = _operands(args[0], args[self.inputs : self.tensors])
            module.heads_norm_rope(parts, weights, biases, cos, sin, *args[self.tensors :], outs)
            return tuple(outs)

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    def _backward(self, needs: Any, saved: Any, extra: Any, *grads: Tensor) -> list[Tensor | None]:
        if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
            found = self.formula(*saved, *extra, *grads)
            return [t if n else None for t, n in zip(found, needs, strict=False)] + [None, None]
        wanted = sum(1 << k for k in range(self.inputs + 4) if needs[k] and saved[k] is not None)
        found = self.vjp(*saved, *grads, *extra, wanted)
        return [t if wanted >> k & 1 else None for k, t in enumerate(found)] + [None, None]

    def _vjp_reference(self, *args: Any) -> tuple[Tensor, ...]:
        wanted = args[-1]
        found = self.formula(*args[: self.tensors], *args[-5:-1], *args[self.tensors : -5])
        none = args[0].new_empty(0)
        return tuple(t.contiguous() if t is not None and wanted >> k & 1 else none.clone() for k, t in enumerate(found))

    def _vjp_empty(self, *args: Any) -> tuple[Tensor, ...]:
        wanted = args[-1]
        return tuple(
            torch.empty(t.shape, dtype=t.dtype, device=t.device) if wanted >> k & 1 else args[0].new_empty(0)
            for k, t in enumerate(args[: self.inputs + 4])
        )

    def _vjp_kernel(self, module: Any) -> Kernel:
        def run(*args: Any) -> tuple[Tensor, ...]:
            wanted = args[-1]
            found = list(self._vjp_empty(*args))
            parts = self._parts(args)
            x = args[0]
            weights, biases, cos, sin = _operands(x, args[self.inputs : self.tensors])
            if self.packed:
                to: list[Tensor | None] = list(_unpacked(found[0])) if wanted & 1 else [None] * 3
            else:
                to = [found[k] if wanted >> k & 1 else None for k in range(2)]
            sums = wanted >> self.inputs & 15
            rows = workspace = None
            if sums:
                rows = torch.zeros((2, 2, x.shape[-1]), dtype=torch.float64, device=x.device)
                if blocks := module.heads_blocks(parts[0].shape[0] * parts[0].shape[2]):
                    workspace = torch.empty((blocks, *rows.shape), dtype=torch.float64, device=x.device)
            module.heads_norm_rope_vjp(
                parts, weights, biases, cos, sin, *args[-5:-1], list(args[self.tensors : -5]), to, rows, workspace
            )
            if rows is not None:  # [weight, bias] of queries and of keys
                for k, row in enumerate((rows[0, 0], rows[1, 0], rows[0, 1], rows[1, 1])):
                    at = self.inputs + k
                    if wanted >> at & 1:
                        found[at] = row.to(args[at].dtype, copy=True)
            return tuple(found)

        return run


heads = Heads(packed=False)
packed_heads = Heads(packed=True)


# ---- activations -----------------------------------------------------------------------------------------------------
class Gates:
    """act(gate) * value, or act(x) alone, of halves packed in x with a bias, or of a pair with one each; and gradients.

    `vjp` has the gradients of tensors and then of biases; `wanted`: bit k asks for the k-th.
    """

    def __init__(self, packed: bool) -> None:
        self.packed, self.inputs = packed, 1 if packed else 2
        name, into, biases = ("activation", "Tensor x", "Tensor? bias")
        settings = "int kind, bool gated, bool gate_first, int dim"
        if not packed:
            name, into = "pair", "Tensor gate, Tensor value"
            biases, settings = "Tensor? gate_bias, Tensor? value_bias", "int kind, int dim"
        self.formula = reference.gated_activation_vjp if packed else reference.gated_pair_vjp
        self.op = Op(
            f"gated_{name}({into}, {biases}, {settings}) -> Tensor",
            tensors=2 * self.inputs,
            reference=reference.gated_activation if packed else reference.gated_pair,
            fake=self._empty,
            kernels={**native_kernels(self._kernel), "triton": triton_kernel(self._kernel, "gates", True)},
            backward=self._backward,
        )
        self.vjp = Op(
            f"gated_{name}_vjp({into}, {biases}, Tensor grad, {settings}, int wanted) -> "
            f"({', '.join(['Tensor'] * (2 * self.inputs))})",
            tensors=2 * self.inputs + 1,
            reference=self._vjp_reference,
            fake=self._vjp_empty,
            kernels={**native_kernels(self._vjp_kernel), "triton": triton_kernel(self._vjp_kernel, "gates")},
        )

    def _empty(self, x: Tensor, *rest: Any) -> Tensor:
        if self.packed and rest[-3]:
            x = x.narrow(rest[-1], 0, x.shape[rest[-1]] // 2)
        return torch.empty_like(x)

    def _arguments(self, tensors: Sequence[Any], settings: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """What the kernels are given: x, value and their biases; kind, gated, gate_first and dim."""
        biases = [_ready(t, tensors[0]) for t in tensors[self.inputs :]]
        if self.packed:
            return [tensors[0], None, *biases, None], list(settings)
        return [*tensors[:2], *biases], [settings[0], True, True, settings[1]]

    def _kernel(self, module: Any) -> Kernel:
        def run(*args: Any, out: Tensor | None = None) -> Tensor:
            y = self._empty(*args) if out is None else out
            tensors, settings = self._arguments(args[: 2 * self.inputs], args[2 * self.inputs :])
            module.heads_activation(*tensors, *settings, y)
            return y

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    def _backward(self, needs: Any, saved: Any, extra: Any, grad: Tensor) -> list[Tensor | None]:
        wanted = sum(1 << k for k, t in enumerate(saved) if needs[k] and t is not None)
        if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
            found = self.formula(*saved, grad, *extra)
        else:
            found = self.vjp(*saved, grad, *extra, wanted)
        return [t if wanted >> k & 1 else None for k, t in enumerate(found)]

    def _vjp_reference(self, *args: Any) -> tuple[Tensor, ...]:
        made = self._vjp_empty(*args)
        found = self.formula(*args[:-1])
        return tuple(to.copy_(t) if to.numel() else to for to, t in zip(made, found, strict=True))

    def _vjp_empty(self, *args: Any) -> tuple[Tensor, ...]:
        # the kernels write the gradients in tensors in any case, where those in biases are sums over them
        wanted, none = args[-1], args[0].new_empty(0)
        return tuple(
            torch.empty_like(t) if k < self.inputs or wanted >> k & 1 else none.clone()
            for k, t in enumerate(args[: 2 * self.inputs])
        )

    def _vjp_kernel(self, module: Any) -> Kernel:
        def run(*args: Any) -> tuple[Tensor, ...]:
            count = 2 * self.inputs
            found, grad, wanted = self._vjp_empty(*args), args[count], args[-1]
            tensors, settings = self._arguments(args[:count], args[count + 1 : -1])
            sums = workspace = None
            if wanted >> self.inputs:
                x, channels = tensors[0], self.inputs * tensors[2].numel()
                sums = torch.zeros(channels, dtype=torch.float64, device=x.device)
                rows = grad.numel() // max(1, grad.shape[settings[-1]])
                if blocks := module.gates_blocks(rows):
                    workspace = torch.empty((blocks, channels), dtype=torch.float64, device=x.device)
            to_value = None if self.packed else found[1]
            module.heads_activation_vjp(*tensors, grad, *settings, found[0], to_value, sums, workspace)
            if sums is not None:
                for to, part in zip(found[self.inputs :], sums.chunk(self.inputs), strict=True):
                    if to.numel():
                        to.copy_(part)
            return found

        return run


gates = Gates(packed=True)
pair_gates = Gates(packed=False)
