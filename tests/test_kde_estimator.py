"""KernelDensity and SDKernelDensity: scikit-learn's contract, agreement, samples, bandwidth selection."""

import math

import numpy as np
import pytest

pytest.importorskip("sklearn")
from scipy import stats
from sklearn import neighbors
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from fokker import kde
from fokker.estimators import KernelDensity, LaplaceKernelDensity, SDKernelDensity

ALPHA = 1e-6  # false alarms of a test on samples


@parametrize_with_checks([KernelDensity(), KernelDensity(bandwidth="loo"), SDKernelDensity(), LaplaceKernelDensity()])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kernel", ["gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine"])
@pytest.mark.parametrize("bandwidth", [0.9, "scott", "silverman"])
def test_agrees_with_scikit_learn(kernel, bandwidth):
    rng = np.random.default_rng(0)
    y, x, w = rng.normal(size=(90, 3)), rng.normal(size=(20, 3)), rng.uniform(size=90)
    ours = KernelDensity(bandwidth=bandwidth, kernel=kernel).fit(y)
    theirs = neighbors.KernelDensity(bandwidth=bandwidth, kernel=kernel, leaf_size=1000).fit(y)
    assert ours.bandwidth_ == pytest.approx(theirs.bandwidth_, rel=1e-14)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-11, atol=1e-11)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-11)
    ours = KernelDensity(bandwidth=0.9, kernel=kernel).fit(y, sample_weight=w)
    theirs = neighbors.KernelDensity(bandwidth=0.9, kernel=kernel, leaf_size=1000).fit(y, sample_weight=w)
    np.testing.assert_allclose(ours.score_samples(x), theirs.score_samples(x), rtol=1e-11, atol=1e-11)


def test_right_where_trees_are_wrong():
    """At d = 64 the tree estimator's bounds leak into its answer (scikit-learn issue 7492)."""
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=(2000, 64)), rng.normal(size=(5, 64))
    right = neighbors.KernelDensity(leaf_size=4000).fit(y).score_samples(x)
    np.testing.assert_allclose(KernelDensity().fit(y).score_samples(x), right, rtol=1e-11)


@pytest.mark.parametrize(
    "kernel",
    ["gaussian", "laplace", "exponential", "matern32", "matern52", "student_t", "epanechnikov", "tophat", "linear",
     "cosine"],
)  # fmt: skip
def test_samples_follow_the_density(kernel):
    """One coordinate of draws around a single datum against the numerically integrated marginal (KS, 1e-6)."""
    h, n = 0.7, 20_000
    model = KernelDensity(bandwidth=h, kernel=kernel, nu=5.0).fit(np.array([[1.0], [1.0]]))
    draws = model.sample(n, random_state=3)[:, 0]
    grid = 1.0 + h * np.sinh(np.linspace(-6, 6, 60_001))
    density = np.exp(model.score_samples(grid[:, None]))
    cdf = np.concatenate([[0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid))])
    assert abs(cdf[-1] - 1) < 2e-3
    assert stats.kstest(draws, lambda t: np.interp(t, grid, cdf)).pvalue > ALPHA


@pytest.mark.parametrize(
    "kernel", ["matern32", "matern52", "exponential", "epanechnikov", "linear", "cosine", "tophat"]
)
def test_radii_in_many_dimensions(kernel):
    """The mean square of draws is d times the kernel's variance, within six standard errors (2e-9)."""
    from fokker._kde_estimator import kernel_deviation

    model = KernelDensity(kernel=kernel).fit(np.zeros((2, 6)))
    square = np.square(model.sample(40_000, random_state=1)).sum(1)
    error = square.std() / math.sqrt(len(square))
    assert abs(square.mean() - 6 * kernel_deviation(kernel, 6) ** 2) < 6 * error


def test_deviation_convention():
    y = np.random.default_rng(0).normal(size=(50, 2))
    for kernel in ("epanechnikov", "tophat", "linear", "cosine", "laplace"):
        model = KernelDensity(kernel=kernel, bandwidth=0.5, bandwidth_convention="deviation").fit(y[:1].repeat(2, 0))
        draws = model.sample(40_000, random_state=0) - y[0]
        assert abs(draws.std() / 0.5 - 1) < 0.02


def test_leave_one_out_bandwidth_is_a_maximum():
    y = np.random.default_rng(1).normal(size=(300, 2))
    model = KernelDensity(bandwidth="loo").fit(y)

    def likelihood(h):
        return float(kde.log_prob(y, y, h, exclude_self=True).mean())

    best = likelihood(model.bandwidth_)
    assert best > likelihood(model.bandwidth_ * 1.05) and best > likelihood(model.bandwidth_ / 1.05)


@pytest.mark.parametrize("kernel", ["tophat", "epanechnikov"])
def test_leave_one_out_bandwidth_of_a_compact_kernel_reaches_an_outlier(kernel):
    """Below the distance to its nearest datum the likelihood is -inf, and there is nothing to compare."""
    y = np.concatenate([np.random.default_rng(1).normal(size=(100, 1)), [[50.0]]])

    def likelihood(h):
        return float(kde.log_prob(y, y, h, kernel=kernel, exclude_self=True).mean())

    h = KernelDensity(bandwidth="loo", kernel=kernel).fit(y).bandwidth_
    grid = [likelihood(t) for t in np.geomspace(1.0, 500.0, 60)]
    assert likelihood(h) > max(grid) - 0.02


def test_leave_one_out_of_repeated_rows_warns():
    y = np.random.default_rng(1).normal(size=(20, 2)).repeat(2, 0)
    with pytest.warns(ConvergenceWarning, match="grows to an end of the search"):
        KernelDensity(bandwidth="loo").fit(y)


def test_debiasing_lowers_the_bias():
    """At the mode of a normal the plain estimate is too low by h^2 / 2 relatively; the debiased one is not."""
    y = np.random.default_rng(2).normal(size=(4000, 1))
    x = np.zeros((1, 1))
    truth = -0.5 * math.log(2 * math.pi)
    plain = KernelDensity(bandwidth=0.5).fit(y).score_samples(x)[0]
    for method in (SDKernelDensity, LaplaceKernelDensity):
        debiased = method(bandwidth=0.5).fit(y).score_samples(x)[0]
        assert abs(debiased - truth) < 0.4 * abs(plain - truth)


def test_laplace_corrected_estimates_may_be_negative():
    y, x = np.zeros((1, 2)), np.array([[0.5, 0.0], [3.0, 0.0]])
    model = LaplaceKernelDensity().fit(y)
    assert list(model.signed_score_samples(x).sign) == [1.0, -1.0]
    assert np.isfinite(model.score_samples(x)[0]) and model.score_samples(x)[1] == -np.inf
    assert not hasattr(model, "sample")
    with pytest.raises(ValueError, match="LaplaceKernelDensity needs kernel='gaussian', got 'tophat'"):
        LaplaceKernelDensity(kernel="tophat").fit(y)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be a positive number"),
        ({"bandwidth": "best"}, "bandwidth must be"),
        ({"bandwidth": np.inf}, "bandwidth must be a positive number"),
        ({"kernel": "student_t", "nu": -1.0}, "nu must be a positive number"),
        ({"precision": "low"}, "precision must be one of"),
        ({"kernel": "vmf"}, "kernel must be one of"),
        ({"metric": "haversine"}, "metric must be 'euclidean'"),
        ({"bandwidth_convention": "scipy"}, "bandwidth_convention"),
        ({"kernel": "cauchy", "bandwidth_convention": "deviation"}, "no standard deviation"),
    ],
)
def test_parameters_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        KernelDensity(**settings).fit(np.zeros((3, 2)))


def test_number_of_samples_is_checked():
    with pytest.raises(ValueError, match="n_samples must be an integer >= 0, got -1"):
        KernelDensity().fit(np.zeros((3, 2))).sample(-1)
