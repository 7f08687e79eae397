"""Gated activations of packed halves or of two tensors, with an optional bias, in one pass: `swiglu` and its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._denoiser_heads import check_tensor
from ._denoiser_heads_ops import gates, pair_gates
from ._op import Op
from .reference.denoiser_heads import ACTIVATIONS

__all__ = ["geglu", "gelu_tanh", "mp_silu", "silu_gate", "swiglu"]

Halves = Tensor | tuple[Tensor, Tensor]
Bias = Tensor | tuple[Tensor, Tensor] | None
_GELU = {"tanh": "gelu_tanh", "none": "gelu"}


def _dimension(name: str, x: Tensor, dim: Any) -> int:
    if type(dim) is not int:
        raise TypeError(f"{name}: dim must be an int, got {type(dim).__name__}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"{name}: dim must be in [{-x.dim()}, {x.dim()}) for x {tuple(x.shape)}, got {dim}")
    return dim % x.dim()


def _check_bias(name: str, label: str, bias: Any, x: Tensor, size: int) -> None:
    if bias is None:
        return
    check_tensor(name, label, bias, x)
    if bias.shape != (size,):
        raise ValueError(f"{name}: {label} {tuple(bias.shape)} must have one entry a channel of x, shape ({size},)")


def _run(name: str, op: Op, tensors: tuple[Any, ...], settings: tuple[Any, ...], shape: list[int], out: Any) -> Tensor:
    x = tensors[0]
    if out is None:
        return op(*tensors, *settings)
    check_tensor(name, "out", out, x)
    if list(out.shape) != shape or out.dtype != x.dtype:
        raise ValueError(f"{name}: out must be {x.dtype} of shape {tuple(shape)}, got {out.dtype} {tuple(out.shape)}")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*tensors, out)):
        raise ValueError(f"{name}: out= does not record a gradient; leave it away, or use torch.no_grad()")
    return op.into(out, *tensors, *settings)


def _apply(
    name: str, x: Any, bias: Any, kind: str, gated: bool, gate_first: bool, dim: Any, out: Tensor | None
) -> Tensor:
    if gated and isinstance(x, (tuple, list)):
        return _apply_pair(name, x, bias, kind, dim, out)
    check_tensor(name, "x", x)
    dim = _dimension(name, x, dim)
    size = x.shape[dim]
    if gated and size % 2:
        raise ValueError(f"{name}: x {tuple(x.shape)} must have two halves along dim {dim}, got {size} elements")
    _check_bias(name, "bias", bias, x, size)
    shape = [*x.shape[:dim], size // 2 if gated else size, *x.shape[dim + 1 :]]
    settings = (ACTIVATIONS.index(kind), gated, bool(gate_first), dim)
    return _run(name, gates.op, (x, bias), settings, shape, out)


def _apply_pair(name: str, x: Sequence[Any], bias: Any, kind: str, dim: Any, out: Tensor | None) -> Tensor:
    if len(x) != 2:
        raise ValueError(f"{name}: x must be a tensor of packed halves or a pair (gate, value), got {len(x)} of them")
    gate = check_tensor(name, "the gate", x[0])
    value = check_tensor(name, "the value", x[1], gate)
    if gate.shape != value.shape:
        raise ValueError(f"{name}: the gate {tuple(gate.shape)} and the value {tuple(value.shape)} must have one shape")
    if gate.dtype != value.dtype:
        raise TypeError(f"{name}: the gate and the value must have one dtype, got {gate.dtype} and {value.dtype}")
    dim = _dimension(name, gate, dim)
    biases = (None, None) if bias is None else bias
    if not isinstance(biases, (tuple, list)) or len(biases) != 2 or (biases[0] is None) != (biases[1] is None):
        raise TypeError(f"{name}: bias must be a pair of tensors, as x is, or None; got {_described(bias)}")
    for label, b in zip(("the gate's bias", "the value's bias"), biases, strict=True):
        _check_bias(name, label, b, gate, gate.shape[dim])
    tensors = (gate, value, *biases)
    return _run(name, pair_gates.op, tensors, (ACTIVATIONS.index(kind), dim), list(gate.shape), out)


def _described(bias: Any) -> str:
    kind = type(bias).__name__
    return f"{kind} of {', '.join(type(b).__name__ for b in bias)}" if isinstance(bias, (tuple, list)) else kind


def _kind(name: str, approximate: Any) -> str:
    if approximate not in _GELU:
        raise ValueError(f"{name}: approximate must be 'tanh' or 'none', got {approximate!r}")
    return _GELU[approximate]


def swiglu(
    x: Halves,
    bias: Bias = None,
    *,
    gate_first: bool = True,
    dim: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    r"""silu(g) * u of the halves (g, u) of ``x + bias``.

    .. math:: y = u\, g\, \sigma(g)

    Args:
        x: (..., 2F, ...), any strides; float32, float64, bfloat16, float16. Or a pair (gate, value) of tensors of one
            shape (..., F, ...) and dtype, where two projections made them (LLaMA, timm's SwiGLU).
        bias: (2F,) added inside, the bias of the projection that made x; any of these dtypes. Of a pair: (F,) twice.
        gate_first: which half is the gate: the first (LLaMA, FiT, timm's SwiGLUPacked), or the second (diffusers).
            A pair has the gate first.
        dim: the dimension that holds the halves, or along which the biases of a pair run.
        out: a tensor to write into, (..., F, ...) in x's dtype; then no gradient is recorded.

    Returns:
        (..., F, ...) in x's dtype; arithmetic is float64 for float64, else float32, and rounded once.

    Differentiable in x and bias, any number of times; the gradient of the bias is a sum over that of x before it is
    rounded. ValueError: an odd number of channels, a bias, a pair or ``out`` that does not fit; TypeError: dtypes and
    devices.
    Source: Shazeer 2020 (arXiv 2002.05202).
    """
    return _apply("swiglu", x, bias, "silu", True, gate_first, dim, out)


def silu_gate(
    x: Halves,
    bias: Bias = None,
    *,
    gate_first: bool = False,
    dim: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    """`swiglu` with the gate in the second half, as Sana's gated convolutions (``dim=1``) and diffusers have it.

    Arguments, result, derivatives and errors are those of `swiglu`.
    """
    return _apply("silu_gate", x, bias, "silu", True, gate_first, dim, out)


def geglu(
    x: Halves,
    bias: Bias = None,
    *,
    approximate: str = "tanh",
    gate_first: bool = False,
    dim: int = -1,
    out: Tensor | None = None,
) -> Tensor:
    r"""gelu(g) * u of the halves of ``x + bias``, by default (u, g) as diffusers packs them, or of a pair (g, u).

    ``approximate="tanh"``: :math:`\tfrac12 g (1 + \tanh(\sqrt{2/\pi}(g + 0.044715 g^3)))`; ``"none"``:
    :math:`g\,\Phi(g)`, the exact form. The other arguments, result and errors are those of `swiglu`.
    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415); Shazeer 2020 (2002.05202).
    """
    return _apply("geglu", x, bias, _kind("geglu", approximate), True, gate_first, dim, out)


def gelu_tanh(
    x: Tensor, bias: Tensor | None = None, *, approximate: str = "tanh", dim: int = -1, out: Tensor | None = None
) -> Tensor:
    """gelu(x + bias), by tanh or, with ``approximate="none"``, exactly; formulas as in `geglu`.

    x (..., F, ...), bias (F,) along ``dim``; the result has x's shape and dtype. Dtypes, derivatives and errors are
    those of `swiglu`.
    """
    return _apply("gelu_tanh", x, bias, _kind("gelu_tanh", approximate), False, False, dim, out)


def mp_silu(x: Tensor, *, out: Tensor | None = None) -> Tensor:
    """silu(x) / 0.596, which keeps the magnitude of a unit normal x (Karras et al. 2024, arXiv 2312.02696, eq. 81)."""
    check_tensor("mp_silu", "x", x)
    flat = x if x.dim() else x[None]
    y = _apply("mp_silu", flat, None, "mp_silu", False, False, -1, out)
    return y if x.dim() or out is not None else y[0]
