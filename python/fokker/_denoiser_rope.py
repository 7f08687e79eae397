"""Tables of rotary embeddings in one and two dimensions, with FiT's interpolations."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["rope_table", "rope_table_2d"]

INTERPOLATIONS = (None, "linear", "ntk", "yarn")


def _positive(name: str, value: Any, least: float = 0.0) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not least < value < math.inf:
        raise ValueError(f"{name} must be greater than {least:g} and finite, got {value}")
    return float(value)


def _angles(
    positions: Tensor, dim: int, theta: float, interpolation: Any, scale: float, trained_length: Any, alpha: Any,
    beta: Any,
) -> Tensor:  # fmt: skip
    """positions * frequencies in float64, (..., dim / 2)."""
    pairs = torch.arange(dim // 2, dtype=torch.float64, device=positions.device)
    base = theta
    if interpolation == "ntk" and scale > 1:
        if dim <= 2:
            raise ValueError(f"interpolation 'ntk' needs at least two pairs an axis, got {dim // 2}")
        base = theta * scale ** (dim / (dim - 2))
    frequency = torch.exp(pairs * (-2 * math.log(base) / dim))
    if interpolation == "linear":
        frequency = frequency / scale
    elif interpolation == "yarn" and scale > 1:
        turns = _positive("trained_length", trained_length) * frequency / (2 * math.pi)
        keep = ((turns - alpha) / (beta - alpha)).clamp(0, 1)
        frequency = (1 - keep) * frequency / scale + keep * frequency
    return positions.to(torch.float64)[..., None] * frequency


def _checked(
    dim: Any, multiple: int, theta: Any, interpolation: Any, alpha: Any, beta: Any, dtype: Any
) -> tuple[float, float, float]:
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    if dim <= 0 or dim % multiple:
        raise ValueError(f"dim must be a positive multiple of {multiple}, got {dim}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation must be None, 'linear', 'ntk' or 'yarn', got {interpolation!r}")
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype, got {dtype}")
    low, high = _positive("alpha", alpha), _positive("beta", beta)
    if not low < high:
        raise ValueError(f"alpha must be below beta, got {alpha} and {beta}")
    return _positive("theta", theta), low, high


def _finish(angles: Tensor, magnitude: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (magnitude * angles.cos()).to(dtype), (magnitude * angles.sin()).to(dtype)


def _magnitude(interpolation: Any, scale: float) -> float:
    return 1 + 0.1 * math.log(scale) if interpolation == "yarn" and scale > 1 else 1.0


def rope_table(
    positions: int | Tensor,
    dim: int,
    theta: float = 10000.0,
    *,
    interpolation: str | None = None,
    scale: float = 1.0,
    trained_length: float | None = None,
    alpha: float = 1.0,
    beta: float = 32.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""cos and sin of a rotary embedding, one entry a pair: :math:`m\,\theta^{-2i/D}` for position m and pair i.

    ``interpolation`` for inputs ``scale`` = max(length / trained length, 1) times as long as in training:

    - None: as trained (direct extrapolation).
    - ``"linear"``: position interpolation, frequencies divided by s.
    - ``"ntk"``: NTK-aware, the base becomes :math:`\theta s^{D/(D-2)}`.
    - ``"yarn"``: frequencies that turn r = trained_length / wavelength times in training are divided by s for
      r < alpha, kept for r > beta, blended linearly between; cos and sin are multiplied by 1 + 0.1 ln s.

    Args:
        positions: a count (0, 1, ...), or a tensor (T,) or (B, T), whole or not.
        dim: D, even.
        trained_length: of positions in training; "yarn" only.
        dtype: of the result; computed in float64 and rounded once.

    Returns:
        cos and sin (..., T, D/2), on the device of ``positions``. Constants, for `qk_norm_rope`.

    ValueError and TypeError name what does not fit.
    Source: Su et al. 2021 (arXiv 2104.09864); Chen et al. 2023 (2306.15595); Peng et al. 2023 (2309.00071) eq. 16-23.
    """
    theta, alpha, beta = _checked(dim, 2, theta, interpolation, alpha, beta, dtype)
    s = max(_positive("scale", scale), 1.0)
    angles = _angles(_positions(positions), dim, theta, interpolation, s, trained_length, alpha, beta)
    return _finish(angles, _magnitude(interpolation, s), dtype)


def _positions(positions: Any) -> Tensor:
    if isinstance(positions, Tensor):
        if positions.is_complex() or positions.dtype is torch.bool or not positions.dim():
            raise ValueError(
                f"positions must be real numbers of shape (T,) or (B, T), got {positions.dtype} "
                f"{tuple(positions.shape)}"
            )
        return positions.detach()
    if not isinstance(positions, int) or isinstance(positions, bool):
        raise TypeError(f"positions must be an int or a tensor, got {type(positions).__name__}")
    if positions < 0:
        raise ValueError(f"positions must not be negative, got {positions}")
    return torch.arange(positions)


def rope_table_2d(
    positions: tuple[int, int] | Tensor,
    dim: int,
    theta: float = 10000.0,
    *,
    interpolation: str | None = None,
    scale: float | Sequence[float] = 1.0,
    trained_length: float | None = None,
    alpha: float = 1.0,
    beta: float = 32.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    r"""cos and sin of a two-dimensional axial embedding: D/4 pairs for the first coordinate, then D/4 for the second.

    Each axis is a `rope_table` of dimension D/2. A single ``scale`` is FiT's NTK and YaRN with s = max(H, W) / trained
    length; a pair (s_1, s_2), one a coordinate, its VisionNTK and VisionYaRN with H and W over the trained length.
    YaRN's factor 1 + 0.1 ln s takes the larger of the two, for both axes.

    Args:
        positions: (height, width), for the grid of rows and columns in row-major order, or a tensor (T, 2), (B, T, 2).
        dim: D, a multiple of 4.
        The others: as in `rope_table`.

    Returns:
        cos and sin (..., T, D/2).

    ValueError and TypeError name what does not fit.
    Source: Lu et al. 2024, FiT (arXiv 2402.12376) section 3.3, and the sources of `rope_table`.
    """
    theta, alpha, beta = _checked(dim, 4, theta, interpolation, alpha, beta, dtype)
    pair = (scale, scale) if isinstance(scale, numbers.Real) else scale
    if not isinstance(pair, (tuple, list)):
        raise TypeError(f"scale must be a number or one a coordinate, got {type(scale).__name__}")
    if len(pair) != 2:
        raise ValueError(f"scale must be a number or one a coordinate, got {len(pair)} numbers")
    scales = [max(_positive("scale", s), 1.0) for s in pair]
    if isinstance(positions, Tensor):
        at = _positions(positions)
        if at.dim() < 2 or at.shape[-1] != 2:
            raise ValueError(f"positions must have shape (T, 2) or (B, T, 2), got {tuple(at.shape)}")
    else:
        if not isinstance(positions, (tuple, list)) or len(positions) != 2:
            raise ValueError(f"positions must be (height, width) or a tensor, got {positions!r}")
        at = torch.cartesian_prod(*(_positions(n) for n in positions))
    angles = torch.cat(
        [_angles(at[..., i], dim // 2, theta, interpolation, scales[i], trained_length, alpha, beta) for i in range(2)],
        -1,
    )
    return _finish(angles, _magnitude(interpolation, max(scales)), dtype)
