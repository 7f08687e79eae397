"""log I, log K and their ratios for hypot(v, x) >= 30: Debye's expansion in polar variables, in log form.

With r = hypot(v, x), w = 1/r, s = v^2/r^2 (DLMF 10.41.3-4, 10.41.7-10; D_k from tools/debye_coefficients.py):

    log I_v(x) =  L - log(2 pi r)/2   + P(+),   L = r + v log(x/(v + r)),   P(sign) = sum_k sign^k D_k(s) w^k
    log K_v(x) = -L + log(pi/(2 r))/2 + P(-)

Every function returns the derivatives of one order: 0: (f,), 1: (f_v, f_x), 2: (f_vv, f_vx, f_xx).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fokker.reference import _double_word as dw
from fokker.reference._debye import DEBYE_COEFFICIENTS

Rows = tuple[tuple[float, ...], ...]


def _differentiate(rows: Rows, depth: int, in_v: bool) -> Rows:
    """The rows of dG/da (a = v^2) or dG/db (b = x^2), for G = sum_kj c_kj a^j r^-(2j + k + 2 depth).

    r^2 = a + b, so both derivatives are again such a sum, with depth + 1.
    """
    out = []
    for k, row in enumerate(rows):
        new = [-(j + 0.5 * k + depth) * c for j, c in enumerate(row)]
        if in_v:
            for j, c in enumerate(row[1:]):
                new[j] += (j + 1) * c
        out.append(tuple(new))
    return tuple(out)


def _all_rows() -> dict[tuple[int, int], Rows]:
    """Coefficients of d^(i+j) P / da^i db^j divided by w^(2i + 2j), for i + j <= 3."""
    rows: dict[tuple[int, int], Rows] = {(0, 0): DEBYE_COEFFICIENTS}
    for total in range(1, 4):
        for i in range(total + 1):
            j = total - i
            before = (i - 1, j) if i else (i, j - 1)
            rows[i, j] = _differentiate(rows[before], total - 1, in_v=i > 0)
    return rows


_ROWS = _all_rows()


class _Tail:
    """P(sign) at (v, x) and its partial derivatives."""

    def __init__(self, sign: float, v: Tensor, x: Tensor) -> None:
        self.w = 1.0 / torch.hypot(v, x)
        self.sin, self.cos = v * self.w, x * self.w
        self.s = self.sin * self.sin
        self.sign = sign

    def _sum(self, i: int, j: int) -> Tensor:
        total = torch.zeros_like(self.w)
        for row in reversed(_ROWS[i, j][1:]):
            d = torch.full_like(self.s, row[-1])
            for c in reversed(row[:-1]):
                d = d * self.s + c
            total = self.sign * self.w * (total + d)
        return total

    def value(self) -> Tensor:
        return self._sum(0, 0)

    def first(self) -> tuple[Tensor, Tensor]:
        return 2 * self.sin * self.w * self._sum(1, 0), 2 * self.cos * self.w * self._sum(0, 1)

    def second(self) -> tuple[Tensor, Tensor, Tensor]:
        sin, cos, w2 = self.sin, self.cos, self.w * self.w
        vv = w2 * (2 * self._sum(1, 0) + 4 * sin * sin * self._sum(2, 0))
        vx = w2 * 4 * sin * cos * self._sum(1, 1)
        xx = w2 * (2 * self._sum(0, 1) + 4 * cos * cos * self._sum(0, 2))
        return vv, vx, xx

    def third(self) -> tuple[Tensor, Tensor, Tensor]:
        """P_vvx, P_vxx, P_xxx."""
        sin, cos, w3 = self.sin, self.cos, self.w * self.w * self.w
        ab, bb = self._sum(1, 1), self._sum(0, 2)
        vvx = cos * w3 * (4 * ab + 8 * sin * sin * self._sum(2, 1))
        vxx = sin * w3 * (4 * ab + 8 * cos * cos * self._sum(1, 2))
        xxx = cos * w3 * (12 * bb + 8 * cos * cos * self._sum(0, 3))
        return vvx, vxx, xxx


def leading(v: Tensor, x: Tensor) -> tuple[dw.DoubleWord, dw.DoubleWord]:
    """L - x = v^2/(r + x) + v log(x/(v + r)) and log r in double-word, for r >= 1.

    Near the zero of log I, L cancels against the other terms from magnitude r down to 0: one word would leave an error
    of r * 1e-16. (v, x) is brought near 1 by a power of two, because L is homogeneous and v * v would overflow.
    """
    e = torch.frexp(torch.maximum(v, x))[1].clamp(-1000, 1000)
    up, down = dw.power_of_two(e), dw.power_of_two(-e)
    zero = torch.zeros_like(v)
    vs, xs = v * down, x * down
    v2 = dw.two_prod(vs, vs)
    r = dw.sqrt(dw.add(v2, dw.two_prod(xs, xs)))
    # x apart from its exponent: a subnormal x would otherwise lose the quotient's low word.
    m, n = torch.frexp(x)
    log_q = dw.add(dw.log(dw.div((m, zero), dw.add(r, vs))), dw.times_ln2(n - e))
    difference = dw.add(dw.div(v2, dw.add(r, xs)), dw.mul(log_q, vs))
    return dw.scale(difference, up), dw.add(dw.log(r), dw.times_ln2(e))


def arc_sinh(v: Tensor, x: Tensor) -> Tensor:
    """asinh(v / x) where the quotient may overflow."""
    quotient = v / x
    far = quotient > 1e100
    return torch.where(far, torch.log(v) - torch.log(x) + math.log(2.0), torch.asinh(torch.where(far, 1.0, quotient)))


def log_function(second_kind: bool, scaled: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """log I (log K if second_kind), with e^-x (e^x) in front if scaled."""
    sign = -1.0 if second_kind else 1.0
    tail = _Tail(sign, v, x)
    if order == 0:
        difference, log_r = leading(v, x)
        head = dw.add(dw.scale(difference, sign), dw.scale(log_r, -0.5))
        if not scaled:
            head = dw.add(head, sign * x)
        constant = dw.constant(dw.HALF_LOG_HALF_PI, v) if second_kind else dw.neg(dw.constant(dw.HALF_LOG_2PI, v))
        return (dw.add(dw.add(head, constant), tail.value())[0],)
    sin, cos, w = tail.sin, tail.cos, tail.w
    if order == 1:
        p_v, p_x = tail.first()
        head_x = (v / x) * (v / (torch.hypot(v, x) + x)) if scaled else torch.hypot(v, x) / x
        d_v = -sign * arc_sinh(v, x) - 0.5 * sin * w + p_v
        if not second_kind:
            d_v = torch.where(v < 0.25, d_v - _k_over_i(v, x), d_v)
        return d_v, sign * head_x - 0.5 * cos * w + p_x
    p_vv, p_vx, p_xx = tail.second()
    w2, tilt = w * w, 0.5 * (cos - sin) * (cos + sin)
    d_vv = -sign * w - tilt * w2 + p_vv
    d_vx = sign * sin / x + sin * cos * w2 + p_vx
    if not second_kind:
        slope = ratio(False, 0, v, x)[0] + ratio(True, 0, v, x)[0]  # -d/dx log(K/I)
        d_vx = torch.where(v < 0.25, d_vx + slope * _k_over_i(v, x), d_vx)
    d_xx = -sign * sin * (v / x) / x + tilt * w2 + p_xx
    return d_vv, d_vx, d_xx


def _k_over_i(v: Tensor, x: Tensor) -> Tensor:
    """cos(pi v) K_v/I_v for v < 1/4.

    I_v = (I_v + I_-v)/2 - sin(pi v)/pi K_v (DLMF 10.27.2): Debye's series is the first part, even in v. The derivative
    of the second is e^-2x of it, but all there is of d/dv log I at v = 0.
    """
    v, x = torch.clamp(v, max=0.25), torch.clamp(x, min=20.0)
    difference = v * (v / (torch.hypot(v, x) + x)) - v * arc_sinh(v, x)
    tails = _Tail(-1.0, v, x).value() - _Tail(1.0, v, x).value()
    return torch.cos(math.pi * v) * math.pi * torch.exp(-2.0 * x) * torch.exp(tails - 2.0 * difference)


def ratio(second_kind: bool, order: int, v: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """I_{v+1}/I_v = x/(v + r) + t + P_x, t = -x w^2/2; K_{v+1}/K_v = (v + r)/x - t - P_x."""
    tail = _Tail(-1.0 if second_kind else 1.0, v, x)
    sin, cos, w = tail.sin, tail.cos, tail.w
    w2, w3 = w * w, w * w * w
    rho = cos / (1 + sin)
    kappa = (v + torch.hypot(v, x)) / x
    if order == 0:
        head: tuple[Tensor, ...] = (kappa,) if second_kind else (rho,)
        correction: tuple[Tensor, ...] = (-0.5 * cos * w + tail.first()[1],)
    elif order == 1:
        head = (kappa * w, -kappa * sin / x) if second_kind else (-rho * w, w * sin / (1 + sin))
        t = (sin * cos * w2, 0.5 * (cos - sin) * (cos + sin) * w2)
        correction = tuple(a + b for a, b in zip(t, tail.second()[1:], strict=True))
    else:
        if second_kind:
            head = (
                cos * w2,
                -(1 + sin) / x / x - sin * w2,
                sin * sin * w / x + 2 * (1 + sin) * (v / x) / x / x,
            )
        else:
            head = (
                rho * w2 * (1 + sin),
                w2 * (cos * cos - sin) / (1 + sin),
                -w2 * sin * rho * (sin + 2) / (1 + sin),
            )
        t = (cos * w3 * (1 - 4 * sin * sin), sin * w3 * (1 - 4 * cos * cos), cos * w3 * (3 - 4 * cos * cos))
        correction = tuple(a + b for a, b in zip(t, tail.third(), strict=True))
    return tuple(h - c if second_kind else h + c for h, c in zip(head, correction, strict=True))
