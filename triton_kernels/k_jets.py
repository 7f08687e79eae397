"""Truncated Taylor arithmetic in Triton: a jet is a tuple of a function, its first and its second derivative.

Derivatives above DEPTH are 0 and cost nothing; csrc/math/bessel_k_polynomial.h leaves that to the compiler.
"""

import triton
import triton.language as tl

from .elementary import const, divide, horner, length, mad, reciprocal


@triton.jit
def jet_add(a, b):
    """The sum of two jets."""
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@triton.jit
def jet_scale(a, b):
    """A jet times a block that does not depend on the variable."""
    return a[0] * b, a[1] * b, a[2] * b


@triton.jit
def jet_mul(a, b):
    """The product of two jets."""
    return a[0] * b[0], mad(a[0], b[1], a[1] * b[0]), mad(a[0], b[2], mad(2.0 * a[1], b[1], a[2] * b[0]))


@triton.jit
def jet_div(a, b):
    """The quotient of two jets."""
    r = reciprocal(b[0])
    f = divide(a[0], b[0])
    d1 = mad(-f, b[1], a[1]) * r
    return f, d1, mad(-f, b[2], mad(-2.0 * d1, b[1], a[2])) * r


@triton.jit
def even_in(mu, z, f):
    """f(mu^2) as a function of mu, from its jet in z = mu^2."""
    return f[0], 2.0 * mu * f[1], 2.0 * mad(2.0 * z, f[2], f[1])


@triton.jit
def odd_in(mu, z, f):
    """mu f(mu^2) as a function of mu."""
    return mu * f[0], mad(2.0 * z, f[1], f[0]), 2.0 * mu * mad(2.0 * z, f[2], 3.0 * f[1])


@triton.jit
def row_jet(z, c: tl.constexpr, DEPTH: tl.constexpr):
    """c[0] + c[1] z + ... with derivatives in z."""
    n: tl.constexpr = length(c)
    f = const(z, c[n - 1])
    d1 = const(z, 0.0)
    d2 = d1
    for i in tl.static_range(n - 2, -1, -1):
        if DEPTH >= 2:
            d2 = mad(d2, z, 2.0 * d1)
        if DEPTH >= 1:
            d1 = mad(d1, z, f)
        f = mad(f, z, const(z, c[i]))
    return f, d1, d2


@triton.jit
def polynomial_jet(t, z, rows: tl.constexpr, DEPTH: tl.constexpr):
    """sum_i z^i (rows[i][0] + rows[i][1] t + ...) with derivatives in z."""
    n: tl.constexpr = length(rows)
    f = horner(t, rows[n - 1])
    d1 = const(z, 0.0)
    d2 = d1
    for i in tl.static_range(n - 2, -1, -1):
        if DEPTH >= 2:
            d2 = mad(d2, z, 2.0 * d1)
        if DEPTH >= 1:
            d1 = mad(d1, z, f)
        f = mad(f, z, horner(t, rows[i]))
    return f, d1, d2


@triton.jit
def rows_jet(y, z, rows: tl.constexpr, DEPTH: tl.constexpr):
    """sum_i y^i (rows[i][0] + rows[i][1] z + ...) and its y derivative, as two jets in z."""
    n: tl.constexpr = length(rows)
    f, d1, d2 = row_jet(z, rows[n - 1], DEPTH)
    g = const(z, 0.0)
    g1 = g
    g2 = g
    for i in tl.static_range(n - 2, -1, -1):
        g = mad(g, y, f)
        row, row_d1, row_d2 = row_jet(z, rows[i], DEPTH)
        f = mad(f, y, row)
        if DEPTH >= 1:
            g1 = mad(g1, y, d1)
            d1 = mad(d1, y, row_d1)
        if DEPTH >= 2:
            g2 = mad(g2, y, d2)
            d2 = mad(d2, y, row_d2)
    return (f, d1, d2), (g, g1, g2)
