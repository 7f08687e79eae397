"""The nearest datum of every query, and how far it is: what `fokker.kde.evaluate` and its streams call nearest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._kde_arguments import Call
from ._op import Kernel, Op, TritonModule, _is_compiling, native_kernels
from .reference import kde as reference

NAMES = ("nearest", "nearest_distance")


def _kernel(module: Any) -> Kernel:
    def run(x: Tensor, y: Tensor, exclude: int, absolute: bool) -> Tensor:
        index = x.new_empty(x.shape[:2], dtype=torch.int64)
        points = x.mT if module.adjacent_queries else x
        module.nearest_data(points.contiguous(), y.contiguous(), index, exclude, absolute)
        return index

    return run


#: the first j that makes |x_i - y_j| least, j != i + exclude, or -1 (B, N): x (B, N, d), y (B, M, d)
nearest_index = Op(
    "kde_nearest(Tensor x, Tensor y, int exclude, bool absolute) -> Tensor",
    tensors=2,
    reference=reference.nearest,
    fake=lambda x, y, exclude, absolute: x.new_empty(x.shape[:2], dtype=torch.int64),
    kernels=native_kernels(_kernel, TritonModule("nearest", adjacent_queries=True)),
)


def nearest(c: Call) -> dict[str, Tensor]:
    """Index (B, N) and distance (B, N), float64, of the nearest datum that has weight; -1 and infinity without any."""
    absolute = c.kernel == "laplace"
    data = c.y.detach()
    if c.bias is not None:
        data = data.masked_fill((c.bias.detach() == -torch.inf)[..., None], torch.inf)
    op = nearest_index.torch_op if _is_compiling() else nearest_index  # indices have no derivative
    index = op(c.x.detach(), data, c.exclude, absolute)
    if not c.y.shape[1]:
        return dict(zip(NAMES, (index, c.x.double().sum(-1) * 0.0 + torch.inf), strict=True))
    at = index.clamp(min=0)[..., None].expand(-1, -1, c.y.shape[2])
    difference = c.x.double() - c.y.double().gather(1, at)
    distance = torch.linalg.vector_norm(difference, 1 if absolute else 2, dim=-1)
    nothing = torch.where(c.x.isnan().any(-1), torch.nan, torch.inf).double()
    return dict(zip(NAMES, (index, torch.where(index < 0, nothing, distance)), strict=True))
