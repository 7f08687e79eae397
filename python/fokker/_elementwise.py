"""What every elementwise op shares: promotion of its inputs, shape of its result, NumPy in and out, ``out=``."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._op import Op, _dispatch_depth, _forward_ad, _functorch_level, _grad_enabled, _is_compiling

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FLOATS = frozenset(FLOATS)
_empty_like = torch.empty_like
_is_alias = torch._C._is_alias_of
_scalars: dict[tuple[float, torch.dtype], Tensor] = {}


def common_shape(a: Tensor, b: Tensor, names: tuple[str, str]) -> torch.Size:
    """The shape both broadcast to, or a ValueError that names them."""
    try:
        return torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        shapes = f"{names[0]} {tuple(a.shape)} and {names[1]} {tuple(b.shape)}"
        raise ValueError(f"{shapes} do not broadcast together") from None


def empty_result(a: Tensor, b: Tensor | None = None, names: tuple[str, str] = ("x", "v")) -> Tensor:
    """A contiguous tensor of the broadcast shape, in the dtype and on the device of ``a``."""
    if b is not None and b.dim() and b.shape != a.shape:
        if a.dim():
            return torch.empty(common_shape(a, b, names), dtype=a.dtype, device=a.device)
        a = b
    if a.is_contiguous():
        return torch.empty_like(a)
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


def check_dense(function: str, name: str, t: Tensor) -> None:
    """A TypeError for a sparse, opaque or nested tensor, which no kernel can read."""
    if t.layout is not torch.strided or t.is_nested:
        kind = "a nested tensor" if t.is_nested else f"layout {t.layout}"
        raise TypeError(f"{function}: {name} must be a dense (strided) tensor, got {kind}")


def reduce_to(grad: Tensor, like: Tensor) -> Tensor:
    """Sum a gradient over the dimensions that broadcasting added."""
    return grad if grad.shape == like.shape else grad.sum_to_size(like.shape)


def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or _is_compiling() or torch._C._len_torch_dispatch_stack():
        return torch.full((), value, dtype=dtype, device=device)
    found = _scalars.get((value, dtype))
    if found is None:
        if len(_scalars) > 4096:
            _scalars.clear()
        # neither an inference tensor, which no later call could save, nor one of the caller's default device
        with torch.inference_mode(False):
            found = _scalars[value, dtype] = torch.tensor(value, dtype=dtype, device=device)
    return found


def _common_dtype(values: tuple[Any, ...], default: torch.dtype) -> torch.dtype:
    # torch.result_type, which Dynamo does not trace: tensors with dimensions decide, then 0-dimensional ones.
    for group in (
        (v for v in values if isinstance(v, Tensor) and v.dim()),
        (v for v in values if isinstance(v, Tensor)),
    ):
        dtype = None
        for v in group:
            if v.dtype.is_floating_point:
                dtype = v.dtype if dtype is None else torch.promote_types(dtype, v.dtype)
        if dtype is not None:
            return dtype
    return default


def promote(op: str, names: tuple[str, ...], values: tuple[Any, ...], default: torch.dtype) -> tuple[Tensor, ...]:
    """Tensors of one floating dtype on one device, by torch's promotion rules; integers become ``default``."""
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            if value.is_complex():
                raise TypeError(f"{op}: {name} must be real, got dtype {value.dtype}")
            check_dense(op, name, value)
        elif not isinstance(value, numbers.Real):
            kind = type(value).__name__
            raise TypeError(f"{op}: {name} must be a tensor, a NumPy array or a real number, got {kind}")
    dtype = _common_dtype(values, default)
    if dtype not in FLOATS:
        raise TypeError(f"{op}: dtype float16, bfloat16, float32 or float64 expected, got {dtype}")
    tensors = [v for v in values if isinstance(v, Tensor)]
    home = next((t for t in tensors if t.dim()), tensors[0])
    device = home.device
    out = []
    for v in values:
        if not isinstance(v, Tensor):
            v = _scalar(float(v), dtype, device)
        elif v.device != device:
            if v.dim() or v.device.type != "cpu":  # as in torch, a 0-dimensional CPU tensor goes anywhere
                where = ", ".join(
                    f"{n} on {t.device}" for n, t in zip(names, values, strict=True) if isinstance(t, Tensor)
                )
                raise TypeError(f"{op}: {' and '.join(names)} must be on one device, got {where}")
            v = v.to(device=device, dtype=dtype)
        out.append(v if v.dtype is dtype else v.to(dtype))
    if len(out) == 2 and out[0].shape != out[1].shape:
        common_shape(out[0], out[1], (names[0], names[1]))
    return tuple(out)


class _Borrowed:
    """A read-only array's memory, presented as writable (fokker never writes to an input)."""

    def __init__(self, array: np.ndarray) -> None:
        self.base = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.__array_interface__["data"][0], False)}


def _from_numpy(op: str, name: str, value: Any) -> Any:
    if not isinstance(value, (np.ndarray, np.generic)):
        if not isinstance(value, numbers.Real):
            kind = type(value).__name__
            raise TypeError(f"{op}: {name} must be a tensor, a NumPy array or a real number, got {kind}")
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{op}: {name} must be real, got NumPy dtype {array.dtype}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise TypeError(f"{op}: {name} must be float16, float32 or float64, got NumPy dtype {array.dtype}")
    if not array.dtype.isnative or any(s < 0 for s in array.strides) or array.dtype.kind == "u":
        array = array.astype(np.float64 if array.dtype.kind == "u" else array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(np.asarray(array if array.flags.writeable else _Borrowed(array)))


def _call_numpy(op: Op, names: tuple[str, ...], values: tuple[Any, ...], extra: tuple[Any, ...], out: Any) -> Any:
    as_tensors = [_from_numpy(op.name, n, v) for n, v in zip(names, values, strict=True)]
    if not any(isinstance(v, Tensor) for v in as_tensors):
        as_tensors[-1] = torch.tensor(float(as_tensors[-1]), dtype=torch.float64, device="cpu")
    tensors = promote(op.name, names, tuple(as_tensors), torch.float64)
    if out is None:
        with torch.no_grad():
            return op(*tensors, *extra).numpy()[()]
    if not isinstance(out, np.ndarray) or not out.flags.writeable:
        raise TypeError(f"{op.name}: out must be a writable NumPy array, got {type(out).__name__}")
    _into(op, torch.from_numpy(out), tensors, extra)
    return out


def _into(op: Op, out: Tensor, tensors: tuple[Tensor, ...], extra: tuple[Any, ...]) -> Tensor:
    check_dense(op.name, "out", out)
    first = tensors[0]
    shape = first.shape
    if any(t.shape != shape for t in tensors):
        shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    if out.shape != shape or out.dtype != first.dtype or out.device != first.device:
        raise ValueError(
            f"{op.name}: out must have shape {tuple(shape)}, dtype {first.dtype} and device {first.device}, "
            f"got {tuple(out.shape)}, {out.dtype} and {out.device}"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (out, *tensors)):
        raise ValueError(f"{op.name}: out= does not record a gradient; leave it away, or use torch.no_grad()")
    return op.into(out, *tensors, *extra)


def call(op: Op, names: tuple[str, ...], values: tuple[Any, ...], extra: tuple[Any, ...] = (), out: Any = None) -> Any:
    """A public elementwise function's way in for anything but ready tensors of one dtype and device."""
    if not any(isinstance(v, Tensor) for v in values):
        return _call_numpy(op, names, values, extra, out)
    for name, value in zip(names, values, strict=True):
        if isinstance(value, np.ndarray):
            raise TypeError(f"{op.name}: {name} is a NumPy array beside a torch tensor; one kind a call expected")
    tensors = promote(op.name, names, values, torch.get_default_dtype())
    if out is None:
        return op(*tensors, *extra)
    if not isinstance(out, Tensor):
        raise TypeError(f"{op.name}: out must be a tensor, got {type(out).__name__}")
    return _into(op, out, tensors, extra)


def _fits(out: Any, a: Tensor, b: Tensor) -> bool:
    """Whether a kernel may write into ``out`` as it is: memory of its own, and what the result would be."""
    return (
        type(out) is Tensor
        and out.dtype is b.dtype
        and out.device == b.device
        and (a.shape == out.shape or (not a.dim() and b.shape == out.shape))
        and (b.shape == out.shape or not b.dim())
        and out.is_contiguous()
        and not _is_alias(out, a)
        and not _is_alias(out, b)
        and not ((out.requires_grad or a.requires_grad or b.requires_grad) and _grad_enabled())
    )


def elementwise2(op: Op, names: tuple[str, str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the public function ``f(a, b, *, out=None)`` of a two-tensor op; the decorated one gives name and docstring.

    Plain eager tensors of one dtype and device take a chain of the cheapest tests, inlined: on a tiny tensor it is
    most of what a call costs. Everything else goes through `call`.
    """
    by_device, function = op._by_device, op.function
    assert function is not None
    # Function.apply without its look at functorch, which the tests below have had: 1.4 us of 7.
    apply = super(torch.autograd.Function, function).apply  # type: ignore[misc]

    def wrap(documented: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(documented)
        def f(a: Any, b: Any, *, out: Any = None) -> Any:
            if type(a) is float and type(b) is Tensor and not _is_compiling() and b.is_cpu:
                a = _scalars.get((a, b.dtype), a)
            if (
                type(a) is Tensor
                and type(b) is Tensor
                and not _is_compiling()
                and ((a.is_cpu and b.is_cpu) or (a.is_cuda and a.device == b.device))
                and (dtype := b.dtype) is a.dtype
                and dtype in _FLOATS
                and not _functorch_level()
                and _forward_ad._current_level < 0
                and not _dispatch_depth()
                and not a.is_neg()
                and not b.is_neg()
            ):
                try:
                    kernel = by_device[a.is_cuda]
                    if out is not None:
                        if _fits(out, a, b) and getattr(kernel, "writes_out", False):
                            return kernel(a, b, out=out)
                        return call(op, names, (a, b), (), out)
                    if (b.requires_grad or a.requires_grad) and _grad_enabled():
                        return op(a, b) if op.prefers_reference else apply(a, b)
                    return kernel(a, b)
                except (TypeError, ValueError, RuntimeError):
                    pass  # `call` looks closer, and names what is wrong
            return call(op, names, (a, b), (), out)

        return f

    return wrap
