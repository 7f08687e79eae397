"""fokker.pairwise against closed forms, SciPy, its definitions and statistics; edges, errors and gradients.

Statistical tests compare a mean with its known expectation and allow 4.9 standard errors: a false alarm in 10^6 runs.
"""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import erf

import fokker
from fokker import _pairwise_sampling, _pairwise_tiles, pairwise, random
from fokker.reference import pairwise as reference

SIGMAS = 4.9


def normal(*shape: int, seed: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def within_noise(samples: torch.Tensor, truth: float) -> None:
    error = float(samples.std() / math.sqrt(len(samples)))
    assert abs(float(samples.mean()) - truth) < SIGMAS * error, (float(samples.mean()), truth, error)


X, Y = normal(3, 9, 4), normal(3, 11, 4, seed=6) + 0.4
A, B = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)).double(), torch.linspace(0, 2, 11).double()
UNIT = [t / t.norm(dim=-1, keepdim=True) for t in (X, Y)]
CALLS = {
    "mmd2": lambda x, y: pairwise.mmd2(x, y),
    "mmd2_ladder": lambda x, y: pairwise.mmd2(x, y, bandwidth=pairwise.bandwidth_ladder(3.0, 5)),
    "mmd2_weights": lambda x, y: pairwise.mmd2(
        x, y, bandwidth=[1.0, 3.0], estimator="unbiased", x_weights=A, y_weights=B
    ),
    **{
        f"mmd2_{k}": lambda x, y, k=k: pairwise.mmd2(x, y, bandwidth=2.0, kernel=k, nu=2.5)
        for k in pairwise.KERNELS[:-1]
    },
    "multi_population": lambda x, y: torch.stack(
        pairwise.multi_population_objective(x, y[..., :9, :], bandwidth=[2.0, 1.0])
    ),
    "energy": lambda x, y: pairwise.energy_distance(x, y),
    "energy_weights": lambda x, y: pairwise.energy_distance(x, y, estimator="unbiased", x_weights=A, y_weights=B),
    "energy_1d": lambda x, y: pairwise.energy_distance(x[..., :1], y[..., :1], x_weights=A),
    "energy_1d_unbiased": lambda x, y: pairwise.energy_distance(
        x[..., :1], y[..., :1], estimator="unbiased", y_weights=B
    ),
    "distance_covariance": lambda x, y: pairwise.distance_covariance(x, y[..., :9, 1:]),
    "distance_correlation": lambda x, y: pairwise.distance_correlation(x, y[..., :9, :1]),
    "bias_corrected": lambda x, y: pairwise.distance_correlation(x, y[..., :9, 1:], estimator="unbiased", squared=True),
    "joint": lambda x, y: pairwise.joint_distance_covariance(x[..., :2], y[..., :9, :], x[..., 2:], c=0.7),
    "joint_unbiased": lambda x, y: pairwise.joint_distance_covariance(
        x[..., :2], y[..., :9, :], x[..., 2:], estimator="unbiased", squared=True
    ),
    **{
        f"crps_{e}": lambda x, y, e=e: pairwise.crps(x[..., 0], y[..., 0, 0], estimator=e)
        for e in ("fair", "plain", "almost_fair")
    },
    "crps_weights": lambda x, y: pairwise.crps(x[..., 0], y[..., 0, 0], weights=A),
    "energy_score": lambda x, y: pairwise.energy_score(x, y[..., 0, :], estimator="almost_fair", alpha=0.7),
    "energy_score_weights": lambda x, y: pairwise.energy_score(x, y[..., 0, :], weights=A),
    "uniformity": lambda x, y: pairwise.uniformity(x),
    **{f"vendi_{o}": lambda x, y, o=o: pairwise.vendi_score(x, order=o, weights=A) for o in (0.5, 1.0, 2.0, math.inf)},
    **{
        f"vendi_2_{k}": lambda x, y, k=k: pairwise.vendi_score(x, order=2.0, kernel=k, bandwidth=2.0, nu=3.0, weights=A)
        for k in ("gaussian", "exponential", "laplace", "matern32", "student_t")
    },
    "characteristic": lambda x, y: pairwise.characteristic_discrepancy(
        x, y, frequencies=normal(6, 4, seed=8), frequency_weights=torch.arange(6), y_weights=B
    ),
}


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
    assert name == "characteristic" or (seen and all(r.numel() <= 40 for r in seen))


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


# ---- gradients ------------------------------------------------------------------------------------------------------
SMOOTH = [
    "mmd2_ladder", "mmd2_weights", "mmd2_cauchy", "multi_population", "energy_weights", "distance_correlation",
    "joint_unbiased", "energy_score_weights", "vendi_1.0", "vendi_2_student_t", "characteristic",
]  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_second_gradient(name):
    x, y = X[:, :, :3].clone().requires_grad_(), Y[:, :, :3].clone().requires_grad_()
    if name == "characteristic":
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    inputs = (x,) if name.startswith("vendi") else (x, y)

    def f(*t):
        return CALLS[name](t[0], y if len(t) == 1 else t[1])

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_gradients_in_weights_and_bandwidth():
    x, y = X[0, :5, :2], Y[0, :6, :2]
    a, b = A[0, :5].clone().requires_grad_(), (B[:6] + 0.1).clone().requires_grad_()
    h = torch.tensor([1.4, 0.6], dtype=torch.float64, requires_grad=True)
    observation = torch.tensor(0.2, dtype=torch.float64)
    for f, inputs in {
        lambda a, b, h: pairwise.mmd2(x, y, bandwidth=h, estimator="unbiased", x_weights=a, y_weights=b): (a, b, h),
        lambda a, b: pairwise.energy_distance(x, y, estimator="unbiased", x_weights=a, y_weights=b): (a, b),
        lambda a, b: pairwise.energy_distance(x[:, :1], y[:, :1], estimator="unbiased", x_weights=a, y_weights=b): (
            a,
            b,
        ),
        lambda a: pairwise.crps(x[:, 0], observation, weights=a): (a,),
        lambda a: pairwise.energy_score(x, y[0], weights=a): (a,),
    }.items():
        assert torch.autograd.gradcheck(f, inputs)


def test_a_third_gradient_is_an_error():
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pairwise.energy_distance(x, Y).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(bend.sum(), x)


def test_equal_points_have_finite_gradients():
    x = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    for f in (
        lambda t: pairwise.energy_distance(t, t + 0.0),
        lambda t: pairwise.mmd2(t, t + 0.0, bandwidth=1.0, kernel="exponential"),
        lambda t: pairwise.distance_correlation(t, t + 0.0),
        lambda t: pairwise.energy_score(t, t[0]),
        lambda t: pairwise.alignment(t, t + 0.0, alpha=1.0),
    ):
        (slope,) = torch.autograd.grad(f(x), x)
        assert torch.equal(slope, torch.zeros_like(x))


# ---- edges ----------------------------------------------------------------------------------------------------------
def test_nan_stays_in_its_batch():
    x = X.clone()
    x[1, 4, 0] = math.nan
    for name in (
        "mmd2_laplace",
        "energy",
        "energy_1d",
        "joint",
        "crps_fair",
        "energy_score",
        "uniformity",
        "characteristic",
    ):
        assert CALLS[name](x, Y).isnan().tolist() == [False, True, False], name


def test_one_point_halves_broadcast_and_numpy():
    one = torch.zeros(1, 2, dtype=torch.float64)
    assert float(pairwise.mmd2(one, one + 3.0, bandwidth=0.1)) == 2.0
    assert float(pairwise.energy_distance(one, one + 3.0)) == pytest.approx(2 * math.sqrt(18.0))
    assert float(pairwise.vendi_score(one + 1.0)) == pytest.approx(1.0)
    assert float(pairwise.distance_covariance(one, one)) == 0.0
    assert pairwise.mmd2(X[0], Y).shape == (3,)
    half = pairwise.energy_distance(X.bfloat16(), Y.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), pairwise.energy_distance(X, Y), rtol=0.05, atol=0.02)
    assert isinstance(pairwise.mmd2(X.numpy(), Y.numpy()), np.ndarray)
    assert pairwise.distance_correlation(X.half(), X.half()).dtype == torch.float16


ERRORS = [
    (lambda: pairwise.mmd2(X, Y[..., :2]), "x .*and y .*last dimension"),
    (lambda: pairwise.mmd2(X[:, :0], Y), "x must hold at least 1 point"),
    (lambda: pairwise.mmd2(X[:, :1], Y, estimator="unbiased"), "x must hold at least 2 point"),
    (lambda: pairwise.mmd2(X, Y, kernel="tophat"), "kernel must be one of"),
    (lambda: pairwise.mmd2(X, Y, estimator="u"), "estimator must be one of biased, unbiased, got 'u'"),
    (lambda: pairwise.mmd2(X, Y, bandwidth=0.0), "bandwidth must be a positive number, got 0.0"),
    (lambda: pairwise.mmd2(X, Y, bandwidth=[]), "at least one number"),
    (lambda: pairwise.mmd2(X, Y, bandwidth="mean"), "bandwidth must be one of median"),
    (lambda: pairwise.mmd2(X, Y, x_weights=-A), "x_weights must not be negative"),
    (lambda: pairwise.mmd2(X, Y, y_weights=0 * B), "y_weights must not all be zero"),
    (lambda: pairwise.mmd2(X, Y, y_weights=B[:3]), "y_weights must have shape"),
    (lambda: pairwise.mmd2(X[:2], Y), "batches of x and y do not broadcast"),
    (lambda: pairwise.multi_population_objective(X, Y), "as many points, got 9 and 11"),
    (lambda: pairwise.energy_distance(X[0, :, 0], Y), r"x must have shape \(..., N, d\)"),
    (lambda: pairwise.distance_covariance(X, Y), "y must hold one point for each of x"),
    (lambda: pairwise.distance_covariance(X, X, estimator="unbiased"), "needs squared=True"),
    (lambda: pairwise.distance_covariance(X[:, :3], X[:, :3], estimator="unbiased", squared=True), "at least 4 points"),
    (lambda: pairwise.joint_distance_covariance(X), "two or more, got 1"),
    (lambda: pairwise.crps(X[..., :1, 0], Y[:, 0, 0]), "needs at least 2 member"),
    (lambda: pairwise.crps(X[..., 0], Y[:2, 0, 0]), "do not broadcast"),
    (lambda: pairwise.crps(X[..., 0], Y[:, 0, 0], alpha=1.5), "alpha must be in"),
    (lambda: pairwise.energy_score(X, Y[:, 0, :2]), "energy_score: wants"),
    (lambda: pairwise.uniformity(X[:, :1]), "at least 2 point"),
    (lambda: pairwise.uniformity(X, t=-1.0), "t must be a positive number"),
    (lambda: pairwise.alignment(X, Y), "one shape"),
    (lambda: pairwise.vendi_score(X, order=0.0), "order must be positive"),
    (lambda: pairwise.characteristic_discrepancy(X, Y, frequencies=torch.ones(3, 2)), "frequencies must have shape"),
    (lambda: pairwise.characteristic_discrepancy(X, Y, frequency_weights=[1.0]), "belong to given frequencies"),
    (lambda: pairwise.cmixup_sample([1.0], 1.0), "N >= 2"),
    (lambda: pairwise.cmixup_sample([1.0, math.nan], 1.0), "labels must be finite"),
    (lambda: pairwise.cmixup_sample([1.0, 2.0], 1.0, rows=[2]), "rows must be in"),
    (lambda: pairwise.nadaraya_watson(X, Y, Y[:, :3], 1.0), "values must have shape"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types():
    with pytest.raises(TypeError, match="y must be real"):
        pairwise.energy_distance(X, Y.to(torch.complex128))
