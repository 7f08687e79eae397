"""Pairwise measures in plain PyTorch: discrepancies, dependence, scores of ensembles and entropic transport.

Batched arguments: clouds ``x`` (B, N, d), ``y`` (B, M, d), weights ``a`` (B, N) and ``b`` (B, M) that sum to one.
Everything here holds N x M arrays; it is the meaning of `fokker.pairwise`, not a way to go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .kde import distance as kernel_distance
from .kde import log_kernel


# ---- kernels --------------------------------------------------------------------------------------------------------
def gram(x: Tensor, y: Tensor, bandwidth: Tensor, kernel: str, nu: float) -> Tensor:
    """K(|x_i - y_j| / h), (B, N, M) float64, with K(0) = 1; vmf: exp((x.y - 1) / h^2). ``bandwidth`` (B, 1, 1)."""
    x, y, h = x.double(), y.double(), bandwidth.double()
    if kernel == "vmf":
        return torch.exp((x @ y.mT - 1.0) / h.square())
    name, nu = ("student_t", 1.0) if kernel == "cauchy" else (kernel, nu)
    return torch.exp(log_kernel(kernel_distance(x, y, name, h), name, nu, x.shape[-1]))


def off_diagonal(k: Tensor) -> Tensor:
    """The matrix with zeros on its diagonal."""
    n = k.shape[-1]
    return torch.where(torch.eye(n, dtype=torch.bool, device=k.device), 0.0, k)


def weighted(k: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """sum_ij a_i k_ij b_j, (B,)."""
    return (a[..., None] * k * b[:, None]).sum((-2, -1))


def within(k: Tensor, a: Tensor, unbiased: bool) -> Tensor:
    """sum_ij a_i a_j k_ij, over i != j and divided by their weight when ``unbiased``."""
    if not unbiased:
        return weighted(k, a, a)
    return weighted(off_diagonal(k), a, a) / (1.0 - a.square().sum(-1))


def mmd2(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, bandwidths: Sequence[Tensor], kernel: str, nu: float, unbiased: bool
) -> Tensor:
    """sum_h (E K(x, x') + E K(y, y') - 2 E K(x, y)), (B,) float64 (Gretton et al. 2012, equations 3 and 5)."""
    total = torch.zeros_like(a[:, 0])
    for h in bandwidths:
        xx, yy = (within(gram(z, z, h, kernel, nu), w, unbiased) for z, w in ((x, a), (y, b)))
        total = total + (xx + yy - 2.0 * weighted(gram(x, y, h, kernel, nu), a, b))
    return total


def multi_population(
    x: Tensor, y: Tensor, bandwidths: Sequence[Tensor], kernel: str, nu: float
) -> tuple[Tensor, Tensor]:
    r"""(mean of H_ij over i != j, its asymptotic variance): H_ij = k(x_i, x_j) - k(x_i, y_j) - k(y_i, x_j).

    Zhang et al. (ICLR 2024): what MMD^2 is without the term within y. Variance: 4 Var_i(mean_j H_ij).
    """
    h = sum(gram(x, x, s, kernel, nu) - gram(x, y, s, kernel, nu) - gram(y, x, s, kernel, nu) for s in bandwidths)
    n = x.shape[1]
    return off_diagonal(h).sum((-2, -1)) / (n * (n - 1)), 4.0 * h.mean(-1).var(-1, correction=0)


def uniformity(x: Tensor, t: float) -> Tensor:
    """log of the mean over pairs i != j of exp(-t |x_i - x_j|^2), (B,) float64 (Wang and Isola 2020)."""
    n = x.shape[1]
    q = squared_distance(x.double(), x.double())
    logs = torch.where(torch.eye(n, dtype=torch.bool, device=x.device), -torch.inf, -t * q)
    return torch.logsumexp(logs, (-2, -1)) - math.log(n * (n - 1))


def vendi_score(k: Tensor, a: Tensor, order: float) -> Tensor:
    """exp of the Renyi entropy of the eigenvalues of sqrt(a_i a_j) K_ij, (B,) (Pasarkar and Dieng 2024)."""
    root = a.sqrt()
    return hill(eigenvalues(root[..., None] * k * root[:, None]), order)


def eigenvalues(k: Tensor) -> Tensor:
    """Of symmetric matrices, (B, N): NaN for those that hold one, which LAPACK takes for a failure of its own."""
    bad = ~k.isfinite().all(-1).all(-1)[:, None]
    unit = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    return torch.where(bad, torch.nan, torch.linalg.eigvalsh(torch.where(bad[..., None], unit, k)))


def hill(values: Tensor, order: float) -> Tensor:
    """(sum of v^q)^(1 / (1 - q)), the Hill number of eigenvalues that sum to one; those <= 0 do not count."""
    if math.isinf(order):
        return 1.0 / values.amax(-1)
    # what rounding leaves of the eigenvalues that are zero
    floor = values.shape[-1] * torch.finfo(values.dtype).eps
    some = ~(values <= floor * values.detach().amax(-1, keepdim=True))  # a NaN counts
    safe = torch.where(some, values, 1.0)
    if order == 1.0:
        return torch.exp(-(safe * torch.log(safe)).sum(-1))
    power = torch.where(some, safe**order, 0.0).sum(-1)
    return power ** (1.0 / (1.0 - order))


def nadaraya_watson(k: Tensor, values: Tensor, b: Tensor, exclude_self: bool) -> Tensor:
    """sum_j b_j k_ij v_j / sum_j b_j k_ij, (B, N, dv)."""
    w = (off_diagonal(k) if exclude_self else k) * b[:, None]
    return (w @ values.double()) / w.sum(-1, keepdim=True)


# ---- distances ------------------------------------------------------------------------------------------------------
def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2, (B, N, M)."""
    return (x[:, :, None] - y[:, None]).square().sum(-1)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, (B, N, M); its gradient where x_i = y_j is 0."""
    q = squared_distance(x, y)
    at_zero = q == 0
    return torch.where(at_zero, 0.0, torch.sqrt(torch.where(at_zero, 1.0, q)))


def distance_sums(x: Tensor, y: Tensor, weight: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
    """sum_j w_j |x_i - y_j| (B, N), and its gradient in x_i (B, N, d) or an empty tensor."""
    r = distance(x, y)
    total = (r * weight[:, None]).sum(-1)
    if not slope:
        return total, x.new_empty(0)
    at_zero = (r == 0)[..., None]
    unit = torch.where(at_zero, 0.0, (x[:, :, None] - y[:, None]) / torch.where(at_zero, 1.0, r[..., None]))
    return total, (unit * weight[:, None, :, None]).sum(2)


def energy_distance(x: Tensor, y: Tensor, a: Tensor, b: Tensor, unbiased: bool) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'|, (B,) float64 (Szekely and Rizzo 2013)."""
    x, y = x.double(), y.double()
    xx, yy = (within(distance(z, z), w, unbiased) for z, w in ((x, a), (y, b)))
    return 2.0 * weighted(distance(x, y), a, b) - xx - yy


def centred_product(r: Sequence[Tensor], m: Tensor, n: Tensor, c: float, diagonal: int | None) -> Tensor:
    """prod_k (c + m_ik + n_jk - r_ijk) - c^K, (B, N, M); zeros at j = i + diagonal."""
    product = None
    for k, distances in enumerate(r):
        factor = c + (m[:, :, k, None] + n[:, None, :, k] - distances)
        product = factor if product is None else product * factor
    product = product - c ** len(r)
    if diagonal is None:
        return product
    i = torch.arange(m.shape[1], device=m.device)[:, None] + diagonal
    return torch.where(i == torch.arange(n.shape[1], device=m.device), 0.0, product)


def centres(row_sums: Tensor, unbiased: bool) -> Tensor:
    """m_i with -(m_i + m_j - r_ij) the centred distance: half the grand mean is in each. ``row_sums`` (B, N, K)."""
    n = row_sums.shape[1]
    row, grand = (n - 2, (n - 1) * (n - 2)) if unbiased else (n, n * n)
    return row_sums / row - 0.5 * row_sums.sum(1, keepdim=True) / grand


def joint_distance_covariance(variables: Sequence[Tensor], c: float, unbiased: bool) -> Tensor:
    r"""The mean over pairs of prod_k (c + U_k) - c^K with U_k the negated centred distances, (B,) float64.

    Chakraborty and Zhang (2019); two variables and c = 0: the squared distance covariance (Szekely, Rizzo and Bakirov
    2007; unbiased: Szekely and Rizzo 2014).
    """
    r = [distance(v.double(), v.double()) for v in variables]
    m = centres(torch.stack([k.sum(-1) for k in r], -1), unbiased)
    n = m.shape[1]
    total = centred_product(r, m, m, c, 0 if unbiased else None).sum((-2, -1))
    return total / (n * (n - 3) if unbiased else n * n)


# ---- scores of ensembles --------------------------------------------------------------------------------------------
def spread_factor(weights: Tensor, estimator: str, alpha: float) -> Tensor:
    """What sum_jk w_j w_k |x_j - x_k| is multiplied by, (B,): 1, that over pairs j != k, or in between.

    plain: 1; fair (Ferro 2014): 1 / (1 - sum_j w_j^2); almost fair (Lang et al. 2024): alpha fair + (1 - alpha) plain.
    """
    fair = 1.0 / (1.0 - weights.square().sum(-1))
    if estimator == "plain":
        return torch.ones_like(fair)
    return fair if estimator == "fair" else alpha * fair + (1.0 - alpha)


def energy_score(ensemble: Tensor, observation: Tensor, weights: Tensor, factor: Tensor) -> Tensor:
    """E|X - y| - factor / 2 E|X - X'|, (B,) float64: ensemble (B, M, d), observation (B, 1, d), weights (B, M)."""
    x, y = ensemble.double(), observation.double()
    spread = weighted(distance(x, x), weights, weights)
    return (weights * distance(x, y)[..., 0]).sum(-1) - 0.5 * factor * spread


# ---- characteristic functions ---------------------------------------------------------------------------------------
def characteristic_gap(t: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """|sum_j a_j e^{i t.x_j} - sum_j b_j e^{i t.y_j}|^2, (B, F) float64: frequencies t (B, F, d)."""
    u, v = t.double() @ x.double().mT, t.double() @ y.double().mT
    real = (torch.cos(u) @ a[..., None] - torch.cos(v) @ b[..., None])[..., 0]
    imaginary = (torch.sin(u) @ a[..., None] - torch.sin(v) @ b[..., None])[..., 0]
    return real.square() + imaginary.square()


# ---- entropic transport ---------------------------------------------------------------------------------------------
def sinkhorn(
    x: Tensor, y: Tensor, a: Tensor, b: Tensor, epsilon: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""(value (B,), potentials f (B, N), g (B, M)) of min_P <P, C> + epsilon KL(P | a b^T), C = |x - y|^2 / 2.

    Sinkhorn's iteration on logarithms (Peyre and Cuturi 2019, section 4.4), from g = 0, ending with an f.
    """
    cost = 0.5 * squared_distance(x.double(), y.double())
    log_a, log_b = (torch.where(w == 0, -torch.inf, torch.log(torch.where(w == 0, 1.0, w))) for w in (a, b))
    g = torch.zeros_like(log_b)
    for _ in range(iterations):
        f = -epsilon * torch.logsumexp(log_b[:, None] + (g[:, None] - cost) / epsilon, -1)
        g = -epsilon * torch.logsumexp(log_a[:, :, None] + (f[..., None] - cost) / epsilon, -2)
    f = -epsilon * torch.logsumexp(log_b[:, None] + (g[:, None] - cost) / epsilon, -1)
    return (a * f).sum(-1) + (b * g).sum(-1), f, g


# ---- sampling -------------------------------------------------------------------------------------------------------
def cmixup_logits(labels: Tensor, bandwidth: float) -> Tensor:
    """-|y_i - y_j|^2 / 2h^2, -inf for j = i, (N, N) float64: labels (N, dy) (Yao et al. 2022, equation 6)."""
    q = squared_distance(labels.double()[None], labels.double()[None])[0] / (2.0 * bandwidth**2)
    return torch.where(torch.eye(len(labels), dtype=torch.bool, device=q.device), -torch.inf, -q)
