"""Example of `fokker.systems.tweedie`: digits denoised by an autoencoder that saw the noisy ones alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..systems import tweedie
from .example_tools import digits, fit, network, pictures


def _make() -> torch.nn.Module:
    layers = [torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(256, 64))


def _decibel(x: Tensor, clean: Tensor) -> float:
    return -10 * math.log10(float((x - clean).square().mean()))


def example(out: Path, seed: int = 0, steps: int = 1000) -> dict[str, Any]:
    """Gaussian and Poisson noise: the score by `tweedie.ar_dae_loss`, then Tweedie's formula in its forms."""
    clean, generator = digits(), torch.Generator().manual_seed(seed)
    sigma, gain = 0.25, 0.1
    noisy = {
        "Gaussian": clean + sigma * torch.randn(clean.shape, generator=generator),
        "Poisson": gain * torch.poisson(clean / gain, generator=generator),
    }
    rows = {"clean": clean}
    for name, y in noisy.items():
        net = network(seed, _make)

        def loss(k: int, y: Tensor = y, net: Any = net) -> Tensor:
            batch = y[torch.randint(len(y), (256,), generator=generator)]
            return tweedie.ar_dae_loss(net, batch, 0.3 * 0.1 ** (k / steps), seed=seed, step=k)

        fit(net, loss, steps, 2e-3, name)
        if name == "Gaussian":
            found = {"Gaussian": tweedie.Gaussian(sigma).denoise(y, net)}
            print(f"noise level: {sigma}, from the score: {tweedie.noise_level(net, y, epsilon=0.03):.3f}")
        else:
            found = {
                f"Poisson, {form}": tweedie.Poisson(gain, form).denoise(y, net)
                for form in ("published", "second_order")
            }
        rows[f"{name} noise"] = y
        for label, x in found.items():
            print(f"{label}: {_decibel(y, clean):.2f} dB noisy, {_decibel(x.detach(), clean):.2f} dB denoised")
            rows[f"{label}, denoised"] = x.detach()
    images = {title: x[:12].reshape(-1, 8, 8) for title, x in rows.items()}
    return {"pictures": [pictures(out / "tweedie.png", images, vmin=0, vmax=1)]}
