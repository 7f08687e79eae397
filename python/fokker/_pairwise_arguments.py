"""The arguments of pairwise measures: point clouds and weights, checked and brought into batched form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _backend
from ._kde_arguments import _tensor as tensor
from ._kde_arguments import others
from ._op import _dispatch_depth, _forward_ad, _functorch_level, _is_compiling

HALVES = (torch.float16, torch.bfloat16)


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is at work, which take the reference."""
    return bool(_functorch_level()) or _forward_ad._current_level >= 0


def takes_reference() -> bool:
    """Whether the call is the reference's: chosen as backend, or under a transform."""
    return _backend.current == "reference" or (not _is_compiling() and transformed())


def readable(t: Tensor) -> bool:
    """Whether values can be looked at without holding up a device or breaking a trace."""
    return not (_is_compiling() or _functorch_level() or _dispatch_depth()) and type(t) is Tensor and t.is_cpu


def choice(function: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """A ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{function}: {name} must be one of {', '.join(allowed)}, got {value!r}")


def positive(function: str, name: str, value: Any) -> float:
    """A positive finite number, or a ValueError."""
    number = float(value.detach() if isinstance(value, Tensor) else value)
    if not 0 < number < math.inf:
        raise ValueError(f"{function}: {name} must be a positive number, got {value}")
    return number


def compute_dtype(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the results, dtype computed in)."""
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype, torch.float32 if dtype in HALVES else dtype


@dataclass(frozen=True)
class Clouds:
    """Clouds (B, N_k, d) with weights (B, N_k) that sum to one (float64; None where uniform), and their first form."""

    points: tuple[Tensor, ...]
    weights: tuple[Tensor | None, ...]
    batch: torch.Size
    dtype: torch.dtype
    numpy: bool

    def mass(self, k: int) -> Tensor:
        """The weights of cloud k, uniform ones spelt out."""
        w = self.weights[k]
        if w is not None:
            return w
        x = self.points[k]
        return torch.full(x.shape[:2], 1.0 / x.shape[1], dtype=torch.float64, device=x.device)

    def restore(self, value: Tensor) -> Any:
        """A result (B, ...) in the batch shape and dtype of the call, as NumPy where that came in."""
        return give(value.to(self.dtype).reshape((*self.batch, *value.shape[1:])), self.numpy)


def give(value: Tensor, numpy: bool) -> Any:
    """A result, as NumPy where that came in."""
    return value.detach().cpu().numpy()[()] if numpy else value


def clouds(function: str, points: dict[str, Any], weights: dict[str, Any] | None = None, least: int = 1) -> Clouds:
    """Point clouds of the same d, by argument name, and their weights by name in the same order."""
    weights = weights or dict.fromkeys(f"{name}_weights" for name in points)
    numpy = not any(isinstance(p, Tensor) for p in points.values())
    found: list[Tensor] = []
    for name, value in points.items():
        t = tensor(function, name, value, found[0].device if found else None)
        if t.dim() < 2 or t.shape[-1] < 1:
            raise ValueError(f"{function}: {name} must have shape (..., N, d) with d >= 1, got {tuple(t.shape)}")
        if t.shape[-2] < least:
            raise ValueError(f"{function}: {name} must hold at least {least} point(s), got shape {tuple(t.shape)}")
        if found and t.shape[-1] != found[0].shape[-1]:
            raise ValueError(
                f"{function}: {' and '.join(f'{n} {tuple(torch.as_tensor(p).shape)}' for n, p in points.items())} "
                "must agree in their last dimension"
            )
        found.append(t)
    try:
        batch = torch.broadcast_shapes(*(t.shape[:-2] for t in found))
    except RuntimeError:
        raise ValueError(
            f"{function}: the batches of {' and '.join(points)} do not broadcast together: "
            f"{', '.join(str(tuple(t.shape)) for t in found)}"
        ) from None
    dtype, compute = compute_dtype(*found)
    count = math.prod(batch)
    flat = [t.to(compute).expand(*batch, *t.shape[-2:]).reshape(count, *t.shape[-2:]) for t in found]
    mass = [
        None if w is None else simplex(function, name, w, (*batch, t.shape[1]), t.device).reshape(count, t.shape[1])
        for (name, w), t in zip(weights.items(), flat, strict=True)
    ]
    return Clouds(tuple(flat), tuple(mass), batch, dtype, numpy)


def simplex(function: str, name: str, value: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Weights of the given shape, not negative, scaled to sum to one along the last dimension; float64."""
    w = tensor(function, name, value, device).double()
    try:
        if w.dim() < 1 or w.shape[-1] != shape[-1]:
            raise RuntimeError
        w = w.expand(shape)
    except RuntimeError:
        raise ValueError(f"{function}: {name} must have shape {tuple(shape)}, got {tuple(w.shape)}") from None
    if readable(w):
        if bool((w < 0).any()):
            raise ValueError(f"{function}: {name} must not be negative, got {float(w.detach().min())}")
        if w.numel() and bool((w.sum(-1) == 0).any()):
            raise ValueError(f"{function}: {name} must not all be zero")
    return w / w.sum(-1, keepdim=True)


def distinct(weights: Tensor | None, n: int) -> Tensor | float:
    """1 - sum of w^2, the weight of the pairs i != j: (B,), or 1 - 1 / n."""
    return (n - 1) / n if weights is None else (weights * others(weights)).sum(-1)
