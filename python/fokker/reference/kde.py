"""Density sums in plain PyTorch: kernels, log-sums with their moments, and the sums of the backward pass.

Batched three-dimensional arguments: queries ``x`` (B, N, d), data ``y`` (B, M, d), ``bandwidth`` (B, 1, 1), (B, N, 1)
or (B, 1, M), ``bias`` (B, M). Everything here holds an N x M x d array; it is the meaning of the kernels, not a way to
go.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: names in the order of csrc/math/kde_kernel.h
KERNELS = (
    "gaussian",
    "laplace",
    "exponential",
    "matern32",
    "matern52",
    "student_t",
    "epanechnikov",
    "tophat",
    "linear",
    "cosine",
)
VALUES, SLOPE, SQUARE, DELTA = 1, 2, 4, 8


def distance(x: Tensor, y: Tensor, kernel: str, bandwidth: Tensor) -> Tensor:
    """(B, N, M): squared distances in bandwidths, for laplace L1 distances in bandwidths."""
    difference = (x[:, :, None, :] - y[:, None, :, :]) / bandwidth[..., None]
    return difference.abs().sum(-1) if kernel == "laplace" else difference.square().sum(-1)


def log_kernel(q: Tensor, kernel: str, nu: float, dim: int) -> Tensor:
    """log K at squared distance q (laplace: L1 distance), in bandwidths; K(0) = 1, and -inf outside a support.

    Twice differentiable in q at q = 0 where the kernel is smooth there; where it is not (exponential, linear), the
    derivative at q = 0 is 0.
    """
    if kernel == "gaussian":
        return -0.5 * q
    if kernel == "laplace":
        return -q
    if kernel == "student_t":
        return -0.5 * (nu + dim) * torch.log1p(q / nu)
    if kernel in ("epanechnikov", "tophat", "linear", "cosine"):
        inside = q < 1
        q = torch.where(inside, q, 0.5)
        if kernel == "tophat":
            value = 0.0 * q
        elif kernel == "epanechnikov":
            value = torch.log1p(-q)
        else:
            z, at_zero = _root(q)
            value = torch.log1p(-z) if kernel == "linear" else torch.log(torch.cos(0.5 * math.pi * z))
            smooth = -(math.pi**2) / 8 * q if kernel == "cosine" else 0.0 * q
            value = torch.where(at_zero, smooth, value)
        return torch.where(inside, value, -torch.inf) + 0.0 * torch.where(q == q, 0.0, q)
    z, at_zero = _root(q)
    if kernel == "exponential":
        return torch.where(at_zero, 0.0 * q, -z)
    if kernel == "matern32":
        u = math.sqrt(3.0) * z
        return torch.where(at_zero, -1.5 * q, torch.log1p(u) - u)
    if kernel == "matern52":
        u = math.sqrt(5.0) * z
        return torch.where(at_zero, -5.0 / 6.0 * q, torch.log1p(u + u * u / 3.0) - u)
    raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")


def _root(q: Tensor) -> tuple[Tensor, Tensor]:
    # The root of 1 where q = 0: its infinite slope there would make 0 * inf of every gradient that flows back.
    at_zero = q == 0
    return torch.sqrt(torch.where(at_zero, 1.0, q)), at_zero


def delta(q: Tensor, kernel: str, nu: float, dim: int) -> Tensor:
    """d log K / d log h at the same q."""
    if kernel == "gaussian":
        return q
    if kernel == "laplace":
        return q
    if kernel == "student_t":
        return (nu + dim) * q / (nu + q)
    if kernel == "tophat":
        return 0.0 * q
    if kernel in ("epanechnikov", "linear", "cosine"):
        inside = q < 1
        q = torch.where(inside, q, 0.0)
        z, at_zero = _root(q)
        z = torch.where(at_zero, 0.0, z)
        if kernel == "epanechnikov":
            value = 2.0 * q / (1.0 - q)
        elif kernel == "linear":
            value = z / (1.0 - z)
        else:
            value = 0.5 * math.pi * z * torch.tan(0.5 * math.pi * z)
        return torch.where(inside, value, 0.0)
    z, at_zero = _root(q)
    z = torch.where(at_zero, 0.0, z)
    if kernel == "exponential":
        return z
    if kernel == "matern32":
        return 3.0 * q / (1.0 + math.sqrt(3.0) * z)
    u = math.sqrt(5.0) * z
    return 5.0 * q * (1.0 + u) / (3.0 + 3.0 * u + 5.0 * q)


def log_weights(x: Tensor, y: Tensor, bandwidth: Tensor, bias: Tensor | None, kernel: str, nu: float, exclude: int):
    """(B, N, M) log weights with the bias, -inf for the pairs j = i + exclude; and the scaled distances."""
    q = distance(x, y, kernel, bandwidth.to(x.dtype))
    t = log_kernel(q, kernel, nu, x.shape[-1])
    if bias is not None:
        t = t + bias[:, None, :]
    if exclude != NOTHING:
        i = torch.arange(x.shape[1], device=x.device)
        j = torch.arange(y.shape[1], device=x.device)
        t = t.masked_fill(j[None, :] == i[:, None] + exclude, -torch.inf)
    return t, q


NOTHING = -(2**63)


def log_sum_exp(t: Tensor) -> tuple[Tensor, Tensor]:
    """Row-wise log-sum-exp and softmax; rows of -inf alone (or of nothing) give -inf and 0, with a gradient of 0."""
    if t.shape[-1] == 0:
        return t.sum(-1) - torch.inf, t
    dead = (t == -torch.inf).all(-1, keepdim=True)
    t = torch.where(dead, 0.0, t)
    total = torch.where(dead[..., 0], -torch.inf, torch.logsumexp(t, -1))
    return total, torch.where(dead, 0.0, torch.softmax(t, -1))


def sums(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    values: Tensor | None,
    kernel: str,
    nu: float,
    exclude: int,
    outputs: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""log sum_j w_ij, and what ``outputs`` asks for: a mean, sum_j p^2, the mean of d log w / d log h.

    w_ij = K(|x_i - y_j| / h) e^{bias_j}, p_ij = w_ij / sum_j w_ij; VALUES: sum_j p_ij v_j (without ``values``:
    y_j - x_i), SLOPE: d log_sum_i / dx_i. In float64 whatever the dtype of x; only the values come back in that.
    """
    dtype = x.dtype
    wide_x, wide_y = x.double(), y.double()
    t, q = log_weights(wide_x, wide_y, bandwidth.double(), bias, kernel, nu, exclude)
    total, p = log_sum_exp(t)
    nothing = total.new_zeros(*total.shape[:1], 0)
    mean = wide_x.new_zeros(*x.shape[:2], 0)
    if outputs & VALUES:
        mean = p @ values.double() if values is not None else _displacement(p, wide_x, wide_y)
    elif outputs & SLOPE:
        mean = _slope(p, q, wide_x, wide_y, bandwidth.double(), kernel, nu)
    square = p.square().sum(-1) if outputs & SQUARE else nothing
    # 0 * inf: a pair without weight has no part in the mean, however far it is
    d = torch.where(p == 0, 0.0, delta(torch.where(p == 0, 0.0, q), kernel, nu, x.shape[-1]))
    return total, mean.to(dtype), square, (p * d).sum(-1) if outputs & DELTA else nothing


def _displacement(p: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("bnm,bnmd->bnd", p, y[:, None] - x[:, :, None])


def _slope(p: Tensor, q: Tensor, x: Tensor, y: Tensor, h: Tensor, kernel: str, nu: float) -> Tensor:
    difference = y[:, None] - x[:, :, None]
    if kernel == "laplace":
        return torch.einsum("bnm,bnmd->bnd", p / h, torch.sign(difference))
    return torch.einsum("bnm,bnmd->bnd", p * slope(q, kernel, nu, x.shape[-1]) / (h * h), difference)


def slope(q: Tensor, kernel: str, nu: float, dim: int) -> Tensor:
    """-2 d log K / dq: the factor of (y - x) / h^2 in the gradient of log K; 0 at q = 0 where K has a cusp."""
    if kernel == "gaussian":
        return torch.ones_like(q)
    if kernel == "student_t":
        return (nu + dim) / (nu + q)
    if kernel == "tophat":
        return torch.zeros_like(q)
    inside = q < 1
    if kernel == "epanechnikov":
        return torch.where(inside, 2.0 / (1.0 - torch.where(inside, q, 0.0)), 0.0)
    if kernel in ("linear", "cosine"):
        z, at_zero = _root(torch.where(inside, q, 0.25))
        if kernel == "linear":
            value = torch.where(at_zero, 0.0, 1.0 / (z * torch.where(at_zero, 1.0, 1.0 - z)))
        else:
            half = 0.5 * math.pi
            value = torch.where(at_zero, half * half, half * torch.tan(half * torch.where(at_zero, 0.5, z)) / z)
        return torch.where(inside, value, 0.0)
    z, at_zero = _root(q)
    if kernel == "exponential":
        return torch.where(at_zero, 0.0, 1.0 / z)
    z = torch.where(at_zero, 0.0, z)
    if kernel == "matern32":
        return 3.0 / (1.0 + math.sqrt(3.0) * z)
    u = math.sqrt(5.0) * z
    return 5.0 * (1.0 + u) / (3.0 + 3.0 * u + 5.0 * q)


def pulled(
    x: Tensor,
    y: Tensor,
    bandwidth: Tensor,
    bias: Tensor | None,
    log_sum: Tensor,
    grad: Tensor,
    kernel: str,
    nu: float,
    exclude: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The vector-Jacobian product of log_sum with ``grad`` (B, N), for the data: (d/dy, d/dbias, d/dlog h_j).

    With p_ij = w_ij e^{-log_sum_i}: sum_i grad_i p_ij times d log w_ij / dy_j, 1 and d log w_ij / dlog h.
    """
    wide_x, wide_y, h = x.double(), y.double(), bandwidth.double()
    t, q = log_weights(wide_x, wide_y, h, bias, kernel, nu, exclude)
    dead = log_sum == -torch.inf
    p = torch.exp(t - torch.where(dead, 0.0, log_sum)[..., None])
    p = torch.where(dead[..., None], 0.0, p) * grad.double()[..., None]
    used = torch.where(t > -torch.inf, q, 0.0)
    difference = wide_x[:, :, None] - wide_y[:, None]
    if kernel == "laplace":
        to_y = torch.einsum("bnm,bnmd->bmd", p / h, torch.sign(difference))
    else:
        to_y = torch.einsum("bnm,bnmd->bmd", p * slope(used, kernel, nu, x.shape[-1]) / (h * h), difference)
    return to_y.to(y.dtype), p.sum(1), (p * delta(used, kernel, nu, x.shape[-1])).sum(1)


def log_normalizer(kernel: str, dim: int, nu: float = 1.0) -> float:
    """log of the integral of K(|u|) over R^d, at bandwidth 1."""
    half = 0.5 * dim
    sphere = math.log(2.0) + half * math.log(math.pi) - math.lgamma(half)
    if kernel == "gaussian":
        return half * math.log(2.0 * math.pi)
    if kernel == "laplace":
        return dim * math.log(2.0)
    if kernel == "exponential":
        return sphere + math.lgamma(dim)
    if kernel == "matern32":
        return sphere - half * math.log(3.0) + math.lgamma(dim) + math.log1p(dim)
    if kernel == "matern52":
        return sphere - half * math.log(5.0) + math.lgamma(dim) + math.log1p(dim + dim * (dim + 1) / 3.0)
    if kernel == "student_t":
        return half * math.log(math.pi * nu) + math.lgamma(0.5 * nu) - math.lgamma(0.5 * (nu + dim))
    if kernel == "epanechnikov":
        return sphere + math.log(2.0 / (dim * (dim + 2.0)))
    if kernel == "tophat":
        return sphere - math.log(dim)
    if kernel == "linear":
        return sphere - math.log(dim * (dim + 1.0))
    if kernel == "cosine":
        # by parts, so that no two terms cancel: (pi / 2d) * integral of z^d sin(pi z / 2) over (0, 1)
        half_pi = 0.5 * math.pi
        terms = ((-1) ** k * half_pi ** (2 * k + 1) / math.factorial(2 * k + 1) / (dim + 2 * k + 2) for k in range(14))
        return sphere + math.log(half_pi / dim * math.fsum(terms))
    raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")


def nearest(x: Tensor, y: Tensor, exclude: int, absolute: bool) -> Tensor:
    """The first j of least |x_i - y_j| (if ``absolute`` in the sum of magnitudes), j != i + exclude, (B, N).

    -1 where no distance is below infinity.
    """
    difference = x.double()[:, :, None] - y.double()[:, None]
    far = difference.abs().sum(-1) if absolute else difference.square().sum(-1)
    n, m = far.shape[1:]
    far = torch.where(far.isnan(), torch.inf, far)
    if exclude != NOTHING:
        own = torch.arange(n, device=x.device)[:, None] + exclude == torch.arange(m, device=x.device)
        far = torch.where(own, torch.inf, far)
    if not m:
        return torch.full((x.shape[0], n), -1, dtype=torch.int64, device=x.device)
    least = far.amin(-1)
    first = torch.where(far == least[..., None], torch.arange(m, device=x.device), m).amin(-1)
    return torch.where(least == torch.inf, -1, first)
