"""Log-Bessel functions beside SciPy, their gradients beside a forward, the AVX2 kernels beside the AVX-512 ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .. import _native, bessel
from .benches import F32, F64, Bench, Run


def _uniform(g: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    return g.uniform(low, high, n)


def _log(g: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    return 10 ** g.uniform(np.log10(low), np.log10(high), n)


#: name -> (orders, arguments), the ranges of the design page; 8192 points
RANGES: dict[str, Callable[[np.random.Generator, int], tuple[Any, np.ndarray]]] = {
    "small U[0,150]^2": lambda g, n: (_uniform(g, n, 0, 150), _uniform(g, n, 0, 150)),
    "large U[0,1e4]^2": lambda g, n: (_uniform(g, n, 0, 1e4), _uniform(g, n, 0, 1e4)),
    "vMF d=3": lambda g, n: (np.float64(0.5), _log(g, n, 1, 1e5)),
    "vMF d=128": lambda g, n: (np.float64(63.0), _log(g, n, 1, 1e5)),
    "vMF d=2048": lambda g, n: (np.float64(1023.0), _log(g, n, 1, 1e5)),
    "vMF d=32768": lambda g, n: (np.float64(16383.0), _log(g, n, 1, 1e5)),
    "Matern v U[.5,5]": lambda g, n: (_uniform(g, n, 0.5, 5), _log(g, n, 0.01, 30)),
    "Matern v U[.5,1.5]": lambda g, n: (_uniform(g, n, 0.5, 1.5), _log(g, n, 0.01, 30)),
    "whole domain, random": lambda g, n: (_log(g, n, 1e-3, 1e6), _log(g, n, 1e-8, 1e8)),
}
_SEVEN = ("vMF d=3", "vMF d=32768", "whole domain, random")


def _bessel(points: int) -> Iterator[Bench]:
    try:
        from scipy import special
    except ImportError:
        special = None
    for name, function, scaled, sign in (("log_iv", bessel.log_iv, "ive", 1.0), ("log_kv", bessel.log_kv, "kve", -1.0)):
        for label, make in RANGES.items():
            g = np.random.default_rng(7)
            v, x = make(g, points)
            tv, tx = torch.as_tensor(v), torch.as_tensor(x)
            fv, fx = tv.float(), tx.float()
            out = torch.empty(points, dtype=F64)
            contenders: dict[str, Run] = {
                "fokker": functools.partial(function, tv, tx, out=out),
                "fokker float32": functools.partial(function, fv, fx, out=torch.empty(points, dtype=F32)),
            }
            if special is not None:
                contenders["SciPy"] = functools.partial(_scipy_log, getattr(special, scaled), v, x, sign)
            ask = 7.0 if label in _SEVEN else 10.0
            if name == "log_kv":
                ask = 1.5 if label.endswith(("1.5]", "d=3")) else 10.0  # orders up to 1.5: SciPy's K is fast there
            elif label.endswith("1.5]"):
                ask = 0.0
            scalar = tv.dim() == 0
            yield Bench(
                f"{name}, {label}",
                contenders,
                {"SciPy": ask} if ask and special is not None else {},
                elements=points,
                bytes=points * (16 if scalar else 24),
                note=f"float64, 8192 points; SciPy: log({scaled}) {'+' if sign > 0 else '-'} x",
            )


def _scipy_log(f: Any, v: Any, x: Any, sign: float) -> Any:
    with np.errstate(all="ignore"):
        return np.log(f(v, x)) + sign * x


def _bessel_gradients(points: int) -> Iterator[Bench]:
    for i, name in enumerate(bessel.FUNCTIONS):
        for label in ("small U[0,150]^2", "large U[0,1e4]^2", "vMF d=128"):
            v, x = RANGES[label](np.random.default_rng(7), points)
            tv, tx = torch.as_tensor(v), torch.as_tensor(x)
            yield Bench(
                f"{name} gradient, {label}",
                {
                    "fokker": functools.partial(bessel._grad, tv, tx, i, True, True),
                    "forward": functools.partial(getattr(bessel, name), tv, tx),
                },
                {"forward": 1 / 2.5},
                elements=points,
                note="both derivatives beside one forward: at most 2.5 times",
            )


def _isa(points: int) -> Iterator[Bench]:
    if _native.cpu is None or _native.cpu.isa() != "avx512":
        return

    def under(isa: str, run: Run) -> Run:
        def go() -> Any:
            _native.cpu.set_isa(isa)
            try:
                return run()
            finally:
                _native.cpu.set_isa("avx512")

        return go

    for name in ("log_iv", "log_kv"):
        for label in ("small U[0,150]^2", "large U[0,1e4]^2", "vMF d=128", "whole domain, random"):
            v, x = RANGES[label](np.random.default_rng(7), points)
            run = functools.partial(getattr(bessel, name), torch.as_tensor(v), torch.as_tensor(x))
            yield Bench(
                f"{name} AVX2, {label}",
                {"fokker": under("avx2", run), "AVX-512": under("avx512", run)},
                {"AVX-512": 0.45},
                elements=points,
                note="the AVX2 kernels beside the AVX-512 ones",
            )


def benches(points: int) -> Iterator[Bench]:
    yield from _bessel(points)
    yield from _bessel_gradients(points)
    yield from _isa(points)
