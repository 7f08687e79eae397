"""fokker.vmf, all but samples: identities, extremes, mixtures, fits, shapes, dtypes and errors, on every backend."""

import math

import mpmath
import numpy as np
import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _mixture, vmf
from fokker._cli.check import _device
from fokker.cases import CASES

F64 = torch.float64
FUSED = [b for b in BACKENDS if b in CASES["vmf_log_prob"].backends]
DIMS = (2, 3, 7, 64, 130, 10**6)


@pytest.fixture(params=BACKENDS)
def scalar_backend(request):
    with fokker.use_backend(request.param):
        yield request.param


@pytest.fixture(params=FUSED)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def on(backend, *values, dtype=F64):
    return torch.tensor(values, dtype=dtype, device=_device(backend))


def unit(*shape, dtype=F64):
    x = torch.randn(*shape, dtype=F64)
    return (x / x.norm(dim=-1, keepdim=True)).to(dtype)


def log_area(d):
    """log of the surface of the unit sphere of R^d."""
    return math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)


def close(got, want, rtol=1e-13, atol=0.0):
    want = torch.as_tensor(want, dtype=F64)
    torch.testing.assert_close(got.detach().cpu().double(), want.detach().cpu(), rtol=rtol, atol=atol)


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


def test_divergence_from_and_to_the_uniform(backend):
    mean, other = unit(2, 9).to(_device(backend))
    k = on(backend, 0.0, 1e-5, 0.4, 30.0, 1e6)
    close(vmf.kl_divergence(mean, k, other, 0.0), vmf.kl_uniform(9, k), rtol=1e-13)
    want = vmf.log_normalizer(9, on(backend, 0.0)) - vmf.log_normalizer(9, k)
    close(vmf.kl_divergence(other, 0.0, mean, k), want, rtol=1e-10, atol=1e-14)


# ---- log_prob -----------------------------------------------------------------------------------------------------
def test_log_prob_broadcasts(backend):
    device = _device(backend)
    x, mean, k = unit(5, 1, 6).to(device), unit(3, 6).to(device), on(backend, 0.0, 2.0, 500.0)
    got = vmf.log_prob(x, mean, k)
    assert got.shape == (5, 3)
    close(got, vmf.log_normalizer(6, k) + k * (x * mean).sum(-1), rtol=1e-13, atol=1e-13)
    assert vmf.log_prob(x[0, 0], mean[0], 2.0).shape == ()
    assert vmf.log_prob(x[0, 0], mean[0], torch.tensor([1, 2], device=device)).shape == (2,)
    assert vmf.log_prob(x[:0], mean, k).shape == (0, 3)
    columns = torch.empty(6, 5, dtype=F64, device=device).copy_(x[:, 0].T).T  # rows are not adjacent in memory
    close(vmf.log_prob(columns, mean[1], 2.0), got[:, 1], rtol=4e-15)
    close(vmf.log_prob(x.expand(5, 3, 6), mean.expand(5, 3, 6), k.expand(5, 3)), got, rtol=4e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_log_prob_in_narrow_dtypes(backend, dtype):
    """Narrow inputs taken as exact: float32 within the roundings of a sum of terms of size k, halves rounded once."""
    k = torch.tensor([0.0, 3.0, 200.0, 4096.0]).to(dtype)
    for d in (2, 5, 300, 2049):
        x, mean = unit(6, 1, d, dtype=dtype), unit(d, dtype=dtype)
        got = vmf.log_prob(*(t.to(_device(backend)) for t in (x, mean, k)))
        assert got.dtype == dtype
        with fokker.use_backend("reference"):
            want = vmf.log_prob(x.double(), mean.double(), k.double())
        terms = want.abs() + k.double() + abs(log_area(d))
        allowed = {torch.float32: 2e-7 * terms, torch.float16: 1e-3 * terms, torch.bfloat16: 8e-3 * terms}[dtype]
        finite = want.abs() < torch.finfo(dtype).max
        assert bool(((got.cpu().double() - want).abs() <= allowed)[finite].all()), d


def test_mixed_dtypes_promote(backend):
    device = _device(backend)
    x, mean = unit(4, 5, dtype=torch.float32).to(device), unit(5).to(device)
    assert vmf.log_prob(x, mean, 2.0).dtype == F64
    assert vmf.log_prob(x, mean.float(), on(backend, 2.0)[0]).dtype == torch.float32
    assert vmf.kl_divergence(mean, 1.0, mean.float(), 2.0).dtype == F64


# ---- mixtures -----------------------------------------------------------------------------------------------------
def components(n, k, d, dtype=F64):
    log_w = torch.log_softmax(torch.randn(k, dtype=F64), 0)
    return [t.to(dtype) for t in (unit(n, d), unit(k, d), torch.logspace(-1, 2.5, k, dtype=F64), log_w)]


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 2), (37, 5, 9), (200, 17, 64)])
def test_mixture_is_a_log_sum_of_densities(backend, n, k, d):
    args = [t.to(_device(backend)) for t in components(n, k, d)]
    x, means, concentrations, log_w = args
    each = torch.stack([vmf.log_prob(x, means[j], concentrations[j]) + log_w[j] for j in range(k)], 1)
    total, shares = vmf.mixture_log_prob(*args, return_responsibilities=True)
    close(total, torch.logsumexp(each, 1), rtol=1e-12, atol=1e-12)
    close(shares, torch.softmax(each, 1), rtol=1e-11, atol=1e-15)
    close(shares.sum(1), torch.ones(n), rtol=1e-14)
    assert shares.shape == (n, k) and bool((shares >= 0).all())
    close(vmf.mixture_log_prob(*args), total, rtol=1e-14, atol=1e-14)
    assert vmf.mixture_log_prob(x[:0], *args[1:]).shape == (0,)


def test_mixture_weights_may_be_zero_or_unnormalised(backend):
    x, means, k, log_w = (t.to(_device(backend)) for t in components(20, 3, 4))
    close(vmf.mixture_log_prob(x, means, k, log_w + 700.0), vmf.mixture_log_prob(x, means, k, log_w) + 700, rtol=1e-14)
    off = torch.tensor([0.0, -math.inf, -math.inf], dtype=F64).to(x)
    total, shares = vmf.mixture_log_prob(x, means, k, off, return_responsibilities=True)
    close(total, vmf.log_prob(x, means[0], k[0]), rtol=1e-13, atol=1e-13)
    assert torch.equal(shares, torch.tensor([1.0, 0.0, 0.0], dtype=F64).to(x).expand(20, 3))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_many_tiles_equal_one(backend, dtype, monkeypatch):
    args = [t.to(_device(backend)) for t in components(150, 8, 16, dtype)]
    leaves = [t.clone().requires_grad_() for t in args]
    tolerance = 200 * torch.finfo(dtype).eps  # torch's matrix products may round otherwise at another height

    def run():
        total = vmf.mixture_log_prob(*leaves)
        pair = vmf.mixture_log_prob(*args, return_responsibilities=True)
        return total, *pair, *torch.autograd.grad((total * torch.linspace(0, 1, 150).to(total)).sum(), leaves)

    one = run()
    if backend != "reference":
        monkeypatch.setattr(_mixture, "_tiles", lambda n, k, device: ((i, min(n, i + 32)) for i in range(0, n, 32)))
    for got, want in zip(run(), one, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_mixture_keeps_no_more_than_tiles():
    """n K logits in float32 would be 50 MB; two tiles are 4 MB, the result and its gradient in x 2.4 MB."""
    n, k, d = 50_000, 250, 5
    x, *rest = components(n, k, d, torch.float32)
    leaves = [t.requires_grad_() for t in (x, *rest)]
    with fokker.use_backend("cpu"):
        vmf.mixture_log_prob(x[:8], *rest)
        with torch.profiler.profile(profile_memory=True) as profile:
            torch.autograd.grad(vmf.mixture_log_prob(*leaves).sum(), leaves)
    live = peak = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        live += event.nbytes()
        peak = max(peak, live)
    assert 2e6 < peak < 1.2e7, peak


# ---- fit ----------------------------------------------------------------------------------------------------------
def cloud(n, d, spread=0.5):
    x = unit(d) + spread * torch.randn(n, d, dtype=F64) / math.sqrt(d)
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("d", [2, 3, 40])
def test_fit_maximises_the_likelihood(backend, d):
    x = cloud(300, d).to(_device(backend))
    mean, k = vmf.fit(x)
    assert mean.shape == (d,) and k.shape == ()
    resultant = x.mean(0)
    close(mean, resultant / resultant.norm(), rtol=1e-13, atol=1e-15)
    leaf = k.clone().requires_grad_()
    (slope,) = torch.autograd.grad(vmf.log_prob(x, mean, leaf).mean(), leaf)
    assert abs(float(slope)) <= 1e-14


def test_fit_recovers_the_parameters(backend):
    """k has standard error 1/sqrt(n A'(k)), the direction about sqrt((d-1) / (n k A)); five each allowed."""
    d, k, n = 6, 30.0, 200 if backend == "emu" else 2000
    mean = unit(d).to(_device(backend))
    x = vmf.sample(mean, on(backend, k)[0], (n,), seed=5)
    got_mean, got_k = vmf.fit(x)
    kk = on(backend, k).requires_grad_()
    a = vmf.mean_resultant_length(d, kk)
    (slope,) = torch.autograd.grad(a.sum(), kk)
    assert abs(float(got_k) - k) <= 5 / math.sqrt(n * float(slope))
    assert float((got_mean - mean).norm()) <= 5 * math.sqrt((d - 1) / (n * k * float(a.detach())))


def test_fit_concentration_where_the_resultant_is_exact(backend):
    """+-e1 and +-e2 in exact proportions: R is a short binary fraction, and k is right to 1e-14 relative."""
    device = _device(backend)
    for d in (2, 3, 128, 1000):
        first = torch.eye(d, dtype=F64, device=device)[0]
        for forward, back in ((3, 1), (33, 31), (1023, 1), (129, 127), (8191, 1)):
            x = torch.stack([first, -first])
            w = torch.tensor([forward, back], dtype=F64, device=device)
            mean, k = vmf.fit(x, w)
            assert torch.equal(mean, first)
            with mpmath.workdps(40):
                order, r = mpmath.mpf(d) / 2, mpmath.mpf(forward - back) / (forward + back)
                slope = lambda t: mpmath.besseli(order, t) / mpmath.besseli(order - 1, t) - r  # noqa: B023, E731
                truth = mpmath.findroot(slope, mpmath.mpf(float(k)))
                assert abs(mpmath.mpf(float(k)) / truth - 1) <= 1e-14, (d, forward, back)


def test_fit_weights(backend):
    device = _device(backend)
    x = cloud(40, 7).to(device)
    w = torch.randint(0, 4, (40,), device=device)
    plain = vmf.fit(x.repeat_interleave(w, 0))
    for scale in (1, 1e-200, 1e250, 0.1):
        for got, want in zip(vmf.fit(x, w * on(backend, scale)), plain, strict=True):
            close(got, want, rtol=1e-11, atol=1e-14)
    for got, want in zip(vmf.fit(x.float(), w * on(backend, 1e-60)), plain, strict=True):
        close(got, want, rtol=1e-5, atol=1e-6)
    for got, want in zip(vmf.fit(x, w), plain, strict=True):  # integer weights
        close(got, want, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fit_of_narrow_data(backend, dtype):
    """Data taken as they are, sums in float64: the result is that of the same data in float64, rounded once."""
    x = cloud(700, 33).to(dtype)
    w = torch.rand(700).mul(2000).to(dtype)  # their sum is beyond float16
    got = vmf.fit(x.to(_device(backend)), w.to(_device(backend)))
    with fokker.use_backend("reference"):
        want = vmf.fit(x.double(), w.double(), validate=False)
    eps = torch.finfo(dtype).eps
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        close(a, b, rtol=eps, atol=1e-3 * eps)


def test_fit_degenerate(backend):
    x = unit(6).to(_device(backend))
    first = torch.eye(6, dtype=F64).to(x)[0]
    mean, k = vmf.fit(torch.stack([x, -x]))
    assert torch.equal(mean, first) and float(k) == 0.0
    mean, k = vmf.fit(first[None].expand(5, 6))
    assert torch.equal(mean, first) and float(k) == math.inf
    mean, k = vmf.fit(torch.stack([first, -first, first.roll(1)]), torch.tensor([0.0, 0.0, 2.0]).to(x))
    assert torch.equal(mean, first.roll(1)) and float(k) == math.inf
    assert not vmf.fit(x[None].requires_grad_())[0].requires_grad


def test_fit_layouts_and_threads(backend):
    x = cloud(1000 if backend != "emu" else 200, 24).to(_device(backend))
    want = vmf.fit(x)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5) if backend != "reference" else ():  # torch's own sums depend on it
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(vmf.fit(x), want, strict=True))
    finally:
        torch.set_num_threads(before)
    columns = torch.empty(x.shape[::-1], dtype=F64, device=x.device).copy_(x.T).T
    for got, b in zip(vmf.fit(columns), want, strict=True):
        close(got, b, rtol=1e-12, atol=1e-15)


# ---- bad input ----------------------------------------------------------------------------------------------------
Z = torch.ones(2) * 1j
X, MU = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]), torch.tensor([0.0, 1.0, 0.0])
META = torch.ones(2, device="meta")
BAD = {
    "dim 1": (lambda: vmf.entropy(1, 2.0), ValueError, "dim must be at least 2"),
    "dim float": (lambda: vmf.entropy(3.0, 2.0), TypeError, "dim must be an int, got float"),
    "complex": (lambda: vmf.entropy(3, torch.ones(2, dtype=torch.cfloat)), TypeError, "concentration must be real"),
    "complex numpy": (lambda: vmf.log_normalizer(3, np.ones(2, complex)), TypeError, "concentration must be real"),
    "text": (lambda: vmf.kl_uniform(3, "2"), TypeError, "concentration must be a tensor, a NumPy array or a real"),
    "inverse both": (lambda: vmf.concentration_from_resultant(3, 0.5, complement=0.5), ValueError, "either resultant"),
    "inverse none": (lambda: vmf.concentration_from_resultant(3), ValueError, "either resultant or complement"),
    "inverse complex": (lambda: vmf.concentration_from_resultant(3, Z), TypeError, "resultant must be real"),
    "out shape": (lambda: vmf.entropy(3, torch.ones(2), out=torch.ones(3)), ValueError, r"out must have shape \(2,\)"),
    "log_prob array": (lambda: vmf.log_prob(X.numpy(), MU, 1.0), TypeError, "x must be a tensor, got ndarray"),
    "log_prob dims": (lambda: vmf.log_prob(X, MU[:2], 1.0), ValueError, r"and mean_direction \(2,\) must agree"),
    "log_prob 0-d": (lambda: vmf.log_prob(X[0, 0], MU, 1.0), ValueError, "x must have shape"),
    "log_prob dim 1": (lambda: vmf.log_prob(X[:, :1], MU[:1], 1.0), ValueError, "dim must be at least 2"),
    "log_prob int": (lambda: vmf.log_prob(X.long(), MU, 1.0), TypeError, "x must be float16, bfloat16, float32 or"),
    "log_prob complex": (lambda: vmf.log_prob(X, MU + 0j, 1.0), TypeError, "mean_direction must be float16"),
    "log_prob complex k": (lambda: vmf.log_prob(X, MU, Z), TypeError, "concentration must be real"),
    "log_prob shapes": (lambda: vmf.log_prob(X, MU, torch.ones(3)), ValueError, "batch dimensions do not broadcast"),
    "log_prob device": (lambda: vmf.log_prob(X, MU, META), TypeError, "concentration is on meta, x on cpu"),
    "kl dims": (lambda: vmf.kl_divergence(X, 1.0, MU[:2], 1.0), ValueError, "mean_p .* and mean_q .* must agree"),
    "kl shapes": (lambda: vmf.kl_divergence(X, torch.ones(3), MU, 1.0), ValueError, "do not broadcast"),
    "kl complex": (lambda: vmf.kl_divergence(X, Z, MU, 1.0), TypeError, "concentration_p must be real"),
    "kl text": (lambda: vmf.kl_divergence(X, "1", MU, 1.0), TypeError, "concentration_p must be a tensor"),
    "fit list": (lambda: vmf.fit([[1.0, 0.0]]), TypeError, "x must be a real floating tensor, got list"),
    "fit int": (lambda: vmf.fit(X.long()), TypeError, "x must be a real floating tensor, got torch.int64"),
    "fit complex": (lambda: vmf.fit(X + 0j), TypeError, "x must be a real floating tensor"),
    "fit empty": (lambda: vmf.fit(X[:0]), ValueError, r"n >= 1, got \(0, 3\)"),
    "fit one row": (lambda: vmf.fit(X[0]), ValueError, r"x must have shape \(n, d\)"),
    "fit dim 1": (lambda: vmf.fit(torch.ones(4, 1)), ValueError, "dim must be at least 2"),
    "fit not unit": (lambda: vmf.fit(2 * X), ValueError, "rows of x must be unit vectors"),
    "fit nan": (lambda: vmf.fit(torch.stack([MU, MU * math.nan, MU])), ValueError, "rows of x must be unit vectors"),
    "weights list": (lambda: vmf.fit(X, [1.0, 2.0]), TypeError, "weights must be a tensor, got list"),
    "weights shape": (lambda: vmf.fit(X, torch.ones(3)), ValueError, r"weights \(3,\) must have one entry a row of x"),
    "weights sign": (lambda: vmf.fit(X, torch.tensor([2.0, -1.0])), ValueError, "weights must be non-negative"),
    "weights nan": (lambda: vmf.fit(X, torch.tensor([2.0, math.nan])), ValueError, "weights must be non-negative"),
    "weights inf": (lambda: vmf.fit(X, torch.tensor([2.0, math.inf])), ValueError, "weights must be .*finite"),
    "weights zero": (lambda: vmf.fit(X, torch.zeros(2)), ValueError, "weights must not sum to zero"),
    "weights complex": (lambda: vmf.fit(X, Z), TypeError, "weights must be real"),
    "weights device": (lambda: vmf.fit(X, META), TypeError, "weights is on meta, x on cpu"),
    "mixture shapes": (lambda: vmf.mixture_log_prob(X, X, X[0], X[0, :2]), ValueError, r"log_weights \(K,\) expected"),
    "mixture none": (lambda: vmf.mixture_log_prob(X, X[:0], META[:0], META[:0]), ValueError, "at least one component"),
    "mixture list": (lambda: vmf.mixture_log_prob(X, X, [1.0, 1.0], X[0, :2]), TypeError, "concentrations must be a"),
    "mixture device": (lambda: vmf.mixture_log_prob(X, X, META, torch.ones(2)), TypeError, "concentrations is on meta"),
    "mixture complex": (lambda: vmf.mixture_log_prob(X, X, torch.ones(2), Z), TypeError, "must be real"),
    "mixture dim 1": (lambda: vmf.mixture_log_prob(X[:, :1], X[:, :1], X[0, :2], X[0, :2]), ValueError, "at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_named_error(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
