"""Truncated Taylor arithmetic in Triton: a jet is a tuple of a function, its first and its second derivative.

Derivatives above DEPTH are 0 and cost nothing; csrc/math/bessel_k_polynomial.h leaves that to the compiler.
"""

import triton
import triton.language as tl

from .elementary import const, divide, horner, length, mad, reciprocal


@triton.constexpr_function
def row_of(rows, i):
    """One row of a table, as a constant (Triton 3.6 makes a plain tuple of rows[i])."""
    return rows[i]


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
    f = horner(t, row_of(rows, n - 1))
    d1 = const(z, 0.0)
    d2 = d1
    for i in tl.static_range(n - 2, -1, -1):
        if DEPTH >= 2:
            d2 = mad(d2, z, 2.0 * d1)
        if DEPTH >= 1:
            d1 = mad(d1, z, f)
        f = mad(f, z, horner(t, row_of(rows, i)))
    return f, d1, d2


@triton.constexpr_function
def column_count(rows):
    """The longest row's length."""
    return max(len(row) for row in rows)


@triton.constexpr_function
def column_of(rows, j):
    """The coefficients of z^j, for ascending powers of y."""
    return tuple(row[j] for row in rows if len(row) > j)


@triton.jit
def rows_jet(y, z, rows: tl.constexpr, DEPTH: tl.constexpr):
    """sum_i y^i (rows[i][0] + rows[i][1] z + ...) and its y derivative, as two jets in z.

    By columns, z outermost: so few intermediates are alive at a time (rows first spill registers in float64). Rows must
    not grow longer.
    """
    f = const(z, 0.0)
    f1 = f
    f2 = f
    g = f
    g1 = f
    g2 = f
    for j in tl.static_range(column_count(rows) - 1, -1, -1):
        value, slope, _ = row_jet(y, column_of(rows, j), 1)
        if DEPTH >= 2:
            f2 = mad(f2, z, 2.0 * f1)
            g2 = mad(g2, z, 2.0 * g1)
        if DEPTH >= 1:
            f1 = mad(f1, z, f)
            g1 = mad(g1, z, g)
        f = mad(f, z, value)
        g = mad(g, z, slope)
    return (f, f1, f2), (g, g1, g2)
