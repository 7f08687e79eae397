"""The registered ops behind `fokker.denoiser.group_norm_silu` and `bias_free_norm`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _native
from ._denoiser_groups_arguments import NCHW, NHWC, layouts
from ._op import Kernel, Op, native_kernels
from .reference import denoiser_groups as reference

_PARAMETERS = "Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? std"
_SETTINGS = "SymInt groups, float eps, int activation, bool centred"
_NAMES = {number: name for name, number in reference.ACTIVATIONS.items()}


def _keywords(eps: float, activation: int, centred: bool) -> dict[str, Any]:
    return {"eps": eps, "activation": _NAMES[activation], "centred": centred}


# ---- memory ---------------------------------------------------------------------------------------------------------
def _place(x: Tensor, *others: Tensor | None) -> tuple[int, list[Tensor | None]]:
    """The layout in which the kernels take the tensors, and the tensors: copied where theirs is another."""
    common = layouts(x)
    if not common:  # dense in the order that x has, or else contiguous
        x = torch.empty_like(x).copy_(x)
        if not (common := layouts(x)):
            x, common = x.contiguous(), NCHW
    for t in others:
        if t is not None:
            common = common & layouts(t) or common
    if common == NCHW | NHWC:  # a row should be long
        common = NHWC if x.shape[1] > 1 else NCHW
    return common, [x, *(t if t is None or layouts(t) & common else torch.empty_like(x).copy_(t) for t in others)]


def _target(y: Tensor, layout: int, like: Tensor) -> Tensor:
    """What the kernel writes to: ``y`` itself, or a tensor that is copied to it afterwards."""
    return y if layouts(y) & layout else torch.empty_like(like)


def _work(module: Any, x: Tensor, groups: int, layout: int, backward: bool) -> Tensor | None:
    if layout != NHWC or module is _native.cpu:
        return None
    batch, channels, *rest = x.shape
    count = module.group_work(batch, channels, groups, math.prod(rest), True, backward)
    return torch.empty(count, dtype=torch.float64, device=x.device) if count else None


def _run_norm(
    module: Any, x: Tensor, residual: Tensor | None, out: Sequence[Tensor] | None, *rest: Any
) -> tuple[Tensor, ...]:
    """([x + residual,] y, statistics) by a native module."""
    *parameters, groups, eps, activation, centred = rest
    results = list(out) if out is not None else [torch.empty_like(x) for _ in range(1 + (residual is not None))]
    stats = _stats(x, groups)
    if not x.numel():
        return (*results, stats.zero_())
    layout, (x, residual) = _place(x, residual)
    targets = [_target(y, layout, x) for y in results]
    module.group_norm(
        x, residual, *parameters, groups, eps, activation, centred, layout == NHWC,
        None if residual is None else targets[0], targets[-1], stats, _work(module, x, groups, layout, False),
    )  # fmt: skip
    for y, target in zip(results, targets, strict=True):
        if target is not y:
            y.copy_(target)
    return (*results, stats)


# ---- the norm: (y, [mean, 1 / std] of each sample and group) --------------------------------------------------------
def _stats(x: Tensor, groups: int) -> Tensor:
    return torch.empty((x.shape[0], groups, 2), dtype=torch.float64, device=x.device)


def _norm_reference(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *parameters, groups, eps, activation, centred = rest
    return reference.group_norm(x, groups, *parameters, **_keywords(eps, activation, centred))


def _norm_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _stats(x, rest[5])


def _norm_kernel(module: Any) -> Kernel:
    def run(x: Tensor, *rest: Any, out: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        return _run_norm(module, x, None, out, *rest)

    run.writes_out = True  # type: ignore[attr-defined]
    return run


def _triton_norm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from .triton_kernels import groups

    return groups.group_norm(x, None, *rest)


def _norm_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, *parameters, _, stats = saved
    return _gradients(needs, x, parameters, stats, extra, grads[0], None)


def _gradients(
    needs: Sequence[bool],
    x: Tensor,
    parameters: Sequence[Tensor | None],
    stats: Tensor,
    extra: Sequence[Any],
    grad: Tensor | None,
    to_sum: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x and the parameters; ``to_sum`` is one more gradient in x."""
    none = (None,) * (len(needs) - 1)
    if grad is None:
        return (to_sum, *none)
    if torch.is_grad_enabled():  # to be differentiated again: composed of torch ops
        to_x, sums = _vjp_reference(x, grad, to_sum, *parameters, stats, *extra)
    else:
        to_x, sums = group_norm_vjp(x, grad, to_sum, *parameters, stats, *extra)
    to_parameters: Sequence[Tensor | None] = none[1:]
    if any(needs[1:5]):
        to_parameters = reference.parameter_gradients(sums, *parameters[:4])
    return (to_x, *to_parameters, None)


#: x normalised, and the statistics
group_norm = Op(
    f"denoiser_group_norm(Tensor x, {_PARAMETERS}, {_SETTINGS}) -> (Tensor, Tensor)",
    tensors=6,
    reference=_norm_reference,
    fake=_norm_fake,
    kernels={**native_kernels(_norm_kernel), "triton": _triton_norm},
    backward=_norm_backward,
    saves_results=True,
    partial_grads=True,
    drops=(6,),
)


# ---- of a residual sum: (x + residual, y, statistics); y is the norm of the sum as rounded to its dtype ------------
def _sum_reference(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    total = x + residual
    return (total, *_norm_reference(total, *rest))


def _sum_fake(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(x), _stats(x, rest[5])


def _sum_kernel(module: Any) -> Kernel:
    def run(x: Tensor, residual: Tensor, *rest: Any, out: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        return _run_norm(module, x, residual, out, *rest)

    run.writes_out = True  # type: ignore[attr-defined]
    return run


def _triton_sum(x: Tensor, residual: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from .triton_kernels import groups

    return groups.group_norm(x, residual, *rest)


def _sum_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    _, _, *parameters, total, _, stats = saved
    to_x, *rest = _gradients(needs[1:], total, parameters, stats, extra, grads[1], grads[0])
    return (to_x, to_x, *rest)


#: x + residual, that normalised, and the statistics
group_norm_sum = Op(
    f"denoiser_group_norm_sum(Tensor x, Tensor residual, {_PARAMETERS}, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
    tensors=7,
    reference=_sum_reference,
    fake=_sum_fake,
    kernels={**native_kernels(_sum_kernel), "triton": _triton_sum},
    backward=_sum_backward,
    saves_results=True,
    partial_grads=True,
    drops=(0, 1, 8),
)


# ---- the vector-Jacobian product: (gradient in x, the sums A and E of each sample and channel) ----------------------
def _vjp_reference(x: Tensor, grad: Tensor, to_sum: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *parameters, _, groups, eps, activation, centred = rest
    to_x, sums = reference.group_norm_vjp(x, grad, groups, *parameters, **_keywords(eps, activation, centred))
    return to_x if to_sum is None else to_x + to_sum, sums


def _vjp_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty((x.shape[0], x.shape[1], 2), dtype=torch.float64, device=x.device)


def _vjp_kernel(module: Any) -> Kernel:
    def run(x: Tensor, grad: Tensor, to_sum: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, stats, groups, _, activation, centred = rest
        to_x, sums = _vjp_fake(x)
        if not x.numel():
            return to_x, sums.zero_()
        layout, (x, grad, to_sum) = _place(x, grad, to_sum)
        target = _target(to_x, layout, x)
        module.group_norm_vjp(
            x, grad, to_sum, *parameters, stats, groups, activation, centred, layout == NHWC, target, sums,
            _work(module, x, groups, layout, True),
        )  # fmt: skip
        return (to_x if target is to_x else to_x.copy_(target)), sums

    return run


def _triton_vjp(x: Tensor, grad: Tensor, to_sum: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    from .triton_kernels import groups

    return groups.group_norm_vjp(x, grad, to_sum, *rest)


#: the gradient in x, and the sums that the parameters' gradients are made of
group_norm_vjp = Op(
    f"denoiser_group_norm_vjp(Tensor x, Tensor grad, Tensor? grad_sum, {_PARAMETERS}, Tensor stats, {_SETTINGS}) "
    "-> (Tensor, Tensor)",
    tensors=9,
    reference=_vjp_reference,
    fake=_vjp_fake,
    kernels={**native_kernels(_vjp_kernel), "triton": _triton_vjp},
)
