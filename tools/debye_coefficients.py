"""Generates the exact polynomials D_k(s) of the log-form Debye expansion, for C++ and for Python.

In polar variables r = hypot(v, x), w = 1/r, s = v^2/r^2 (DLMF 10.41.3-4, 10.41.7-10)

    log I_v(x) =  L - log(2 pi r)/2   + sum_k        D_k(s) w^k,     L = r + v log(x/(v + r))
    log K_v(x) = -L + log(pi/(2 r))/2 + sum_k (-1)^k D_k(s) w^k

where u_k(p) = p^k Q_k(p^2) are DLMF's polynomials and n Q_n = sum_{k=1..n} k D_k Q_{n-k} takes the logarithm of their
generating series. D_k has degree k, so row k has k + 1 coefficients.

    python tools/debye_coefficients.py           write both files
    python tools/debye_coefficients.py --check   exit 1 if a committed file differs from what this script generates
"""

from __future__ import annotations

import argparse
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np

TERMS = 18
ROOT = Path(__file__).resolve().parents[1]
CPP = ROOT / "csrc/math/debye_coefficients.h"
PYTHON = ROOT / "python/fokker/reference/_debye.py"

PRINTED = (
    "1/8 -5/24",
    "1/16 -3/8 5/16",
    "25/384 -531/640 221/128 -1105/1152",
    "13/128 -71/32 531/64 -339/32 565/128",
)


def u_polynomials(terms: int) -> list[list[Fraction]]:
    """Q_0..Q_terms, lowest power of s = p^2 first, from u_{k+1} = p^2(1-p^2)/2 u_k' + (1/8) int_0^p (1-5t^2) u_k dt."""
    rows = [[Fraction(1)]]
    for k in range(terms):
        nxt = [Fraction(0)] * (k + 2)
        for j, c in enumerate(rows[-1]):
            m = k + 2 * j
            nxt[j] += c * (Fraction(m, 2) + Fraction(1, 8 * (m + 1)))
            nxt[j + 1] -= c * (Fraction(m, 2) + Fraction(5, 8 * (m + 3)))
        rows.append(nxt)
    return rows


def debye_polynomials(terms: int = TERMS) -> list[list[Fraction]]:
    """D_0 = 0 and D_1..D_terms, lowest power of s first."""
    q = u_polynomials(terms)
    d = [[Fraction(0)]]
    for n in range(1, terms + 1):
        row = list(q[n])
        for k in range(1, n):
            for i, a in enumerate(d[k]):
                for j, b in enumerate(q[n - k]):
                    row[i + j] -= Fraction(k, n) * a * b
        d.append(row)
    for k, printed in enumerate(PRINTED, 1):
        if d[k] != [Fraction(c) for c in printed.split()]:
            raise AssertionError(f"D_{k} is {d[k]}, the design page prints {printed}")
    return d


def literals(row: list[Fraction]) -> list[str]:
    """Shortest decimals that read back as the nearest double; that double's cast to float is the nearest float."""
    out = []
    for c in row:
        value = float(c)
        single = np.float32(value)
        near = (np.nextafter(single, np.float32(-np.inf)), np.nextafter(single, np.float32(np.inf)))
        if any(abs(Fraction(float(n)) - c) < abs(Fraction(float(single)) - c) for n in near):
            raise AssertionError(f"{c} rounds twice on its way to float")
        out.append(repr(value).replace("e+", "e"))
    return out


def wrap(cells: list[str], indent: str) -> str:
    lines, line = [], indent
    for cell in cells:
        if len(line) + len(cell) + 2 > 118:
            lines.append(line.rstrip())
            line = indent
        line += cell + ", "
    return "\n".join([*lines, line.rstrip()])


def cpp_source(d: list[list[Fraction]]) -> str:
    rows = "\n".join(f"      // D_{k}\n" + wrap(literals(d[k]), "      ") for k in range(1, TERMS + 1))
    return f"""\
// The polynomials D_k(s) of the log-form Debye expansion: written by tools/debye_coefficients.py, do not edit.
//
// log I_v(x) = L - log(2 pi r)/2 + sum_k D_k(s) r^-k, with r = hypot(v, x), s = v^2/r^2 (DLMF 10.41.3-4, 10.41.7-10).
#pragma once

#include "math/arithmetic.h"

namespace fokker::math {{

inline constexpr int kDebyeTerms = {TERMS};

// Coefficient of s^j in D_k, 1 <= k <= kDebyeTerms, 0 <= j <= k. For constant expressions: elsewhere it is a look-up.
FK_HD constexpr double debye_coefficient(int k, int j) {{
  constexpr double d[] = {{
      // clang-format off
{rows}
      // clang-format on
  }};
  return d[k * (k + 1) / 2 - 1 + j];
}}

namespace detail {{
// Coefficient of s^j in the derivative of D_k of this order.
FK_HD constexpr double debye_coefficient(int k, int order, int j) {{
  double c = math::debye_coefficient(k, j + order);
  for (int i = 1; i <= order; ++i) c *= j + i;
  return c;
}}

template <int K, int Order, int J, typename T> FK_HD FK_INLINE T debye_horner(T s) {{
  constexpr T c = T(debye_coefficient(K, Order, J));
  if constexpr (J + Order >= K) return c;
  else return mad(debye_horner<K, Order, J + 1, T>(s), s, c);
}}
}}  // namespace detail

// D_K(s), or its derivative in s of the given order; Horner's rule unrolled at compile time.
template <int K, int Order = 0, typename T> FK_HD FK_INLINE T debye_d(T s) {{
  static_assert(K >= 1 && K <= kDebyeTerms && Order >= 0, "no such polynomial in the table");
  if constexpr (Order > K) return T(0);
  else return detail::debye_horner<K, Order, 0, T>(s);
}}

}}  // namespace fokker::math
"""


def python_source(d: list[list[Fraction]]) -> str:
    rows = "\n".join(
        "    (\n" + "\n".join(f"        {c}," for c in literals(d[k])) + "\n    ),  # D_" + str(k)
        for k in range(1, TERMS + 1)
    )
    return f'''\
"""The polynomials D_k(s) of the log-form Debye expansion: written by tools/debye_coefficients.py, do not edit.

DEBYE_COEFFICIENTS[k][j] is the coefficient of s^j in D_k(s), correctly rounded to float64; D_0 = 0 is there so that k
is the index. DLMF 10.41.3-4, 10.41.7-10.
"""

from __future__ import annotations

DEBYE_TERMS = {TERMS}

DEBYE_COEFFICIENTS: tuple[tuple[float, ...], ...] = (
    (0.0,),  # D_0
{rows}
)
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    check = parser.parse_args().check
    d = debye_polynomials()
    stale = []
    for path, text in ((CPP, cpp_source(d)), (PYTHON, python_source(d))):
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            stale.append(str(path.relative_to(ROOT)))
    for path in stale:
        print(f"{path} is not what tools/debye_coefficients.py generates", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
