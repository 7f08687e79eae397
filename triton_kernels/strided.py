"""How a kernel is launched over tensors that broadcast: up to four strided dimensions, none of them copied."""

import os
from contextlib import AbstractContextManager

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

DIMENSIONS = 4


def collapse(shape: torch.Size, *strides: tuple[int, ...]) -> tuple[list[int], list[list[int]]]:
    """Sizes and, for each tensor, strides of the fewest dimensions that visit the same elements in the same order."""
    sizes: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for i, size in enumerate(shape):
        if size == 1:
            continue
        now = [s[i] for s in strides]
        if sizes and all(step[-1] == n * size for step, n in zip(steps, now, strict=True)):
            sizes[-1] *= size
            for step, n in zip(steps, now, strict=True):
                step[-1] = n
        else:
            sizes.append(size)
            for step, n in zip(steps, now, strict=True):
                step.append(n)
    return sizes, steps


def by_strides(first: Tensor, *others: Tensor, leading: int = 0) -> list[Tensor]:
    """Tensors of one shape, their dimensions, past the leading ones, in the order in which the first lies in memory."""
    order = [*range(leading), *sorted(range(leading, first.dim()), key=lambda d: -first.stride(d))]
    return [t.permute(order) for t in (first, *others)]


def walk(*tensors: Tensor) -> tuple[torch.Size, list[Tensor], int, list[int]]:
    """The broadcast shape, the tensors, how many dimensions a kernel walks and the integers it wants for that.

    The integers: the sizes of the last three dimensions, then four strides a tensor, outermost first. A shape that
    collapses to more than four dimensions is the one case in which what is read is copied first (made contiguous).
    """
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    views = [t.resolve_neg().expand(shape) for t in tensors]  # a kernel does not see a lazy negation
    sizes, steps = collapse(shape, *(t.stride() for t in views))
    if len(sizes) > DIMENSIONS:
        views = [t.contiguous() for t in views]
        sizes, steps = collapse(shape, *(t.stride() for t in views))
    pad = DIMENSIONS - len(sizes)
    sizes = [1] * pad + sizes
    return shape, views, max(1, DIMENSIONS - pad), sizes[1:] + [s for step in steps for s in [0] * pad + step]


def launching(x: Tensor) -> AbstractContextManager[object]:
    """The tensor's device; on the CPU, where NumPy interprets, silence about infinities in unused lanes."""
    return torch.cuda.device(x.device) if x.is_cuda else np.errstate(all="ignore")


def dot_precision(wide: bool) -> str | None:
    """What `elementary.matmul` is given: float32 on a GPU is split into three bfloat16 terms, as accurate as itself.

    Of float64 Triton has no products on the tensor cores of compute capability 8 that it can compile in every layout.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "ieee"
    if not wide:
        return "bf16x6"
    return None if triton.runtime.driver.active.get_current_target().arch // 10 == 8 else "ieee"


@triton.jit
def offset(i, n1, n2, n3, s0, s1, s2, s3, DIMS: tl.constexpr):
    """Where element i of the broadcast shape lies in a tensor of these strides."""
    if DIMS == 1:
        return i * s3
    else:
        at = (i % n3) * s3
        i = i // n3
        if DIMS >= 3:
            at += (i % n2) * s2
            i = i // n2
        else:
            at += i * s2
        if DIMS == 3:
            at += i * s1
        if DIMS == 4:
            at += (i % n1) * s1 + (i // n1) * s0
        return at


@triton.jit
def load(pointer, at, mask, other):
    """Elements in the type they are computed in: float64 for float64, else float32."""
    x = tl.load(pointer + at, mask=mask, other=other)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    return x


@triton.jit
def store(pointer, i, x, mask):
    """Elements in the type of the result. bfloat16 is rounded by hand: the interpreter's conversion truncates."""
    if pointer.dtype.element_ty == tl.bfloat16:
        x = x.to(tl.float32)
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    tl.store(pointer + i, x.to(pointer.dtype.element_ty), mask=mask)
