"""Double-word arithmetic on float64 tensors: a value is an unevaluated sum hi + lo, about 32 digits.

Torch has no fused multiply-add, so products are split as Dekker did. Algorithms: Dekker 1971, Knuth 1998 section 4.2.2,
Joldes, Muller and Popescu 2017. The identities hold in eager float64; a compiler that contracts a*b + c breaks them.
"""

from __future__ import annotations

import torch
from torch import Tensor

DoubleWord = tuple[Tensor, Tensor]

LN2 = (0.6931471805599453, 2.3190468138462996e-17)
HALF_LOG_2PI = (0.9189385332046728, -3.8782941580672414e-17)
HALF_LOG_HALF_PI = (0.22579135264472744, -6.4622584878775846e-18)

_SPLIT = 134217729.0  # 2^27 + 1
# 1/3, 1/5, ..., 1/11 as hi + lo; beyond them z^12 <= 7e-10 makes one word enough for 26 digits.
_ODD_RECIPROCALS = (
    (0.3333333333333333, 1.850371707708594e-17),
    (0.2, -1.1102230246251566e-17),
    (0.14285714285714285, 7.93016446160826e-18),
    (0.1111111111111111, 6.1679056923619804e-18),
    (0.09090909090909091, -2.523234146875356e-18),
)
_LAST_LOG_TERM = 18


def two_sum(a: Tensor, b: Tensor) -> DoubleWord:
    """a + b exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def fast_two_sum(a: Tensor, b: Tensor) -> DoubleWord:
    """a + b exactly, for |a| >= |b| or a = 0."""
    s = a + b
    return s, b - (s - a)


def _halves(a: Tensor) -> DoubleWord:
    t = _SPLIT * a
    high = t - (t - a)
    return high, a - high


def two_prod(a: Tensor, b: Tensor) -> DoubleWord:
    """a * b exactly, for |a|, |b| < 1e299 and products above 1e-290."""
    p = a * b
    ah, al = _halves(a)
    bh, bl = _halves(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def add(a: DoubleWord, b: DoubleWord | Tensor) -> DoubleWord:
    if isinstance(b, Tensor):
        s, e = two_sum(a[0], b)
        return fast_two_sum(s, a[1] + e)
    s, e = two_sum(a[0], b[0])
    t, f = two_sum(a[1], b[1])
    s, e = fast_two_sum(s, e + t)
    return fast_two_sum(s, f + e)


def neg(a: DoubleWord) -> DoubleWord:
    return -a[0], -a[1]


def scale(a: DoubleWord, power_of_two: Tensor | float) -> DoubleWord:
    return a[0] * power_of_two, a[1] * power_of_two


def mul(a: DoubleWord, b: DoubleWord | Tensor) -> DoubleWord:
    if isinstance(b, Tensor):
        p, e = two_prod(a[0], b)
        return fast_two_sum(p, a[1] * b + e)
    p, e = two_prod(a[0], b[0])
    return fast_two_sum(p, e + (a[0] * b[1] + a[1] * b[0]))


def div(a: DoubleWord, b: DoubleWord) -> DoubleWord:
    q = a[0] / b[0]
    p = mul(b, q)
    return fast_two_sum(q, ((a[0] - p[0]) + (a[1] - p[1])) / b[0])


def sqrt(a: DoubleWord) -> DoubleWord:
    """For a > 0."""
    s = torch.sqrt(a[0])
    p, e = two_prod(s, s)
    return fast_two_sum(s, ((a[0] - p) - e + a[1]) / (s + s))


def constant(value: tuple[float, float], like: Tensor) -> DoubleWord:
    return torch.full_like(like, value[0]), torch.full_like(like, value[1])


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent exactly, for integers in [-1022, 1023]. (torch.ldexp goes through float32.)"""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def times_ln2(n: Tensor) -> DoubleWord:
    """n ln 2 for integers |n| < 2^20."""
    n = n.to(torch.float64)
    p, e = two_prod(n, torch.full_like(n, LN2[0]))
    return fast_two_sum(p, e + n * LN2[1])


def log(a: DoubleWord) -> DoubleWord:
    """log(a) for normal a > 0, absolute error below 1e-26 (1 + |log a|).

    a = 2^n f with f in [1/sqrt 2, sqrt 2], z = (f - 1)/(f + 1): log f = 2 (z + z^3/3 + z^5/5 + ...), |z| <= 0.1716.
    """
    m, n = torch.frexp(a[0])
    low = m < 0.7071067811865476
    f = torch.where(low, 2.0 * m, m)
    n = n - low.to(n.dtype)
    f = (f, a[1] * (f / a[0]))
    z = div(add(f, torch.full_like(m, -1.0)), add(f, torch.ones_like(m)))
    z2 = mul(z, z)
    tail = torch.full_like(m, 1.0 / (2 * _LAST_LOG_TERM + 1))
    for k in range(_LAST_LOG_TERM - 1, len(_ODD_RECIPROCALS), -1):
        tail = tail * z2[0] + 1.0 / (2 * k + 1)
    s = (tail, torch.zeros_like(tail))
    for c in reversed(_ODD_RECIPROCALS):
        s = add(mul(s, z2), constant(c, m))
    s = add(mul(s, z2), torch.ones_like(m))
    return add(times_ln2(n), scale(mul(z, s), 2.0))
