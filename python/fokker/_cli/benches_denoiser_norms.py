"""Modulated norms and gated residuals beside eager PyTorch and torch.compile, at the shape of a DiT's block.

Every contender allocates its results. In float32 at the first shape the ratios of the design page are asked for; the
copy is one of as many bytes, into memory that is there: its time over ours is the share of the copy's bandwidth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .._denoiser_norms import layer_norm_modulate, residual_gate_norm_modulate, rms_norm_modulate
from .benches import Bench, Run

#: batch, tokens, columns: a DiT-XL at 256 x 256 pixels, and a wide model
SHAPES = ((16, 256, 1152), (2, 512, 3072))


def _layer(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _rms(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def _seam(x: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    x = x + gate[:, None] * branch
    return x, _layer(x, shift, scale)


def _copy(count: int) -> Run:
    """A copy that moves this many bytes, read and written."""
    source = torch.zeros(count // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _gradients(f: Callable[..., Any], leaves: list[Tensor], grads: list[Tensor]) -> Run:
    own = [t.clone().requires_grad_() for t in leaves]

    def run() -> Any:
        found = f(*own)
        return torch.autograd.grad(found if isinstance(found, tuple) else (found,), own, grads)

    return run


def benches() -> Iterator[Bench]:
    """All of them."""
    for number, shape in enumerate(SHAPES):
        batch, _, width = shape
        for dtype in (torch.float32, torch.bfloat16):
            x, branch, grad, grad_sum = (torch.randn(shape).to(dtype) for _ in range(4))
            # the chunks of one projection, as a block has them
            shift, scale, gate, *_ = torch.randn(batch, 6 * width).to(dtype).chunk(6, 1)
            label = f"{str(dtype)[6:]}, {'x'.join(map(str, shape))}"
            asked = number == 0 and dtype is torch.float32
            forms: list[tuple[str, Any, Any, list[Tensor], list[Tensor], tuple[float, float], int, int]] = [
                # name, ours, theirs, arguments, gradients, ratios asked, tensors moved forward, and backward
                ("layer norm and modulation", layer_norm_modulate, _layer, [x, shift, scale], [grad], (4.0, 2.5), 2, 3),
                ("RMS norm and modulation", rms_norm_modulate, _rms, [x, shift, scale], [grad], (0.0, 0.0), 2, 3),
                (
                    "gated residual, layer norm and modulation",
                    residual_gate_norm_modulate,
                    _seam,
                    [x, branch, gate, shift, scale],
                    [grad_sum, grad],
                    (2.4, 1.5),
                    4,
                    6,
                ),
            ]
            for name, ours, theirs, arguments, grads, (eager, compiled), moved, back in forms:
                size = x.numel() * x.element_size()
                yield Bench(
                    f"{name}, {label}",
                    {
                        "fokker": functools.partial(ours, *arguments),
                        "copy of as many bytes": _copy(moved * size),
                        "torch.compile": functools.partial(torch.compile(theirs, dynamic=False), *arguments),
                        "torch": functools.partial(theirs, *arguments),
                    },
                    {"torch.compile": compiled, "torch": eager} if asked and eager else {},
                    elements=x.numel(),
                    bytes=moved * size,
                )
                yield Bench(
                    f"{name}, with gradients, {label}",
                    {
                        "fokker": _gradients(ours, arguments, grads),
                        "torch.compile": _gradients(torch.compile(theirs, dynamic=False), arguments, grads),
                        "torch": _gradients(theirs, arguments, grads),
                    },
                    {"torch.compile": 1.9, "torch": 3.5} if asked and name.startswith("layer") else {},
                    elements=x.numel(),
                    bytes=(moved + back) * size,
                )
