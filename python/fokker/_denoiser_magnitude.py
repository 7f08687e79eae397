"""EDM2's magnitude-preserving operations: weighted sums and concatenations as affine steps, and the pixel norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._denoiser_embeddings import row
from ._denoiser_heads import check_eps, check_number, check_tensor
from ._op import Kernel, Op, native_kernels
from ._sde_step import affine_step
from .reference import denoiser_heads as reference

__all__ = ["mp_cat", "mp_sum", "pixel_norm"]


def _share(function: str, t: Any) -> float:
    share = check_number(f"{function}: t", t)
    if not 0 <= share <= 1:
        raise ValueError(f"{function}: t must be in [0, 1], got {t}")
    return share


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5, *, out: Tensor | None = None) -> Tensor:
    r"""((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), which keeps the magnitude of independent unit a and b; one pass.

    a, b: one shape (batch, ...), any strides. The result has a's dtype. Differentiable in a and b, any number of times.
    ValueError and TypeError name what does not fit. Source: Karras et al. 2024 (arXiv 2312.02696) eq. 88.
    """
    check_tensor("mp_sum", "a", a)
    check_tensor("mp_sum", "b", b, a)
    if a.shape != b.shape:
        raise ValueError(f"mp_sum: a {tuple(a.shape)} and b {tuple(b.shape)} must have one shape")
    share = _share("mp_sum", t)
    size = math.hypot(1 - share, share)
    return affine_step(a, (b,), row(((1 - share) / size, share / size), a), out=out)


def _lies_last(t: Tensor) -> bool:
    """Whether its channels, dimension 1, lie together and it is no other way contiguous."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


# ---- concatenation ---------------------------------------------------------------------------------------------------
def _weighted_reference(a: Tensor, b: Tensor, wa: float, wb: float, dim: int) -> Tensor:
    return torch.cat((wa * a, wb * b), dim)


def _empty(like: Tensor, shape: Sequence[int], last: bool) -> Tensor:
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _weighted_fake(a: Tensor, b: Tensor, wa: float, wb: float, dim: int) -> Tensor:
    shape = [n + b.shape[i] if i == dim else n for i, n in enumerate(a.shape)]
    return _empty(a, shape, _lies_last(a))


def _together(t: Tensor, dim: int, last: bool) -> Tensor:
    """Rows of what ``dim`` and the dimensions after it hold, in memory order; a tensor of other strides is copied."""
    if last:
        return t.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, t.shape[1])
    return t.contiguous().reshape(math.prod(t.shape[:dim]), math.prod(t.shape[dim:]))


def _weighted_kernel(module: Any) -> Kernel:
    def run(a: Tensor, b: Tensor, wa: float, wb: float, dim: int) -> Tensor:
        y = _weighted_fake(a, b, wa, wb, dim)
        last = dim == 1 and _lies_last(y)
        module.weighted_cat(*(_together(t, dim, last) for t in (a, b, y)), wa, wb, False)
        return y

    return run


def _steps_into_parts(a: Tensor, b: Tensor, wa: float, wb: float, dim: int) -> Tensor:
    y = _weighted_fake(a, b, wa, wb, dim)
    with torch.no_grad():
        for w, part, at in ((wa, a, 0), (wb, b, a.shape[dim])):
            if part.numel():
                affine_step(part, (), row((w,), part), out=y.narrow(dim, at, part.shape[dim]))
    return y


def _split_reference(grad: Tensor, wa: float, wb: float, dim: int, na: int) -> tuple[Tensor, Tensor]:
    a, b = grad.split((na, grad.shape[dim] - na), dim)
    return wa * a, wb * b


def _split_fake(grad: Tensor, wa: float, wb: float, dim: int, na: int) -> tuple[Tensor, Tensor]:
    last = dim == 1 and _lies_last(grad)
    shapes = [[*grad.shape[:dim], n, *grad.shape[dim + 1 :]] for n in (na, grad.shape[dim] - na)]
    return _empty(grad, shapes[0], last), _empty(grad, shapes[1], last)


def _split_kernel(module: Any) -> Kernel:
    def run(grad: Tensor, wa: float, wb: float, dim: int, na: int) -> tuple[Tensor, Tensor]:
        a, b = _split_fake(grad, wa, wb, dim, na)
        last = dim == 1 and _lies_last(grad)
        module.weighted_cat(*(_together(t, dim, last) for t in (a, b, grad)), wa, wb, True)
        return a, b

    return run


_weighted_split = Op(
    "denoiser_mp_cat_vjp(Tensor grad, float wa, float wb, int dim, int na) -> (Tensor, Tensor)",
    tensors=1,
    reference=_split_reference,
    fake=_split_fake,
    kernels={**native_kernels(_split_kernel), "triton": _split_reference},  # torch ops: Triton has no kernel of it
)


def _weighted_backward(needs: Sequence[bool], saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    make = _split_reference if torch.is_grad_enabled() else _weighted_split
    a, b = make(grad, *extra, saved[0].shape[extra[2]])
    return a if needs[0] else None, b if needs[1] else None


_weighted_cat = Op(
    "denoiser_mp_cat(Tensor a, Tensor b, float wa, float wb, int dim) -> Tensor",
    tensors=2,
    reference=_weighted_reference,
    fake=_weighted_fake,
    kernels={**native_kernels(_weighted_kernel), "triton": _steps_into_parts},
    backward=_weighted_backward,
)


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float = 0.5) -> Tensor:
    r"""Concatenation of which a and b contribute 1 - t and t of the magnitude, whatever their numbers of channels.

    .. math:: \sqrt{\frac{N_a + N_b}{(1-t)^2 + t^2}} \left[\frac{1-t}{\sqrt{N_a}} a,\ \frac{t}{\sqrt{N_b}} b\right]

    with N_a, N_b the sizes along ``dim``. One pass forward, one backward; differentiable in a and b, any number of
    times. ValueError and TypeError name what does not fit.
    Source: Karras et al. 2024 (arXiv 2312.02696) eq. 103.
    """
    check_tensor("mp_cat", "a", a)
    check_tensor("mp_cat", "b", b, a)
    if not isinstance(dim, int) or not -a.dim() <= dim < a.dim():
        raise ValueError(f"mp_cat: dim must be in [{-a.dim()}, {a.dim()}), got {dim}")
    dim %= a.dim()
    if a.dtype != b.dtype:
        raise TypeError(f"mp_cat: a and b must have one dtype, got {a.dtype} and {b.dtype}")
    if a.dim() != b.dim() or any(i != dim and n != m for i, (n, m) in enumerate(zip(a.shape, b.shape, strict=True))):
        raise ValueError(f"mp_cat: a {tuple(a.shape)} and b {tuple(b.shape)} must agree outside dim {dim}")
    share, na, nb = _share("mp_cat", t), a.shape[dim], b.shape[dim]
    size = math.sqrt((na + nb) / ((1 - share) ** 2 + share**2))
    wa, wb = size / math.sqrt(max(na, 1)) * (1 - share), size / math.sqrt(max(nb, 1)) * share
    return _weighted_cat(a, b, wa, wb, dim)


# ---- pixel norm ------------------------------------------------------------------------------------------------------
def _as_rows(t: Tensor, dim: int) -> Tensor:
    """(outer, channels, inner) in memory order, a view; a tensor of other strides is copied first."""
    if dim == 1 and _lies_last(t):
        return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1], 1)
    return t.contiguous().reshape(math.prod(t.shape[:dim]), t.shape[dim], math.prod(t.shape[dim + 1 :]))


def _norm_kernel(module: Any) -> Kernel:
    def run(x: Tensor, dim: int, eps: float) -> Tensor:
        y = torch.empty_like(x if _lies_last(x) and dim == 1 else x.contiguous())
        module.pixel_norm(_as_rows(x, dim), None, _as_rows(y, dim), eps)
        return y

    return run


def _norm_vjp_kernel(module: Any) -> Kernel:
    def run(x: Tensor, grad: Tensor, dim: int, eps: float) -> Tensor:
        if _lies_last(x) and dim == 1:
            x, grad = x, grad.contiguous(memory_format=torch.channels_last)
        else:
            x, grad = x.contiguous(), grad.contiguous()
        to_x = torch.empty_like(x)
        module.pixel_norm(_as_rows(x, dim), _as_rows(grad, dim), _as_rows(to_x, dim), eps)
        return to_x

    return run


def _norm_backward(needs: Sequence[bool], saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor | None]:
    make = reference.pixel_norm_vjp if torch.is_grad_enabled() else _norm_vjp
    return (make(saved[0], grad.to(saved[0].dtype), *extra),)


_norm = Op(
    "denoiser_pixel_norm(Tensor x, int dim, float eps) -> Tensor",
    tensors=1,
    reference=reference.pixel_norm,
    fake=lambda x, dim, eps: torch.empty_like(x if _lies_last(x) and dim == 1 else x.contiguous()),
    kernels={**native_kernels(_norm_kernel), "triton": reference.pixel_norm},  # torch ops: Triton has no kernel of it
    backward=_norm_backward,
)
_norm_vjp = Op(
    "denoiser_pixel_norm_vjp(Tensor x, Tensor grad, int dim, float eps) -> Tensor",
    tensors=2,
    reference=reference.pixel_norm_vjp,
    fake=lambda x, grad, dim, eps: torch.empty_like(x if _lies_last(x) and dim == 1 else x.contiguous()),
    kernels={**native_kernels(_norm_vjp_kernel), "triton": reference.pixel_norm_vjp},
)


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-4) -> Tensor:
    r"""x / (eps + sqrt(mean over ``dim`` of x^2)): unit magnitude of every pixel's channels.

    x: any floating dtype; computed in float64 for float64, else float32 (sums in float64), and rounded once. One pass
    over a contiguous or channels_last x; one of other strides is copied first. Differentiable, any number of times (the
    gradient of a zero pixel is that of x / eps). ValueError: a dim that x has not, eps <= 0.
    Source: Karras et al. 2024 (arXiv 2312.02696) eq. 30.
    """
    check_tensor("pixel_norm", "x", x)
    if not isinstance(dim, int) or not -x.dim() <= dim < x.dim() or not x.shape[dim]:
        raise ValueError(f"pixel_norm: dim must be one of x {tuple(x.shape)} that is not empty, got {dim}")
    return _norm(x, dim % x.dim(), check_eps("pixel_norm", eps))
