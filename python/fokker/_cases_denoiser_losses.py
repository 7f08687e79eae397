"""The rows of the losses of `fokker.denoiser` in the table of ops (`fokker.cases` hands in its `Case`, `add`, HALF)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ._denoiser_losses import denoising_score_matching, multiplicative_score_matching
from ._denoiser_losses_distill import score_difference


def _batch(vectors: int, numbers: int, *shape: int) -> Callable[[int, torch.dtype, torch.Generator], Any]:
    """``vectors`` normal tensors (size, *shape), then positive numbers a sample."""

    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        found = [torch.randn(size, *shape, generator=g, dtype=torch.float64) for _ in range(vectors)]
        found += [torch.rand(size, generator=g, dtype=torch.float64) + 0.2 for _ in range(numbers)]
        return tuple(t.to(dtype) for t in found)

    return make


def _positive(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
    s, x, data, variance = _batch(3, 1, 3, 8)(size, torch.float64, g)
    return tuple(t.to(dtype) for t in (s, x.exp(), data.exp(), variance))


def _velocity(prediction: Tensor, data: Tensor, noise: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
    found = denoising_score_matching(
        prediction, sigma, 0.8, data=data, noise=noise, kind="v", weighting="vp", weight=weight, reduction="none"
    )
    return found.to(prediction.dtype)


def _multiplicative(s: Tensor, x: Tensor, data: Tensor, variance: Tensor) -> Tensor:
    return multiplicative_score_matching(s, x, data, 0.1, variance, reduction="none").to(s.dtype)


def _identity(y: Tensor, teacher: Tensor, fake: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    found = score_difference(y, teacher, fake, kind="sid", weight=weight, scale=scale, reduction="none")
    return found.to(y.dtype)


def _matching(y: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    return score_difference(y, teacher, fake, reduction="none").to(y.dtype)


def add_rows(case: Callable[..., Any], add: Callable[[Any], None], half: Mapping[torch.dtype, float]) -> None:
    """Enter the rows."""
    # computed in float64 and rounded once
    common = {
        "tolerance": {torch.float64: 1e-12, torch.float32: 2e-7, **half},
        "elementwise": False,
    }
    rows: dict[str, tuple[Callable[..., Tensor], Any, tuple[int, ...], float]] = {
        # name: (call, arguments, differentiable ones, operations a result)
        "denoising_score_matching": (_velocity, _batch(3, 2, 3, 8), (0, 1, 2, 3), 24 * 7.0),
        "multiplicative_score_matching": (_multiplicative, _positive, (0, 1, 2, 3), 24 * 40.0),
        "score_difference_sid": (_identity, _batch(3, 2, 3, 8), (0, 1, 2, 3), 24 * 12.0),
        # whose weight and target carry no gradient: finite differences would see them
        "score_difference_vsd": (_matching, _batch(3, 0, 2, 17), (), 34 * 18.0),
    }
    for name, (call, make, gradients, flops) in rows.items():

        def gentle(g: torch.Generator, make: Any = make) -> Any:
            return tuple(t[:, 0, :2] if t.dim() > 1 else t for t in make(2, torch.float64, g))

        add(case(name=name, call=call, make=make, gentle=gentle, gradients=gradients, flops=flops, **common))
