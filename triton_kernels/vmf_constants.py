"""What the von Mises-Fisher kernels need of the dimension alone, as csrc/math/vmf_constants.h: computed once, kept.

v = dim/2 - 1. Below hypot(v, k) = radius the kernels sum power series in q = (k / radius)^2 with positive coefficients:
    B = 0F1(; v+1; k^2/4) = sum b q^n,     A = k sum a q^n / B,
    1 - A^2 = sum e q^n / B^2,   A' = sum m q^n / B^2,   A'' + 2 A A' = k sum dm q^n / B^2.
"""

import functools
from fractions import Fraction

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

RADIUS_64 = tl.constexpr(32.0)
RADIUS_32 = tl.constexpr(16.0)
# From each r so many terms of Debye's expansion.
TIERS_64 = tl.constexpr(((1000.0, 5), (100.0, 10), (32.0, 16)))
TIERS_32 = tl.constexpr(((200.0, 3), (40.0, 6), (16.0, 9)))
# The lengths of the Taylor series of KL, of b and a, and of e, m and dm.
LENGTHS_64 = tl.constexpr((10, 48, 78))
LENGTHS_32 = tl.constexpr((5, 25, 40))
# Where the scalars stand, after which come the series in the order taylor, b, a, e, m, dm.
SCALARS = tl.constexpr(16)

_Long = np.longdouble
_LOG_2PI_DIGITS = "1.8378770664093454835606594728112352797227949472756"
_LOG_2PI = _Long(_LOG_2PI_DIGITS)
_LOG_2 = _Long("0.69314718055994530941723212145818")
_STIRLING = ("12", "-360", "1260", "-1680", "1188", "-360360/691", "156", "-122400/3617")


def _long(text: str) -> np.longdouble:
    top, _, bottom = text.partition("/")
    return _Long(top) / _Long(bottom or "1")


def _stirling_remainder(z: np.longdouble) -> np.longdouble:
    """log Gamma(z + 1) - (z log z - z + log(2 pi z)/2) for z >= 19, DLMF 5.11.1."""
    s, y = _Long(0), 1 / (z * z)
    for c in reversed(_STIRLING):
        s = s * y + 1 / _long(c)
    return s / z


def _log_gamma1(v: np.longdouble) -> np.longdouble:
    product, z = _Long(1), v
    while z < 20:
        z = z + 1
        product = product * z
    return (z * (np.log(z) - 1) + (_LOG_2PI + np.log(z)) / 2 + _stirling_remainder(z)) - np.log(product)


def _words(x: np.longdouble | Fraction, kind: type) -> tuple[float, float]:
    if isinstance(x, Fraction):
        hi = kind(float(x))
        return float(hi), float(kind(float(x - Fraction(float(hi)))))
    hi = kind(x)
    return float(hi), float(kind(x - _Long(hi)))


def _series(v: np.longdouble, radius: int, lengths: tuple[int, int, int]) -> list[np.longdouble]:
    """The coefficients of taylor, b, a, e, m, dm, one after the other."""
    # A = sum (-1)^n t[n] k^(2n+1) from A' = 1 - A^2 - (2v+1) A / k; KL to the uniform is the integral of k A'.
    scale = (v + 1) * (v + 5)
    t: list[np.longdouble] = []
    for n in range(lengths[0]):  # t[n] carries scale^(n+1)
        square = sum((t[i] * t[n - 1 - i] for i in range(n)), _Long(0)) / (2 * (n + v + 1))
        t.append(square if n else scale / (2 * v + 2))
    taylor = [(-1) ** n * c * (2 * n + 1) / (2 * n + 2) for n, c in enumerate(t)]
    if v >= radius:  # no concentration reaches the series
        return taylor + [_Long(0)] * (2 * lengths[1] + 3 * lengths[2])
    y = _Long(radius) * radius / 4
    b, a, e, m, dm = [_Long(1)], [1 / (2 * (v + 1))], [], [], []
    for n in range(1, lengths[1]):
        b.append(b[-1] * y / (n * (v + n)))
        a.append(b[-1] / (2 * (v + 1 + n)))
    p = _Long(1)
    for n in range(lengths[2]):
        if n > 0:  # B^2 = sum p q^n, DLMF 10.31.3
            p = p * y * 2 * (2 * v + 2 * n - 1) / ((2 * v + n) * n * (v + n))
        e.append(p * (2 * v + 1) / (2 * v + n + 1))
        m.append(e[-1] / (2 * (v + n + 1)))
        if n > 0:
            dm.append(m[-1] * n / (2 * y))
    return [*taylor, *b, *a, *e, *m, *dm, _Long(0)]


@functools.lru_cache(maxsize=256)
def vmf_constants(dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The constants of a dimension as a tensor of the type that is computed in, float32 or float64."""
    double = dtype is torch.float64
    kind = np.float64 if double else np.float32
    radius = int((RADIUS_64 if double else RADIUS_32).value)
    v = _Long(dim) / 2 - 1
    gamma, zero = _log_gamma1(v), v == 0
    if v >= 20:
        stirling = -_stirling_remainder(v)
    else:
        stirling = _LOG_2PI / 2 if zero else v * np.log(v) - v + (_LOG_2PI + np.log(v)) / 2 - gamma
    scalars = [
        v,
        _Long(dim - 1),
        *_words(v * v, kind),
        # Exact: this is up to 1e6, and what is left of log C where it crosses 0 must be good to 1e-17.
        *_words(Fraction(1 - dim, 2) * Fraction(_LOG_2PI_DIGITS), kind),
        *_words(gamma + v * _LOG_2 - (v + 1) * _LOG_2PI, kind),  # log C(0)
        _Long(0) if zero else 1 / (2 * v),
        _Long(1) if zero else 1 / v,
        stirling,  # v log v - v + log(2 pi v)/2 - log Gamma(v + 1); for v = 0 log(2 pi)/2
        1 / np.sqrt((v + 1) * (v + 5)),  # the zeros of I_v are at least this far from 0, inverted
        np.sqrt((v + 1) * (v + 5)) / 8,  # up to here KL by its Taylor series
        np.sqrt(_Long(radius) ** 2 - v * v) if v < radius else _Long(0),  # up to here the power series
    ]
    scalars += [_Long(0)] * (SCALARS.value - len(scalars))
    values = np.array([*scalars, *_series(v, radius, (LENGTHS_64 if double else LENGTHS_32).value)], dtype=_Long)
    return torch.from_numpy(values.astype(kind)).to(device)
