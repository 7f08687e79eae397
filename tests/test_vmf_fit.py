"""fokker.vmf.fit: maximum likelihood, exact concentrations, weights, dtypes and degenerate data, on every backend."""

import math

import mpmath
import pytest
import torch
from sphere import F64, close, on, unit

import fokker
from fokker import vmf
from fokker._cli.check import _device


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


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_log_prob_after_a_fit_of_one_point(backend, dtype):
    """k is infinite, or as large as the rounding of |x| allows: the point itself is likely, any other is not."""
    for d in (2, 3, 50):
        x = unit(20, d, dtype=dtype).to(_device(backend))
        for i in range(20):
            mean, k = vmf.fit(x[i : i + 1])
            assert float(k) > 1e4 * d
            assert float(vmf.log_prob(x[i], mean, k)) > 0
            assert float(vmf.log_prob(-x[i], mean, k)) < -1e4


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
