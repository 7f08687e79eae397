"""Writes the truth table of the von Mises-Fisher scalars, from tests/oracle.py; deterministic, 10 s on one core.

    python tests/truth/make_vmf.py            write vmf_f64.npz
    python tests/truth/make_vmf.py --check N  re-derive N random rows of each part with mpmath, by other formulas

All numbers float64; truth = _hi + _lo to 1e-31. dims 2, 3, 4, 5, 10, 64, 128, 768, 2048, 32768, 100000, 1000000.
forward   dim (int64), concentration (0, 1e-300.., then stratified log-uniform in [1e-12, 1e8]), and _hi, _lo of
          log_normalizer (log C_d), mean_resultant_length (A), mean_resultant_complement (1 - A), resultant_derivative
          (dA/dk), resultant_second_derivative, entropy, kl_uniform (KL(vMF || uniform))
inverse   inverse_dim, inverse_input, inverse_is_complement (bool: the input is 1 - R, else R),
          inverse_concentration_hi, _lo: the root of A(k) = R; R and 1 - R log-uniform in [1e-12, 0.5] each, and R as
          1 - (1e-12..0.5) rounded to float64, which is then the exact input
bregman   bregman_dim, bregman_p, bregman_q, bregman_hi, _lo = log C(p) - log C(q) + A(p)(p - q): KL(vMF_p || vMF_q) at
          equal mean directions; p = q, p within 1e-8..1e-2 of q, far, and p or q zero
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import mpmath as mp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import oracle  # noqa: E402
from make_bessel import log_uniform  # noqa: E402

DIMS = (2, 3, 4, 5, 10, 64, 128, 768, 2048, 32768, 100000, 1000000)


def make() -> None:
    rng = np.random.default_rng(20260104)
    forward = [(d, k) for d in DIMS for k in (0, 1e-300, 1e-160, 1e-80, 1e-30, *log_uniform(rng, 1e-12, 1e8, 45))]
    out = {"dim": np.array([d for d, _ in forward]), "concentration": np.array([k for _, k in forward])}
    rows = [oracle.vmf(d, float(k)) for d, k in forward]
    for name in oracle.VMF_FUNCTIONS:
        out[name + "_hi"], out[name + "_lo"] = np.array([oracle.pair(row[name]) for row in rows]).T

    inverse = []
    for d in DIMS:
        tiny = log_uniform(rng, 1e-12, 0.5, 20)
        inverse += [(d, t, False) for t in tiny] + [(d, t, True) for t in log_uniform(rng, 1e-12, 0.5, 20)]
        inverse += [(d, 1 - t, False) for t in log_uniform(rng, 1e-12, 0.5, 20)]
    for name, column in zip(("dim", "input", "is_complement"), zip(*inverse, strict=True), strict=True):
        out["inverse_" + name] = np.array(column)
    roots = [
        oracle.concentration_from_resultant(d, **{"complement" if c else "resultant": float(t)}) for d, t, c in inverse
    ]
    out["inverse_concentration_hi"], out["inverse_concentration_lo"] = np.array([oracle.pair(k) for k in roots]).T

    bregman = []
    for d in DIMS:
        q = log_uniform(rng, 1e-6, 1e8, 20)
        bregman += [(d, k, k) for k in q[::5]] + [(d, k, float(rng.choice(q))) for k in log_uniform(rng, 1e-6, 1e8, 16)]
        bregman += [(d, k * (1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-8, -2)), k) for k in q]
        bregman += [(d, 0.0, k) for k in q[::7]] + [(d, k, 0.0) for k in q[::7]]
    for name, column in zip(("dim", "p", "q"), zip(*bregman, strict=True), strict=True):
        out["bregman_" + name] = np.array(column)
    values = [oracle.bregman(d, float(p), float(q)) for d, p, q in bregman]
    out["bregman_hi"], out["bregman_lo"] = np.array([oracle.pair(b) for b in values]).T
    np.savez_compressed(HERE / "vmf_f64.npz", **out)


# --- an independent route: mpmath -------------------------------------------------------------------------------------
def independent_log_i(v: mp.mpf, k: mp.mpf) -> mp.mpf:
    """log I_v, as in make_bessel.independent_log, with the power series wherever it ends soon."""
    from make_bessel import line_sum

    if mp.hypot(v, k) <= 75 or k * k < 400 * (v + 1):
        return mp.log(mp.hyp0f1(v + 1, k * k / 4)) + v * mp.log(k / 2) - mp.loggamma(v + 1)
    return line_sum(v, k, "i")


def independent(dim: int, concentration: mp.mpf | float) -> dict[str, mp.mpf]:
    """oracle.VMF_FUNCTIONS at concentration > 0 and the current mpmath precision; derivatives by Riccati's equation."""
    v, k = mp.mpf(dim) / 2 - 1, mp.mpf(concentration)
    log_i = independent_log_i(v, k)
    a = mp.exp(independent_log_i(v + 1, k) - log_i)
    log_c = v * mp.log(k) - (v + 1) * mp.log(2 * mp.pi) - log_i
    slope = 1 - a * a - (dim - 1) * a / k
    curve = -2 * a * slope - (dim - 1) * (slope / k - a / k**2)
    uniform = mp.loggamma(v + 1) - mp.log(2) - (v + 1) * mp.log(mp.pi)
    numbers = log_c, a, 1 - a, slope, curve, -(log_c + k * a), log_c + k * a - uniform
    return dict(zip(oracle.VMF_FUNCTIONS, numbers, strict=True))


def check(rows: int, seed: int = 0) -> float:
    """Re-derives `rows` random rows of each part; the worst relative error in units of 1e-30."""
    rng, worst = np.random.default_rng(seed), 0.0
    with np.load(HERE / "vmf_f64.npz") as file:
        table = dict(file)

    def compare(what: str, hi: float, lo: float, truth: mp.mpf) -> None:
        nonlocal worst
        error = float(abs(mp.mpf(float(hi)) + mp.mpf(float(lo)) - truth) / abs(truth)) / 1e-30
        # hi + lo of a subnormal-sized truth has no room for lo
        error = error if abs(hi) > 1e-270 else error * 1e-30 / 1e-15
        worst = max(worst, error)
        if error > 1:
            print(f"{what}: table {hi!r}, mpmath {mp.nstr(truth, 40)}, off by {error:.3g}")

    def digits(dim: int, *k: float) -> int:
        return 120 + int(4 * max(max(0, np.log10(dim / q), np.log10(q)) for q in k))

    for n in rng.choice(np.flatnonzero(table["concentration"] > 0), rows, replace=False):
        d, k = int(table["dim"][n]), float(table["concentration"][n])
        with mp.workdps(digits(d, k)):
            for name, truth in independent(d, k).items():
                if abs(table[name + "_hi"][n]) > 1e-300:
                    compare(f"{name}({d}, {k!r})", table[name + "_hi"][n], table[name + "_lo"][n], truth)
    for n in rng.choice(len(table["inverse_dim"]), rows, replace=False):
        d, t = int(table["inverse_dim"][n]), float(table["inverse_input"][n])
        with mp.workdps(130):
            hi, lo = (float(table["inverse_concentration" + part][n]) for part in ("_hi", "_lo"))
            k = mp.mpf(hi) + mp.mpf(lo)
            now = independent(d, k)
            wanted = 1 - mp.mpf(t) if table["inverse_is_complement"][n] else mp.mpf(t)
            step = (now["mean_resultant_length"] - wanted) / now["resultant_derivative"]
            compare(f"inverse({d}, {t!r})", hi, lo, k - step)
    positive = np.minimum(table["bregman_p"], table["bregman_q"]) * table["bregman_hi"] > 0
    for n in rng.choice(np.flatnonzero(positive), rows, replace=False):
        d, p, q = int(table["bregman_dim"][n]), float(table["bregman_p"][n]), float(table["bregman_q"][n])
        with mp.workdps(digits(d, p, q) + 40):
            at_p, at_q = independent(d, p), independent(d, q)
            truth = at_p["mean_resultant_length"] * (mp.mpf(p) - mp.mpf(q))
            truth += at_p["log_normalizer"] - at_q["log_normalizer"]
            compare(f"bregman({d}, {p!r}, {q!r})", table["bregman_hi"][n], table["bregman_lo"][n], truth)
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=int, metavar="N", help="re-derive N random rows of each part")
    n = parser.parse_args().check
    if n is None:
        make()
        return 0
    worst = check(n)
    print(f"worst relative error {worst:.3g}e-30")
    return 0 if worst <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
