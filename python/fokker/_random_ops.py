"""The registered ops behind `fokker.random`: fills with numbers of a kind, and sums of normals of several counters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._op import Kernel, Op, _dispatch_depth, _functorch_level, _is_compiling, native_kernels
from .reference import brownian as brownian_reference
from .reference import random as reference

# The order of math::RandomKind in csrc/math/random.h.
KINDS = ("bits", "uniform", "normal", "gumbel", "exponential", "rademacher")
BITS = KINDS.index("bits")
_U64 = 2**64 - 1


def _empty(like: Tensor, size: Any) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device)


def _fill_kernel(module: Any) -> Kernel:
    def run(
        like: Tensor,
        seed: Tensor | None,
        step: Tensor | None,
        ids: Tensor | None,
        kind: int,
        size: Any,
        seed_value: int,
        step_value: int,
        stream: int,
        first: int,
        offset: int,
        out: Tensor | None = None,
    ) -> Tensor:
        if out is None:
            out = _empty(like, size)
        words = out.view(torch.float32) if kind == BITS and out.itemsize == 4 else out
        module.random_fill(kind, seed_value & _U64, seed, step_value, step, stream, ids, first, offset, words)
        return out

    run.writes_out = True  # type: ignore[attr-defined]
    return run


def _sum_kernel(module: Any) -> Kernel:
    def run(
        like: Tensor,
        seed: Tensor | None,
        ids: Tensor | None,
        coefficients: Tensor,
        nodes: Tensor,
        size: Any,
        seed_value: int,
        first: int,
        offset: int,
        out: Tensor | None = None,
    ) -> Tensor:
        if out is None:
            out = _empty(like, size)
        c = coefficients.contiguous() if out.dtype is torch.float64 else coefficients.float().contiguous()
        module.random_sum(seed_value & _U64, seed, ids, first, offset, c, nodes.contiguous(), out)
        return out

    run.writes_out = True  # type: ignore[attr-defined]
    return run


def _triton(name: str) -> Kernel:
    def run(*args: Any, out: Tensor | None = None) -> Any:
        from .triton_kernels import random

        return getattr(random, name)(*args, out=out)

    run.writes_out = True  # type: ignore[attr-defined]
    return run


def _elements(size: Any) -> int:
    n = 1
    for s in size[1:]:
        n *= s
    return n


def _sample_ids(ids: Tensor | None, first: int, size: Any, device: torch.device) -> Tensor:
    return torch.arange(first, first + size[0], device=device) if ids is None else ids


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def _fill_reference(
    like: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    kind: int,
    size: Any,
    seed_value: int,
    step_value: int,
    stream: int,
    first: int,
    offset: int,
) -> Tensor:
    place = (
        seed_value if seed is None else seed,
        step_value if step is None else step,
        stream,
        _sample_ids(ids, first, size, like.device),
        _elements(size),
        offset,
    )
    if kind != BITS:
        return reference.NUMBERS[KINDS[kind]](*place, dtype=_wide(like.dtype)).to(like.dtype).reshape(size)
    words = reference.words(*place).reshape(size)
    if like.dtype is torch.int64:
        return words
    return (words - (words >> 31 << 32)).to(torch.int32).view(like.dtype)


def _sum_reference(
    like: Tensor,
    seed: Tensor | None,
    ids: Tensor | None,
    coefficients: Tensor,
    nodes: Tensor,
    size: Any,
    seed_value: int,
    first: int,
    offset: int,
) -> Tensor:
    total = brownian_reference.normal_sum(
        seed_value if seed is None else seed,
        coefficients,
        nodes,
        _sample_ids(ids, first, size, like.device),
        _elements(size),
        offset,
        dtype=_wide(like.dtype),
    )
    return total.to(like.dtype).reshape(size)


def _no_gradient(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[None, ...]:
    return (None,) * len(needs)  # a draw depends on nothing that has a gradient


#: ``size`` numbers of a kind (its index in KINDS), in the dtype and on the device of ``like``; seed and step are read
#: from their tensors where those are given
fill = Op(
    "random_fill(Tensor like, Tensor? seed_tensor, Tensor? step_tensor, Tensor? sample_ids, int kind, SymInt[] size, "
    "SymInt seed, SymInt step, int stream, SymInt first_id, SymInt element_offset) -> Tensor",
    tensors=4,
    reference=_fill_reference,
    fake=lambda like, seed, step, ids, kind, size, *rest: _empty(like, size),
    kernels={**native_kernels(_fill_kernel), "triton": _triton("fill")},
    backward=_no_gradient,
)
#: sum_j coefficients[:, j] normal with second counter word nodes[:, j]; float64 and int64 tables (batch or 1, terms)
normal_sum = Op(
    "random_normal_sum(Tensor like, Tensor? seed_tensor, Tensor? sample_ids, Tensor coefficients, Tensor nodes, "
    "SymInt[] size, SymInt seed, SymInt first_id, SymInt element_offset) -> Tensor",
    tensors=5,
    reference=_sum_reference,
    fake=lambda like, seed, ids, c, nodes, size, *rest: _empty(like, size),
    kernels={**native_kernels(_sum_kernel), "triton": _triton("normal_sum")},
    backward=_no_gradient,
)


def fill_into(op: Op, out: Tensor | None, like: Tensor, *args: Any) -> Tensor:
    """The op's result, written straight into ``out`` (of any strides) by kernels that can."""
    if out is None:
        return op(like, *args)
    if type(out) is Tensor and not (_is_compiling() or _dispatch_depth() or _functorch_level()):
        kernel = op._by_device[out.is_cuda]
        if getattr(kernel, "writes_out", False):
            kernel(like, *args, out=out)
            torch.autograd.graph.increment_version(out)  # autograd then sees what a copy_ would have shown it
            return out
    return out.copy_(op(like, *args))
