"""The scalar functions and divergences of fokker.vmf: extremes, integrals, inverses, 80 digits, on every backend."""

import math

import mpmath
import numpy as np
import pytest
import torch
from conftest import BACKENDS
from sphere import F64, close, log_area, on, unit

import fokker
from fokker import vmf
from fokker._cli.check import _device

DIMS = (2, 3, 7, 64, 130, 10**6)


@pytest.fixture(params=BACKENDS)
def scalar_backend(request):
    with fokker.use_backend(request.param):
        yield request.param


# ---- functions of the concentration -------------------------------------------------------------------------------
@pytest.mark.parametrize("d", DIMS)
def test_concentration_zero_is_uniform_and_infinity_a_point(scalar_backend, d):
    k = on(scalar_backend, 0.0, math.inf)
    for f, at_zero, at_infinity in (
        (vmf.log_normalizer, -log_area(d), -math.inf),
        (vmf.mean_resultant_length, 0.0, 1.0),
        (vmf.entropy, log_area(d), -math.inf),
        (vmf.kl_uniform, 0.0, math.inf),
        (vmf.concentration_from_resultant, 0.0, math.nan),
    ):
        got = f(d, k).tolist()
        assert got[0] == pytest.approx(at_zero, rel=1e-14, abs=0), f.__name__
        assert got[1] == at_infinity or (math.isnan(got[1]) and math.isnan(at_infinity)), f.__name__
    assert vmf.mean_resultant_length(d, k, complement=True).tolist() == [1.0, 0.0]
    ends = on(scalar_backend, 0.0, 1.0)
    assert vmf.concentration_from_resultant(d, ends).tolist() == [0.0, math.inf]
    assert vmf.concentration_from_resultant(d, complement=ends).tolist() == [math.inf, 0.0]
    bad = on(scalar_backend, -1.0, math.nan)
    for name in ("log_normalizer", "mean_resultant_length", "entropy", "kl_uniform", "concentration_from_resultant"):
        assert bool(getattr(vmf, name)(d, bad).isnan().all()), name


@pytest.mark.parametrize("d", DIMS)
def test_huge_concentration_is_a_gaussian(scalar_backend, d):
    """k >> d^2: a normal distribution of variance 1/k in d - 1 directions, to a relative d/k."""
    k = on(scalar_backend, 1e23, 1e40, 1e300)
    n = d - 1
    gaussian = n / 2 * (1 + math.log(2 * math.pi) - torch.log(k))
    close(vmf.mean_resultant_length(d, k, complement=True), n / 2 / k, rtol=4e-15)
    close(vmf.entropy(d, k), gaussian, rtol=1e-14)
    close(vmf.kl_uniform(d, k), -gaussian + log_area(d), rtol=1e-14)
    close(vmf.log_normalizer(d, k), -k, rtol=4e-15)
    close(vmf.concentration_from_resultant(d, complement=n / 2 / k), k, rtol=1e-14)


def quadrature(d, k):
    """Angles to the mean and weights: the surface of S^{d-2}, sin^{d-2} and a Gauss-Legendre rule on the mass."""
    n = d - 2
    mode = 2 * math.atan2(math.sqrt(n * n / (math.hypot(n, 2 * k) + 2 * k)), math.sqrt(n + 2 * k)) if n else 0.0
    mode = math.acos(2 * k / (n + math.hypot(n, 2 * k))) if n else mode
    reach = 10 / math.sqrt(n + k + 1)
    low, high = max(0.0, mode - reach), min(math.pi, mode + reach)
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(120))
    angle = low + (nodes + 1) * (high - low) / 2
    return angle, weights * ((high - low) / 2) * torch.exp(log_area(d - 1) + n * torch.log(torch.sin(angle)))


@pytest.mark.parametrize("d", [2, 3, 4, 9, 40])
@pytest.mark.parametrize("k", [0.0, 0.3, 6.0, 70.0, 3000.0])
def test_scalars_are_integrals_of_the_density(backend, d, k):
    """Integral of p = 1, of p cos = A, of p log p = -entropy, of p log(p / uniform) = KL: to 1e-12."""
    angle, weight = quadrature(d, k)
    x = torch.zeros(len(angle), d, dtype=F64)
    x[:, 0], x[:, 1] = torch.cos(angle), torch.sin(angle)
    first = torch.eye(d, dtype=F64)[0]
    device = _device(backend)
    log_p = vmf.log_prob(x.to(device), first.to(device), on(backend, k)[0]).cpu()
    p = weight * torch.exp(log_p)
    kk = on(backend, k)
    close(p.sum(), 1.0, rtol=1e-12)
    close((p * torch.cos(angle)).sum()[None], vmf.mean_resultant_length(d, kk).cpu(), rtol=1e-12, atol=1e-14)
    haversine = 2 * torch.sin(angle / 2) ** 2
    close((p * haversine).sum()[None], vmf.mean_resultant_length(d, kk, complement=True).cpu(), rtol=1e-11)
    close(-(p * log_p).sum()[None], vmf.entropy(d, kk).cpu(), rtol=1e-12, atol=1e-12)
    close((p * (log_p + log_area(d))).sum()[None], vmf.kl_uniform(d, kk).cpu(), rtol=1e-11, atol=1e-13)
    kk.requires_grad_()
    (slope,) = torch.autograd.grad(vmf.log_normalizer(d, kk).sum(), kk)
    close(-slope, (p * torch.cos(angle)).sum()[None], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("d", DIMS)
def test_inverse_of_the_resultant(scalar_backend, d):
    """A(inverse(R)) = R and 1 - A(inverse(1 - R)) = 1 - R, for R and 1 - R down to 1e-12."""
    small = torch.logspace(-12, -0.31, 60, dtype=F64).to(_device(scalar_backend))
    r = torch.cat([small, 1 - small.flip(0)])
    k = vmf.concentration_from_resultant(d, r)
    close(vmf.mean_resultant_length(d, k), r, rtol=2e-14)
    k = vmf.concentration_from_resultant(d, complement=r)
    close(vmf.mean_resultant_length(d, k, complement=True), r, rtol=2e-14)
    # The complement determines a large k, the resultant a small one, each to 1e-14.
    k = torch.logspace(-12, 12, 60, dtype=F64).to(small)
    low, high = k < d / 4, k > 4 * d
    close(vmf.concentration_from_resultant(d, vmf.mean_resultant_length(d, k[low])), k[low], rtol=2e-14)
    complement = vmf.mean_resultant_length(d, k[high], complement=True)
    close(vmf.concentration_from_resultant(d, complement=complement), k[high], rtol=2e-14)


def test_both_forms_of_the_inverse_agree_where_both_are_exact(scalar_backend):
    r = torch.arange(1, 1024, dtype=F64).to(_device(scalar_backend)) / 1024
    for d in DIMS:
        close(vmf.concentration_from_resultant(d, r), vmf.concentration_from_resultant(d, complement=1 - r), rtol=2e-14)


def test_scalars_take_numpy_numbers_and_out():
    k = np.array([[0.0, 0.5], [20.0, 1e5]])
    for f in (vmf.log_normalizer, vmf.mean_resultant_length, vmf.entropy, vmf.kl_uniform):
        got = f(12, k)
        assert isinstance(got, np.ndarray) and got.dtype == np.float64 and got.shape == k.shape
        np.testing.assert_array_equal(got, f(12, torch.from_numpy(k)).numpy())
        assert f(12, k.astype(np.float32)).dtype == np.float32
        assert isinstance(f(12, 3.0), np.float64)
        out = np.empty_like(k)
        assert f(12, k, out=out) is out
        np.testing.assert_array_equal(out, got)
        assert f(12, torch.tensor([1, 2])).dtype == torch.get_default_dtype()
    got = vmf.mean_resultant_length(12, k, complement=True)
    np.testing.assert_allclose(got + vmf.mean_resultant_length(12, k), 1.0, rtol=4e-16)
    inverse = vmf.concentration_from_resultant(12, complement=np.array([0.25, 1.0]))
    assert isinstance(inverse, np.ndarray) and inverse[1] == 0.0
    assert vmf.entropy(np.int64(12), 3.0) == vmf.entropy(12, 3.0)


# ---- divergences --------------------------------------------------------------------------------------------------
def exact_kl(d, p, q, mean_p, mean_q):
    with mpmath.workdps(80):

        def log_c(k):
            half = mpmath.mpf(d) / 2
            if not k:
                return mpmath.log(mpmath.gamma(half) / 2) - half * mpmath.log(mpmath.pi)
            log_i = mpmath.log(mpmath.besseli(half - 1, k))
            return (half - 1) * mpmath.log(k) - half * mpmath.log(2 * mpmath.pi) - log_i

        p, q = mpmath.mpf(p), mpmath.mpf(q)
        a = mpmath.besseli(mpmath.mpf(d) / 2, p) / mpmath.besseli(mpmath.mpf(d) / 2 - 1, p) if p else mpmath.mpf(0)
        gap = sum((mpmath.mpf(x) - mpmath.mpf(y)) ** 2 for x, y in zip(mean_p.tolist(), mean_q.tolist(), strict=True))
        return float(log_c(p) - log_c(q) + a * (p - q) + a * q * gap / 2)


@pytest.mark.parametrize("d", [2, 3, 17, 64])
def test_divergence_of_near_and_far_pairs(backend, d):
    """Against 80 digits, relative 2e-13, the result going down to 1e-24: the definition has lost every digit there."""
    mean = unit(d)
    for p, ratio, turn in (
        (3.0, 1 + 1e-12, 0.0),
        (3.0, 1.0, 1e-9),
        (50.0, 1 - 1e-7, 1e-8),
        (0.01, 1.001, 0.3),
        (900.0, 1.2, 0.5),
        (0.0, 1.0, 0.7),
        (2.0, 0.0, 1.0),
        (40.0, 1e-3, 1.5),
    ):
        q = p * ratio if p else 0.25
        other = mean + turn * unit(d)
        other = other / other.norm()
        device = _device(backend)
        args = mean.to(device), on(backend, p)[0], other.to(device), on(backend, q)[0]
        got, want = vmf.kl_divergence(*args), exact_kl(d, p, q, mean, other)
        assert float(got) == pytest.approx(want, rel=2e-13, abs=0), (p, ratio, turn)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_divergence_of_equals_is_exactly_zero_and_else_positive(backend, dtype):
    device = _device(backend)
    for d in (2, 3, 65, 4097):
        k = torch.cat([torch.zeros(1), torch.logspace(-4, 6, 40)]).to(device, dtype)
        mean = unit(41, d, dtype=dtype).to(device)
        assert not bool(vmf.kl_divergence(mean, k, mean, k).any())
        near = k * (1 + 4 * torch.finfo(dtype).eps)
        assert bool((vmf.kl_divergence(mean, k, mean, near) >= 0).all())
        assert bool((vmf.kl_divergence(mean, k, mean.roll(1, 0), k.flip(0)) >= 0).all())


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
def test_divergence_from_and_to_a_point_mass(backend, dtype):
    """Infinite, but 0 between equal point masses; other pairs of the same call are as they would be alone."""
    mean, other = unit(2, 6, dtype=dtype).to(_device(backend))
    k = torch.tensor([0.0, 3.0, math.inf], dtype=dtype, device=mean.device)
    plain = vmf.kl_divergence(mean, k[:2, None], other, k[:2])
    for q, same in ((mean, 0.0), (other, math.inf)):
        got = vmf.kl_divergence(mean, k[:, None], q, k)
        assert got.dtype == dtype and got[2].tolist() == got[:, 2].tolist() == [math.inf, math.inf, same]
    assert torch.equal(got[:2, :2], plain) and bool(plain.isfinite().all())
    leaf = k.clone().requires_grad_()
    (slope,) = torch.autograd.grad(vmf.kl_divergence(mean, leaf, other, 2.0)[:2].sum(), leaf)
    assert bool(slope[:2].isfinite().all())


def test_divergence_from_and_to_the_uniform(backend):
    mean, other = unit(2, 9).to(_device(backend))
    k = on(backend, 0.0, 1e-5, 0.4, 30.0, 1e6)
    close(vmf.kl_divergence(mean, k, other, 0.0), vmf.kl_uniform(9, k), rtol=1e-13)
    want = vmf.log_normalizer(9, on(backend, 0.0)) - vmf.log_normalizer(9, k)
    close(vmf.kl_divergence(other, 0.0, mean, k), want, rtol=1e-10, atol=1e-14)
