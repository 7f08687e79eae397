"""Kernel measures of one cloud, and kernel regression: uniformity, alignment, Vendi scores, Nadaraya-Watson."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._kde_arguments import arrange
from ._kde_ops import SQUARE, VALUES
from ._pairwise_arguments import choice, clouds, give, positive, takes_reference, tensor
from ._pairwise_kernels import KERNELS, bandwidths_of, columns, kernel_call, log_rows
from .kde import KERNELS as EVERY_KERNEL
from .reference import pairwise as reference
from .reference.pairwise import eigenvalues, hill

__all__ = ["alignment", "nadaraya_watson", "uniformity", "vendi_score"]


def uniformity(x: Any, *, t: float = 2.0) -> Any:
    r"""log of the mean over pairs i != j of exp(-t |x_i - x_j|^2), for unit vectors x (Wang and Isola, ICML 2020).

    Least, near -2t for large d, where x is spread evenly over the sphere; 0 where all points are one.

    Args:
        x: ``(..., N, d)``, N >= 2; normalise before (it is defined for any x).
        t: positive.

    Returns:
        ``(...)``; differentiable twice; exact however far apart the points are; memory O(N).

    Raises:
        ValueError: fewer than two points, t <= 0, shapes.
    """
    t = positive("uniformity", "t", t)
    c = clouds("uniformity", {"x": x}, least=2)
    z = c.points[0]
    if takes_reference():
        return c.restore(reference.uniformity(z, t))
    rows = log_rows(kernel_call("uniformity", z, z, (2.0 * t) ** -0.5, "gaussian", 1.0, True, None))
    return c.restore(torch.logsumexp(rows, -1) - math.log(z.shape[1] * (z.shape[1] - 1)))


def alignment(x: Any, y: Any, *, alpha: float = 2.0) -> Any:
    r"""The mean over pairs of |x_i - y_i|^alpha, for unit vectors x and y (Wang and Isola, ICML 2020).

    Args:
        x, y: ``(..., N, d)``, row i of one belonging to row i of the other.
        alpha: positive.

    Returns:
        ``(...)``; differentiable (where x_i = y_i and alpha < 2 the gradient is taken as 0).

    Raises:
        ValueError: shapes that differ, alpha <= 0.
    """
    alpha = positive("alignment", "alpha", alpha)
    c = clouds("alignment", {"x": x, "y": y})
    if c.points[0].shape != c.points[1].shape:
        raise ValueError(
            f"alignment: x and y must have one shape, got {tuple(c.points[0].shape)} and {tuple(c.points[1].shape)}"
        )
    q = (c.points[0].double() - c.points[1].double()).square().sum(-1)
    if alpha != 2.0:
        q = torch.where(q == 0, 0.0, torch.where(q == 0, 1.0, q) ** (0.5 * alpha))
    return c.restore(q.mean(-1))


def vendi_score(
    x: Any,
    *,
    order: float = 1.0,
    kernel: str = "cosine",
    bandwidth: Any = "median",
    nu: float = 1.0,
    weights: Any = None,
) -> Any:
    r"""The effective number of different points: exp of the Renyi entropy of the eigenvalues of sqrt(p_i p_j) K_ij.

        order 1: exp(-sum_k v_k log v_k);  order 2: 1 / sum_ij p_i p_j K_ij^2;  inf: 1 / max v;
        else (sum_k v_k^order)^(1 / (1 - order)).

    (Friedman and Dieng, TMLR 2023; Pasarkar and Dieng, AISTATS 2024.) N for N points that have nothing in common, 1 for
    copies of one.

    Args:
        x: ``(..., N, d)``.
        order: positive, inf among them. Order 2 needs no eigenvalues and O(N) memory. The others take those of the
            smaller Gram matrix: d x d for the cosine kernel if d < N, else N x N.
        kernel: cosine (x.y / |x||y|), or one of `mmd2`'s.
        bandwidth, nu: as in `mmd2`, one bandwidth; cosine has none.
        weights: p ``(..., N)``, >= 0, scaled to sum to one; None for 1 / N.

    Returns:
        ``(...)`` between 1 and N, differentiable in x (eigenvalues <= 0 but for rounding do not count).

    Raises:
        ValueError: order <= 0, shapes, weights, an empty sample, several bandwidths.
    """
    if not order > 0:
        raise ValueError(f"vendi_score: order must be positive, got {order}")
    choice("vendi_score", "kernel", kernel, ("cosine", *KERNELS))
    c = clouds("vendi_score", {"x": x}, {"weights": weights})
    z, p = c.points[0], c.weights[0]
    if kernel == "cosine":
        wide = z.double()
        unit = wide / torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scaled = unit * c.mass(0).sqrt()[..., None]
        small = scaled.mT @ scaled if z.shape[2] < z.shape[1] and not takes_reference() else scaled @ scaled.mT
        if order == 2.0 and not takes_reference():
            return c.restore(1.0 / small.square().sum((-2, -1)))
        return c.restore(hill(eigenvalues(small), order))
    h = bandwidths_of("vendi_score", bandwidth, c)
    if len(h) != 1:
        raise ValueError(f"vendi_score: bandwidth must be one number, got {len(h)}")
    if order != 2.0 or takes_reference():
        k = reference.gram(z, z, columns(h, z)[0], kernel, nu)
        return c.restore(reference.vendi_score(k, c.mass(0), order))
    # K_h^2 is the same kernel again, at a smaller bandwidth, for three of them
    smaller = {"gaussian": math.sqrt(0.5), "vmf": math.sqrt(0.5), "laplace": 0.5, "exponential": 0.5}.get(kernel)
    if smaller is not None:
        rows = torch.exp(log_rows(kernel_call("vendi_score", z, z, h[0] * smaller, kernel, nu, True, p)))
    else:
        # the bias enters the square twice
        call = kernel_call("vendi_score", z, z, h[0], kernel, nu, True, None if p is None else p.sqrt())
        log_sum, _, square, _ = call.sums(SQUARE)
        rows = torch.exp(2.0 * log_sum) * square
    n = z.shape[1]
    total = rows.mean(-1) / n + 1.0 / n if p is None else (p * rows).sum(-1) + p.square().sum(-1)
    return c.restore(1.0 / total)


def nadaraya_watson(
    x: Any,
    data: Any,
    values: Any,
    bandwidth: Any,
    *,
    kernel: str = "gaussian",
    nu: float = 1.0,
    weights: Any = None,
    exclude_self: bool = False,
    outside: float = math.nan,
) -> Any:
    r"""Kernel regression, sum_j w_j K(|x_i - y_j| / h) v_j / sum_j w_j K(|x_i - y_j| / h) (Nadaraya 1964; Watson 1964).

    Args:
        x: queries ``(..., N, d)``.
        data: ``(..., M, d)``.
        values: v ``(..., M, dv)``, or ``(M,)`` for one value a datum.
        bandwidth: a number, a tensor ``()``, or ``(N, 1)`` for one a query.
        kernel: one of `fokker.kde.KERNELS`.
        nu: degrees of freedom of student_t.
        weights: ``(..., M)``, >= 0.
        exclude_self: leave out j = i (x is the data): the leave-one-out prediction.
        outside: the result where no datum has weight.

    Returns:
        ``(..., N, dv)`` or ``(N,)``; a softmax inside, so that far queries get their nearest datum's value, not 0 / 0.
        Differentiable twice where the kernel is, memory O(N + M).

    Raises:
        ValueError: shapes, bandwidths, weights.
    """
    numpy = not any(isinstance(t, Tensor) for t in (x, data, values))
    c = arrange("nadaraya_watson", x, data, bandwidth, weights, kernel, nu, exclude_self, "highest", EVERY_KERNEL)
    if c.bandwidth.shape[2] != 1:
        raise ValueError("nadaraya_watson: bandwidth must be one, or one a query (N, 1); got one a datum")
    v = tensor("nadaraya_watson", "values", values, c.y.device)
    flat = v.dim() == 1
    v = c.like_data(v[:, None] if flat else v, "values", 1)
    log_sum, mean, _, _ = c.sums(VALUES, v)
    found = torch.where((log_sum == -torch.inf)[..., None], outside, mean)
    found = found.to(c.dtype).reshape((*c.batch, *found.shape[1:]))
    return give(found[..., 0] if flat else found, numpy)
