"""A small transformer denoiser for 8 x 8 images (after Peebles and Xie, "DiT", 2023), and its training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import random, sde
from .progress import progress


class Block(nn.Module):
    """Attention and a two-layer network, each after a normalisation that the time shifts, scales and gates."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.time = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.time(c)[:, None].chunk(6, -1)
        h = self.norm(x) * (1 + scale) + shift
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.out(h)
        return x + gate2 * self.mlp(self.norm(x) * (1 + scale2) + shift2)


class Denoiser(nn.Module):
    """F(c_in x, log(sigma) / 4) of images ``(B, 64)``: patches of 2 x 2 are the tokens."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.inward, self.outward = nn.Linear(4, width), nn.Linear(width, 4)
        self.place = nn.Parameter(0.02 * torch.randn(16, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.logspace(-0.5, 1.5, self.width // 2)
        c = self.time(torch.cat([angle.cos(), angle.sin()], 1))
        patches = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        h = self.inward(patches) + self.place
        for block in self.blocks:
            h = block(h, c)
        out = self.outward(self.norm(h))
        return out.reshape(-1, 4, 4, 2, 2).transpose(2, 3).reshape(-1, 64)


def objective(model: nn.Module, data: Tensor, process: sde.EDM, step: int, seed: int, batch: int) -> Tensor:
    """Weighted denoising of rows of ``data`` at log-normal noise levels (Karras et al. 2022, equation 8, table 1)."""
    rows = random.bits(batch, (), seed=seed, step=step, stream=random.Stream.TRAINING_TIME + 100) % len(data)
    x0, d = data[rows], process.sigma_data
    z = random.normal(batch, (), seed=seed, step=step, stream=random.Stream.TRAINING_TIME)
    sigma = torch.exp(-0.4 + 1.2 * z).clamp(process.t_min, process.t_max).to(data.dtype)
    x = process.diffuse(x0, sigma, seed=seed, step=step)
    s = sigma[:, None]
    scale = torch.sqrt(s * s + d * d)
    target = (x0 - d * d / (scale * scale) * x) * scale / (s * d)  # of F, at weight 1
    return (model(x / scale, sigma.log() / 4) - target).square().mean()


def train(data: Tensor, process: sde.EDM, steps: int, seed: int, batch: int = 64) -> tuple[Denoiser, list[float]]:
    """Minimises `objective` on ``data`` (N, 64): the average of the weights over time, and the losses."""
    torch.manual_seed(seed)
    model = Denoiser()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    for i in progress(range(steps), "training"):
        loss = objective(model, data, process, i, seed, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(model)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise SystemExit(f"training went wrong at step {i}: the loss is {losses[-1]}")
    return average.module.eval(), losses
