"""fokker.vmf.sample on every backend: the reference's samples, noise by counter, the exact distribution, errors."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sphere import F64, LEVEL, NATIVE, check_tangent, directions, many, on, probability, unit

import fokker
from fokker import vmf
from fokker._cli.check import _device
from fokker.distributions import HypersphericalUniform, VonMisesFisher
from fokker.reference import vmf_sample as reference

CONCENTRATIONS = (0.0, 0.5, 10.0, 1e6, 1e8)


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
    three = vmf.sample(mean, k, (3,), seed=1)
    for shape in (3, [3], torch.Size([3]), np.int64(3), (np.int32(3),)):
        assert torch.equal(vmf.sample(mean, k, shape, seed=1), three)
    assert torch.equal(vmf.rsample(mean, k, 3, seed=1), three)
    assert torch.equal(VonMisesFisher(mean, k).sample(3, seed=1), three)
    assert HypersphericalUniform(3, (2,)).sample(5).shape == HypersphericalUniform(3, (2,)).sample([5]).shape
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
    "shape float": (lambda: vmf.sample(MU, 1.0, 2.5), TypeError, "sample_shape must be an int or a tuple of ints"),
    "shape floats": (lambda: vmf.sample(MU, 1.0, (2.5,)), TypeError, r"sample_shape .* got \(2.5,\)"),
    "shape text": (lambda: vmf.sample(MU, 1.0, "3"), TypeError, "sample_shape must be an int or a tuple of ints"),
    "shape none": (lambda: vmf.rsample(MU, 1.0, None), TypeError, "sample_shape must be .* got None"),
    "shape negative": (
        lambda: vmf.sample(MU, 1.0, (2, -1)),
        ValueError,
        r"sample_shape must not be negative, got \(2, -1",
    ),
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
        check_tangent(xi, w, mean, unit(d))
