"""The references at the ends of their range: tiny arguments, concentrations near the largest number there is."""

import math

import mpmath
import pytest
import torch

from fokker.reference import bessel, vmf

F64 = torch.float64


@pytest.mark.parametrize("v", [1e-12, 1e-6, 0.02, 0.5, 0.6])
def test_mixed_derivative_of_log_k_at_tiny_arguments(v):
    """d2/dvdx log K: relative 1e-14 also where it is v times a number, and all of it cancels in 1 - 2 d rho/dv."""
    for x in (1e-300, 1e-20, 1e-3, 0.9):
        with mpmath.workdps(60):
            h = mpmath.mpf(v) * mpmath.mpf(10) ** -15

            def slope(t, x=x):
                return -(mpmath.besselk(t + 1, x) + mpmath.besselk(t - 1, x)) / (2 * mpmath.besselk(t, x))

            truth = (slope(mpmath.mpf(v) + h) - slope(mpmath.mpf(v) - h)) / (2 * h)
            for name in ("log_kv", "log_kve"):
                _, got, _ = bessel.bessel_hess(name, torch.tensor(v, dtype=F64), torch.tensor(x, dtype=F64))
                assert float(abs(mpmath.mpf(float(got)) / truth - 1)) < 1e-14, x


@pytest.mark.parametrize("d", [2, 3, 64, 10**6])
def test_concentration_from_the_smallest_complements(d):
    """1 - A = (d-1) / (2k) to its last digit there; past the largest number the concentration is infinite."""
    complement = torch.tensor([1e-200, 1e-290, 1e-299, 1e-300, 1e-303, 1e-306, 1e-308, 5e-324], dtype=F64)
    got = vmf.concentration_from_resultant(d, complement=complement)
    for k, c in zip(got.tolist(), complement.tolist(), strict=True):
        want = mpmath.mpf(d - 1) / 2 / mpmath.mpf(c)
        if want > 1.7e308:
            assert k == math.inf
        else:
            assert float(abs(k / want - 1)) < 4e-15, c
