"""Gradients of fokker.vmf.rsample on every backend: unbiased, the reference's, and under transforms and compilation."""

import math

import pytest
import torch
from conftest import BACKENDS, FUSED
from sphere import F64, NATIVE, SIGMAS, directions, many, on, unit

import fokker
from fokker import vmf
from fokker._cli.check import _device
from fokker.reference import vmf as scalars


# ---- the gradient -------------------------------------------------------------------------------------------------
def resultant(d, k):
    """A and A' of the reference."""
    k = torch.tensor(k, dtype=F64)
    a, slope = scalars.mean_resultant_length(d, k), scalars.resultant_derivative(d, k)
    return float(a), float(slope)


def test_the_gradient_in_the_concentration_is_implicit(backend):
    """d = 5, k = 2: dE[mu.x]/dk = A'(k) = 0.14739; the gradient through the rejection step alone gives 0.1277."""
    d, n = 5, many(backend, 60_000)
    mean = unit(d).to(_device(backend))
    k = torch.full((n,), 2.0, dtype=F64, device=mean.device, requires_grad=True)
    x = vmf.rsample(mean, k, seed=21)
    (each,) = torch.autograd.grad((x @ mean).sum(), k)
    error = float(each.std()) / math.sqrt(n)
    assert resultant(d, 2.0)[1] == pytest.approx(0.14739, abs=1e-5)
    assert abs(float(each.mean()) - 0.14739) <= 4 * error + 1e-5
    assert (float(each.mean()) - 0.1277) / error > 5


CURVES = [(2, 0.0), (2, 1.5), (3, 2.0), (3, 1e4), (5, 0.0), (10, 5.0), (64, 50.0), (5, 1e6)]


@pytest.mark.parametrize(("d", "k"), CURVES)
def test_the_gradient_of_the_mean_is_unbiased(backend, d, k):
    """The average of d(mu.x)/dk is A'(k), to SIGMAS standard errors, which are at most 5% of it."""
    n = many(backend, 8000)
    mean = unit(d).to(_device(backend))
    kk = torch.full((n,), k, dtype=F64, device=mean.device, requires_grad=True)
    (each,) = torch.autograd.grad((vmf.rsample(mean, kk, seed=22) @ mean).sum(), kk)
    truth, error = resultant(d, k)[1], float(each.std()) / math.sqrt(n)
    assert error < (0.05 if backend != "emu" else 0.3) * truth
    assert abs(float(each.mean()) - truth) <= SIGMAS * error


@pytest.mark.parametrize("d", [2, 3, 6])
def test_gradients_of_a_quadratic(backend, d):
    """E (a.x)^2 = (A/k) |a|^2 + (1 - d A/k) (a.mu)^2: its gradients in mu (along the sphere) and in k."""
    n, k, device = many(backend, 20_000), 3.0, _device(backend)
    a, mu = 1.5 * unit(d).to(device), unit(d).to(device)
    mean = mu.expand(n, d).clone().requires_grad_()
    kk = torch.full((n,), k, dtype=F64, device=device, requires_grad=True)
    to_mean, to_k = torch.autograd.grad((vmf.rsample(mean, kk, seed=23) @ a).square().sum(), (mean, kk))
    assert float((to_mean @ mu).abs().max()) < 1e-13  # tangent at mu
    r, slope = resultant(d, k)
    along = float(a @ mu)
    truth = 2 * (1 - d * r / k) * along * (a - along * mu)
    assert bool(((to_mean.mean(0) - truth).abs() <= SIGMAS * to_mean.std(0) / math.sqrt(n) + 1e-14).all())
    ratio_slope = slope / k - r / k**2
    truth_k = ratio_slope * float(a @ a) - d * ratio_slope * along**2
    assert abs(float(to_k.mean()) - truth_k) <= SIGMAS * float(to_k.std()) / math.sqrt(n)


def test_gradient_in_the_direction_against_differences_of_an_expectation(backend):
    """E f(x), f smooth, along a geodesic through mu: Monte Carlo against a difference of quadratures (d = 2)."""
    n, k, device = many(backend, 20_000), 4.0, _device(backend)
    weights = torch.tensor([1.3, -0.4], dtype=F64)

    def expectation(angle):
        phi = torch.arange(4000, dtype=F64) * (2 * math.pi / 4000)
        x = torch.stack([torch.cos(phi), torch.sin(phi)], -1)
        p = torch.exp(k * torch.cos(phi - angle))
        return float((p * torch.exp(x @ weights)).sum() / p.sum())

    angle, h = 0.8, 1e-4
    truth = (expectation(angle + h) - expectation(angle - h)) / (2 * h)
    mu = on(backend, math.cos(angle), math.sin(angle))
    mean = mu.expand(n, 2).clone().requires_grad_()
    value = torch.exp(vmf.rsample(mean, k, seed=24) @ weights.to(device)).sum()
    each = torch.autograd.grad(value, mean)[0] @ on(backend, -math.sin(angle), math.cos(angle))
    assert abs(float(each.mean()) - truth) <= SIGMAS * float(each.std()) / math.sqrt(n)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_gradient_equals_the_reference(name, dtype):
    """Of weighted sums, for every way a batch can broadcast; concentrations from 0 to 1e6."""
    for d in (2, 3, 5, 64):
        k = torch.tensor([0.0, 0.7, 30.0, 1e3, 1e6], dtype=dtype)
        shapes = (
            (directions(d)[:5], k, ()),
            (directions(d)[0], k, (3,)),
            (directions(d)[:5], k[2], (3,)),
            (directions(d)[0], k[1], (7,)),
            (directions(d)[:2, None], k[:3], (2,)),
        )
        for mean, kk, shape in shapes:
            grads = []
            for backend in ("reference", name):
                leaves = [t.to(_device(backend), dtype).requires_grad_() for t in (mean, kk)]
                with fokker.use_backend(backend):
                    x = vmf.rsample(*leaves, shape, seed=6)
                    coefficients = torch.linspace(-1, 2, x.numel(), dtype=dtype).reshape(x.shape).to(x)
                    grads.append([g.cpu() for g in torch.autograd.grad((coefficients * x).sum(), leaves)])
            for want, got in zip(*grads, strict=True):
                tolerance = 1e-9 if dtype is F64 else 3e-5
                assert got.shape == want.shape and got.dtype == dtype
                torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_gradient_flags_and_edges(backend):
    mean = unit(4).to(_device(backend)).requires_grad_()
    k = on(backend, 0.0, 1e-300, 2.0, 1e8).requires_grad_()
    x = vmf.rsample(mean, k, (3,), seed=1)
    grads = torch.autograd.grad(x.sum(), (mean, k))
    assert all(bool(g.isfinite().all()) for g in grads)
    assert not vmf.sample(mean, k, seed=1).requires_grad
    assert not vmf.rsample(mean.detach(), k.detach(), seed=1).requires_grad
    (only_k,) = torch.autograd.grad(vmf.rsample(mean.detach(), k, (3,), seed=1).sum(), k)
    (only_mean,) = torch.autograd.grad(vmf.rsample(mean, k.detach(), (3,), seed=1).sum(), mean)
    assert torch.equal(only_mean, grads[0]) and torch.equal(only_k, grads[1])


def test_a_second_derivative_of_a_sample_is_an_error(backend):
    """It is not implemented: that must be said, not some of its terms left out."""
    mean, k = unit(5).to(_device(backend)).requires_grad_(), on(backend, 2.0).requires_grad_()
    value = (vmf.rsample(mean, k, (3,), seed=1) ** 3).sum()
    with pytest.raises((RuntimeError, NotImplementedError)):
        (first,) = torch.autograd.grad(value, k, create_graph=True)
        torch.autograd.grad(first.sum(), (mean, k))


# ---- transforms ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [b for b in FUSED if b != "emu"])
def test_compile_fullgraph(name):
    mean, k = unit(3, 5).to(_device(name)).requires_grad_(), on(name, 0.5, 3.0, 400.0).requires_grad_()
    torch.compiler.reset()

    def f(mean, k):
        x = vmf.rsample(mean, k, (4,), seed=9, step=2)
        return (x * x.roll(1, -1)).sum() + x[..., 0].sum()

    with fokker.use_backend(name):
        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        got, want = compiled(mean, k), f(mean, k)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
        for a, b in zip(torch.autograd.grad(got, (mean, k)), torch.autograd.grad(want, (mean, k)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_function_transforms(backend):
    """grad, vjp and jvp of torch.func see the same derivative as autograd."""
    mean, k = unit(2, 5).to(_device(backend)), on(backend, 0.7, 25.0)
    tangents = unit(2, 5).to(mean), on(backend, 0.3, -2.0)

    def f(mean, k):
        return vmf.rsample(mean, k, (3,), seed=2)

    leaves = mean.clone().requires_grad_(), k.clone().requires_grad_()
    x = f(*leaves)
    cotangent = unit(3, 2, 5).to(mean)
    want = torch.autograd.grad((x * cotangent).sum(), leaves)
    got = torch.func.grad(lambda m, c: (f(m, c) * cotangent).sum(), argnums=(0, 1))(mean, k)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    value, forward = torch.func.jvp(f, (mean, k), tangents)
    torch.testing.assert_close(value, x.detach(), rtol=0, atol=1e-13)
    pulled = sum((w * t).sum() for w, t in zip(want, tangents, strict=True))
    torch.testing.assert_close((forward * cotangent).sum(), pulled, rtol=1e-9, atol=1e-12)


def test_vmap_is_a_loop(backend):
    """Each member takes the noise of the same ids; also with a gradient inside, and one batch in another."""
    device = _device(backend)
    mean, k = unit(4, 2, 5).to(device), on(backend, 0.0, 0.5, 2.0, 7.0, 30.0, 90.0, 200.0, 1e4).reshape(4, 2)
    ids = torch.arange(24, device=device).reshape(4, 3, 2) * 7

    def f(mean, k, ids=None):
        return vmf.rsample(mean, k, (3,), seed=1, sample_ids=ids)

    def check(function, *given):
        members = [function(*row) for row in zip(*given, strict=True)]
        got = torch.func.vmap(function)(*given)
        for a, b in zip(*((t,) if isinstance(t, torch.Tensor) else t for t in (got, _stack(members))), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)

    check(f, mean, k)
    check(f, mean, k, ids)
    check(lambda m: f(m, k[1]), mean)
    check(lambda c: f(mean[0], c), k)
    check(lambda c: f(mean[0, 0], c), k)
    check(torch.func.grad(lambda m, c: (f(m, c) ** 3).sum(), argnums=(0, 1)), mean, k)
    check(torch.func.vmap(f), mean, k)


def _stack(members):
    if isinstance(members[0], torch.Tensor):
        return torch.stack(members)
    return tuple(torch.stack(part) for part in zip(*members, strict=True))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_compile_once_for_every_step_seed_and_size():
    """The numbers are symbolic: a training loop that counts its steps, or draws its seeds, compiles once or twice."""
    torch.compiler.reset()
    mean = unit(5)
    with fokker.use_backend("cpu"):
        f = torch.compile(
            lambda k, seed, step: vmf.rsample(mean, k, (2,), seed=seed, step=step), fullgraph=True, backend="aot_eager"
        )
        for i in range(12):  # more than torch's limit of recompilations
            k = torch.linspace(1, 9, 3 + i, dtype=F64)
            want = vmf.sample(mean, k, (2,), seed=5 * i, step=i)
            torch.testing.assert_close(f(k, 5 * i, i), want, rtol=0, atol=1e-13)
        assert torch.equal(f(k, 2**64 - 1, 3), vmf.sample(mean, k, (2,), seed=2**64 - 1, step=3))
        drawn = torch.compile(lambda k: vmf.rsample(mean, k, (2,)), fullgraph=True, backend="aot_eager")
        assert not torch.equal(drawn(k), drawn(k))


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_registration():
    args = unit(2, 3).requires_grad_(), torch.ones(2, dtype=F64, requires_grad=True), None, 0, 1, 0, 6
    with fokker.use_backend("cpu"):
        torch.library.opcheck(torch.ops.fokker.vmf_sample.default, args)
