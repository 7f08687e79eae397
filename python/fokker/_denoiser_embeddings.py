"""Embeddings of noise levels, by one kernel of sinusoids.

Phases are float64, where thousands of radians keep their digits. The kernel takes off their turns before it leaves
float64, so that the sines of float32 cost what they cost anywhere; where a gradient is recorded or something is traced
the embeddings are torch ops.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ._denoiser_heads import check_number, check_positive, check_tensor
from ._elementwise import FLOATS
from ._op import _PLAIN, _dispatch_depth, _forward_ad, _functorch_level, _is_compiling
from ._sde_step import _MODULES
from .reference import denoiser_heads as reference

__all__ = ["fourier_embedding", "mp_fourier", "timestep_embedding"]


def _dtype(function: str, dtype: Any) -> None:
    if dtype not in FLOATS:
        seen = dtype if isinstance(dtype, torch.dtype) else f"{type(dtype).__name__} {dtype!r}"
        raise TypeError(f"{function}: dtype must be float16, bfloat16, float32 or float64, got {seen}")


def _levels(function: str, t: Any) -> Tensor:
    if not isinstance(t, Tensor):
        raise TypeError(f"{function}: t must be a tensor, got {type(t).__name__}")
    if t.is_complex() or t.dtype is torch.bool:
        raise TypeError(f"{function}: t must hold real numbers, got {t.dtype}")
    return t.double()


def _module(*tensors: Tensor) -> Any:
    """The compiled module to call, or None where torch must see what is done."""
    first = tensors[0]
    if not _plain(*tensors) or not (first.is_cpu or first.is_cuda):
        return None
    if any(type(t) not in _PLAIN or t.is_neg() for t in tensors):
        return None
    return _MODULES[first.is_cuda]


def _waves(
    module: Any, t: Tensor, turns: Tensor, phases: Tensor | None, width: int, order: int, gain: float, dtype: Any
) -> Tensor:
    """Of float64 tensors: gain cos and sin of 2 pi (t turns + phases), in rows of ``width``."""
    out = torch.empty((*t.shape, width), dtype=dtype, device=t.device)
    module.waves(t.reshape(-1), turns, phases, out if out.dim() == 2 else out.view(t.numel(), width), order, gain)
    return out


def _frequencies(half: int, max_period: float, over: float, device: Any) -> Tensor:
    index = torch.arange(half, dtype=torch.float64, device=device)
    return torch.exp(index * (-math.log(max_period) / over))


@functools.lru_cache(maxsize=64)
def _turns_of(half: int, max_period: float, over: float, scale: float, device: Any) -> Tensor:
    with torch.inference_mode(False):
        return _frequencies(half, max_period, over, device) * (scale / (2 * math.pi))


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
        dtype: of the result; phases, cos and sin are float64 (a float32 phase near t = 1000 is off by 6e-5), rounded
            once.

    Returns:
        (*t.shape, dim). Differentiable in t. ValueError and TypeError name what does not fit.
    Source: Vaswani et al. 2017 section 3.5; Ho et al. 2020; Peebles and Xie 2023 (arXiv 2212.09748).
    """
    at = _levels("timestep_embedding", t)
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"timestep_embedding: dim must be an int, got {type(dim).__name__}")
    half, shift = dim // 2, check_number("timestep_embedding: downscale_freq_shift", downscale_freq_shift)
    if dim < 2 or half <= shift:
        raise ValueError(f"timestep_embedding: dim // 2 must be at least 1 and above downscale_freq_shift, got {dim}")
    check_positive("timestep_embedding: max_period", max_period)
    _dtype("timestep_embedding", dtype)
    factor = check_number("timestep_embedding: scale", scale)
    if (module := _module(at)) is not None:
        turns = _turns_of(half, max_period, half - shift, factor, at.device)
        return _waves(module, at, turns, None, dim, 0 if flip_sin_to_cos else 1, 1.0, dtype)
    phase = factor * at[..., None] * _frequencies(half, max_period, half - shift, at.device)
    parts = [phase.cos(), phase.sin()] if flip_sin_to_cos else [phase.sin(), phase.cos()]
    if dim % 2:
        parts.append(torch.zeros_like(phase[..., :1]))
    return torch.cat(parts, -1).to(dtype)


def _features(
    function: str, t: Any, frequencies: Any, phases: Any, order: int, gain: float, dtype: torch.dtype
) -> Tensor:
    """Checked; order 0: [cos, sin], 1: [sin, cos], 2: cos alone."""
    at = _levels(function, t)
    _dtype(function, dtype)
    given = {"frequencies": frequencies} if order < 2 else {"frequencies": frequencies, "phases": phases}
    for name, value in given.items():
        check_tensor(function, name, value, at)
        if value.dim() != 1:
            raise ValueError(f"{function}: {name} must have one dimension, got {tuple(value.shape)}")
    if order == 2 and phases.shape != frequencies.shape:
        shapes = f"{tuple(frequencies.shape)} and {tuple(phases.shape)}"
        raise ValueError(f"{function}: frequencies and phases must have one shape, got {shapes}")
    turns = [v.double() for v in given.values()]
    count = frequencies.shape[0]
    if (module := _module(at, *given.values())) is not None:
        shifts = turns[1].contiguous() if order == 2 else None
        width = count if order == 2 else 2 * count
        return _waves(module, at, turns[0].contiguous(), shifts, width, order, gain, dtype)
    phase = at[..., None] * turns[0]
    if order == 2:
        return (gain * torch.cos(2 * math.pi * (phase + turns[1]))).to(dtype)
    phase = 2 * math.pi * phase
    parts = [phase.sin(), phase.cos()] if order else [phase.cos(), phase.sin()]
    return torch.cat(parts, -1).to(dtype)


def fourier_embedding(
    t: Tensor, frequencies: Tensor, *, flip_sin_to_cos: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    r"""Random Fourier features of noise levels: [cos, sin] of :math:`2\pi f t` (EDM), or [sin, cos] (score_sde).

    Args:
        t: noise levels of any shape; EDM and score_sde give log sigma.
        frequencies: (F,), drawn once, normal of standard deviation 16 as a rule.
        flip_sin_to_cos: which comes first, as in `timestep_embedding`.
        dtype: of the result; phases and precision as in `timestep_embedding`.

    Returns:
        (*t.shape, 2 F). Differentiable in t and frequencies. ValueError and TypeError name what does not fit.
    Source: Tancik et al. 2020 (arXiv 2006.10739); Song et al. 2021 (2011.13456).
    """
    return _features("fourier_embedding", t, frequencies, None, 0 if flip_sin_to_cos else 1, 1.0, dtype)


def mp_fourier(t: Tensor, frequencies: Tensor, phases: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""EDM2's magnitude-preserving Fourier features :math:`\sqrt 2 \cos(2\pi(f t + \varphi))`.

    frequencies and phases (F,) in turns: normal and uniform, drawn once. Returns (*t.shape, F); errors and derivatives
    as in `fourier_embedding`. Source: Karras et al. 2024 (arXiv 2312.02696) eq. 75-76.
    """
    return _features("mp_fourier", t, frequencies, phases, 2, math.sqrt(2), dtype)


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
