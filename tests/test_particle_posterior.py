"""Weighted particles against exact posteriors: linear measurements of a mixture, nonlinear ones on a grid."""

import math

import pytest
import torch
from systems_problems import F64, Law

from fokker import sde
from fokker.systems.particle_posterior import Measurement, ParticlePosterior

EDM, VP = sde.EDM(0.03, 10.0), sde.VP(t_min=1e-3, t_max=0.7)
MEANS, VARIANCES, WEIGHTS = [[1.0, -0.5, 0.3], [-1.0, 0.7, -0.2]], [0.3, 0.4], [0.4, 0.6]
A = torch.tensor([[1.0, 0.5, -0.3], [0.2, -0.6, 1.0]], dtype=F64)
Y = torch.tensor([0.4, -0.7], dtype=F64)
POPULATIONS, SIZE = 24, 192
#: of |t| with 23 degrees of freedom, twelve numbers: passed by chance in 5 of 10^4 tests
LIMIT = 5.0


def exact(noise_std):
    """Mean and covariance of the posterior of a mixture given A x + noise = Y."""
    means, logs, covariances = [], [], []
    for m, v, w in zip(torch.tensor(MEANS, dtype=F64), VARIANCES, WEIGHTS, strict=True):
        total = v * A @ A.T + noise_std**2 * torch.eye(2, dtype=F64)
        gain, left = v * torch.linalg.solve(total, A).T, Y - A @ m
        logs.append(math.log(w) - 0.5 * torch.logdet(total) - 0.5 * left @ torch.linalg.solve(total, left))
        means.append(m + gain @ left)
        covariances.append(v * (torch.eye(3, dtype=F64) - gain @ A))
    r, means = torch.softmax(torch.stack(logs), 0), torch.stack(means)
    mean = r @ means
    return mean, sum(p * (c + torch.outer(m - mean, m - mean)) for p, c, m in zip(r, covariances, means, strict=True))


def moments(found, alpha=1.0):
    """Mean and covariance of each population."""
    x = (found.x / alpha).reshape(POPULATIONS, -1, found.x.shape[1])
    w = torch.softmax(found.log_weights.reshape(POPULATIONS, -1), 1)
    mean = (w[..., None] * x).sum(1)
    left = x - mean[:, None]
    return mean, torch.einsum("pn,pni,pnj->pij", w, left, left)


def worst(found, truth):
    """(largest |t|, largest error) of the populations' mean of an estimate."""
    error, se = found.mean(0) - truth, found.std(0) / math.sqrt(POPULATIONS)
    return float((error / se).abs().max()), float(error.abs().max())


def run(process, measurement, steps=100, prediction="score", size=SIZE, **options):
    model = Law(process, MEANS, VARIANCES, WEIGHTS, prediction)
    more = {"grid": "log_snr", "dtype": F64, "prediction": prediction, "populations": POPULATIONS}
    return ParticlePosterior(model, measurement, **options).sample(process, (POPULATIONS * size, 3), steps, 1, **more)


@pytest.mark.parametrize(
    ("noise_std", "options"),
    [
        (0.4, {}),
        (1.0, {"guidance": 0.5}),
        pytest.param(1.0, {}, marks=pytest.mark.slow),
        pytest.param(0.4, {"guidance": 0.5}, marks=pytest.mark.slow),
        pytest.param(0.4, {"noise": 0.7, "guidance": 0.5}, marks=pytest.mark.slow),
        pytest.param(1.0, {"noise": 0.7, "guidance": 0.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_linear_posterior(noise_std, options):
    truth = exact(noise_std)
    found = moments(run(EDM, Measurement(A, Y, noise_std), **options))
    for a, b in zip(found, truth, strict=True):
        t, error = worst(a, b)
        assert t < LIMIT and error < 0.1
    plain = moments(run(EDM, Measurement(A, Y, noise_std), weigh=False, **options))
    assert max(worst(a, b)[0] for a, b in zip(plain, truth, strict=True)) > LIMIT


@pytest.mark.parametrize("prediction", [pytest.param("score", marks=pytest.mark.slow), "x0"])
def test_variance_preserving(prediction):
    found = run(VP, Measurement(A, Y, 0.6), guidance=0.5, prediction=prediction)
    for a, b in zip(moments(found, float(VP.alpha(found.time))), exact(0.6), strict=True):
        assert worst(a, b)[0] < LIMIT


@pytest.mark.filterwarnings("ignore:the weights degenerated")
def test_a_matrix_is_a_function():
    """The same particles by autograd and the exact Laplacian."""
    a = run(EDM, Measurement(A, Y, 0.6), 20, size=50)
    b = run(EDM, Measurement(lambda u: u @ A.T, Y, 0.6), 20, size=50, laplacian="exact")
    torch.testing.assert_close(b.x, a.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(b.log_weights, a.log_weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("laplacian", [pytest.param("exact", marks=pytest.mark.slow), 1])
def test_nonlinear_posterior(laplacian):
    """An amplitude and a saturated product of a two-dimensional mixture, against sums over a grid."""
    means, variances, weights, y, noise_std = [[0.8, -0.4], [-0.9, 0.6]], [0.25, 0.3], [0.45, 0.55], [1.2, -0.3], 0.5

    def operator(u):
        return torch.stack([(u.square().sum(1) + 0.01).sqrt(), torch.tanh(u[:, 0] * u[:, 1])], 1)

    model, y = Law(EDM, means, variances, weights), torch.tensor(y, dtype=F64)
    axis = torch.linspace(-4, 4, 401, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    logs = model.log_prob(points, 0.0) - (operator(points) - y).square().sum(1) / (2 * noise_std**2)
    p = torch.softmax(logs, 0)[:, None]
    mean = (p * points).sum(0)
    covariance = (p * (points - mean)).T @ (points - mean)
    method = ParticlePosterior(model, Measurement(operator, y, noise_std, 2.0), laplacian=laplacian)
    found = method.sample(
        EDM, (POPULATIONS * SIZE, 2), 100, 1, grid="log_snr", dtype=F64, prediction="score",
        populations=POPULATIONS,
    )  # fmt: skip
    for a, b in zip(moments(found), (mean, covariance), strict=True):
        t, error = worst(a, b)
        assert t < LIMIT and error < 0.1


def test_bad_arguments_are_named():
    model = Law(EDM, MEANS, VARIANCES, WEIGHTS)
    good = Measurement(A, Y, 0.5)
    for make, kind, text in (
        (lambda: Measurement(A.T, Y, 0.5), ValueError, r"operator must be a matrix \(2, D\) for y, got \(3, 2\)"),
        (lambda: Measurement(A, [0.1], 0.5), TypeError, "y must be a tensor, got list"),
        (lambda: Measurement(3, Y, 0.5), TypeError, "operator must be a matrix or a function, got int"),
        (lambda: Measurement(A, Y, 0.0), ValueError, "noise_std must be finite and > 0"),
        (lambda: Measurement(A, Y, 1.0, -1.0), ValueError, "inflation must be finite and >= 0"),
        (lambda: ParticlePosterior([model, model], good), ValueError, "model must be one model, got 2"),
        (lambda: ParticlePosterior(model, A), TypeError, "measurement must be a Measurement, got Tensor"),
        (lambda: ParticlePosterior(model, good, noise=0.0), ValueError, "noise must be finite and > 0"),
        (lambda: ParticlePosterior(model, good, laplacian=0), ValueError, "laplacian must be 'exact' or a number"),
        (lambda: run(EDM, Measurement(A[:, :2], Y, 0.5), 2), ValueError, "operator must have 3 columns"),
        (lambda: run(EDM, Measurement(lambda u: u, Y, 0.5), 2), ValueError, r"operator must return shape \(4608, 2\)"),
        (lambda: run(EDM, Measurement(lambda u: u[:, :2].detach(), Y, 0.5), 2), ValueError, "operator must be diff"),
    ):
        with pytest.raises(kind, match=text):
            make()
