"""Write csrc/math/bessel_k_coefficients.h: the polynomials behind log K_v(x) for hypot(v, x) < 25 (float: 10).

Bivariate Chebyshev interpolants in z = mu^2 in [0, 1/4] and in x, taken at 60 digits, truncated, turned into monomials.
Run: python tools/bessel_k_coefficients.py [path of the header].
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable

import mpmath as mp
from flint import arb, ctx

Table = list[list[mp.mpf]]
HEADER = """\
// The polynomials behind K_mu and K_{mu+1}, |mu| <= 1/2: written by tools/bessel_k_coefficients.py, do not edit.
#pragma once

#include "math/bessel_k_polynomial.h"

// clang-format off
namespace fokker::math::detail {
"""


def chebyshev(f: Callable[[mp.mpf, mp.mpf], mp.mpf], rows: int, cols: int) -> Table:
    """Coefficients c[i][j] of T_i(a) T_j(b) of the interpolant of f on [-1, 1]^2."""
    f_at = [
        [f(mp.cos(mp.pi * (2 * k + 1) / (2 * rows)), mp.cos(mp.pi * (2 * m + 1) / (2 * cols))) for m in range(cols)]
        for k in range(rows)
    ]
    a = [[mp.cos(i * mp.pi * (2 * k + 1) / (2 * rows)) for k in range(rows)] for i in range(rows)]
    b = [[mp.cos(j * mp.pi * (2 * m + 1) / (2 * cols)) for m in range(cols)] for j in range(cols)]
    half = [
        [mp.fdot(a[i], [f_at[k][m] for k in range(rows)]) * (2 - (i == 0)) / rows for m in range(cols)]
        for i in range(rows)
    ]
    return [[mp.fdot(b[j], half[i]) * (2 - (j == 0)) / cols for j in range(cols)] for i in range(rows)]


def monomials(c: list[mp.mpf], low: mp.mpf, high: mp.mpf) -> list[mp.mpf]:
    """Power-basis coefficients in p of sum c_i T_i(a), where a in [-1, 1] maps to p in [low, high]."""
    scale, shift = 2 / (high - low), -(high + low) / (high - low)
    prev, cur = [mp.mpf(1)], [shift, scale]
    out = [mp.mpf(0)] * len(c)
    for i, weight in enumerate(c):
        if i > 0:
            if i > 1:
                nxt = [mp.mpf(0)] * (i + 1)
                for k, value in enumerate(cur):
                    nxt[k] += 2 * shift * value
                    nxt[k + 1] += 2 * scale * value
                for k, value in enumerate(prev):
                    nxt[k] -= value
                prev, cur = cur, nxt
            basis = cur
        else:
            basis = prev
        for k, value in enumerate(basis):
            out[k] += weight * value
    return out


def fit(
    f: Callable[[mp.mpf, mp.mpf], mp.mpf],
    rows: int,
    cols: int,
    row_range: tuple[mp.mpf, mp.mpf],
    col_range: tuple[mp.mpf, mp.mpf],
    tolerance: float,
    z_rows: bool,
) -> Table:
    """Truncate the interpolant where value, slope and (30 times looser) curvature in z allow `tolerance`.

    Returns p[i][j] of row^i col^j, rows of falling length; z is the row variable if z_rows, else the column variable.
    """
    row_map = lambda a: (row_range[0] + row_range[1]) / 2 + a * (row_range[1] - row_range[0]) / 2  # noqa: E731
    col_map = lambda b: (col_range[0] + col_range[1]) / 2 + b * (col_range[1] - col_range[0]) / 2  # noqa: E731
    c = chebyshev(lambda a, b: f(row_map(a), col_map(b)), rows, cols)
    weight = [max(1, 8 * k * k, (8 * k * k) ** 2 / 90) for k in range(max(rows, cols))]  # T_k'(1), T_k''(1) in z
    length = [
        max((j + 1 for j in range(cols) if abs(c[i][j]) * weight[i if z_rows else j] > tolerance), default=0)
        for i in range(rows)
    ]
    for i in range(rows - 2, -1, -1):
        length[i] = max(length[i], length[i + 1])
    c = [[c[i][j] if j < length[i] else mp.mpf(0) for j in range(cols)] for i in range(rows) if length[i]]
    c = [monomials(row[:n], *col_range) + [mp.mpf(0)] * (cols - n) for row, n in zip(c, length, strict=False)]
    columns = [monomials([row[j] for row in c], *row_range) for j in range(cols)]
    return [[columns[j][i] for j in range(length[i])] for i in range(len(c))]


def bessel_k(order: mp.mpf, x: mp.mpf) -> mp.mpf:
    ball = arb(mp.nstr(x, 70)).bessel_k(arb(mp.nstr(order, 70)))
    assert ball.rel_accuracy_bits() > 180
    return mp.mpf(ball.mid().str(60, radius=False))


def large_tables(low: mp.mpf, high: mp.mpf, shift: mp.mpf, tolerance: float) -> tuple[mp.mpf, mp.mpf, Table, Table]:
    u_low, u_high = 1 / (high + shift), 1 / (low + shift)
    center, half = (u_low + u_high) / 2, (u_high - u_low) / 2

    def parts(z: mp.mpf, t: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
        x, mu = 1 / (center + half * t) - shift, mp.sqrt(z)
        k = bessel_k(mu, x)
        g = mp.sqrt(2 * x / mp.pi) * mp.exp(x) * k
        eta = bessel_k(mu + 1, x) / k - 1 - (mu + mp.mpf(1) / 2) / x
        return (g - 1) * x / (z - mp.mpf(1) / 4), eta * g * x * x / (z - mp.mpf(1) / 4)

    quarter, unit = (mp.mpf(0), mp.mpf(1) / 4), (mp.mpf(-1), mp.mpf(1))
    h = fit(lambda z, t: parts(z, t)[0], 12, 40, quarter, unit, tolerance, True)
    w = fit(lambda z, t: parts(z, t)[1], 12, 40, quarter, unit, tolerance, True)
    return 1 / half, -center / half, h, w


def entire(mu: mp.mpf, y: mp.mpf) -> mp.mpf:
    return mp.fsum(y**k * mp.rgamma(k + 1) * mp.rgamma(1 + mu + k) for k in range(30))


def temme_even(y: mp.mpf, z: mp.mpf) -> mp.mpf:
    mu = mp.sqrt(z)
    return (entire(mu, y) + entire(-mu, y)) / 2 - 1


def temme_odd(y: mp.mpf, z: mp.mpf) -> mp.mpf:
    mu = mp.sqrt(z)
    return (entire(mu, y) - entire(-mu, y)) / (2 * mu) - mp.euler


def exp_tail(s: mp.mpf) -> mp.mpf:
    return mp.fsum(s**k / mp.factorial(k + 3) for k in range(50))


def second_moment(s: mp.mpf) -> mp.mpf:
    return mp.fsum(s**k / (mp.factorial(k) * (k + 3)) for k in range(50))


def wrap(text: str, hanging: int) -> str:
    return (
        textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * hanging, break_long_words=False) + "\n"
    )


def rows_text(table: Table, digits: int) -> str:
    rows = (", ".join(f"T({mp.nstr(c, digits)})" for c in row) for row in table)
    return "".join(wrap(f"constexpr T r{i}[] = {{{row}}};", 8) for i, row in enumerate(rows))


def function(name: str, comment: str, args: str, result: str, bodies: list[str]) -> str:
    return (
        f"\n// {comment}\ntemplate <typename T> FK_HD FK_INLINE {result} {name}({args}) {{\n"
        f"  if constexpr (sizeof(T) == 8) {{\n{bodies[0]}  }} else {{\n{bodies[1]}  }}\n}}\n"
    )


def names(table: Table) -> list[str]:
    return [f"r{i}" for i in range(len(table))]


def main() -> None:
    mp.mp.dps, ctx.prec = 60, 400
    quarter, unit = (mp.mpf(0), mp.mpf(1) / 4), (mp.mpf(0), mp.mpf(1))
    bodies: dict[str, list[str]] = {key: [] for key in ("variable", "h", "w", "even", "odd", "sine", "tail", "second")}
    for digits, low, high, x_shift, tol_large, tol_temme in (
        (19, mp.mpf(1), mp.mpf("25.1"), mp.mpf(1), 1.5e-16, 1e-17),
        (11, mp.mpf("0.15625"), mp.mpf("10.05"), mp.mpf("0.25"), 1e-8, 2e-9),
    ):
        scale, shift, h, w = large_tables(low, high, x_shift, tol_large)
        bodies["variable"].append(
            wrap(
                f"return mad(T(1) / (x + T({mp.nstr(x_shift, 6)})), T({mp.nstr(scale, digits)}), "
                f"T({mp.nstr(shift, digits)}));",
                8,
            )
        )
        for key, table in (("h", h), ("w", w)):
            inner = ", ".join(f"horner({r}, t)" for r in names(table))
            bodies[key].append(rows_text(table, digits) + wrap(f"return polynomial_jet(z, {inner});", 8))
        for key, f in (("even", temme_even), ("odd", temme_odd)):
            table = fit(f, 15, 14, unit, quarter, tol_temme, False)
            inner = ", ".join(f"row_jet({r}, z)" for r in names(table))
            bodies[key].append(rows_text(table, digits) + wrap(f"return outer_jet(y, {inner});", 8))
        sine = fit(
            lambda a, z: mp.pi * mp.sqrt(z) / mp.sin(mp.pi * mp.sqrt(z)) - 1, 1, 24, unit, quarter, tol_temme, False
        )
        bodies["sine"].append(rows_text(sine, digits) + "    return row_jet(r0, z);\n")
        for key, f, bound in (("tail", exp_tail, 1), ("second", second_moment, 2)):
            table = fit(lambda a, s, f=f: f(s), 1, 26, unit, (mp.mpf(-bound), mp.mpf(bound)), tol_temme, True)
            bodies[key].append(rows_text(table, digits) + "    return horner(r0, s);\n")
    text = HEADER
    text += function(
        "k_large_variable", "t in [-1, 1] for x in [1, 25.1] (float: [0.15625, 10.05]).", "T x", "T", bodies["variable"]
    )
    text += function(
        "k_large_value",
        "(sqrt(2 x / pi) e^x K_mu(x) - 1) x / (z - 1/4), with derivatives in z = mu^2.",
        "T t, T z",
        "Jet<T>",
        bodies["h"],
    )
    text += function(
        "k_large_slope",
        "-x^2 / (z - 1/4) times the x derivative of sqrt(2 x / pi) e^x K_mu(x).",
        "T t, T z",
        "Jet<T>",
        bodies["w"],
    )
    text += function(
        "temme_even",
        "Even part in mu of sum_k y^k / (k! Gamma(1 + mu + k)), less 1, and its y derivative.",
        "T y, T z",
        "JetPair<T>",
        bodies["even"],
    )
    text += function(
        "temme_odd",
        "Odd part over mu of the same sum, less Euler's constant, and its y derivative.",
        "T y, T z",
        "JetPair<T>",
        bodies["odd"],
    )
    text += function("reciprocal_sinc", "pi mu / sin(pi mu), less 1.", "T z", "Jet<T>", bodies["sine"])
    text += function("exp_tail", "(e^s - 1 - s - s^2 / 2) / s^3, |s| <= 1.", "T s", "T", bodies["tail"])
    text += function("second_moment", "Integral of t^2 e^(s t) over [0, 1], |s| <= 2.", "T s", "T", bodies["second"])
    text += "\n}  // namespace fokker::math::detail\n"
    with open(sys.argv[1] if len(sys.argv) > 1 else "csrc/math/bessel_k_coefficients.h", "w") as out:
        out.write(text)


if __name__ == "__main__":
    main()
