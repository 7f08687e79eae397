"""Example of `fokker.systems.interpolants`: the colours of one photograph carried to those of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pairwise import energy_distance
from ..systems import interpolants
from .demo_data import photographs
from .demo_plots import _pyplot as pyplot
from .systems_fit import fit, network


class _Network(torch.nn.Module):
    """(b, eta) of a state (B, 3) and times (B,)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layers = [torch.nn.Linear(6, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()]
        self.body = torch.nn.Sequential(
            *layers, torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, 6)
        )

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t[:, None]
        found = self.body(torch.cat([x, t, torch.cos(torch.pi * t), (t * (1 - t)).clamp(min=0).sqrt()], 1))
        return found[:, :3], found[:, 3:]


def example(out: Path, seed: int = 0, steps: int = 1000) -> dict[str, Any]:
    """Pixels of two photographs as laws in three dimensions; the map there and back, at three diffusions."""
    images = [torch.from_numpy(p) for p in photographs().values()]
    first, second = (2 * p.flatten(0, 1) - 1 for p in images)
    law = interpolants.interpolant("trigonometric", gamma="quadratic")
    generator, net = torch.Generator().manual_seed(seed), network(seed, _Network)

    def draw(data: Tensor, n: int) -> Tensor:
        return data[torch.randint(len(data), (n,), generator=generator)]

    fit(net, lambda k: interpolants.loss(net, draw(first, 1024), draw(second, 1024), law, seed=seed, step=k).mean(),
        steps, 3e-3, "colours")  # fmt: skip
    x0, x1 = draw(first, 2000), draw(second, 2000)
    print(f"energy distance of the photographs' colours: {energy_distance(x0, x1):.4f}; of two draws of one: "
          f"{energy_distance(x1, draw(second, 2000)):.4f}")  # fmt: skip
    small = images[0][::3, ::3]
    pixels, strip = 2 * small.reshape(-1, 3) - 1, [p[::3, ::3] for p in images]
    for epsilon in (0.0, 0.5, 2.0):
        there = interpolants.sample(net, law, x0, 40, seed, epsilon=epsilon)
        back = interpolants.sample(net, law, x1, 40, seed, epsilon=epsilon, backward=True)
        print(f"epsilon = {epsilon}: there {energy_distance(there, x1):.4f}, back {energy_distance(back, x0):.4f}")
        moved = interpolants.sample(net, law, pixels, 40, seed, epsilon=epsilon)
        strip.append(((moved + 1) / 2).clamp(0, 1).reshape(small.shape))
    path = out / "interpolants.png"
    pyplot().imsave(path, torch.cat(strip, 1).numpy())
    print("drawn: both photographs, and the first in the second's colours at each epsilon")
    return {"pictures": [path]}
