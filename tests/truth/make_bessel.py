"""Writes the truth tables of the six log-Bessel functions from tests/oracle.py; deterministic, 40 s on one core.

    python tests/truth/make_bessel.py            write the four tables below
    python tests/truth/make_bessel.py --check N  re-derive N random rows of each with mpmath, by other formulas

bessel_f64.npz       v, x (float64, exact inputs), set (uint8, index into `sets`), sets (names), and for each f of
                     log_iv, log_ive, log_kv, log_kve, iv_ratio = I_{v+1}/I_v, kv_ratio = K_{v+1}/K_v: f_hi, f_lo
                     (float64; truth = hi + lo to 2^-105)
bessel_grad_f64.npz  same rows: f_dv_hi, f_dx_hi (float64), f_dv_lo, f_dx_lo (float32, 0 where float32 cannot hold it);
                     log_ive_dv = log_iv_dv and log_kve_dv = log_kv_dv are stored once, under the unscaled name
bessel_hess_f64.npz  own rows v, x, set: f_dvv, f_dvx, f_dxx (_hi, _lo float64); log_ive and log_kve have those of
                     log_iv and log_kv
bessel_f32.npz       v, x (float32, exact inputs), set, sets, f_hi, f_dv_hi, f_dx_hi (float64, nearest to the truth)

`load(name)` joins v, x, set, sets to the gradient table. A truth beyond float64 is +-inf or 0 with lo = 0 (kv_ratio and
d/dx ~ v/x at subnormal x): compare where hi is finite. Sets: main (stratified log-uniform grid, v in {0} + [1e-3, 1e6],
x in [1e-8, 1e8]), small U[0,150]^2, large U[0,1e4]^2, vmf (d = 3, 128, 2048, 32768), zero_i and zero_k (1e-14..1e-2
relative from the zero of log I, log K; float32: the floats around it), nearint (v 0, 1e-300, 1e-15..1e-2 from integers
and half-integers), seams (r and x on both sides of the kernels' thresholds), v0 (v = 0, x from 5e-324 to 1e300),
extreme; float32 has its subnormal x in `subnormal`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mpmath as mp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import oracle  # noqa: E402
from flint import arb, ctx  # noqa: E402

VALUES = oracle.FUNCTIONS
DV = tuple(f for f in VALUES if f not in ("log_ive", "log_kve"))
TABLES = ("bessel_f64.npz", "bessel_grad_f64.npz", "bessel_hess_f64.npz", "bessel_f32.npz")
Pair = tuple[float, float]
Points = dict[str, list[Pair]]


# --- points -----------------------------------------------------------------------------------------------------------
def log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    """Stratified: one point a cell."""
    cells = (np.arange(n) + rng.random(n)) / n
    return 10 ** (np.log10(low) + cells * (np.log10(high) - np.log10(low)))


def grid(rng: np.random.Generator, n: int, v: Pair, x: Pair) -> list[Pair]:
    cells = [((i + a) / n, (j + b) / n) for i in range(n) for j in range(n) for a, b in [rng.random(2)]]
    (v0, v1), (x0, x1) = np.log10(v), np.log10(x)
    return [(10 ** (v0 + p * (v1 - v0)), 10 ** (x0 + q * (x1 - x0))) for p, q in cells]


def crossing(v: float, kind: str) -> arb:
    """The x where log I_v or log K_v is zero, by Newton's method in log x."""
    ctx.prec = 420
    va, x, sign = arb(v), arb(0.6627 * v + 0.5), 1 if kind == "i" else -1
    for _ in range(60):
        jet = oracle.log_ive_jet(va, x) if kind == "i" else oracle.log_kve_jet(va, x)
        step = ((jet[0] + sign * x) / (x * (jet[2] + sign))).mid()
        x = (x * (-step).exp()).mid()
        if abs(step) < arb(2) ** -110:
            return x
    raise ArithmeticError(f"no crossing found for v = {v}")


def zero_points(rng: np.random.Generator, kind: str, n: int, single: bool) -> list[Pair]:
    out = []
    for v in log_uniform(rng, 1, 1e7, n):
        v = float(np.float32(v)) if single else float(v)
        root = crossing(v, kind)
        if single:
            x = np.float32(float(root))
            for _ in range(rng.integers(0, 4)):
                x = np.nextafter(x, np.float32(rng.choice([0, np.inf])))
            out.append((v, float(x)))
        else:
            out.append((v, float(root * (1 + arb(rng.choice([-1, 1]) * 10 ** rng.uniform(-14, -2))))))
    return out


def near_integer(rng: np.random.Generator, n: int, gap: Pair, x: Pair) -> list[Pair]:
    orders = [0, 0.5, 1, 1.5, 2, 2.5, 3, 4.5, 7, 10.5, 15, 19.5, 24, 63.5, 200, 999.5]
    out = []
    for i in range(n):
        v = orders[int(rng.integers(0, 12))] if i % 4 else orders[int(rng.integers(0, len(orders)))]
        if i % 5:
            v = abs(v + rng.choice([-1, 1]) * 10 ** rng.uniform(*np.log10(gap)))
        elif i % 10 == 0 and v == 0:
            v = float(np.float32(1e-38)) if gap[0] > 1e-10 else 1e-300
        out.append((v, 10 ** rng.uniform(*np.log10(x)) if i % 3 == 0 else 10 ** rng.uniform(-2, 1.4)))
    return out


def seam_points(rng: np.random.Generator, radii: tuple, arguments: tuple, gaps: tuple, angles: int) -> list[Pair]:
    out = []
    for r in radii:
        for phi in (np.arange(angles) + rng.random(angles)) / angles * np.pi / 2:
            out += [(r * (1 + g) * np.cos(phi), r * (1 + g) * np.sin(phi)) for g in gaps]
        out += [(0.0, r * (1 + g)) for g in gaps]
    for x in arguments:
        for v in (0.0, *rng.uniform(0, 25, angles - 1)):
            out += [(v, x * (1 + g)) for g in gaps]
    return out


def vmf_points(rng: np.random.Generator, n: int) -> list[Pair]:
    return [(d / 2 - 1, float(k)) for d in (3, 128, 2048, 32768) for k in log_uniform(rng, 1, 1e5, n)]


def points_f64() -> Points:
    rng = np.random.default_rng(20260101)
    sets: Points = {
        "main": grid(rng, 38, (1e-3, 1e6), (1e-8, 1e8)) + [(0.0, x) for x in log_uniform(rng, 1e-8, 1e8, 56)],
        "small": [tuple(p) for p in rng.uniform(0, 150, (150, 2))],
        "large": [tuple(p) for p in rng.uniform(0, 1e4, (150, 2))],
        "vmf": vmf_points(rng, 50),
        "zero_i": zero_points(rng, "i", 100, False),
        "zero_k": zero_points(rng, "k", 100, False),
        "nearint": near_integer(rng, 270, (1e-15, 1e-2), (1e-8, 1e4)),
        "seams": seam_points(rng, (20, 25, 40, 80, 200, 1000), (1, 2, 10, 12), (-1e-15, 1e-15, -1e-9, 1e-9), 6),
        "v0": [(0.0, x) for x in (5e-324, *log_uniform(rng, 1e-323, 1e300, 50), *log_uniform(rng, 1e-10, 1e3, 50))],
        "extreme": [(0.0, 1e300), (1e155, 3e154), (1e200, 1e200), (1e290, 2e289), (3e180, 1e10), (1e160, 1e220)],
    }
    tiny_to_huge = (5e-324, 1e-310, 1e-300, 1e-154, 1e-100, 1e-20, 1e20, 1e100, 1e154, 1e155, 1e300)
    sets["extreme"] += [(v, x) for v in (1e-300, 1e-20, 1e-3, 1.0, 17.3, 1e3, 1e6, 1e7) for x in tiny_to_huge]
    return sets


def points_f32() -> Points:
    rng = np.random.default_rng(20260102)
    gaps = (-1.2e-7, 1.2e-7, -1e-4, 1e-4)
    sets: Points = {
        "main": grid(rng, 38, (1e-3, 1e6), (1e-8, 1e8)) + [(0.0, x) for x in log_uniform(rng, 1e-8, 1e8, 56)],
        "small": [tuple(p) for p in rng.uniform(0, 150, (150, 2))],
        "large": [tuple(p) for p in rng.uniform(0, 1e4, (150, 2))],
        "vmf": vmf_points(rng, 40),
        "zero_i": zero_points(rng, "i", 100, True),
        "zero_k": zero_points(rng, "k", 100, True),
        "nearint": near_integer(rng, 200, (1e-7, 1e-2), (1e-8, 1e4)),
        "seams": seam_points(rng, (10, 20, 25, 60, 200), (1, 2), gaps, 5),
        "v0": [(0.0, x) for x in (*log_uniform(rng, 1.2e-38, 1e38, 40), *log_uniform(rng, 1e-10, 1e3, 40))],
        "subnormal": [(v, x) for v in (0.0, 1e-3, 0.5, 1.0, 17.3, 1e3, 1e7) for x in (1.5e-45, 1e-42, 1e-39)],
    }
    tiny_to_huge = (1.2e-38, 1e-30, 1e-19, 1e19, 2e19, 1e38)
    sets["extreme"] = [(v, x) for v in (1e-38, 1e-20, 1e-3, 1.0, 17.3, 1e3, 1e6, 1e7) for x in tiny_to_huge]
    return {name: [(float(np.float32(v)), float(np.float32(x))) for v, x in pts] for name, pts in sets.items()}


def points_hess() -> Points:
    rng = np.random.default_rng(20260103)
    return {
        "main": grid(rng, 14, (1e-3, 1e6), (1e-6, 1e6)) + [(0.0, x) for x in log_uniform(rng, 1e-6, 1e6, 14)],
        "small": [tuple(p) for p in rng.uniform(0, 150, (40, 2))],
        "r25": [tuple(p) for p in rng.uniform(0, 25, (60, 2))],
        "vmf": vmf_points(rng, 10),
        "nearint": near_integer(rng, 60, (1e-15, 1e-2), (1e-8, 1e4)),
        "seams": seam_points(rng, (20, 25, 40, 80, 200, 1000), (1, 2, 10, 12), (-1e-12, 1e-12), 2),
    }


# --- tables -----------------------------------------------------------------------------------------------------------
def columns() -> dict[str, tuple[str, int]]:
    """Column -> (function, component of its jet)."""
    out = {f: (f, 0) for f in VALUES}
    for f in VALUES:
        out |= ({f + "_dv": (f, 1)} if f in DV else {}) | {f + "_dx": (f, 2)}
    return out | {f + s: (f, i) for f in DV for s, i in (("_dvv", 3), ("_dvx", 4), ("_dxx", 5))}


def evaluate(points: Points, orders: tuple[int, ...]) -> dict[str, np.ndarray]:
    wanted = {c: fi for c, fi in columns().items() if (0, 1, 1, 2, 2, 2)[fi[1]] in orders}
    rows = [(float(v), float(x), i) for i, pts in enumerate(points.values()) for v, x in pts]
    out = {"v": np.array([r[0] for r in rows]), "x": np.array([r[1] for r in rows])}
    out |= {"set": np.array([r[2] for r in rows], np.uint8), "sets": np.array(list(points))}
    pairs = {c: np.empty((len(rows), 2)) for c in wanted}
    for n, (v, x, _) in enumerate(rows):
        jets = oracle.all_jets(v, x)
        for c, (f, i) in wanted.items():
            pairs[c][n] = oracle.pair(jets[f][i])
    for c, p in pairs.items():
        out[c + "_hi"], out[c + "_lo"] = p[:, 0], p[:, 1]
    return out


def to_single(lo: np.ndarray) -> np.ndarray:
    return np.where(np.abs(lo) < 3e38, lo, 0).astype(np.float32)


def make() -> None:
    table = evaluate(points_f64(), (0, 1))
    grads = {c for c in table if "_dv" in c or "_dx" in c}
    np.savez_compressed(HERE / "bessel_f64.npz", **{c: a for c, a in table.items() if c not in grads})
    grad = {c: to_single(table[c]) if c.endswith("_lo") else table[c] for c in table if c in grads}
    np.savez_compressed(HERE / "bessel_grad_f64.npz", **grad)
    np.savez_compressed(HERE / "bessel_hess_f64.npz", **evaluate(points_hess(), (2,)))
    table = evaluate(points_f32(), (0, 1))
    table = {c: a for c, a in table.items() if not c.endswith("_lo")}
    table |= {c: table[c].astype(np.float32) for c in ("v", "x")}
    np.savez_compressed(HERE / "bessel_f32.npz", **table)


def load(name: str) -> dict[str, np.ndarray]:
    """A table, with the rows and sets of bessel_f64.npz joined to bessel_grad_f64.npz."""
    with np.load(HERE / name) as file:
        table = dict(file)
    if "v" not in table:
        with np.load(HERE / "bessel_f64.npz") as file:
            table |= {c: file[c] for c in ("v", "x", "set", "sets")}
    return table


# --- an independent route: mpmath -------------------------------------------------------------------------------------
def line_sum(v: mp.mpf, x: mp.mpf, kind: str) -> mp.mpf:
    """log I_v or log K_v for hypot(v, x) > 75: trapezoid rule through the saddle t0 = asinh(v/x) of the integrals DLMF
    10.32.12 and 10.32.9; leaves out a part e^(-2r) of I."""
    r, t0, digits = mp.hypot(v, x), mp.asinh(v / x), mp.mp.dps * mp.log(10)
    h, top = mp.pi * mp.sqrt(2 / (r * digits)), mp.sqrt(2 * digits / r) * 1.2
    total, n = mp.mpf(1), int(top / h) + 2
    for u in (h * j for j in range(1, n)):
        if kind == "i" and u < mp.pi:
            total += 2 * mp.exp(-2 * r * mp.sin(u / 2) ** 2) * mp.cos(v * (mp.sin(u) - u))
        elif kind == "k":
            even, odd = 2 * r * mp.sinh(u / 2) ** 2, v * (mp.sinh(u) - u)
            total += mp.exp(-even - odd) + mp.exp(-even + odd)
    lead = r - v * t0
    return lead + mp.log(total * h / (2 * mp.pi)) if kind == "i" else -lead + mp.log(total * h / 2)


def independent_log(kind: str, v: mp.mpf, x: mp.mpf) -> mp.mpf:
    if kind == "i" and (mp.hypot(v, x) <= 75 or x * x < 40 * (v + 1)):
        return mp.log(mp.hyp0f1(v + 1, x * x / 4)) + v * mp.log(x / 2) - mp.loggamma(v + 1)
    if kind == "k" and mp.hypot(v, x) <= 75:
        return mp.log(mp.besselk(v, x))
    return line_sum(v, x, kind)


def independent(f: str, component: int, v: float, x: float) -> mp.mpf:
    """A component of f's jet at (v, x) by mpmath; derivatives by central differences."""
    scale = 3 * max(0.0, np.log10(x), -np.log10(x), -np.log10(v) if v else 0, np.log10(v) if v else 0)
    with mp.workdps(110 + int(scale)):
        va, xa = mp.mpf(v), mp.mpf(x)
        hv, hx = mp.mpf(10) ** -20 * (va or 1), xa * mp.mpf(10) ** -20

        def at(v: mp.mpf, x: mp.mpf) -> mp.mpf:
            kind = "i" if "iv" in f else "k"
            base = independent_log(kind, v, x)
            if f.endswith("ratio"):
                return mp.exp(independent_log(kind, v + 1, x) - base)
            return base + {"log_ive": -x, "log_kve": x}.get(f, 0)

        def dv(x: mp.mpf) -> mp.mpf:
            return (at(va + hv, x) - at(va - hv, x)) / (2 * hv)

        if component == 0:
            return at(va, xa)
        if component == 1:
            return dv(xa)
        if component == 2:
            return (at(va, xa + hx) - at(va, xa - hx)) / (2 * hx)
        if component == 3:
            return (at(va + hv, xa) - 2 * at(va, xa) + at(va - hv, xa)) / hv**2
        if component == 4:
            return (dv(xa + hx) - dv(xa - hx)) / (2 * hx)
        return (at(va, xa + hx) - 2 * at(va, xa) + at(va, xa - hx)) / hx**2


def stored(table: dict[str, np.ndarray], column: str, n: int) -> tuple[mp.mpf, mp.mpf]:
    """A truth of the table and what its storage may have cost."""
    hi, quantum = mp.mpf(float(table[column + "_hi"][n])), mp.mpf(0)
    lo = table.get(column + "_lo")
    if lo is None:
        return hi, abs(hi) * 2.0**-53
    if lo.dtype == np.float64:
        return hi + float(lo[n]), abs(hi) * 2.0**-105
    quantum = 1.5e-45 if abs(hi) < 1e52 else abs(hi) * 2.0**-53
    return hi + float(lo[n]), abs(hi) * 2.0**-77 + quantum


def check(rows: int, seed: int = 0, tables: tuple[str, ...] = TABLES) -> float:
    """Re-derives `rows` random rows of each table; the worst disagreement in units of the table's own precision."""
    rng, worst = np.random.default_rng(seed), 0.0
    for name in tables:
        table = load(name)
        present = {c: fi for c, fi in columns().items() if c + "_hi" in table}
        for n in rng.choice(len(table["v"]), rows, replace=False):
            v, x = float(table["v"][n]), float(table["x"][n])
            for c, (f, i) in present.items():
                if not 1e-290 < abs(table[c + "_hi"][n]) < np.inf:
                    continue
                truth = independent(f, i, v, x)
                with mp.workdps(60):
                    kept, cost = stored(table, c, n)
                    # differences leave 1e-36 relative; below e^(-2r) the line integral for I is blind
                    floor = mp.mpf(10) ** -55 if i == 0 else abs(truth) * mp.mpf(10) ** -33 + mp.mpf(10) ** -40
                    error = float(abs(kept - truth) / (cost + floor))
                    if error > 1:
                        print(f"{name} {c}({v!r}, {x!r}): {mp.nstr(kept, 40)}, mpmath {mp.nstr(truth, 40)}")
                worst = max(worst, error)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=int, metavar="N", help="re-derive N random rows of each committed table")
    n = parser.parse_args().check
    if n is None:
        make()
        return 0
    worst = check(n)
    print(f"worst disagreement {worst:.3g} of the tables' precision")
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
