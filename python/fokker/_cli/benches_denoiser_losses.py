"""Losses with their gradients beside eager PyTorch and torch.compile: DMD, SiD, denoising and multiplicative ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._denoiser_losses import denoising_score_matching, multiplicative_score_matching
from .._denoiser_losses_distill import score_difference
from .benches import Bench, Run

SHAPES = ((64, 3, 64, 64), (16, 4, 128, 128))


def _mean(t: Tensor) -> Tensor:
    return t.mean(tuple(range(1, t.dim())), keepdim=True)


def dmd(y: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Distribution matching as DMD writes it: mse with y - grad, which is detached."""
    with torch.no_grad():
        away = y - teacher
        weight = _mean(away.abs()).clamp(min=1e-5)
        grad = torch.nan_to_num((away - (y - fake)) / weight)
        target = y - grad
    return 0.5 * torch.nn.functional.mse_loss(y.float(), target.float())


def sid(y: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """Score identity distillation at alpha = 1.2."""
    with torch.no_grad():
        weight = _mean((y - teacher).abs()).clamp(min=1e-5)
    delta = teacher - fake
    return (delta * ((teacher - y) - 1.2 * delta) / weight).mean()


def edm(prediction: Tensor, data: Tensor, sigma: Tensor) -> Tensor:
    """EDM's weighted denoising loss."""
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    return (weight.reshape(-1, 1, 1, 1) * (prediction - data) ** 2).mean()


def velocity(prediction: Tensor, data: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v-prediction: the target is made and compared with."""
    a, s = alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)
    return torch.nn.functional.mse_loss(prediction, a * noise - s * data)


def multiplicative(prediction: Tensor, x: Tensor, data: Tensor, variance: Tensor) -> Tensor:
    """Multiplicative score matching with mean 0 of the logarithms."""
    v = variance.reshape(-1, 1, 1, 1)
    return (v * x * prediction + torch.log(x / data) + v).square().mean()


def _stepped(loss: Callable[..., Tensor], leaves: list[Tensor], *rest: Any, **settings: Any) -> Run:
    """The loss and the gradients in its leaves."""

    def go() -> Any:
        return torch.autograd.grad(loss(*leaves, *rest, **settings), [t for t in leaves if t.requires_grad])

    return go


def _bench(name: str, ours: Run, loss: Callable[..., Tensor], *args: Any, asked: dict[str, float], note: str) -> Bench:
    leaves, rest = list(args[0]), args[1:]
    compiled = torch.compile(loss)
    return Bench(
        name,
        {"fokker": ours, "torch.compile": _stepped(compiled, leaves, *rest), "torch": _stepped(loss, leaves, *rest)},
        asked,
        elements=leaves[0].numel(),
        note=note,
    )


def benches() -> Iterator[Bench]:
    """All of them, each a loss and its gradients."""
    for shape in SHAPES:
        label = " x ".join(str(n) for n in shape)
        y, teacher, fake, noise = (torch.randn(shape) for _ in range(4))
        y.requires_grad_()
        sigma = torch.rand(shape[0]) + 0.2
        alpha = (1 - 0.5 * sigma**2).sqrt()
        yield _bench(
            f"DMD loss and gradient float32, {label}",
            _stepped(score_difference, [y, teacher, fake]),
            dmd,
            [y, teacher, fake],
            asked={"torch": 3.0, "torch.compile": 1.2},
            note="24 bytes an element: three reads, then two reads and a write",
        )
        pair = [y, teacher.clone().requires_grad_(), fake.clone().requires_grad_()]
        yield _bench(
            f"SiD loss and three gradients float32, {label}",
            _stepped(score_difference, pair, kind="sid"),
            sid,
            pair,
            asked={"torch": 3.0, "torch.compile": 1.2},
            note="36 bytes an element",
        )
        yield _bench(
            f"EDM loss and gradient float32, {label}",
            lambda s=sigma, y=y, t=teacher: torch.autograd.grad(
                denoising_score_matching(y, s, data=t, kind="x0", weighting="edm"), y
            ),
            edm,
            [y],
            teacher,
            sigma,
            asked={"torch": 2.0, "torch.compile": 1.0},
            note="20 bytes an element",
        )
        yield _bench(
            f"v-prediction loss and gradient float32, {label}",
            lambda s=sigma, a=alpha, y=y, t=teacher, n=noise: torch.autograd.grad(
                denoising_score_matching(y, s, a, data=t, noise=n, kind="v"), y
            ),
            velocity,
            [y],
            teacher,
            noise,
            alpha,
            sigma,
            asked={"torch": 2.0, "torch.compile": 1.0},
            note="28 bytes an element",
        )
        x, data = noise.exp(), teacher.exp()
        yield _bench(
            f"multiplicative loss and gradient float32, {label}",
            lambda s=sigma, y=y, x=x, d=data: torch.autograd.grad(multiplicative_score_matching(y, x, d, 0.0, s), y),
            multiplicative,
            [y],
            x,
            data,
            sigma,
            asked={"torch": 1.0},
            note="28 bytes an element; logarithms in float64",
        )
