"""The von Mises-Fisher scalars by formula, in float64 and without derivatives: what fokker.reference.vmf is made of.

v = dim/2 - 1, r = hypot(v, k), B = 0F1(; v+1; k^2/4), A = I_{v+1}(k)/I_v(k), for finite k >= 0. Two regimes meet at
r = 32: power series of positive terms below, Debye's expansion in polar form from there (DLMF 10.41.3-4, 10.41.7).
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from fokker.reference import _double_word as dw
from fokker.reference._debye import DEBYE_COEFFICIENTS

RADIUS = 32.0
Columns = dict[str, Tensor]


def log_normalizer_at_zero(dim: int) -> float:
    """Minus the log of the sphere's area, 2 pi^{d/2} / Gamma(d/2)."""
    return math.lgamma(dim / 2) - math.log(2.0) - dim / 2 * math.log(math.pi)


# ---- hypot(v, k) < 32 ------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=64)
def _series_rows(dim: int) -> tuple[tuple[float, ...], ...]:
    """For n = 0, 1, ..: coefficients of q^n, q = (k / RADIUS)^2, of (B - 1)/q, A B / k, (1 - A^2) B^2, A' B^2 and
    (A'' + 2 A A') B^2 / k.
    """
    v, y = dim / 2 - 1, RADIUS * RADIUS / 4
    rows, b, p = [], 1.0, 1.0
    for n in range(90):
        e = p * (2 * v + 1) / (2 * v + n + 1)
        m = e / (2 * (v + n + 1))
        now = b / (2 * (v + 1 + n))
        b *= y / ((n + 1) * (v + n + 1))
        p *= y * 2 * (2 * v + 2 * n + 1) / ((2 * v + n + 1) * (n + 1) * (v + n + 1))
        after = p * (2 * v + 1) / (2 * v + n + 2) / (2 * (v + n + 2))  # m of the next n
        rows.append((b, now, e, m, after * (n + 1) / (2 * y)))
    return tuple(rows)


def series(dim: int, k: Tensor, with_log: bool) -> Columns:
    """B^2 = sum p_n y^n with p_n = (2v+n+1)_n / (n! (v+1)_n^2), y = k^2/4 (DLMF 10.31.3).

    From it and the like series of 0F1(; v+2; y) follow, with positive terms only,

        1 - A^2 = sum p_n (2v+1)/(2v+n+1) y^n / B^2,    A' = sum p_n (2v+1)/(2 (2v+n+1) (v+n+1)) y^n / B^2.
    """
    rows = torch.tensor(_series_rows(dim), dtype=torch.float64, device=k.device)
    rows = rows.reshape(*rows.shape, *([1] * k.dim()))
    q = (k / RADIUS) ** 2
    total = torch.zeros_like(k)
    for n in reversed(range(rows.shape[0])):
        total = total * q + rows[n]
    u, f, e, m, slope = total.unbind(0)
    u = u * q
    b = 1 + u
    a = k * f / b
    complement, first = e / (b * b * (1 + a)), m / (b * b)
    second = k * slope / (b * b) - 2 * a * first
    kl = torch.where(a > 0.5, -k * complement - torch.log(b * torch.exp(-k)), k * a - torch.log1p(u))
    log_c0 = log_normalizer_at_zero(dim)
    return {
        **({"log_normalizer": log_c0 - torch.log(b)} if with_log else {}),
        "mean_resultant": a,
        "complement": complement,
        "resultant_derivative": first,
        "resultant_second": second,
        "entropy": -log_c0 - kl,
        "kl_uniform": kl,
        "k_first": k * first,
        "kk_second": k * k * second,
    }


# ---- hypot(v, k) >= 32 -----------------------------------------------------------------------------------------------
def _weighted_rows() -> Tensor:
    """Coefficients of s^j w^m in P = sum_m D_m(s) w^m, then times N, N (N+2) and N (N+2) (N+4) with N = m + 2j."""
    terms = len(DEBYE_COEFFICIENTS)
    rows = torch.zeros(4, terms, terms, dtype=torch.float64)
    for m, row in enumerate(DEBYE_COEFFICIENTS):
        for j, c in enumerate(row):
            n = m + 2 * j
            rows[:, m, j] = torch.tensor([c, c * n, c * n * (n + 2), c * n * (n + 2) * (n + 4)], dtype=torch.float64)
    return rows


_ROWS = _weighted_rows()


def _debye_sums(s: Tensor, w: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    """P, and the first three k-derivatives of G = P - log(r)/2 over k w^2, w^2 and k w^4; c = (k w)^2.

    (1/k) d/dk takes s^j w^m to -N s^j w^(m+2), N = m + 2j; log(r) is the limit of the row N = 0.
    """
    rows = _ROWS.to(s.device).reshape(*_ROWS.shape, *([1] * s.dim()))
    in_w, total = torch.zeros_like(s), torch.zeros_like(s)
    for j in reversed(range(_ROWS.shape[2])):
        in_w = in_w * s + rows[:, :, j]
    for m in reversed(range(_ROWS.shape[1])):
        total = total * w + in_w[:, m]
    p, n1, n2, n3 = total.unbind(0)
    return p, -0.5 - n1, c - 0.5 + (c * n2 - n1), 3 - 4 * c + (3 * n2 - c * n3)


def _stirling(v: float) -> float:
    """v log v - v + log(2 pi v)/2 - log Gamma(v+1) (DLMF 5.11.1), which is P at k = 0."""
    if v < 20:
        return v * math.log(v) - v + math.log(2 * math.pi * v) / 2 - math.lgamma(v + 1)
    y = 1 / (v * v)
    return -(1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * 691 / 360360))))) / v


def _debye_log_normalizer(v: float, k: Tensor, r: Tensor, p: Tensor) -> Tensor:
    """v log(v+r) - r + log(r)/2 - (v + 1/2) log 2 pi - P, in double-word: its terms dwarf it near its zero."""
    small = torch.clamp(k, max=1e100)
    vk = torch.full_like(k, v)
    root = dw.sqrt(dw.add(dw.two_prod(vk, vk), dw.two_prod(small, small)))
    root = torch.where(k > small, r, root[0]), torch.where(k > small, 0.0, root[1])
    log_sum = dw.log(dw.add(root, vk))
    constant = dw.mul(dw.constant(dw.HALF_LOG_2PI, k), torch.full_like(k, -(2 * v + 1)))
    total = dw.add(dw.add(dw.mul(log_sum, vk), dw.neg(root)), constant)
    half_log = dw.scale(dw.log((r, torch.zeros_like(r))), 0.5)
    return dw.add(dw.add(total, half_log), -p)[0]


def debye(dim: int, k: Tensor, with_log: bool) -> Columns:
    """log C and its derivatives with v log k cancelled against that in log I_v, so that all is regular at k = 0."""
    v = dim / 2 - 1
    r = torch.hypot(torch.full_like(k, v), k)
    w = 1 / r
    vw, x = v * w, k * w
    p, g1, g2, g3 = _debye_sums(vw * vw, w, x * x)
    lead = k / (v + r)
    first = vw / (1 + vw) + w * g2  # r A'
    second = x * w * g3 - lead * vw * (1 + 1 / (1 + vw))  # r^2 A''
    rest = x * x * g1 - p
    log_sum, log_r = torch.log((v + r) / (2 * math.pi * math.e)), torch.log(r / (2 * math.pi))
    if v > 0:
        t = k * lead  # r - v
        kl = v * torch.log1p(t / (2 * v)) + 0.5 * torch.log1p(t / v) + (rest + _stirling(v))
    else:
        kl = 0.5 * torch.log(2 * math.pi * r) + rest
    return {
        **({"log_normalizer": _debye_log_normalizer(v, k, r, p)} if with_log else {}),
        "mean_resultant": lead + x * w * g1,
        "complement": (v + v * (v / (r + k))) / (v + r) - x * w * g1,
        "resultant_derivative": w * first,
        "resultant_second": w * w * second,
        "entropy": -(v * log_sum + 0.5 * log_r + rest),
        "kl_uniform": kl,
        "k_first": x * first,
        "kk_second": x * x * second,
    }


def _taylor_kl(dim: int, k: Tensor) -> Tensor:
    """KL to the uniform, int_0^k t A'(t) dt: A = sum (-1)^n a_n k^(2n+1) from A' = 1 - A^2 - (d-1) A/k."""
    scale = dim * (dim / 2 + 4) / 2  # (v+1)(v+5), below the square of the first zero of A's denominator
    a = [scale / dim]
    for n in range(1, 14):
        a.append(sum(a[i] * a[n - 1 - i] for i in range(n)) / (2 * n + dim))
    q = k * (k / scale)
    total = torch.zeros_like(k)
    for n in reversed(range(14)):
        total = total * q + (-1.0) ** n * a[n] * (2 * n + 1) / (2 * n + 2)
    return total * q


# ---- both ------------------------------------------------------------------------------------------------------------
def columns(dim: int, k: Tensor, with_log: bool = False) -> Columns:
    """Every scalar at finite k >= 0: each regime runs on inputs made safe, then one is taken."""
    v = dim / 2 - 1
    far = torch.hypot(torch.full_like(k, v), k) >= RADIUS
    out = debye(dim, torch.where(far, k, 100.0), with_log)
    if v < RADIUS:
        near = series(dim, torch.where(far, 1.0, k), with_log)
        out = {name: torch.where(far, value, near[name]) for name, value in out.items()}
    small = k * k < (v + 1) * (v + 5) / 64
    out["kl_uniform"] = torch.where(small, _taylor_kl(dim, torch.where(small, k, 0.0)), out["kl_uniform"])
    return out


LIMITS = {  # at k = inf
    "log_normalizer": -math.inf,
    "mean_resultant": 1.0,
    "complement": 0.0,
    "resultant_derivative": 0.0,
    "resultant_second": 0.0,
    "entropy": -math.inf,
    "kl_uniform": math.inf,
}


def scalar(name: str, dim: int, k: Tensor) -> Tensor:
    """One of LIMITS at any k; nan below 0."""
    value = columns(dim, torch.where(torch.isfinite(k) & (k > 0), k, 0.0), name == "log_normalizer")[name]
    value = torch.where(torch.isinf(k), LIMITS[name], value)
    return torch.where(k >= 0, value, math.nan)


def inverse(dim: int, resultant: Tensor, complement: Tensor) -> Tensor:
    """The k with A(k) = R from R and 1 - R: Banerjee's start, then Halley's steps relative to k."""
    inside = (resultant > 1e-9) & (complement > 0) & (resultant <= 1)
    r, c = torch.where(inside, resultant, 0.5), torch.where(inside, complement, 0.5)
    largest = torch.finfo(torch.float64).max
    k = (r * (dim - 1 + c * (1 + r)) / (1 + r) / c).clamp(max=largest)
    for _ in range(3):
        at = columns(dim, k)
        residual = torch.where(r < 0.5, at["mean_resultant"] - r, c - at["complement"])
        x = residual / at["k_first"]
        k = (k - k * x / (1 - 0.5 * x * at["kk_second"] / at["k_first"])).clamp(max=largest)
    k = torch.where(k < largest, k, math.inf)
    k = torch.where(inside, k, dim * resultant)  # exact below 1e-9
    k = torch.where(complement == 0, math.inf, k)
    return torch.where((resultant >= 0) & (complement >= 0), k, math.nan)


# ---- the Bregman divergence of -log C --------------------------------------------------------------------------------
NODES = (0.14887433898163121, 0.43339539412924719, 0.67940956829902441, 0.86506336668898451, 0.97390652851717172)
WEIGHTS = (0.29552422471475287, 0.26926671930999636, 0.21908636251598204, 0.14945134915058059, 0.066671344308688138)


def bregman(dim: int, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """B(p, q) = int_p^q (q - t) A'(t) dt and A(q) - A(p) = int_p^q A'(t) dt, without cancellation.

    Near pairs by ten Gauss-Legendre nodes: A' has its nearest poles at +-i j, j the first zero of J_v, above
    sqrt((v+1)(v+5)). Far ones by B = KL(p) - KL(q) + q (A(q) - A(p)) with KL to the uniform distribution.
    """
    v = dim / 2 - 1
    h = 0.5 * (q - p)
    lowest = torch.minimum(p, q)
    near = 2 * torch.abs(h) <= 0.75 * torch.hypot(lowest, torch.full_like(lowest, math.sqrt((v + 1) * (v + 5))))
    safe_h, safe_p = torch.where(near, h, 0.0), torch.where(near, p, 0.0)
    nodes = torch.tensor([sign * x for x in NODES for sign in (-1, 1)], dtype=torch.float64, device=h.device)
    weights = torch.tensor([w for w in WEIGHTS for _ in (-1, 1)], dtype=torch.float64, device=h.device)
    nodes, weights = (t.reshape(-1, *([1] * h.dim())) for t in (nodes, weights))
    f = weights * scalar("resultant_derivative", dim, safe_p + safe_h * (1 + nodes))
    divergence, difference = h * (h * ((1 - nodes) * f).sum(0)), h * f.sum(0)
    ends = torch.stack([p, q])
    at = columns(dim, torch.where(torch.isfinite(ends), ends.clamp(min=0.0), 0.0))
    a, c, kl = (
        torch.where(torch.isinf(ends), LIMITS[n], at[n]) for n in ("mean_resultant", "complement", "kl_uniform")
    )
    far_difference = torch.where(a[0] + a[1] < 1, a[1] - a[0], c[0] - c[1])
    far_divergence = kl[0] - kl[1] + q * far_difference
    far_divergence = torch.where(torch.isinf(p) ^ torch.isinf(q), math.inf, far_divergence)
    valid = (p >= 0) & (q >= 0)
    out = torch.where(near, divergence, far_divergence), torch.where(near, difference, far_difference)
    return torch.where(valid, out[0], math.nan), torch.where(valid, out[1], math.nan)
