"""fokker.systems.interpolants between a normal law and a mixture, whose drift and denoiser are known."""

import math

import pytest
import torch
from sde_problems import KS_LIMIT, ks, normal_cdf

from fokker import mixture
from fokker.systems import interpolants

F64 = torch.float64
LAW = mixture.Mixture(
    torch.tensor([[-0.9], [0.8]], dtype=F64), torch.tensor([0.2, 0.12], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64),
    "isotropic",
)  # fmt: skip
MEAN, VARIANCE = 0.2, 0.25  # of x_0


def parts(law, t):
    """(alpha, beta, gamma), and mean and variance of x_0."""
    alpha, beta, gamma = law.coefficients(t)
    first = (0.0, 1.0) if law.one_sided else (MEAN, VARIANCE)
    return alpha, beta, gamma, *first


def marginal(law, t):
    """rho_t as a mixture, t a number."""
    a, b, g, m, v = parts(law, torch.tensor(t, dtype=F64))
    return mixture.Mixture(a * m + b * LAW.means, a**2 * v + b**2 * LAW.covariance + g**2, LAW.weights, "isotropic")


def model_of(law):
    """b and E[z | x], of one-sided laws b, by the conditional normal laws of (x_0, x_1, z)."""

    def model(x, t):
        a, b, g, m, v = (c[:, None] if isinstance(c, torch.Tensor) else c for c in parts(law, t.double()))
        da, db, dg = (c[:, None] for c in law.slopes(t.double()))
        var = a**2 * v + b**2 * LAW.covariance + g**2
        mean = a * m + b * LAW.means[:, 0]
        r = torch.softmax(LAW.weights.log() - 0.5 * (x - mean) ** 2 / var - 0.5 * var.log(), 1)
        pull = (x - mean) / var
        z = (r * g * pull).sum(1, keepdim=True)
        x0 = (r * (m + v * a * pull)).sum(1, keepdim=True)
        x1 = (r * (LAW.means[:, 0] + LAW.covariance * b * pull)).sum(1, keepdim=True)
        drift = da * x0 + db * x1 + torch.where(g > 0, dg, 0.0) * z
        return drift if law.one_sided else (drift, z)

    return model


def law_of(name, low=0.02, high=0.98, **options):
    return interpolants.interpolant(name, t_min=low, t_max=high, **options)


def cdf(law, t):
    found = marginal(law, t)
    return lambda u: (found.weights * normal_cdf(u[:, None], found.means[:, 0], found.covariance.sqrt())).sum(1)


def draw(law, n):
    """rho at t_min."""
    return mixture.sample(marginal(law, law.t_min), n, seed=7)


@pytest.mark.parametrize("name", [n for n in interpolants.FAMILY if n != "linear, deterministic"])
def test_fields_are_those_of_the_law(name):
    law = law_of(name)
    x, t = torch.linspace(-2, 2, 9, dtype=F64)[:, None], 0.3
    time = torch.full((9,), t, dtype=F64)
    found = interpolants.fields(model_of(law), law, x, time)
    torch.testing.assert_close(found.score, mixture.score(x, marginal(law, t)), rtol=1e-9, atol=1e-9)
    dg = float(law.slopes(t)[2])
    # continuity: d/dt rho = -(b rho)'
    h = 1e-4

    def rho(x, t):
        return mixture.log_prob(x, marginal(law, t)).exp()

    def flux(x):
        b = model_of(law)(x, time)
        return (b if law.one_sided else b[0])[:, 0] * rho(x, t)

    slope = (rho(x, t + h) - rho(x, t - h)) / (2 * h)
    torch.testing.assert_close(slope, -(flux(x + h) - flux(x - h)) / (2 * h), rtol=0, atol=1e-6)
    if not law.one_sided:
        torch.testing.assert_close(found.velocity + dg * found.denoiser, found.drift)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "name, epsilon",
    [("linear", 0.0), ("linear", 0.5), ("linear", 2.0), ("trigonometric", 0.5), ("encoding-decoding", 0.5),
     ("one-sided linear", 0.5), ("one-sided trigonometric", 0.5), ("mirror", 1.0)],
)  # fmt: skip
def test_samples_have_the_law(name, epsilon, backward):
    """2000 samples by 150 steps, either way, at any diffusion: KS at 1e-4."""
    law = law_of(name)
    at, to = (law.t_max, law.t_min) if backward else (law.t_min, law.t_max)
    start = mixture.sample(marginal(law, at), 2000, seed=4)
    x = interpolants.sample(
        model_of(law), law, start, 150, 5, epsilon=epsilon, backward=backward, last_mean=False
    )  # fmt: skip
    assert ks(x[:, 0], cdf(law, to)) < KS_LIMIT


def test_start_of_a_one_sided_law():
    law = interpolants.interpolant("one-sided linear", t_max=0.98)
    x = interpolants.sample(model_of(law), law, None, 60, 5, shape=(2000, 1), dtype=F64, heun=True)
    assert ks(x[:, 0], cdf(law, 0.98)) < KS_LIMIT


@pytest.mark.parametrize("name", ["linear", "one-sided linear"])
def test_likelihoods(name):
    """By the flow to 1e-6; by Feynman and Kac's paths to 0.14 (4 standard errors)."""
    law = law_of(name)
    x = torch.linspace(-1.2, 1.2, 3, dtype=F64)[:, None]
    exact = mixture.log_prob(x, marginal(law, law.t_max))

    def base(y):
        return mixture.log_prob(y, marginal(law, law.t_min))

    found = interpolants.log_likelihood(model_of(law), law, x, base, divergence="exact", rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol=1e-6)
    rough = interpolants.log_likelihood(model_of(law), law, x, base)  # one dimension: a sign's square is 1
    torch.testing.assert_close(rough.log_prob, exact, rtol=0, atol=1e-3)
    paths = interpolants.density(model_of(law), law, x, base, epsilon=0.3, steps=200, paths=2000)
    torch.testing.assert_close(paths, exact, rtol=0, atol=0.14)


def test_loss_is_least_at_the_truth():
    """b = p_0 + p_1 x and eta = p_2 + p_3 x of a normal pair fitted to 20000 draws: the true ones."""
    law = interpolants.interpolant("linear")
    x0 = MEAN + math.sqrt(VARIANCE) * torch.randn(20000, 1, dtype=F64)
    x1 = 1.0 + 0.5 * torch.randn(20000, 1, dtype=F64)
    times = torch.full((20000,), 0.3, dtype=F64)

    def value(p):
        return interpolants.loss(
            lambda x, t: (p[0] + p[1] * x, p[2] + p[3] * x), x0, x1, law, times=times, seed=1
        ).mean()

    at = torch.zeros(4, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(at), at, create_graph=True)
    curve = torch.stack([torch.autograd.grad(slope[i], at, retain_graph=True)[0] for i in range(4)])
    found = -torch.linalg.solve(curve, slope.detach())
    (a, b, g), (da, db, dg) = (tuple(float(c) for c in cs) for cs in (law.coefficients(0.3), law.slopes(0.3)))
    mean, var = a * MEAN + b, a * a * VARIANCE + b * b * 0.25 + g * g
    cov, eta = a * da * VARIANCE + b * db * 0.25 + g * dg, g / var
    wanted = torch.tensor([da * MEAN + db - cov / var * mean, cov / var, -eta * mean, eta], dtype=F64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)


def test_antithetic_loss_is_bounded_at_the_ends():
    law = interpolants.interpolant("linear")
    x0, x1 = torch.randn(500, 1, dtype=F64), torch.randn(500, 1, dtype=F64)
    times = torch.full((500,), 1e-6, dtype=F64)

    def spread(antithetic):
        return float(interpolants.loss(
            lambda x, t: (x, 0 * x), x0, x1, law, times=times, antithetic=antithetic, seed=1
        ).std())  # fmt: skip

    assert spread(True) < 5 < 100 < spread(False)


X = torch.randn(3, 2)
LINEAR = interpolants.interpolant("linear")
TIME = torch.full((3,), 0.5)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: interpolants.interpolant("curved"), ValueError, "name must be one of linear"),
        (lambda: interpolants.fields(lambda x, t: x, LINEAR, X, TIME), ValueError, "pair"),
        (lambda: interpolants.fields(lambda x, t: (x, x[:1]), LINEAR, X, TIME), ValueError, r"eta must be \(3, 2\)"),
        (lambda: interpolants.fields(lambda x, t: (x.double(), x), LINEAR, X, TIME), ValueError, "b must be"),
        (lambda: interpolants.loss(lambda x, t: (x, x), X, X[:1], LINEAR), ValueError, "must be alike"),
        (lambda: interpolants.sample(lambda x, t: (x, x), LINEAR, None, 3), ValueError, "start must be given"),
        (
            lambda: interpolants.sample(lambda x, t: (x, x), LINEAR, X, 3, 0, epsilon=0.5, proportional=False),
            ValueError, "gamma = 0",
        ),
        (
            lambda: interpolants.sample(lambda x, t: (x / 0, x), LINEAR, X, 3, 0, check_finite=True),
            ValueError, "finite",
        ),
        (lambda: interpolants.log_likelihood(lambda x, t: (x, x), LINEAR, X), ValueError, "base_log_prob must be"),
        (
            lambda: interpolants.log_likelihood(lambda x, t: (x, x), LINEAR, X, lambda y: y),
            ValueError, "base_log_prob must return",
        ),
        (
            lambda: interpolants.log_likelihood(lambda x, t: (x, x), LINEAR, X, divergence="trace"),
            ValueError, "divergence must be",
        ),
        (lambda: interpolants.density(lambda x, t: (x, x), LINEAR, X, paths=0), ValueError, "paths must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
