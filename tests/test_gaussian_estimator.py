"""GaussianMixture: scikit-learn's own checks, known mixtures, EM's monotone likelihood, weights, labels, moves."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs
from sklearn.utils.estimator_checks import parametrize_with_checks

from fokker.estimators import GaussianMixture

TYPES = ("isotropic", "diag", "lowrank", "full", "tied")
COUNTS = (300, 200, 100)


def known(d=5, seed=0, apart=6.0):
    rng = np.random.default_rng(seed)
    means = apart * rng.standard_normal((3, d))
    root = rng.standard_normal((3, d, 2))
    x = [
        means[i] + rng.standard_normal((n, 2)) @ root[i].T + 0.4 * rng.standard_normal((n, d))
        for i, n in enumerate(COUNTS)
    ]
    return np.concatenate(x), np.repeat(np.arange(3), COUNTS), means, root


def fitted(x, kind="full", **settings):
    return GaussianMixture(3, covariance_type=kind, rank=2, random_state=0, **settings).fit(x)


@parametrize_with_checks(
    [
        GaussianMixture(),
        GaussianMixture(2, covariance_type="diag", random_state=0),
        GaussianMixture(2, covariance_type="tied", init="random", n_init=2, random_state=0),
        GaussianMixture(2, covariance_type="isotropic", random_state=0),
    ]
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_likelihood_never_falls(kind, dtype):
    x = known(apart=1.0)[0].astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        m = fitted(x, kind, tol=0.0, max_iter=40, reg_covar=0.3)  # a floor that binds
    assert np.diff(m.log_likelihood_curve_).min() > -1e-12
    assert m.means_.dtype == dtype and m.score_samples(x).dtype == dtype
    assert m.score(x) == pytest.approx(m.lower_bound_, abs=1e-9 if dtype is np.float64 else 2e-5)


@pytest.mark.parametrize("kind", ["isotropic", "diag", "full", "tied"])
def test_ends_where_scikit_learn_does(kind):
    x = known()[0]
    ours = fitted(x, kind, tol=1e-9, reg_covar=0.0, max_iter=1000)
    name = "spherical" if kind == "isotropic" else kind
    theirs = Theirs(3, covariance_type=name, tol=1e-9, reg_covar=0.0, max_iter=1000, n_init=3, random_state=0).fit(x)
    assert ours.lower_bound_ == pytest.approx(theirs.score(x), abs=1e-5)
    assert ours.bic(x) == pytest.approx(theirs.bic(x), abs=0.02)
    assert ours.aic(x) == pytest.approx(theirs.aic(x), abs=0.02)
    order = ((ours.means_[:, None] - theirs.means_) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_[order] if kind != "tied" else theirs.covariances_,
                               atol=1e-2)  # fmt: skip
    assert (order[ours.predict(x)] == theirs.predict(x)).all()
    np.testing.assert_allclose(ours.predict_proba(x).sum(1), 1.0, atol=1e-12)


def test_finds_a_known_low_rank_mixture():
    x, labels, means, root = known()
    m = fitted(x, "lowrank", tol=1e-8, max_iter=1000)
    order = ((m.means_[:, None] - means) ** 2).sum(-1).argmin(0)
    assert (np.argsort(order)[m.predict(x)] == labels).mean() > 0.99
    np.testing.assert_allclose(m.weights_[order], np.array(COUNTS) / 600, atol=0.01)
    w, t = m.covariances_
    np.testing.assert_allclose(t[order], 0.16, rtol=0.2)  # n (d - r) / 2 squares an estimate: 6 to 8 percent, twice
    for i in range(3):
        got, want = w[order[i]] @ w[order[i]].T, root[i] @ root[i].T
        assert np.linalg.norm(got - want) < 0.3 * np.linalg.norm(want)
    # the maximum for a single component is known: principal components (Tipping and Bishop 1999)
    one = GaussianMixture(1, covariance_type="lowrank", rank=2, tol=1e-10, max_iter=2000).fit(x)
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True))
    assert one.covariances_[1][0] == pytest.approx(values[:-2].mean(), rel=1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_an_outlier_leaves_no_nan(kind):
    """Covariances whose least variances are below the rounding of the largest have no Cholesky factor as they stand."""
    for seed, far in ((1, 1e8), (2, 1e12)):
        x = np.vstack([np.random.default_rng(seed).normal(size=(60, 3)), [[far] * 3]])
        for k in (1, 3):
            model = GaussianMixture(k, covariance_type=kind, split_merge=2, random_state=seed).fit(x)
            assert np.isfinite(model.score_samples(x)).all() and np.isfinite(model.log_likelihood_curve_).all()


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_repetitions(kind):
    x = known()[0]
    counts = np.random.default_rng(1).integers(0, 4, len(x))
    weighted = GaussianMixture(3, covariance_type=kind, rank=2, random_state=0, tol=1e-8, max_iter=500).fit(
        x, sample_weight=counts
    )
    repeated = fitted(np.repeat(x, counts, axis=0), kind, tol=1e-8, max_iter=500)
    order = ((repeated.means_[:, None] - weighted.means_) ** 2).sum(-1).argmin(1)
    np.testing.assert_allclose(weighted.means_[order], repeated.means_, atol=1e-5)
    np.testing.assert_allclose(weighted.weights_[order], repeated.weights_, atol=1e-7)
    assert weighted.lower_bound_ == pytest.approx(repeated.lower_bound_, abs=1e-7)


def test_labels_are_honoured():
    x, labels, _, _ = known(apart=0.7)
    some = np.full(len(x), -1)
    rng = np.random.default_rng(0)
    shown = rng.choice(len(x), 120, replace=False)
    some[shown] = labels[shown]
    m = GaussianMixture(3, semi_supervised=True, random_state=0, max_iter=300).fit(x, some)
    assert np.diff(m.log_likelihood_curve_).min() > -1e-12
    hidden = some < 0
    assert (m.predict(x)[hidden] == labels[hidden]).mean() > 0.85  # by the labels' own numbers
    # all labelled: a closed form
    full = GaussianMixture(3, semi_supervised=True).fit(x, labels)
    for k in range(3):
        np.testing.assert_allclose(full.means_[k], x[labels == k].mean(0), atol=1e-12)
        np.testing.assert_allclose(full.covariances_[k], np.cov(x[labels == k].T, bias=True), atol=1e-12)
    ignored, plain = (GaussianMixture(3, random_state=0).fit(x, y) for y in (labels, None))
    np.testing.assert_array_equal(ignored.means_, plain.means_)
    with pytest.raises(ValueError, match="y must hold integers from -1"):
        GaussianMixture(2, semi_supervised=True).fit(x, labels)
    with pytest.raises(ValueError, match="y must hold integers from -1"):
        GaussianMixture(3, semi_supervised=True).fit(x, np.full(len(x), "a"))


@pytest.mark.parametrize("kind", TYPES)
def test_split_and_merge_leaves_a_poor_optimum(kind):
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [1.0, 30.0], [30.0, 0.0], [30.0, 8.0]])
    x = np.concatenate([c + rng.standard_normal((80, 2)) for c in centres])
    poor = np.array([[0.0, -1.0], [0.5, 1.0], [1.0, 30.0], [30.0, 4.0]])  # two on one cluster, one on two
    settings = {"covariance_type": kind, "init": poor, "random_state": 0, "max_iter": 300}
    stuck = GaussianMixture(4, **settings).fit(x)
    freed = GaussianMixture(4, split_merge=6, **settings).fit(x)
    assert freed.lower_bound_ > stuck.lower_bound_ + 0.1
    assert np.diff(freed.log_likelihood_curve_).min() > -1e-12
    gaps = ((freed.means_[:, None] - centres) ** 2).sum(-1)
    assert sorted(gaps.argmin(1)) == [0, 1, 2, 3] and gaps.min(1).max() < 0.5


def test_sample_and_anomalies():
    x = known()[0]
    m = fitted(x)
    draws, labels = m.sample(500, random_state=3)
    assert draws.shape == (500, 5) and (np.diff(labels) >= 0).all()
    assert (m.predict(draws) == labels).mean() > 0.97
    np.testing.assert_array_equal(draws, m.sample(500, random_state=3)[0])
    odd = np.vstack([x[:5], x[:5] + 50])
    for kind in ("log_prob", "mahalanobis"):
        found = m.anomaly_score(odd, kind=kind, keep=0.9)
        assert found[5:].min() > found[:5].max()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"n_components": 0}, "n_components must be an integer >= 1"),
        ({"covariance_type": "round"}, "covariance_type must be one of"),
        ({"reg_covar": -1.0}, "reg_covar must be a finite number >= 0"),
        ({"tol": float("nan")}, "tol must be a finite number >= 0"),
        ({"init": "grid"}, "init must be"),
        ({"init": np.zeros((2, 3))}, "init must have shape"),
        ({"covariance_type": "lowrank", "rank": 5}, "rank must be below the number of features"),
    ],
)
def test_bad_parameters(settings, match):
    with pytest.raises(ValueError, match=match):
        GaussianMixture(**settings).fit(known()[0])


def test_bad_weights():
    x = known()[0]
    with pytest.raises(ValueError, match="sample_weight must be non-negative"):
        GaussianMixture().fit(x, sample_weight=-np.ones(len(x)))
    with pytest.raises(ValueError, match="must not exceed the number of points"):
        GaussianMixture(3).fit(x, sample_weight=np.r_[1.0, 1.0, np.zeros(len(x) - 2)])
