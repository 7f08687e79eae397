"""fokker.mixture: every covariance type at every noise level against dense Gaussians, Tweedie's formula, edges."""

import itertools

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from fokker import _gaussian_tiles, mixture
from fokker.mixture import Mixture
from fokker.reference import mixture as reference

KINDS = ("isotropic", "diag", "lowrank", "full")
K, D, RANK = 4, 5, 2


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def covariance(kind, shared=False, k=K, d=D):
    spread = torch.rand(k, dtype=torch.float64) + 0.3
    root = randn(k, d, d)
    found = {
        "isotropic": spread,
        "diag": torch.rand(k, d, dtype=torch.float64) + 0.3,
        "lowrank": (randn(k, d, RANK), spread),
        "full": root @ root.mT / d + 0.2 * torch.eye(d, dtype=torch.float64),
    }[kind]
    if not shared:
        return found
    return tuple(t[0] for t in found) if kind == "lowrank" else found[0]


def arguments(kind, shared=False):
    means, c = 2 * randn(K, D), covariance(kind, shared)
    weights = torch.rand(K, dtype=torch.float64) + 0.1
    dense = reference.dense(c, kind, D).expand(K, D, D)
    return Mixture(means, c, weights, kind), (means, dense, weights)


def levels():
    each = torch.linspace(0.3, 1.5, 10, dtype=torch.float64)
    return {
        "none": (1.0, 0.0),
        "ve": (1.0, 0.7),
        "vp": (0.6, 0.8),
        "ve by query": (1.0, each),
        "vp by query": (each.flip(0), each[:3, None].expand(3, 10)),
        "pure noise": (0.0, 1.0),
    }


@pytest.mark.parametrize(("kind", "shared", "level"), list(itertools.product(KINDS, (False, True), levels())))
def test_equals_the_dense_definition(kind, shared, level):
    m, dense = arguments(kind, shared)
    x, (alpha, sigma) = 2 * randn(3, 10, D), levels()[level]
    together = mixture.evaluate(x, m, outputs=tuple(mixture.OUTPUTS), alpha=alpha, sigma=sigma)
    for name, value in together.items():
        want = getattr(reference, name)(x, *(dense[:2] if name == "mahalanobis" else dense), alpha, sigma)
        alone = getattr(mixture, name)(x, m, alpha=alpha, sigma=sigma)
        torch.testing.assert_close(value, want, rtol=1e-11, atol=1e-11, msg=lambda t, n=name: f"{n}: {t}")
        torch.testing.assert_close(alone, want, rtol=1e-11, atol=1e-11, msg=lambda t, n=name: f"{n}: {t}")


@pytest.mark.parametrize("kind", KINDS)
def test_equals_scipy(kind):
    m, (means, dense, weights) = arguments(kind)
    x = 2 * randn(20, D).numpy()
    logs = [multivariate_normal(means[k], dense[k]).logpdf(x) for k in range(K)]
    want = logsumexp(np.array(logs).T + np.log(weights.numpy() / weights.sum().item()), axis=1)
    numpy = Mixture(
        means.numpy(),
        tuple(t.numpy() for t in m.covariance) if kind == "lowrank" else m.covariance.numpy(),
        weights.numpy(),
        kind,
    )
    got = mixture.log_prob(x, numpy)
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(m.log_dets(), torch.logdet(dense), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("kind", "level"), list(itertools.product(KINDS, ("ve", "vp", "ve by query", "vp by query"))))
def test_tweedie(kind, level):
    m, _ = arguments(kind)
    x, (alpha, sigma) = 2 * randn(3, 10, D), levels()[level]
    found = mixture.evaluate(x, m, outputs=("score", "posterior_mean"), alpha=alpha, sigma=sigma)
    a, s = (torch.as_tensor(v, dtype=torch.float64).expand(3, 10)[..., None] for v in (alpha, sigma))
    torch.testing.assert_close(found["score"], (a * found["posterior_mean"] - x) / s**2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_diffused_mixture_is_the_mixture_under_noise(kind):
    m, _ = arguments(kind)
    x = 2 * randn(7, D)
    want = mixture.log_prob(x, m, alpha=0.6, sigma=0.8)
    torch.testing.assert_close(mixture.log_prob(x, m.diffused(0.6, 0.8)), want, rtol=1e-12, atol=1e-12)


def call(kind, name):
    def f(x, means, weights, alpha, sigma, *c):
        m = Mixture(means, c if kind == "lowrank" else c[0], weights, kind)
        return mixture.evaluate(x, m, outputs=(name,), alpha=alpha, sigma=sigma)[name]

    return f


def small(kind):
    """Equal eigenvalues among the covariances: where the derivative of eigenvectors is infinite."""
    c = covariance(kind, k=2, d=3)
    c = c if kind == "lowrank" else (c,)
    if kind == "full":
        c = (0.7 * torch.eye(3, dtype=torch.float64).repeat(2, 1, 1),)
    sigma = torch.tensor([0.4, 1.1], dtype=torch.float64)
    alpha = torch.tensor(0.8, dtype=torch.float64)
    return [t.clone().requires_grad_() for t in (randn(2, 3), randn(2, 3), sigma, alpha, sigma.flip(0), *c)]


@pytest.mark.parametrize(("kind", "name"), list(itertools.product(KINDS, ("log_prob", "score", "posterior_mean"))))
def test_gradient(kind, name):
    assert torch.autograd.gradcheck(call(kind, name), small(kind), fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_second_gradient_of_tiles(kind, monkeypatch):
    monkeypatch.setattr(_gaussian_tiles, "_ELEMENTS", 4)
    monkeypatch.setattr(_gaussian_tiles, "query_rows", lambda n, k, d: 1)
    f, at = call(kind, "score"), small(kind)
    assert torch.autograd.gradcheck(f, at, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, at, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_change_nothing(kind, monkeypatch):
    m, _ = arguments(kind)
    x, outputs, sigma = randn(50, D), tuple(mixture.OUTPUTS), torch.linspace(0.2, 1.0, 50)
    monkeypatch.setattr(mixture, "takes", lambda *a: False)
    whole = mixture.evaluate(x, m, outputs=outputs, sigma=sigma)
    monkeypatch.setattr(_gaussian_tiles, "_ELEMENTS", 7 * D * 2)
    monkeypatch.setattr(_gaussian_tiles, "query_rows", lambda n, k, d: 7)
    cut = mixture.evaluate(x, m, outputs=outputs, sigma=sigma)
    for name in outputs:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_function_transforms(kind):
    m, _ = arguments(kind)
    x = randn(6, D)
    want = mixture.score(x, m, sigma=0.5)
    got = torch.func.grad(lambda y: mixture.log_prob(y, m, sigma=0.5).sum())(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    each = torch.func.vmap(lambda y: mixture.score(y, m, sigma=0.5))(x)
    torch.testing.assert_close(each, want, rtol=1e-10, atol=1e-10)
    _, slope = torch.func.jvp(lambda y: mixture.log_prob(y, m, sigma=0.5), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, want.sum(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_float32(kind):
    torch.manual_seed(3)
    d, k = 64, 6
    c = covariance(kind, k=k, d=d)
    c = tuple(t.float() for t in c) if kind == "lowrank" else c.float()
    means, weights, x = (10 + 3 * randn(k, d)).float(), torch.rand(k) + 0.1, (10 + 3 * randn(100, d)).float()
    m, dense = Mixture(means, c, weights, kind), reference.dense(c, kind, d)
    for precision, bound in (("highest", 4e-7), ("high", 1e-5)):
        for alpha, sigma in ((1.0, 0.0), (0.8, 0.6)):
            got = mixture.log_prob(x, m, alpha=alpha, sigma=sigma, precision=precision)
            want = reference.log_prob(x, means, dense, weights, alpha, sigma)
            assert got.dtype == torch.float32
            assert ((got - want).abs() / want.abs().clamp(min=1)).max() < bound


@pytest.mark.parametrize("kind", KINDS)
def test_edges(kind):
    m, _ = arguments(kind)
    x = randn(5, D)
    want = mixture.log_prob(x, m)
    odd = x.clone()
    odd[1, 2], odd[3, 0] = torch.inf, torch.nan
    found = mixture.evaluate(odd, m, outputs=("log_prob", "score", "responsibilities"))
    assert found["log_prob"][1] == -torch.inf and found["log_prob"][3].isnan()
    assert (found["score"][1] == 0).all() and (found["responsibilities"][1] == 0).all()
    torch.testing.assert_close(found["log_prob"][[0, 2, 4]], want[[0, 2, 4]], rtol=1e-13, atol=1e-13)
    assert mixture.log_prob(x[:0], m).shape == (0,)
    assert mixture.responsibilities(x[:0], m, sigma=1.0).shape == (0, K)
    assert mixture.log_prob(x[0], m).shape == ()
    far = mixture.evaluate(1e6 * x, m, outputs=("log_prob", "score"))
    assert far["log_prob"].isfinite().all() and far["score"].isfinite().all()
    one = Mixture(m.means, m.covariance, torch.tensor([0.0, 3.0, 0.0, 1.0]), kind)
    two = one.select([1, 3])
    torch.testing.assert_close(mixture.log_prob(x, one), mixture.log_prob(x, two), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mixture.score(x, one), mixture.score(x, two), rtol=1e-12, atol=1e-12)


def test_a_point_mass_has_a_score_where_there_is_noise():
    means, x = randn(9, D), randn(4, D)
    shrunk = Mixture(means, torch.zeros(9, dtype=torch.float64), covariance_type="isotropic")
    flat = Mixture(means, torch.zeros(9, D, D, dtype=torch.float64))
    dense = torch.zeros(9, D, D, dtype=torch.float64)
    want = reference.posterior_mean(x, means, dense, torch.ones(9), 1.0, 0.5)
    for m in (shrunk, flat):
        torch.testing.assert_close(mixture.posterior_mean(x, m, sigma=0.5), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_samples(kind):
    m, (means, dense, weights) = arguments(kind)
    x, label = mixture.sample(m, (20000,), seed=5, return_components=True, alpha=0.8, sigma=0.5)
    share = torch.bincount(label, minlength=K) / 20000
    torch.testing.assert_close(share.double(), weights / weights.sum(), atol=0.02, rtol=0)
    for k in range(K):
        mine = x[label == k]
        want = 0.64 * dense[k] + 0.25 * torch.eye(D, dtype=torch.float64)
        error = (len(mine) ** 0.5) * (mine.mean(0) - 0.8 * means[k]) / want.diagonal().sqrt()
        assert error.abs().max() < 5
        scale = want.diagonal().sqrt()
        assert ((mine.T.cov() - want) / scale / scale[:, None]).abs().max() < 7 / len(mine) ** 0.5
    ids = torch.arange(20000).flip(0)[:50]
    again = mixture.sample(m, 50, seed=5, sample_ids=ids, alpha=0.8, sigma=0.5)
    torch.testing.assert_close(again, x[ids], rtol=1e-12, atol=1e-12)


def test_anomaly_scores_and_components_kept():
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    m = Mixture(means, torch.tensor([1.0, 9.0, 0.5]), torch.tensor([0.6, 0.1, 0.3]), "isotropic")
    assert torch.equal(mixture.select_components(m, 0.9).means, means[[0, 2]])
    assert torch.equal(mixture.select_components(m, 0.91).means, means[[0, 2, 1]])
    assert torch.equal(mixture.select_components(m, 2, "log_det").means, means[[2, 0]])
    x = torch.tensor([[0.1, 0.0], [10.0, 0.0]], dtype=torch.float64)
    everything, kept = mixture.anomaly_score(x, m), mixture.anomaly_score(x, m, keep=0.9)
    assert everything[1] < 10 and kept[1] > 40 and abs(everything[0] - kept[0]) < 0.2
    distance = mixture.anomaly_score(x, m, kind="mahalanobis", keep=0.9)
    torch.testing.assert_close(distance, torch.tensor([0.1, 10.0], dtype=torch.float64))


GOOD = {"means": torch.zeros(2, 3), "covariance": torch.ones(2, 3), "covariance_type": "diag"}


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"means": torch.zeros(3)}, r"means must have shape \(K, d\)"),
        ({"covariance": torch.ones(2, 4)}, r"covariance of type 'diag' must have shape"),
        ({"covariance": -torch.ones(2, 3)}, "covariance must hold variances >= 0"),
        ({"covariance_type": "round"}, "covariance_type must be one of"),
        ({"weights": torch.ones(3)}, r"weights must have shape \(K=2,\)"),
        ({"weights": torch.tensor([1.0, -1.0])}, "weights must not be negative"),
        ({"weights": torch.zeros(2)}, "weights must not all be zero"),
        ({"means": torch.full((2, 3), torch.nan)}, "means must be finite"),
        ({"covariance_type": "lowrank"}, "covariance must be a pair"),
        ({"covariance": torch.randn(2, 3, 3), "covariance_type": "full"}, "symmetric"),
    ],
)
def test_bad_mixtures(wrong, match):
    with pytest.raises(ValueError, match=match):
        Mixture(**{**GOOD, **wrong})


def test_bad_calls():
    m = Mixture(**GOOD)
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., d=3\)"):
        mixture.log_prob(torch.zeros(4, 2), m)
    with pytest.raises(ValueError, match="sigma must be a finite number >= 0"):
        mixture.log_prob(torch.zeros(4, 3), m, sigma=-1.0)
    with pytest.raises(ValueError, match=r"alpha \(3,\) does not broadcast"):
        mixture.log_prob(torch.zeros(4, 3), m, alpha=torch.ones(3))
    with pytest.raises(ValueError, match="precision must be one of"):
        mixture.log_prob(torch.zeros(4, 3), m, precision="low")
    with pytest.raises(ValueError, match="keep must be"):
        mixture.select_components(m, 3)
    with pytest.raises(ValueError, match="positive semi-definite"):
        mixture.log_prob(torch.zeros(4, 3), Mixture(torch.zeros(1, 3), torch.diag(torch.tensor([1.0, 1.0, -1.0]))))
    with pytest.raises(TypeError, match="mixture must be"):
        mixture.log_prob(torch.zeros(4, 3), None)


@pytest.mark.parametrize("kind", KINDS)
def test_compile_fullgraph(kind):
    m, _ = arguments(kind)
    x = randn(6, D)
    torch.compiler.reset()
    f = torch.compile(lambda y: mixture.score(2 * y, m, sigma=0.5), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(f(x), mixture.score(2 * x, m, sigma=0.5), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["lowrank", "full"])
def test_autocast_changes_nothing(kind):
    m, x = arguments(kind)[0], randn(40, D).float()
    m = Mixture(
        m.means.float(), tuple(t.float() for t in m._parts) if kind == "lowrank" else m.covariance.float(), None, kind
    )
    sigma = torch.linspace(0.1, 2.0, 40)
    plain = mixture.score(x, m, sigma=sigma, precision="high")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = mixture.score(x, m, sigma=sigma, precision="high")
    assert torch.equal(cast, plain)


def test_memory_of_the_backward_pass():
    """The queries x components x d array would take 1.3 GB; a tile takes 1 MB."""
    resource = pytest.importorskip("resource")
    n, k, d = 20000, 64, 128
    m = Mixture(randn(k, d), torch.rand(k, d, dtype=torch.float64) + 0.5, covariance_type="diag")
    x = randn(n, d).requires_grad_()
    mixture.log_prob(x[:100], m).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mixture.log_prob(x, m).sum().backward()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024
