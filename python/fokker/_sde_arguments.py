"""Checks of the arguments of SDE steps, each error with the argument's name, what was wanted and what was seen."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._elementwise import FLOATS
from ._sde_ops import RESULTS, TERMS
from .random import _integer, _place, _within

#: what `noise_place` would say of a step without noise
NO_NOISE = (None, None, None, False, 0, 0, 0, 0, 0)


def check_tensors(x: Tensor, terms: Sequence[Tensor], first: str = "x", name: str = "terms") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{first} must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{first} must have dtype float32, float64, float16 or bfloat16, got {x.dtype}")
    if x.layout is not torch.strided:
        raise TypeError(f"{first} must be a dense (strided) tensor, got layout {x.layout}")
    shape, home = x.shape, x.device
    if not shape:
        raise ValueError(f"{first} must have shape (batch, ...), got a 0-dimensional tensor")
    if len(terms) > TERMS:
        raise ValueError(f"at most {TERMS} {name} are supported, got {len(terms)}")
    for i, t in enumerate(terms):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}[{i}] must be a tensor, got {type(t).__name__}")
        if t.shape != shape:
            raise ValueError(f"{name}[{i}] {tuple(t.shape)} must have the shape of {first} {tuple(shape)}")
        if t.dtype not in FLOATS:
            raise TypeError(f"{name}[{i}] must have dtype float32, float64, float16 or bfloat16, got {t.dtype}")
        if t.device != home:
            raise TypeError(f"{name}[{i}] is on {t.device}, {first} on {home}: one device expected")
        if t.layout is not torch.strided:
            raise TypeError(f"{name}[{i}] must be a dense (strided) tensor, got layout {t.layout}")


def check_coefficients(
    table: Tensor, x: Tensor, width: int, k: int, noisy: bool, clipped: bool, results: int, stepped: bool
) -> None:
    if not isinstance(table, Tensor):
        raise TypeError(f"coefficients must be a tensor, got {type(table).__name__}")
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    if table.dtype is not wide:
        raise TypeError(f"coefficients must have dtype {wide} for a state of {x.dtype}, got {table.dtype}")
    if table.device != x.device:
        raise TypeError(f"coefficients is on {table.device}, x on {x.device}: one device expected")
    if type(results) is not int or not 1 <= results <= RESULTS:
        raise ValueError(f"results must be 1, 2 or {RESULTS}, got {results}")
    shape = table.shape[1:] if stepped else table.shape
    inner = 1 if results == 1 else 2
    dims = len(shape)
    if (
        table.dim() > stepped
        and dims in (inner, inner + 1)
        and shape[-1] == width
        and (results == 1 or shape[-2] == results)
        and (dims == inner or shape[0] == x.shape[0])
    ):
        return
    columns = ["a", *(f"b_{i + 1}" for i in range(k)), *["c"] * noisy, *["p", "q"] * clipped]
    lead = "steps, " if stepped else ""
    rows = f"{results}, " if results > 1 else ""
    raise ValueError(
        f"coefficients must have shape ({lead}{rows}{width}) or ({lead}{x.shape[0]}, {rows}{width}) with the columns "
        f"[{', '.join(columns)}], got {tuple(table.shape)}"
    )


def noise_place(
    x: Tensor, seed: Any, step: Any, stream: Any, sample_ids: Any, element_offset: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool, int, int, int, int, int]:
    """(seed tensor, step tensor, ids, True, seed, step, stream, first id, element offset), each checked."""
    seed_tensor, step_tensor, ids, seed_value, step_value, first = _place(x.device, seed, step, sample_ids, x.shape[0])
    stream = _within(stream, "stream", 256, "256")
    offset = _integer(element_offset, "element_offset")
    power = 33 if x.dtype is torch.float64 else 34
    # the batch's elements bound a sample's: the exact count is only taken where it could matter
    if offset < 0 or offset + x.numel() > 2**power:
        n = math.prod(x.shape[1:])
        if offset < 0 or offset + n > 2**power:
            raise ValueError(
                f"element_offset {offset} and shape {tuple(x.shape[1:])} must stay within [0, 2^{power}) elements"
            )
    return seed_tensor, step_tensor, ids, True, seed_value, step_value, stream, first, offset


def clip_range(clip: Any, terms: int) -> float:
    if not isinstance(clip, numbers.Real) or isinstance(clip, bool):
        raise TypeError(f"clip must be a number, got {type(clip).__name__}")
    if terms == 0:
        raise ValueError("clip replaces the first term, but there is none")
    if not 0 <= clip < math.inf:
        raise ValueError(f"clip must be finite and not negative, got {clip}")
    return float(clip)
