r"""The von Mises-Fisher distribution on the unit sphere S^{d-1}, for any dimension d >= 2 and concentration k >= 0.

Density ``C_d(k) exp(k mu.x)`` with ``C_d(k) = k^{d/2-1} / ((2 pi)^{d/2} I_{d/2-1}(k))`` (Mardia and Jupp 2000, 9.3.4).
No function forms ``v log k - log I_v(k)``: the logarithms cancel analytically, so all are regular at k = 0 (the uniform
distribution) and exact to rounding where k or d is large. ``dim`` is a Python int; concentrations are tensors, NumPy
arrays or numbers as in `fokker.bessel` (float32 and float64 in their own precision, halves through float32). A negative
concentration gives NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _vmf_ops as ops
from ._elementwise import FLOATS, call, promote
from ._mixture import affine_logsumexp, affine_softmax
from ._op import Op

__all__ = [
    "concentration_from_resultant",
    "entropy",
    "fit",
    "kl_divergence",
    "kl_uniform",
    "log_normalizer",
    "log_prob",
    "mean_resultant_length",
    "mixture_log_prob",
    "rsample",
    "sample",
]


def _dim(dim: Any) -> int:
    try:
        value = operator.index(dim)
    except TypeError:
        raise TypeError(f"dim must be an int, got {type(dim).__name__}") from None
    if not 2 <= value <= 2**31:
        raise ValueError(f"dim must be at least 2 (and at most 2^31), got {value}")
    return value


def _scalar(op: Op, dim: Any, k: Any, out: Any, name: str = "concentration") -> Any:
    dim = _dim(dim)
    if out is None and type(k) is Tensor and k.is_floating_point():
        return op(k, dim)
    return call(op, (name,), (k,), (dim,), out)


def log_normalizer(dim: int, concentration: Any, *, out: Any = None) -> Any:
    r"""log C_d(k), the logarithm of the density's normalising factor.

    At k = 0 it is minus the log of the sphere's area, 2 pi^{d/2} / Gamma(d/2). Differentiable: its derivative is
    -A_d(k), see `mean_resultant_length`. Shape and dtype of ``concentration``.
    """
    return _scalar(ops.scalar["log_normalizer"], dim, concentration, out)


def mean_resultant_length(dim: int, concentration: Any, *, complement: bool = False, out: Any = None) -> Any:
    r"""A_d(k) = I_{d/2}(k) / I_{d/2-1}(k) = |E x|, or with ``complement`` 1 - A_d(k), each to its own full accuracy.

    Differentiable, twice (Mardia and Jupp 2000, 9.3.9).
    """
    return _scalar(ops.scalar["complement" if complement else "mean_resultant"], dim, concentration, out)


def concentration_from_resultant(dim: int, resultant: Any = None, *, complement: Any = None, out: Any = None) -> Any:
    r"""The k with A_d(k) = R, from ``resultant`` R or from ``complement`` 1 - R (exactly one of the two).

    Banerjee et al. 2005, eq. 4.4, as the start, then Halley's method. R = 0 gives 0, R = 1 infinity, R outside [0, 1]
    NaN. For R close to 1 give the complement: 1 - R holds the digits that R has lost. Differentiable, twice.
    """
    if (resultant is None) == (complement is None):
        raise ValueError("concentration_from_resultant takes either resultant or complement")
    if complement is None:
        return _scalar(ops.scalar["concentration_from_resultant"], dim, resultant, out, "resultant")
    return _scalar(ops.scalar["concentration_from_complement"], dim, complement, out, "complement")


def entropy(dim: int, concentration: Any, *, out: Any = None) -> Any:
    r"""The differential entropy -(log C_d(k) + k A_d(k)), in nats, without its cancellation. Differentiable."""
    return _scalar(ops.scalar["entropy"], dim, concentration, out)


def kl_uniform(dim: int, concentration: Any, *, out: Any = None) -> Any:
    r"""KL(vMF(mu, k) || uniform) in nats, accurate also where it is tiny (k^2 / (2d) as k -> 0). Differentiable."""
    return _scalar(ops.scalar["kl_uniform"], dim, concentration, out)


def kl_divergence(mean_p: Tensor, concentration_p: Any, mean_q: Tensor, concentration_q: Any) -> Tensor:
    r"""KL(vMF(mu_p, k_p) || vMF(mu_q, k_q)) in nats.

    ``B(k_p, k_q) + A_d(k_p) k_q |mu_p - mu_q|^2 / 2`` with the Bregman divergence
    ``B = log C(k_p) - log C(k_q) + A(k_p) (k_p - k_q)``: both terms are non-negative and lose nothing where the
    distributions are close. Means ``(..., d)``, unit vectors; concentrations ``(...)``; all broadcast. Differentiable.
    """
    mean_p, mean_q, p, q = _rows(
        "kl_divergence",
        {"mean_p": mean_p, "mean_q": mean_q},
        {"concentration_p": concentration_p, "concentration_q": concentration_q},
    )
    d = _dim(mean_p.shape[-1])
    angle = 0.5 * (mean_p - mean_q).square().sum(-1)
    return ops.bregman(p, q, d) + ops.scalar["mean_resultant"](p, d) * q * angle


def _rows(function: str, vectors: dict[str, Any], scalars: dict[str, Any]) -> tuple[Tensor, ...]:
    """Check (..., d) and (...) arguments against each other; one dtype and device, shapes that broadcast."""
    first = next(iter(vectors))
    for name, t in vectors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{function}: {name} must be a tensor, got {type(t).__name__}")
        if not t.dim():
            raise ValueError(f"{function}: {name} must have shape (..., d), got a 0-dimensional tensor")
        if t.dtype not in FLOATS:
            raise TypeError(f"{function}: {name} must be float16, bfloat16, float32 or float64, got {t.dtype}")
        if t.shape[-1] != vectors[first].shape[-1]:
            raise ValueError(
                f"{function}: {first} {tuple(vectors[first].shape)} and {name} {tuple(t.shape)} "
                "must agree in their last dimension"
            )
    dtype = vectors[first].dtype
    for t in vectors.values():
        dtype = torch.promote_types(dtype, t.dtype)
    device = vectors[first].device
    out = []
    for name, value in {**vectors, **scalars}.items():
        if not isinstance(value, Tensor):
            (value, _) = promote(function, (name, first), (value, torch.empty(1, dtype=dtype, device=device)), dtype)
        if value.is_complex():
            raise TypeError(f"{function}: {name} must be real, got {value.dtype}")
        if value.device != device:
            raise TypeError(f"{function}: {name} is on {value.device}, {first} on {device}; one device expected")
        out.append(value.to(dtype))
    try:
        torch.broadcast_shapes(*(t.shape[:-1] for t in out[: len(vectors)]), *(t.shape for t in out[len(vectors) :]))
    except RuntimeError:
        seen = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip({**vectors, **scalars}, out, strict=True))
        raise ValueError(f"{function}: the batch dimensions do not broadcast: {seen}") from None
    return tuple(out)


def log_prob(x: Tensor, mean_direction: Tensor, concentration: Any) -> Tensor:
    r"""log C_d(k) + k mu.x, with the inner product summed in float64 (or in a compensated float32 sum).

    Args:
        x: points ``(..., d)``, unit vectors (not checked here; `fokker.distributions.VonMisesFisher` does).
        mean_direction: ``(..., d)``, unit vectors.
        concentration: ``(...)``, k >= 0.

    Returns:
        The broadcast batch shape. Differentiable in all three, twice.
    """
    x, mean, k = _rows("log_prob", {"x": x, "mean_direction": mean_direction}, {"concentration": concentration})
    _dim(x.shape[-1])
    return ops.log_prob(x, mean, k)


def _integer(value: Any) -> int:
    # torch.compile keeps a plain int symbolic, where operator.index would compile anew for each value.
    return value if type(value) is int else operator.index(value)


def _seed(seed: Any, generator: torch.Generator | None) -> int:
    if seed is not None and generator is not None:
        raise ValueError("give seed or generator, not both")
    if seed is None:
        device = generator.device if generator is not None else "cpu"
        return int(torch.randint(0, 2**63 - 1, (), generator=generator, device=device))
    value = _integer(seed)
    if not 0 <= value < 2**64:
        raise ValueError(f"seed must be in [0, 2^64), got {value}")
    return value - 2**64 if value >= 2**63 else value  # a schema's int is signed


def rsample(
    mean_direction: Tensor,
    concentration: Any,
    sample_shape: Sequence[int] = (),
    *,
    seed: int | None = None,
    step: int = 0,
    sample_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Exact samples of vMF(mu, k), differentiable in mean direction and concentration.

    The cosine mu.x comes from Wood's rejection scheme (1994; inversion at d = 3), the direction from normed normals,
    a Householder reflection turns e1 into mu: one pass, no temporary. The noise is a pure function of
    ``(seed, step, sample id, element)`` (Philox4x32-10): the same sample on every backend, whatever the batch split.

    The gradient in the concentration is implicit, ``dw/dk = -(1/f(w)) int_{-1}^w (t - A) f(t) dt`` (Figurnov et al.
    2018): unbiased, where the pathwise gradient through the rejection step is not.

    Args:
        mean_direction: ``(..., d)``, unit vectors. concentration: ``(...)``, in [0, 1e8] or so; they broadcast to the
            batch shape.
        sample_shape: leading shape of the result.
        seed: in [0, 2^64); ``generator`` (or torch's default) draws one where it is not given.
        step: in [0, 2^24), a second key for repeated draws under one seed.
        sample_ids: int64, broadcasts to sample_shape + batch shape: which noise each sample gets (its linear index
            where not given).

    Returns:
        ``sample_shape + batch_shape + (d,)``. A negative or NaN concentration gives NaN.
    """
    mean, k = _rows("rsample", {"mean_direction": mean_direction}, {"concentration": concentration})
    d = _dim(mean.shape[-1])
    step = _integer(step)
    if not 0 <= step < 2**24:
        raise ValueError(f"step must be in [0, 2^24), got {step}")
    dtype = mean.dtype
    if dtype in (torch.float16, torch.bfloat16):
        mean, k = mean.float(), k.float()
    batch = torch.broadcast_shapes(mean.shape[:-1], k.shape)
    full = torch.Size(sample_shape) + batch
    rows = mean.reshape(1, d) if mean.numel() == d else mean.expand(*batch, d).reshape(-1, d)
    flat = k.reshape(1) if k.numel() == 1 else k.expand(batch).reshape(-1)
    if sample_ids is not None:
        if not isinstance(sample_ids, Tensor) or sample_ids.dtype != torch.int64:
            raise TypeError("sample_ids must be an int64 tensor")
        try:
            sample_ids = sample_ids.to(mean.device).expand(full).reshape(-1)
        except RuntimeError:
            raise ValueError(f"sample_ids {tuple(sample_ids.shape)} must broadcast to {tuple(full)}") from None
    n = full.numel()
    seed = _seed(seed, generator)
    if not n:
        return (mean * k[..., None]).expand(*full, d).to(dtype)
    out = ops.sample(rows, flat, sample_ids, 0, seed, step, n)[0]
    return out.reshape(*full, d).to(dtype)


def sample(mean_direction: Tensor, concentration: Any, sample_shape: Sequence[int] = (), **noise: Any) -> Tensor:
    r"""`rsample` without a gradient: the same samples, arguments, shapes and errors."""
    with torch.no_grad():
        return rsample(mean_direction, concentration, sample_shape, **noise)


def fit(x: Tensor, weights: Tensor | None = None, *, validate: bool = True) -> tuple[Tensor, Tensor]:
    r"""Maximum likelihood: mean direction ``sum w x / |sum w x|`` and the k with A_d(k) = |sum w x| / sum w.

    One pass over ``x`` with float64 sums (Banerjee et al. 2005, section 3).

    Args:
        x: ``(n, d)``, n >= 1 unit vectors. weights: ``(n,)``, >= 0, not all zero; any scale.
        validate: check that rows have unit length (to 1e-3, or the dtype's precision) and weights are usable;
            on a GPU this waits for the result.

    Returns:
        ``(d,)`` and ``()`` in the dtype of ``x``; where the resultant is zero, e1 and 0. Not differentiable.
    """
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        raise TypeError(f"fit: x must be a real floating tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() != 2 or not x.shape[0]:
        raise ValueError(f"fit: x must have shape (n, d) with n >= 1, got {tuple(x.shape)}")
    d = _dim(x.shape[1])
    if weights is not None:
        if not isinstance(weights, Tensor):
            raise TypeError(f"fit: weights must be a tensor, got {type(weights).__name__}")
        if weights.shape != x.shape[:1]:
            raise ValueError(f"fit: weights {tuple(weights.shape)} must have one entry a row of x {tuple(x.shape)}")
        if weights.is_complex():
            raise TypeError(f"fit: weights must be real, got {weights.dtype}")
        if weights.device != x.device:
            raise TypeError(f"fit: weights is on {weights.device}, x on {x.device}; one device expected")
        if validate and not bool((weights >= 0).all()):
            raise ValueError("fit: weights must be non-negative (and not NaN)")
        weights = _narrow(weights.detach(), torch.float64 if x.dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        sums = ops.resultant(x.detach(), weights)
        total, off = sums[d], sums[d + 1]
        if validate:
            if float(total) == 0:
                raise ValueError("fit: weights must not sum to zero")
            if not float(total) < math.inf:
                raise ValueError("fit: weights must be finite, and so must be their sum")
            allowed = max(2e-3, 16 * torch.finfo(x.dtype).eps)
            if not float(off) <= allowed:
                raise ValueError(f"fit: rows of x must be unit vectors, | |x|^2 - 1 | is {float(off):.3g} in one")
        direction, k = _estimate(sums[:d], total)
    return direction.to(x.dtype), k.to(x.dtype)


def _narrow(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in ``dtype``, as shares of the largest where their own dtype has a wider range (any scale is right)."""
    if torch.promote_types(weights.dtype, dtype) == dtype and weights.is_floating_point():
        return weights.to(dtype)
    wide = weights.double()
    top = wide.amax()
    return (wide / torch.where(top > 0, top, 1.0)).to(dtype)


def _estimate(sums: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean directions (..., d) and concentrations (...) from resultants (..., d) and masses (...), in float64."""
    sums = sums / torch.where(total > 0, total, 1.0)[..., None]  # before squares of them overflow
    length, d = torch.linalg.vector_norm(sums, dim=-1), sums.shape[-1]
    first = torch.zeros_like(sums)
    first[..., 0] = 1.0
    direction = torch.where((length > 0)[..., None], sums / length[..., None], first)
    resultant = length.clamp(max=1.0)
    # 1 - R keeps what R near 1 has lost, and the other way round.
    far = concentration_from_resultant(d, complement=1 - resultant)
    return direction, torch.where(resultant > 0.5, far, concentration_from_resultant(d, resultant))


def mixture_log_prob(
    x: Tensor,
    mean_directions: Tensor,
    concentrations: Tensor,
    log_weights: Tensor,
    *,
    return_responsibilities: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""log sum_k exp(log w_k) vMF(x; mu_k, k_k): one matrix product, its epilogue, and no N x K copy but a tile.

    Args:
        x: ``(n, d)``, unit vectors. mean_directions: ``(K, d)``. concentrations, log_weights: ``(K,)``; the weights are
            taken as they are (``log_softmax`` them for a density).
        return_responsibilities: also return ``(n, K)``, each row the posterior over the components.

    Returns:
        ``(n,)``, or the pair. Differentiable in all four, twice (the pair in first order).
    """
    given = {"x": x, "mean_directions": mean_directions, "concentrations": concentrations, "log_weights": log_weights}
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"mixture_log_prob: {name} must be a tensor, got {type(t).__name__}")
    shapes = [tuple(t.shape) for t in given.values()]
    components = shapes[1][:1]
    if [len(s) for s in shapes] != [2, 2, 1, 1] or shapes[0][1] != shapes[1][1] or {components} != set(shapes[2:]):
        raise ValueError(
            "mixture_log_prob: x (n, d), mean_directions (K, d), concentrations (K,) and log_weights (K,) expected, "
            "got " + ", ".join(map(str, shapes))
        )
    if not components[0]:
        raise ValueError("mixture_log_prob: at least one component expected, got mean_directions " + str(shapes[1]))
    d = _dim(x.shape[1])
    x, means, k, log_w = _rows(
        "mixture_log_prob",
        {"x": x[:, None], "mean_directions": mean_directions},
        {"concentrations": concentrations, "log_weights": log_weights},
    )
    x = x[:, 0]
    weight = k[:, None] * means
    bias = ops.scalar["log_normalizer"](k, d) + log_w
    return affine_softmax(x, weight, bias) if return_responsibilities else affine_logsumexp(x, weight, bias)
