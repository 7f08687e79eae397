"""The arguments of the von Mises-Fisher functions: dimensions, rows and concentrations checked against each other."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from ._elementwise import FLOATS, check_dense, promote


def check_dim(dim: Any) -> int:
    """``dim`` as an int, the dimension of the space around a sphere."""
    try:
        value = operator.index(dim)
    except TypeError:
        raise TypeError(f"dim must be an int, got {type(dim).__name__}") from None
    if not 2 <= value <= 2**31:
        raise ValueError(f"dim must be at least 2 (and at most 2^31), got {value}")
    return value


def check_rows(function: str, vectors: dict[str, Any], scalars: dict[str, Any]) -> tuple[Tensor, ...]:
    """Check (..., d) and (...) arguments against each other; one dtype and device, shapes that broadcast."""
    first = next(iter(vectors))
    for name, t in vectors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor, got {type(t).__name__}")
        check_dense(function, name, t)
        if not t.dim():
            raise ValueError(f"{function}: {name} must have shape (..., d), got a 0-dimensional tensor")
        if t.dtype not in FLOATS:
            raise TypeError(f"{function}: {name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.shape[-1] != vectors[first].shape[-1]:
            raise ValueError(
                f"{function}: {first} {tuple(vectors[first].shape)} and {name} {tuple(t.shape)} "
                "must agree in their last dimension"
            )
    dtype = vectors[first].dtype
    for t in vectors.values():
        dtype = torch.promote_types(dtype, t.dtype)
    device = vectors[first].device
    out = []
    for name, value in {**vectors, **scalars}.items():
        if not isinstance(value, Tensor):
            (value, _) = promote(function, (name, first), (value, torch.empty(1, dtype=dtype, device=device)), dtype)
        check_dense(function, name, value)
        if value.is_complex():
            raise TypeError(f"{function}: {name} must be real, got {value.dtype}")
        if value.device != device:
            raise TypeError(f"{function}: {name} is on {value.device}, {first} on {device}; one device expected")
        out.append(value.to(dtype))
    try:
        torch.broadcast_shapes(*(t.shape[:-1] for t in out[: len(vectors)]), *(t.shape for t in out[len(vectors) :]))
    except RuntimeError:
        seen = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip({**vectors, **scalars}, out, strict=True))
        raise ValueError(f"{function}: the batch dimensions do not broadcast: {seen}") from None
    return tuple(out)
