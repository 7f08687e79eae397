"""log K and K_{v+1}/K_v for hypot(v, x) < 30 and x < 1: Temme's series near order 0, then a recurrence in the order.

Every function returns the derivatives of one order: 0: (f,), 1: (f_v, f_x), 2: (f_vv, f_vx, f_xx). Those in v are
carried through the computation as truncated Taylor series, those in x follow from K_v' = (v/x) K_v - K_{v+1}.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fokker.reference._bessel_small import polynomial

_TERMS = 12  # (x/2)^2k / k!^2 < 1e-24 of the sum for x < 1
_MAX_ORDER = 30

# Taylor coefficients of 1/Gamma(1 + z) (DLMF 5.7.1).
_RECIPROCAL_GAMMA = (
    1.0, 0.5772156649015329, -0.6558780715202539, -0.04200263503409524, 0.16653861138229148, -0.04219773455554433,
    -0.009621971527876973, 0.0072189432466631, -0.0011651675918590652, -0.00021524167411495098,
    0.0001280502823881162, -2.013485478078824e-05, -1.2504934821426706e-06, 1.133027231981696e-06,
    -2.056338416977607e-07, 6.116095104481416e-09, 5.002007644469223e-09, -1.18127457048702e-09,
    1.0434267116911005e-10, 7.782263439905071e-12, -3.696805618642206e-12, 5.100370287454476e-13,
)  # fmt: skip
# Temme's Gamma_1 = (1/Gamma(1-z) - 1/Gamma(1+z)) / (2z) and Gamma_2 = (1/Gamma(1-z) + 1/Gamma(1+z)) / 2.
_GAMMA_1 = tuple(-c if k % 2 == 1 else 0.0 for k, c in enumerate(_RECIPROCAL_GAMMA))[1:]
_GAMMA_2 = tuple(c if k % 2 == 0 else 0.0 for k, c in enumerate(_RECIPROCAL_GAMMA))
_SINH_QUOTIENT = tuple((k % 2 == 0) / math.factorial(k + 1) for k in range(23))


class _Jet:
    """A function of v as its Taylor coefficients (f, f', f''/2), truncated at the order asked for."""

    def __init__(self, *c: Tensor) -> None:
        self.c = c

    @classmethod
    def of_polynomial(cls, coefficients: tuple[float, ...], v: Tensor, order: int) -> _Jet:
        return cls(
            *(
                polynomial(tuple(math.comb(k, n) * c for k, c in enumerate(coefficients) if k >= n), v)
                for n in range(order + 1)
            )
        )

    @classmethod
    def of_exponential(cls, rate: Tensor, value: Tensor, order: int) -> _Jet:
        """exp(rate v), given its value."""
        return cls(*(value * rate**n / math.factorial(n) for n in range(order + 1)))

    def __add__(self, other: _Jet) -> _Jet:
        return _Jet(*[a + b for a, b in zip(self.c, other.c, strict=True)])

    def __sub__(self, other: _Jet) -> _Jet:
        return _Jet(*(a - b for a, b in zip(self.c, other.c, strict=True)))

    def __mul__(self, other: _Jet) -> _Jet:
        out = []
        for k in range(len(self.c)):
            total = self.c[0] * other.c[k]
            for i in range(1, k + 1):
                total = total + self.c[i] * other.c[k - i]
            out.append(total)
        return _Jet(*out)

    def __truediv__(self, other: _Jet) -> _Jet:
        out: list[Tensor] = []
        for k in range(len(self.c)):
            rest = self.c[k]
            for i in range(k):
                rest = rest - out[i] * other.c[k - i]
            out.append(rest / other.c[0])
        return _Jet(*out)

    def scaled(self, factor: Tensor | float) -> _Jet:
        return _Jet(*[a * factor for a in self.c])

    def shifted(self, value: float) -> _Jet:
        return _Jet(self.c[0] + value, *self.c[1:])

    def log_derivatives(self) -> list[Tensor]:
        """First and second derivative of the logarithm, up to the jet's order."""
        out = [a / self.c[0] for a in self.c[1:]]
        return out if len(out) < 2 else [out[0], 2.0 * out[1] - out[0] * out[0]]

    def where(self, condition: Tensor, other: _Jet) -> _Jet:
        return _Jet(*(torch.where(condition, a, b) for a, b in zip(self.c, other.c, strict=True)))


def _temme(order: int, mu: _Jet, ell: Tensor, s: Tensor, y: Tensor) -> tuple[_Jet, _Jet, _Jet]:
    """K_mu, (x/2) K_{1+mu} and (x/2) K_{1-mu} at x, all times (2/x)^(-s mu).

    |mu| <= 1/2, ell = log(2/x), y = x^2/4, s = 0 or 1. They are sum_k c_k f_k, sum_k c_k (p_k - k f_k) and
    sum_k c_k (q_k - k f_k) with c_k = y^k/k! (Temme, J. Comput. Phys. 19, 1975).
    """
    up, down = (1.0 - s) * ell, -(1.0 + s) * ell
    rise = _Jet.of_exponential(up, torch.exp(up * mu.c[0]), order)
    # Past e^600, at negative mu, what this multiplies is below 1e-200 of the result.
    fall = _Jet.of_exponential(down, torch.exp(torch.clamp(down * mu.c[0], max=600.0)), order)
    gamma_1, gamma_2 = (_Jet.of_polynomial(c, mu.c[0], order) for c in (_GAMMA_1, _GAMMA_2))
    plus, minus = gamma_2 - mu * gamma_1, gamma_2 + mu * gamma_1  # 1/Gamma(1 +- mu)
    # (2/x)^(-s mu) sinh(mu ell)/mu, by its series where mu ell is small.
    near = torch.abs(mu.c[0]) * ell < 1.0
    near_sigma = torch.where(near, mu.c[0] * ell, 0.0)
    series = _Jet.of_polynomial(_SINH_QUOTIENT, near_sigma, order)
    series = _Jet(*(a * ell ** (n + 1) for n, a in enumerate(series.c)))
    series = series * _Jet.of_exponential(-s * ell, torch.exp(-s * near_sigma), order)
    sinh = series.where(near, (rise - fall).scaled(0.5) / _Jet(torch.where(near, 1.0, mu.c[0]), *mu.c[1:]))
    f = ((rise + fall).scaled(0.5) * gamma_1 + sinh * gamma_2) / (plus * minus)
    p, q = rise.scaled(0.5) / plus, fall.scaled(0.5) / minus
    sum_0, sum_p, sum_q, c = f, p, q, torch.ones_like(y)
    for k in range(1, _TERMS + 1):
        c = c * (y / k)
        k_minus, k_plus = mu.scaled(-1.0).shifted(float(k)), mu.shifted(float(k))
        f = (f.scaled(float(k)) + p + q) / (k_minus * k_plus)
        p, q = p / k_minus, q / k_plus
        kf = f.scaled(float(k))
        sum_0, sum_p, sum_q = sum_0 + f.scaled(c), sum_p + (p - kf).scaled(c), sum_q + (q - kf).scaled(c)
    return sum_0, sum_p, sum_q


def _k_and_ratio(order: int, v: Tensor, x: Tensor) -> tuple[list[Tensor], _Jet]:
    """log K_v and its derivatives in v up to the order asked for, and rho = (x/2) K_{v+1}/K_v as a jet.

    rho_j = (x/2) K_{mu+j+1}/K_{mu+j} obeys rho_j = (mu + j) + y/rho_{j-1} (DLMF 10.29.1): positive terms, nothing
    overflows, and errors in the derivatives die out; K_v is the product of K_mu and these. The growth (2/x)^mu stays
    out of the jets, or its square would cancel in the second derivative; near v = 0, where K grows either way, it does
    not.
    """
    n = torch.round(v)
    zero = torch.zeros_like(v)
    mu = _Jet(*[v - n, torch.ones_like(v), zero][: order + 1])
    ell = math.log(2.0) - torch.log(x)
    s = ((n >= 1) | (mu.c[0] * ell >= 1.0)).to(v.dtype)
    y = 0.25 * x * x
    k_0, k_plus, k_minus = _temme(order, mu, ell, s, y)
    start = k_plus.where(n >= 1, k_0)
    product, slopes = start.c[0], start.log_derivatives()
    rho = k_0.scaled(y) / k_plus + mu.shifted(1.0)
    result = (k_minus / k_0 + mu).where(n == 0, rho)
    for j in range(2, _MAX_ORDER + 1):
        more = n >= j
        product = torch.where(more, product * rho.c[0], product)
        slopes = [torch.where(more, a + b, a) for a, b in zip(slopes, rho.log_derivatives(), strict=True)]
        rho = mu.shifted(float(j)) + _Jet(*[y, zero, zero][: order + 1]) / rho
        result = rho.where(n == j, result)
    log_k = [torch.log(product) + (s * mu.c[0] + n) * ell, *slopes]
    if order >= 1:
        log_k[1] = torch.where(v == 0, 0.0, log_k[1] + s * ell)  # even in v
    return log_k, result


def _mixed_near_zero(v: Tensor, ell: Tensor, x: Tensor) -> Tensor:
    """x d2/dvdx log K for v ell < 1, v <= 1/2, without cancellation as v -> 0.

    -x K'/K = (x/2) (K_{v+1} + K_{v-1}) / K_v is even in v. Temme's sums are taken in z = v^2, by the even functions
    f, p + q and (p - q)/v, and d/dv = 2 v d/dz.
    """
    z, y, one = v * v, 0.25 * x * x, torch.ones_like(v)
    square = _Jet(z, one)

    def even(coefficients: tuple[float, ...], scale: Tensor) -> _Jet:
        jet = _Jet.of_polynomial(coefficients, z * scale, 1)
        return _Jet(jet.c[0], jet.c[1] * scale)

    gamma_1, gamma_2 = even(_GAMMA_1[::2], one), even(_GAMMA_2[::2], one)
    cosh = even(tuple(1.0 / math.factorial(2 * k) for k in range(12)), ell * ell)
    sinh = even(_SINH_QUOTIENT[::2], ell * ell).scaled(ell)  # sinh(v ell) / v
    product = gamma_2 * gamma_2 - square * gamma_1 * gamma_1  # 1 / (Gamma(1+v) Gamma(1-v))
    total = (cosh * gamma_2 + square * sinh * gamma_1) / product
    difference = (sinh * gamma_2 + cosh * gamma_1) / product
    f, sum_0, sum_1, c = difference, difference, total, one
    for k in range(1, _TERMS + 1):
        c = c * (y / k)
        denominator = square.scaled(-1.0).shifted(float(k * k))
        f = (f.scaled(float(k)) + total) / denominator
        total, difference = (
            (total.scaled(float(k)) + square * difference) / denominator,
            (difference.scaled(float(k)) + total) / denominator,
        )
        sum_0, sum_1 = sum_0 + f.scaled(c), sum_1 + (total - f.scaled(2.0 * k)).scaled(c)
    return -2.0 * v * (sum_1 / sum_0).c[1]


def log_k(scaled: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    log_k, rho = _k_and_ratio(order, v, x)
    if order == 0:
        return (log_k[0] + x if scaled else log_k[0],)
    if order == 1:
        d_x = (v - 2.0 * rho.c[0]) / x
        return log_k[1], d_x + 1.0 if scaled else d_x
    ell = math.log(2.0) - torch.log(x)
    near = (v <= 0.5) & (v * ell < 1.0)  # there 2 rho_v is close to 1
    d_vx = torch.where(near, _mixed_near_zero(torch.where(near, v, 0.0), ell, x), 1.0 - 2.0 * rho.c[1]) / x
    return log_k[2], d_vx, -(v + _x2_ratio_x(rho.c[0], v, x)) / x / x


def _x2_ratio_x(rho: Tensor, v: Tensor, x: Tensor) -> Tensor:
    """x^2 Q' for Q = 2 rho/x, by Q' = Q^2 - (2v + 1) Q/x - 1."""
    return 2.0 * rho * (2.0 * (rho - v) - 1.0) - x * x


def ratio_k(order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    rho = _k_and_ratio(order, v, x)[1]
    if order == 0:
        return (2.0 * rho.c[0] / x,)
    x2_ratio_x = _x2_ratio_x(rho.c[0], v, x)
    if order == 1:
        return 2.0 * rho.c[1] / x, x2_ratio_x / x / x
    d_vx = (8.0 * rho.c[0] * rho.c[1] - 4.0 * rho.c[0] - 2.0 * (2.0 * v + 1.0) * rho.c[1]) / x / x
    d_xx = (4.0 * rho.c[0] * x2_ratio_x - (2.0 * v + 1.0) * (x2_ratio_x - 2.0 * rho.c[0])) / x / x / x
    return 4.0 * rho.c[2] / x, d_vx, d_xx
