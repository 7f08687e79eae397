"""Modulated norms and gated residuals, the seams of diffusion transformer blocks, as public functions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_norms_ops as ops
from ._elementwise import FLOATS, check_dense
from ._op import _PLAIN, Op, _dispatch_depth, _functorch_level, _is_compiling

__all__ = ["gate_residual", "layer_norm_modulate", "residual_gate_norm_modulate", "rms_norm_modulate"]

#: a tensor (C,), (B, C) or (B, ..., C); or (table (C,), time part)
Modulation = Tensor | Sequence[Tensor] | None


def layer_norm_modulate(
    x: Tensor,
    shift: Modulation = None,
    scale: Modulation = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""Layer norm and modulation in one pass (adaLN).

    .. math:: y = \left(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} w + b\right) (1 + \text{scale}) + \text{shift}

    with mean and variance over the last dimension.

    Args:
        x: (B, ..., C); float32, float64, bfloat16 or float16, of any strides (rows whose middle dimensions are no
            view of one are copied first).
        shift, scale: None; (C,) for all samples; (B, C) for each; (B, ..., C), whose dimensions but the last may be 1,
            for each token; or a pair (table (C,), time part), which are added inside. Any of these dtypes, also
            another than x's; of any strides (chunks of one projection are not copied).
        weight, bias: (C,).
        eps: positive.
        out: a tensor of x's shape and device and any of these dtypes to write into; may be x itself.

    Returns:
        y, contiguous, in x's dtype. Arithmetic is float64 for a float64 x, else float32, and rounded once. Statistics
        are of deviations from the mean, and do not cancel. The same bits at any thread count and split of the batch.

    Differentiable in all tensors any number of times (not with ``out``); nothing is kept for it but the arguments.
    ValueError names a wrong shape or value, TypeError a wrong type, dtype or device. Empty tensors give empty results.
    Source: adaptive layer norm of Peebles and Xie 2023 (arXiv 2212.09748, section 3.2).
    """
    return _one(ops.norm_modulate, 1, x, None, None, shift, scale, weight, bias, eps, out)


def rms_norm_modulate(
    x: Tensor,
    shift: Modulation = None,
    scale: Modulation = None,
    weight: Tensor | None = None,
    eps: float = 1e-6,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""RMS norm and modulation in one pass.

    .. math:: y = \frac{x}{\sqrt{\overline{x^2} + \epsilon}} w (1 + \text{scale}) + \text{shift}

    Arguments, results, gradients and errors as in `layer_norm_modulate`. Source: Zhang and Sennrich 2019 (arXiv
    1910.07467).
    """
    return _one(ops.norm_modulate, 2, x, None, None, shift, scale, weight, None, eps, out)


def residual_gate_norm_modulate(
    x: Tensor,
    branch: Tensor,
    gate: Modulation,
    shift: Modulation,
    scale: Modulation,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
    *,
    norm: str = "layer",
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The seam between two halves of a transformer block: gated residual, norm and modulation from one read.

    .. math:: x' = x + \text{gate} \cdot \text{branch}, \qquad
        y = (\text{norm}(x') w + b) (1 + \text{scale}) + \text{shift}

    Args:
        x, branch: (B, ..., C), of any strides and float dtypes.
        gate: as shift and scale in `layer_norm_modulate`; None adds the branch as it is.
        shift, scale, weight, bias, eps: as in `layer_norm_modulate`.
        norm: "layer" or "rms".
        out: two tensors to write x' and y into; each may be x or branch itself.

    Returns:
        x' and y, contiguous, in x's dtype; y is of x' before that is rounded.

    Gradients and errors as in `layer_norm_modulate`. Source: the adaLN-Zero block of Peebles and Xie 2023 (arXiv
    2212.09748, figure 3).
    """
    if norm not in ("layer", "rms"):
        raise ValueError(f"norm must be 'layer' or 'rms', got {norm!r}")
    slots, shape = _slots(x, branch, gate, shift, scale, weight, bias)
    args = (*slots, _positive(eps), ops.NORMS.index(norm))
    if out is None:
        summed, y = ops.gate_norm_modulate(*args)
        return _shaped(summed, shape), _shaped(y, shape)
    if isinstance(out, Tensor) or len(out) != 2:
        raise ValueError(f"out must be 2 tensors, x' and y, got {'one' if isinstance(out, Tensor) else len(out)}")
    _into(ops.gate_norm_modulate, tuple(out), args, shape)
    return out[0], out[1]


def gate_residual(x: Tensor, branch: Tensor, gate: Modulation, *, out: Tensor | None = None) -> Tensor:
    r"""A gated residual in one pass.

    .. math:: x' = x + \text{gate} \cdot \text{branch}

    Arguments, results, gradients and errors as in `residual_gate_norm_modulate`.
    """
    return _one(ops.gate_residual, 0, x, branch, gate, None, None, None, None, 1.0, out)


def _one(op: Op, norm: int, x: Any, branch: Any, gate: Any, shift: Any, scale: Any, weight: Any, bias: Any, eps: Any,
         out: Any) -> Tensor:  # fmt: skip
    slots, shape = _slots(x, branch, gate, shift, scale, weight, bias, gated=norm == 0)
    args = (*slots, _positive(eps), norm)
    if out is None:
        return _shaped(op(*args), shape)
    _into(op, (out,), args, shape)
    return out


def _shaped(t: Tensor, shape: Sequence[int]) -> Tensor:
    """A reshape to the same shape would be a view, for autograd too."""
    return t if t.shape == shape else t.reshape(shape)


# ---- arguments ------------------------------------------------------------------------------------------------------
def _positive(eps: Any) -> float:
    if isinstance(eps, bool) or not isinstance(eps, numbers.Real):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    return float(eps)


def _check(t: Any, name: str, x: Tensor | None = None) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} must have dtype float32, float64, float16 or bfloat16, got {t.dtype}")
    check_dense("norm", name, t)
    if x is not None and t.device != x.device:
        raise TypeError(f"{name} is on {t.device}, x on {x.device}: one device expected")


def _slots(
    x: Any, branch: Any, gate: Any, shift: Any, scale: Any, weight: Any, bias: Any, gated: bool = True
) -> tuple[tuple[Tensor | None, ...], torch.Size]:
    """The ten tensors of the ops, x as (B, N, C), and the shape of the results."""
    _check(x, "x")
    shape = x.shape
    if len(shape) < 2:
        raise ValueError(f"x must have shape (B, ..., C), got {tuple(shape)}")
    rows = (shape[0], math.prod(shape[1:-1]), shape[-1])
    if branch is not None or gate is not None:
        _check(branch, "branch", x)
        if branch.shape != shape:
            raise ValueError(f"branch {tuple(branch.shape)} must have the shape of x {tuple(shape)}")
        branch = _shaped(branch, rows)
    elif gated:
        _check(branch, "branch", x)
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None:
            _check(t, name, x)
            if t.shape != shape[-1:]:
                raise ValueError(f"{name} {tuple(t.shape)} must have shape ({shape[-1]},), x is {tuple(shape)}")
    modulations = (
        *_modulation(gate, "gate", x, rows),
        *_modulation(shift, "shift", x, rows),
        *_modulation(scale, "scale", x, rows),
    )
    return (_shaped(x, rows), branch, *modulations, weight, bias), shape


def _modulation(m: Any, name: str, x: Tensor, rows: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
    """A modulation as (1 or B, 1 or N, C), and the table to be added to it."""
    if m is None:
        return None, None
    table = None
    if isinstance(m, (tuple, list)):
        if len(m) != 2:
            raise ValueError(f"{name} must be a tensor or a pair (table, time part), got {len(m)} of them")
        table, m = m
        _check(table, f"{name}[0] (the table)", x)
        if table.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}[0] (the table) {tuple(table.shape)} must have shape ({rows[2]},), x is {tuple(x.shape)}"
            )
    _check(m, name, x)
    shape, full = m.shape, x.shape
    if m.dim() == 1 and shape[0] == rows[2]:
        return m.reshape(1, 1, rows[2]), table
    if m.dim() == 2 and shape[1] == rows[2] and shape[0] in (1, rows[0]):
        return m.reshape(shape[0], 1, rows[2]), table
    if m.dim() == len(full) and shape[-1] == rows[2] and all(a in (1, n) for a, n in zip(shape, full, strict=True)):
        middle = shape[1:-1]
        if all(a == 1 for a in middle):
            return m.reshape(shape[0], 1, rows[2]), table
        return m.expand(shape[0], *full[1:]).reshape(shape[0], *rows[1:]), table
    raise ValueError(
        f"{name} {tuple(shape)} must be ({rows[2]},), ({rows[0]}, {rows[2]}) or broadcast to x {tuple(full)}"
    )


# ---- out= -----------------------------------------------------------------------------------------------------------
def _into(op: Op, outs: tuple[Any, ...], args: tuple[Any, ...], shape: torch.Size) -> None:
    x = args[0]
    for t in outs:
        _check(t, "out", x)
        if t.shape != shape:
            raise ValueError(f"out {tuple(t.shape)} must have the shape of x {tuple(shape)}")
    tensors = [t for t in args[: op.tensors] if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *outs)):
        raise ValueError("out= records no gradient: leave it out, detach the arguments, or use torch.no_grad()")
    plain = not (_is_compiling() or _dispatch_depth() or _functorch_level())
    if plain and all(type(t) in _PLAIN and not t.is_neg() for t in (*tensors, *outs)):
        kernel = op._by_device[x.is_cuda]
        views = [t.view(x.shape) if t.is_contiguous() else None for t in outs]
        if getattr(kernel, "writes_out", False) and _writable(views, args, op.tensors):
            kernel(*args, out=views)
            for t in outs:
                torch.autograd.graph.increment_version(t)
            return
    found = op(*args)
    for t, y in zip(outs, found if isinstance(found, tuple) else (found,), strict=True):
        t.copy_(y.reshape(shape))


def _writable(views: list[Tensor | None], args: tuple[Any, ...], count: int) -> bool:
    """Whether the kernel may write there: memory of its own, or exactly x's or the branch's (read row by row)."""
    for i, v in enumerate(views):
        if v is None:
            return False
        memory = v.untyped_storage().data_ptr()
        if any(w is not None and w.untyped_storage().data_ptr() == memory for w in views[:i]):
            return False
        for k, t in enumerate(args[:count]):
            if t is None or t.untyped_storage().data_ptr() != memory:
                continue
            same = t.data_ptr() == v.data_ptr() and t.stride() == v.stride() and t.dtype is v.dtype
            if k > 1 or not same:
                return False
    return True
