"""Derivatives of density sums by autograd over tiles of the queries: what has no kernel of its own.

A function of tiles is called with ``(begin, end, *arguments)``, where arguments that belong to the queries are cut to
the tile in dimension 1; its results belong to the queries too, or are summed over the tiles. Memory is a tile's,
whatever the sizes. The gradient of such a function is such a function again, so gradients of gradients go the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ELEMENTS = 1 << 22  # of the tile's N x M x d array of differences

Tensors = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Tiled:
    """A function of tiles, and which of its arguments and results have the queries in dimension 1."""

    function: Callable[..., Sequence[Tensor | None]]
    by_query: tuple[bool, ...]
    results_by_query: tuple[bool, ...]
    rows: int

    def vjp(self, arguments: Sequence[Tensor | None], grads: Sequence[Tensor | None]) -> Tensors:
        """The gradient of sum_k <grads_k, results_k> in every argument that is a tensor."""
        n = next(a.shape[1] for a, q in zip(arguments, self.by_query, strict=True) if q and a is not None)
        total = [None if a is None else torch.zeros_like(a, memory_format=torch.contiguous_format) for a in arguments]
        for begin in range(0, n, self.rows):
            end = min(n, begin + self.rows)
            cut = [self._cut(a, q, begin, end) for a, q in zip(arguments, self.by_query, strict=True)]
            g = [self._cut(a, q, begin, end) for a, q in zip(grads, self.results_by_query, strict=True)]
            with torch.enable_grad():
                leaves = [None if a is None else a.detach().requires_grad_() for a in cut]
                found = self._tile(begin, end, leaves, g, create_graph=False)
            for to, part, by_query in zip(total, found, self.by_query, strict=True):
                if to is not None and part is not None:
                    if by_query:
                        to[:, begin:end] = part
                    else:
                        to += part
        return tuple(total)

    def gradient(self) -> Tiled:
        """`vjp` as a function of tiles of the arguments, then the grads."""
        count = len(self.by_query)

        def function(begin: int, end: int, *arguments: Tensor | None) -> Sequence[Tensor | None]:
            return self._tile(begin, end, arguments[:count], arguments[count:], create_graph=True)

        return Tiled(function, self.by_query + self.results_by_query, self.by_query, self.rows)

    @staticmethod
    def _cut(a: Tensor | None, by_query: bool, begin: int, end: int) -> Tensor | None:
        return a[:, begin:end] if by_query and a is not None else a

    def _tile(self, begin: int, end: int, arguments: Any, grads: Any, create_graph: bool) -> list[Tensor | None]:
        results = self.function(begin, end, *arguments)
        pairs = [(r, g.to(r.dtype)) for r, g in zip(results, grads, strict=True) if r is not None and g is not None]
        pairs = [(r, g) for r, g in pairs if r.requires_grad and r.numel()]
        wanted = [a for a in arguments if a is not None]
        if not pairs:
            return [None if a is None else torch.zeros_like(a) for a in arguments]
        found = iter(
            torch.autograd.grad(
                [r for r, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        )
        return [None if a is None else next(found) for a in arguments]


def tile_rows(m: int, d: int) -> int:
    """Queries a tile."""
    return max(1, _ELEMENTS // max(1, m * d))
