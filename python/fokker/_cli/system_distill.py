"""Example of `fokker.systems.distill`: digits by one call of a network, distilled from their exact score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import denoiser, kde, pairwise
from ..systems import distill
from .progress import progress
from .systems_data import digits, rows
from .systems_fit import network

WIDTH, DIM, SMOOTH, STEPS, BATCH = 128, 8, 0.1, 1000, 256


class Denoiser(nn.Module):
    """D(x, sigma) of vectors, EDM-preconditioned; ``logits``: a number a sample instead."""

    def __init__(self, dim: int, sigma_data: float, logits: bool = False) -> None:
        super().__init__()
        self.sigma_data, self.logits = sigma_data, logits
        self.inner = nn.Linear(dim + 16, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.outer = nn.Linear(WIDTH, 1 if logits else dim)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        scaled, noise = denoiser.edm_precondition_in(x, sigma, self.sigma_data)
        h = self.inner(torch.cat([scaled, denoiser.timestep_embedding(100 * noise, 16).to(x.dtype)], 1))
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        f = self.outer(nn.functional.silu(h))
        return f[:, 0] if self.logits else denoiser.edm_precondition_out(x, f, sigma, self.sigma_data)


class Generator(nn.Module):
    """z -> y, both vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim, WIDTH), nn.Linear(WIDTH, dim)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, z: Tensor) -> Tensor:
        h = self.inner(z)
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return z + self.outer(nn.functional.silu(h))


def example(out: Path, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Digits as their DIM principal components; the teacher is the exact denoiser of 1500 of them, smoothed.

    Distances are the energy distance to the 297 held out, beside what a normal law with the digits' moments and the
    1500 digits themselves have.
    """
    images = digits(seed)[0]
    mean = images.mean(0)
    basis = torch.linalg.svd(images - mean, full_matrices=False)[2][:DIM].T
    coordinates = (images - mean) @ basis
    scale = 0.5 / float(coordinates.square().mean().sqrt())
    data, held = (scale * coordinates).split([1500, len(images) - 1500])
    sigma_data = float(data.square().mean().sqrt())

    def teacher(x: Tensor, sigma: Tensor) -> Tensor:
        level = torch.sqrt(sigma.square() + SMOOTH**2)
        own = (SMOOTH**2 / level.square())[:, None].to(x.dtype)
        return own * x + (1 - own) * kde.posterior_mean(x, data, level.to(x.dtype))

    def picture(y: Tensor) -> Tensor:
        return y / scale @ basis.T + mean

    def distance(y: Tensor) -> float:
        return float(pairwise.energy_distance(y.double(), held.double()))

    g = torch.Generator().manual_seed(seed)
    z = torch.randn(512, DIM, generator=g)
    moments = data.mean(0) + z @ torch.linalg.cholesky(torch.cov(data.T)).T
    lines = [("held out", held), ("normal law", moments)]
    print(f"energy distance to held-out digits: the others {distance(data):.4f}, a normal law {distance(moments):.4f}")
    found: dict[str, Any] = {"data": distance(data), "normal": distance(moments)}
    for name, settings in {
        "DMD2": {"method": "dmd2"},
        "f-distill, Jensen-Shannon": {"method": "f_distill", "divergence": "jensen_shannon"},
    }.items():
        run = distill.Distiller(
            network(seed, lambda: Generator(DIM)), teacher, network(seed + 1, lambda: Denoiser(DIM, sigma_data)),
            discriminator=network(seed + 2, lambda: Denoiser(DIM, sigma_data, True)), sigma_min=0.1, sigma_max=5.0,
            sigma_data=sigma_data, lr=1e-3, fake_lr=2e-3, ema=0.99, seed=seed, **settings,
        )  # fmt: skip
        for _ in progress(range(steps), name):
            at = torch.randint(len(data), (BATCH,), generator=g)
            real = data[at] + SMOOTH * torch.randn(BATCH, DIM, generator=g)
            run.step(torch.randn(BATCH, DIM, generator=g), real)
        y = run.averaged(z).detach()
        found[name] = distance(y)
        print(f"{name}: {found[name]:.4f} after {steps} steps, one call a sample")
        lines.append((name, y))
    title = "digits by one call of a network"
    path = rows(out / "distill.png", [(name, picture(y)) for name, y in lines], title)
    return {**found, "pictures": [path]}
