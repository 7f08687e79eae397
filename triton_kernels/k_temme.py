"""log K_v, K_{v+1}/K_v and their derivatives for small x, v < 25.5 (float32: 10.5), as csrc/math/bessel_k_temme.h.

Temme's formula (J. Comput. Phys. 19, 1975) at the order mu = v - round(v), with its series summed into polynomials,
then the recurrence in the order.
"""

import triton
import triton.language as tl

from .debye import KV_RATIO, LOG_KVE
from .double_word import mul, residual, two_prod, two_sum
from .elementary import (
    LN2_HI_32,
    LN2_HI_64,
    LN2_LO_32,
    LN2_LO_64,
    MIN_NORMAL_32,
    MIN_NORMAL_64,
    TWO_54,
    const,
    divide,
    exp_parts,
    horner,
    log_parts,
    log_sum,
    mad,
    pick,
    pow2,
    reciprocal,
    round_to_integer,
)
from .k_coefficients import (
    EXP_TAIL_32,
    EXP_TAIL_64,
    RECIPROCAL_SINC_32,
    RECIPROCAL_SINC_64,
    SECOND_MOMENT_32,
    SECOND_MOMENT_64,
    TEMME_EVEN_32,
    TEMME_EVEN_64,
    TEMME_ODD_32,
    TEMME_ODD_64,
)
from .k_jets import (
    even_in,
    jet_add,
    jet_div,
    jet_mul,
    jet_scale,
    odd_in,
    row_jet,
    rows_jet,
)
from .k_recurrence import k_advance

EULER_64 = tl.constexpr((0.57721566490153286, -4.9429151524310644e-18))
EULER_32 = tl.constexpr((0.5772156715393066, -6.637773775075573e-09))


@triton.jit
def exp_moments(s, s_lo):
    """e^s, int t e^(s t), int t^2 e^(s t) over [0, 1], and for |s| <= 1 int e^(s t) - 1 - s / 2.

    Large positive s is cut off: it arises only for mu < 0 and x so small that y = 0 removes what it enters.
    """
    double: tl.constexpr = s.dtype == tl.float64
    n, r, tail = exp_parts(tl.minimum(tl.maximum(s, pick(double, -700.0, -85.0)), pick(double, 300.0, 28.0)))
    scale = pow2(n)
    e = mad(scale, r + tail, scale)
    e = mad(e, s_lo, e)
    series = tl.abs(s) <= 2.0
    inverse = reciprocal(tl.where(series, 1.0, s))
    near = tl.minimum(tl.maximum(s, -1.0), 1.0)
    m2 = horner(tl.minimum(tl.maximum(s, -2.0), 2.0), pick(double, SECOND_MOMENT_64, SECOND_MOMENT_32))
    m0 = (e - 1.0) * inverse
    m1 = tl.where(series, 0.5 * mad(-s, m2, e), (e - m0) * inverse)
    m2 = tl.where(series, m2, mad(const(s, -2.0), m1, e) * inverse)
    return e, m1, m2, s * s * horner(near, pick(double, EXP_TAIL_64, EXP_TAIL_32))


@triton.jit
def log_two_over(x):
    """log(2 / x) in two words, relatively accurate next to x = 2 and for subnormal x."""
    double: tl.constexpr = x.dtype == tl.float64
    subnormal = x < pick(double, MIN_NORMAL_64, MIN_NORMAL_32)
    kp, f, _ = log_parts(tl.where(subnormal, x * TWO_54, x))
    k = 1.0 - tl.where(subnormal, kp - 54.0, kp)
    zero = const(x, 0.0)
    low = mad(k, const(x, pick(double, LN2_LO_64, LN2_LO_32)), -log_sum(zero, f, zero))
    return two_sum(k * pick(double, LN2_HI_64, LN2_HI_32), low)


@triton.jit
def temme_a(mu, l, l_lo, s, s_lo, e, rest):
    """A = (1 - e^s) / (2 mu), s = -2 mu l, in two words: l m_0 while |s| <= 1, beyond that the quotient itself."""
    near = tl.abs(s) <= 1.0
    linear, linear_lo = two_prod(l, 0.5 * s)
    head, head_lo = two_sum(l, linear)
    head_lo = (head_lo + linear_lo) + mad(l, mad(const(s, 0.5), s_lo, rest), l_lo)
    width = tl.where(near, 1.0, mu + mu)
    top = 1.0 - e
    top_lo = (1.0 - top) - e
    quotient = divide(top, width)
    quotient_lo = divide(residual(top, quotient, width) + top_lo, width)
    return tl.where(near, head, quotient), tl.where(near, head_lo, quotient_lo)


@triton.jit
def temme_start(mu, y, l, l_lo, ORDER: tl.constexpr):
    """k_0 = (x/2)^mu K_mu and k_1 = (x/2)^(mu+1) K_{mu+1} as jets in mu, with the words below their values.

    Then d/dmu log K_mu and (for ORDER 2) x d2/dmudx log K_mu, exactly odd in mu. With G = Ge(mu^2) + mu Go(mu^2),
    k_0 = pi mu / sin(pi mu) (A Ge - C Go), C = (1 + e^s) / 2 (DLMF 10.27.4), k_1 = (1/2 - y dG/dy k_0) / G (10.28.2).
    """
    double: tl.constexpr = mu.dtype == tl.float64
    euler: tl.constexpr = pick(double, EULER_64, EULER_32)
    z = mu * mu
    s, s_lo = mul((l, l_lo), -2.0 * mu)
    e, m1, m2, rest = exp_moments(s, s_lo)
    even, even_slope = rows_jet(y, z, pick(double, TEMME_EVEN_64, TEMME_EVEN_32), ORDER)
    odd, odd_slope = rows_jet(y, z, pick(double, TEMME_ODD_64, TEMME_ODD_32), ORDER)
    sinc_rest = row_jet(z, pick(double, RECIPROCAL_SINC_64, RECIPROCAL_SINC_32), ORDER)
    sine = even_in(mu, z, (1.0 + sinc_rest[0], sinc_rest[1], sinc_rest[2]))
    ge_rest = even_in(mu, z, even)
    ge = (1.0 + ge_rest[0], ge_rest[1], ge_rest[2])
    go_rest = even_in(mu, z, odd)
    go = (go_rest[0] + euler[0], go_rest[1], go_rest[2])

    a_hi, a_lo = temme_a(mu, l, l_lo, s, s_lo, e, rest)
    a = (a_hi + a_lo, -2.0 * l * l * m1, 4.0 * l * l * l * m2)
    c = (0.5 * e + 0.5, -l * e, 2.0 * l * l * e)
    ag = jet_mul(a, ge)
    cg = jet_mul(c, go)
    small = mad(a[0], ge_rest[0], -mad(c[0], const(mu, euler[0]), c[0] * (go_rest[0] + euler[1])))
    inner, inner_lo = two_sum(a_hi, a_lo + small)
    raw = jet_mul(sine, (inner, ag[1] - cg[1], ag[2] - cg[2]))
    _, sine_lo = two_prod(inner, sine[0])
    k0_lo = mad(inner, sinc_rest[0] - (sine[0] - 1.0), mad(inner_lo, sine[0], sine_lo))

    # l + k_0'/k_0, where all that is no multiple of mu has cancelled by hand; _x stands for x d/dx = -d/dl + 2 y d/dy
    cube = l * l * l * (m1 - m2)
    change = mad(cube, ge[0], a[0] * even[1]) - mad(0.5 * l * a[0], go[0], c[0] * odd[1])
    slope = 2.0 * mu * (divide(sinc_rest[1], sine[0]) + divide(change, inner))
    mixed = slope
    if ORDER == 2:
        half_le = 0.5 * mad(l, e, a[0])
        change_l = mad(l * l * m1, ge[0], e * even[1]) - mad(half_le, go[0], -(mu * e * odd[1]))
        change_y = mad(cube, even_slope[0], a[0] * even_slope[1])
        change_y -= mad(0.5 * l * a[0], odd_slope[0], c[0] * odd_slope[1])
        inner_y = mad(a[0], even_slope[0], -(c[0] * odd_slope[0]))
        inner_x = mad(y + y, inner_y, -(e * mad(mu, go[0], ge[0])))
        change_x = mad(y + y, change_y, -change_l)
        mixed = 2.0 * mu * divide(change_x - divide(change * inner_x, inner), inner)
    k0 = (raw[0], tl.where(s < -4.0, raw[1], raw[0] * (slope - l)), raw[2])

    g = (mad(mu, go[0], ge[0]), mad(mu, go[1], go[0]) + ge[1], mad(mu, go[2], 2.0 * go[1]) + ge[2])
    g_next = jet_add(even_in(mu, z, even_slope), odd_in(mu, z, odd_slope))
    product = jet_scale(jet_mul(g_next, k0), -y)
    top = 0.5 + product[0]
    top_lo = product[0] - (top - 0.5)
    k1 = jet_div((top, product[1], product[2]), g)
    slant, slant_lo = two_prod(mu, const(mu, euler[0]))
    g_sum, g_sum_lo = two_sum(const(mu, 1.0), slant)
    g_lo = (g_sum_lo + slant_lo) + mad(mu, go_rest[0] + euler[1], ge_rest[0]) - (g[0] - g_sum)
    k1_lo = divide(residual(top, k1[0], g[0]) + mad(-k1[0], g_lo, top_lo), g[0])
    return k0, k1, k0_lo, k1_lo, slope, mixed


@triton.jit
def k_temme(v, x, steps, F: tl.constexpr, ORDER: tl.constexpr):
    """F in {LOG_KV, LOG_KVE, KV_RATIO} and its derivatives for x up to the seam, as three blocks; steps >= round(v)."""
    double: tl.constexpr = v.dtype == tl.float64
    PRECISE: tl.constexpr = ORDER == 0 and F != KV_RATIO and not double
    zero = const(v, 0.0)
    n = round_to_integer(v)
    mu = v - n
    half = 0.5 * x
    y = half * half
    l, l_lo = log_two_over(x)
    k0, k1, k0_lo, k1_lo, slope0, mixed0 = temme_start(mu, y, l, l_lo, ORDER)
    k, d1, k_lo, w, before, at, p, p_d1, _ = k_advance(
        k0, k1, zero, k0_lo, k1_lo, mu, n, y, const(v, 1.0), zero, steps, ORDER, PRECISE
    )
    first = n < 0.5
    # rho = x K_{v+1} / (2 K_v) = v + tau, tau = x K_{v-1} / (2 K_v)
    tail = divide(y * before, k)
    rho0 = divide(at, k)
    rho = tl.where(first, rho0, v + tail)
    tau = tl.where(first, rho0 - v, tail)
    if ORDER == 0 and F == KV_RATIO:
        return divide(rho + rho, x), zero, zero
    elif ORDER == 0:
        # v log(2 / x) + log k_n, in two words up to the last sum
        kp, f, _ = log_parts(k)
        power, power_lo = two_prod(v, l)
        total, total_lo = two_sum(power, kp * pick(double, LN2_HI_64, LN2_HI_32))
        low = mad(v, l_lo, power_lo) + mad(kp, const(v, pick(double, LN2_LO_64, LN2_LO_32)), total_lo)
        if PRECISE:
            low = low + divide(k_lo, k)
        rest = log_sum(zero, f, zero) + low
        return total + (rest + x if F == LOG_KVE else rest), zero, zero
    else:
        r = reciprocal(x)
        slope = divide(d1, k)
        inverse_square = reciprocal(k * k)
        one_less = y * p * inverse_square  # 1 - d rho / dv for n > 0
        rho_v = tl.where(first, p * inverse_square, 1.0 - one_less)
        ratio_xx = mad(rho + rho, tau + tau - 1.0, -4.0 * y)  # x^2 d(K_{v+1} / K_v)/dx
        ratio = divide(rho + rho, x)
        ratio_v = divide(rho_v + rho_v, x)
        ratio_x = divide(divide(ratio_xx, x), x)
        if ORDER == 1 and F == KV_RATIO:
            return ratio_v, ratio_x, zero
        elif ORDER == 1:
            slope_x = divide(v - (rho + rho), x)
            return tl.where(first, slope0, l + slope), slope_x + 1.0 if F == LOG_KVE else slope_x, zero
        elif F == KV_RATIO:
            bend = mad(2.0 * slope, p, -p_d1) * inverse_square
            factor = (4.0 * rho - (v + v + 1.0)) * r
            out_v = 2.0 * tl.where(first, -bend, bend * y) * r
            out_vx = mad(factor, ratio_v, -2.0 * ratio * r)
            return out_v, out_vx, mad(factor, ratio_x, (v + v + 1.0) * ratio * r * r)
        else:
            out_vx = tl.where(first, mixed0, one_less + one_less - 1.0) * r
            return w * inverse_square, out_vx, -(v + ratio_xx) * r * r
