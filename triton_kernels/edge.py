"""Limits of the log-Bessel functions and their derivatives on the rim of the domain, as csrc/math/bessel_edge.h."""

import triton
import triton.language as tl

from .debye import IV_RATIO, KV_RATIO, LOG_IV, LOG_IVE, LOG_KV, is_k
from .elementary import const, divide, reciprocal
from .series import trigamma


@triton.jit
def is_edge(v, x):
    """True for every (v, x), nan among them, but 0 <= v < inf, 0 < x < inf."""
    return ~((v >= 0.0) & (v < float("inf")) & (x > 0.0) & (x < float("inf")))


@triton.jit
def edge_value(v, x, F: tl.constexpr):
    """F at x = 0, x = inf or v = inf."""
    inf = const(v, float("inf"))
    zero = const(v, 0.0)
    one = const(v, 1.0)
    high = v == float("inf")
    if F == IV_RATIO:
        return tl.where(x == 0.0, zero, tl.where(high, zero, one))
    elif F == KV_RATIO:
        return tl.where(x == 0.0, inf, tl.where(high, inf, one))
    elif F == LOG_IV:
        return tl.where(x == 0.0, tl.where(v == 0.0, zero, -inf), tl.where(high, -inf, inf))
    elif F == LOG_IVE:
        return tl.where((x == 0.0) & (v == 0.0), zero, -inf)
    else:
        return tl.where((x == 0.0) | high, inf, -inf)


@triton.jit
def edge_gradient(v, x, F: tl.constexpr):
    """(dF/dv, dF/dx) at x = 0, x = inf or v = inf."""
    inf = const(v, float("inf"))
    zero = const(v, 0.0)
    at_zero = x == 0.0
    high = v == float("inf")
    if F == IV_RATIO:
        return zero, tl.where(at_zero, divide(const(v, 0.5), v + 1.0), zero)
    elif F == KV_RATIO:
        return tl.where(at_zero, inf, tl.where(high, divide(zero + 2.0, x), zero)), tl.where(at_zero | high, -inf, zero)
    elif not is_k(F):
        at_inf = const(v, 1.0 if F == LOG_IV else 0.0)
        slope = tl.where(v > 0.0, inf, 0.0 if F == LOG_IV else -1.0)
        return tl.where(at_zero | high, -inf, zero), tl.where(at_zero, slope, tl.where(high, inf, at_inf))
    else:
        at_inf = const(v, -1.0 if F == LOG_KV else 0.0)
        out_v = tl.where(at_zero, tl.where(v == 0.0, zero, inf), tl.where(high, inf, zero))
        return out_v, tl.where(at_zero | high, -inf, at_inf)


@triton.jit
def edge_hessian(v, x, F: tl.constexpr):
    """(d2F/dv2, d2F/dvdx, d2F/dx2) at x = 0, x = inf or v = inf."""
    inf = const(v, float("inf"))
    zero = const(v, 0.0)
    at_zero = x == 0.0
    high = v == float("inf")
    if F == IV_RATIO:
        return zero, tl.where(at_zero, divide(zero - 0.5, (v + 1.0) * (v + 1.0)), zero), zero
    elif F == KV_RATIO:
        out_v = tl.where(at_zero & ~(v > 0.5), inf, zero)  # K_{v-1}/K_v ~ x^(2v-1)
        out_vx = tl.where(at_zero, -inf, tl.where(high, divide(zero - 2.0, x * x), zero))
        return out_v, out_vx, tl.where(at_zero | high, inf, zero)
    else:
        IS_K: tl.constexpr = is_k(F)
        # log I ~ v log(x/2) - log Gamma(v+1), log K ~ -v log(x/2) + log Gamma(v) at x = 0
        z = v if IS_K else v + 1.0
        shift = zero
        for _ in tl.static_range(9):
            shift += divide(zero + 1.0, z * z)
            z += 1.0
        psi1 = tl.where(high, zero, trigamma(tl.where(high, 9.0, z))) + shift
        if IS_K:  # v = 0: log K_v is even in v and d2/dv2 ~ log(x)^2 / 3
            out_vx = tl.where(at_zero, tl.where(v > 0.0, -inf, zero), tl.where(high, -reciprocal(x), zero))
            return tl.where(at_zero, psi1, zero), out_vx, tl.where(at_zero | high, inf, zero)
        else:
            out_vx = tl.where(at_zero, inf, tl.where(high, reciprocal(x), zero))
            out_x = tl.where(at_zero, tl.where(v > 0.0, -inf, zero + 0.5), tl.where(high, -inf, zero))
            return tl.where(at_zero, -psi1, zero), out_vx, out_x


@triton.jit
def edge(v, x, F: tl.constexpr, ORDER: tl.constexpr):
    """F and its derivatives where `is_edge`, as three blocks; at v = x = inf only log(I e^-x) has a limit."""
    inside = (v >= 0.0) & (x >= 0.0)
    if ORDER > 0 or F != LOG_IVE:
        inside = inside & ~((v == float("inf")) & (x == float("inf")))
    nan = const(v, float("nan"))
    if ORDER == 0:
        return tl.where(inside, edge_value(v, x, F), nan), nan, nan
    elif ORDER == 1:
        a, b = edge_gradient(v, x, F)
        return tl.where(inside, a, nan), tl.where(inside, b, nan), nan
    else:
        a, b, c = edge_hessian(v, x, F)
        return tl.where(inside, a, nan), tl.where(inside, b, nan), tl.where(inside, c, nan)
