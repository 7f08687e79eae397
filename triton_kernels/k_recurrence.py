"""From orders mu, mu + 1 to order v = mu + n, n = round(v): forward recurrences, as csrc/math/bessel_k_recurrence.h.

A block runs as many steps as its largest order wants; lanes that have arrived keep what they have.
"""

import triton
import triton.language as tl

from .double_word import two_prod, two_sum
from .elementary import const, mad


@triton.jit
def uses_temme(v, x):
    """Where Temme's formula has the smaller error; both hold around the border."""
    if v.dtype == tl.float64:
        return x <= 1.0
    else:
        return x <= tl.where(v > 0.5, const(v, 0.35), 0.16)


@triton.jit
def k_advance(k0, k1, excess, k0_lo, k1_lo, mu, n, b, c, c_lo, steps, ORDER: tl.constexpr, PRECISE: tl.constexpr):
    """From the jets of k_0, k_1 to j = max(n, 1) by k_{j+1} = b k_{j-1} + c (mu + j) k_j; steps >= n is a scalar.

    Returns (k, k', low word of k, W = k k'' - k'^2) at the order n, then k_{j-1}, k_j, P = k_{j-1} k_j' - k_j k_{j-1}',
    dP/dmu and the excess k_{j+1} - (1 + a_j) k_j, a_j = (mu + j + 1/2) / x (for b = 1). What is nonlinear in k has a
    recurrence of its own, which saves the digits that forming it would cancel.
    """
    before, before_d1, before_d2 = k0
    k, d1, d2 = k1
    before_lo = k0_lo
    k_lo = k1_lo
    p = mad(d1, before, -(k * before_d1))
    p_d1 = mad(d2, before, -(k * before_d2))
    before_w = mad(before, before_d2, -(before_d1 * before_d1))
    w = mad(k, d2, -(d1 * d1))
    cross = mad(before, d2, mad(k, before_d2, -2.0 * before_d1 * d1))
    j = const(mu, 0.0)
    for _ in range(1, steps):
        j = j + 1.0
        go = j < n
        t = mu + j
        a = c * t
        ck = c * k
        if ORDER >= 1:
            half = (0.5 * c) * (t + 0.5)
            excess = tl.where(go, mad(half * half, k, (half - 1.0) * excess), excess)
        if ORDER >= 2:
            next_w = mad(a, mad(a, w, b * cross), mad(b * b, before_w, c * mad(b + b, p, -(ck * k))))
            cross = tl.where(go, mad(a + a, w, b * cross), cross)
            before_w = tl.where(go, w, before_w)
            w = tl.where(go, next_w, w)
            p_d1 = tl.where(go, mad((c + c) * k, d1, -(b * p_d1)), p_d1)
        if ORDER >= 1:
            p = tl.where(go, mad(ck, k, -(b * p)), p)
            next_d1 = mad(a, d1, mad(b, before_d1, ck))
            before_d1 = tl.where(go, d1, before_d1)
            d1 = tl.where(go, next_d1, d1)
        if PRECISE:
            _, ct_lo = two_prod(c, t)
            a_lo = mad(c, mu - (t - j), mad(c_lo, t, ct_lo))
            ak, ak_lo = two_prod(a, k)
            after, after_lo = two_sum(ak, b * before)
            after_lo = (ak_lo + after_lo) + mad(a, k_lo, mad(a_lo, k, b * before_lo))
            before_lo = tl.where(go, k_lo, before_lo)
            k_lo = tl.where(go, after_lo, k_lo)
        else:
            after = mad(a, k, b * before)
        before = tl.where(go, k, before)
        k = tl.where(go, after, k)
    first = n < 0.5
    at = tl.where(first, before, k)
    at_d1 = tl.where(first, before_d1, d1)
    at_lo = tl.where(first, before_lo, k_lo)
    return at, at_d1, at_lo, tl.where(first, before_w, w), before, k, p, p_d1, excess
