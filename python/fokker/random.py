r"""Counter-based random numbers: the same noise on every backend, whatever the batch, the order and the threads.

Nothing is consumed and nothing is stored: number e of a sample (counted in logical contiguous order inside the sample)
is a function of ``(seed, step, stream, sample id, e)`` alone,

    Philox4x32-10, key = seed, counter = (e div 4, step + 2^24 stream, sample id)      (float64: e div 2, see below)

(Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). A batch split over ranks,
padded or reordered gives the same numbers when every sample keeps its id; a channels_last result holds the numbers of
the contiguous one. Float32 numbers take one 32-bit word each, float64 numbers two (normals: a 53-bit radius and a
64-bit angle for two elements), so float64 noise is other noise than float32 noise of the same seed, with all its
digits; float16 and bfloat16 are the float32 numbers rounded. The C++ and CUDA kernels agree bit for bit, the PyTorch
reference and Triton to 1e-6 (`bits`, `uniform` and `rademacher`: bit for bit).

Every function takes, beside ``batch`` (an int) and ``shape`` (of one sample; an int or a sequence):

    seed            int in [0, 2^64), or an int64 tensor of one element on the result's device, whose 64 bits are read
                    when the kernel runs: a replayed CUDA graph then makes fresh noise. None: drawn from ``generator``
    step            int in [0, 2^24), or an int64 tensor like ``seed``'s, taken mod 2^24
    stream          int in [0, 256): independent noise for another purpose at the same step (see `Stream`)
    sample_ids      int64 tensor or sequence (batch,), the id of each sample; an int i: i, i + 1, ...; None: 0, 1, ...
    element_offset  the index of the first element inside its sample, for a sample that is cut up over devices; the
                    elements must stay below 2^34 (float64: 2^33)
    dtype, device   of the result; torch's defaults where not given
    out             a tensor (batch, *shape) of any strides to write into
    generator       a torch.Generator that draws the seed where there is none (else torch's default generator)

and returns ``(batch, *shape)``. Nothing is differentiable. ValueError names an argument out of its range or of a wrong
shape, TypeError one of a wrong type, dtype or device.
"""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _random_ops as ops
from ._elementwise import FLOATS
from ._op import _dispatch_depth, _is_compiling
from .reference.brownian import BROWNIAN_LEVELS, brownian_terms
from .reference.random import Stream

__all__ = ["Stream", "bits", "brownian", "exponential", "gumbel", "normal", "rademacher", "uniform"]

Seed = int | Tensor | None
Ids = Tensor | Sequence[int] | int | None
_INTEGERS = (torch.int64, torch.int32, torch.uint32)
_PATHS = 2 ** (24 - BROWNIAN_LEVELS)


def _integer(value: Any, name: str) -> int:
    # torch.compile keeps a plain int symbolic, where operator.index would compile anew for each value; of an enumerator
    # it knows neither that nor int().
    if isinstance(value, Stream):
        value = value.value
    if type(value) is int:
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def _within(value: Any, name: str, limit: int, power: str) -> int:
    number = _integer(value, name)
    if not 0 <= number < limit:
        raise ValueError(f"{name} must be in [0, {power}), got {number}")
    return number


def _size(batch: Any, shape: Any) -> tuple[int, ...]:
    count = _integer(batch, "batch")
    sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
    size = (count, *(_integer(s, "shape") for s in sizes))
    if any(s < 0 for s in size):
        raise ValueError(f"batch and shape must not be negative, got {count} and {size[1:]}")
    return size


def _dense(value: Tensor, name: str) -> None:
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {value.layout}")


def _one_entry(value: Tensor, name: str, device: torch.device) -> Tensor:
    _dense(value, name)
    if value.dtype is not torch.int64:
        raise TypeError(f"{name} must be an int or an int64 tensor, got dtype {value.dtype}")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, got shape {tuple(value.shape)}")
    if value.device != device:
        raise TypeError(f"{name} is on {value.device}, the result on {device}: one device expected")
    return value


def _seed(seed: Any, generator: torch.Generator | None, device: torch.device) -> tuple[int, Tensor | None]:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if seed is None:
        home = generator.device if generator is not None else torch.device("cpu")
        drawn = torch.randint(0, 2**63 - 1, (1,), generator=generator, device=home)
        return (0, drawn) if home == device else (int(drawn), None)
    if generator is not None:
        raise ValueError("give seed or generator, not both")
    if isinstance(seed, Tensor):
        return 0, _one_entry(seed, "seed", device)
    value = _within(seed, "seed", 2**64, "2^64")
    return value - 2**64 if value >= 2**63 else value, None  # a schema's int is signed


def _sample_ids(ids: Any, batch: int, device: torch.device) -> tuple[int, Tensor | None]:
    if ids is None:
        return 0, None
    if isinstance(ids, numbers.Integral):
        return _within(ids, "sample_ids", 2**63 - batch, "2^63 - batch"), None
    if not isinstance(ids, Tensor):
        if not isinstance(ids, (list, tuple, range)):
            raise TypeError(
                f"sample_ids must be an int64 tensor, a sequence of ints or an int, got {type(ids).__name__}"
            )
        values = [_integer(i, "sample_ids") for i in ids]
        if any(not -(2**63) <= i < 2**63 for i in values):
            raise ValueError("sample_ids must lie in [-2^63, 2^63)")
        ids = torch.tensor(values, dtype=torch.int64, device=device)
    _dense(ids, "sample_ids")
    if ids.dtype is not torch.int64:
        raise TypeError(f"sample_ids must have dtype int64, got {ids.dtype}")
    if ids.shape != (batch,):
        raise ValueError(f"sample_ids must have shape ({batch},), one id a sample, got {tuple(ids.shape)}")
    if ids.device != device:
        raise TypeError(f"sample_ids is on {ids.device}, the result on {device}: one device expected")
    return 0, ids.contiguous()


def _place(
    home: torch.device, seed: Any, step: Any, sample_ids: Any, batch: int, generator: torch.Generator | None = None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, int, int, int]:
    """(seed tensor, step tensor, ids, seed, step, first id) as the kernels take them, each checked."""
    seed_value, seed_tensor = _seed(seed, generator, home)
    if isinstance(step, Tensor):
        step_value, step_tensor = 0, _one_entry(step, "step", home)
    else:
        step_value, step_tensor = _within(step, "step", 2**24, "2^24"), None
    first, ids = _sample_ids(sample_ids, batch, home)
    return seed_tensor, step_tensor, ids, seed_value, step_value, first


def _like(size: tuple[int, ...], dtype: Any, device: Any, out: Any, allowed: tuple[torch.dtype, ...]) -> Tensor:
    """An empty tensor of the result's dtype and device."""
    if out is not None:
        if not isinstance(out, Tensor):
            raise TypeError(f"out must be a tensor, got {type(out).__name__}")
        _dense(out, "out")
        if out.shape != size:
            raise ValueError(f"out must have shape {size}, got {tuple(out.shape)}")
        if out.requires_grad and torch.is_grad_enabled():
            raise ValueError("out must not require a gradient: random numbers have none")
        if dtype is not None and dtype is not out.dtype:
            raise TypeError(f"out has dtype {out.dtype}, dtype says {dtype}")
        dtype = out.dtype
        if device is not None and torch.empty(0, device=device).device != out.device:
            raise TypeError(f"out is on {out.device}, device says {device}")
        device = out.device
    if dtype is None:
        dtype = torch.int64 if allowed is _INTEGERS else torch.get_default_dtype()
    if dtype not in allowed:
        names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
        raise TypeError(f"dtype must be one of {names}, got {dtype}")
    return torch.empty(0, dtype=dtype, device=device)


def _offset(kind: int, value: Any, size: tuple[int, ...], dtype: torch.dtype) -> int:
    offset = _integer(value, "element_offset")
    power = 33 if dtype is torch.float64 and ops.KINDS[kind] != "rademacher" else 34
    if offset < 0 or offset + ops._elements(size) > 2**power:
        raise ValueError(f"element_offset {offset} and shape {size[1:]} must stay within [0, 2^{power}) elements")
    return offset


def _draw(
    kind: int,
    batch: int,
    shape: int | Sequence[int],
    seed: Seed,
    step: int | Tensor,
    stream: int,
    sample_ids: Ids,
    element_offset: int,
    dtype: torch.dtype | None,
    device: Any,
    out: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    size = _size(batch, shape)
    like = _like(size, dtype, device, out, _INTEGERS if kind == ops.BITS else FLOATS)
    home = like.device
    seed_tensor, step_tensor, ids, seed_value, step_value, first = _place(
        home, seed, step, sample_ids, size[0], generator
    )
    stream = _within(stream, "stream", 256, "256")
    offset = _offset(kind, element_offset, size, like.dtype)
    return ops.fill_into(
        ops.fill, out, like, seed_tensor, step_tensor, ids, kind, size, seed_value, step_value, stream, first, offset
    )


def _function(name: str, document: str) -> Any:
    kind = ops.KINDS.index(name)

    def draw(
        batch: int,
        shape: int | Sequence[int] = (),
        *,
        seed: Seed = None,
        step: int | Tensor = 0,
        stream: int = 0,
        sample_ids: Ids = None,
        element_offset: int = 0,
        dtype: torch.dtype | None = None,
        device: Any = None,
        out: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return _draw(kind, batch, shape, seed, step, stream, sample_ids, element_offset, dtype, device, out, generator)

    draw.__name__ = draw.__qualname__ = name
    draw.__doc__ = document
    return draw


bits = _function(
    "bits",
    """The words themselves: uniform 32-bit integers, one an element.

    dtype int64 (the default; values in [0, 2^32)), uint32, or int32 (the same 32 bits, signed). The same bits on every
    backend. Arguments and errors: see the module.
    """,
)
uniform = _function(
    "uniform",
    r"""Uniform numbers in (0, 1]: (w + 1/2) / 2^32 of a word, in float64 (j + 1/2) / 2^53 of 53 bits; never 0.

    (A float16 can round to 0.) dtype float16, bfloat16, float32 or float64; arguments and errors: see the module.
    """,
)
normal = _function(
    "normal",
    r"""Standard normal numbers by Box and Muller's transform (1958).

    ``z = r cos(theta), z' = r sin(theta)`` for elements 2i, 2i + 1 with ``r = sqrt(-2 ln u)``: u a 32-bit uniform and
    theta a 32-bit angle in float32 (|z| <= 6.8; 7e-7 from the exact transform), 53 and 64 bits in float64 (|z| <= 8.7;
    1.5e-15). dtype float16, bfloat16, float32 or float64; arguments and errors: see the module. Bit-identical between
    CPU instruction sets and between the C++ and the CUDA build.
    """,
)
gumbel = _function(
    "gumbel",
    r"""Standard Gumbel numbers, ``-ln E`` of `exponential`'s E: argmax(logits + gumbel) draws from softmax(logits).

    In float32 from -3.1 to 22.9, both tails made of all 32 bits: categories down to a probability of about 1e-9 keep
    their share (``-log(-log(u))`` in float32 can draw none below 6e-8). dtype float16, bfloat16, float32 or float64;
    arguments and errors: see the module.
    """,
)
exponential = _function(
    "exponential",
    r"""Exponential numbers of rate 1: ``-ln(1 - u)``, computed from u below 1/2 and from 1 - u above.

    In float32 from 1.2e-10 to 22.9 with a relative error of 3e-7 everywhere. dtype float16, bfloat16, float32 or
    float64; arguments and errors: see the module.
    """,
)
rademacher = _function(
    "rademacher",
    """Signs: -1 where the top bit of the element's word is set, else 1; the same ones in every dtype.

    The probe of Hutchinson's trace estimator (stream `Stream.HUTCHINSON`). dtype float16, bfloat16, float32 or float64;
    arguments and errors: see the module.
    """,
)


def _times(value: Any, name: str, size: tuple[int, ...], device: torch.device) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.full((1,), float(value), dtype=torch.float64, device=device)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a number or a floating tensor, got dtype {value.dtype}")
    if value.device != device:
        raise TypeError(f"{name} is on {value.device}, the result on {device}: one device expected")
    if value.dim() > 1 or value.numel() not in (1, size[0]):
        raise ValueError(f"{name} must be a number or have shape ({size[0]},), got {tuple(value.shape)}")
    return value.detach().reshape(-1).double()


@functools.lru_cache(maxsize=4096)
def _shared_terms(t0: float, t1: float, path: int, device: torch.device) -> tuple[Tensor, Tensor]:
    c, nodes = brownian_terms(
        torch.tensor([t0], dtype=torch.float64, device="cpu"),
        torch.tensor([t1], dtype=torch.float64, device="cpu"),
        path,
    )
    used = c[0] != 0
    used[0] |= not bool(used.any())  # t0 = t1: one term of weight 0
    return c[:, used].to(device), nodes[:, used].to(device)


def brownian(
    batch: int,
    shape: int | Sequence[int],
    t0: float | Tensor,
    t1: float | Tensor,
    *,
    seed: Seed = None,
    stream: int = 0,
    sample_ids: Ids = None,
    element_offset: int = 0,
    dtype: torch.dtype | None = None,
    device: Any = None,
    out: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""W(t1) - W(t0) of a Brownian path on [0, 1] an element, from counters alone: noise that outlives the time grid.

    The path is fixed by (seed, stream, sample id, element): any steps through the same times sum to the same increment,
    so a sampler with twice the steps follows the same noise. Levy's construction by midpoints, written as a sum over
    levels, 20 normals a time at most (those that t0 and t1 share count once, those of weight 0 are not made):
    increments are independent and of variance t1 - t0 exactly, for times that differ by 2^-18 or more.

    Args:
        t0, t1: in [0, 1], numbers or floating tensors ``(batch,)`` or of one element; t1 < t0 gives minus the
            increment. A tensor outside [0, 1] gives nan. With tensors nothing is read on the host (CUDA graphs).
        stream: which path, in [0, 64). It lives in streams 224 to 243 of the other functions.

    The other arguments, the result and the errors are the module's. Not differentiable in the times.
    Source: Karatzas and Shreve, Brownian Motion and Stochastic Calculus, 2.3.
    """
    size = _size(batch, shape)
    like = _like(size, dtype, device, out, FLOATS)
    home = like.device
    seed_value, seed_tensor = _seed(seed, generator, home)
    path = _within(stream, "stream", _PATHS, str(_PATHS))
    first, ids = _sample_ids(sample_ids, size[0], home)
    offset = _offset(ops.KINDS.index("normal"), element_offset, size, like.dtype)
    for name, t in (("t0", t0), ("t1", t1)):
        if isinstance(t, Tensor):
            continue
        if not isinstance(t, numbers.Real):
            raise TypeError(f"{name} must be a number or a floating tensor, got {type(t).__name__}")
        if not 0 <= t <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {t}")
    if isinstance(t0, Tensor) or isinstance(t1, Tensor) or _is_compiling() or _dispatch_depth():
        times = torch.broadcast_tensors(_times(t0, "t0", size, home), _times(t1, "t1", size, home))
        coefficients, nodes = brownian_terms(*times, path)
    else:
        coefficients, nodes = _shared_terms(float(t0), float(t1), path, home)
    return ops.fill_into(
        ops.normal_sum, out, like, seed_tensor, ids, coefficients, nodes, size, seed_value, first, offset
    )
