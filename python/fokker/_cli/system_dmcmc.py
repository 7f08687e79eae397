"""Example of `fokker.systems.dmcmc`: digits by the chain and few steps, beside as many calls from noise and more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import kde, sde
from ..pairwise import energy_distance
from ..systems import dmcmc
from .systems_data import digits, rows


def example(out: Path, seed: int = 0) -> dict[str, Any]:
    """The smoothed digits' ideal denoiser and noise classifier are the networks; one call of each a chain step."""
    data, smooth = digits(seed)[0], 0.1
    sigmas = dmcmc.levels(0.3, 2.0, 16)  # where neighbouring digits run together, and where they part again
    widths = torch.sqrt(sigmas.square() + smooth**2).tolist()

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        level = torch.sqrt(sigma.square() + smooth**2)
        own = (smooth**2 / level.square())[:, None]
        return own * x + (1 - own) * kde.posterior_mean(x, data, level, precision="high")

    def classifier(x: Tensor) -> Tensor:
        return torch.stack([kde.log_prob(x, data, width, precision="high") for width in widths], 1)

    process, lines = sde.EDM(0.05, 20.0), {"data": data}
    print("calls a sample, energy distance to the digits")
    for steps in (8, 9, 12, 24):
        x = sde.sample(model, process, sde.Euler(), (4096, 64), steps, seed)
        print(f"{steps:3d}  Euler from noise {energy_distance(x, data):.4f}")
        lines[f"Euler from noise, {steps} calls"] = x
    x, calls = dmcmc.sample(
        model, classifier, sigmas, (64, 64), 64, 4, seed, skip=3, burn_in=8, eta=lambda s: (0.7 * s).square(),
        sigma_min=0.05,
    )  # fmt: skip
    print(f"{calls:3d}  denoising MCMC, burn-in counted {energy_distance(x.flatten(0, 1), data):.4f}")
    lines[f"denoising MCMC, {calls} calls"] = x[-1]
    return {"pictures": [rows(out / "dmcmc.png", list(lines.items()), "digits by as many calls of the denoiser")]}
