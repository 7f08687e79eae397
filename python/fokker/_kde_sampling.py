"""Exact draws of the distance |u| of a point distributed as a radial kernel in R^d."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def radii(rng: Any, kernel: str, dim: int, n: int, nu: float) -> np.ndarray:
    """``(n,)`` radii with density proportional to r^{d-1} K(r), at bandwidth 1.

    Gamma laws for exponential and Matern kernels (a mixture of them, one a term of the polynomial), beta laws for the
    compact ones, and for cosine rejection from epanechnikov's: cos(pi r / 2) <= 1 - r^2 <= 1.28 cos(pi r / 2).
    """
    if kernel == "exponential":
        return rng.gamma(dim, size=n)
    if kernel in ("matern32", "matern52"):
        terms = [1.0, float(dim)] + ([dim * (dim + 1) / 3.0] if kernel == "matern52" else [])
        p = np.array(terms) / math.fsum(terms)
        shape = dim + rng.choice(len(terms), size=n, p=p)
        return rng.gamma(shape) / math.sqrt(3.0 if kernel == "matern32" else 5.0)
    if kernel in ("student_t", "cauchy"):
        nu = 1.0 if kernel == "cauchy" else nu
        return np.sqrt(rng.chisquare(dim, size=n) / (rng.chisquare(nu, size=n) / nu))
    if kernel == "tophat":
        return rng.uniform(size=n) ** (1.0 / dim)
    if kernel == "epanechnikov":
        return np.sqrt(rng.beta(0.5 * dim, 2.0, size=n))
    if kernel == "linear":
        return rng.beta(dim, 2.0, size=n)
    if kernel == "cosine":
        found = np.empty(0)
        while len(found) < n:
            r = np.sqrt(rng.beta(0.5 * dim, 2.0, size=2 * (n - len(found)) + 16))
            keep = rng.uniform(size=len(r)) * (1.0 - r * r) < np.cos(0.5 * math.pi * r)
            found = np.concatenate([found, r[keep]])
        return found[:n]
    raise ValueError(f"no radii for kernel {kernel!r}")
