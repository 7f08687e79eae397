"""Density sums over data that come in chunks: out of core, streamed, or spread over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._cli.progress import progress
from ._kde_arguments import Call, arrange, restore
from ._kde_evaluate import KERNELS, SUMS, check_outputs, finish, posterior_sums
from ._kde_nearest import nearest
from ._kde_ops import DELTA, SLOPE, SQUARE, VALUES


class KDEState:
    r"""The density sums of fixed queries over data seen so far: an associative, mergeable state in float64.

    A row keeps its log-sum, the mean gradient (or that of the data), the sum of squared shares, the mean of
    d log w / d log h and the nearest datum, numbered in the data's order; two states of the same queries merge by
    log-sum-exp weights, so chunks, files, processes and machines can be added in any grouping. `result` is what
    `fokker.kde.evaluate` gives for all data at once, up to rounding.

    Args:
        x: queries ``(N, d)``, torch or NumPy.
        bandwidth: a number, ``()`` or one a query ``(N, 1)``.
        outputs: as in `fokker.kde.evaluate`; only what these need is summed.
        kernel, nu, precision: as in `fokker.kde.log_prob`.

    Raises:
        ValueError: x that is not (N, d), a bandwidth by datum, and as in `fokker.kde.log_prob`.

    Nothing here is differentiable.
    """

    def __init__(
        self,
        x: Any,
        bandwidth: Any,
        *,
        outputs: tuple[str, ...] = ("log_prob",),
        kernel: str = "gaussian",
        nu: float = 1.0,
        precision: str = "highest",
    ) -> None:
        self.outputs = check_outputs(outputs, kernel)
        self._x, self._bandwidth = x if isinstance(x, Tensor) else np.asarray(x), bandwidth
        self._settings = (kernel, nu, False, precision, KERNELS)
        if self._x.ndim != 2:
            raise ValueError(f"KDEState: x must have shape (N, d), got {tuple(self._x.shape)}")
        call = self._arrange(self._x[:0])
        if len(call.batch) or call.bandwidth.shape[2] != 1:
            raise ValueError("KDEState needs queries (N, d) and a bandwidth that is one number or one a query (N, 1)")
        self._mask = SLOPE if {"score", "laplacian"} & set(outputs) else VALUES if "posterior_mean" in outputs else 0
        self._mask |= DELTA if {"laplacian", "laplace_factor"} & set(outputs) else 0
        self._mask |= SQUARE if "effective_sample_size" in outputs else 0
        n, d = call.x.shape[1:]
        wide: dict[str, Any] = {"dtype": torch.float64, "device": call.x.device}
        self.log_sum = torch.full((1, n), -torch.inf, **wide)
        self.mean = torch.zeros(1, n, d if self._mask & (SLOPE | VALUES) else 0, **wide)
        self.square = torch.zeros(1, n if self._mask & SQUARE else 0, **wide)
        self.spread = torch.zeros(1, n if self._mask & DELTA else 0, **wide)
        self._summed = tuple(name for name in outputs if name in SUMS)
        near = n if len(self._summed) < len(self.outputs) else 0
        self.nearest = torch.full((1, near), -1, dtype=torch.int64, device=call.x.device)
        self.distance = torch.full((1, near), torch.inf, **wide)
        #: how many data so far, of any weight
        self.seen = torch.zeros((), dtype=torch.int64, device=call.x.device)
        #: the sum of the weights, or the number of data, so far
        self.total = torch.zeros((), **wide)

    def _arrange(self, data: Any, exact: bool = False) -> Call:
        kernel, nu, exclude, precision, kernels = self._settings
        precision = "highest" if exact or "laplacian" in self.outputs else precision
        c = arrange("KDEState", self._x, data, self._bandwidth, None, kernel, nu, exclude, precision, kernels)
        c = c.widened() if "laplacian" in self.outputs else c
        return replace(c, log_total=None)

    @torch.no_grad()
    def update(self, data: Any, weights: Any = None) -> KDEState:
        """Add a chunk of data ``(M, d)`` with weights ``(M,)`` >= 0 (None: ones); returns the state itself."""
        c = self._arrange(data)
        count = c.y.shape[1]
        total: Tensor | float = float(count)
        if weights is not None:
            w = c.like_data(weights, "weights", 0)
            if bool((w < 0).any()):
                raise ValueError(f"KDEState: weights must not be negative, got {float(w.min())}")
            total, c = w.sum(), c.with_bias(torch.log(w))
        if self.nearest.numel():
            self._add_nearest(*nearest(c).values())
        self.seen = self.seen + count
        if not self._summed:
            self.total = self.total + total
            return self
        parts, mean = posterior_sums(c, self._mask) if self._mask & VALUES else (c.sums(self._mask), None)
        return self._add(parts[0], (parts[1] if mean is None else mean).double(), parts[2], parts[3], total)

    def _add_nearest(self, index: Tensor, distance: Tensor) -> None:
        nearer = distance < self.distance
        self.nearest = torch.where(nearer, index + self.seen, self.nearest)
        self.distance = torch.where(nearer | distance.isnan(), distance, self.distance)

    def _add(self, log_sum: Tensor, mean: Tensor, square: Tensor, spread: Tensor, total: Tensor | float) -> KDEState:
        both = torch.logaddexp(self.log_sum, log_sum)
        shift = torch.where(both == -torch.inf, 0.0, both)
        ours, theirs = torch.exp(self.log_sum - shift), torch.exp(log_sum - shift)
        self.mean = ours[..., None] * self.mean + theirs[..., None] * mean
        if self._mask & SQUARE:
            self.square = ours.square() * self.square + theirs.square() * square
        if self._mask & DELTA:
            self.spread = ours * self.spread + theirs * spread
        self.log_sum, self.total = both, self.total + total
        return self

    def merge(self, other: KDEState) -> KDEState:
        """Add what another state of the same queries has seen, after what this one has; returns the state itself."""
        if (
            other.log_sum.shape != self.log_sum.shape
            or other._mask != self._mask
            or other.nearest.shape != self.nearest.shape
            or other._settings != self._settings
            or not (_same(other._x, self._x) and _same(other._bandwidth, self._bandwidth))
        ):
            raise ValueError("merge needs two states of the same queries, bandwidth, outputs and settings")
        if self.nearest.numel():
            self._add_nearest(other.nearest, other.distance)
        self.seen = self.seen + other.seen
        return self._add(other.log_sum, other.mean, other.square, other.spread, other.total)

    def update_from(self, chunks: Iterable[Any], *, show: bool = False) -> KDEState:
        """`update` with every chunk: arrays, tensors, pairs (data, weights), or Arrow record batches.

        ``show`` draws a progress bar (where tqdm is installed).
        """
        for chunk in progress(chunks, "data") if show else chunks:
            self.update(*(chunk if isinstance(chunk, tuple) else (_rows(chunk),)))
        return self

    @torch.no_grad()
    def all_reduce(self, group: Any = None) -> KDEState:
        """Merge the states of all processes of a torch.distributed group, each then holding the whole.

        Every process has seen its shard of the data for the same queries. Two collectives: the maximum of the log-sums,
        then one sum of N (d + 4) numbers at most; three small ones more for the nearest data, which are numbered in the
        order of the ranks.
        """
        import torch.distributed as distributed

        if self.nearest.numel():
            self._reduce_nearest(distributed, group)
        top = self.log_sum.clone()
        distributed.all_reduce(top, op=distributed.ReduceOp.MAX, group=group)
        shift = torch.where(top == -torch.inf, 0.0, top)
        share = torch.exp(self.log_sum - shift)
        flat = [
            share.flatten(),
            (share[..., None] * self.mean).flatten(),
            (share.square() * self.square).flatten() if self._mask & SQUARE else self.square.flatten(),
            (share * self.spread).flatten() if self._mask & DELTA else self.spread.flatten(),
            self.total.reshape(1),
        ]
        packed = torch.cat(flat)
        distributed.all_reduce(packed, group=group)
        share, mean, square, spread, total = packed.split([len(f) for f in flat])
        share = share.reshape(self.log_sum.shape)
        safe = torch.where(share > 0, share, 1.0)
        self.log_sum = torch.where(share > 0, shift + torch.log(safe), top)
        self.mean = mean.reshape(self.mean.shape) / safe[..., None]
        self.square = square.reshape(self.square.shape) / (safe.square() if self._mask & SQUARE else 1.0)
        self.spread = spread.reshape(self.spread.shape) / (safe if self._mask & DELTA else 1.0)
        self.total = total.reshape(())
        return self

    def _reduce_nearest(self, distributed: Any, group: Any) -> None:
        rank, size = distributed.get_rank(group), distributed.get_world_size(group)
        seen = torch.zeros(size, dtype=torch.int64, device=self.distance.device)
        seen[rank] = self.seen
        distributed.all_reduce(seen, group=group)
        bad = self.distance.isnan()  # of queries, which all processes have
        mine = self.distance.masked_fill(bad, torch.inf)
        least = mine.clone()
        distributed.all_reduce(least, op=distributed.ReduceOp.MIN, group=group)
        none = torch.iinfo(torch.int64).max
        index = torch.where((mine == least) & (self.nearest >= 0), self.nearest + seen[:rank].sum(), none)
        distributed.all_reduce(index, op=distributed.ReduceOp.MIN, group=group)
        self.nearest = torch.where(index == none, -1, index)
        self.distance = least.masked_fill(bad, torch.nan)
        self.seen = seen.sum()

    def result(self) -> dict[str, Any]:
        """The outputs by name, as `fokker.kde.evaluate` returns them."""
        c = replace(
            self._arrange(self._x[:0], exact=True), log_total=torch.log(torch.where(self.total == 0, 1.0, self.total))
        )
        dead = (self.log_sum == -torch.inf)[..., None]
        posterior = torch.where(dead, c.x, self.mean) if self._mask & VALUES else None
        found = finish(c, self._summed, self.log_sum, self.mean, self.square, self.spread, 0.0, posterior)
        found |= {"nearest": self.nearest, "nearest_distance": self.distance}
        return {name: restore(c, found[name]) for name in self.outputs}


def _same(a: Any, b: Any) -> bool:
    if a is b or any(isinstance(t, Tensor) and not t.is_cpu for t in (a, b)):  # no waiting for a device
        return True
    a, b = (t.detach() if isinstance(t, Tensor) else torch.as_tensor(np.asarray(t)) for t in (a, b))
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _rows(chunk: Any) -> Any:
    # an Arrow record batch or table: a column a coordinate, or one column of lists of a fixed size
    if not (hasattr(chunk, "column_names") or hasattr(chunk, "schema")):
        return chunk
    columns = [chunk.column(i) for i in range(chunk.num_columns)]
    if nulls := sum(c.null_count for c in columns):
        raise ValueError(f"KDEState: Arrow columns must hold no nulls, got {nulls}")
    size = getattr(columns[0].type, "list_size", 0) if len(columns) == 1 else 0
    if not size:
        return np.stack([c.to_numpy(zero_copy_only=False) for c in columns], 1)
    whole = columns[0].combine_chunks() if hasattr(columns[0], "combine_chunks") else columns[0]
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)


def chunks(data: Any, rows: int = 1 << 17) -> Iterator[Any]:
    """Consecutive slices of ``rows`` rows of an array, a tensor or a numpy.memmap, read when their turn comes.

    Raises:
        ValueError: rows < 1.
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    for begin in range(0, len(data), rows):
        part = data[begin : begin + rows]
        yield np.array(part) if isinstance(part, np.ndarray) else part
