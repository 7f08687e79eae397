"""Sums over pairs, never N x M: distances by their kernel, and by tiles of rows what has none, centred products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._kde_tiles import Tiled, tile_rows
from ._op import Kernel, Op, TritonModule, _dispatch_depth, _functorch_level, _is_compiling, native_kernels
from .reference import pairwise as reference

_BATCH = 1 << 18  # pairs of a tile
_WITHIN = 512  # points whose pairs are not worth halving


@dataclass(frozen=True)
class Plan:
    """A function of tiles in two forms: ``fast`` has one derivative, ``smooth`` has two and takes more memory."""

    fast: Tiled
    smooth: Tiled

    def __call__(self, *arguments: Tensor) -> Tensor:
        """The one result, (B, N), differentiable twice; what backward needs is computed again, tile by tile."""
        odd = any(type(a) not in (Tensor, torch.nn.Parameter) for a in arguments)
        if _is_compiling() or odd or _functorch_level() or _dispatch_depth():
            n = next(a.shape[1] for a, q in zip(arguments, self.smooth.by_query, strict=True) if q)
            return self.smooth.function(0, n, *arguments)[0]
        return _Rows.apply(self, *arguments)


def _cut(values: Sequence[Tensor], by_query: tuple[bool, ...], begin: int, end: int) -> list[Tensor]:
    return [v[:, begin:end] if q else v for v, q in zip(values, by_query, strict=True)]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *arguments: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(*arguments)
        tiled = plan.fast
        first = next(a for a, q in zip(arguments, tiled.by_query, strict=True) if q)
        n = first.shape[1]
        # one array from the start: a list of small results would pin what the freed tiles leave on the heap
        out = torch.empty(first.shape[:2], dtype=torch.float64, device=first.device)
        for begin in range(0, n, tiled.rows):
            end = min(n, begin + tiled.rows)
            out[:, begin:end] = tiled.function(begin, end, *_cut(arguments, tiled.by_query, begin, end))[0]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, *_RowsBackward.apply(ctx.plan, *ctx.saved_tensors, grad)


class _RowsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, *arguments: Tensor) -> Any:
        ctx.plan = plan
        ctx.save_for_backward(*arguments)
        return _pulled(plan.fast, arguments[:-1], arguments[-1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch.no_grad():
            found = _pulled(ctx.plan.smooth.gradient(), ctx.saved_tensors, grads)
        return None, *refused("a third derivative of sums of distances is not implemented", found, ctx.saved_tensors)


def _pulled(tiled: Tiled, arguments: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`Tiled.vjp` into arrays that are there from the start, for the heap's sake as in `_Rows`."""
    n = next(a.shape[1] for a, q in zip(arguments, tiled.by_query, strict=True) if q)
    found = tuple(torch.zeros_like(a) for a in arguments)
    for begin in range(0, n, tiled.rows):
        end = min(n, begin + tiled.rows)
        g = _cut(grads, tiled.results_by_query, begin, end)
        with torch.enable_grad():
            leaves = [a.detach().requires_grad_() for a in _cut(arguments, tiled.by_query, begin, end)]
            parts = tiled._tile(begin, end, leaves, g, create_graph=False)
        for whole, part, q in zip(found, parts, tiled.by_query, strict=True):
            if q:
                whole[:, begin:end] = part
            else:
                whole += part
    return found


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.message = message
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise NotImplementedError(ctx.message)


def refused(message: str, values: Any, sources: Any) -> Any:
    """Gradients whose own gradient in ``sources`` is an error: torch's once_differentiable would say nothing."""
    if not torch.is_grad_enabled() or not any(s.requires_grad for s in sources):
        return values
    return tuple(None if v is None else _Refusal.apply(message, v, *sources) for v in values)


def _lengths(x: Tensor, y: Tensor) -> Tensor:
    # by differences: the form with inner products is off by 4e-3 for equal points (pytorch#42479)
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _plan(function: Any, by_query: tuple[bool, ...], pairs: int, dim: int) -> Plan:
    def form(lengths: Any, rows: int) -> Tiled:
        def tile(begin: int, end: int, *arguments: Tensor) -> tuple[Tensor]:
            return (function(lengths, begin, *arguments),)

        return Tiled(tile, by_query, (True,), rows)

    return Plan(form(_lengths, max(1, _BATCH // max(1, pairs))), form(reference.distance, tile_rows(pairs, dim)))


def _distance_kernel(module: Any) -> Kernel:
    def run(x: Tensor, y: Tensor, weight: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
        across = module.adjacent_queries
        points = (x.mT if across else x).contiguous()
        total = x.new_empty(x.shape[:2])
        found = torch.empty_like(points) if slope else None
        module.distance_sums(points, y.contiguous(), weight.contiguous(), total, found)
        if found is None:
            return total, x.new_empty(0)
        return total, found.mT.contiguous() if across else found

    return run


def _distance_tiles(x: Tensor, y: Tensor) -> Tiled:
    def function(begin: int, end: int, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.distance_sums(x, y, weight, True)

    return Tiled(function, (True, False, False), (True, True), tile_rows(x.shape[0] * y.shape[1], x.shape[2]))


def _distance_backward(
    needs: Any, saved: Any, extra: Any, to_sum: Tensor, to_slope: Tensor
) -> tuple[Tensor | None, ...]:
    x, y, weight, *_ = saved
    if extra[0]:  # of the slope: a second derivative, by tiles
        with torch.no_grad():
            found = _distance_tiles(x, y).vjp((x, y, weight), (to_sum, to_slope))
        return refused("a third derivative of sums of distances is not implemented", found, saved)
    to_x = to_y = to_w = None
    if needs[0]:
        to_x = to_sum[..., None] * pair_distances(x, y, weight, True)[1]
    if needs[1] or needs[2]:
        to_w, slope = pair_distances(y, x, to_sum, needs[1])
        to_y = weight[..., None] * slope if needs[1] else None
    return to_x, to_y, to_w


#: sum_j w_j |x_i - y_j| (B, N), and where asked its gradient in x_i (B, N, d); all in float64
pair_distances = Op(
    "pair_distances(Tensor x, Tensor y, Tensor weight, bool slope) -> (Tensor, Tensor)",
    tensors=3,
    reference=reference.distance_sums,
    fake=lambda x, y, weight, slope: (x.new_empty(x.shape[:2]), x.new_empty(x.shape if slope else 0)),
    kernels=native_kernels(_distance_kernel, TritonModule("distance", adjacent_queries=True)),
    backward=_distance_backward,
)


def distance_sums(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """sum_j w_j |x_i - y_j|, (B, N) float64: x (B, N, d), y (B, M, d), w (B, M)."""
    # all in float64: sums of distances are there to be subtracted
    return pair_distances(x.double(), y.double(), weights.double(), False)[0]


def within_sums(x: Tensor, weights: Tensor) -> Tensor:
    """sum_ij w_i w_j |x_i - x_j|, (B,) float64: every pair once, by halves."""
    n = x.shape[1]
    if not isinstance(n, int) or n <= _WITHIN or _is_compiling():
        return (weights * distance_sums(x, x, weights)).sum(-1)
    half = n // 2
    a, b, u, v = x[:, :half], x[:, half:], weights[:, :half], weights[:, half:]
    return within_sums(a, u) + within_sums(b, v) + 2.0 * (u * distance_sums(a, b, v)).sum(-1)


def centred_products(x: Tensor, centres: Tensor, dims: tuple[int, ...], c: float, exclude_self: bool) -> Tensor:
    """sum_j prod_k (c + m_ik + m_jk - |x_i^k - x_j^k|) - c^K, (B, N) float64: x (B, N, sum of dims), m (B, N, K)."""

    def function(lengths: Any, begin: int, x: Tensor, y: Tensor, m: Tensor, n: Tensor) -> Tensor:
        pairs = zip(x.split(dims, -1), y.split(dims, -1), strict=True)
        r = [lengths(p, q) for p, q in pairs]
        return reference.centred_product(r, m, n, c, begin if exclude_self else None).sum(-1)

    x = x.double()
    plan = _plan(function, (True, False, True, False), x.shape[0] * x.shape[1] * len(dims), max(dims))
    return plan(x, x, centres, centres)


def characteristic_gaps(t: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """|phi_x(t_f) - phi_y(t_f)|^2, (B, F) float64: frequencies t (B, F, d), clouds with weights a (B, N), b (B, M)."""

    def tile(begin: int, end: int, *arguments: Tensor) -> tuple[Tensor]:
        return (reference.characteristic_gap(*arguments),)

    pairs = x.shape[0] * (x.shape[1] + y.shape[1])
    tiled = Tiled(tile, (True, False, False, False, False), (True,), max(1, _BATCH // max(1, pairs)))
    return Plan(tiled, tiled)(t, x, y, a, b)
