"""Fits and mixtures of von Mises-Fisher distributions: what `fokker.vmf` offers of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _vmf_ops as ops
from ._elementwise import FLOATS, check_dense
from ._mixture import affine_logsumexp, affine_softmax
from ._vmf_arguments import check_dim, check_rows


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
    check_dense("fit", "x", x)
    if x.dim() != 2 or not x.shape[0]:
        raise ValueError(f"fit: x must have shape (n, d) with n >= 1, got {tuple(x.shape)}")
    d = check_dim(x.shape[1])
    if weights is not None:
        if not isinstance(weights, Tensor):
            raise TypeError(f"fit: weights must be a tensor, got {type(weights).__name__}")
        check_dense("fit", "weights", weights)
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
        direction, k = estimate(sums[:d], total)
    return direction.to(x.dtype), k.to(x.dtype)


def _narrow(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in ``dtype``, as shares of the largest where their own dtype has a wider range (any scale is right)."""
    if torch.promote_types(weights.dtype, dtype) == dtype and weights.is_floating_point():
        return weights.to(dtype)
    wide = weights.double()
    top = wide.amax()
    return (wide / torch.where(top > 0, top, 1.0)).to(dtype)


def estimate(sums: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean directions (..., d) and concentrations (...) from resultants (..., d) and masses (...), in float64."""
    sums = sums / torch.where(total > 0, total, 1.0)[..., None]  # before squares of them overflow
    length, d = torch.linalg.vector_norm(sums, dim=-1), sums.shape[-1]
    first = torch.zeros_like(sums)
    first[..., 0] = 1.0
    direction = torch.where((length > 0)[..., None], sums / length[..., None], first)
    resultant = length.clamp(max=1.0)
    # 1 - R keeps what R near 1 has lost, and the other way round.
    far = ops.scalar["concentration_from_complement"](1 - resultant, d)
    return direction, torch.where(resultant > 0.5, far, ops.scalar["concentration_from_resultant"](resultant, d))


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
            taken as they are (``log_softmax`` them for a density). An infinite concentration gives NaN.
        return_responsibilities: also return ``(n, K)``, each row the posterior over the components.

    Returns:
        ``(n,)``, or the pair. Differentiable in all four, twice (the pair in first order).
    """
    given = {"x": x, "mean_directions": mean_directions, "concentrations": concentrations, "log_weights": log_weights}
    for name, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"mixture_log_prob: {name} must be a tensor, got {type(t).__name__}")
        check_dense("mixture_log_prob", name, t)
    shapes = [tuple(t.shape) for t in given.values()]
    components = shapes[1][:1]
    if [len(s) for s in shapes] != [2, 2, 1, 1] or shapes[0][1] != shapes[1][1] or {components} != set(shapes[2:]):
        raise ValueError(
            "mixture_log_prob: x (n, d), mean_directions (K, d), concentrations (K,) and log_weights (K,) expected, "
            "got " + ", ".join(map(str, shapes))
        )
    if not components[0]:
        raise ValueError("mixture_log_prob: at least one component expected, got mean_directions " + str(shapes[1]))
    d = check_dim(x.shape[1])
    x, means, k, log_w = check_rows(
        "mixture_log_prob",
        {"x": x[:, None], "mean_directions": mean_directions},
        {"concentrations": concentrations, "log_weights": log_weights},
    )
    x = x[:, 0]
    weight = k[:, None] * means
    bias = ops.scalar["log_normalizer"](k, d) + log_w
    return affine_softmax(x, weight, bias) if return_responsibilities else affine_logsumexp(x, weight, bias)
