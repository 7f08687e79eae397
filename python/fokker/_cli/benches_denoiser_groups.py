"""Group norm with FiLM and SiLU beside eager PyTorch and torch.compile, both layouts, forward and backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._denoiser_groups import group_norm_silu
from .benches import Bench

SHAPE, GROUPS = (16, 256, 64, 64), 32
ASKED = {"contiguous": {"torch": 7.0, "torch.compile": 2.0}, "channels_last": {"torch": 10.0, "torch.compile": 4.0}}


def _eager(x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.nn.functional.group_norm(x, GROUPS, w, b, 1e-5)
    return torch.nn.functional.silu(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None])


def _eager_into(out: Tensor, x: Tensor, w: Tensor, b: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    y = torch.nn.functional.group_norm(x, GROUPS, w, b, 1e-5)
    return torch.ops.aten.silu.out(y * (1 + scale[:, :, None, None]) + shift[:, :, None, None], out=out)


def _compiled_into(out: Tensor, *args: Tensor) -> Tensor:
    return out.copy_(_eager(*args))


def _ours(x: Tensor, *parameters: Tensor, out: Tensor | None = None) -> Any:
    return group_norm_silu(x, GROUPS, *parameters, out=out)


def _ours_sum(x: Tensor, residual: Tensor, parameters: Any, out: Any) -> Any:
    return group_norm_silu(x, GROUPS, *parameters, residual=residual, out=out)


def _eager_sum(x: Tensor, residual: Tensor, parameters: Any) -> Any:
    total = x + residual
    return total, _eager(total, *parameters)


def _gradients(forward: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward(*leaves), leaves, grad)


def benches() -> Iterator[Bench]:
    """The layer's result in a tensor that is there and in a new one, then with its gradients, at the page's shape."""
    compiled, compiled_into, compiled_sum = (torch.compile(f) for f in (_eager, _compiled_into, _eager_sum))
    numbers = SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3]
    label = f"float32 {' x '.join(str(n) for n in SHAPE)}"
    for layout, asked in ASKED.items():
        x = torch.randn(SHAPE)
        if layout == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        w, b = torch.randn(SHAPE[1]), torch.randn(SHAPE[1])
        args = (x, w, b, *torch.randn(SHAPE[0], 2 * SHAPE[1]).chunk(2, 1))
        out, other, total, grad = (torch.empty_like(x), *(torch.randn_like(x) for _ in range(3)))
        yield Bench(
            f"group norm, FiLM, SiLU {label}, {layout}, into a tensor",
            {
                "fokker": functools.partial(_ours, *args, out=out),
                "copy of as many bytes": functools.partial(other.copy_, x),
                "torch.compile": functools.partial(compiled_into, out, *args),
                "torch": functools.partial(_eager_into, out, *args),
            },
            asked,
            elements=numbers,
            bytes=8 * numbers,
            note="all write into the same tensor",
        )
        yield Bench(
            f"group norm, FiLM, SiLU {label}, {layout}, into a new tensor",
            {
                "fokker": functools.partial(_ours, *args),
                "torch.compile": functools.partial(compiled, *args),
                "torch": functools.partial(_eager, *args),
            },
            elements=numbers,
            bytes=8 * numbers,
            note="each allocates its result: pages that the system must clear, huge ones where ours asks for them",
        )
        yield Bench(
            f"group norm, FiLM, SiLU of a residual sum {label}, {layout}",
            {
                "fokker": functools.partial(_ours_sum, x, other, args[1:], (total, out)),
                "torch.compile": functools.partial(compiled_sum, x, other, args[1:]),
                "torch": functools.partial(_eager_sum, x, other, args[1:]),
            },
            elements=numbers,
            bytes=16 * numbers,
            note="ours into tensors, the others into new ones",
        )
        halves = [t.bfloat16() for t in args]
        half_out, half_other = torch.empty_like(halves[0]), torch.empty_like(halves[0])
        yield Bench(
            f"group norm, FiLM, SiLU {label.replace('float32', 'bfloat16')}, {layout}, into a tensor",
            {
                "fokker": functools.partial(_ours, *halves, out=half_out),
                "copy of as many bytes": functools.partial(half_other.copy_, halves[0]),
                "torch.compile": functools.partial(torch.compile(_compiled_into), half_out, *halves),
                "torch": functools.partial(_eager_into, half_out, *halves),
            },
            elements=numbers,
            bytes=4 * numbers,
            note="all write into the same tensor",
        )
        leaves = [t.detach().clone().requires_grad_() for t in args]
        yield Bench(
            f"group norm, FiLM, SiLU {label}, {layout}, forward and backward",
            {
                "fokker": functools.partial(_gradients, _ours, leaves, grad),
                "torch.compile": functools.partial(_gradients, compiled, leaves, grad),
                "torch": functools.partial(_gradients, _eager, leaves, grad),
            },
            elements=numbers,
            bytes=20 * numbers,
        )
