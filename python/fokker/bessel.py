"""Logarithms of modified Bessel functions and their ratios, for any real order.

Order ``v >= 0`` first and argument ``x >= 0`` second, as in SciPy; the two broadcast, and a broadcast order is never
materialised. torch tensors in, torch tensor out; NumPy arrays (or numbers) in, NumPy out, on the same memory.
float32 and float64 compute in their own precision, float16 and bfloat16 in float32, integers are promoted to the
default dtype (NumPy: float64). Negative orders or arguments give NaN: I_{-v} is another function unless v is an
integer (DLMF 10.27.2), and K_{-v} = K_v (10.27.3) is left to the caller.

Gradients in order and argument are analytic (DLMF 10.29, 10.38, 10.40-41), to second order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._elementwise import elementwise2, empty_result, reduce_to
from ._op import Kernel, Op, native_kernels
from .reference import bessel as reference

__all__ = ["iv_ratio", "kv_ratio", "log_iv", "log_ive", "log_kv", "log_kve"]

# The order of math::Fn in csrc/math/bessel_fn.h.
FUNCTIONS = ("log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio")
_NAMES = ("v", "x")
_empty_like = torch.empty_like


def _value_kernel(function: int) -> Callable[[Any], Kernel]:
    def make(module: Any) -> Kernel:
        def run(v: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
            if out is not None:
                module.bessel(function, v, x, out)
                return out
            out = _empty_like(x)  # what the result is nearly always, without asking; else the kernel refuses it
            try:
                module.bessel(function, v, x, out)
            except (TypeError, ValueError):
                out = empty_result(x, v)
                module.bessel(function, v, x, out)
            return out

        run.writes_out = True  # type: ignore[attr-defined]
        return run

    return make


def _triton(name: str) -> Kernel:
    def run(*args: Any) -> Any:
        from .triton_kernels import bessel

        return getattr(bessel, name)(*args)

    return run


def _outputs(v: Tensor, x: Tensor, wanted: tuple[bool, ...]) -> tuple[Tensor, ...]:
    # What is not wanted comes back with no elements: a registered op cannot return None.
    return tuple(empty_result(x, v) if w else x.new_empty(0) for w in wanted)


def _grad_kernel(module: Any) -> Kernel:
    def run(v: Tensor, x: Tensor, function: int, need_v: bool, need_x: bool) -> tuple[Tensor, Tensor]:
        dv, dx = _outputs(v, x, (need_v, need_x))
        module.bessel_grad(function, v, x, dv if need_v else None, dx if need_x else None)
        return dv, dx

    return run


def _hess_kernel(module: Any) -> Kernel:
    def run(v: Tensor, x: Tensor, function: int) -> tuple[Tensor, Tensor, Tensor]:
        out = _outputs(v, x, (True, True, True))
        module.bessel_hess(function, v, x, *out)
        return out  # type: ignore[return-value]

    return run


def _grad_reference(v: Tensor, x: Tensor, function: int, need_v: bool, need_x: bool) -> tuple[Tensor, Tensor]:
    dv, dx = reference.bessel_grad(FUNCTIONS[function], v, x)
    return dv if need_v else x.new_empty(0), dx if need_x else x.new_empty(0)


def _hess_reference(v: Tensor, x: Tensor, function: int) -> tuple[Tensor, Tensor, Tensor]:
    return reference.bessel_hess(FUNCTIONS[function], v, x)


def _value_backward(function: int) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(needs: Any, saved: Any, extra: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, x = saved
        dv, dx = _grad(v, x, function, needs[0], needs[1])
        return (
            reduce_to(grad * dv, v) if needs[0] else None,
            reduce_to(grad * dx, x) if needs[1] else None,
        )

    return backward


def _grad_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    v, x = saved
    function, *wanted = extra
    vv, vx, xx = _hess(v, x, function)
    g = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]

    def total(second: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
        terms = [a * b for a, b in zip(g, second, strict=True) if a is not None]
        return reduce_to(sum(terms[1:], terms[0]), like) if terms else torch.zeros_like(like)

    return total((vv, vx), v) if needs[0] else None, total((vx, xx), x) if needs[1] else None


def _hess_backward(needs: Any, saved: Any, extra: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(f"the third derivatives of {FUNCTIONS[extra[0]]} are not available")


_hess = Op(
    "bessel_hess(Tensor v, Tensor x, int function) -> (Tensor, Tensor, Tensor)",
    tensors=2,
    reference=_hess_reference,
    fake=lambda v, x, function: _outputs(v, x, (True, True, True)),
    kernels={**native_kernels(_hess_kernel), "triton": _triton("bessel_hess")},
    backward=_hess_backward,
    elementwise=True,
)
_grad = Op(
    "bessel_grad(Tensor v, Tensor x, int function, bool need_v, bool need_x) -> (Tensor, Tensor)",
    tensors=2,
    reference=_grad_reference,
    fake=lambda v, x, function, need_v, need_x: _outputs(v, x, (need_v, need_x)),
    kernels={**native_kernels(_grad_kernel), "triton": _triton("bessel_grad")},
    backward=_grad_backward,
    elementwise=True,
)


def _make(name: str) -> Op:
    function = FUNCTIONS.index(name)
    return Op(
        f"{name}(Tensor v, Tensor x) -> Tensor",
        tensors=2,
        reference=getattr(reference, name),
        fake=lambda v, x: empty_result(x, v),
        kernels={**native_kernels(_value_kernel(function)), "triton": _triton(name)},
        backward=_value_backward(function),
        elementwise=True,
    )


_log_iv, _log_ive, _log_kv, _log_kve, _iv_ratio, _kv_ratio = (_make(name) for name in FUNCTIONS)


@elementwise2(_log_iv, _NAMES)
def log_iv(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""log I_v(x), the logarithm of the modified Bessel function of the first kind (DLMF 10.25.2).

    Args:
        v: order, v >= 0 (a negative one gives NaN). Tensor, NumPy array or number.
        x: argument, x >= 0 (a negative one gives NaN). Broadcasts with ``v``.
        out: where to write the result (no gradient is recorded then).

    Returns:
        The broadcast shape, in the promoted dtype. ``log I_0(0) = 0``, ``log I_v(0) = -inf`` for v > 0,
        ``log I_v(inf) = inf``, ``log I_inf(x) = -inf``.

    Differentiable in ``x`` (v/x + I_{v+1}/I_v, DLMF 10.29.2) and in ``v`` (analytic, DLMF 10.38), twice.
    Error in float64: at most 4e-15 max(1, |log I|), and 7e-16 where hypot(v, x) >= 25; in float32
    (2e-7 + 2e-11 v) max(1, |log I|).

    Raises:
        TypeError: complex or unsupported dtype, tensors on different devices, NumPy mixed with torch.
        ValueError: shapes that do not broadcast, an ``out`` of another shape, dtype or device.
    """


@elementwise2(_log_ive, _NAMES)
def log_ive(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""log(e^{-x} I_v(x)), computed as such: no cancellation where x is large (DLMF 10.25.2, 10.41.3).

    Arguments, shapes, dtypes and errors as `log_iv`. Relative error in float64 at most 4e-15, and 1e-15 where
    hypot(v, x) >= 25. At ``x = inf`` it is ``-inf``. Differentiable in both arguments, twice.
    """


@elementwise2(_log_kv, _NAMES)
def log_kv(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""log K_v(x), the logarithm of the modified Bessel function of the second kind (DLMF 10.27.4, 10.32.9).

    Arguments, shapes, dtypes and errors as `log_iv`. ``log K_v(0) = inf``, ``log K_v(inf) = -inf``,
    ``log K_inf(x) = inf``. Differentiable in ``x`` (v/x - K_{v+1}/K_v, DLMF 10.29.2) and in ``v``, twice.
    Errors as `log_iv`, with max(1, |log K|).
    """


@elementwise2(_log_kve, _NAMES)
def log_kve(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""log(e^x K_v(x)), computed as such: no cancellation where x is large (DLMF 10.32.9, 10.41.4).

    Arguments, shapes, dtypes and errors as `log_iv`. At ``x = inf`` it is ``-inf`` (its limit is
    -log(x)/2). Error in float64 at most 4e-15 max(1, |log(e^x K)|). Differentiable in both arguments, twice.
    """


@elementwise2(_iv_ratio, _NAMES)
def iv_ratio(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""I_{v+1}(x) / I_v(x), in [0, 1); the mean resultant length of vMF in dimension d is iv_ratio(d/2 - 1, k).

    The convention is upper over lower, first order given (TensorFlow Probability's ``bessel_iv_ratio(v, x)`` is
    I_v / I_{v-1}). Arguments, shapes, dtypes and errors as `log_iv`. Relative error in float64 at most 4e-15, and
    1e-15 where hypot(v, x) >= 25. Derivative in x: 1 - R^2 - (2v+1) R/x (DLMF 10.29.2), evaluated without its
    cancellation; also in ``v``; twice differentiable.
    """


@elementwise2(_kv_ratio, _NAMES)
def kv_ratio(v: Any, x: Any, *, out: Any = None) -> Any:
    r"""K_{v+1}(x) / K_v(x), greater than 1 (for v >= 0); infinite at x = 0.

    Arguments, shapes, dtypes and errors as `log_iv`. Relative error in float64 at most 4e-15, and 1e-15 where
    hypot(v, x) >= 25. Derivative in x: R^2 - (2v+1) R/x - 1 (DLMF 10.29.2); also in ``v``; twice differentiable
    (d2R/dv2 for 0 < v <= 1/2 and x << 1, where R is nearly 2v/x, to 2e-13 R: it is far smaller than R there).
    """
