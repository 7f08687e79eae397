"""Pairwise measures that draw random numbers: characteristic functions at random frequencies, partners for C-Mixup."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import random
from ._pairwise_arguments import clouds, positive, readable, simplex, takes_reference, tensor
from ._pairwise_kernels import mmd2
from ._pairwise_tiles import characteristic_gaps
from .random import Stream
from .reference import pairwise as reference

__all__ = ["characteristic_discrepancy", "cmixup_sample"]

_TILE = 1 << 18  # pairs of a tile of C-Mixup


def characteristic_discrepancy(
    x: Any,
    y: Any,
    *,
    frequencies: Any = None,
    frequency_weights: Any = None,
    bandwidth: float = 1.0,
    x_weights: Any = None,
    y_weights: Any = None,
    seed: Any = None,
    step: Any = 0,
    generator: torch.Generator | None = None,
) -> Any:
    r"""The mean over frequencies t of |phi_x(t) - phi_y(t)|^2, phi_x(t) = sum_j a_j exp(i t.x_j).

    With t drawn from N(0, I / h^2), the weight of the gaussian kernel, it is an unbiased estimate of the biased `mmd2`
    of bandwidth h in O((N + M) F d), and ``frequencies=None`` gives that closed form (Chwialkowski et al. 2015; Rahimi
    and Recht 2007).

    Args:
        x: ``(..., N, d)``.
        y: ``(..., M, d)``.
        frequencies: None for the closed form, an int F to draw them, or ``(F, d)``.
        frequency_weights: ``(F,)``, >= 0, scaled to sum to one, for given frequencies; None for equal ones.
        bandwidth: h, a positive number.
        x_weights, y_weights: ``(..., N)`` and ``(..., M)``, as in `mmd2`.
        seed, step, generator: of the drawn frequencies, as in `fokker.random`.

    Returns:
        ``(...)``; differentiable twice in x, y and given frequencies. Memory O(N + M + F).

    Raises:
        ValueError: shapes that do not fit, weights without given frequencies, a bandwidth that is not positive.
    """
    name = "characteristic_discrepancy"
    h = positive(name, "bandwidth", bandwidth)
    drawn = isinstance(frequencies, int) and not isinstance(frequencies, bool)
    if frequency_weights is not None and (frequencies is None or drawn):
        raise ValueError(f"{name}: frequency_weights belong to given frequencies (F, d), got {frequencies!r}")
    if frequencies is None:
        return mmd2(x, y, bandwidth=h, x_weights=x_weights, y_weights=y_weights)
    c = clouds(name, {"x": x, "y": y}, {"x_weights": x_weights, "y_weights": y_weights})
    z = c.points[0]
    if drawn:
        if frequencies < 1:
            raise ValueError(f"{name}: frequencies must be at least 1, got {frequencies}")
        place = {"seed": seed, "step": step, "generator": generator, "dtype": z.dtype, "device": z.device}
        t = random.normal(frequencies, z.shape[2], **place) / h
    else:
        t = tensor(name, "frequencies", frequencies, z.device).to(z.dtype)
        if t.dim() != 2 or t.shape[1] != z.shape[2] or not t.shape[0]:
            raise ValueError(f"{name}: frequencies must have shape (F, d={z.shape[2]}), got {tuple(t.shape)}")
    gaps = reference.characteristic_gap if takes_reference() else characteristic_gaps
    found = gaps(t.expand(z.shape[0], *t.shape), *c.points, c.mass(0), c.mass(1))
    if frequency_weights is None:
        return c.restore(found.mean(-1))
    return c.restore(found @ simplex(name, "frequency_weights", frequency_weights, (t.shape[0],), z.device))


def cmixup_sample(
    labels: Any,
    bandwidth: float,
    *,
    rows: Any = None,
    seed: Any = None,
    step: Any = 0,
    stream: int = Stream.RESAMPLING,
    generator: torch.Generator | None = None,
) -> Any:
    r"""For each point a partner j != i, drawn with probability proportional to exp(-|y_i - y_j|^2 / 2h^2).

    The sampling of C-Mixup (Yao et al., NeurIPS 2022, equation 6), without its N x N array of densities: the largest of
    logit + Gumbel noise along a row is such a draw. The noise of pair (i, j) is a function of seed, step, stream, i and
    j alone (`fokker.random.gumbel`), so the draw does not depend on tiles, on threads or on which rows are asked for.

    Args:
        labels: y ``(N,)`` or ``(N, dy)``, finite, N >= 2. (C-Mixup also allows features or hidden states here.)
        bandwidth: h, a positive number.
        rows: int64 ``(B,)``, the points that want a partner; None for all.
        seed, step, stream, generator: as in `fokker.random`; another step is another draw.

    Returns:
        int64 ``(B,)`` or ``(N,)``: the partners. O(N) memory, O(B N dy) time. Where all others are far away, the
        nearest is all but certain, not a division of 0 by 0.

    Raises:
        ValueError: fewer than two labels, labels that are not finite, rows out of range, a bandwidth that is not
            positive.
    """
    name = "cmixup_sample"
    h = positive(name, "bandwidth", bandwidth)
    numpy = not isinstance(labels, Tensor)
    y = tensor(name, "labels", labels).detach()
    if y.dim() not in (1, 2) or y.shape[0] < 2:
        raise ValueError(f"{name}: labels must have shape (N,) or (N, dy) with N >= 2, got {tuple(y.shape)}")
    if readable(y) and not bool(y.isfinite().all()):
        raise ValueError(f"{name}: labels must be finite")
    y = y[:, None] if y.dim() == 1 else y
    dtype = torch.float64 if y.dtype is torch.float64 else torch.float32
    y, n = y.double(), y.shape[0]
    if rows is None:
        ids = torch.arange(n, device=y.device)
    else:
        ids = torch.as_tensor(rows, device=y.device)
        if ids.dtype is not torch.int64 or ids.dim() != 1:
            raise ValueError(f"{name}: rows must be int64 of shape (B,), got {ids.dtype} {tuple(ids.shape)}")
        if readable(ids) and ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < n):
            raise ValueError(f"{name}: rows must be in [0, {n}), got {int(ids.min())} to {int(ids.max())}")
    if seed is None:  # one seed for all tiles
        home = generator.device if generator is not None else torch.device("cpu")
        seed, generator = int(torch.randint(0, 2**63 - 1, (1,), generator=generator, device=home)), None
    place = {"seed": seed, "step": step, "stream": stream, "generator": generator, "dtype": dtype, "device": y.device}
    found = [_partners(y, part, h, place) for part in ids.split(max(1, _TILE // min(n, _TILE)))]
    partners = torch.cat(found) if found else ids
    return partners.numpy() if numpy else partners


def _partners(y: Tensor, ids: Tensor, h: float, place: dict[str, Any]) -> Tensor:
    best = torch.full((len(ids),), -torch.inf, dtype=torch.float64, device=y.device)
    partner = torch.zeros_like(ids)
    for begin in range(0, len(y), _TILE):
        part = y[begin : begin + _TILE]
        logits = torch.zeros(len(ids), len(part), dtype=torch.float64, device=y.device)
        # one feature after another: a sum whose order does not depend on the shape of the tile
        for k in range(y.shape[1]):
            logits -= ((y[ids, k, None] - part[:, k]) / h).square()
        logits = 0.5 * logits
        logits += random.gumbel(len(ids), len(part), sample_ids=ids, element_offset=begin, **place)
        logits[ids[:, None] == torch.arange(begin, begin + len(part), device=y.device)] = -torch.inf
        value, at = logits.max(1)
        partner = torch.where(value > best, at + begin, partner)
        best = torch.maximum(value, best)
    return partner
