"""Remez fits behind the polynomials of csrc/math/elementary.h and double_word_log.h (needs mpmath).

Prints every fit with its weighted error; exit code 1 if a header holds other coefficients.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import mpmath as mp

mp.mp.dps = 50
HEADERS = Path(__file__).resolve().parents[2] / "csrc" / "math"
Function = Callable[[mp.mpf], mp.mpf]


def remez(f: Function, weight: Function, a: mp.mpf, b: mp.mpf, degree: int) -> tuple[list[mp.mpf], float]:
    """Coefficients of the polynomial P that minimises max |weight (f - P)| on [a, b], and that maximum."""
    count = degree + 2
    points = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * i / (count - 1)) for i in range(count)]
    grid = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * (i + mp.mpf(1) / 3) / 600) for i in range(600)]
    values, weights = [f(x) for x in grid], [weight(x) for x in grid]
    for _ in range(12):
        matrix, right = mp.matrix(count, count), mp.matrix(count, 1)
        for i, x in enumerate(points):
            for j in range(degree + 1):
                matrix[i, j] = x**j
            matrix[i, degree + 1] = (-1) ** i / weight(x)
            right[i] = f(x)
        solution = mp.lu_solve(matrix, right)
        coefficients = [solution[j] for j in range(degree + 1)]
        error = [w * (v - mp.polyval(coefficients[::-1], x)) for x, v, w in zip(grid, values, weights, strict=True)]
        extremes, best = [], 0
        for i in range(1, len(grid)):
            if (error[i] > 0) != (error[best] > 0):
                extremes.append(best)
                best = i
            elif abs(error[i]) > abs(error[best]):
                best = i
        extremes.append(best)
        if len(extremes) < count:
            break
        while len(extremes) > count:
            extremes.pop(0 if abs(error[extremes[0]]) < abs(error[extremes[-1]]) else -1)
        points = [grid[i] for i in extremes]
    return coefficients, float(max(map(abs, error)))


def exp_rest(r: mp.mpf) -> mp.mpf:
    return (mp.expm1(r) - r) / r**2 if abs(r) > 1e-12 else mp.mpf(1) / 2


def atanh_rest(z: mp.mpf) -> mp.mpf:
    s = mp.sqrt(z)
    return 2 * (mp.atanh(s) / s - 1) / z if z > 1e-14 else mp.mpf(2) / 3


def atanh_tail(first: int) -> Function:
    """sum_{j >= 0} z^j / (2 (first + j) + 1)."""
    return lambda z: mp.hyp2f1(1, first + mp.mpf(1) / 2, first + mp.mpf(3) / 2, z) / (2 * first + 1)


def log_rest(f: mp.mpf) -> mp.mpf:
    return (mp.log1p(f) - f + f * f / 2) / f**3 if abs(f) > 1e-10 else mp.mpf(1) / 3


def log_weight(f: mp.mpf) -> mp.mpf:
    return f**3 / mp.log1p(f) if abs(f) > 1e-3 else f * f + mp.mpf("1e-9")


def sin_rest(z: mp.mpf) -> mp.mpf:
    return (mp.sin(2 * mp.pi * mp.sqrt(z)) / mp.sqrt(z) - 2 * mp.pi) / z


def cos_rest(z: mp.mpf) -> mp.mpf:
    return (mp.cos(2 * mp.pi * mp.sqrt(z)) - 1 + 2 * mp.pi**2 * z) / z**2


def fits() -> list[tuple[str, list[mp.mpf], float]]:
    margin = mp.mpf("1.0001")
    half = mp.log(2) / 2 * margin
    square = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * margin
    low, high = (mp.sqrt(0.5) - 1) * 1.0001, (mp.sqrt(2) - 1) * 1.0001
    eighth = (margin / 8) ** 2
    small, smaller, least = mp.mpf("1e-9"), mp.mpf("1e-12"), mp.mpf("1e-15")
    table = [
        ("exp, double", exp_rest, lambda r: r * r + mp.mpf("1e-6"), -half, half, 10),
        ("exp, float", exp_rest, lambda r: r * r + mp.mpf("1e-4"), -half, half, 5),
        ("log, double", atanh_rest, lambda z: z + mp.mpf("1e-7"), least, square, 6),
        ("log, float", log_rest, log_weight, low, high, 8),
        ("sin, double", sin_rest, lambda z: z, small, eighth, 6),
        ("cos, double", cos_rest, lambda z: z * z, small, eighth, 6),
        ("sin, float", sin_rest, lambda z: z, small, eighth, 3),
        ("cos, float", cos_rest, lambda z: z * z, small, eighth, 2),
        ("log_dw tail, double", atanh_tail(7), lambda z: mp.mpf(1), smaller, square, 7),
        ("log_dw tail, float", atanh_tail(4), lambda z: mp.mpf(1), smaller, square, 3),
    ]
    return [(name, *remez(f, weight, a, b, degree)) for name, f, weight, a, b, degree in table]


def main() -> int:
    text = "".join((HEADERS / name).read_text() for name in ("elementary.h", "double_word_log.h"))
    missing = 0
    for name, coefficients, error in fits():
        numbers = [repr(float(c)) for c in coefficients]
        print(f"{name}: weighted error {error:.2g}\n  {', '.join(numbers)}")
        absent = [number for number in numbers if number not in text]
        # exp's leading coefficient is set to exactly 1/2
        absent = [number for number in absent if not (name.startswith("exp") and number == numbers[0])]
        missing += len(absent)
        if absent:
            print(f"  NOT IN THE HEADERS: {absent}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
