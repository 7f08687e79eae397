"""Example of `fokker.systems.tweedie`: digits denoised by an autoencoder that saw the noisy ones alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..systems import tweedie
from .systems_data import digits, rows
from .systems_fit import fit, network


def _make() -> torch.nn.Module:
    layers = [torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(256, 64))


def _decibel(x: Tensor, clean: Tensor) -> float:
    return -10 * math.log10(float((x - clean).square().mean()))


def example(out: Path, seed: int = 0, steps: int = 1000) -> dict[str, Any]:
    """Gaussian and Poisson noise: the score by `tweedie.ar_dae_loss`, then Tweedie's formula in its forms."""
    clean, generator = (digits(seed)[0] + 1) / 2, torch.Generator().manual_seed(seed)
    sigma, gain = 0.25, 0.1
    noisy = {
        "Gaussian": clean + sigma * torch.randn(clean.shape, generator=generator),
        "Poisson": gain * torch.poisson(clean / gain, generator=generator),
    }
    lines = {"clean": clean}
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
        lines[f"{name} noise"] = y
        for label, x in found.items():
            print(f"{label}: {_decibel(y, clean):.2f} dB noisy, {_decibel(x.detach(), clean):.2f} dB denoised")
            lines[f"{label}, denoised"] = x.detach()
    images = [(name, 2 * x - 1) for name, x in lines.items()]
    return {
        "pictures": [rows(out / "tweedie.png", images, "digits denoised by a network that saw the noisy ones alone")]
    }
