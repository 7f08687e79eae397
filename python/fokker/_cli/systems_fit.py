"""The training loop of the examples of `fokker.systems`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .progress import progress

__all__ = ["fit", "network"]


def network(seed: int, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """``make()`` with weights of that seed, whatever torch's own generator holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def fit(net: torch.nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float, what: str) -> float:
    """Adam's steps on loss(step) at a rate that rises and falls (one cycle); the mean loss of the last tenth."""
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, steps)
    last = []
    for k in progress(range(steps), what):
        value = loss(k)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
        if k >= steps - max(1, steps // 10):
            last.append(float(value.detach()))
    net.eval()
    return sum(last) / len(last)
