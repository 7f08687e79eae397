"""The ascending series of log I_v and its ratio for hypot(v, x) < 25 (float32: 10), as csrc/math/bessel_series.h.

    I_v(x) = (x/2)^v / Gamma(v+1) S,  S = sum_k y^k / (k! (v+1)_k),  y = x^2/4            DLMF 10.25.2

S = A_1 / B_1 by the division-free pair B_k = k (v+k) B_{k+1}, A_k = B_k + y A_{k+1}, whose terms are positive;
derivatives ride along. A block sums as many terms as its largest x wants.
"""

import triton
import triton.language as tl

from .debye import HALF_LOG_2PI_32, HALF_LOG_2PI_64, IV_RATIO, LOG_IVE
from .double_word import (
    LN2_HI_32,
    LN2_HI_64,
    LN2_LO_32,
    LN2_LO_64,
    atanh_rest,
    log_ratio,
    ratio_log_value,
    ratio_scale,
    residual,
    split_log,
    two_prod,
    two_sum,
)
from .elementary import const, divide, horner, mad, pick, reciprocal

# Terms for x up to each bound (v = 0 is the slowest order).
TERMS_64 = tl.constexpr(((1.0, 10), (4.0, 16), (8.0, 22), (12.0, 26), (17.0, 32), (float("inf"), 40)))
TERMS_32 = tl.constexpr(((2.0, 8), (4.0, 10), (6.0, 13), (float("inf"), 18)))

LOG_GAMMA_64 = tl.constexpr(
    (
        -0.577215664901532709,
        0.822467033423938126,
        -0.400685634353012461,
        0.270580805906176735,
        -0.207385452633226677,
        0.169554900116075458,
        -0.144016263164178606,
        0.125179245416448552,
        -0.109133182277264841,
        0.0901359179267493515,
        -0.0607120147368503745,
        0.0233389205109973962,
    )
)  # log(Gamma(1 + v)) / v on [0, 1/4]
LOG_GAMMA_32 = tl.constexpr(
    (
        -0.57721565549578873,
        0.822464316464711365,
        -0.400556879788910285,
        0.268312364223654636,
        -0.188785569815725678,
        0.0943169169015925601,
    )
)
STIRLING_64 = tl.constexpr((1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156))  # DLMF 5.11.1
STIRLING_32 = tl.constexpr(
    (
        0.0833333721642869819,
        -1.1550193147731333e-6,
        -0.00276396942133596276,
        -0.0000876013136406057365,
        0.00111728499310867596,
        -0.000698379381447609621,
        0.000162155589128493277,
    )
)  # the same sum over 1/z for 1.25 <= z <= 11.2, in 1/z
# DLMF 5.11.2
DIGAMMA_64 = tl.constexpr((1 / 12, -1 / 120, 1 / 252, -1 / 240, 1 / 132, -691 / 32760, 1 / 12, -3617 / 8160))
DIGAMMA_32 = tl.constexpr((1 / 12, -1 / 120, 1 / 252))
TRIGAMMA = tl.constexpr((1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6))  # DLMF 5.15.8


@triton.constexpr_function
def term_count(table):
    """How many rows a table of terms has."""
    return len(table)


@triton.jit
def series_terms(largest, table: tl.constexpr):
    """The terms (a scalar) that x up to largest want."""
    terms = (largest < 0.0).to(tl.int32) + table[0][1]
    for i in tl.static_range(1, term_count(table)):
        terms += (largest > table[i - 1][0]).to(tl.int32) * (table[i][1] - table[i - 1][1])
    return terms


@triton.jit
def log_product_over_power(v, z, iz):
    """log((v+1) ... (v+m)) - (m + 1/2) log z, z = v + m + 1, in two words; m = 8 (float32: 0)."""
    if v.dtype == tl.float64:
        c = v * z
        p = ((c + 8.0) * (c + 20.0)) * ((c + 14.0) * (c + 18.0))
        i2 = iz * iz
        i4 = i2 * i2
        q = p * (i4 * i4)
        k2, rest = split_log((q * q) * iz)
        k = 0.5 * k2
        error = residual(const(v, 1.0), z, iz)  # of the rounded 1/z
        return k * LN2_HI_64, mad(k, const(v, LN2_LO_64), mad(const(v, 0.5), rest, 8.5 * error))
    else:
        k2, rest = split_log(z)
        k = -0.5 * k2
        return k * LN2_HI_32, mad(k, const(v, LN2_LO_32), -0.5 * rest)


@triton.jit
def log_power_over_gamma(v, x1, kx):
    """v log(x/2) - log Gamma(v+1) in two words; x = x1 2^kx."""
    double: tl.constexpr = v.dtype == tl.float64
    half_log: tl.constexpr = pick(double, HALF_LOG_2PI_64, HALF_LOG_2PI_32)
    ln2_hi: tl.constexpr = pick(double, LN2_HI_64, LN2_HI_32)
    ln2_lo = const(v, pick(double, LN2_LO_64, LN2_LO_32))
    small = v < 0.25  # there a factor v comes off exactly
    z = v + pick(double, 9.0, 1.0)
    iz = reciprocal(z)
    k, s, s_lo = log_ratio(x1, tl.where(small, 2.0, 2.0 * z))
    k = k + kx
    by_v = v * (ratio_log_value(k, s, s_lo) - horner(v, pick(double, LOG_GAMMA_64, LOG_GAMMA_32)))
    a, a_lo = two_prod(v, k * ln2_hi)
    b, b_lo = two_prod(v, 2.0 * s)
    g, g_lo = log_product_over_power(v, z, iz)
    s1, s1_lo = two_sum(a, z)
    s2, s2_lo = two_sum(s1, g - half_log[0])
    s3, s3_lo = two_sum(s2, b)
    stirling = iz * (horner(iz * iz, STIRLING_64) if double else horner(iz, STIRLING_32))
    rest = v * mad(k, ln2_lo, mad(const(v, 2.0), s_lo, atanh_rest(s))) + (g_lo - stirling - half_log[1])
    lo = (s1_lo + s2_lo + s3_lo) + ((a_lo + b_lo) + rest)
    return tl.where(small, by_v, s3), tl.where(small, 0.0, lo)


@triton.jit
def log_quotient(a, b, excess):
    """log(a / b) for pairs a >= b, excess = a - b, in two words; relatively accurate near a = b."""
    double: tl.constexpr = b[0].dtype == tl.float64
    k, inverse = ratio_scale(a[0], b[0])
    m = a[0] * inverse
    num = m - b[0]
    if not double:
        num = num + mad(a[1], inverse, -b[1])
    s = divide(tl.where(k == 0.0, excess, num), m + b[0])
    low = mad(k, const(k, pick(double, LN2_LO_64, LN2_LO_32)), mad(const(k, 2.0), s, atanh_rest(s)))
    return k * pick(double, LN2_HI_64, LN2_HI_32), low


@triton.jit
def log_half_x_minus_digamma(x1, kx, z):
    """log(x/2) - psi(z) for z >= 9; x = x1 2^kx."""
    iz = reciprocal(z)
    w = iz * iz
    k, s, s_lo = log_ratio(x1, 2.0 * z)
    total = horner(w, pick(z.dtype == tl.float64, DIGAMMA_64, DIGAMMA_32))
    return ratio_log_value(k + kx, s, s_lo) + mad(w, total, 0.5 * iz)


@triton.jit
def trigamma(z):
    """psi'(z) for z >= 9."""
    iz = reciprocal(z)
    w = iz * iz
    return iz + w * mad(iz, horner(w, TRIGAMMA), const(z, 0.5))


@triton.jit
def series_step(k, v, y, scale: tl.constexpr, sums, LEVEL: tl.constexpr, LOW: tl.constexpr):
    """One step k of both recurrences and of their derivatives (v: order, y: argument), as far as LEVEL wants them."""
    a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv = sums
    kc = k * scale
    t = mad(kc, v, k * kc)
    if LEVEL >= 4:
        bvv = mad(t, bvv, 2.0 * kc * bv)
    if LEVEL >= 2:
        bv = mad(t, bv, kc * b)
    b = t * b
    if LEVEL >= 5:
        ayyv = mad(y, ayyv, 2.0 * ayv)
        ayvv = mad(y, ayvv, avv)
        ayyy = mad(y, ayyy, 3.0 * ayy)
    if LEVEL >= 3:
        ayv = mad(y, ayv, av)
    if LEVEL >= 4:
        avv = mad(y, avv, bvv)
    if LEVEL >= 2:
        av = mad(y, av, bv)
    if LEVEL >= 3 or (LOW and LEVEL >= 1):
        ayy = mad(y, ayy, 2.0 * ay)
    if LEVEL >= 1 or LOW:
        ay = mad(y, ay, a)
    a = mad(y, a, b)
    return a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv


@triton.jit
def last_step_low(v, y, y_lo, scale: tl.constexpr, a, b, ay, ayy):
    """The step k = 1 of A, B, dA/dy as pairs, and A - B: its roundings weigh most, float32 keeps their errors."""
    a_lo = y_lo * ay
    ay_lo = y_lo * ayy
    kv, kv_lo = two_prod(const(v, scale), v)
    t, t_lo = two_sum(kv, const(v, scale))
    p, p_lo = two_prod(t, b)
    q, q_lo = two_prod(y, a)
    s, s_lo = two_sum(q, p)
    r, r_lo = two_prod(y, ay)
    u, u_lo = two_sum(r, a)
    ay_lo = (u_lo + r_lo) + mad(y, ay_lo, mad(y_lo, ay, a_lo))
    b_lo = p_lo + (t_lo + kv_lo) * b
    q_lo = q_lo + mad(y, a_lo, y_lo * a)
    return s, s_lo + (q_lo + b_lo), p, b_lo, u, ay_lo, q + q_lo


@triton.jit
def iv_series(v, x, terms, F: tl.constexpr, ORDER: tl.constexpr):
    """F in {LOG_IV, LOG_IVE, IV_RATIO} and its derivatives, as three blocks; terms from `series_terms`."""
    double: tl.constexpr = v.dtype == tl.float64
    LOW: tl.constexpr = not double
    # Which sums a result wants: 0 value, 1 + d/dy, 2 + d/dv, 3 + the ratio's gradient, 4 + d2/dv2, 5 all.
    LEVEL: tl.constexpr = 2 * ORDER + (1 if F == IV_RATIO else 0)
    scale: tl.constexpr = pick(double, 1.0, 0.0625)  # the float32 sums would overflow; quotients are free of it
    half = 0.5 * x
    y0, y0_lo = two_prod(half, half)
    y = y0 * scale
    zero = const(v, 0.0)
    a = const(v, 1.0)
    b = a
    ay = zero
    ayy = zero
    ayyy = zero
    av = zero
    bv = zero
    avv = zero
    bvv = zero
    ayv = zero
    ayvv = zero
    ayyv = zero
    k = zero + (terms + 1).to(v.dtype)
    for _ in range(1, terms):
        k = k - 1.0
        a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv = series_step(
            k, v, y, scale, (a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv), LEVEL, LOW
        )
    before = (a, b, ay, ayy)
    a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv = series_step(
        const(v, 1.0), v, y, scale, (a, b, ay, ayy, ayyy, av, bv, avv, bvv, ayv, ayvv, ayyv), LEVEL, LOW
    )
    a_lo = zero
    b_lo = zero
    ay_lo = zero
    excess = y * before[0]  # A - B without cancellation
    if LOW:
        a, a_lo, b, b_lo, ay, ay_lo, excess = last_step_low(
            v, y, y0_lo * scale, scale, before[0], before[1], before[2], before[3]
        )
    ay = ay * scale
    ay_lo = ay_lo * scale
    ayy = ayy * (scale * scale)
    ayyy = ayyy * (scale * scale * scale)
    ayv = ayv * scale
    ayvv = ayvv * scale
    ayyv = ayyv * (scale * scale)

    tiny = x < pick(double, 1e-290, 1e-30)
    x1 = tl.where(tiny, x * pick(double, 2.0**200, 2.0**54), x)
    kx = tl.where(tiny, pick(double, -200.0, -54.0), zero)
    if F != IV_RATIO and ORDER == 0:
        head, head_lo = log_power_over_gamma(v, x1, kx)
        log_s, log_s_lo = log_quotient((a, a_lo), (b, b_lo), excess)
        s, s_lo = two_sum(head, log_s)
        s_lo = s_lo + (head_lo + log_s_lo)
        if F == LOG_IVE:
            s, last_lo = two_sum(s, -x)
            s_lo = s_lo + last_lo
        return s + s_lo, zero, zero
    else:
        ia = reciprocal(a)
        ly = ay * ia
        rest = residual(ay, ly, a)
        if LOW:
            rest = rest + (ay_lo - ly * a_lo)
        ratio = mad(half, ly, half * (rest * ia))  # I_{v+1}/I_v = x q(v, y), q = (log S)_y / 2
        q = 0.5 * ly
        lv = av * ia
        qv = 0.5 * (ayv * ia - ly * lv)
        qy = 0.5 * (ayy * ia - ly * ly)
        ratio_x = mad(2.0 * y0, qy, q)
        end = v + (terms + 1).to(v.dtype)
        if ORDER == 0:
            return ratio, zero, zero
        elif ORDER == 1 and F == IV_RATIO:
            return x * qv, ratio_x, zero
        elif ORDER == 1:
            slope = divide(v, x) + (ratio - 1.0 if F == LOG_IVE else ratio)
            return log_half_x_minus_digamma(x1, kx, end) + lv, slope, zero
        elif F != IV_RATIO:
            return avv * ia - lv * lv - trigamma(end), reciprocal(x) + x * qv, ratio_x - divide(divide(v, x), x)
        else:
            qvv = 0.5 * (ayvv * ia - ly * (avv * ia)) - 2.0 * lv * qv
            qyv = 0.5 * (ayyv * ia - ayy * ia * lv) - 2.0 * ly * qv
            qyy = 0.5 * (ayyy * ia - ly * (ayy * ia)) - 2.0 * ly * qy
            return x * qvv, mad(2.0 * y0, qyv, qv), half * mad(2.0 * y0, qyy, 3.0 * qy)
