"""Norm and rotary embedding of attention heads: `fokker.denoiser.qk_norm_rope` and its packed form."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_heads_ops as ops
from ._elementwise import FLOATS, check_dense
from ._op import _PLAIN, _dispatch_depth, _functorch_level, _is_compiling
from .reference.denoiser_heads import NORMS

__all__ = ["qk_norm_rope", "qkv_norm_rope"]

#: the largest head dimension of the kernels
MAX_DIM = 512


def check_tensor(function: str, name: str, t: Any, like: Tensor | None = None) -> Tensor:
    """A dense floating tensor, on the device of ``like``, or a TypeError that names it."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{function}: {name} must be a tensor, got {type(t).__name__}")
    check_dense(function, name, t)
    if t.dtype not in FLOATS:
        raise TypeError(f"{function}: {name} must have dtype float16, bfloat16, float32 or float64, got {t.dtype}")
    if like is not None and t.device != like.device:
        raise TypeError(f"{function}: {name} is on {t.device}, the others on {like.device}: one device expected")
    return t


def check_number(name: str, value: Any) -> float:
    """A finite number, or an error that names it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # math.isfinite of a traced number breaks the graph
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """A positive, finite number, or an error that names it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def check_eps(function: str, eps: Any) -> float:
    """A positive, finite number."""
    return check_positive(f"{function}: eps", eps)


def _norm(function: str, norm: Any, given: dict[str, Any]) -> int:
    name = "none" if norm is None else norm
    if name not in NORMS or norm == "none":
        raise ValueError(f"{function}: norm must be 'rms', 'layer' or None, got {norm!r}")
    if norm is None and (named := [n for n, t in given.items() if t is not None]):
        raise ValueError(f"{function}: {named[0]} belongs to a norm, but norm is None")
    return NORMS.index(name)


def _head(function: str, dim: int) -> None:
    if dim % 2 or not 0 < dim <= MAX_DIM:
        raise ValueError(f"{function}: the head dimension must be even, from 2 to {MAX_DIM}, got {dim}")


def _vectors(function: str, given: dict[str, Any], x: Tensor) -> None:
    for name, t in given.items():
        if t is None:
            continue
        check_tensor(function, name, t, x)
        if t.shape != x.shape[-1:]:
            raise ValueError(
                f"{function}: {name} {tuple(t.shape)} must have one entry a head element, shape ({x.shape[-1]},)"
            )


def _tables(function: str, cos: Any, sin: Any, x: Tensor, batch: int, tokens: int, rotary_dim: Any) -> int:
    """Checks the tables; how many elements of a head are turned."""
    dim: int = x.shape[-1]
    if rotary_dim is not None:
        if type(rotary_dim) is not int:
            raise TypeError(f"{function}: rotary_dim must be an int or None, got {type(rotary_dim).__name__}")
        if rotary_dim % 2 or not 2 <= rotary_dim <= dim:
            raise ValueError(
                f"{function}: rotary_dim must be even, from 2 to the head dimension {dim}, got {rotary_dim}"
            )
        if cos is None and sin is None:
            raise ValueError(f"{function}: rotary_dim belongs to cos and sin, which are None")
        dim = rotary_dim
    if cos is None and sin is None:
        return dim
    if cos is None or sin is None:
        raise ValueError(f"{function}: cos and sin belong together, got only {'cos' if sin is None else 'sin'}")
    for name, t in (("cos", cos), ("sin", sin)):
        check_tensor(function, name, t, x)
        if t.requires_grad:
            raise ValueError(f"{function}: {name} is a constant and must not require a gradient; detach it")
        if (
            t.dim() not in (2, 3)
            or t.shape[-2] != tokens
            or t.shape[-1] not in (dim, dim // 2)
            or (t.dim() == 3 and t.shape[0] not in (1, batch))
        ):
            raise ValueError(
                f"{function}: {name} must have shape ({tokens}, {dim // 2}) or ({tokens}, {dim}), with ({batch}, ...) "
                f"in front for each sample, got {tuple(t.shape)}"
            )
    if cos.shape != sin.shape:
        raise ValueError(f"{function}: cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must have one shape")
    return dim


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    norm: str | None = "rms",
    eps: float = 1e-6,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Norm of queries and keys over the head dimension, then rotary embedding, in one pass over each.

    .. math:: n = \hat x \odot w + b, \qquad y = n \odot \cos + R(n) \odot \sin

    with :math:`\hat x = x / \sqrt{\overline{x^2} + \epsilon}` (``norm="rms"``),
    :math:`(x - \bar x) / \sqrt{\mathrm{var} + \epsilon}` (``"layer"``) or x itself (None), and R the quarter turn
    (a, b) -> (-b, a) of each pair: neighbours 2i and 2i + 1 when ``interleaved`` (FiT, GPT-J, Flux), else elements
    i and i + D/2 (half-split: LLaMA, GPT-NeoX).

    Args:
        q, k: (B, H, T, D), of any strides (a transposed view or a slice of packed qkv is read in place); one dtype of
            float32, float64, bfloat16, float16. k may have fewer heads than q. D even, at most 512.
        q_weight, k_weight, q_bias, k_bias: (D,), any of these dtypes, or None.
        cos, sin: (T, D/2), one entry a pair, or (T, D), or with B (or 1) in front; None leaves the rotation out. See
            `rope_table` and `rope_table_2d`. Constants: they take no gradient.
        norm, eps, interleaved: as above.
        rotary_dim: r even, from 2 to D: only the first r elements of a head are turned, in pairs of their own
            (half-split: i and i + r/2), the others are normed alone (GPT-J, GPT-NeoX, Phi); tables then have r/2 or r
            entries.
        out: two tensors of q's and k's shapes and dtype, of any strides, to write q' and k' into; they may be q and k
            themselves (also views of packed qkv). Then no gradient is recorded.

    Returns:
        q' and k' in the shapes, dtypes and order of dimensions of q and k. Arithmetic is float64 for float64, else
        float32, and rounded once; weights and tables are read in that type.

    Differentiable in q, k, weights and biases, any number of times; the backward saves nothing but its inputs.
    ValueError: an odd head or rotary dimension, shapes that do not fit, eps <= 0; TypeError: dtypes and devices.
    Source: Su et al. 2021 (arXiv 2104.09864) eq. 34; QK norm: Dehghani et al. 2023 (2302.05442), FiTv2 (2410.13925).
    """
    name = "qk_norm_rope"
    check_tensor(name, "q", q)
    check_tensor(name, "k", k, q)
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:]:
        raise ValueError(
            f"{name}: q and k must have shape (batch, heads, tokens, head dimension) and differ in heads at most, "
            f"got {tuple(q.shape)} and {tuple(k.shape)}"
        )
    if k.dtype != q.dtype:
        raise TypeError(f"{name}: q and k must have one dtype, got {q.dtype} and {k.dtype}")
    _head(name, q.shape[-1])
    given = {"q_weight": q_weight, "k_weight": k_weight, "q_bias": q_bias, "k_bias": k_bias}
    _vectors(name, given, q)
    rotary = _tables(name, cos, sin, q, q.shape[0], q.shape[2], rotary_dim)
    kind = _norm(name, norm, given)
    settings = kind, check_eps(name, eps), bool(interleaved), rotary
    args = (q, k, q_weight, k_weight, q_bias, k_bias, cos, sin, *settings)
    return ops.heads.op(*args) if out is None else _into(out, *args)


def _into(out: Any, *args: Any) -> tuple[Tensor, Tensor]:
    name, op = "qk_norm_rope", ops.heads.op
    if isinstance(out, Tensor) or len(out) != 2:
        seen = "one" if isinstance(out, Tensor) else len(out)
        raise ValueError(f"{name}: out must be 2 tensors, q' and k', got {seen}")
    for t, like, of in zip(out, args, "qk", strict=False):
        check_tensor(name, "out", t, like)
        if t.shape != like.shape or t.dtype != like.dtype:
            wanted = f"{like.dtype} of shape {tuple(like.shape)}, as {of} is"
            raise ValueError(f"{name}: out must be {wanted}, got {t.dtype} {tuple(t.shape)}")
    tensors = [t for t in (*args[: op.tensors], *out) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        raise ValueError(f"{name}: out= does not record a gradient; leave it away, or use torch.no_grad()")
    plain = not (_is_compiling() or _dispatch_depth() or _functorch_level())
    if plain and all(type(t) in _PLAIN and not t.is_neg() for t in tensors) and _writable(out, args[: op.tensors]):
        kernel = op._by_device[args[0].is_cuda]
        if getattr(kernel, "writes_out", False):
            kernel(*args, out=out)
            for t in out:
                torch.autograd.graph.increment_version(t)
            return out[0], out[1]
    for t, y in zip(out, op(*args), strict=True):
        t.copy_(y)
    return out[0], out[1]


def _place(t: Tensor) -> tuple[int, tuple[int, ...]]:
    return t.data_ptr(), t.stride()


def _writable(out: Sequence[Tensor], given: Sequence[Tensor | None]) -> bool:
    """Whether the kernel may write there: both in place (a row is read before it is written), or apart from all."""
    q, k, *rest = given
    assert q is not None and k is not None
    in_place = _place(out[0]) == _place(q) != _place(k) == _place(out[1])
    others = {t.untyped_storage().data_ptr() for t in (rest if in_place else given) if t is not None}
    taken = {t.untyped_storage().data_ptr() for t in out}
    repeated = any(step == 0 and n > 1 for t in out for step, n in zip(t.stride(), t.shape, strict=True))
    return not (repeated or taken & others) and (in_place or len(taken) == 2)


def qkv_norm_rope(
    qkv: Tensor,
    heads: int,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    norm: str | None = "rms",
    eps: float = 1e-6,
    interleaved: bool = False,
    rotary_dim: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`qk_norm_rope` of the packed result of one projection; nothing is unpacked or copied first.

    Args:
        qkv: (B, T, 3 H D), the queries of all heads, then keys, then values, as timm and DiT pack them; any strides.
        heads: H.
        The others: as in `qk_norm_rope`.

    Returns:
        q', k' and v (B, H, T, D), laid out (B, T, H, D) in memory. Without a gradient v is a view of qkv; where one is
        recorded it is a copy, so that the backward writes the gradient of qkv once. Dtypes, derivatives and errors are
        those of `qk_norm_rope`; ValueError too where qkv is not of ``heads`` heads.
    """
    name = "qkv_norm_rope"
    check_tensor(name, "qkv", qkv)
    if not isinstance(heads, int) or isinstance(heads, bool):
        raise TypeError(f"{name}: heads must be an int, got {type(heads).__name__}")
    if qkv.dim() != 3 or heads < 1 or qkv.shape[-1] % (3 * heads):
        raise ValueError(
            f"{name}: qkv must have shape (batch, tokens, 3 * {heads} * head dimension), got {tuple(qkv.shape)}"
        )
    dim = qkv.shape[-1] // (3 * heads)
    _head(name, dim)
    packed = qkv.unflatten(-1, (3, heads, dim))
    given = {"q_weight": q_weight, "k_weight": k_weight, "q_bias": q_bias, "k_bias": k_bias}
    _vectors(name, given, packed)
    rotary = _tables(name, cos, sin, packed, qkv.shape[0], qkv.shape[1], rotary_dim)
    kind = _norm(name, norm, given)
    settings = (q_weight, k_weight, q_bias, k_bias, cos, sin, kind, check_eps(name, eps), bool(interleaved), rotary)
    wants = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, *given.values()))
    if wants:
        return ops.packed_heads.op(packed, *settings)
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    return (*ops.heads.op(q, k, *settings), v)
