"""The rows of `fokker.random` in the table of ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import random
from ._case import HALF, Arguments, Case, add

_EXACT = 1e-30  # the same bits
#: metric, float64 and float32 bounds; a half may be rounded the other way, once
_RANDOM = {
    "bits": ("mixed", _EXACT, None),
    "uniform": ("mixed", _EXACT, _EXACT),
    "normal": ("mixed", 5e-15, 1e-6),
    "gumbel": ("mixed", 2e-15, 1e-6),
    "exponential": ("relative", 2e-15, 4e-7),
    "rademacher": ("mixed", _EXACT, _EXACT),
}


def _random_ids(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
    return torch.randperm(max(1, size // 64), generator=generator) + 2**33, dtype


def _random_case(name: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    def call(ids: Tensor, dtype: torch.dtype) -> Tensor:
        place = {"seed": 20260101, "step": 3, "stream": 9, "sample_ids": ids, "device": ids.device}
        if name == "bits":
            return random.bits(len(ids), 64, **place).to(dtype)
        return getattr(random, name)(len(ids), 64, dtype=dtype, **place)

    return call


for _name, (_metric, _wide, _single) in _RANDOM.items():
    _tolerance = {torch.float64: _wide}
    if _single is not None:
        _halves = {k: _EXACT if _single == _EXACT else 2 * v for k, v in HALF.items()}
        _tolerance |= {torch.float32: _single, **_halves}
    add(
        Case(
            name=f"random_{_name}",
            call=_random_case(_name),
            make=_random_ids,
            tolerance=_tolerance,
            metric=_metric,
            same_dtype=True,
            elementwise=False,
            flops=60.0 if _name == "normal" else 30.0,
        )
    )


def _increments(ids: Tensor, dtype: torch.dtype) -> Tensor:
    t = ((ids - ids.min()).double() + 0.5) / (len(ids) + 1)
    return random.brownian(
        len(ids), 64, t, 1.0, seed=20260101, stream=3, sample_ids=ids, dtype=dtype, device=ids.device
    )


add(
    Case(
        name="random_brownian",
        call=_increments,
        make=_random_ids,
        tolerance={torch.float64: 1e-14, torch.float32: 2e-6, **{k: 2 * v for k, v in HALF.items()}},
        same_dtype=True,
        elementwise=False,
        flops=2400.0,
    )
)
