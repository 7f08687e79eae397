"""Embeddings of noise levels and EDM2's magnitude-preserving operations: composed of torch ops and affine steps.

Embeddings have (batch, a few hundred) elements: a kernel would save microseconds of a step (`fokker bench`, "timestep
embedding"), so they stay torch ops, computed in float64, where a phase of thousands of radians keeps its digits.
"""

from __future__ import annotations

import functools
import math
import numbers
from typing import Any

import torch
from torch import Tensor

from ._denoiser_heads import check_eps, check_tensor
from ._op import _dispatch_depth, _forward_ad, _functorch_level, _is_compiling
from ._sde_step import affine_step
from .reference import denoiser_heads as reference

__all__ = ["fourier_embedding", "mp_cat", "mp_fourier", "mp_sum", "pixel_norm", "timestep_embedding"]


def _number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # math.isfinite of a traced number breaks the graph
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def _levels(function: str, t: Any) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{function}: t must be a tensor, got {type(t).__name__}")
    if t.is_complex() or t.dtype is torch.bool:
        raise TypeError(f"{function}: t must hold real numbers, got {t.dtype}")
    return t.double()


def timestep_embedding(
    t: Tensor,
    dim: int,
    *,
    max_period: float = 10000.0,
    flip_sin_to_cos: bool = True,
    downscale_freq_shift: float = 0.0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Sinusoidal embedding of timesteps: cos and sin of :math:`s\,t\,P^{-i / (h - f)}`, i = 0 .. h - 1, h = dim // 2.

    Args:
        t: timesteps of any shape and real dtype, whole or not.
        dim: of the embedding; an odd one ends in a zero.
        max_period, downscale_freq_shift, scale: P, f and s.
        flip_sin_to_cos: [cos, sin] (DiT, ADM: the defaults), or [sin, cos] (diffusers' and DDPM's default, with
            ``downscale_freq_shift=1``).
        dtype: of the result; phases are float64, rounded once (a float32 phase near t = 1000 is off by 6e-5).

    Returns:
        (*t.shape, dim). Differentiable in t. ValueError and TypeError name what does not fit.
    Source: Vaswani et al. 2017 section 3.5; Ho et al. 2020; Peebles and Xie 2023 (arXiv 2212.09748).
    """
    at = _levels("timestep_embedding", t)
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"timestep_embedding: dim must be an int, got {type(dim).__name__}")
    half, shift = dim // 2, _number("timestep_embedding: downscale_freq_shift", downscale_freq_shift)
    if dim < 2 or half <= shift:
        raise ValueError(f"timestep_embedding: dim // 2 must be at least 1 and above downscale_freq_shift, got {dim}")
    if _number("timestep_embedding: max_period", max_period) <= 0:
        raise ValueError(f"timestep_embedding: max_period must be positive, got {max_period}")
    index = torch.arange(half, dtype=torch.float64, device=at.device)
    frequency = torch.exp(index * (-math.log(max_period) / (half - shift)))
    phase = _number("timestep_embedding: scale", scale) * at[..., None] * frequency
    parts = [phase.cos(), phase.sin()] if flip_sin_to_cos else [phase.sin(), phase.cos()]
    if dim % 2:
        parts.append(torch.zeros_like(phase[..., :1]))
    return torch.cat(parts, -1).to(dtype)


def _turns(function: str, t: Any, frequencies: Any, phases: Any = None) -> Tensor:
    at = _levels(function, t)
    for name, value in (("frequencies", frequencies), ("phases", phases)):
        if value is None and name == "phases":
            continue
        check_tensor(function, name, value, at)
        if value.dim() != 1:
            raise ValueError(f"{function}: {name} must have one dimension, got {tuple(value.shape)}")
    turns = at[..., None] * frequencies.double()
    if phases is None:
        return turns
    if phases.shape != frequencies.shape:
        shapes = f"{tuple(frequencies.shape)} and {tuple(phases.shape)}"
        raise ValueError(f"{function}: frequencies and phases must have one shape, got {shapes}")
    return turns + phases.double()


def fourier_embedding(
    t: Tensor, frequencies: Tensor, *, flip_sin_to_cos: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Random Fourier features of noise levels: [cos, sin] of :math:`2\pi f t` (EDM), or [sin, cos] (score_sde).

    Args:
        t: noise levels of any shape; EDM and score_sde give log sigma.
        frequencies: (F,), drawn once, normal of standard deviation 16 as a rule.
        flip_sin_to_cos: which comes first, as in `timestep_embedding`.
        dtype: of the result; phases are float64, rounded once.

    Returns:
        (*t.shape, 2 F). Differentiable in t and frequencies. ValueError and TypeError name what does not fit.
    Source: Tancik et al. 2020 (arXiv 2006.10739); Song et al. 2021 (2011.13456).
    """
    phase = 2 * math.pi * _turns("fourier_embedding", t, frequencies)
    parts = [phase.cos(), phase.sin()] if flip_sin_to_cos else [phase.sin(), phase.cos()]
    return torch.cat(parts, -1).to(dtype)


def mp_fourier(t: Tensor, frequencies: Tensor, phases: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""EDM2's magnitude-preserving Fourier features :math:`\sqrt 2 \cos(2\pi(f t + \varphi))`.

    frequencies and phases (F,) in turns: normal and uniform, drawn once. Returns (*t.shape, F); errors and derivatives
    as in `fourier_embedding`. Source: Karras et al. 2024 (arXiv 2312.02696) eq. 75-76.
    """
    return (math.sqrt(2) * torch.cos(2 * math.pi * _turns("mp_fourier", t, frequencies, phases))).to(dtype)


@functools.lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is made there could not be saved for a backward later
        return torch.tensor(values, dtype=dtype, device=device)


def _plain(*tensors: Tensor) -> bool:
    """Eager mode and tensors without a gradient to record."""
    if _is_compiling() or _dispatch_depth() or _functorch_level() or _forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def row(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Coefficients of an affine step; kept where nothing is traced, so that a GPU need not wait for a copy."""
    dtype = reference.arithmetic(like.dtype)
    if not _is_compiling() and not _dispatch_depth() and not _functorch_level():
        return _kept(values, dtype, like.device)
    return torch.stack([torch.full((), v, dtype=dtype, device=like.device) for v in values])


def _share(function: str, t: Any) -> float:
    share = _number(f"{function}: t", t)
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


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float = 0.5) -> Tensor:
    r"""Concatenation of which a and b contribute 1 - t and t of the magnitude, whatever their numbers of channels.

    .. math:: \sqrt{\frac{N_a + N_b}{(1-t)^2 + t^2}} \left[\frac{1-t}{\sqrt{N_a}} a,\ \frac{t}{\sqrt{N_b}} b\right]

    with N_a, N_b the sizes along ``dim``. One pass where no gradient is recorded, else products and a concatenation.
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
    if not _plain(a, b):
        return torch.cat((wa * a, wb * b), dim)
    like = torch.empty_like(a)
    shape = [*a.shape[:dim], na + nb, *a.shape[dim + 1 :]]
    last = a.dim() == 4 and not a.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    y = a.new_empty(shape)
    if last:
        y = y.contiguous(memory_format=torch.channels_last)
    for w, part, at in ((wa, a, 0), (wb, b, na)):
        if part.numel():
            affine_step(part, (), row((w,), part), out=y.narrow(dim, at, part.shape[dim]))
    return y


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-4) -> Tensor:
    r"""x / (eps + sqrt(mean over ``dim`` of x^2)): unit magnitude of every pixel's channels.

    x: any strides and floating dtype; computed in float64 for float64, else float32, and rounded once. Differentiable,
    any number of times (the gradient of a zero pixel is that of x / eps). ValueError: a dim that x has not, eps <= 0.
    Source: Karras et al. 2024 (arXiv 2312.02696) eq. 30.
    """
    check_tensor("pixel_norm", "x", x)
    if not isinstance(dim, int) or not -x.dim() <= dim < x.dim() or not x.shape[dim]:
        raise ValueError(f"pixel_norm: dim must be one of x {tuple(x.shape)} that is not empty, got {dim}")
    return reference.pixel_norm(x, dim, check_eps("pixel_norm", eps))
