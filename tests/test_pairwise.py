"""fokker.pairwise against closed forms, SciPy, its definitions and statistics; edges, errors and gradients.

Statistical tests compare a mean with its known expectation and allow 4.9 standard errors: a false alarm in 10^6 runs.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from pairwise_calls import CALLS, UNIT, A, B, X, Y, normal
from scipy.special import erf

import fokker
from fokker import _pairwise_kernels, _pairwise_sampling, _pairwise_tiles, pairwise, random
from fokker.reference import pairwise as reference

SIGMAS = 4.9


def within_noise(samples: torch.Tensor, truth: float) -> None:
    error = float(samples.std() / math.sqrt(len(samples)))
    assert abs(float(samples.mean()) - truth) < SIGMAS * error, (float(samples.mean()), truth, error)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_definition(name, dtype):
    x, y = X.to(dtype), Y.to(dtype)
    got = CALLS[name](x, y)
    assert got.dtype == dtype
    with fokker.use_backend("reference"):
        want = CALLS[name](x.double(), y.double())
    tolerance = 1e-12 if dtype is torch.float64 else 4e-6
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_vmf_kernel_on_the_sphere_is_the_gaussian_one():
    got = pairwise.mmd2(*UNIT, bandwidth=0.7, kernel="vmf", estimator="unbiased")
    torch.testing.assert_close(got, pairwise.mmd2(*UNIT, bandwidth=0.7, estimator="unbiased"), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name", ["energy", "energy_weights", "joint", "bias_corrected", "energy_score", "characteristic"]
)
def test_tiles_change_nothing_and_bound_the_memory(name, monkeypatch):
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    want = torch.autograd.grad(CALLS[name](x, y).sum(), (x, y))
    value = CALLS[name](x, y)
    seen = []
    lengths = _pairwise_tiles._lengths
    monkeypatch.setattr(_pairwise_tiles, "_BATCH", 40)
    monkeypatch.setattr(_pairwise_tiles, "_lengths", lambda p, q: seen.append(r := lengths(p, q)) or r)
    torch.testing.assert_close(CALLS[name](x, y), value, rtol=1e-13, atol=1e-14)
    got = torch.autograd.grad(CALLS[name](x, y).sum(), (x, y))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    if name in ("joint", "bias_corrected"):
        assert seen and all(r.numel() <= 40 for r in seen)


@pytest.mark.parametrize("name", ["energy_distance", "mmd2", "mmd2_weights"])
def test_halves_change_nothing(name, monkeypatch):
    x, y = (torch.randn(2, n, 3, dtype=torch.float64).requires_grad_() for n in (23, 17))
    found = []
    for size in (1024, 2):
        monkeypatch.setattr(_pairwise_tiles, "_WITHIN", size)
        monkeypatch.setattr(_pairwise_kernels, "_WITHIN", size)
        if name == "energy_distance":
            value = pairwise.energy_distance(x, y)
        else:
            weights = {"x_weights": torch.arange(1.0, 24).expand(2, 23)} if name == "mmd2_weights" else {}
            value = pairwise.mmd2(x, y, bandwidth=[1.5, 0.7], estimator="unbiased", **weights)
        found.append((value, *torch.autograd.grad(value.sum(), (x, y))))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


# ---- closed forms ---------------------------------------------------------------------------------------------------
def test_unbiased_mmd2_of_gaussians():
    d, h, s, runs = 3, 1.3, 0.8, 3000
    mean = torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64)

    def expected(variance: float, shift: torch.Tensor) -> float:
        wide = h * h + variance
        return (h * h / wide) ** (d / 2) * math.exp(-float(shift.square().sum()) / (2 * wide))

    x, y = normal(runs, 6, d), s * normal(runs, 8, d, seed=9) + mean
    truth = expected(2.0, 0 * mean) + expected(2 * s * s, 0 * mean) - 2 * expected(1 + s * s, mean)
    within_noise(pairwise.mmd2(x, y, bandwidth=h, estimator="unbiased"), truth)
    proxy = expected(2.0, 0 * mean) - 2 * expected(1 + s * s, mean)
    within_noise(pairwise.multi_population_objective(x, y[:, :6], bandwidth=h).discrepancy, proxy)


def test_unbiased_energy_distance_of_gaussians():
    m, s = 0.7, math.sqrt(2.0)
    cross = s * math.sqrt(2 / math.pi) * math.exp(-m * m / (2 * s * s)) + m * erf(m / (s * math.sqrt(2)))
    truth = 2 * cross - 2 * (2 / math.sqrt(math.pi))
    x, y = normal(3000, 5, 1), normal(3000, 7, 1, seed=9) + m
    found = pairwise.energy_distance(x, y, estimator="unbiased")
    within_noise(found, truth)
    flat = [torch.cat([t, torch.zeros_like(t)], -1) for t in (x, y)]  # the same points, not by the sort
    torch.testing.assert_close(pairwise.energy_distance(*flat, estimator="unbiased"), found, rtol=1e-11, atol=1e-13)


def test_energy_distance_is_scipys():
    x, y, a, b = X[0, :, 0].numpy(), Y[0, :, 0].numpy(), A[0].numpy(), B.numpy()
    got = pairwise.energy_distance(x[:, None], y[:, None], x_weights=a, y_weights=b)
    assert isinstance(got, np.floating)
    assert got == pytest.approx(scipy.stats.energy_distance(x, y, a, b) ** 2, rel=1e-12)


def test_crps_of_known_ensembles():
    # int (F - 1{z >= y})^2 by hand: F = 0, 1/2, 1 with steps at 0 and 1
    assert pairwise.crps([0.0, 1.0], 0.25, estimator="plain") == 0.25
    assert pairwise.crps([0.0, 1.0], 3.0, estimator="plain") == 2.25
    assert pairwise.crps([0.0, 1.0], 0.25) == 0.0
    assert pairwise.crps([2.0], 5.0, estimator="plain") == 3.0
    assert pairwise.crps([0.0, 1.0], 0.25, estimator="almost_fair", alpha=0.9) == pytest.approx(0.025, rel=1e-14)
    assert pairwise.crps([[1e8, 1e8 + 1]] * 2, [1e8, 1e8], estimator="plain").tolist() == [0.25, 0.25]


@pytest.mark.parametrize("members", [2, 5])
def test_fair_crps_has_the_expectation_of_the_law(members):
    y = 0.6
    truth = y * erf(y / math.sqrt(2)) + 2 * math.exp(-y * y / 2) / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    within_noise(pairwise.crps(normal(20000, members), torch.tensor(y).double()), truth)


def test_distance_correlation_of_lines_and_independence():
    x = normal(40, 3)
    assert float(pairwise.distance_correlation(x, 2 - 3 * x)) == pytest.approx(1.0, abs=1e-14)
    assert float(pairwise.distance_correlation(x, torch.ones(40, 1))) == 0.0
    x, y = normal(2000, 7, 2), normal(2000, 7, 1, seed=8)
    within_noise(pairwise.distance_covariance(x, y, estimator="unbiased", squared=True), 0.0)


def test_joint_distance_covariance_adds_up_over_subsets():
    x, y, z = X[..., :2], Y[:, :9, :1], X[..., 2:] * Y[:, :9, :2]

    def square(*v: torch.Tensor, c: float) -> torch.Tensor:
        return pairwise.joint_distance_covariance(*v, c=c, squared=True)

    torch.testing.assert_close(
        square(x, y, c=0.3), pairwise.distance_covariance(x, y, squared=True), rtol=1e-12, atol=0
    )
    pairs = sum(pairwise.distance_covariance(p, q, squared=True) for p, q in ((x, y), (y, z), (x, z)))
    torch.testing.assert_close(square(x, y, z, c=0.4), 0.4 * pairs + square(x, y, z, c=0.0), rtol=1e-12, atol=0)
    # signs of which any two are independent, and the third is their product
    s = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    three = s.T[..., None]
    assert float(pairwise.distance_covariance(three[0], three[1])) == pytest.approx(0.0, abs=1e-7)
    assert float(square(*three, c=1.0)) == pytest.approx(1.0, rel=1e-12)


def test_uniformity_and_alignment_by_hand():
    poles = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert float(pairwise.uniformity(poles)) == pytest.approx(-8.0, rel=1e-15)
    assert float(pairwise.uniformity(1e3 * poles)) == pytest.approx(-8e6, rel=1e-12)
    want = torch.pdist(UNIT[0][0]).square().mul(-2).exp().mean().log()
    torch.testing.assert_close(pairwise.uniformity(UNIT[0])[0], want, rtol=1e-13, atol=0)
    assert float(pairwise.alignment(poles, -poles)) == 4.0
    assert float(pairwise.alignment(poles, -poles, alpha=1.0)) == 2.0


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 3.0, math.inf])
def test_vendi_score_counts(order):
    basis = 3.0 * torch.eye(6, dtype=torch.float64)
    assert float(pairwise.vendi_score(basis, order=order)) == pytest.approx(6.0, rel=1e-12)
    twice = torch.cat([basis, basis])  # six kinds, twelve points: the Gram matrix is the 6 x 6 one
    assert float(pairwise.vendi_score(twice, order=order)) == pytest.approx(6.0, rel=1e-12)
    assert float(pairwise.vendi_score(torch.ones(9, 3).double(), order=order)) == pytest.approx(1.0, rel=1e-7)
    far = 1e3 * torch.arange(5.0)[:, None].double()
    assert float(pairwise.vendi_score(far, order=order, kernel="gaussian", bandwidth=1.0)) == pytest.approx(
        5.0, rel=1e-12
    )
    weights = [0.5, 0.25, 0.25, 0.0, 0.0]
    p = np.array(weights[:3])
    hill = {1.0: math.exp(-(p * np.log(p)).sum()), math.inf: 2.0}.get(order) or (p**order).sum() ** (1 / (1 - order))
    got = pairwise.vendi_score(far, order=order, kernel="laplace", bandwidth=1.0, weights=weights)
    assert float(got) == pytest.approx(hill, rel=1e-12)


def test_random_frequencies_estimate_the_closed_form():
    x, y, h, count = X[0], Y[0], 1.7, 4000
    t = random.normal(count, 4, seed=3, dtype=torch.float64) / h
    gaps = reference.characteristic_gap(
        t[None],
        x[None],
        y[None],
        torch.full((1, 9), 1 / 9.0, dtype=torch.float64),
        torch.full((1, 11), 1 / 11.0, dtype=torch.float64),
    )
    truth = float(pairwise.characteristic_discrepancy(x, y, bandwidth=h))
    assert truth == float(pairwise.mmd2(x, y, bandwidth=h))
    within_noise(gaps[0], truth)
    drawn = pairwise.characteristic_discrepancy(x, y, frequencies=count, bandwidth=h, seed=3)
    assert float(drawn) == pytest.approx(float(gaps.mean()), rel=1e-6)


def test_median_bandwidth():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert float(pairwise.median_bandwidth(x)) == 2.0  # of 1, 2, 3
    assert float(pairwise.median_bandwidth(x, x[:1])) == 1.5  # 0, 1, 1, 2, 3, 3
    many = normal(3000, 2)
    assert float(pairwise.median_bandwidth(many)) == pytest.approx(2 * math.sqrt(math.log(2)), rel=0.05)
    assert pairwise.bandwidth_ladder(2.0, 3) == pytest.approx([2.0, math.sqrt(2.0), 1.0])


def test_nadaraya_watson():
    v = normal(3, 11, 2, seed=12)
    k = reference.gram(X, Y, torch.full((3, 1, 1), 0.9, dtype=torch.float64), "matern52", 1.0)
    want = reference.nadaraya_watson(k, v, B.expand(3, 11), False)
    got = pairwise.nadaraya_watson(X, Y, v, 0.9, kernel="matern52", weights=B)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    k = reference.gram(Y, Y, torch.full((3, 1, 1), 0.9, dtype=torch.float64), "gaussian", 1.0)
    want = reference.nadaraya_watson(k, v, torch.ones(3, 11).double(), True)
    torch.testing.assert_close(pairwise.nadaraya_watson(Y, Y, v, 0.9, exclude_self=True), want, rtol=1e-12, atol=1e-13)
    line = np.arange(5.0)
    far = pairwise.nadaraya_watson(np.array([[900.0]]), line[:, None], line, 0.1)
    assert far.shape == (1,) and far[0] == 4.0  # the nearest, where exp(-x^2 / 2h^2) is 0 for all
    assert math.isnan(pairwise.nadaraya_watson(np.array([[900.0]]), line[:, None], line, 0.1, kernel="tophat")[0])
    assert (
        pairwise.nadaraya_watson(np.array([[900.0]]), line[:, None], line, 0.1, kernel="tophat", outside=7.0)[0] == 7.0
    )


# ---- C-Mixup --------------------------------------------------------------------------------------------------------
def test_cmixup_draws_the_stated_law():
    y, h, steps = torch.tensor([0.0, 0.2, 1.0, 1.1, 1.6]), 0.7, 1500
    draws = torch.stack([pairwise.cmixup_sample(y, h, seed=11, step=s) for s in range(steps)])
    p = torch.softmax(reference.cmixup_logits(y[:, None], h), -1)
    counts = torch.nn.functional.one_hot(draws, 5).sum(0)
    assert int(counts.diagonal().sum()) == 0
    some = ~torch.eye(5, dtype=torch.bool)
    chi2 = float(((counts - steps * p).square() / (steps * p))[some].sum())
    assert chi2 < scipy.stats.chi2.ppf(1 - 1e-6, 5 * 3)


def test_cmixup_compiles():
    y = normal(40, seed=3)
    f = lambda y: pairwise.cmixup_sample(y, 0.5, seed=11)  # noqa: E731
    torch.compiler.reset()
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(y), f(y))


def test_cmixup_does_not_depend_on_tiles_or_on_the_rows_asked_for(monkeypatch):
    y = normal(70, 2)
    want = pairwise.cmixup_sample(y, 0.3, seed=5, step=2)
    noise = random.gumbel(70, 70, seed=5, step=2, stream=random.Stream.RESAMPLING, dtype=torch.float64)
    assert torch.equal(want, (reference.cmixup_logits(y, 0.3) + noise).argmax(1))
    rows = torch.tensor([3, 69, 3, 0])
    assert torch.equal(pairwise.cmixup_sample(y, 0.3, seed=5, step=2, rows=rows), want[rows])
    monkeypatch.setattr(_pairwise_sampling, "_TILE", 24)
    assert torch.equal(pairwise.cmixup_sample(y, 0.3, seed=5, step=2), want)
    assert not torch.equal(pairwise.cmixup_sample(y, 0.3, seed=5, step=3), want)
    far = pairwise.cmixup_sample(np.array([0.0, 1e6, 3e6]), 1e-3, seed=1)
    assert far.tolist() == [1, 0, 1]
