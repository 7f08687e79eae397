"""Example of `fokker.systems.teleport`: digits by Heun's method from noise and after teleportation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import kde, sde
from ..systems import teleport
from .systems_data import digits, rows


def example(out: Path, seed: int = 0) -> dict[str, Any]:
    """The ideal denoiser of the smoothed digits is the network; errors are distances from its exact flow's end."""
    data = digits(seed)[0].double()
    process, smooth = sde.EDM(0.02, 80.0), 0.15**2

    def model(x: Tensor, t: Tensor) -> Tensor:
        level = torch.sqrt(t.square() + smooth)
        own = (smooth / level.square())[:, None]
        return own * x + (1 - own) * kde.posterior_mean(x, data, level)

    shape = (64, data.shape[1])
    start = process.prior_sample(*shape, seed=seed, dtype=torch.float64)
    same: dict[str, Any] = {"start": start, "dtype": torch.float64, "seed": seed, "full": True}
    exact = sde.sample(model, process, sde.Heun(), shape, 200, **same).x
    law, found = teleport.gaussian(data), {"exact": exact}
    print("calls   median rms distance from the exact flow (digits in [-1, 1])")
    for steps in (6, 10, 12):
        plain = sde.sample(model, process, sde.Heun(), shape, steps, **same)
        ours = teleport.sample(model, process, sde.Heun(), shape, steps, law=law, time=5.0, **same)
        errors = [float((run.x - exact).square().mean(1).sqrt().median()) for run in (plain, ours)]
        print(f"{plain.calls:5d}   from noise {errors[0]:.4f}, teleported to sigma = 5 {errors[1]:.4f}")
        if steps == 6:
            found |= {f"{plain.calls} calls from noise": plain.x, f"{ours.calls} calls after teleportation": ours.x}
    found = {"teleported, no call at all": teleport.trajectory(start, law, process, 80.0, 0.0), **found}
    title = "the same noise by the exact flow, by few calls, and by the Gaussian's flow alone"
    return {"pictures": [rows(out / "teleport.png", list(found.items()), title)]}
