"""fokker.vmf.sample and rsample on every backend: the reference's samples, exact distribution, unbiased gradients.

Seeds are fixed, so each statistical test passes or fails for good. LEVEL = 1e-6 is the chance that a right sampler
would have failed one p-value at its seed (about 60 a backend), SIGMAS = 5 (5.7e-7) that of one comparison of a mean.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import BACKENDS

import fokker
from fokker import vmf
from fokker._cli.check import _device
from fokker.cases import CASES
from fokker.reference import vmf as scalars
from fokker.reference import vmf_sample as reference

F64 = torch.float64
LEVEL, SIGMAS = 1e-6, 5.0
FUSED = [b for b in BACKENDS if b in CASES["vmf_sample"].backends]
NATIVE = [b for b in FUSED if b != "reference"]
CONCENTRATIONS = (0.0, 0.5, 10.0, 1e6, 1e8)


@pytest.fixture(params=FUSED)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def unit(*shape, dtype=F64):
    x = torch.randn(*shape, dtype=F64)
    return (x / x.norm(dim=-1, keepdim=True)).to(dtype)


def on(backend, *values, dtype=F64):
    return torch.tensor(values, dtype=dtype, device=_device(backend))


def many(backend, n):
    """How many samples: the emulator is slow."""
    return max(n // 40, 100) if backend == "emu" else n


def directions(d):
    """Means where a reflection could go wrong: +-e1 and next to them, a first coordinate of +-0, and any."""
    first = torch.eye(d, dtype=F64)[0]
    zero = unit(d - 1)
    flat = [torch.cat([torch.tensor([z], dtype=F64), zero]) for z in (0.0, -0.0, -1e-300)]
    near = first + 1e-9 * unit(d)
    return torch.stack([unit(d), first, -first, near / near.norm(), -near / near.norm(), *flat])


# ---- the same samples ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3, 5, 128])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", NATIVE)
def test_same_samples_as_the_reference(name, d, dtype):
    mean = directions(d).to(dtype)[:, None]
    k = torch.tensor(CONCENTRATIONS, dtype=dtype)
    n = 30 if name != "emu" else 2
    want = reference.sample(mean, k, (n,), seed=3, step=77)
    with fokker.use_backend(name):
        got = vmf.sample(mean.to(_device(name)), k.to(_device(name)), (n,), seed=3, step=77).cpu()
        rows = mean.expand(-1, 5, d).reshape(-1, d), k.repeat(len(mean))
        _, w, u = vmf.ops.sample(*(t.to(_device(name)) for t in rows), None, 0, 3, 77, n * len(rows[0]))
    assert got.shape == (n, 8, 5, d) and got.dtype == dtype
    tolerance = 1e-13 if dtype is F64 else 1e-6
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    # Where k is large the sample is next to the mean: what is left of it must be right too.
    scale = (2 * reference.sample_rows(*rows, None, 0, 3, 77, n * len(rows[0]))[2]).sqrt().reshape(n, 8, 5, 1)
    slack = 4 * torch.finfo(dtype).eps
    assert bool((((got - mean) - (want - mean)).abs() <= tolerance * scale + slack).all())
    _, w_want, u_want = reference.sample_rows(*rows, None, 0, 3, 77, n * len(rows[0]))
    torch.testing.assert_close(w.cpu(), w_want, rtol=0, atol=tolerance)
    # 1 - w relative to itself; at d = 2, where it is a squared cosine, within its zeros relative to its mean.
    typical = vmf.mean_resultant_length(d, rows[1].double(), complement=True).repeat(n)
    assert bool(((u.cpu() - u_want).abs() <= tolerance * u_want + 1e-14 * typical).all())


@pytest.mark.parametrize("d", [2, 3, 5, 128, 4096])
def test_unit_norm_and_finite(backend, d):
    n = many(backend, 400) if d < 1000 else 5
    for dtype, allowed in ((F64, 1e-14), (torch.float32, 1e-6)):
        k = on(backend, *CONCENTRATIONS, dtype=dtype)
        for mean in directions(d).to(_device(backend), dtype)[:3]:
            x = vmf.sample(mean, k, (n // 4,), seed=8)
            assert bool(((x.double().norm(dim=-1) - 1).abs() <= allowed).all())


def test_out_of_range_concentrations(backend):
    for d in (2, 3, 6):
        mean = unit(d).to(_device(backend))
        x = vmf.sample(
            mean,
            on(backend, -1.0, math.nan, math.inf, 1e-310, 0.0),
            seed=1,
            sample_ids=torch.zeros(5, dtype=torch.int64),
        )
        assert bool(x[:2].isnan().all()) and bool(x[2:].isfinite().all())
        torch.testing.assert_close(x[2], mean, rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(x[3], x[4], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_float32_rounded(backend, dtype):
    mean, k = unit(2, 5).to(_device(backend), dtype), on(backend, 3.0, 50.0, dtype=dtype)
    x = vmf.sample(mean, k, (20,), seed=2)
    assert x.dtype == dtype and torch.equal(x, vmf.sample(mean.float(), k.float(), (20,), seed=2).to(dtype))


# ---- the noise is a function of its counter -------------------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3, 6])
def test_the_split_of_a_batch_does_not_matter(backend, d):
    device = _device(backend)
    mean, k = unit(3, d).to(device), on(backend, 0.5, 4.0, 80.0)
    whole = vmf.sample(mean, k, (4,), seed=5, step=9)
    ids = torch.arange(12).reshape(4, 3).to(device)
    for row in range(4):
        assert torch.equal(vmf.sample(mean, k, seed=5, step=9, sample_ids=ids[row]), whole[row])
        for j in range(3):
            alone = vmf.sample(mean[j], k[j], seed=5, step=9, sample_ids=ids[row, j])
            assert torch.equal(alone, whole[row, j])
    order = torch.randperm(4).to(device)
    assert torch.equal(vmf.sample(mean, k, (4,), seed=5, step=9, sample_ids=ids[order]), whole[order])
    # One index runs through sample_shape and batch: where the line between them is does not matter.
    for batch, shape in (((4, 3), ()), ((2, 2, 3), ()), ((3,), (2, 2))):
        x = vmf.sample(mean.expand(*batch, d), k.expand(batch), shape, seed=5, step=9)
        assert torch.equal(x.reshape(whole.shape), whole)
    columns = torch.empty(d, 3, dtype=F64, device=device).copy_(mean.T).T
    assert torch.equal(vmf.sample(columns, k.repeat_interleave(2)[::2], (4,), seed=5, step=9), whole)
    two = vmf.sample(mean[0].expand(2, d), on(backend, 4.0, 4.0), seed=1)
    assert torch.equal(vmf.sample(mean[0], 4.0, (2,), seed=1), two)


def test_ids_use_all_64_bits(backend):
    mean = unit(4).to(_device(backend))
    ids = torch.tensor([7, 7 + 2**32, 7 + 2**40, 2**62, 7])
    x = vmf.sample(mean, 2.0, (5,), seed=1, sample_ids=ids)
    assert torch.equal(x[0], x[4]) and len({tuple(row.tolist()) for row in x}) == 4
    want = reference.sample(mean.cpu(), torch.tensor(2.0, dtype=F64), (5,), seed=1, sample_ids=ids)
    torch.testing.assert_close(x.cpu(), want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", NATIVE)
def test_threads_do_not_matter(name):
    n, d = many(name, 4000), 9
    mean, k = unit(d).to(_device(name)), on(name, *np.logspace(-2, 6, n)).requires_grad_()
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with fokker.use_backend(name):
                x = vmf.rsample(mean, k, seed=4)
                runs.append((x.detach(), *torch.autograd.grad((x * mean.roll(1)).sum(), k)))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_seeds_steps_and_generators(backend):
    mean, k = unit(2, 5).to(_device(backend)), on(backend, 1.0, 30.0)

    def draw(**noise):
        return vmf.sample(mean, k, (3,), **noise)

    base = draw(seed=1)
    assert torch.equal(base, draw(seed=1, step=0)) and torch.equal(base, vmf.rsample(mean, k, (3,), seed=1))
    others = [draw(seed=s) for s in (0, 2, 1 + 2**32, 2**63, 2**64 - 1)]
    others += [draw(seed=1, step=s) for s in (1, 2**24 - 1)]
    for i, x in enumerate([base, *others]):
        assert all(not torch.equal(x, y) for y in [base, *others][i + 1 :])
    want = reference.sample(mean.cpu(), k.cpu(), (3,), seed=2**64 - 1)
    torch.testing.assert_close(others[4].cpu(), want, rtol=0, atol=1e-13)
    one, two = torch.Generator().manual_seed(6), torch.Generator().manual_seed(6)
    first, second = draw(generator=one), draw(generator=one)
    assert torch.equal(first, draw(generator=two)) and torch.equal(second, draw(generator=two))
    assert not torch.equal(first, second)
    torch.manual_seed(12)
    first, second = draw(), draw()
    torch.manual_seed(12)
    assert torch.equal(first, draw()) and not torch.equal(first, second)


def test_shapes(backend):
    device = _device(backend)
    mean, k = unit(4, 3).to(device), torch.rand(5, 1, dtype=F64, device=device)
    assert vmf.sample(mean, k, (2,), seed=1).shape == (2, 5, 4, 3)
    assert vmf.sample(mean, k, torch.Size([]), seed=1).shape == (5, 4, 3)
    assert vmf.sample(mean[0], 2, seed=1).shape == (3,)
    assert vmf.sample(mean[0], k[:, 0], [2, 1], seed=1).shape == (2, 1, 5, 3)
    assert vmf.sample(mean[0].expand(1, 3), k[:1], seed=1).shape == (1, 1, 3)
    for empty in ((mean[:0], k[0], (2,)), (mean[0], k[:0, 0], ()), (mean, k, (0,)), (mean[:0], k, (3,))):
        x = vmf.sample(*empty, seed=1)
        batch = torch.broadcast_shapes(empty[0].shape[:-1], empty[1].shape)
        assert x.numel() == 0 and x.shape == (*empty[2], *batch, 3)
    leaf = k[:0].clone().requires_grad_()
    assert torch.autograd.grad(vmf.rsample(mean, leaf, (2,), seed=1).sum(), leaf)[0].shape == (0, 1)


IDS = torch.arange(3)
MU, META = torch.tensor([0.6, 0.8]), torch.ones(2, device="meta")
BAD = {
    "mean list": (lambda: vmf.sample([0.6, 0.8], 1.0), TypeError, "mean_direction must be a tensor, got list"),
    "mean 0-d": (lambda: vmf.sample(MU[0], 1.0), ValueError, r"mean_direction must have shape \(..., d\)"),
    "mean int": (lambda: vmf.sample(torch.tensor([1, 0]), 1.0), TypeError, "mean_direction must be float16, bfloat16"),
    "mean complex": (lambda: vmf.sample(MU + 0j, 1.0), TypeError, "mean_direction must be float16"),
    "dim 1": (lambda: vmf.sample(MU[:1], 1.0), ValueError, "dim must be at least 2"),
    "concentration text": (lambda: vmf.sample(MU, "1"), TypeError, "concentration must be a tensor"),
    "concentration complex": (lambda: vmf.sample(MU, torch.ones(2) * 1j), TypeError, "concentration must be real"),
    "device": (lambda: vmf.sample(MU, META), TypeError, "concentration is on meta, mean_direction on cpu"),
    "shapes": (lambda: vmf.sample(MU.expand(3, 2), torch.ones(4)), ValueError, "batch dimensions do not broadcast"),
    "seed negative": (lambda: vmf.sample(MU, 1.0, seed=-1), ValueError, r"seed must be in \[0, 2\^64\), got -1"),
    "seed large": (lambda: vmf.sample(MU, 1.0, seed=2**64), ValueError, r"seed must be in \[0, 2\^64\)"),
    "seed float": (lambda: vmf.sample(MU, 1.0, seed=1.5), TypeError, "float"),
    "seed and generator": (lambda: vmf.sample(MU, 1.0, seed=1, generator=torch.Generator()), ValueError, "not both"),
    "step negative": (lambda: vmf.sample(MU, 1.0, seed=1, step=-1), ValueError, r"step must be .* got -1"),
    "step large": (lambda: vmf.sample(MU, 1.0, seed=1, step=2**24), ValueError, r"step must be in \[0, 2\^24\)"),
    "ids dtype": (lambda: vmf.sample(MU, 1.0, seed=1, sample_ids=torch.zeros(1)), TypeError, "sample_ids must"),
    "ids int32": (lambda: vmf.sample(MU, 1.0, sample_ids=torch.zeros(1).int()), TypeError, "sample_ids must"),
    "ids list": (lambda: vmf.sample(MU, 1.0, (2,), seed=1, sample_ids=[0, 1]), TypeError, "sample_ids must"),
    "ids shape": (lambda: vmf.sample(MU, 1.0, (2,), sample_ids=IDS), ValueError, r"ids \(3,\) must broadcast"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_named_error(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


# ---- the distribution ---------------------------------------------------------------------------------------------
def probability(d, k, one_minus_w):
    """P(angle to the mean <= arccos w), from the density sin^(d-2)(phi) exp(k cos phi) by the trapezoidal rule."""
    n = d - 2
    root = math.hypot(n, 2 * k)
    mode = 2 * math.asin(math.sqrt((n + n * n / (root + 2 * k)) / (n + root) / 2)) if n else 0.0
    reach = 14 / math.sqrt(n + k + 0.01)
    phi = np.linspace(max(mode - reach, 0.0), min(mode + reach, math.pi), 20001)
    log_density = -2 * k * (np.sin(phi / 2) ** 2 - math.sin(mode / 2) ** 2)
    if n:
        with np.errstate(divide="ignore"):
            log_density += n * np.log(np.abs(np.sin(phi)) / math.sin(mode))
    density = np.exp(log_density)
    total = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return np.interp(2 * np.arcsin(np.sqrt(one_minus_w / 2)), phi, total / total[-1])


def cosine_complement(x, mean):
    """1 - mu.x, as |x - mu|^2 / 2: exact also where the sample is next to the mean."""
    return ((x - mean).square().sum(-1) / 2).cpu().double().numpy()


@pytest.mark.parametrize("d", [2, 3, 5, 128])
@pytest.mark.parametrize("k", CONCENTRATIONS)
def test_cosine_has_the_exact_distribution(backend, d, k):
    """Kolmogorov-Smirnov at 10,000 samples in float64: a distribution off by 0.028 anywhere is seen."""
    mean = unit(d).to(_device(backend))
    x = vmf.sample(mean, k, (many(backend, 10_000 if d < 100 else 4000),), seed=31)
    assert scipy.stats.kstest(probability(d, k, cosine_complement(x, mean)), "uniform").pvalue > LEVEL


@pytest.mark.parametrize("d", [2, 3, 5, 128])
def test_cosine_distribution_in_float32(backend, d):
    mean = unit(d, dtype=torch.float32).to(_device(backend))
    for k in (0.0, 2.0, 300.0):
        x = vmf.sample(mean, k, (many(backend, 4000),), seed=32)
        p = probability(d, k, cosine_complement(x.double(), mean.double()))
        assert scipy.stats.kstest(p, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("d", [2, 3, 5, 128])
@pytest.mark.parametrize("k", [0.0, 2.0, 1e6])
def test_tangent_is_uniform(backend, d, k):
    """xi.v, v orthogonal to mu, has the beta distribution of a uniform unit vector of R^(d-1) and no relation to w."""
    for mean in (unit(d), -torch.eye(d, dtype=F64)[0]):
        n = many(backend, 4000)
        x = vmf.sample(mean.to(_device(backend)), k, (n,), seed=33).cpu()
        w = 1 - torch.from_numpy(cosine_complement(x, mean))
        xi = x - (x @ mean)[:, None] * mean
        xi = xi / xi.norm(dim=1, keepdim=True)
        v = unit(d)
        v = v - (v @ mean) * mean
        projection = xi @ (v / v.norm())
        if d == 2:
            assert abs(float((projection > 0).double().mean()) - 0.5) <= SIGMAS * 0.5 / math.sqrt(n)
        else:
            half = (d - 2) / 2
            p = scipy.stats.beta(half, half).cdf(((1 + projection.clamp(-1, 1)) / 2).numpy())
            assert scipy.stats.kstest(p, "uniform").pvalue > LEVEL
        relation = float((projection * (w - w.mean())).mean())
        assert abs(relation) <= SIGMAS * float(projection.std() * w.std()) / math.sqrt(n)


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
