"""The rows of `fokker.sde`'s kernels in the table of ops (`fokker.cases` hands in its `Case`, `add` and HALF)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._sde_absorb import absorb_step
from ._sde_particles import gather, resample
from ._sde_step import affine_step, gram

_SEED = {"seed": 20260101, "step": 3, "stream": 1}
_WIDTH = 96


def _states(terms: int, columns: int, size: int, dtype: torch.dtype, g: torch.Generator, scale: float = 1.0) -> Any:
    """A state and its terms (B, 3, 32), and coefficients a sample in the arithmetic of the state."""
    batch = max(1, size // _WIDTH)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    vectors = [torch.randn(batch, 3, 32, generator=g, dtype=torch.float64).to(dtype) for _ in range(1 + terms)]
    return *vectors, (scale * torch.randn(batch, columns, generator=g, dtype=torch.float64)).to(wide)


def _gentle(terms: int, columns: int) -> Callable[[torch.Generator], Any]:
    def make(g: torch.Generator) -> Any:
        vectors = [torch.randn(2, 5, generator=g, dtype=torch.float64) for _ in range(1 + terms)]
        return *vectors, 0.5 * torch.randn(2, columns, generator=g, dtype=torch.float64)

    return make


def _step(**settings: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, *rest: Tensor) -> Tensor:
        *terms, table = rest
        y = affine_step(x, terms, table, **settings)
        return torch.stack(y) if isinstance(y, tuple) else y

    return call


def _pair(x: Tensor, m1: Tensor, m2: Tensor, table: Tensor) -> Tensor:
    return torch.stack(affine_step(x, [m1, m2], table.unflatten(1, (2, 3)), results=2), 1)


def _clipped(x: Tensor, m: Tensor, table: Tensor) -> Tensor:
    return affine_step(x, [m], table, clip=0.8, **_SEED)


def _gram(x: Tensor, m: Tensor) -> Tensor:
    return gram([x, m], **_SEED).to(x.dtype)


def _resampled(log_weights: Tensor) -> Tensor:
    found = resample(log_weights, "residual", seed=5, step=2)
    return gather(log_weights, found.ancestors)


def _absorbed(logits: Tensor, probability: Tensor) -> Tensor:
    batch, length, size = logits.shape
    tokens = torch.full((batch, length), size, dtype=torch.int64, device=logits.device)
    return absorb_step(tokens, logits, probability.float(), mask_id=size, seed=7, step=1).to(logits.dtype)


def add_rows(case: Callable[..., Any], add: Callable[[Any], None], half: Mapping[torch.dtype, float]) -> None:
    """Enter the rows."""
    halves = {k: 2 * v for k, v in half.items()}
    # a sum of a few terms of order one; a half may be rounded the other way, once
    common = {"tolerance": {torch.float64: 2e-14, torch.float32: 2e-6, **halves}, "elementwise": False}
    noisy = {"tolerance": {torch.float64: 2e-13, torch.float32: 4e-6, **halves}, "elementwise": False}
    rows = {
        # name: (call, terms, columns, noise, settings)
        "sde_affine": (_step(), 2, 3, False, {"flops": 5.0}),
        "sde_affine_noise": (_step(**_SEED), 2, 4, True, {"flops": 70.0}),
        "sde_affine_pair": (_pair, 2, 6, False, {"flops": 10.0}),
        "sde_affine_clip": (_clipped, 1, 5, True, {"flops": 74.0}),
        "sde_exponential": (_step(exponential=True, **_SEED), 1, 3, True, {"flops": 90.0}),
    }
    for name, (call, terms, columns, noise, settings) in rows.items():

        def make(size: int, dtype: torch.dtype, g: torch.Generator, k: int = terms, c: int = columns) -> Any:
            return _states(k, c, size, dtype, g, 0.5)

        add(
            case(
                name=name,
                call=call,
                make=make,
                gentle=_gentle(terms, columns),
                gradients=tuple(range(2 + terms)),
                same_dtype=noise,
                **(noisy if noise else common),
                **settings,
            )
        )
    add(
        case(
            name="sde_gram",
            call=_gram,
            make=lambda size, dtype, g: _states(1, 1, 64 * size, dtype, g)[:2],
            tolerance={torch.float64: 1e-12, torch.float32: 2e-6, **halves},
            metric="scaled",
            gentle=lambda g: _gentle(1, 1)(g)[:2],
            gradients=(0, 1),
            same_dtype=True,
            elementwise=False,
            flops=96 * 70.0,
        )
    )
    add(
        case(
            name="sde_resample",
            call=_resampled,
            make=lambda size, dtype, g: (
                (2 * torch.randn(max(1, size // 64), 64, generator=g, dtype=torch.float64)).to(dtype),
            ),
            tolerance={torch.float64: 1e-30, torch.float32: 1e-30},
            same_dtype=True,
            elementwise=False,
            flops=40.0,
        )
    )
    add(
        case(
            name="sde_absorb",
            call=_absorbed,
            make=lambda size, dtype, g: (
                torch.randn(max(1, size // 16), 16, 13, generator=g, dtype=torch.float64).to(dtype),
                torch.rand(max(1, size // 16), generator=g, dtype=torch.float64).to(dtype),
            ),
            tolerance={torch.float64: 1e-30, torch.float32: 1e-30},
            same_dtype=True,
            elementwise=False,
            flops=13 * 40.0,
        )
    )
