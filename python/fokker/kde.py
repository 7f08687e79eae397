r"""Kernel density sums in one pass: log density, score, posterior mean and their like, without an N x M array.

For queries ``x`` (..., N, d), data ``data`` (..., M, d), weights ``w`` (..., M) and a kernel K with K(0) = 1,

    p(x_i) = sum_j w_j K(|x_i - y_j| / h_ij) / (Z_d h_ij^d),    sum_j w_j = 1,

with Z_d the kernel's integral over R^d. Kernels, at z = |x - y| / h:

    gaussian      exp(-z^2 / 2)                      student_t   (1 + z^2 / nu)^(-(nu + d) / 2); cauchy: nu = 1
    laplace       exp(-|x - y|_1 / h)                epanechnikov  max(0, 1 - z^2)
    exponential   exp(-z)                            tophat        1 for z < 1
    matern32      (1 + sqrt3 z) exp(-sqrt3 z)        linear        max(0, 1 - z)
    matern52      (1 + sqrt5 z + 5 z^2 / 3) exp(-sqrt5 z)     cosine   cos(pi z / 2) for z < 1
    vmf           exp(x.y / h^2) on the unit sphere: von Mises-Fisher with concentration 1 / h^2
                  (rows are taken to be unit vectors; they are neither checked nor divided by their length)

Bandwidths broadcast against the pairs (..., N, M) and vary along at most one of the two: a number or ``()``, ``(N, 1)``
for one a query, ``(M,)`` for one a datum. Queries and data are torch tensors or NumPy arrays (then so are the results);
float32 and float64 in their own precision, float16 and bfloat16 through float32, integers as torch's default dtype
(float32: exact up to 2^24). Everything is differentiable in x, data, weights, bandwidth and values, to second order
where the kernel is smooth: first derivatives of log densities by the transposed kernel, what is beyond by autograd over
tiles, never with an N x M array. Under `torch.func` transforms the plain reference runs, which holds one.

A row in which no datum has weight (outside a compact support, M = 0, all weights 0) has log density -inf, gradient 0
and effective sample size 0. A NaN in a query touches its row, a NaN in the data every row. A bandwidth tensor holding
zero or a negative number gives NaN there; a plain number that is not positive is a ValueError.

Float32 with ``precision="highest"``: rows whose rounding bound (see `error_bound`) exceeds 4e-7 |log sum| + 2e-6 nats
are summed again in float64 (compact kernels: rows whose sum is below 0.3 of the largest weight, as near the edge of a
support); "high" leaves that out. "fast" sums float64 arguments in float32 about the data's mean, and leaves that out
too (results are float64; a CPU takes half the time to a tenth); numbers about the mean and bandwidths have to lie
within 1e-15 to 1e15, or where the host may look stay in float64. Float32 arguments have nothing faster on a CPU:
products of bfloat16 (AVX512-BF16) are twice as fast but have 8 bits, and three for the bits of float32 take longer than
those in float32. The nearest data of "fast" are those in float32; a Laplacian stays in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ._kde_arguments import _tensor, arrange, is_number, restore
from ._kde_evaluate import KERNELS, OUTPUTS
from ._kde_evaluate import evaluate as _evaluate
from ._kde_ops import SLOPE, VALUES
from ._kde_state import KDEState, chunks

__all__ = [
    "KERNELS",
    "OUTPUTS",
    "KDEState",
    "Signed",
    "chunks",
    "effective_sample_size",
    "error_bound",
    "evaluate",
    "kernel_sum",
    "laplace_corrected",
    "laplacian",
    "log_prob",
    "logsumexp",
    "posterior_mean",
    "score",
]


def log_prob(
    x: Any,
    data: Any,
    bandwidth: Any,
    *,
    weights: Any = None,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
    precision: str = "highest",
    return_bound: bool = False,
) -> Any:
    r"""The normalised log density log p(x_i) of a kernel density estimate, in nats (Parzen 1962; Silverman 1986, 4.1).

    Args:
        x: queries ``(..., N, d)``.
        data: ``(..., M, d)``.
        bandwidth: see the module's page.
        weights: ``(..., M)``, >= 0, scaled to sum to one; None weighs all data alike. Where one is exactly 0, the
            gradient given for it is 0.
        kernel: one of `KERNELS`.
        nu: degrees of freedom of student_t.
        exclude_self: x is the data (N = M): leave out datum i for query i, and divide by the others' weight.
        precision: "highest", "high" or "fast", see the module's page.
        return_bound: also return `error_bound` (gaussian only).

    Returns:
        ``(..., N)`` in the wider dtype of x and data; with ``return_bound`` a pair.

    Raises:
        ValueError: shapes that do not fit, a bandwidth number <= 0 or NaN, weights that are negative or all zero, an
            unknown kernel or precision.
        TypeError: complex, sparse or unlike devices.
    """
    found = _evaluate(x, data, bandwidth, ("log_prob",), weights, kernel, nu, exclude_self, precision, 0.0)["log_prob"]
    if not return_bound:
        return found
    return found, error_bound(x, data, bandwidth, kernel=kernel, precision=precision)


def score(
    x: Any,
    data: Any,
    bandwidth: Any,
    *,
    weights: Any = None,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
    precision: str = "highest",
    outside: float = 0.0,
) -> Any:
    r"""The score grad_x log p(x_i), ``(..., N, d)``; for the gaussian kernel (E[y | x] - x) / h^2.

    Arguments, dtypes and errors as in `log_prob`. ``outside`` is what rows without any density get (0 or ``nan``).
    Where x equals a datum at which the kernel has a cusp (exponential, laplace, linear), that datum adds 0. In float32
    with d > 4 the score of the gaussian kernel has the error of E[y | x], some 1e-7 of the data's spread, over h^2: at
    bandwidths of 1e-3 of the spread and less take float64. Source: Fukunaga and Hostetler 1975 (the mean shift).
    """
    return _evaluate(x, data, bandwidth, ("score",), weights, kernel, nu, exclude_self, precision, outside)["score"]


def posterior_mean(x: Any, data: Any, sigma: Any, *, weights: Any = None, precision: str = "highest") -> Any:
    r"""E[y | x] for x = y + sigma z with y drawn from ``data``: the ideal denoiser (Karras et al. 2022, eq. 57).

    Args:
        x: noisy points ``(..., N, d)``.
        data: ``(..., M, d)``.
        sigma: a number, or one a query ``(..., N)``.
        weights: ``(..., M)`` prior weights of the data.
        precision: see `log_prob`.

    Returns:
        ``(..., N, d)`` in the wider dtype of x and data; differentiable. x itself where no datum has weight.

    Raises:
        ValueError, TypeError: as in `log_prob`; a tensor sigma holding zero or a negative number gives NaN there.
    """
    h = sigma if is_number(sigma) else _tensor("posterior_mean", "sigma", sigma)
    if isinstance(h, Tensor):
        shape = x.shape if isinstance(x, Tensor) else np.shape(x)
        if h.dim() and len(shape) > 1 and h.shape[-1] not in (1, shape[-2]):
            raise ValueError(f"posterior_mean: sigma must be a number or (..., N={shape[-2]}), got {tuple(h.shape)}")
        h = h[..., None] if h.dim() else h
    elif not 0 < h < math.inf:
        raise ValueError(f"posterior_mean: sigma must be a positive number, got {sigma}")
    return _evaluate(x, data, h, ("posterior_mean",), weights, "gaussian", 1.0, False, precision, 0.0)["posterior_mean"]


def laplacian(x: Any, data: Any, bandwidth: Any, *, weights: Any = None, exclude_self: bool = False) -> Any:
    r"""The Laplacian of log p for the gaussian kernel, ``(..., N)``: E|y - E y|^2 / h^4 - d / h^2.

    Computed in float64 whatever the dtype of x, as the difference of E|y - x|^2 / h^4 and the squared score: its error
    is some 2e-16 |x - E y|^2 / h^4, which beside d / h^2 counts where x is 1e6 bandwidths and more from its data.
    Arguments, results and errors as in `log_prob`.
    """
    return _evaluate(x, data, bandwidth, ("laplacian",), weights, "gaussian", 1.0, exclude_self, "highest", 0.0)[
        "laplacian"
    ]


class Signed(NamedTuple):
    """A density that may be negative: its sign (-1, 0 or 1) and the logarithm of its magnitude, ``(..., N)`` each."""

    sign: Any
    log_abs: Any

    @property
    def value(self) -> Any:
        """sign * exp(log_abs)."""
        return self.sign * (torch if isinstance(self.sign, Tensor) else np).exp(self.log_abs)


def laplace_corrected(
    x: Any,
    data: Any,
    bandwidth: Any,
    *,
    weights: Any = None,
    exclude_self: bool = False,
    precision: str = "highest",
) -> Signed:
    r"""The Laplace-corrected gaussian estimate, p - (h^2 / 2) Laplacian p.

    With r_ij = |x_i - y_j| it is sum_j w_j K_h(r_ij) (1 + d/2 - r_ij^2 / 2h^2): the gaussian's kernel of order four
    (Wand and Schucany 1990). Its bias is of order h^4, as that of the score-debiased estimate
    (`fokker.estimators.SDKernelDensity`), from one pass. It integrates to one, and is negative where the data lie
    farther than some (d + 2)^(1/2) h, so sign and logarithm come apart.

    Arguments as in `log_prob`; bandwidths by datum stand in both factors of their term. Rows without any weight have
    sign 0 and logarithm -inf. Differentiable (the sign's derivative is 0).

    Returns:
        `Signed` (sign, log_abs), ``(..., N)`` each in the dtype of x.
    """
    names = ("log_prob", "laplace_factor")
    found = _evaluate(x, data, bandwidth, names, weights, "gaussian", 1.0, exclude_self, precision, 0.0)
    log_p, factor = found["log_prob"], found["laplace_factor"]
    if isinstance(factor, Tensor):
        return Signed(torch.sign(factor), log_p + torch.log(factor.abs()))
    with np.errstate(divide="ignore"):
        return Signed(np.sign(factor), log_p + np.log(np.abs(factor)))


def effective_sample_size(
    x: Any,
    data: Any,
    bandwidth: Any,
    *,
    weights: Any = None,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
) -> Any:
    r"""(sum_j w_ij)^2 / sum_j w_ij^2, ``(..., N)``: how many data share in the estimate at x_i.

    It falls to 1 where a single datum decides, the condensation of Biroli and Mezard (2024). Arguments, dtypes,
    derivatives and errors as in `log_prob`.
    """
    name = "effective_sample_size"
    return _evaluate(x, data, bandwidth, (name,), weights, kernel, nu, exclude_self, "highest", 0.0)[name]


def evaluate(
    x: Any,
    data: Any,
    bandwidth: Any,
    *,
    outputs: Sequence[str] = ("log_prob", "score"),
    weights: Any = None,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
    precision: str = "highest",
    outside: float = 0.0,
) -> dict[str, Any]:
    """Any of `OUTPUTS` by name: `log_prob`, `score`, `posterior_mean`, `laplacian`, `effective_sample_size` and
    "laplace_factor" from one pass; "nearest" and "nearest_distance".

    "nearest" is the index of the nearest datum that has weight (int64, the first of equals, -1 where there is none) and
    "nearest_distance" how far it is (infinity; differentiable in x and data): Euclidean, for kernel="laplace" the sum
    of magnitudes. They take a pass of their own, in the dtype of x, to which data whose squared distances agree to some
    d / 2 units of rounding are equal. A datum holding a NaN is nobody's nearest; a query holding one has index -1.
    "laplace_factor" is what `laplace_corrected` is times the density, 1 + d/2 - E|y - x|^2 / 2h^2 (gaussian).
    With a "laplacian" among the outputs the pass is made in float64. Beside the score the posterior mean is
    x + h^2 score, good to the rounding of x (alone: of the data); at bandwidths that differ from datum to datum, the
    two take two passes. Arguments and errors as in `log_prob`; shapes, dtypes and derivatives as in each function.
    """
    return _evaluate(x, data, bandwidth, tuple(outputs), weights, kernel, nu, exclude_self, precision, outside)


def kernel_sum(
    x: Any,
    data: Any,
    values: Any,
    bandwidth: Any,
    *,
    weights: Any = None,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
    precision: str = "highest",
) -> Any:
    r"""sum_j u_j K(|x_i - y_j| / h) v_j, not normalised in any way (K(0) = 1): ``(..., N, dv)``.

    Args:
        x: ``(..., N, d)``.
        data: ``(..., M, d)``.
        values: v ``(..., M, dv)``, or None for sum_j u_j K, ``(..., N)``.
        bandwidth: see the module's page.
        weights: u ``(..., M)`` of any sign; None for ones. They are not scaled.
        kernel: one of `KERNELS`, vmf with K = exp((x.y - 1) / h^2).
        nu: see `log_prob`.
        exclude_self: leave out j = i.
        precision: see `log_prob`.

    Differentiable in x, data, values, weights and bandwidth. Dtypes and errors as in `log_prob`.
    """
    c = arrange("kernel_sum", x, data, bandwidth, None, kernel, nu, exclude_self, precision, KERNELS, density=False)
    scale = None if weights is None else c.like_data(weights, "weights", 0)
    if values is None and scale is None:
        return restore(c, c.times_exp(torch.ones_like(c.x[..., 0]), c.sums(0)[0]))
    v = scale[..., None] if values is None else c.like_data(values, "values", 1)  # type: ignore[index]
    if values is not None and scale is not None:
        v = v * scale[..., None]
    log_sum, mean, _, _ = c.sums(VALUES, v.to(c.x.dtype))
    total = c.times_exp(mean, log_sum[..., None])
    return restore(c, total[..., 0] if values is None else total)


def logsumexp(
    x: Any,
    data: Any,
    row_bias: Any = None,
    column_bias: Any = None,
    *,
    bandwidth: Any = 1.0,
    kernel: str = "gaussian",
    nu: float = 1.0,
    exclude_self: bool = False,
    precision: str = "highest",
) -> Any:
    r"""log sum_j K(|x_i - y_j| / h) exp(a_i + b_j), ``(..., N)``; nothing is normalised.

    Args:
        x: ``(..., N, d)``.
        data: ``(..., M, d)``.
        row_bias: a ``(..., N)``, or None.
        column_bias: b ``(..., M)``, or None; -inf leaves a datum out.
        bandwidth: see the module's page (entropic transport with cost |x - y|^2 / 2 and regularisation e: h^2 = e).
        kernel: as in `kernel_sum`.
        nu: see `log_prob`.
        exclude_self: leave out j = i.
        precision: see `log_prob`.

    Differentiable in x, data, both biases and bandwidth, twice for smooth kernels. Dtypes and errors as in `log_prob`.
    """
    c = arrange("logsumexp", x, data, bandwidth, None, kernel, nu, exclude_self, precision, KERNELS, density=False)
    if column_bias is not None:
        c = c.with_bias(c.like_data(column_bias, "column_bias", 0))
    mask = SLOPE if torch.is_grad_enabled() and c.x.requires_grad else 0
    total = c.sums(mask)[0]
    if c.vmf:
        total = total + c.vmf_row()
    if row_bias is not None:
        total = total + c.like_queries(row_bias, "row_bias")
    return restore(c, total)


def error_bound(x: Any, data: Any, bandwidth: Any, *, kernel: str = "gaussian", precision: str = "highest") -> Any:
    r"""3 u |x_i| max_j |y_j| / h^2 with u the unit roundoff, about the data's mean: ``(..., N)``, in nats.

    What the rounding of the inner products can do to log p of the gaussian kernel when nothing is computed again
    ("high"). With "highest", float32 rows for which it exceeds 4e-7 |log sum| + 2e-6 are done in float64. With "fast",
    for float64 arguments, u is float32's, and the rounding of the arguments adds u (|x_i| + max_j |y_j|)^2 / h^2.
    """
    if kernel != "gaussian":
        raise ValueError(f"error_bound needs kernel='gaussian', got {kernel!r}")
    c = arrange("error_bound", x, data, bandwidth, None, kernel, 1.0, False, precision, KERNELS)
    with torch.no_grad():
        centre = c.y.double().mean(1, keepdim=True) if c.y.shape[1] else 0.0
        far = torch.linalg.vector_norm(c.y.double() - centre, dim=-1)
        far = far.amax(-1, keepdim=True) if far.shape[-1] else far.sum(-1, keepdim=True)
        norm = torch.linalg.vector_norm(c.x.double() - centre, dim=-1)
        unit = torch.finfo(c.x.dtype).eps / 2
        narrow = c.bandwidth.amin(2) if c.bandwidth.shape[2] else c.bandwidth.sum(2)
        bound = 3 * unit * norm * far
        if c.x.dtype is torch.float32 and c.dtype is torch.float64:
            bound = bound + unit * (norm + far).square()
        return restore(c, bound / narrow.square())
