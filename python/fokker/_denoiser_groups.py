"""Group norm with FiLM and an activation, and the bias-free norm, as public functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_groups_ops as ops
from ._denoiser_groups_arguments import (
    activation_number,
    check_eps,
    check_input,
    check_parameter,
    check_residual,
    given,
)
from ._op import _PLAIN, _dispatch_depth, _functorch_level, _is_compiling

__all__ = ["bias_free_norm", "group_norm_silu"]


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = "silu",
    out: Any = None,
) -> Any:
    r"""Group norm, FiLM and SiLU in one pass: the layer before every convolution of a U-Net.

    .. math:: y = \mathrm{silu}\big(\beta + (w \hat{x} + b)(1 + \gamma)\big), \quad
        \hat{x} = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \epsilon}}

    with mean and variance (of the population) over the C / groups channels of a group and all positions of a sample.

    Args:
        x: (B, C) or (B, C, ...) with any number of dimensions; float32, float64, bfloat16 or float16; contiguous,
            channels_last, or batches and channels cut out of such: the result keeps the layout. Other strides are
            copied first.
        groups: G, a divisor of C.
        weight, bias: w and b (C,); None: 1 and 0.
        scale, shift: gamma and beta (B, C), of any strides (``emb.chunk(2, 1)``); None: 0.
        residual: a tensor of x's shape, dtype and layout; then x + residual is what is normalised.
        eps: added to the variance, positive.
        activation: ``"silu"``, ``"relu"``, or None.
        out: a tensor of x's shape and dtype to write y into; may be x. With ``residual`` a pair (sum, y).

    The parameters have x's dtype, or float32 beside a half-precision x.

    Returns:
        y in x's dtype and layout; with ``residual`` the pair (x + residual, y), where y is the norm of the sum as
        rounded to its dtype. Arithmetic is float64 for a float64 x, else float32, and rounded once; the variance is
        that of deviations from the mean, so that large means cost no digits. An empty batch gives an empty result.

    Differentiable in x, residual, weight, bias, scale and shift (any number of times); not with ``out``. For the
    backward pass x (or the sum), the parameters and two numbers a group are kept. ValueError names a wrong shape or
    value, TypeError a wrong type, dtype, device or layout.
    Source: Wu and He 2018 (arXiv 1803.08494); with FiLM: Dhariwal and Nichol 2021 (2105.05233), appendix A, AdaGN.
    """
    groups = check_input("group_norm_silu", x, groups)
    parameters = given("group_norm_silu", x, weight, bias, scale, shift)
    settings = (groups, check_eps(eps), activation_number(activation), True)
    if residual is not None:
        check_residual(x, residual)
        if out is not None:
            return _into(ops.group_norm_sum, (x, residual, *parameters, None, *settings), out, 2)
        return ops.group_norm_sum(x, residual, *parameters, None, *settings)[:2]
    if out is not None:
        return _into(ops.group_norm, (x, *parameters, None, *settings), (out,), 1)[0]
    return ops.group_norm(x, *parameters, None, *settings)[0]


def bias_free_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    std: Tensor | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    return_std: bool = False,
    out: Tensor | None = None,
) -> Any:
    r"""A norm that adds nothing: x over the standard deviation of its group, times weights.

    .. math:: y = \mathrm{act}\big(w (1 + \gamma)\, x / s\big), \quad s = \sqrt{\mathrm{var} + \epsilon}

    No mean is taken off and no constant added. With a given ``std`` (the running value of a trained network) and no
    activation or ``"relu"`` the layer is homogeneous of degree one, and a network of such layers and convolutions
    without bias has D(k x) = k D(x) for k > 0: it denoises at noise levels that it has not seen. Without ``std`` each
    sample's own is used, about its mean, and the layer does not depend on the size of x (degree zero) where the
    variance is far above eps.

    Args:
        x: as in `group_norm_silu`.
        groups: G, a divisor of C; G = C has one standard deviation a channel, as bias-free batch norm has.
        weight: w (C,); None: 1.
        scale: gamma (B, C); None: 0.
        std: s as (G,) or (B, G), positive, not differentiated.
        eps: added to the variance, positive; not used with ``std``.
        activation: None, ``"relu"`` or ``"silu"`` (which is not homogeneous).
        return_std: also return the s used, (B, G), in float64 and without gradient: what a running value is made of.
        out: a tensor of x's shape and dtype to write y into; may be x.

    Returns:
        y in x's dtype and layout, or (y, s). Differentiable in x, weight and scale (any number of times); not with
        ``out``. Dtypes, layouts and errors as in `group_norm_silu`.
    Source: Mohan et al. 2020 (arXiv 1906.05478), section 4 and appendix; Kadkhodaie et al. 2024 (2310.02557).
    """
    groups = check_input("bias_free_norm", x, groups)
    weight, _, scale, _ = given("bias_free_norm", x, weight, None, scale, None)
    if std is not None:
        batch = x.shape[0]
        check_parameter("bias_free_norm", "std", std, x, ((groups,), (batch, groups)), "(groups,) or (batch, groups)")
        if std.requires_grad and torch.is_grad_enabled():
            raise ValueError("bias_free_norm: std is not differentiated: detach it")
        std = std.expand(batch, groups)
    args = (x, weight, None, scale, None, std, groups, check_eps(eps), activation_number(activation), False)
    if out is not None:
        y, stats = _into(ops.group_norm, args, (out,), 1)
    else:
        y, stats = ops.group_norm(*args)
    return (y, 1 / stats.detach()[..., 1]) if return_std else y


def _writable(given: Sequence[Any], out: Sequence[Tensor]) -> bool:
    """Whether a kernel may write to ``out`` while it reads: memory is shared with nothing, or with a whole argument."""
    for i, t in enumerate(out):
        memory = t.untyped_storage().data_ptr()
        for a in (*(a for a in given if isinstance(a, Tensor)), *out[:i]):
            whole = a.data_ptr() == t.data_ptr() and a.shape == t.shape and a.stride() == t.stride()
            if a.untyped_storage().data_ptr() == memory and (not whole or any(a is o for o in out[:i])):
                return False
    return True


def _into(op: Any, args: tuple[Any, ...], out: Sequence[Tensor], results: int) -> tuple[Tensor, ...]:
    """The results written into ``out``, straight by kernels that can; then what else the op returns."""
    x = args[0]
    if isinstance(out, Tensor) or len(out) != results:
        raise ValueError(f"out must be {'a pair (sum, y)' if results == 2 else 'a tensor'}")
    for t in out:
        if not isinstance(t, Tensor):
            raise TypeError(f"out must be a tensor, got {type(t).__name__}")
        if t.shape != x.shape:
            raise ValueError(f"out {tuple(t.shape)} must have the shape of x {tuple(x.shape)}")
        if t.dtype is not x.dtype:
            raise TypeError(f"out must have dtype {x.dtype}, that of x, got {t.dtype}")
        if t.device != x.device:
            raise TypeError(f"out is on {t.device}, x on {x.device}: one device expected")
    tensors = (*args[: op.tensors], *out)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError("out= records no gradient: leave it out, detach the arguments, or use torch.no_grad()")
    plain = not (_is_compiling() or _dispatch_depth() or _functorch_level())
    if plain and all(t is None or (type(t) in _PLAIN and not t.is_neg()) for t in tensors) and _writable(args, out):
        kernel = op._by_device[x.is_cuda]
        if getattr(kernel, "writes_out", False):
            found = kernel(*args, out=out)
            for t in out:
                torch.autograd.graph.increment_version(t)
            return found
    found = op(*args)
    for t, y in zip(out, found, strict=False):
        t.copy_(y)
    return (*out, *found[results:])
