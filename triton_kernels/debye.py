"""Debye's expansion of the log-Bessel functions for hypot(v, x) >= 25 (float32: 10), as csrc/math/bessel_debye.h.

    r = hypot(v, x), w = 1/r, s = (v/r)^2, L = r + v log(x / (v + r)),   DLMF 10.41.3-4, 10.41.7
    log I_v(x) =  L - log(2 pi r)/2   + sum_k D_k(s) w^k
    log K_v(x) = -L + log(pi/(2 r))/2 + sum_k D_k(s) (-w)^k

A block sums as many terms as its smallest r wants. L is summed in double-word arithmetic around x / (v + r) = 16/53,
where log I and log K cross zero. v or x near the ends of the exponent range is scaled by a power of two: exact.
"""

import triton
import triton.language as tl

from fokker.reference._debye import DEBYE_COEFFICIENTS, DEBYE_TERMS

from .double_word import (
    LN2_HI_32,
    LN2_HI_64,
    LN2_LO_32,
    LN2_LO_64,
    atanh_rest,
    fast_two_sum,
    ratio_log,
    ratio_log_value,
    residual,
    split_log,
    two_prod,
    two_sum,
)
from .elementary import const, divide, horner, mad, pick, reciprocal, square_root

# The order of math::Fn in csrc/math/bessel_fn.h.
LOG_IV = tl.constexpr(0)
LOG_IVE = tl.constexpr(1)
LOG_KV = tl.constexpr(2)
LOG_KVE = tl.constexpr(3)
IV_RATIO = tl.constexpr(4)
KV_RATIO = tl.constexpr(5)

HALF_LOG_2PI_64 = tl.constexpr((0.9189385332047095289453864, -3.6787165056673353904e-14))
HALF_LOG_2PI_32 = tl.constexpr((0.9189453125, -6.7792953272582196703e-6))
HALF_LOG_HALF_PI_64 = tl.constexpr((0.2257913526445918250828981, 1.3560728019947499383e-13))
HALF_LOG_HALF_PI_32 = tl.constexpr((0.225799560546875, -8.2079021475676369024e-6))
LOG_16_53_64 = tl.constexpr((-1.197703191312029957771301, -3.106387042393836651e-13))
LOG_16_53_32 = tl.constexpr((-1.19769287109375, -0.000010320218590596475541))


@triton.constexpr_function
def is_k(function):
    """Whether a function is one of K."""
    return function in (LOG_KV.value, LOG_KVE.value, KV_RATIO.value)


@triton.constexpr_function
def is_scaled(function):
    """Whether a function carries e^-x or e^x."""
    return function in (LOG_IVE.value, LOG_KVE.value)


# For r >= radius, so many terms leave less than 1e-16 (float32: 3e-8); the last radius is the seam.
BESSEL_TIERS_64 = tl.constexpr(((1000.0, 5), (200.0, 7), (80.0, 9), (40.0, 12), (25.0, 17)))
BESSEL_TIERS_32 = tl.constexpr(((200.0, 2), (60.0, 3), (20.0, 5), (10.0, 9)))


def debye_rows(by_v: int, by_x: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients c[k][j] of s^j w^k in a derivative of -log(r)/2 + sum D_k w^k.

    A prefix stands apart: (v w)^(by_v mod 2) (x w)^(by_x mod 2) and w for each derivative after the first.
    """
    rows = [[0.0] * (DEBYE_TERMS + 4) for _ in range(DEBYE_TERMS + 1)]
    for k in range(1, DEBYE_TERMS + 1):
        rows[k][: k + 1] = DEBYE_COEFFICIENTS[k]
    extra = 0  # power of w in the prefix
    for step in range(by_v + by_x):
        in_v = step < by_v
        odd = (step if in_v else step - by_v) % 2 == 1
        new = [[0.0] * (DEBYE_TERMS + 4) for _ in rows]
        for k in range(DEBYE_TERMS + 1):
            if step == 0 and k == 0:
                new[0][0] = -0.5  # d/dv and d/dx of -log(r)/2 are -v w^2/2 and -x w^2/2
                continue
            for j, c in enumerate(rows[k]):
                if c == 0.0:
                    continue
                n = k + extra + 2 * j
                if in_v and not odd:
                    if j > 0:
                        new[k][j - 1] += 2 * j * c
                    new[k][j] -= n * c
                elif in_v:
                    new[k][j] += (1 + 2 * j) * c
                    new[k][j + 1] -= n * c
                elif not odd:
                    new[k][j] -= n * c
                else:
                    new[k][j] += (1 - n) * c
                    new[k][j + 1] += n * c
        if not odd:
            extra += 2
        rows = new
    return tuple(tuple(row[: 1 + max((j for j, c in enumerate(row) if c), default=0)]) for row in rows)


ROWS = tuple(tuple(debye_rows(by_v, by_x) for by_x in range(4 - by_v)) for by_v in range(4))


@triton.constexpr_function
def debye_row(by_v, by_x, k):
    """The coefficients of the k-th row."""
    return ROWS[by_v][by_x][k]


@triton.constexpr_function
def tier_count(tiers):
    """How many tiers a table has."""
    return len(tiers)


@triton.constexpr_function
def tier_radius(tiers, i):
    """From which r tier i holds."""
    return tiers[i][0]


@triton.constexpr_function
def tier_terms(tiers, i, first):
    """The terms of tier i; before the first tier, none."""
    return tiers[i][1] if i >= 0 else first - 1


@triton.constexpr_function
def half_log_constant(double, is_k):
    """log(pi/2)/2 for K, -log(2 pi)/2 for I, in two words."""
    if is_k:
        return (HALF_LOG_HALF_PI_64 if double else HALF_LOG_HALF_PI_32).value
    return tuple(-c for c in (HALF_LOG_2PI_64 if double else HALF_LOG_2PI_32).value)


@triton.jit
def debye_tier(mask, square, tiers: tl.constexpr):
    """The tier (a scalar) that serves every lane of mask with this r^2."""
    least = tl.min(tl.where(mask, square, float("inf")))
    tier = (least < 0.0).to(tl.int32)
    for i in tl.static_range(0, tier_count(tiers) - 1):
        tier += (least < tier_radius(tiers, i) * tier_radius(tiers, i)).to(tl.int32)
    return tier


@triton.jit
def debye_sum(s, w, tier, tiers: tl.constexpr, BY_V: tl.constexpr, BY_X: tl.constexpr):
    """A derivative of sum D_k w^k - log(r)/2 without its prefix (the sum alone for no derivative); -w for K_v."""
    first: tl.constexpr = 1 if BY_V + BY_X == 0 else 0
    p = const(s, 0.0)
    for t in tl.static_range(tier_count(tiers) - 1, -1, -1):
        if tier >= t:
            for k in tl.static_range(tier_terms(tiers, t, first), tier_terms(tiers, t - 1, first), -1):
                p = mad(p, w, horner(s, debye_row(BY_V, BY_X, k)))
    if BY_V + BY_X == 0:
        p = p * w
    return p


@triton.jit
def debye_log(v, x, r, r_lo, inverse, grow, k_ratio, k_r, terms, IS_K: tl.constexpr):
    """L - log(2 pi r)/2 + terms, or -L + log(pi/(2 r))/2 + terms, in double-word arithmetic; inverse is 1 / r."""
    double: tl.constexpr = v.dtype == tl.float64
    sign: tl.constexpr = -1.0 if IS_K else 1.0
    center: tl.constexpr = pick(double, LOG_16_53_64, LOG_16_53_32)
    half_log: tl.constexpr = half_log_constant(double, IS_K)
    ln2_hi = const(v, pick(double, LN2_HI_64, LN2_HI_32))
    ln2_lo = const(v, pick(double, LN2_LO_64, LN2_LO_32))
    t, t_lo = fast_two_sum(r, v)
    k, q, q_lo = ratio_log(two_prod(x, const(x, 3.3125)), (t, t_lo + r_lo))  # x / (v + r) over 16/53
    k = k + k_ratio
    a, a_lo = two_prod(v, mad(k, ln2_hi, const(v, center[0])))
    b, b_lo = two_prod(v, 2.0 * q)
    small = v * (mad(k, ln2_lo, const(v, center[1])) + mad(const(v, 2.0), q_lo, atanh_rest(q)))
    ra, ra_lo = two_sum(r, a)
    rab, rab_lo = two_sum(ra, b)
    big = sign * rab * grow
    rest = sign * ((ra_lo + rab_lo) + ((a_lo + b_lo) + (r_lo + small))) * grow
    kr, lr = split_log(r)
    kr = kr + k_r
    total, total_lo = two_sum(big, mad(-0.5 * kr, ln2_hi, const(v, half_log[0])))
    half = mad(const(v, -0.5), mad(kr, ln2_lo, lr), mad(-0.5 * r_lo, inverse, const(v, half_log[1])))
    return tl.where(tl.abs(big) < float("inf"), total + (total_lo + (rest + (terms + half))), big)


@triton.jit
def debye_log_scaled(v, r, tau, tau_lo, k, q, q_lo, grow, k_r, terms, IS_K: tl.constexpr):
    """The same with L - x for L: -v (asinh(v/x) - tau), asinh(v/x) = k ln 2 + 2 atanh(q)."""
    double: tl.constexpr = v.dtype == tl.float64
    sign: tl.constexpr = -1.0 if IS_K else 1.0
    half_log: tl.constexpr = half_log_constant(double, IS_K)
    ln2_hi = const(v, pick(double, LN2_HI_64, LN2_HI_32))
    ln2_lo = const(v, pick(double, LN2_LO_64, LN2_LO_32))
    d, d_lo = two_sum(2.0 * q, -tau)
    a, a_lo = two_prod(v, k * ln2_hi)
    b, b_lo = two_prod(v, d)
    small = v * (mad(k, ln2_lo, atanh_rest(q)) + (d_lo + mad(const(v, 2.0), q_lo, -tau_lo)))
    ab, ab_lo = two_sum(a, b)
    big = -sign * ab * grow
    rest = -sign * (ab_lo + ((a_lo + b_lo) + small)) * grow
    kr, lr = split_log(r)
    kr = kr + k_r
    total, total_lo = two_sum(big, mad(-0.5 * kr, ln2_hi, const(v, half_log[0])))
    half = mad(const(v, -0.5), mad(kr, ln2_lo, lr), const(v, half_log[1]))
    return tl.where(tl.abs(big) < float("inf"), total + (total_lo + (rest + (terms + half))), big)


@triton.jit
def debye(v0, x0, tier, F: tl.constexpr, ORDER: tl.constexpr):
    """F (ORDER 0), (d/dv, d/dx) (1) or (d2/dv2, d2/dvdx, d2/dx2) (2) as three blocks; what is beyond the order is 0."""
    double: tl.constexpr = v0.dtype == tl.float64
    tiers: tl.constexpr = pick(double, BESSEL_TIERS_64, BESSEL_TIERS_32)
    IS_K: tl.constexpr = is_k(F)
    SCALED: tl.constexpr = is_scaled(F)
    sign: tl.constexpr = -1.0 if IS_K else 1.0  # of L
    zero = const(v0, 0.0)

    # v, xs, r are the true ones times down, x the true one times up: xs would be too small where only v is huge.
    high: tl.constexpr = pick(double, 2.0**500, 2.0**60)
    low: tl.constexpr = pick(double, 2.0**-500, 2.0**-60)
    k_down: tl.constexpr = pick(double, 600.0, 68.0)
    k_up: tl.constexpr = pick(double, 560.0, 100.0)
    shrink: tl.constexpr = pick(double, 2.0**-600, 2.0**-68)
    unshrink: tl.constexpr = pick(double, 2.0**600, 2.0**68)
    huge = (v0 > high) | (x0 > high)
    down = tl.where(huge, shrink, const(v0, 1.0))
    grow = tl.where(huge, unshrink, const(v0, 1.0))  # 1 / down
    up = tl.where(x0 > high, shrink, tl.where(x0 < low, const(v0, pick(double, 2.0**560, 2.0**100)), 1.0))
    k_r = tl.where(huge, k_down, zero)
    k_ratio = tl.where(x0 > high, k_down, tl.where(x0 < low, -k_up, zero)) - k_r
    v = v0 * down
    xs = x0 * down
    x = x0 * up
    vv, vv_lo = two_prod(v, v)
    xx, xx_lo = two_prod(xs, xs)
    rr, rr_lo = two_sum(vv, xx)
    r = square_root(rr)
    inverse = reciprocal(r)
    r_lo = 0.5 * inverse * (residual(rr, r, r) + (rr_lo + (vv_lo + xx_lo)))
    vw = v * inverse
    xw = xs * inverse
    s = vw * vw
    w = inverse * down
    sw = sign * w

    # tau = v / (r + x), and asinh(v/x) = k ln 2 + 2 atanh(q): for v << x, q = tau keeps the relative precision of v
    d, d_lo = fast_two_sum(r, xs)
    d_inverse = reciprocal(d)
    tau = v * d_inverse
    tau_lo = (residual(v, tau, d) - tau * (d_lo + r_lo)) * d_inverse
    t, t_lo = fast_two_sum(r, v)
    k, q, q_lo = ratio_log((t, t_lo + r_lo), (x, zero))
    k = k - k_ratio
    q = tl.where(k == 0.0, tau, q)
    q_lo = tl.where(k == 0.0, tau_lo, q_lo)

    if F < IV_RATIO and ORDER == 0:
        terms = debye_sum(s, sw, tier, tiers, 0, 0)
        if SCALED:
            return debye_log_scaled(v, r, tau, tau_lo, k, q, q_lo, grow, k_r, terms, IS_K), zero, zero
        else:
            return debye_log(v, x, r, r_lo, inverse, grow, k_ratio, k_r, terms, IS_K), zero, zero
    elif F < IV_RATIO and ORDER == 1:
        out_v = mad(vw * w, debye_sum(s, sw, tier, tiers, 1, 0), -sign * ratio_log_value(k, q, q_lo))
        slope = divide(v * tau if SCALED else r, x) * up * grow  # L_x, or L_x - 1 = v^2 / (x (r + x))
        return out_v, mad(xw * w, debye_sum(s, sw, tier, tiers, 0, 1), sign * slope), zero
    elif F < IV_RATIO:
        vw_over_x = divide(vw, x) * up
        u = divide(v, x) * up * grow  # v / x
        vv2 = w * mad(w, debye_sum(s, sw, tier, tiers, 2, 0), const(v, -sign))
        vx2 = w * (vw * xw * w * debye_sum(s, sw, tier, tiers, 1, 1)) + sign * vw_over_x
        return vv2, vx2, w * w * debye_sum(s, sw, tier, tiers, 0, 2) - sign * (divide(vw * u, x) * up)
    else:
        # (v + r)/x = exp(asinh(v/x)) for K, its inverse for I, to little more than one rounding
        one_vw = 1.0 + vw
        if IS_K:
            x_inverse = reciprocal(x)
            lead = t * x_inverse
            lead = (lead + (residual(t, lead, x) + (t_lo + r_lo)) * x_inverse) * up * grow
        else:
            t_inverse = reciprocal(t)
            lead = xs * t_inverse
            lead = lead + (residual(xs, lead, t) - lead * (t_lo + r_lo)) * t_inverse
        if ORDER == 0:
            return mad(sign * xw * w, debye_sum(s, sw, tier, tiers, 0, 1), lead), zero, zero
        elif ORDER == 1:
            lead_v = divide(one_vw, x) * up if IS_K else -lead * w
            lead_x = -(divide(lead * vw, x) * up) if IS_K else divide(vw * w, one_vw)
            out_v = mad(sign * vw * xw * w * w, debye_sum(s, sw, tier, tiers, 1, 1), lead_v)
            return out_v, mad(sign * w * w, debye_sum(s, sw, tier, tiers, 0, 2), lead_x), zero
        else:
            if IS_K:
                vv2 = xw * w * w
                vx2 = -(divide(divide(mad(xw, xw, vw) * one_vw, x) * up, x) * up)
                xx2 = divide(divide(lead * vw * mad(xw, xw, one_vw), x) * up, x) * up
            else:
                vv2 = lead * w * w * one_vw
                vx2 = divide(w * w * (xw * xw - vw), one_vw)
                xx2 = -lead * w * w * vw * (1.0 + reciprocal(one_vw))
            vv2 = mad(sign * xw * w * w * w, debye_sum(s, sw, tier, tiers, 2, 1), vv2)
            vx2 = mad(sign * vw * w * w * w, debye_sum(s, sw, tier, tiers, 1, 2), vx2)
            return vv2, vx2, mad(sign * xw * w * w * w, debye_sum(s, sw, tier, tiers, 0, 3), xx2)
