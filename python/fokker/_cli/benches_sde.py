"""Affine steps beside a copy of as many bytes, eager PyTorch and torch.compile; a step's overhead on a tiny tensor."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import random
from .._sde_step import affine_step
from .benches import Bench, Run

SHAPES = ((64, 3, 64, 64), (16, 4, 128, 128))


def benches() -> Iterator[Bench]:
    """All of them; a step writes into a tensor that is there, as its opponents do where they can."""
    for shape in SHAPES:
        yield from _plain(shape)
        yield from _noisy(shape)
        yield from _three_results(shape)
    x = torch.randn(1, 3, 4, 4)
    m, c = torch.randn_like(x), torch.tensor([0.9, 0.1])
    yield Bench(
        "affine step on a tiny tensor, 200 calls",
        {
            "fokker": _times(functools.partial(affine_step, x, (m,), c)),
            "torch.add": _times(functools.partial(x.add, m)),
        },
        elements=200,
    )


def _times(run: Run) -> Run:
    def go() -> None:
        for _ in range(200):
            run()

    return go


def _copy(numbers: int) -> Run:
    """A copy that moves as many bytes as ``numbers`` float32 read or written."""
    source = torch.rand(numbers // 2)
    return functools.partial(torch.empty_like(source).copy_, source)


def _combine(x: Tensor, m: Tensor, a: float, b: float) -> Tensor:
    return a * x + b * m


def _combine_noisy(x: Tensor, m: Tensor, a: float, b: float, c: float) -> Tensor:
    return a * x + b * m + c * torch.randn_like(x)


def _label(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _plain(shape: tuple[int, ...]) -> Iterator[Bench]:
    x, m, out = (torch.randn(shape) for _ in range(3))
    c = torch.tensor([0.9, 0.1])
    compiled = torch.compile(_combine)
    yield Bench(
        f"affine step float32, one term, {_label(shape)}",
        {
            "fokker": functools.partial(affine_step, x, (m,), c, out=out),
            "copy of as many bytes": _copy(3 * x.numel()),
            "torch.compile": functools.partial(compiled, x, m, 0.9, 0.1),
            "torch": functools.partial(_combine, x, m, 0.9, 0.1),
        },
        {"copy of as many bytes": 0.8, "torch.compile": 1.2},
        elements=x.numel(),
        note="12 bytes an element",
    )


def _noisy(shape: tuple[int, ...]) -> Iterator[Bench]:
    x, m, out = (torch.randn(shape) for _ in range(3))
    c = torch.tensor([0.9, 0.1, 0.2])
    compiled = torch.compile(_combine_noisy)
    yield Bench(
        f"affine step float32 with noise, one term, {_label(shape)}",
        {
            "fokker": functools.partial(affine_step, x, (m,), c, seed=1, out=out),
            "fokker noise alone": functools.partial(random.normal, shape[0], shape[1:], seed=1, out=out),
            "torch.compile": functools.partial(compiled, x, m, 0.9, 0.1, 0.2),
            "torch": functools.partial(_combine_noisy, x, m, 0.9, 0.1, 0.2),
        },
        {"torch.compile": 30.0, "torch": 4.5},
        elements=x.numel(),
        note="noise from counters; asked of ours: 1.1 ns an element a core",
    )


def _three_results(shape: tuple[int, ...]) -> Iterator[Bench]:
    """UniPC's corrector and predictor: five tensors read, three written."""
    x, *terms = (torch.randn(shape) for _ in range(5))
    outs = tuple(torch.empty(shape) for _ in range(3))
    weights = torch.linspace(-0.9, 0.8, 15).reshape(3, 5)
    rows = weights.tolist()

    def combine(*given: Tensor) -> tuple[Any, ...]:
        return tuple(sum(w * t for w, t in zip(row, given, strict=True)) for row in rows)

    compiled = torch.compile(combine)
    yield Bench(
        f"affine step float32, four terms and three results, {_label(shape)}",
        {
            "fokker": functools.partial(affine_step, x, terms, weights, results=3, out=outs),
            "copy of as many bytes": _copy(8 * x.numel()),
            "torch.compile": functools.partial(compiled, x, *terms),
            "torch": functools.partial(combine, x, *terms),
        },
        {"torch.compile": 2.5, "torch": 10.0},
        elements=x.numel(),
        note="UniPC's corrector and predictor: 32 bytes an element",
    )
