"""Example of `fokker.systems.gbm_diffusion`: digits shifted to [1, 2], under multiplicative noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import sde
from ..systems import gbm_diffusion
from .systems_data import digits, rows
from .systems_fit import fit, network


class _Network(torch.nn.Module):
    """h = (log X_k - D - ..) / (k sigma^2) of a prediction D of log X_0, so that it is of the right size at every k."""

    def __init__(self, process: sde.GeometricBrownian, width: int = 256) -> None:
        super().__init__()
        self.mu, self.v = process.mu, process.volatility**2
        self.first, self.time = torch.nn.Linear(64, width), torch.nn.Linear(3, width)
        self.body = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))
        self.last = torch.nn.Linear(width, 64)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        k = k[:, None]
        logs = torch.log(x)
        h = self.first(logs / torch.sqrt(0.1 + self.v * k)) + self.time(torch.cat([k, k.sqrt(), torch.log(k) / 4], 1))
        for layer in self.body:
            h = h + layer(torch.nn.functional.silu(h))
        clean = self.last(torch.nn.functional.silu(h))
        return -(logs - clean - self.mu * k + 1.5 * self.v * k) / (k * self.v)


def example(out: Path, seed: int = 0, steps: int = 1500) -> dict[str, Any]:
    """A network fitted by `gbm_diffusion.loss`; samples by DLS, on logarithms, by UMS, and by the exact h."""
    data = 1 + (digits(seed)[0] + 1) / 2
    process, generator = sde.GeometricBrownian(t_min=2e-3), torch.Generator().manual_seed(seed)
    net = network(seed, lambda: _Network(process))

    def loss(k: int) -> Tensor:
        batch = data[torch.randint(len(data), (256,), generator=generator)]
        times = process.t_min + (1 - process.t_min) * torch.rand(256, generator=generator).square()
        # weighed by 1 / (k sigma^2), or little is learned where k is small
        return (gbm_diffusion.loss(net, batch, process, times=times, seed=seed, step=k) / times).mean()

    fit(net, loss, steps, 1e-3, "digits")
    between = float(torch.cdist(data, data).fill_diagonal_(math.inf).amin(1).median())
    lines = {"data": data}
    options: dict[str, Any] = {"moments": gbm_diffusion.log_moments(data), "seed": seed}
    options["times"] = torch.linspace(1, process.t_min**0.5, 201).square()
    for method in gbm_diffusion.METHODS:
        x = gbm_diffusion.sample(net, process, (64, 64), method=method, **options)
        gap = float(torch.cdist(x, data).amin(1).median())
        print(
            f"{method}: in [{float(x.min()):.2f}, {float(x.max()):.2f}], median distance to the nearest digit {gap:.2f}"
        )
        lines[f"{method}, network"] = x
    x = gbm_diffusion.sample(gbm_diffusion.empirical(data, process, bandwidth=0.03), process, (64, 64), **options)
    lines["dls, exact h"] = x
    print(f"median distance of a digit to the next one: {between:.2f}")
    images = [(name, 2 * x - 3) for name, x in lines.items()]
    return {"pictures": [rows(out / "gbm_diffusion.png", images, "digits in [1, 2] from log-normal noise")]}
