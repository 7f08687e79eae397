r"""The von Mises-Fisher distribution on the unit sphere S^{d-1}, for any dimension d >= 2 and concentration k >= 0.

Density ``C_d(k) exp(k mu.x)`` with ``C_d(k) = k^{d/2-1} / ((2 pi)^{d/2} I_{d/2-1}(k))`` (Mardia and Jupp 2000, 9.3.4).
No function forms ``v log k - log I_v(k)``: the logarithms cancel analytically, so all are regular at k = 0 (the uniform
distribution) and exact to rounding where k or d is large. ``dim`` is a Python int; concentrations are tensors, NumPy
arrays or numbers as in `fokker.bessel` (float32 and float64 in their own precision, halves through float32). A negative
concentration gives NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _vmf_ops as ops
from ._elementwise import call
from ._op import Op
from ._vmf_arguments import check_dim, check_rows
from ._vmf_estimation import fit, mixture_log_prob
from ._vmf_sampling import rsample, sample

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


def _scalar(op: Op, dim: Any, k: Any, out: Any, name: str = "concentration") -> Any:
    dim = check_dim(dim)
    if out is None and type(k) is Tensor and k.is_floating_point() and k.layout is torch.strided and not k.is_nested:
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
    An infinite concentration is a point mass: the divergence from or to it is infinite, but zero between equal ones.
    """
    mean_p, mean_q, p, q = check_rows(
        "kl_divergence",
        {"mean_p": mean_p, "mean_q": mean_q},
        {"concentration_p": concentration_p, "concentration_q": concentration_q},
    )
    d = check_dim(mean_p.shape[-1])
    angle = 0.5 * (mean_p - mean_q).square().sum(-1)
    far = torch.where(q == torch.inf, 0.0, q)  # the divergence is infinite without inf * 0
    value = ops.bregman(p, q, d) + ops.scalar["mean_resultant"](p, d) * far * angle
    between_points = torch.where(angle == 0, 0.0, torch.inf).to(value.dtype)
    return torch.where((p == torch.inf) & (q == torch.inf), between_points, value)


def log_prob(x: Tensor, mean_direction: Tensor, concentration: Any) -> Tensor:
    r"""log C_d(k) + k mu.x, with the inner product summed in float64 (or in a compensated float32 sum).

    Args:
        x: points ``(..., d)``, unit vectors (not checked here; `fokker.distributions.VonMisesFisher` does).
        mean_direction: ``(..., d)``, unit vectors.
        concentration: ``(...)``, k >= 0. An infinite one is a point mass: +inf where every coordinate of x is within
            four roundings (of float64, else float32) of the mean direction's, -inf elsewhere.

    Returns:
        The broadcast batch shape. Differentiable in all three, twice (where k is finite).
    """
    x, mean, k = check_rows("log_prob", {"x": x, "mean_direction": mean_direction}, {"concentration": concentration})
    check_dim(x.shape[-1])
    return ops.log_prob(x, mean, k)
