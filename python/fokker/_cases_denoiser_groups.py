"""The rows of group norms in the table of ops (`fokker.cases` hands in its `Case`, `add` and HALF)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._denoiser_groups import bias_free_norm, group_norm_silu

_GROUPS = 3
_CHANNELS = 12


def _arguments(size: int, dtype: torch.dtype, g: torch.Generator, last: bool = False) -> Any:
    """x (B, 12, 5, 7) with groups of means from -30 to 30, the parameters, a residual; 35 positions: no vector's."""
    batch = max(1, size // (_CHANNELS * 35))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    means = torch.tensor([-30.0, 0.0, 30.0], dtype=torch.float64).repeat_interleave(_CHANNELS // _GROUPS)
    x = normal(batch, _CHANNELS, 5, 7) + means[:, None, None]
    r = normal(batch, _CHANNELS, 5, 7)
    if last:
        x, r = (t.contiguous(memory_format=torch.channels_last) for t in (x, r))
    w, b = 1 + 0.3 * normal(_CHANNELS), 0.3 * normal(_CHANNELS)
    film = 0.3 * normal(batch, 2 * _CHANNELS)
    x, w, b, film, r = (t.to(dtype) for t in (x, w, b, film, r))
    return x, w, b, *film.chunk(2, 1), r


def _gentle(take: tuple[int, ...], last: bool = False) -> Callable[[torch.Generator], Any]:
    def make(g: torch.Generator) -> Any:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        x, r = normal(2, 4, 2, 1), normal(2, 4, 2, 1)
        if last:
            x, r = (t.contiguous(memory_format=torch.channels_last) for t in (x, r))
        full = (x, 1 + 0.3 * normal(4), normal(4), 0.3 * normal(2, 4), normal(2, 4), r)
        return tuple(full[i] for i in take)

    return make


def _groups(x: Tensor) -> int:
    return _GROUPS if x.shape[1] == _CHANNELS else 2


def _norm(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return group_norm_silu(x, _groups(x), w, b, scale, shift)


def _norm_sum(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor, residual: Tensor) -> Tensor:
    return torch.stack(group_norm_silu(x, _groups(x), w, b, scale, shift, residual=residual), 1)


def _bias_free(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
    return bias_free_norm(x, _groups(x), w, scale)


def _bias_free_std(x: Tensor, w: Tensor) -> Tensor:
    std = torch.linspace(0.5, 2.0, _groups(x), dtype=x.dtype, device=x.device)
    return bias_free_norm(x, _groups(x), w, std=std, activation="relu")


def add_rows(case: Callable[..., Any], add: Callable[[Any], None], half: Mapping[torch.dtype, float]) -> None:
    """Enter the rows."""
    # A normalised number of order one times weights; in halves the result is rounded, once. The rounding of a sum of
    # about 30 goes through the norm: half an ulp is 1e-6, and halves have a test of their own.
    narrow = {torch.float64: 1e-13, torch.float32: 1e-6}
    of_sum = {torch.float64: 1e-13, torch.float32: 4e-6}
    both = {**narrow, **{k: 1.001 * v for k, v in half.items()}}
    rows = {
        # name: (call, arguments used, channels_last, tolerance, operations)
        "denoiser_group_norm": (_norm, (0, 1, 2, 3, 4), False, both, 25.0),
        "denoiser_group_norm_last": (_norm, (0, 1, 2, 3, 4), True, both, 25.0),
        "denoiser_group_norm_sum": (_norm_sum, (0, 1, 2, 3, 4, 5), False, of_sum, 26.0),
        "denoiser_bias_free": (_bias_free, (0, 1, 3), False, both, 8.0),
        "denoiser_bias_free_std": (_bias_free_std, (0, 1), True, both, 3.0),
    }
    for name, (call, take, last, tolerance, flops) in rows.items():

        def make(
            size: int, dtype: torch.dtype, g: torch.Generator, take: tuple[int, ...] = take, last: bool = last
        ) -> Any:
            full = _arguments(size, dtype, g, last)
            return tuple(full[i] for i in take)

        add(
            case(
                name=name,
                call=call,
                make=make,
                tolerance=tolerance,
                gentle=_gentle(take, last),
                gradients=tuple(range(len(take))),
                elementwise=False,
                flops=flops,
                # the emulator is slow, and tests/test_denoiser_groups.py holds all of them on it
                backends=("reference", "cpu", "cuda", "triton", *(("emu",) if take == (0, 1, 2, 3, 4) else ())),
            )
        )
