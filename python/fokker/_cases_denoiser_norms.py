"""The norm family of `fokker.denoiser` in the table of ops (`fokker.cases` hands in its `Case`, `add` and HALF)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._denoiser_norms import gate_residual, layer_norm_modulate, residual_gate_norm_modulate, rms_norm_modulate

_TOKENS, _WIDTH = 5, 37


def _arguments(*kinds: str) -> Callable[..., Any]:
    """x (B, N, C) and, by kind, tensors of its shape (t), one a sample (s) or one for all (c)."""

    def of(batch: int, tokens: int, width: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        shapes = {"t": (batch, tokens, width), "s": (batch, width), "c": (width,)}
        return tuple(torch.randn(shapes[k], generator=g, dtype=torch.float64).to(dtype) for k in ("t", *kinds))

    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        return of(max(1, size // (_TOKENS * _WIDTH)), _TOKENS, _WIDTH, dtype, g)

    make.gentle = lambda g: of(2, 2, 3, torch.float64, g)  # type: ignore[attr-defined]
    return make


def _per_token(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return rms_norm_modulate(x, shift, scale, weight, 1e-5)


def _table(x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
    return layer_norm_modulate(x, (table, shift), (bias, scale), weight, bias, 1e-5)


def _seam(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, table: Tensor) -> Tensor:
    return torch.stack(residual_gate_norm_modulate(x, branch, (table, gate), shift, scale))


def _seam_rms(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return torch.stack(residual_gate_norm_modulate(x, branch, gate, shift, scale, weight, norm="rms"))


def add_rows(case: Callable[..., Any], add: Callable[[Any], None], half: Mapping[torch.dtype, float]) -> None:
    """Enter the rows."""
    rows = {
        # name: (call, kinds of the tensors after x, operations of one result)
        "denoiser_layer_norm": (layer_norm_modulate, "ss", 10.0),
        "denoiser_layer_norm_table": (_table, "ssccc", 14.0),
        "denoiser_rms_norm": (_per_token, "ttc", 8.0),
        "denoiser_gate_norm": (_seam, "tsssc", 12.0),
        "denoiser_gate_norm_rms": (_seam_rms, "ttssc", 12.0),
        "denoiser_gate": (gate_residual, "ts", 2.0),
    }
    for name, (call, kinds, flops) in rows.items():
        make = _arguments(*kinds)
        # results of order one to ten; with tables the terms reach thirty and cancel. A half is rounded once
        single = 3e-6 if name.endswith("table") else 1e-6
        add(
            case(
                name=name,
                call=call,
                make=make,
                tolerance={torch.float64: 4e-15, torch.float32: single, **half},
                gentle=make.gentle,  # type: ignore[attr-defined]
                gradients=tuple(range(1 + len(kinds))),
                elementwise=False,
                flops=flops,
            )
        )
