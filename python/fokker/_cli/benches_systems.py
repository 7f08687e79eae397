"""What a step of the published methods costs beside its model calls, against the same step in plain PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..systems import dmcmc
from .benches import Bench


def benches() -> Iterator[Bench]:
    """All of them: models return a tensor that is there."""
    yield _dmcmc((64, 3, 32, 32), 1000, 20)


def _dmcmc(shape: tuple[int, ...], count: int, steps: int) -> Bench:
    """Langevin and Gibbs steps over ``count`` noise levels, the state of least sigma kept of every ten."""
    sigmas, batch = dmcmc.levels(0.01, 50.0, count), shape[0]
    x0, score, logits = torch.randn(shape), torch.randn(shape), torch.randn(batch, count)
    first = sigmas[torch.arange(batch) * count // batch]
    ours = functools.partial(
        dmcmc.chain, lambda x, s: score, lambda x: logits, sigmas, shape, steps // 10, 0,
        skip=10, prediction="score", start=x0, sigma=first,
    )  # fmt: skip
    levels = sigmas.float()

    def plain() -> list[tuple[Tensor, Tensor]]:
        x, s, kept = x0, first.float(), []
        for _ in range(steps // 10):
            best, least = x, torch.full_like(s, math.inf)
            for _ in range(10):
                eta = (0.5 * s).square()[:, None, None, None]
                x = x + 0.5 * eta * score + eta.sqrt() * torch.randn_like(x)
                s = levels[torch.multinomial(torch.softmax(logits, 1), 1)[:, 0]]
                better = s < least
                best, least = torch.where(better[:, None, None, None], x, best), torch.where(better, s, least)
            kept.append((best, least))
        return kept

    return Bench(
        f"dmcmc, {steps} steps of {' x '.join(str(n) for n in shape)}, {count} levels",
        {"fokker": ours, "torch": plain},
        {"torch": 3.0},
        elements=steps * math.prod(shape),
        note="all but the model and the classifier",
    )
