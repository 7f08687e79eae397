"""The affine and exponential steps of SDE samplers, and inner products of their vectors, as public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _backend
from . import _sde_ops as ops
from ._elementwise import FLOATS
from ._op import _PLAIN, _dispatch_depth, _forward_ad, _functorch_level, _grad_enabled, _is_compiling
from ._sde_arguments import NO_NOISE, check_coefficients, check_tensors, clip_range, noise_place
from .random import Ids, _integer, _one_entry

__all__ = ["affine_step", "gram"]


def affine_step(
    x: Tensor,
    terms: Sequence[Tensor],
    coefficients: Tensor,
    *,
    row: int | Tensor | None = None,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Ids = None,
    element_offset: int = 0,
    exponential: bool = False,
    clip: float | None = None,
    dots: bool = False,
    results: int = 1,
    out: Tensor | Sequence[Tensor] | None = None,
) -> Any:
    r"""One step of a sampler in one pass over memory: a linear combination of state, model outputs and fresh noise.

    .. math:: y = a x + \sum_k b_k m_k + c z \qquad (\text{exponential: } y = x \exp(a + \sum_k b_k m_k + c z))

    with z standard normal numbers made inside the kernel, bit for bit those of `fokker.random.normal` for the same
    seed, step, stream, ids and offset. Every published sampler's update is such a step with its own coefficients.

    Args:
        x: the state (B, *shape); float32, float64, bfloat16 or float16, of any strides.
        terms: 0 to 8 tensors of x's shape and device, each of any of these dtypes.
        coefficients: the columns [a, b_1 .. b_K], then c with noise, then p, q with ``clip``; float32, or float64 for a
            float64 x. (C,) for all samples, (B, C) for each; with R > 1 ``results`` (R, C) or (B, R, C).
        row: the coefficients have one more dimension in front, the steps, of which this entry is used: an int, or an
            int64 tensor of one element on x's device, read when the kernel runs (CUDA graphs; out of range: nan).
        seed, step, stream, sample_ids, element_offset: as in `fokker.random`; without a seed there is no noise.
        exponential: the multiplicative step, which keeps the sign of x (geometric Brownian motion).
        clip: m_1 is replaced by clamp(p x + q m_1, -clip, clip): a clipped prediction of the data.
        dots: also return the inner products of each sample, (B, J, J) in float64, of [y - x, m_1 .. m_K, z] (z with
            noise, m_1 as clipped, y the first result before it is rounded to its dtype), from the same pass.
        results: R results (at most 3) of one read.
        out: a tensor, or R of them, to write into, of any float dtype and strides; may be x or a term itself.

    Returns:
        y in x's dtype and layout; with R > 1 a tuple of R; with ``dots`` the pair (that, inner products). Arithmetic
        is float64 for a float64 x, else float32, and rounded once. nan and inf pass through.

    Differentiable in x, terms and coefficients (any number of times), the inner products too; not with ``out``.
    ValueError names a wrong shape or value, TypeError a wrong type, dtype or device. Nothing waits for the device.
    Source: the table of samplers in Karras et al. 2022 (arXiv 2206.00364), Lu et al. 2022 (2211.01095) and Zhao et al.
    2023 (2302.04867) in this form; geometric Brownian motion: Kloeden and Platen 1992, 4.4.
    """
    module = _MODULES[x.is_cuda] if type(x) is Tensor else None
    if module is not None:
        found = _direct(module, x, terms, coefficients, row, seed, step, stream, sample_ids, element_offset,
                        exponential, clip, dots, results, out)  # fmt: skip
        if found is not None:
            return found
    k = len(terms)
    noisy, stepped = seed is not None, row is not None
    check_tensors(x, terms)
    width = 1 + k + noisy + 2 * (clip is not None)
    check_coefficients(coefficients, x, width, k, noisy, clip is not None, results, stepped)
    row_tensor, row_value = None, -1
    if stepped:
        if isinstance(row, Tensor):
            row_tensor = _one_entry(row, "row", x.device)
        else:
            row_value = _integer(row, "row")
            if not 0 <= row_value < coefficients.shape[0]:
                raise ValueError(
                    f"row must be in [0, {coefficients.shape[0]}), the steps of coefficients, got {row_value}"
                )
    if clip is not None:
        clip = clip_range(clip, k)
    place = noise_place(x, seed, step, stream, sample_ids, element_offset) if noisy else NO_NOISE
    op = ops.AFFINE[results, bool(dots)]
    tensors = (x, coefficients, *terms, *_PADDING[k], row_tensor, *place[:3])
    args = (*tensors, row_value, *place[3:], bool(exponential), clip)
    if out is None:
        found = op(*args)
        if dots:
            return (found[0] if results == 1 else found[:-1]), found[-1]
        return found
    return _into(op, out, args, results, bool(dots))


_MODULES: list[Any] = [None, None]


def _choose() -> None:
    """The compiled modules that `affine_step` may call without the op's detour: on the CPU, on CUDA."""
    op = ops.AFFINE[1, False]
    for is_cuda in (False, True):
        kernel = op._by_device[is_cuda]
        _MODULES[is_cuda] = getattr(kernel, "module", None)


_choose()
_backend.on_change(_choose)


def _direct(
    module: Any, x: Tensor, terms: Any, coefficients: Any, row: Any, seed: Any, step: Any, stream: Any, sample_ids: Any,
    element_offset: Any, exponential: Any, clip: Any, dots: Any, results: Any, out: Any
) -> Any:  # fmt: skip
    """The step by the compiled kernel at once, or None where anything is out of the ordinary.

    Eager mode, plain tensors, no gradient: what the op would find out again, at half its cost. The binding checks the
    arguments; whatever it does not accept goes through the checks of the long way, which name it.
    """
    if _is_compiling() or _dispatch_depth() or _functorch_level() or _forward_ad._current_level >= 0:
        return None
    grad = _grad_enabled()
    for t in (x, coefficients, *terms):
        if type(t) is not Tensor or (grad and t.requires_grad) or t.is_neg():
            return None
    if row is None:
        row_value, row = -1, None
    elif isinstance(row, Tensor):
        row_value = -1
    elif type(row) is int and row >= 0:
        row_value, row = row, None
    else:
        return None
    ids, first, seed_tensor, step_tensor = None, 0, None, None
    noisy = seed is not None
    if noisy:
        if isinstance(seed, Tensor):
            seed_tensor, seed = seed, 0
        if isinstance(step, Tensor):
            step_tensor, step = step, 0
        if isinstance(sample_ids, Tensor):
            ids = sample_ids
        elif sample_ids is not None:
            if type(sample_ids) is not int or not 0 <= sample_ids < 2**62:
                return None
            first = sample_ids
    else:
        seed = step = stream = element_offset = 0
    if clip is not None and (type(clip) is not float or not 0 <= clip < math.inf):
        return None
    if out is None:
        if results == 1:
            outs = [torch.empty_like(x)]
        elif results in (2, 3):
            outs = [torch.empty_like(x) for _ in range(results)]
        else:
            return None
    else:
        outs = [out] if type(out) is Tensor else list(out)
        if len(outs) != results or any(type(t) is not Tensor or (grad and t.requires_grad) for t in outs):
            return None
    products = workspace = None
    if dots:
        joined = 1 + len(terms) + noisy
        products, workspace = ops._sums(x, joined, joined), ops.partial(module, x, joined * joined)
    try:
        module.sde_affine(
            x, terms, coefficients, row_value, row, noisy, seed, seed_tensor, step, step_tensor, stream, ids, first,
            element_offset, exponential, clip, outs, products, workspace,
        )  # fmt: skip
    except (TypeError, ValueError):
        return None
    if out is not None:
        for t in outs:
            torch.autograd.graph.increment_version(t)
        found = out
    else:
        found = outs[0] if results == 1 else tuple(outs)
    return (found, products) if dots else found


_PADDING = [(None,) * (ops.TERMS - k) for k in range(ops.TERMS + 1)]


def _into(op: Any, out: Any, args: tuple[Any, ...], results: int, dots: bool) -> Any:
    """The results written into ``out``, straight by kernels that can."""
    x = args[0]
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    if len(outs) != results:
        raise ValueError(f"out must be {results} tensor{'s' * (results > 1)}, got {len(outs)}")
    for t in outs:
        if not isinstance(t, Tensor):
            raise TypeError(f"out must be a tensor, got {type(t).__name__}")
        if t.shape != x.shape:
            raise ValueError(f"out {tuple(t.shape)} must have the shape of x {tuple(x.shape)}")
        if t.dtype not in FLOATS:
            raise TypeError(f"out must have dtype float32, float64, float16 or bfloat16, got {t.dtype}")
        if t.device != x.device:
            raise TypeError(f"out is on {t.device}, x on {x.device}: one device expected")
    tensors = (*args[: op.tensors], *outs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError("out= records no gradient: leave it out, detach the arguments, or use torch.no_grad()")
    plain = not (_is_compiling() or _dispatch_depth() or _functorch_level())
    if plain and all(t is None or (type(t) in _PLAIN and not t.is_neg()) for t in tensors):
        kernel = op._by_device[x.is_cuda]
        if getattr(kernel, "writes_out", False):
            found = kernel(*args, out=outs)
            for t in outs:
                torch.autograd.graph.increment_version(t)
            return (out, found[-1]) if dots else out
    found = op(*args)
    found = found if isinstance(found, tuple) else (found,)
    for t, y in zip(outs, found, strict=False):
        t.copy_(y)
    return (out, found[-1]) if dots else out


def gram(
    vectors: Sequence[Tensor],
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_ids: Ids = None,
    element_offset: int = 0,
) -> Tensor:
    r"""Inner products of a few vectors in each sample, the noise of a step among them, in one read.

    .. math:: G_{ij} = \langle v_i, v_j \rangle

    over the elements of one sample; with a seed the noise that `affine_step` would use is the last vector, made again
    from its counters instead of stored. What weights, densities and Langevin step sizes are solved from.

    Args:
        vectors: 1 to 9 tensors (B, *shape); float32, float64, bfloat16 or float16, of any strides. The first one's
            dtype decides the arithmetic of the vectors (float64 for float64, else float32) and the noise.
        seed, step, stream, sample_ids, element_offset: as in `fokker.random`; without a seed there is no noise.

    Returns:
        (B, J, J) in float64, symmetric; products and sums in float64, in an order that depends on the layout alone.

    Differentiable in the vectors (any number of times). ValueError and TypeError as in `affine_step`.
    Source: the reductions of Skreta et al. 2024 (arXiv 2412.17762) and Song et al. 2021 (2011.13456, algorithm 4).
    """
    if not isinstance(vectors, (tuple, list)):
        vectors = tuple(vectors)
    if not 1 <= len(vectors) <= ops.TERMS + 1:
        raise ValueError(f"vectors must be 1 to {ops.TERMS + 1} tensors, got {len(vectors)}")
    check_tensors(vectors[0], vectors[1:], "vectors[0]", "vectors[1:]")
    place = noise_place(vectors[0], seed, step, stream, sample_ids, element_offset) if seed is not None else NO_NOISE
    return ops.gram(*vectors, *_PADDING[len(vectors) - 1], *place)
