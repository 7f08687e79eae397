"""log K_v, K_{v+1}/K_v and their derivatives for hypot(v, x) < 25 (float32: 10) in Triton, as csrc/math/bessel_k_*.h.

Below a seam in x, Temme's formula at the order mu = v - round(v) with its series summed into polynomials; above it,
polynomials for sqrt(2 x / pi) e^x K_mu(x). Both start a forward recurrence in the order (DLMF 10.29.1), which a block runs
as often as its largest order wants.
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
    K_LARGE_SLOPE_32,
    K_LARGE_SLOPE_64,
    K_LARGE_VALUE_32,
    K_LARGE_VALUE_64,
    RECIPROCAL_SINC_32,
    RECIPROCAL_SINC_64,
    SECOND_MOMENT_32,
    SECOND_MOMENT_64,
    TEMME_EVEN_32,
    TEMME_EVEN_64,
    TEMME_ODD_32,
    TEMME_ODD_64,
    VARIABLE_32,
    VARIABLE_64,
)
from .k_jets import even_in, jet_add, jet_div, jet_mul, jet_scale, odd_in, polynomial_jet, row_jet, rows_jet

EULER_64 = tl.constexpr((0.57721566490153286, -4.9429151524310644e-18))
EULER_32 = tl.constexpr((0.5772156715393066, -6.637773775075573e-09))
HALF_PI_64 = tl.constexpr((1.5707963267948966, 6.123233995736766e-17))
HALF_PI_32 = tl.constexpr((1.5707963705062866, -4.371139006309477e-08))


@triton.jit
def k_advance(k0, k1, excess, k0_lo, k1_lo, mu, n, b, c, c_lo, steps, ORDER: tl.constexpr, PRECISE: tl.constexpr):
    """From the jets of k_0, k_1 to j = max(n, 1) by k_{j+1} = b k_{j-1} + c (mu + j) k_j; steps (a scalar) is the largest n.

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
def temme_start(mu, y, l, l_lo, ORDER: tl.constexpr):
    """(x/2)^mu K_mu and (x/2)^(mu+1) K_{mu+1} as jets in mu, d/dmu log K_mu (exactly odd), and the words below the two."""
    double: tl.constexpr = mu.dtype == tl.float64
    euler: tl.constexpr = pick(double, EULER_64, EULER_32)
    depth: tl.constexpr = 2 if ORDER == 2 else 1
    z = mu * mu
    s, s_lo = mul((l, l_lo), -2.0 * mu)
    e, m1, m2, rest = exp_moments(s, s_lo)
    even, even_slope = rows_jet(y, z, pick(double, TEMME_EVEN_64, TEMME_EVEN_32), depth)
    odd, odd_slope = rows_jet(y, z, pick(double, TEMME_ODD_64, TEMME_ODD_32), depth)
    sinc_rest = row_jet(z, pick(double, RECIPROCAL_SINC_64, RECIPROCAL_SINC_32), depth)
    sinc = (1.0 + sinc_rest[0], sinc_rest[1], sinc_rest[2])
    sine = even_in(mu, z, sinc)
    ge_rest = even_in(mu, z, even)
    ge = (1.0 + ge_rest[0], ge_rest[1], ge_rest[2])
    go_rest = even_in(mu, z, odd)
    go = (go_rest[0] + euler[0], go_rest[1], go_rest[2])

    # A = (1 - e^s) / (2 mu) in two words: l m_0, or the quotient as it stands
    near = tl.abs(s) <= 1.0
    width = tl.where(near, 1.0, mu + mu)
    top = 1.0 - e
    top_lo = (1.0 - top) - e
    quotient = divide(top, width)
    quotient_lo = divide(residual(top, quotient, width) + top_lo, width)
    linear, linear_lo = two_prod(l, 0.5 * s)
    head, head_lo = two_sum(l, linear)
    head_lo = (head_lo + linear_lo) + mad(l, mad(const(s, 0.5), s_lo, rest), l_lo)
    a_hi = tl.where(near, head, quotient)
    a_lo = tl.where(near, head_lo, quotient_lo)
    a = (a_hi + a_lo, -2.0 * l * l * m1, 4.0 * l * l * l * m2)
    c = (0.5 * e + 0.5, -l * e, 2.0 * l * l * e)
    ag = jet_mul(a, ge)
    cg = jet_mul(c, go)
    inner_rest = mad(a[0], ge_rest[0], -mad(c[0], const(mu, euler[0]), c[0] * (go_rest[0] + euler[1])))
    inner, inner_lo = two_sum(a_hi, a_lo + inner_rest)
    top_slope = mad(l * l * l * (m1 - m2), ge[0], a[0] * even[1]) - mad(0.5 * l * a[0], go[0], c[0] * odd[1])
    slope0 = 2.0 * mu * (divide(sinc[1], sinc[0]) + divide(top_slope, inner))
    raw = jet_mul(sine, (inner, ag[1] - cg[1], ag[2] - cg[2]))
    k0 = (raw[0], tl.where(s < -4.0, raw[1], raw[0] * (slope0 - l)), raw[2])
    g = (mad(mu, go[0], ge[0]), mad(mu, go[1], go[0]) + ge[1], mad(mu, go[2], 2.0 * go[1]) + ge[2])
    g_next = jet_add(even_in(mu, z, even_slope), odd_in(mu, z, odd_slope))
    product = jet_mul(g_next, k0)
    drop = -y * product[0]
    k1 = jet_div((0.5 + drop, -y * product[1], -y * product[2]), g)

    _, sine_lo = two_prod(inner, sine[0])
    k0_lo = mad(inner, sinc_rest[0] - (sine[0] - 1.0), mad(inner_lo, sine[0], sine_lo))
    # G = 1 + mu Euler + small, and k_1 = (1/2 - small) / G, in two words
    slant, slant_lo = two_prod(mu, const(mu, euler[0]))
    g_sum, g_sum_lo = two_sum(const(mu, 1.0), slant)
    g_lo = (g_sum_lo + slant_lo) + mad(mu, go_rest[0] + euler[1], ge_rest[0]) - (g[0] - g_sum)
    over = 0.5 + drop
    over_lo = drop - (over - 0.5)
    k1_lo = divide(residual(over, k1[0], g[0]) + mad(-k1[0], g_lo, over_lo), g[0])
    return k0, k1, slope0, k0_lo, k1_lo


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
    k0, k1, slope0, k0_lo, k1_lo = temme_start(mu, y, l, l_lo, ORDER)
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
            out_vx = tl.where(first, 1.0 - (rho_v + rho_v), one_less + one_less - 1.0) * r
            return w * inverse_square, out_vx, -(v + ratio_xx) * r * r


@triton.jit
def k_large(v, x, steps, F: tl.constexpr, ORDER: tl.constexpr):
    """The same for x above the seam."""
    double: tl.constexpr = v.dtype == tl.float64
    PRECISE: tl.constexpr = ORDER == 0 and F != KV_RATIO and not double
    half_pi: tl.constexpr = pick(double, HALF_PI_64, HALF_PI_32)
    variable: tl.constexpr = pick(double, VARIABLE_64, VARIABLE_32)
    zero = const(v, 0.0)
    n = round_to_integer(v)
    first = n < 0.5
    mu = v - n
    z = mu * mu
    w = reciprocal(x)
    c = w + w
    t = mad(reciprocal(x + variable[0]), const(x, variable[1]), const(x, variable[2]))
    quarter = ((mu - 0.5) * (mu + 0.5), const(v, 1.0), zero)
    value = polynomial_jet(t, z, pick(double, K_LARGE_VALUE_64, K_LARGE_VALUE_32), ORDER)
    slope = polynomial_jet(t, z, pick(double, K_LARGE_SLOPE_64, K_LARGE_SLOPE_32), ORDER)
    g = jet_scale(jet_mul(quarter, value), w)
    k0 = even_in(mu, z, (1.0 + g[0], g[1], g[2]))
    m0 = even_in(mu, z, jet_scale(jet_mul(quarter, slope), w * w))
    a0 = (mu + 0.5) * w
    k1 = jet_add(k0, jet_add(jet_mul((a0, w, zero), k0), m0))
    m1 = mad(a0 * a0, k0[0], (a0 - 1.0) * m0[0])
    factor = w * half_pi[0]  # pi / (2 x)
    factor_lo = zero
    c_lo = zero
    k0_lo = zero
    k1_lo = zero
    if PRECISE:
        w_lo = residual(const(x, 1.0), w, x) * w
        t0 = mu + 0.5
        t0_lo = mu - (t0 - 0.5)
        _, wt_lo = two_prod(w, t0)
        a0_lo = mad(w, t0_lo, mad(w_lo, t0, wt_lo))
        p, p_lo = two_prod(a0, k0[0])
        s, s_lo = two_sum(k0[0], p)
        total, total_lo = two_sum(s, m0[0])
        _, wp_lo = two_prod(w, const(w, half_pi[0]))
        c_lo = w_lo + w_lo
        factor_lo = mad(w_lo, const(w, half_pi[0]), mad(w, const(w, half_pi[1]), wp_lo))
        k0_lo = g[0] - (k0[0] - 1.0)
        k1_lo = (s_lo + total_lo) + (p_lo + mad(a0_lo, k0[0], mad(a0, k0_lo, k0_lo)))
        k1 = (total, k1[1], k1[2])
    one = const(v, 1.0)
    k, d1, k_lo, ww, before, _, cas, cas_d1, excess = k_advance(
        k0, k1, tl.where(first, m0[0], m1), k0_lo, k1_lo, mu, n, one, c, c_lo, steps, ORDER, PRECISE
    )
    a = (v + 0.5) * w
    eta = divide(excess, k)
    tau = divide(before, k)  # K_{v-1} / K_v for n > 0
    ratio = tl.where(first, 1.0 + (a + eta), mad(v, c, tau))
    if ORDER == 0 and F == KV_RATIO:
        return ratio, zero, zero
    elif ORDER == 0:
        # log(k^2 pi / (2 x)) / 2 - x, the last sum the only large one
        square = k * k
        q = square * factor
        kp, f, _ = log_parts(q)
        tail = kp * pick(double, LN2_LO_64, LN2_LO_32)
        if PRECISE:
            _, kk_lo = two_prod(k, k)
            square_lo = mad(k + k, k_lo, kk_lo)
            _, q_lo = two_prod(square, factor)
            tail = tail + divide(mad(square, factor_lo, mad(square_lo, factor, q_lo)), q)
        shift = zero if F == LOG_KVE else -x
        head, head_lo = two_sum((0.5 * kp) * pick(double, LN2_HI_64, LN2_HI_32), shift)
        return head + mad(const(v, 0.5), log_sum(zero, f, tail), head_lo), zero, zero
    else:
        inverse = reciprocal(k)
        slope_v = d1 * inverse
        inverse_square = inverse * inverse
        eta0 = jet_div(m0, k0)
        p = cas * inverse_square
        ratio_v = tl.where(first, w + eta0[1], c - p)
        ratio_x = tl.where(first | (a < 0.75), mad(eta, 2.0 + eta, -(a * a)), mad(ratio, tau - w, const(v, -1.0)))
        if ORDER == 1 and F == KV_RATIO:
            return ratio_v, ratio_x, zero
        elif ORDER == 1:
            slope_x = mad(const(v, 0.5), w, eta)
            return slope_v, -slope_x if F == LOG_KVE else -1.0 - slope_x, zero
        elif F == KV_RATIO:
            out_v = tl.where(first, eta0[2], mad(slope_v + slope_v, p, -(cas_d1 * inverse_square)))
            out_vx = 2.0 * mad(1.0 + eta, ratio_v, -(ratio * w))
            return out_v, out_vx, mad(2.0 * (1.0 + eta), ratio_x, (v + v + 1.0) * ratio * w * w)
        else:
            return ww * inverse_square, tl.where(first, -eta0[1], p - w), -mad(v, w * w, ratio_x)
