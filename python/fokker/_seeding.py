"""Starts of a mixture on the sphere: unit rows, and k-means++ that does not depend on the order of the rows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def unit(x: Tensor, normalize: bool, name: str) -> Tensor:
    """Rows divided by their length, zero rows as they are; or a check that they are unit vectors."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if not normalize:
        off = (length - 1).abs().amax()
        if not float(off) <= max(1e-3, 16 * torch.finfo(x.dtype).eps):
            raise ValueError(
                f"{name} must hold unit vectors (or set normalize=True): a length is off by {float(off):.3g}"
            )
        return x
    limits = torch.finfo(x.dtype)
    # Lengths whose squares leave the dtype's range are found by way of the largest entry.
    odd = ~((length > limits.tiny**0.5 / limits.eps) & (length < limits.max**0.5)).flatten()
    if odd.any():
        length[odd] = 1.0
        rows = x[odd] / x[odd].abs().amax(1, keepdim=True).clamp(min=limits.tiny)
        size = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        x = x.clone()
        x[odd] = torch.where(size > 0, rows / size, 0.0)
    return x / length


def _order(x: Tensor, random: np.random.RandomState) -> Tensor:
    """An order of the rows by what they hold, so that draws along it do not depend on how they were stored."""
    return (x @ torch.from_numpy(random.standard_normal(x.shape[1])).to(x.dtype)).argsort()


def systematic(x: Tensor, w: Tensor, size: int, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
    """Rows of positive weight, in an order free of how they were stored; past ``size``, a systematic sample of them."""
    x, w = (x, w) if bool((w > 0).all()) else (x[w > 0], w[w > 0])
    order = _order(x, random)
    if len(x) <= size:
        return x[order], w[order]
    cumulative = w[order].double().cumsum(0)
    at = (torch.arange(size, dtype=torch.float64, device="cpu") + random.uniform()) / size * cumulative[-1]
    return x[order[torch.searchsorted(cumulative, at).clamp(max=len(x) - 1)]], torch.ones(
        size, dtype=w.dtype, device="cpu"
    )


def plus_plus(x: Tensor, w: Tensor, count: int, random: np.random.RandomState, greedy: bool) -> Tensor:
    """Indices of ``count`` rows, drawn by weight times 1 - cos to the nearest one so far (k-means++ on the sphere).

    ``greedy`` draws a few candidates and keeps the one that lowers the sum of distances most (Arthur and
    Vassilvitskii 2007, section 5); without it rows are drawn by weight alone.
    """
    w = w.double()

    def draw(mass: Tensor, n: int) -> Tensor:
        cumulative = mass.cumsum(0)
        at = torch.from_numpy(random.uniform(size=n)) * cumulative[-1]
        return torch.searchsorted(cumulative, at, right=True).clamp(max=len(mass) - 1)

    near = 16 * torch.finfo(x.dtype).eps  # copies of a chosen row
    trials = 2 + int(math.log(count)) if greedy else 1
    chosen, left = [draw(w, 1)[0]], w.clone()
    left[chosen[0]] = 0.0
    gap = (1 - x @ x[chosen[0]]).clamp(min=0).double()
    for _ in range(count - 1):
        mass = left * (gap if greedy else gap > near)
        if not float(mass.sum()) > 0:  # every row left is a copy of a chosen one
            mass = left
        candidates = draw(mass, trials)
        gaps = torch.minimum(gap[:, None], (1 - x @ x[candidates].t()).clamp(min=0).double())
        best = int((w @ gaps).argmin())
        chosen.append(candidates[best])
        left[chosen[-1]] = 0.0
        gap = gaps[:, best]
    return torch.stack(chosen)
