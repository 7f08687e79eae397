"""Samples of the von Mises-Fisher distribution, differentiable and not: what `fokker.vmf` offers of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _vmf_ops as ops
from ._elementwise import check_dense
from ._vmf_arguments import check_dim, check_rows


def _integer(value: Any) -> int:
    # torch.compile keeps a plain int symbolic, where operator.index would compile anew for each value.
    return value if type(value) is int else operator.index(value)


def sample_shape_of(value: Any) -> tuple[int, ...]:
    """A sample shape as a tuple: of a torch.Size, tuple or list, or of an int n as (n,)."""
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    try:
        shape = tuple(_integer(n) for n in sizes)
    except TypeError:
        raise TypeError(f"sample_shape must be an int or a tuple of ints, got {value!r}") from None
    if any(n < 0 for n in shape):
        raise ValueError(f"sample_shape must not be negative, got {shape}")
    return shape


def _seed(seed: Any, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if seed is None:
        device = generator.device if generator is not None else "cpu"
        return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))
    value = _integer(seed)
    if not 0 <= value < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {value}")
    return value - 2**64 if value >= 2**63 else value  # a schema's int is signed


def rsample(
    mean_direction: Tensor,
    concentration: Any,
    sample_shape: int | Sequence[int] = (),
    *,
    seed: int | None = None,
    step: int = 0,
    sample_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Exact samples of vMF(mu, k), differentiable in mean direction and concentration.

    The cosine mu.x comes from Wood's rejection scheme (1994; inversion at d = 3), the direction from normed normals,
    a Householder reflection turns e1 into mu: one pass, no temporary. The noise is a pure function of
    ``(seed, step, sample id, element)`` (Philox4x32-10): the same sample on every backend, whatever the batch split.

    The gradient in the concentration is implicit, ``dw/dk = -(1/f(w)) int_{-1}^w (t - A) f(t) dt`` (Figurnov et al.
    2018): unbiased, where the pathwise gradient through the rejection step is not.

    Args:
        mean_direction: ``(..., d)``, unit vectors. concentration: ``(...)``, in [0, 1e8] or so; they broadcast to the
            batch shape.
        sample_shape: leading shape of the result; an int n is ``(n,)``.
        seed: in [0, 2^64); ``generator`` (or torch's default) draws one where it is not given.
        step: in [0, 2^24), a second key for repeated draws under one seed.
        sample_ids: int64, broadcasts to sample_shape + batch shape: which noise each sample gets (its linear index
            where not given).

    Returns:
        ``sample_shape + batch_shape + (d,)``. A negative or NaN concentration gives NaN.
    """
    mean, k = check_rows("rsample", {"mean_direction": mean_direction}, {"concentration": concentration})
    d = check_dim(mean.shape[-1])
    step = _integer(step)
    if not 0 <= step < 2**24:
        raise ValueError(f"step must be in [0, 2^24), got {step}")
    dtype = mean.dtype
    if dtype in (torch.float16, torch.bfloat16):
        mean, k = mean.float(), k.float()
    batch = torch.broadcast_shapes(mean.shape[:-1], k.shape)
    full = torch.Size(sample_shape_of(sample_shape)) + batch
    rows = mean.reshape(1, d) if mean.numel() == d else mean.expand(*batch, d).reshape(-1, d)
    flat = k.reshape(1) if k.numel() == 1 else k.expand(batch).reshape(-1)
    if sample_ids is not None:
        if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
            raise TypeError("sample_ids must be an int64 tensor")
        check_dense("rsample", "sample_ids", sample_ids)
        try:
            sample_ids = sample_ids.to(mean.device).expand(full).reshape(-1)
        except RuntimeError:
            raise ValueError(f"sample_ids {tuple(sample_ids.shape)} must broadcast to {tuple(full)}") from None
    n = full.numel()
    seed = _seed(seed, generator)
    if not n:
        return (mean * k[..., None]).expand(*full, d).to(dtype)
    out = ops.sample(rows, flat, sample_ids, 0, seed, step, n)[0]
    return out.reshape(*full, d).to(dtype)


def sample(mean_direction: Tensor, concentration: Any, sample_shape: int | Sequence[int] = (), **noise: Any) -> Tensor:
    r"""`rsample` without a gradient: the same samples, arguments, shapes and errors."""
    with torch.no_grad():
        return rsample(mean_direction, concentration, sample_shape, **noise)
