"""I, K and their ratios for hypot(v, x) < 30 and x >= 1: quadrature for K, continued fraction for I_{v+1}/I_v, and the
Wronskian between them for I.

Every function returns the derivatives of one order: 0: (f,), 1: (f_v, f_x), 2: (f_vv, f_vx, f_xx).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fokker.reference import _double_word as dw
from fokker.reference._bessel_debye import arc_sinh, leading

# The trapezoid's error is about (cos a)^-v e^{x (1 - cos a) - 2 pi a/h}, least over a in (0, pi/2): < 1e-17 for r < 30;
# past the last node the integrand is below 1e-20 of its peak for x >= 1.
_STEP = 0.1
_NODES = 60
_FRACTION_DEPTH = 42


def _sinh_minus_identity(t: float) -> float:
    return sum(t ** (2 * k + 1) / math.factorial(2 * k + 1) for k in range(1, 25))


class _Quadrature:
    """Averages under the weight exp(v t - x cosh t) of K_v(x) = (1/2) int exp(v t - x cosh t) dt (DLMF 10.32.9).

    The nodes are centred on the peak, sinh t* = v/x: with t = t* + tau the exponent is
    -L - r (cosh tau - 1) - v (sinh tau - tau), free of cancellation, and L is known in double-word. The nodes +-tau are
    added to each other before they join a sum, so odd moments at v = 0 vanish exactly.
    """

    def __init__(self, v: Tensor, x: Tensor) -> None:
        self.v, self.x, self.r = v, x, torch.hypot(v, x)
        total, tau_sum, sinh_sum, cosh1_sum = (torch.zeros_like(v) for _ in range(4))
        for tau, sinh, cosh1, right, left in self._nodes():
            even, odd = right + left, right - left
            total, cosh1_sum = total + even, cosh1_sum + cosh1 * even
            tau_sum, sinh_sum = tau_sum + tau * odd, sinh_sum + sinh * odd
        total = total + 1.0
        self.total = 0.5 * _STEP * total  # e^L K_v(x)
        self.tau_mean, self.sinh_mean, self.cosh1_mean = tau_sum / total, sinh_sum / total, cosh1_sum / total
        self.exp1_mean = self.sinh_mean + self.cosh1_mean
        self.cosh_mean = self.cosh_excess(self.sinh_mean, self.cosh1_mean)

    def _nodes(self) -> Iterator[tuple[float, float, float, Tensor, Tensor]]:
        """(tau, sinh tau, cosh tau - 1, weight at tau, weight at -tau) from the tails inward, without tau = 0."""
        for j in range(_NODES, 0, -1):
            tau = j * _STEP
            cosh1 = 2.0 * math.sinh(0.5 * tau) ** 2
            even, odd = cosh1 * self.r, _sinh_minus_identity(tau) * self.v
            yield tau, math.sinh(tau), cosh1, torch.exp(-even - odd), torch.exp(odd - even)

    def cosh_excess(self, sinh: float | Tensor, cosh1: float | Tensor) -> Tensor:
        """cosh t - r/x, where tau has this sinh tau and cosh tau - 1."""
        return (cosh1 * self.r + sinh * self.v) / self.x

    def cumulants(self, *powers: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Central moments of t^i (-cosh t)^j (e^tau)^k, one for each (i, j, k) of total 2 or 3."""

        def centred(tau: float, sinh: float, cosh1: float) -> tuple[Tensor, Tensor, Tensor]:
            excess = self.cosh_excess(sinh, cosh1)
            return tau - self.tau_mean, self.cosh_mean - excess, (sinh + cosh1) - self.exp1_mean

        def product(factors: tuple[Tensor, Tensor, Tensor], power: tuple[int, int, int]) -> Tensor:
            chosen = [f for f, n in zip(factors, power, strict=True) for _ in range(n)]
            out = chosen[0] * chosen[1]
            return out * chosen[2] if len(chosen) == 3 else out

        sums = [torch.zeros_like(self.v) for _ in powers]
        for tau, sinh, cosh1, right, left in self._nodes():
            at_right, at_left = centred(tau, sinh, cosh1), centred(-tau, -sinh, cosh1)
            for i, power in enumerate(powers):
                sums[i] = sums[i] + (right * product(at_right, power) + left * product(at_left, power))
        middle = centred(0.0, 0.0, 0.0)
        norm = 0.5 * _STEP / self.total
        return tuple(norm * (s + product(middle, power)) for s, power in zip(sums, powers, strict=True))


def log_k(scaled: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """log K_v(x): its derivatives are cumulants of t and -cosh t."""
    q = _Quadrature(v, x)
    if order == 0:
        head = dw.neg(leading(v, x)[0])
        if not scaled:
            head = dw.add(head, -x)
        return (dw.add(head, torch.log(q.total))[0],)
    if order == 1:
        cosh_peak = (v / x) * (v / (q.r + x)) if scaled else q.r / x
        return arc_sinh(v, x) + q.tau_mean, -(cosh_peak + q.cosh_mean)
    return q.cumulants((2, 0, 0), (1, 1, 0), (0, 2, 0))


def ratio_k(order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """K_{v+1}/K_v, the average of e^t: its derivatives are joint cumulants of e^t with t and -cosh t."""
    q = _Quadrature(v, x)
    kappa = (v + q.r) / x
    if order == 0:
        return (kappa * (1.0 + q.exp1_mean),)
    powers = tuple((order - j, j, 1) for j in range(order + 1))
    return tuple(kappa * c for c in q.cumulants(*powers))


def ratio_i(order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """I_{v+1}/I_v = x rho_0, rho_n = 1/(2 (v + n + 1) + X rho_{n+1}), X = x^2 (DLMF 10.33.1), from far below upward.

    All terms are positive and each step damps the errors of the one before, so nothing is lost; the derivatives in
    (v, X) follow the same recurrence.
    """
    X = x * x
    zero = torch.zeros_like(v)
    rho = rho_v = rho_x = rho_vv = rho_vx = rho_xx = zero
    for n in range(_FRACTION_DEPTH, -1, -1):
        new = 1.0 / (2.0 * (v + (n + 1)) + X * rho)
        if order == 2:
            den_v, den_x = 2.0 + X * rho_v, rho + X * rho_x
            den_vv, den_vx, den_xx = X * rho_vv, rho_v + X * rho_vx, 2.0 * rho_x + X * rho_xx
            rho_vv = new * new * (2.0 * new * den_v * den_v - den_vv)
            rho_vx = new * new * (2.0 * new * den_v * den_x - den_vx)
            rho_xx = new * new * (2.0 * new * den_x * den_x - den_xx)
        if order >= 1:
            rho_v, rho_x = -new * new * (2.0 + X * rho_v), -new * new * (rho + X * rho_x)
        rho = new
    if order == 0:
        return (x * rho,)
    if order == 1:
        return x * rho_v, rho + 2.0 * X * rho_x
    return x * rho_vv, rho_v + 2.0 * X * rho_vx, x * (6.0 * rho_x + 4.0 * X * rho_xx)


def log_i(scaled: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """log I_v = -log K_v - log(x Q + x R), Q = K_{v+1}/K_v, R = I_{v+1}/I_v (Wronskian, DLMF 10.28.2)."""
    q = _Quadrature(v, x)
    kappa = (v + q.r) / x
    ratio_sum = kappa * (1.0 + q.exp1_mean) + ratio_i(0, v, x)[0]
    if order == 0:
        head = leading(v, x)[0]
        if not scaled:
            head = dw.add(head, x)
        return (dw.add(head, -torch.log(q.total * (x * ratio_sum)))[0],)
    # At v = 0: d/dv = -K_0/I_0 (DLMF 10.38), d2/dvdx = 1/(x I_0^2), both e^-2x of the terms that cancel elsewhere.
    k_zero = torch.exp(-x) * q.total
    k_over_i_zero = k_zero * k_zero * (x * ratio_sum)
    # d/dx comes from I_v' = I_{v+1} + (v/x) I_v.
    r1 = ratio_i(1, v, x)
    if order == 1:
        r0 = ratio_i(0, v, x)[0]
        slope = (kappa * q.cumulants((1, 0, 1))[0] + r1[0]) / ratio_sum
        d_v = torch.where(v == 0, -k_over_i_zero, -(arc_sinh(v, x) + q.tau_mean) - slope)
        return d_v, v / x + (r0 - 1.0 if scaled else r0)
    q_v, q_vv, k_vv = q.cumulants((1, 0, 1), (2, 0, 1), (2, 0, 0))
    slope = (kappa * q_v + r1[0]) / ratio_sum
    d_vv = slope * slope - k_vv - (kappa * q_vv + ratio_i(2, v, x)[0]) / ratio_sum
    d_vx = torch.where(v == 0, k_over_i_zero * ratio_sum, 1.0 / x + r1[0])
    return d_vv, d_vx, r1[1] - (v / x) / x
