"""Digits and photographs with exact scores, and rows of pictures, for the examples of `fokker.systems`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import mixture, sde
from .demo_plots import _pyplot

SIGMA = 0.15  #: of the Gaussians around the data, whose mixture has an exact score


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """scikit-learn's digits in [-1, 1], ``(1797, 64)`` float32, shuffled, and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.data), generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(found.data / 8.0 - 1.0).float()[order], torch.from_numpy(found.target)[order]


def around(data: Tensor, sigma: float = SIGMA) -> mixture.Mixture:
    """The mixture of N(datum, sigma^2 I)."""
    return mixture.Mixture(data, torch.tensor(sigma**2), None, "isotropic")


def score(law: mixture.Mixture, process: sde.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact score of a law at the one time of a batch, of samples of any shape."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        a, s = float(process.alpha(t[0])), float(process.sigma(t[0]))
        return mixture.score(x.flatten(1), law, alpha=a, sigma=s).reshape(x.shape)

    return model


def rows(path: Path, lines: Sequence[tuple[str, Tensor]], title: str, columns: int = 16) -> Path:
    """A line of images for each name: digits ``(N, 64)`` in grey, or ``(N, 3, H, W)`` in colour, values in [-1, 1]."""
    plt = _pyplot()
    figure, axes = plt.subplots(
        len(lines), 1, figsize=(0.62 * columns + 2.2, 0.72 * len(lines) + 0.5), layout="constrained", squeeze=False
    )
    for axis, (name, images) in zip(axes[:, 0], lines, strict=True):
        colour = images.dim() == 4
        tiles: Any = images[:columns].movedim(1, -1) if colour else images[:columns].reshape(-1, 8, 8, 1)
        n, h, w, c = tiles.shape
        strip = np.ones((h, (w + 1) * columns, c))
        for k in range(n):
            strip[:, (w + 1) * k : (w + 1) * k + w] = (tiles[k].clamp(-1, 1).numpy() + 1) / 2
            if not colour:
                strip[:, (w + 1) * k : (w + 1) * k + w] = 1 - strip[:, (w + 1) * k : (w + 1) * k + w]
        axis.imshow(strip if colour else strip[..., 0], cmap=None if colour else "gray", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
    return path
