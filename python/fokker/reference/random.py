"""Counter-based noise in plain PyTorch: the definition of every random number fokker makes.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with

    key     = (seed mod 2^32, seed div 2^32)
    counter = (block, step + 2^24 stream, sample mod 2^32, sample div 2^32)

so a number depends on its seed, step, stream, sample and place alone: not on batch size, device, threads or order of
calls. Word j of a sample (in logical contiguous order) is word j mod 4 of block j div 4. A float32 takes one word, a
float64 two (the high word first); a sign takes one in every dtype. Normals are made in pairs of elements (2 i, 2 i + 1)
by Box and Muller's transform. ``seed`` and ``step`` are integers, or int64 tensors of one element.
"""

import enum
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(enum.IntEnum):
    """What a number is for: different streams are independent at the same seed, step and sample."""

    PREDICTOR = 0
    CORRECTOR = 1
    CHURN = 2
    HUTCHINSON = 3
    RESAMPLING = 4
    UNMASK = 5
    TOKEN_RACE = 6
    INITIAL_LATENT = 7
    TRAINING_TIME = 8
    TRAINING_NOISE = 9
    VMF_REJECTION = 10
    VMF_TANGENT = 11
    BROWNIAN = 224  # and the 19 after it, a level of the bridge each


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b for a, b < 2^32, without leaving the range of int64."""
    lower = a * (b & 0xFFFF)
    upper = a * (b >> 16) + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Philox4x32-10.

    counter: int64 (..., 4), key: int64 (..., 2), values in [0, 2^32); returns int64 (..., 4), values in [0, 2^32).
    The leading shapes broadcast. Not differentiable. Source: Salmon et al. 2011, known answers in tests/test_philox.py.
    """
    if counter.dtype != torch.int64 or key.dtype != torch.int64:
        raise TypeError(f"counter and key must be int64, got {counter.dtype} and {key.dtype}")
    if counter.ndim < 1 or counter.shape[-1] != 4 or key.ndim < 1 or key.shape[-1] != 2:
        shapes = f"{tuple(counter.shape)} and {tuple(key.shape)}"
        raise ValueError(f"counter must be (..., 4) and key (..., 2), got {shapes}")
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(10):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), -1)


def counter_word(step: int | Tensor, stream: int) -> int | Tensor:
    """The second counter word, step + 2^24 stream; an integer step is checked, a tensor is taken mod 2^24."""
    if not isinstance(step, Tensor) and not 0 <= step < 2**24:
        raise ValueError(f"step must be in [0, 2^24), got {step}")
    if not 0 <= stream < 256:
        raise ValueError(f"stream must be in [0, 256), got {stream}")
    if isinstance(step, Tensor):
        return (step.reshape(()) & 0xFFFFFF) | int(stream) << 24
    return int(step) | int(stream) << 24


def words(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
) -> Tensor:
    """Words element_offset .. element_offset + n_elements - 1 of each sample: int64 (B, n_elements) in [0, 2^32).

    seed: any integer, taken mod 2^64; step: 0 .. 2^24 - 1; stream: 0 .. 255 (see Stream); sample_ids: B integers
    (int64 tensor or sequence), the global index of each sample. ValueError outside these ranges.
    """
    return _words_at(seed, counter_word(step, stream), sample_ids, n_elements, element_offset)


def _words_at(
    seed: int | Tensor, counter1: int | Tensor, sample_ids: Tensor | Sequence[int], n_elements: int, element_offset: int
) -> Tensor:
    """Words of the given second counter word (an integer, or a tensor that broadcasts to (B, 1))."""
    if n_elements < 0 or element_offset < 0 or element_offset + n_elements > 2**34:
        raise ValueError(f"elements {element_offset} .. +{n_elements} must lie in [0, 2^34)")
    # as_tensor would move a tensor to the caller's default device
    ids = sample_ids.long() if isinstance(sample_ids, Tensor) else torch.as_tensor(sample_ids, dtype=torch.int64)
    if ids.ndim != 1:
        raise ValueError(f"sample_ids must have one dimension, got shape {tuple(ids.shape)}")
    first, last = element_offset // 4, -(-(element_offset + n_elements) // 4)
    block = torch.arange(first, max(last, first), dtype=torch.int64, device=ids.device)
    ids = ids[:, None]
    parts = (block, torch.as_tensor(counter1, device=ids.device), ids & _LOW, (ids >> 32) & _LOW)
    counter = torch.stack(torch.broadcast_tensors(*parts), -1)
    if isinstance(seed, Tensor):
        seed = seed.reshape(())
        key = torch.stack([seed & _LOW, (seed >> 32) & _LOW])
    else:
        key = torch.tensor([seed & _LOW, (seed >> 32) & _LOW], dtype=torch.int64, device=ids.device)
    flat = philox(counter, key).flatten(1)
    start = element_offset - 4 * first
    return flat[:, start : start + n_elements]


def _uniform32(word: Tensor) -> Tensor:
    """fma(float(w), 2^-32, 2^-33) in float32: exact in float64, then rounded once."""
    return (word.to(torch.float32).double() * 2.0**-32 + 2.0**-33).float()


def _uniform64(high: Tensor, low: Tensor) -> Tensor:
    """fma(j, 2^-53, 2^-54), j = 2^21 high + low div 2^11; the sum is rounded to even by the addition itself."""
    return (high * 2**21 + (low >> 11)).double() * 2.0**-53 + 2.0**-54


def uniform(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Uniform numbers (B, n_elements) in (0, 1]: (w + 1/2) / 2^32 in float32, (j + 1/2) / 2^53 in float64.

    Arguments as in words(); bit for bit the C++ numbers (math/philox.h). TypeError for any other dtype.
    """
    if dtype == torch.float32:
        return _uniform32(words(seed, step, stream, sample_ids, n_elements, element_offset))
    if dtype == torch.float64:
        w = words(seed, step, stream, sample_ids, 2 * n_elements, 2 * element_offset)
        return _uniform64(w[:, 0::2], w[:, 1::2])
    raise TypeError(f"dtype must be float32 or float64, got {dtype}")


def normal(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers (B, n_elements): z = r cos(theta), z' = r sin(theta) for elements 2 i, 2 i + 1.

    r = sqrt(-2 ln u). float32: words (w, w'), u = uniform of w, theta = 2 pi (w' - 2^29) / 2^32, computed in float64
    and rounded (within 1e-6 of the C++ kernels, which have the same bits on every build). float64: words (a, b, c, d),
    u = uniform of (a, b), theta = 2 pi (c + d / 2^32 - 2^29) / 2^32. Arguments as in words().
    TypeError for any other dtype. Source: Box and Muller, Ann. Math. Statist. 29 (1958).
    """
    return normal_at(seed, counter_word(step, stream), sample_ids, n_elements, element_offset, dtype)


def normal_at(
    seed: int | Tensor,
    counter1: int | Tensor,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int,
    dtype: torch.dtype,
) -> Tensor:
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    per_element = 1 if dtype == torch.float32 else 2
    first = element_offset // 2 * 2
    count = (element_offset + n_elements - first + 1) // 2 * 2
    w = _words_at(seed, counter1, sample_ids, per_element * count, per_element * first)
    w = w.unflatten(1, (count // 2, 2 * per_element))
    if dtype == torch.float32:
        u, turns = _uniform32(w[..., 0]).double(), (w[..., 1] - 2**29).double() * 2.0**-32
    else:
        u = _uniform64(w[..., 0], w[..., 1])
        turns = (w[..., 2] - 2**29).double() * 2.0**-32 + w[..., 3].double() * 2.0**-64
    radius, theta = (-2 * u.log()).sqrt(), 2 * math.pi * turns
    pairs = torch.stack((radius * theta.cos(), radius * theta.sin()), -1)
    start = element_offset - first
    return pairs.flatten(1)[:, start : start + n_elements].to(dtype)


def exponential(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Exponential numbers of rate 1 (B, n_elements), -ln(1 - u) with u = (w + 1/2) / 2^32, (j + 1/2) / 2^53 in float64.

    From u below 1/2 and from 1 - u, which is u of the complemented word, above: both tails keep every bit of the word.
    Computed in float64 and rounded. Arguments as in words(). TypeError for any dtype but float32 and float64.
    """
    return _exponential(seed, step, stream, sample_ids, n_elements, element_offset, dtype).to(dtype)


def gumbel(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard Gumbel numbers (B, n_elements), -ln of `exponential`'s; arguments and errors as there."""
    return -_exponential(seed, step, stream, sample_ids, n_elements, element_offset, dtype).log().to(dtype)


def _exponential(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int,
    dtype: torch.dtype,
) -> Tensor:
    if dtype == torch.float32:
        w = words(seed, step, stream, sample_ids, n_elements, element_offset)
        upper = w >= 2**31
        u = (torch.where(upper, _LOW - w, w).double() + 0.5) * 2.0**-32
    elif dtype == torch.float64:
        w = words(seed, step, stream, sample_ids, 2 * n_elements, 2 * element_offset)
        upper = w[:, 0::2] >= 2**31
        u = _uniform64(*(torch.where(upper, _LOW - part, part) for part in (w[:, 0::2], w[:, 1::2])))
    else:
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return -torch.where(upper, u.log(), (-u).log1p())


def rademacher(
    seed: int | Tensor,
    step: int | Tensor,
    stream: int,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Signs (B, n_elements): -1 where the top bit of the element's word is set, else 1; the same in every dtype."""
    w = words(seed, step, stream, sample_ids, n_elements, element_offset)
    return 1 - 2 * (w >> 31).to(dtype)


NUMBERS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "normal": normal,
    "gumbel": gumbel,
    "exponential": exponential,
    "rademacher": rademacher,
}
