"""Checks of the arguments of losses, numbers a sample as float64 tensors, and reductions over the batch."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ._elementwise import FLOATS
from ._op import _dispatch_depth, _functorch_level, _is_compiling

REDUCTIONS = ("mean", "sum", "none")


def check_batch(named: Mapping[str, Tensor]) -> Tensor:
    """The first of the tensors, which are all of its shape and device."""
    first: Tensor | None = None
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if t.dtype not in FLOATS:
            raise TypeError(f"{name} must have dtype float32, float64, float16 or bfloat16, got {t.dtype}")
        if t.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got layout {t.layout}")
        if first is None:
            first, of = t, name
            if not t.dim():
                raise ValueError(f"{name} must have shape (batch, ...), got a 0-dimensional tensor")
        elif t.shape != first.shape:
            raise ValueError(f"{name} {tuple(t.shape)} must have the shape of {of} {tuple(first.shape)}")
        elif t.device != first.device:
            raise TypeError(f"{name} is on {t.device}, {of} on {first.device}: one device expected")
    assert first is not None
    return first


def check_choice(value: Any, name: str, choices: Sequence[Any]) -> None:
    """``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def per_sample(value: Any, name: str, x: Tensor) -> Tensor:
    """A number, or one a sample, as a float64 tensor (1,) or (B,)."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor or a number, got {value.dtype}")
        if value.device != x.device:
            raise TypeError(f"{name} is on {value.device}, the batch on {x.device}: one device expected")
        batch = x.shape[0]
        if value.dim() == 0 or tuple(value.shape) == (batch,) + (1,) * (value.dim() - 1):
            return value.reshape(-1).double()
        raise ValueError(f"{name} must be a number or have shape ({batch},), got {tuple(value.shape)}")
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    return torch.full((1,), float(value), dtype=torch.float64, device=x.device)


_kept: dict[Any, Tensor] = {}


def constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """A table (1, R, K) that is made once a device, so that nothing is copied there at later calls."""
    if _is_compiling() or _dispatch_depth() or _functorch_level():
        return torch.tensor([rows], dtype=torch.float64, device=device)
    found = _kept.get((rows, device))
    if found is None:
        with torch.inference_mode(False):
            found = torch.tensor([rows], dtype=torch.float64, device=device)
        _kept[rows, device] = found
    return found


def rows_of(rows: Sequence[Sequence[Any]], x: Tensor) -> Tensor:
    """(1 or B, R, K) of numbers, and of float64 tensors (1 or B,) among them."""
    flat = [c for row in rows for c in row]
    if not any(isinstance(c, Tensor) for c in flat):
        return constant(tuple(tuple(row) for row in rows), x.device)
    made = torch.broadcast_tensors(*(c if isinstance(c, Tensor) else per_sample(c, "coefficients", x) for c in flat))
    return torch.stack(made, -1).unflatten(-1, (len(rows), len(rows[0])))


def elements(x: Tensor) -> int:
    """How many numbers a sample has."""
    return math.prod(x.shape[1:])


def reduced(values: Tensor, x: Tensor, reduction: str, like: Sequence[Tensor]) -> Tensor:
    """The means over samples (B,) reduced over the batch; float64 where any input is, else float32."""
    check_choice(reduction, "reduction", REDUCTIONS)
    if reduction == "mean":
        values = values.mean()
    elif reduction == "sum":
        values = values.sum() * elements(x)
    wide = any(t.dtype is torch.float64 for t in like)
    return values if wide else values.float()
