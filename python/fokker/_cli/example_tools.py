"""What the examples of the systems share: a training loop, digits, rows of pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .progress import progress

__all__ = ["digits", "fit", "network", "pictures"]


def digits() -> Tensor:
    """scikit-learn's 1797 digits, ``(N, 64)`` in [0, 1], float32."""
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float().flatten(1) / 16


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


def pictures(path: Path, rows: dict[str, Sequence[Any]], size: float = 1.1, **show: Any) -> Path:
    """A picture with a row of images, ``size`` inches each, under each title, written to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    count = max(len(images) for images in rows.values())
    figure, axes = pyplot.subplots(len(rows), count, figsize=(size * count, (size + 0.25) * len(rows)), squeeze=False)
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, images, strict=False):
            axis.imshow(image, **{"cmap": "gray", **show})
        line[0].set_title(title, loc="left", fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path
