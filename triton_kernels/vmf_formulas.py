"""The two regimes of the von Mises-Fisher functions in Triton, as csrc/math/vmf_series.h and vmf_debye.h.

Below hypot(v, k) = 32 (float32: 16) power series whose coefficients depend on the dimension, above it Debye's
expansion: v log k has cancelled in it, and nothing large is left to cancel but in log C, which is summed in double-word
arithmetic.
"""

import triton
import triton.language as tl

from .debye import debye_sum, debye_tier
from .double_word import (
    LN2_HI_32,
    LN2_HI_64,
    LN2_LO_32,
    LN2_LO_64,
    fast_two_sum,
    log_dw,
    mul,
    residual,
    split_log,
    two_prod,
    two_sum,
)
from .elementary import (
    MAX_32,
    MAX_64,
    any_of,
    const,
    divide,
    exp,
    log1p,
    log_normal,
    mad,
    pick,
    reciprocal,
    square_root,
)
from .vmf_constants import (
    LENGTHS_32,
    LENGTHS_64,
    RADIUS_32,
    RADIUS_64,
    SCALARS,
    TIERS_32,
    TIERS_64,
)

# The order of math::VmfFn in csrc/math/vmf.h.
LOG_NORMALIZER = tl.constexpr(0)
MEAN_RESULTANT = tl.constexpr(1)
COMPLEMENT = tl.constexpr(2)
DERIVATIVE = tl.constexpr(3)
SECOND = tl.constexpr(4)
ENTROPY = tl.constexpr(5)
KL_UNIFORM = tl.constexpr(6)
FROM_RESULTANT = tl.constexpr(7)
FROM_COMPLEMENT = tl.constexpr(8)


@triton.jit
def power_series(q, c, N: tl.constexpr):
    """sum c[n] q^n over N coefficients in memory, even and odd powers side by side."""
    square = q * q
    even = const(q, 0.0) + tl.load(c + (N - 1) // 2 * 2)
    odd = const(q, 0.0) + tl.load(c + (N // 2 * 2 - 1))
    for i in tl.static_range((N - 1) // 2 - 1, -1, -1):
        even = mad(even, square, const(q, 0.0) + tl.load(c + 2 * i))
    for i in tl.static_range(N // 2 - 2, -1, -1):
        odd = mad(odd, square, const(q, 0.0) + tl.load(c + 2 * i + 1))
    return mad(odd, q, even)


@triton.jit
def vmf_series(k, c, F: tl.constexpr):
    """F for hypot(v, k) < radius; for FROM_RESULTANT and FROM_COMPLEMENT the moments A, 1 - A, k A', k^2 A''."""
    double: tl.constexpr = k.dtype == tl.float64
    lengths: tl.constexpr = pick(double, LENGTHS_64, LENGTHS_32)
    N: tl.constexpr = lengths[1]
    M: tl.constexpr = lengths[2]
    at_b: tl.constexpr = SCALARS + lengths[0]
    at_a: tl.constexpr = at_b + N
    at_e: tl.constexpr = at_a + N
    at_m: tl.constexpr = at_e + M
    at_dm: tl.constexpr = at_m + M
    scaled = k * (1.0 / pick(double, RADIUS_64, RADIUS_32))
    q = scaled * scaled
    u = q * power_series(q, c + (at_b + 1), N - 1)
    b = 1.0 + u
    zero = const(k, 0.0)
    if F == LOG_NORMALIZER:
        kb, rest = split_log(b)
        total, total_lo = two_sum(zero + tl.load(c + 6), -kb * pick(double, LN2_HI_64, LN2_HI_32))
        low = mad(kb, const(k, pick(double, LN2_LO_64, LN2_LO_32)), rest)
        return total + (total_lo + (tl.load(c + 7) - low)), zero, zero, zero
    elif F == MEAN_RESULTANT:
        return divide(k * power_series(q, c + at_a, N), b), zero, zero, zero
    elif F == DERIVATIVE:
        return divide(power_series(q, c + at_m, M), b * b), zero, zero, zero
    else:
        a = divide(k * power_series(q, c + at_a, N), b)
        if F == SECOND:
            first = divide(power_series(q, c + at_m, M), b * b)
            return k * divide(power_series(q, c + at_dm, M), b * b) - 2.0 * a * first, zero, zero, zero
        complement = divide(power_series(q, c + at_e, M), b * b * (1.0 + a))
        if F == COMPLEMENT:
            return complement, zero, zero, zero
        elif F < FROM_RESULTANT:  # ENTROPY or KL_UNIFORM
            # k A - log B; where A is near 1 both are near k, and that is taken out
            high = a > 0.5
            l = tl.where(high, log_normal(b * exp(-k)), log1p(u))
            kl = k * tl.where(high, -complement, a) - l
            return kl if F == KL_UNIFORM else -tl.load(c + 6) - kl, zero, zero, zero
        else:
            first = divide(power_series(q, c + at_m, M), b * b)
            second = k * divide(power_series(q, c + at_dm, M), b * b) - 2.0 * a * first
            return a, complement, k * first, k * k * second


@triton.jit
def vmf_log_normalizer(v, r, r_lo, sum0, c):
    """v log(v+r) - r + log(r)/2 - (v + 1/2) log 2 pi - sum0 in double-word arithmetic: it crosses zero."""
    double: tl.constexpr = r.dtype == tl.float64
    t, t_lo = fast_two_sum(r, v)
    u, u_lo = fast_two_sum(tl.minimum(t, pick(double, MAX_64, MAX_32) * 0.25), t_lo + r_lo)
    l, l_lo = mul(log_dw(u, u_lo), v)
    x, x_lo = two_sum(l, -r)
    y, y_lo = two_sum(x, const(r, 0.0) + tl.load(c + 4))
    kr, lr = split_log(r)
    z, z_lo = two_sum(y, 0.5 * kr * pick(double, LN2_HI_64, LN2_HI_32))
    rest = mad(const(r, 0.5), mad(kr, const(r, pick(double, LN2_LO_64, LN2_LO_32)), lr), -sum0)
    return z + (rest + (z_lo + (y_lo + (x_lo + ((l_lo - r_lo) + tl.load(c + 5))))))


@triton.jit
def vmf_debye(k0, c, tier, F: tl.constexpr):
    """The same for hypot(v, k) >= radius; tier from `debye_tier`."""
    double: tl.constexpr = k0.dtype == tl.float64
    tiers: tl.constexpr = pick(double, TIERS_64, TIERS_32)
    big: tl.constexpr = pick(double, 1e150, 1e18)  # k above it: k^2 would overflow, and hypot(v, k) is k
    zero = const(k0, 0.0)
    v = zero + tl.load(c)
    k = tl.minimum(k0, pick(double, MAX_64, MAX_32))
    huge = k > big
    bounded = tl.minimum(k, big)
    kk, kk_lo = two_prod(bounded, bounded)
    total, total_lo = two_sum(zero + tl.load(c + 2), kk)
    root = square_root(total)
    r = tl.where(huge, k, root)
    w = reciprocal(r)
    r_lo = tl.where(huge, 0.0, 0.5 * w * (residual(total, root, root) + (total_lo + (tl.load(c + 3) + kk_lo))))
    vw = v * w
    kw = k * w
    s = vw * vw
    lead = divide(k, v + r)
    if F == LOG_NORMALIZER:
        return vmf_log_normalizer(v, r, r_lo, debye_sum(s, w, tier, tiers, 0, 0), c), zero, zero, zero
    elif F == MEAN_RESULTANT:
        return mad(kw * w, debye_sum(s, w, tier, tiers, 0, 1), lead), zero, zero, zero
    elif F == DERIVATIVE:
        return w * mad(w, debye_sum(s, w, tier, tiers, 0, 2), divide(vw, 1.0 + vw)), zero, zero, zero
    elif F == SECOND:
        leading = -lead * vw * (1.0 + reciprocal(1.0 + vw))
        return w * w * mad(kw * w, debye_sum(s, w, tier, tiers, 0, 3), leading), zero, zero, zero
    else:
        sum1 = debye_sum(s, w, tier, tiers, 0, 1)
        if F == ENTROPY:
            # v log((v+r)/(2 pi e)) + log(r/(2 pi))/2 + k (P - log(r)/2)' - P
            sum0 = debye_sum(s, w, tier, tiers, 0, 0)
            l = log_normal((v + r) * 0.058549831524319168)
            h = log_normal(r * 0.15915494309189534)
            return -mad(v, l, mad(const(k, 0.5), h, mad(kw * kw, sum1, -sum0))), zero, zero, zero
        elif F == KL_UNIFORM:
            t = k * lead  # r - v
            u = tl.where(v > 0.0, t * tl.load(c + 9), r - 1.0)
            rest = mad(kw * kw, sum1, tl.load(c + 10) - debye_sum(s, w, tier, tiers, 0, 0))
            return mad(v, log1p(t * tl.load(c + 8)), mad(const(k, 0.5), log1p(u), rest)), zero, zero, zero
        else:
            complement = mad(-(kw * w), sum1, divide(v + v * divide(v, r + k), v + r))
            if F == COMPLEMENT:
                return complement, zero, zero, zero
            first = mad(w, debye_sum(s, w, tier, tiers, 0, 2), divide(vw, 1.0 + vw))
            leading = -lead * vw * (1.0 + reciprocal(1.0 + vw))
            second = mad(kw * w, debye_sum(s, w, tier, tiers, 0, 3), leading)
            return mad(kw * w, sum1, lead), complement, kw * first, kw * kw * second


@triton.jit
def vmf_regimes(k, c, F: tl.constexpr):
    """F, or the moments, of every k in [0, largest number]."""
    double: tl.constexpr = k.dtype == tl.float64
    a = const(k, 0.0)
    complement = a
    first = a
    second = a
    series = k < tl.load(c + 13)
    if any_of(series):
        a, complement, first, second = vmf_series(tl.where(series, k, 0.0), c, F)
    if any_of(~series):
        v = tl.load(c)
        tier = debye_tier(~series, k * k + v * v, pick(double, TIERS_64, TIERS_32))
        p, q, r, s = vmf_debye(tl.where(series, 100.0, k), c, tier, F)
        a = tl.where(series, a, p)
        complement = tl.where(series, complement, q)
        first = tl.where(series, first, r)
        second = tl.where(series, second, s)
    return a, complement, first, second
