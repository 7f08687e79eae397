"""Checks of the arguments of group norms, each error with the argument's name, what was wanted and what was seen."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from ._elementwise import FLOATS, check_dense
from ._op import _functorch_level
from .reference.denoiser_groups import ACTIVATIONS
from .reference.sde import arithmetic

#: bits of `layouts`: the positions of a channel lie side by side; the channels of a position do
NCHW, NHWC = 1, 2


def layouts(x: Tensor) -> int:
    """Which of the two layouts a tensor (B, C, ...) has, with any strides between rows; both, one, or 0: neither."""
    if x.dim() > 2 and x.shape[1] > 1 and x.shape[-1] > 1:  # what is usual, at once
        if x.is_contiguous():
            return NCHW
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            return NHWC
    position = None  # the stride of positions, where they have one
    expected = 0
    for size, stride in zip(reversed(x.shape[2:]), reversed(x.stride()[2:]), strict=True):
        if size == 1:
            continue
        if position is None:
            position = expected = stride
        elif stride != expected:
            return 0
        expected *= size
    found = NCHW if position is None or position == 1 else 0
    if (x.shape[1] == 1 or x.stride(1) == 1) and position != 0:
        found |= NHWC
    return found


def check_input(function: str, x: Any, groups: Any) -> int:
    """The number of groups as an int, once x and it are right."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: x must be a tensor, got {type(x).__name__}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{function}: x must have dtype float32, float64, float16 or bfloat16, got {x.dtype}")
    check_dense(function, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{function}: x must have shape (batch, channels, ...), got {tuple(x.shape)}")
    if type(groups) is not int and (isinstance(groups, bool) or not isinstance(groups, numbers.Integral)):
        raise TypeError(f"{function}: groups must be an int, got {type(groups).__name__}")
    if groups < 1 or x.shape[1] < 1 or x.shape[1] % groups:
        raise ValueError(f"{function}: groups must divide the {x.shape[1]} channels of x, got {groups}")
    return int(groups)


def check_eps(eps: Any) -> float:
    if type(eps) is not float and (isinstance(eps, bool) or not isinstance(eps, numbers.Real)):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}")
    return float(eps)


def activation_number(activation: Any) -> int:
    if activation not in tuple(ACTIVATIONS):
        raise ValueError(f"activation must be 'silu', 'relu' or None, got {activation!r}")
    return ACTIVATIONS[activation]


def check_parameter(function: str, name: str, t: Any, x: Tensor, shapes: tuple[Any, ...], wanted: str) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor or None, got {type(t).__name__}")
    if tuple(t.shape) not in shapes:
        sizes = " or ".join(str(tuple(s)) for s in shapes)
        raise ValueError(f"{function}: {name} must have shape {wanted}, {sizes}, got {tuple(t.shape)}")
    wide = arithmetic(x.dtype)
    if t.dtype is not x.dtype and t.dtype is not wide:
        allowed = f"{x.dtype}" if wide is x.dtype else f"{x.dtype} or {wide}"
        raise TypeError(f"{function}: {name} must have dtype {allowed} beside x of {x.dtype}, got {t.dtype}")
    if t.device != x.device:
        raise TypeError(f"{function}: {name} is on {t.device}, x on {x.device}: one device expected")
    check_dense(function, name, t)


def given(
    function: str, x: Tensor, weight: Any, bias: Any, scale: Any, shift: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The parameters, checked."""
    channels, film = (x.shape[1],), tuple(x.shape[:2])
    if weight is not None:
        check_parameter(function, "weight", weight, x, (channels,), "(channels,)")
    if bias is not None:
        check_parameter(function, "bias", bias, x, (channels,), "(channels,)")
    if scale is not None:
        check_parameter(function, "scale", scale, x, (film,), "(batch, channels)")
    if shift is not None:
        check_parameter(function, "shift", shift, x, (film,), "(batch, channels)")
    return weight, bias, scale, shift


def check_residual(x: Tensor, residual: Any) -> None:
    if not isinstance(residual, Tensor):
        raise TypeError(f"group_norm_silu: residual must be a tensor or None, got {type(residual).__name__}")
    check_dense("group_norm_silu", "residual", residual)
    if residual.shape != x.shape:
        shapes = f"{tuple(residual.shape)} must have the shape of x {tuple(x.shape)}"
        raise ValueError(f"group_norm_silu: residual {shapes}")
    if residual.dtype is not x.dtype:
        raise TypeError(f"group_norm_silu: residual must have dtype {x.dtype}, that of x, got {residual.dtype}")
    if residual.device != x.device:
        raise TypeError(f"group_norm_silu: residual is on {residual.device}, x on {x.device}: one device expected")
    if _functorch_level():
        return  # the strides of a batched tensor say nothing of the caller's
    if (of_x := layouts(x)) and (of_residual := layouts(residual)) and not of_x & of_residual:
        names = {NCHW: "contiguous", NHWC: "channels_last"}
        raise TypeError(
            f"group_norm_silu: residual must have the layout of x, which is {names[of_x]}, got {names[of_residual]}"
        )
