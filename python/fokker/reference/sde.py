r"""Batched steps of stochastic differential equations in plain PyTorch: what the kernels of `fokker.sde` compute.

Every published update of a sampler is one of a few shapes, and a method is a table of coefficients:

    affine step       y = a x + sum_k b_k m_k + c z
    exponential step  y = x exp(a + sum_k b_k m_k + c z)

for a state x (B, *shape), model outputs or past states m_k of its shape and normal numbers z made from counters
(`fokker.reference.random`; logical contiguous order inside a sample, whatever the memory format). Arithmetic is in
float64 for a float64 state, else in float32, and a result is rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import random

Row = int | Tensor | None


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """What a step of a state of this dtype computes in: float64 for float64, else float32."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def coefficient_rows(coefficients: Tensor, row: Row, results: int) -> Tensor:
    """The coefficients of one step as (B or 1, R, C).

    coefficients: (C,), (B, C), or with several results (R, C), (B, R, C); with ``row`` one dimension more in front, of
    which that entry is taken. An entry that does not exist, asked for by a tensor, gives nan.
    """
    if isinstance(row, Tensor):
        at = row.reshape(1)
        inside = (at >= 0) & (at < coefficients.shape[0])
        taken = coefficients.index_select(0, at.clamp(0, coefficients.shape[0] - 1))[0]
        coefficients = torch.where(inside, taken, torch.nan)
    elif row is not None:
        coefficients = coefficients[row]
    return coefficients.reshape(-1, results, coefficients.shape[-1])


def noise(
    like: Tensor,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    element_offset: int = 0,
) -> Tensor:
    """Normal numbers of the shape of ``like``, sample b from the counters of its id."""
    ids = torch.arange(like.shape[0], device=like.device) if sample_ids is None else sample_ids
    n = math.prod(like.shape[1:])
    z = random.normal(seed, step, stream, ids, n, element_offset, dtype=arithmetic(like.dtype))
    return z.reshape(like.shape)


def _columns(rows: Tensor, r: int, dim: int) -> list[Tensor]:
    """The coefficients of result r, each of a shape that broadcasts over samples."""
    return [c.reshape(-1, *(1,) * (dim - 1)) for c in rows[:, r].unbind(-1)]


def affine_step(
    x: Tensor,
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    row: Row = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    element_offset: int = 0,
    exponential: bool = False,
    clip: float | None = None,
    dots: bool = False,
    results: int = 1,
) -> tuple[Tensor, ...]:
    """y_r = a_r x + sum_k b_rk m_k + c_r z, or x exp(of that, without x): see `fokker.sde.affine_step`.

    coefficients: as in `coefficient_rows`, columns [a, b_1 .. b_K], c where there is a seed, [p, q] where there is a
    clip: then m_1 stands for clamp(p x + q m_1, -clip, clip), by each result's own p and q. Returns the results, and
    with ``dots`` the inner products (B, J, J) in float64 of [y_1 - x, m_1 .. m_K, z] as the first result has them.
    """
    wide = arithmetic(x.dtype)
    rows = coefficient_rows(coefficients, row, results)
    u, m = x.to(wide), [t.to(wide) for t in terms]
    z = [] if seed is None else [noise(x, seed, step, stream, sample_ids, element_offset)]
    found: list[Tensor] = []
    products: tuple[Tensor, ...] = ()
    for r in range(results):
        c = _columns(rows, r, x.dim())
        used = list(m)
        if clip is not None:
            used[0] = (c[-2] * u + c[-1] * m[0]).clamp(-clip, clip)
        total = c[0] if exponential else c[0] * u
        for b, v in zip(c[1:], used + z, strict=False):
            total = total + b * v
        y = u * total.exp() if exponential else total
        found.append(y.to(x.dtype))
        if dots and r == 0:
            products = (inner_products([y - u, *used, *z]),)
    return (*found, *products)


def _rows(t: Tensor) -> Tensor:
    """(B, elements)."""
    return t.reshape(t.shape[0], math.prod(t.shape[1:]))


def inner_products(vectors: Sequence[Tensor]) -> Tensor:
    """(B, J, J) in float64: the inner products of J vectors (B, *shape), sample by sample."""
    v = torch.stack([_rows(t) for t in vectors], 1).double()
    return v @ v.mT


def gram(
    vectors: Sequence[Tensor],
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    element_offset: int = 0,
) -> Tensor:
    """(B, J, J) in float64: inner products of the vectors, and of the noise as the last where there is a seed.

    The noise is that of a state of the first vector's dtype. Vectors are rounded to the arithmetic of that dtype.
    """
    wide = arithmetic(vectors[0].dtype)
    z = [] if seed is None else [noise(vectors[0], seed, step, stream, sample_ids, element_offset)]
    return inner_products([v.to(wide) for v in vectors] + z)


def _per_sample(a: Tensor, b: Tensor) -> Tensor:
    return _rows(a.double() * b.double()).sum(1)


def affine_step_vjp(
    x: Tensor,
    terms: Sequence[Tensor],
    coefficients: Tensor,
    grads: Sequence[Tensor | None],
    to_dots: Tensor | None = None,
    *,
    row: Row = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Tensor | None = None,
    element_offset: int = 0,
    exponential: bool = False,
    clip: float | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """The vector-Jacobian product of `affine_step`, written out: gradients in x, in the terms, and (B, R, C) float64.

    grads: of each result, or None; to_dots: of the inner products. Differentiable itself.
    """
    wide, results = arithmetic(x.dtype), len(grads)
    rows = coefficient_rows(coefficients, row, results)
    u, m = x.to(wide), [t.to(wide) for t in terms]
    z = [] if seed is None else [noise(x, seed, step, stream, sample_ids, element_offset)]
    to_x, to_m, to_c = torch.zeros_like(u), [torch.zeros_like(t) for t in m], []
    for r, grad in enumerate(grads):
        c = _columns(rows, r, x.dim())
        used, to_used = list(m), [torch.zeros_like(t) for t in m]
        inside = None
        if clip is not None:
            raw = c[-2] * u + c[-1] * m[0]
            used[0], inside = raw.clamp(-clip, clip), (raw >= -clip) & (raw <= clip)
        total = c[0] if exponential else c[0] * u
        for b, v in zip(c[1:], used + z, strict=False):
            total = total + b * v
        factor = total.exp() if exponential else total
        g = torch.zeros_like(u) if grad is None else grad.to(wide)
        if to_dots is not None and r == 0:
            dx = (u * factor if exponential else factor) - u
            vectors = [dx, *used, *z]
            mixed = torch.stack([_rows(v).double() for v in vectors], 1)
            to_vectors = ((to_dots + to_dots.mT) @ mixed).to(wide)
            to_vectors = [t.reshape(x.shape) for t in to_vectors.unbind(1)]
            g = g + to_vectors[0]
            to_x = to_x - to_vectors[0]
            to_used = to_vectors[1 : 1 + len(m)]
        # s is what the coefficients are linear in
        if exponential:
            to_x = to_x + g * factor
            to_s = g * u * factor
            first = _rows(to_s.double()).sum(1)
        else:
            to_x = to_x + c[0] * g
            to_s = g
            first = _per_sample(to_s, u)
        found = [first, *(_per_sample(to_s, v) for v in used + z)]
        to_used = [t + b * to_s for t, b in zip(to_used, c[1:], strict=False)]
        if inside is not None:
            through = torch.where(inside, to_used[0], 0.0)
            found += [_per_sample(through, u), _per_sample(through, m[0])]
            to_x = to_x + c[-2] * through
            to_used[0] = c[-1] * through
        to_m = [a + b for a, b in zip(to_m, to_used, strict=True)]
        to_c.append(torch.stack(found, -1))
    return to_x.to(x.dtype), [g.to(t.dtype) for g, t in zip(to_m, terms, strict=True)], torch.stack(to_c, 1)
