"""VonMisesFisherMixture: scikit-learn's own checks, known mixtures, EM's monotone likelihood, weights and errors."""

import math
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from scipy.special import logsumexp
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from fokker import vmf
from fokker.estimators import VonMisesFisherMixture as Mixture

COUNTS, KAPPA = (1000, 500, 300, 200), (20.0, 50.0, 100.0, 400.0)


def unit(n, d, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def known(d=16):
    means = torch.from_numpy(unit(4, d))
    draws = [vmf.sample(means[i], KAPPA[i], (n,), seed=i) for i, n in enumerate(COUNTS)]
    return torch.cat(draws).numpy(), np.repeat(np.arange(4), COUNTS), means.numpy()


@parametrize_with_checks(
    [
        Mixture(),
        Mixture(3, random_state=0),
        Mixture(2, concentration_type="shared", random_state=0),
        Mixture(2, init="random", n_init=2, random_state=0),
    ]
)
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_finds_a_known_mixture(dtype):
    x, labels, means = known()
    m = Mixture(4, random_state=0).fit(x.astype(dtype))
    assert m.converged_
    for a in (m.mean_directions_, m.concentrations_, m.weights_, m.score_samples(x[:9].astype(dtype))):
        assert a.dtype == dtype
    cosines = m.mean_directions_ @ means.T
    order = cosines.argmax(0)
    assert sorted(order) == [0, 1, 2, 3] and cosines.max(0).min() > 0.99
    # one part in sqrt(n (d - 1) / 2): 1 to 3 percent
    np.testing.assert_allclose(m.concentrations_[order], KAPPA, rtol=0.08)
    np.testing.assert_allclose(m.weights_[order], np.array(COUNTS) / 2000, rtol=0.01)
    assert (order[labels] == m.predict(x)).mean() > 0.999


def test_float32_agrees_with_float64():
    x, _, _ = known()
    wide, single = (Mixture(4, random_state=0).fit(x.astype(t)) for t in (np.float64, np.float32))
    np.testing.assert_allclose(single.concentrations_, wide.concentrations_, rtol=2e-5)
    assert single.lower_bound_ == pytest.approx(wide.lower_bound_, abs=2e-5)


def test_scores_are_the_mixture_density():
    x, _, _ = known()
    m = Mixture(4, random_state=0).fit(x)
    logs = [
        np.log(w) + vmf.log_prob(torch.from_numpy(x), torch.from_numpy(mu), float(k)).numpy()
        for w, mu, k in zip(m.weights_, m.mean_directions_, m.concentrations_, strict=True)
    ]
    np.testing.assert_allclose(m.score_samples(x), logsumexp(logs, axis=0), rtol=1e-12, atol=1e-12)
    p = m.predict_proba(x)
    np.testing.assert_allclose(p, np.exp(logs - logsumexp(logs, axis=0)).T, atol=1e-12)
    np.testing.assert_array_equal(m.predict(x), p.argmax(1))
    assert m.score(x) == pytest.approx(m.lower_bound_, abs=1e-12)
    n, d = x.shape
    assert m.bic(x) == pytest.approx(-2 * n * m.score(x) + (4 * (d - 1) + 4 + 3) * math.log(n))
    assert m.aic(x) == pytest.approx(-2 * n * m.score(x) + 2 * (4 * (d - 1) + 4 + 3))


@pytest.mark.parametrize("kind", ["full", "shared"])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_likelihood_never_falls(kind, init):
    x = unit(400, 6, seed=3) + 0.3 * unit(1, 6, seed=4)  # nothing there to find: EM wanders for long
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        m = Mixture(7, concentration_type=kind, init=init, random_state=1, tol=0.0, max_iter=60).fit(x)
    curve = m.log_likelihood_curve_
    assert len(curve) == m.n_iter_ + 1 and curve[-1] == m.lower_bound_
    assert np.diff(curve).min() > -1e-13 * abs(curve).max()
    assert curve[-1] - curve[0] > 0.01
    assert (len(set(m.concentrations_)) == 1) == (kind == "shared")


def test_one_component_is_the_fit():
    x, _, _ = known()
    mean, kappa = vmf.fit(torch.from_numpy(x))
    m = Mixture().fit(x)
    np.testing.assert_allclose(m.mean_directions_[0], mean.numpy(), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(m.concentrations_[0], float(kappa), rtol=1e-10)
    assert m.n_iter_ <= 2 and m.weights_[0] == 1


def test_bic_finds_the_number_of_components():
    x, _, _ = known()
    levels = {k: Mixture(k, random_state=0, n_init=2).fit(x).bic(x) for k in (2, 3, 4, 5, 6)}
    assert min(levels, key=levels.get) == 4, levels


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_weights_are_repetitions(init):
    x, _, _ = known(5)
    x = x[::10]
    w = np.random.default_rng(0).integers(0, 4, len(x))
    options = {"init": init, "random_state": 3, "tol": 1e-8, "max_iter": 2000}
    a = Mixture(3, **options).fit(x, sample_weight=w)
    b = Mixture(3, **options).fit(np.repeat(x, w, axis=0)[::-1])
    np.testing.assert_allclose(a.concentrations_, b.concentrations_, rtol=1e-5)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, abs=1e-8)
    scaled = Mixture(3, **options).fit(x.astype(np.float32), sample_weight=w * 1e-60)  # only ratios matter
    np.testing.assert_allclose(scaled.concentrations_, a.concentrations_, rtol=1e-3)


def test_more_rows_than_seeding_sees():
    x = np.concatenate([known()[0]] * 10)  # 20,000 rows, past the 16,384 that k-means++ draws from
    m, one = (Mixture(4, random_state=0, n_init=4).fit(rows) for rows in (x, known()[0]))
    np.testing.assert_allclose(np.sort(m.concentrations_), np.sort(one.concentrations_), rtol=1e-3)


def test_n_init_keeps_the_best_and_given_starts_are_used():
    x, _, means = known()
    single = [Mixture(4, init="random", random_state=s).fit(x).lower_bound_ for s in range(4)]
    assert Mixture(4, init="random", n_init=6, random_state=0).fit(x).lower_bound_ >= min(single)
    m = Mixture(4, init=3 * means).fit(x)
    assert ((m.mean_directions_ * means).sum(1) > 0.99).all()  # in the order given


def test_samples_come_from_the_mixture():
    x, _, _ = known()
    m = Mixture(4, random_state=0).fit(x)
    drawn, labels = m.sample(6000, random_state=5)
    again, _ = m.sample(6000, random_state=5)
    np.testing.assert_array_equal(drawn, again)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-12)
    assert (np.diff(labels) >= 0).all() and drawn.shape == (6000, 16)
    np.testing.assert_allclose(np.bincount(labels, minlength=4) / 6000, m.weights_, atol=4 * 0.5 / 6000**0.5)
    assert (m.predict(drawn) == labels).mean() > 0.995
    spread = m.score_samples(x).std()
    assert m.score(drawn) == pytest.approx(m.score(x), abs=5 * spread / 2000**0.5)


def test_cap_and_single_points():
    x = unit(5, 4)
    m = Mixture(5, max_concentration=1e4, random_state=0).fit(x)  # a component a point: no maximum but the cap
    np.testing.assert_allclose(m.concentrations_, 1e4)
    assert sorted(m.predict(x)) == [0, 1, 2, 3, 4] and np.isfinite(m.lower_bound_)
    same = Mixture(2, random_state=0).fit(np.tile(x[:1], (6, 1)))  # all points equal
    assert np.isfinite(same.score(x)) and same.concentrations_.max() <= 1e6


def test_rows_of_zeros_and_far_lengths():
    x, _, _ = known()
    scale = 10.0 ** np.random.default_rng(0).uniform(-200, 200, (len(x), 1))
    a, b = Mixture(4, random_state=0).fit(x), Mixture(4, random_state=0).fit(x * scale)
    np.testing.assert_allclose(a.concentrations_, b.concentrations_, rtol=1e-9)
    padded = Mixture(4, random_state=0).fit(np.concatenate([x, np.zeros((50, 16))]))  # no direction: not there
    np.testing.assert_allclose(padded.concentrations_, a.concentrations_, rtol=1e-9)
    at_zero = a.score_samples(np.zeros((1, 16)))
    logs = np.log(a.weights_) + vmf.log_normalizer(16, torch.from_numpy(a.concentrations_)).numpy()
    np.testing.assert_allclose(at_zero, logsumexp(logs), rtol=1e-12)


def test_errors():
    x = unit(10, 4)
    for bad, match in (
        ({"n_components": 0}, "n_components must be an integer >= 1"),
        ({"n_components": 11}, "n_components=11 must not exceed the number of points, n_samples=10"),
        ({"tol": -1.0}, "tol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"max_concentration": math.inf}, "max_concentration must be a finite"),
        ({"concentration_type": "tied"}, "concentration_type must be"),
        ({"init": "magic"}, "init must be 'k-means"),
        ({"init": np.zeros((1, 4))}, "other than zero"),
        ({"init": np.ones((2, 4))}, r"init must have shape \(1, 4\)"),
    ):
        with pytest.raises(ValueError, match=match):
            Mixture(**bad).fit(x)
    for weights, match in (
        (-np.ones(10), "non-negative"),
        (np.zeros(10), "sum to zero|non-zero"),
        (np.full(10, np.nan), "NaN"),
        (np.ones(9), "shape"),
    ):
        with pytest.raises(ValueError, match=match):
            Mixture().fit(x, sample_weight=weights)
    with pytest.raises(ValueError, match="no row other than zeros"):
        Mixture().fit(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="n_components=2 must not exceed"):
        Mixture(2).fit(x, sample_weight=np.eye(10)[0])
    with pytest.raises(ValueError, match="infinity"):
        Mixture().fit(np.where(np.eye(10, 4) > 0, np.inf, x))
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        Mixture().fit(x[:, :1])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        Mixture().fit(x[:0])
    with pytest.raises(ValueError, match="X must hold unit vectors"):
        Mixture(normalize=False).fit(2 * x)
    with pytest.raises(NotFittedError):
        Mixture().score_samples(x)
    with pytest.raises(ValueError, match="n_samples must be"):
        Mixture().fit(x).sample(0)


def test_warns_where_it_has_not_converged():
    x, _, _ = known()
    with pytest.warns(ConvergenceWarning, match="max_iter=1"):
        m = Mixture(4, max_iter=1, tol=0.0, random_state=0).fit(x)
    assert not m.converged_ and m.n_iter_ == 1 and len(m.log_likelihood_curve_) == 2


def test_pickle_and_unit_rows():
    x, _, _ = known()
    m = Mixture(4, random_state=0, normalize=False, verbose=True).fit(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(m)).score_samples(x), m.score_samples(x))
    np.testing.assert_array_equal(m.fit_predict(x), m.predict(x))


def test_without_scikit_learn():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import fokker\n"
        "try:\n import fokker.estimators\n"
        "except ImportError as e:\n assert 'pip install fokker[sklearn]' in str(e); print('named')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "named"
