"""The judge of the special functions: log I_v, log K_v and what hangs on them in ball arithmetic, to 40 digits or more.

Inputs are exact: Python floats (or ints) v in [0, 1e7], x in (0, 1e300], subnormals included. Results are flint `arb`
balls whose relative radius is below 2^-136 (1e-41), or that lie below 2^-1200; the precision is raised until they do.
Values for hypot(v, x) <= 90 come from Arb's bessel_i and bessel_k and are proved. Derivatives, and values beyond:
  I    hypot(v, x) <= 90 or x^2/4 < 10(v+1): 0F1 series (DLMF 10.25.2), terms positive, tail bounded: proved.
  K    hypot(v, x) <= 90: trapezoid rule on DLMF 10.32.9, with a step for a relative error e^-175; the ball says 2^-230.
  else Debye's expansion in log form with 64 exact-rational terms; the ball is 8 times the larger of the last two. It is
       even in v: for v < 1 the odd part of log I, -sin(pi v)/pi K/I (DLMF 10.27.2), all of d/dv at v = 0, is added.
The last two are estimates, not proofs; mpmath by other formulas agrees (test_oracle.py, `--check` of truth/make_*.py).
A "jet" is the tuple (f, f_v, f_x, f_vv, f_vx, f_xx).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from flint import arb, arb_poly, ctx, fmpq, fmpq_poly

FUNCTIONS = ("log_iv", "log_ive", "log_kv", "log_kve", "iv_ratio", "kv_ratio")
VMF_FUNCTIONS = (
    "log_normalizer",
    "mean_resultant_length",
    "mean_resultant_complement",
    "resultant_derivative",
    "resultant_second_derivative",
    "entropy",
    "kl_uniform",
)
TERMS, SEAM, ACCURACY = 64, 90, 136
QUADRATURE_ERROR = arb(2) ** -230
Jet = tuple[arb, arb, arb, arb, arb, arb]
ctx.prec = 420


# --- jets -------------------------------------------------------------------------------------------------------------
def add(a: Jet, b: Jet, sign: int = 1) -> Jet:
    return tuple(p + sign * q for p, q in zip(a, b, strict=True))


def mul(a: Jet, b: Jet) -> Jet:
    vx = a[4] * b[0] + a[1] * b[2] + a[2] * b[1] + a[0] * b[4]
    second = [a[k] * b[0] + 2 * a[i] * b[i] + a[0] * b[k] for i, k in ((1, 3), (2, 5))]
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[2] * b[0] + a[0] * b[2], second[0], vx, second[1]


def compose(a: Jet, f: arb, f1: arb, f2: arb) -> Jet:
    # products, no ** 2: flint's power of a ball around 0 is nan
    second = [f1 * a[k] + f2 * a[i] * a[j] for k, i, j in ((3, 1, 1), (4, 1, 2), (5, 2, 2))]
    return f, f1 * a[1], f1 * a[2], *second


def exp(a: Jet) -> Jet:
    return compose(a, a[0].exp(), a[0].exp(), a[0].exp())


def sharp(values: tuple[arb, ...], bits: int) -> bool:
    """Every ball is tight, or so small that no table can tell it from zero."""
    return all(b.is_finite() and (b.rel_accuracy_bits() >= bits or abs(b) < arb(2) ** -1200) for b in values)


def refine(f: Callable[[], tuple[arb, ...]], bits: int = ACCURACY) -> tuple[arb, ...]:
    """f() at the first working precision that makes its balls tight."""
    before = ctx.prec
    try:
        for prec in (420, 700, 1400, 2800, 5600, 11200):
            ctx.prec = prec
            out = f()
            if sharp(out, bits):
                return out
    finally:
        ctx.prec = before
    raise ArithmeticError(f"no {bits} bits at {ctx.prec} bits of working precision: {out}")


# --- log 0F1(; v+1; x^2/4) and log K for small r ----------------------------------------------------------------------
def series(v: arb, x: arb) -> Jet:
    y, t, h, g = x * x / 4, arb(1), arb(0), arb(0)
    u, uv, ux, uvv, uvx, uxx = (arb(0) for _ in range(6))
    for k in range(1, 100000):
        i = 1 / (v + k)
        ratio = y * i / k
        t, h, g = t * ratio, h + i, g + i * i
        tx = t * (2 * k) / x
        u, uv, ux = u + t, uv - t * h, ux + tx
        uvv, uvx, uxx = uvv + t * (h * h + g), uvx - tx * h, uxx + tx * (2 * k - 1) / x
        if ratio < 0.125 and t < u * arb(2) ** -ctx.prec:
            # each later term, weights included, is under half of the one before it
            tails = ((u, t), (uv, t * h), (ux, tx), (uvv, t * (h * h + g)), (uvx, tx * h), (uxx, tx * 2 * k / x))
            u, uv, ux, uvv, uvx, uxx = (s + arb(0, (2 * tail).abs_upper()) for s, tail in tails)
            return compose((u, uv, ux, uvv, uvx, uxx), u.log1p(), 1 / (1 + u), -1 / (1 + u) ** 2)
    raise ArithmeticError("series does not end")


def prefactor(v: arb, x: arb) -> Jet:
    """log of (x/2)^v / Gamma(v+1), which is I_v / 0F1."""
    log_half, z = (x / 2).log(), v + 1
    return v * log_half - z.lgamma(), log_half - z.digamma(), v / x, -arb(2).zeta(z), 1 / x, -v / (x * x)


def quadrature(v: arb, x: arb) -> Jet:
    """log K_v(x) by the trapezoid rule on int_0^inf exp(-x cosh t) cosh(vt) dt and its moments."""
    vf, xf = abs(float(v)), float(x)
    # on t + ia the integrand is bounded by that of K_v(x cos a), about cos(a)^-(v+1) e^(x(1-cos a)) K_v(x)
    strips = (a / 100 for a in range(80, 156))
    h = arb(max(2 * math.pi * a / (175 - (vf + 1) * math.log(math.cos(a)) + xf * (1 - math.cos(a))) for a in strips))
    peak = math.asinh(vf / xf) if vf / xf < 1e300 else math.log(2 * vf) - math.log(xf)
    j = int(max(0.0, peak - 1 - 300 / max(vf, 1e-9)) / float(h))
    sums = [arb(0)] * 6
    while True:
        t = h * j
        sh, ch = (v * t).sinh_cosh()
        c = t.cosh()
        e = (-x * c).exp() * (0.5 if j == 0 else 1)
        f, fv = e * ch, e * sh * t
        terms = f, fv, -f * c, f * t * t, -fv * c, f * c * c
        sums = [s + q for s, q in zip(sums, terms, strict=True)]
        if float(t) > peak and j > 10 and terms[5] < sums[5] * arb(2) ** -320 and terms[3] < sums[3] * arb(2) ** -320:
            break
        j += 1
    s = [q * h + arb(0, (q * h * QUADRATURE_ERROR).abs_upper()) for q in sums]
    return compose(tuple(s), s[0].log(), 1 / s[0], -1 / s[0] ** 2)


# --- Debye ------------------------------------------------------------------------------------------------------------
@functools.cache
def debye_rationals(terms: int = TERMS) -> tuple[fmpq_poly, ...]:
    """D_1..D_terms (D_0 = 0 first): s-polynomials of DLMF 10.41.10's logarithm, exact."""
    s, q, d = fmpq_poly([0, 1]), [fmpq_poly([1])], [fmpq_poly([0])]
    for k in range(terms):
        integral = fmpq_poly([c / (8 * (k + 2 * j + 1)) for j, c in enumerate(q[k].coeffs())])
        tail = fmpq_poly([5 * c / (8 * (k + 2 * j + 3)) for j, c in enumerate(q[k].coeffs())])
        q.append((1 - s) * (fmpq(k, 2) * q[k] + s * q[k].derivative()) + integral - s * tail)
    for n in range(1, terms + 1):
        d.append(q[n] - sum((fmpq(k, n) * d[k] * q[n - k] for k in range(1, n)), fmpq_poly([0])))
    return tuple(d)


@functools.cache
def debye_balls(prec: int) -> list[tuple[arb_poly, ...]]:
    return [tuple(map(arb_poly, (d, d.derivative(), d.derivative().derivative()))) for d in debye_rationals()]


def debye(v: arb, x: arb) -> tuple[Jet, Jet]:
    """log_ive and log_kve."""
    r = (v * v + x * x).sqrt()
    w = 1 / r
    s, w2 = v * v * w * w, w * w
    ash = (v / x).asinh()
    lead = v * v / (r + x) - v * ash, -ash, v * v / (x * (r + x)), -w, v / (x * r), -v * v / (x * x * r)
    wj = w, -v * w**3, -x * w**3, (3 * s - 1) * w**3, 3 * v * x * w**5, (3 * x * x * w2 - 1) * w**3
    c, s2 = x * x * w2, s * w2
    sj = s, 2 * v * c * w2, -2 * x * s2, 2 * c * w2 * (1 - 4 * s), 4 * v * x * w2 * w2 * (1 - 2 * c), s2 * (8 * c - 2)
    coefficients = [[p[i](s) for p in debye_balls(ctx.prec)] for i in range(3)]

    def corrections(sign: int) -> Jet:
        rows = [arb_poly([b * sign**k for k, b in enumerate(row)]) for row in coefficients]

        def at(p: arb_poly) -> arb:
            last = [abs(p[k] * w**k).abs_upper() for k in (p.length() - 2, p.length() - 1)]
            return p(w) + arb(0, (8 * max(last)).abs_upper())

        p, pw, pww = at(rows[0]), at(rows[0].derivative()), at(rows[0].derivative().derivative())
        ps, psw, pss = at(rows[1]), at(rows[1].derivative()), at(rows[2])
        g, gw, gww = p + w.log() / 2, pw + r / 2, pww - r * r / 2
        first = [gw * wj[i] + ps * sj[i] for i in (1, 2)]
        second = [
            gw * wj[k] + ps * sj[k] + gww * wj[i] * wj[j] + psw * (wj[i] * sj[j] + wj[j] * sj[i]) + pss * sj[i] * sj[j]
            for k, i, j in ((3, 1, 1), (4, 1, 2), (5, 2, 2))
        ]
        return g, *first, *second

    zero = arb(0)
    ive = add(add(lead, corrections(1)), (-(2 * arb.pi()).log() / 2, zero, zero, zero, zero, zero))
    kve = add(add(corrections(-1), lead, -1), ((arb.pi() / 2).log() / 2, zero, zero, zero, zero, zero))
    if not v < 1:
        return ive, kve
    sine = v.sin_pi() / arb.pi(), v.cos_pi(), zero, -arb.pi() * v.sin_pi(), zero, zero
    hidden = mul(sine, exp(add(add(kve, ive, -1), (-2 * x, zero, arb(-2), zero, zero, zero))))
    return add(ive, hidden, -1), kve


# --- the Bessel functions ---------------------------------------------------------------------------------------------
def near(v: arb, x: arb) -> bool:
    return v * v + x * x <= SEAM**2


def short(v: arb, x: arb) -> bool:
    return near(v, x) or x * x < 40 * (v + 1)


def log_0f1(v: arb, x: arb) -> Jet:
    if short(v, x):
        return series(v, x)
    return add(add(debye(v, x)[0], shift(x)), prefactor(v, x), -1)


def shift(x: arb) -> Jet:
    return x, arb(0), arb(1), arb(0), arb(0), arb(0)


def log_ive_jet(v: arb, x: arb) -> Jet:
    return add(add(series(v, x), prefactor(v, x)), shift(x), -1) if short(v, x) else debye(v, x)[0]


def log_kve_jet(v: arb, x: arb) -> Jet:
    return add(quadrature(v, x), shift(x)) if near(v, x) else debye(v, x)[1]


def i_ratio(v: arb, x: arb) -> Jet:
    """I_{v+1}/I_v as x/(2(v+1)) times a ratio of 0F1: derivatives in x keep their digits at small x."""
    i = 1 / (2 * v + 2)
    quotient = exp(add(log_0f1(v + 1, x), log_0f1(v, x), -1))
    return mul((x * i, -2 * x * i * i, i, 8 * x * i**3, -2 * i * i, arb(0)), quotient)


def all_jets(v: float, x: float) -> dict[str, Jet]:
    """Jets of the six functions."""

    def compute() -> tuple[arb, ...]:
        va, xa = arb(v), arb(x)
        i, k = log_ive_jet(va, xa), log_kve_jet(va, xa)
        # DLMF 10.29.1: both terms positive, and the first has no second derivative in v to cancel
        recurrence = 2 * va / xa, 2 / xa, -2 * va / xa**2, arb(0), -2 / xa**2, 4 * va / xa**3
        k_ratio = add(recurrence, exp(add(log_kve_jet(va - 1, xa), k, -1)))
        return sum((add(i, shift(xa)), i, add(k, shift(xa), -1), k, i_ratio(va, xa), k_ratio), ())

    flat = refine(compute)
    return {name: flat[6 * n : 6 * n + 6] for n, name in enumerate(FUNCTIONS)}


def value(name: str, v: float, x: float) -> arb:
    """One of FUNCTIONS at (v, x); for hypot(v, x) <= 90 from Arb's own Bessel functions, rigorously."""

    def arbs() -> tuple[arb, ...]:
        va, xa = arb(v), arb(x)
        bessel = arb.bessel_i if "iv" in name else arb.bessel_k
        if name.endswith("ratio"):
            return (bessel(xa, va + 1) / bessel(xa, va),)
        return (bessel(xa, va).log() + {"log_ive": -xa, "log_kve": xa}.get(name, arb(0)),)

    # next to an integer order Arb's bessel_k needs minutes
    slow = "kv" in name and 0 < abs(v - round(v)) < 1e-30
    return refine(arbs)[0] if near(arb(v), arb(x)) and not slow else all_jets(v, x)[name][0]


log_iv, log_ive, log_kv, log_kve, iv_ratio, kv_ratio = (functools.partial(value, name) for name in FUNCTIONS)


def derivatives(name: str, v: float, x: float, order: int) -> tuple[arb, ...]:
    """order 0: (f,); 1: (f_v, f_x); 2: (f_vv, f_vx, f_xx)."""
    return all_jets(v, x)[name][(0, 1, 3)[order] : (1, 3, 6)[order]]


# --- von Mises-Fisher -------------------------------------------------------------------------------------------------
def vmf_jets(v: arb, k: arb) -> tuple[arb, Jet]:
    """log 0F1(; v+1; k^2/4), and A = I_{v+1}/I_v with its derivatives."""
    if k == 0:
        zero = arb(0)
        return zero, (zero, zero, 1 / (2 * v + 2), zero, -1 / (2 * (v + 1) ** 2), zero)
    return log_0f1(v, k)[0], i_ratio(v, k)


def vmf(dim: int, concentration: float) -> dict[str, arb]:
    """VMF_FUNCTIONS at concentration >= 0: log C_d, A, 1 - A, dA/dk, d2A/dk2, entropy, KL(vMF || uniform)."""

    def compute() -> tuple[arb, ...]:
        v, k = arb(dim) / 2 - 1, arb(concentration)
        s, a = vmf_jets(v, k)
        log_c = v * arb(2).log() + (v + 1).lgamma() - (v + 1) * (2 * arb.pi()).log() - s
        return log_c, a[0], 1 - a[0], a[2], a[5], -(log_c + k * a[0]), k * a[0] - s

    return dict(zip(VMF_FUNCTIONS, refine(compute), strict=True))


def bregman(dim: int, k1: float, k2: float) -> arb:
    """log C(k1) - log C(k2) + A(k1)(k1 - k2): the part of KL(vMF_1 || vMF_2) at equal mean directions, >= 0."""
    if k1 == k2:
        return arb(0)

    def compute() -> tuple[arb, ...]:
        v, p, q = arb(dim) / 2 - 1, arb(k1), arb(k2)
        (s1, a1), (s2, _) = vmf_jets(v, p), vmf_jets(v, q)
        return (s2 - s1 + a1[0] * (p - q),)

    return refine(compute, 116)[0]


def concentration_from_resultant(dim: int, resultant: float | None = None, complement: float | None = None) -> arb:
    """The root k of A_d(k) = R, from an exact R or an exact 1 - R; the ball brackets the root of the oracle's A."""

    def compute() -> tuple[arb, ...]:
        r = arb(resultant) if complement is None else 1 - arb(complement)
        v, k = arb(dim) / 2 - 1, r * (dim - r * r) / (1 - r * r)
        for _ in range(12):
            a = vmf_jets(v, k)[1]
            step = ((a[0] - r) / a[2]).mid()
            k = (k - step).mid()
            if abs(step) < k * arb(2) ** -150:
                break
        delta = (k * arb(2) ** -145).mid()
        if vmf_jets(v, k - delta)[1][0] < r < vmf_jets(v, k + delta)[1][0]:
            return (k + arb(0, delta),)
        return (arb.nan(),)

    return refine(compute)[0]


def pair(ball: arb) -> tuple[float, float]:
    """(hi, lo): float64 nearest to the ball's midpoint, float64 nearest to the rest; hi may be +-inf, lo then is 0."""
    hi = float(ball.mid())
    return (hi, float((ball - arb(hi)).mid())) if math.isfinite(hi) else (hi, 0.0)
