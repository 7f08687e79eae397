"""log I for hypot(v, x) < 30 and x < 2: the ascending series, with the gamma functions it needs.

Every function returns the derivatives of one order: 0: (f,), 1: (f_v, f_x), 2: (f_vv, f_vx, f_xx).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fokker.reference._bessel_middle import ratio_i

_TERMS = 14  # (x/2)^2k / k!^2 < 1e-21 of the sum for x < 2

_EULER_GAMMA = 0.5772156649015329
# (-1)^k zeta(k) / k from k = 2 on.
_LOG_GAMMA_SERIES = tuple(
    (-1.0) ** k * zeta / k
    for k, zeta in enumerate(
        (
            1.6449340668482264, 1.2020569031595942, 1.0823232337111381, 1.03692775514337, 1.0173430619844492,
            1.008349277381923, 1.0040773561979444, 1.0020083928260821, 1.000994575127818, 1.0004941886041194,
            1.000246086553308, 1.0001227133475785, 1.0000612481350588, 1.000030588236307, 1.0000152822594086,
            1.0000076371976379, 1.000003817293265, 1.0000019082127165, 1.0000009539620338, 1.0000004769329869,
            1.0000002384505027, 1.000000119219926, 1.000000059608189, 1.0000000298035034,
        ),
        2,
    )
)  # fmt: skip
# B_2, B_4, ..., B_16 (DLMF 24.2).
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)


def polynomial(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    """c_0 + c_1 z + ..."""
    total = torch.full_like(z, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * z + c
    return total


def log_gamma_1p(v: Tensor) -> Tensor:
    """log Gamma(1 + v) for v >= 0, relatively accurate at v -> 0 too (DLMF 5.7.3)."""
    small = v < 0.25
    z = torch.where(small, v, 0.0)
    return torch.where(small, z * (z * polynomial(_LOG_GAMMA_SERIES, z) - _EULER_GAMMA), torch.lgamma(1.0 + v))


def trigamma(z: Tensor) -> Tensor:
    """psi'(z) for z > 0 (DLMF 5.5.2, 5.15.8); torch.special.polygamma(1, z) has only nine digits."""
    total = torch.zeros_like(z)
    for i in range(9, -1, -1):
        total = total + 1.0 / ((z + i) * (z + i))
    w = 1.0 / (z + 10.0)
    return total + w * (1.0 + w * (0.5 + w * polynomial(_BERNOULLI, w * w)))


def log_i(scaled: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """I_v(x) = (x/2)^v / Gamma(1 + v) sum_k t_k, t_k = (x^2/4)^k / (k! (v+1)...(v+k)) (DLMF 10.25.2).

    The derivatives of log t_k in v are -h_k and g_k, sums of 1/(v+i) and 1/(v+i)^2 over i <= k.
    """
    log_half_x = torch.log(x) - math.log(2.0)
    y = 0.25 * x * x
    if order == 0:
        u = torch.zeros_like(v)
        for k in range(_TERMS, 0, -1):
            u = (1.0 + u) * (y / (k * (v + k)))
        value = v * log_half_x - log_gamma_1p(v) + torch.log1p(u)
        return (value - x if scaled else value,)
    t, h, g = torch.ones_like(v), torch.zeros_like(v), torch.zeros_like(v)
    sum_t, sum_th, sum_thh = t, h, g
    for k in range(1, _TERMS + 1):
        reciprocal = 1.0 / (v + k)
        t, h, g = t * (y / k * reciprocal), h + reciprocal, g + reciprocal * reciprocal
        sum_t, sum_th, sum_thh = sum_t + t, sum_th + t * h, sum_thh + t * (g + h * h)
    h_mean = sum_th / sum_t
    # d/dx comes from I_v' = I_{v+1} + (v/x) I_v.
    if order == 1:
        r0 = ratio_i(0, v, x)[0]
        return log_half_x - torch.special.digamma(v + 1.0) - h_mean, v / x + (r0 - 1.0 if scaled else r0)
    d_vv = sum_thh / sum_t - h_mean * h_mean - trigamma(v + 1.0)
    r1 = ratio_i(1, v, x)
    return d_vv, 1.0 / x + r1[0], r1[1] - (v / x) / x
