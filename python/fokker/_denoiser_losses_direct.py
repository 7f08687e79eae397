"""Losses by one call of the compiled module, which makes the gradients in the pass that reads the values.

Eager mode, plain tensors, numbers a sample without a gradient, a loss that is one number: then what a gradient is
weighted by is known before it is asked for. Anything else takes the registered ops, whose backward is a pass of its own
made of differentiable ops; so does every derivative of such a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _backend, _native
from . import _denoiser_losses_ops as ops
from ._denoiser_losses_arguments import elements, per_sample, rows_of
from ._op import _PLAIN, _dispatch_depth, _forward_ad, _functorch_level, _grad_enabled, _is_compiling
from ._sde_ops import partial

_MODULES: list[Any] = [None, None]
#: gradients in narrower dtypes would be rounded before they are scaled by that of the loss
_WIDE = (torch.float32, torch.float64)


def _choose() -> None:
    """The compiled modules that may be called without the ops' detour: on the CPU, on CUDA."""
    for is_cuda in (False, True):
        _MODULES[is_cuda] = getattr(ops.forms._by_device[is_cuda], "module", None)


_choose()
_backend.on_change(_choose)


def module_for(
    vectors: Sequence[Tensor], numbers: Sequence[Any], reduction: str, differentiable: Sequence[int] = (0,)
) -> Any:
    """The module to call, or None where the ops must be; ``differentiable``: vectors whose gradients it makes."""
    if _is_compiling() or _dispatch_depth() or _functorch_level() or _forward_ad._current_level >= 0:
        return None
    grad, wanted = _grad_enabled(), False
    for k, t in enumerate(vectors):
        if type(t) not in _PLAIN or t.is_neg():
            return None
        if grad and t.requires_grad:
            if k not in differentiable or t.dtype not in _WIDE:
                return None
            wanted = True
    for t in numbers:
        if isinstance(t, Tensor) and (type(t) not in _PLAIN or t.is_neg() or (grad and t.requires_grad)):
            return None
    if not vectors[0].numel() or (wanted and reduction == "none"):
        return None
    return _MODULES[vectors[0].is_cuda]


def quiet(module: Any) -> contextlib.AbstractContextManager[Any]:
    """NumPy's divisions by zero say nothing, as torch's do."""
    return contextlib.nullcontext() if module is None else np.errstate(all="ignore")


def number(value: Any, name: str, x: Tensor, module: Any) -> Any:
    """As `per_sample`, or for a ``module`` on the CPU in NumPy, which takes a fifth of torch's time for a few."""
    if module is None or not x.is_cpu:
        return per_sample(value, name, x)
    if type(value) is float or type(value) is int:
        return np.float64(value)
    return per_sample(value, name, x).numpy()


def table(rows: Sequence[Sequence[Any]], x: Tensor) -> Tensor:
    """As `rows_of`; of arrays on the CPU."""
    if not x.is_cpu:
        return rows_of(rows, x)
    flat = [c for row in rows for c in row]
    batch = max((c.shape[0] for c in flat if isinstance(c, np.ndarray) and c.ndim), default=1)
    found = np.empty((batch, len(flat)))
    for k, c in enumerate(flat):
        found[:, k] = c
    return torch.from_numpy(found.reshape(batch, len(rows), len(rows[0])))


def share(reduction: str, x: Tensor) -> float:
    """What sums over a sample are multiplied by."""
    return {"mean": 1.0 / x.numel(), "sum": 1.0, "none": 1.0 / elements(x)}[reduction]


def total(values: Any, reduction: str, vectors: Sequence[Tensor]) -> Tensor:
    """A loss from values a sample, (B,): their sum, or themselves."""
    dtype = torch.float64 if any(t.dtype is torch.float64 for t in vectors) else torch.float32
    if isinstance(values, Tensor):
        return (values if reduction == "none" else values.sum()).to(dtype)
    if reduction == "none":
        return torch.from_numpy(values).to(dtype)
    return torch.scalar_tensor(float(values.sum()), dtype=dtype)


def sums_of(made: Tensor) -> Any:
    """Sums a sample (B, R) from what a module wrote, for arithmetic with `number`s."""
    return made[:, 0] if made.is_cuda else made.numpy()[:, 0]


#: of vectors and the tensors that gradients go into (None where none is wanted): the loss
Make = Callable[[Sequence[Tensor], Sequence[Any]], Tensor]
Again = Callable[[Sequence[Tensor], Sequence[Any]], Tensor]


class _Kept(torch.autograd.Function):
    """A loss whose gradients are made with its value, and given away at the first backward."""

    @staticmethod
    def forward(ctx: Any, make: Make, again: Again, numbers: tuple[Any, ...], *vectors: Tensor) -> Tensor:
        ctx.kept = _places(vectors, ctx.needs_input_grad[3:])
        value = make(vectors, ctx.kept)
        ctx.save_for_backward(*vectors, *(t for t in numbers if isinstance(t, Tensor)))
        ctx.make, ctx.again = make, again
        ctx.numbers = [Tensor if isinstance(t, Tensor) else t for t in numbers]
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        wanted = ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            saved = ctx.saved_tensors
            vectors, tensors = saved[: len(wanted)], iter(saved[len(wanted) :])
            loss = ctx.again(vectors, [next(tensors) if t is Tensor else t for t in ctx.numbers])
            leaves = [v for v, w in zip(vectors, wanted, strict=True) if w]
            found = iter(torch.autograd.grad(loss, leaves, grad, create_graph=True))
            return (None, None, None, *(next(found) if w else None for w in wanted))
        kept, ctx.kept = ctx.kept, None
        if kept is None:  # given away before
            vectors = ctx.saved_tensors[: len(wanted)]
            kept = _places(vectors, wanted)
            ctx.make(vectors, kept)
        if type(grad) is Tensor and not _functorch_level() and not _dispatch_depth():
            kept = _scaled(kept, grad)
        else:
            kept = [None if t is None else t * grad for t in kept]
        return (None, None, None, *kept)


def _places(vectors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    return [torch.empty_like(v) if w else None for v, w in zip(vectors, wanted, strict=True)]


def _scaled(kept: list[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """The gradients times that of the loss, in place; where that is 1 they are left alone, and nothing waits for it."""
    made = [t for t in kept if t is not None]
    if grad.is_cuda:
        for t in made:
            _native.cuda.loss_rescale(t, grad.to(t.dtype))
    elif (factor := grad.item()) != 1.0:
        for t in made:
            t.mul_(factor)
    return kept


def loss(make: Make, again: Again, vectors: Sequence[Tensor], numbers: Sequence[Any]) -> Tensor:
    """What ``make`` gives; ``again`` makes the same of vectors and numbers by the registered ops."""
    if _grad_enabled() and any(t.requires_grad for t in vectors):
        return _Kept.apply(make, again, tuple(numbers), *vectors)
    return make(vectors, [None] * len(vectors))


def forms(
    module: Any, vectors: Sequence[Tensor], rows: Sequence[Sequence[Any]], weights: Sequence[Any], floor: float,
    grads: Sequence[Any]
) -> Any:  # fmt: skip
    """Sums (B, R) of the forms, with their gradients by ``weights`` written into ``grads``."""
    x, count = vectors[0], len(rows)
    sums = torch.empty((x.shape[0], 1, count), dtype=torch.float64, device=x.device)
    made = table(rows, x)
    if any(g is not None for g in grads):
        factors = table([weights], x)[:, 0]
        module.loss_forms(vectors, made, sums, partial(module, x, count), factors, floor, grads)
    else:
        module.loss_forms(vectors, made, sums, partial(module, x, count))
    return sums_of(sums)


def lognormal(
    module: Any, vectors: Sequence[Tensor], row: Sequence[Any], multiplied: bool, grads: Sequence[Any]
) -> Any:
    """Sums (B,) of the squared residuals, with the gradient in the first vector."""
    x = vectors[0]
    sums = torch.empty((x.shape[0], 1, 1), dtype=torch.float64, device=x.device)
    module.loss_lognormal(vectors, table([row], x), multiplied, sums, grads[0], partial(module, x, 1))
    return sums_of(sums)[:, 0]
