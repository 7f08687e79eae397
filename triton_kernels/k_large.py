"""log K_v, K_{v+1}/K_v and their derivatives for 1 <= x <= 25 (float32: 0.16 to 10), as csrc/math/bessel_k_large.h.

With z = mu^2, g = sqrt(2 x / pi) e^x K_mu(x) = 1 + (z - 1/4) h(z, x) / x, where h and x^2 g'/(z - 1/4) are polynomials:
exact at half-integer orders, and K_{mu+1}/K_mu - 1 - (mu + 1/2)/x = -g'/g without cancellation. Then the recurrence.
"""

import triton
import triton.language as tl

from .debye import KV_RATIO, LOG_KVE
from .double_word import residual, two_prod, two_sum
from .elementary import (
    LN2_HI_32,
    LN2_HI_64,
    LN2_LO_32,
    LN2_LO_64,
    const,
    divide,
    log_parts,
    log_sum,
    mad,
    pick,
    reciprocal,
    round_to_integer,
)
from .k_coefficients import (
    K_LARGE_SLOPE_32,
    K_LARGE_SLOPE_64,
    K_LARGE_VALUE_32,
    K_LARGE_VALUE_64,
    VARIABLE_32,
    VARIABLE_64,
)
from .k_jets import even_in, jet_add, jet_div, jet_mul, jet_scale, polynomial_jet
from .k_recurrence import k_advance

HALF_PI_64 = tl.constexpr((1.5707963267948966, 6.123233995736766e-17))
HALF_PI_32 = tl.constexpr((1.5707963705062866, -4.371139006309477e-08))


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
