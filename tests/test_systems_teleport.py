"""fokker.systems.teleport: the closed-form flow against the numerical one, and fewer calls at equal quality."""

import pytest
import torch

from fokker import kde, mixture, sde
from fokker.systems import teleport

D, RANK = 6, 3
PROCESSES = {"EDM": (sde.EDM(0.02, 80.0), 80.0, 0.5), "VP": (sde.VP(), 1.0, 0.2), "SubVP": (sde.SubVP(), 1.0, 0.3)}


def cloud(n=400, d=D):
    g = torch.Generator().manual_seed(1)
    scales = torch.linspace(2.0, 0.1, d, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    return torch.randn(n, d, generator=g, dtype=torch.float64) * scales @ rotation + 0.7


@pytest.mark.parametrize("name, residual", [("EDM", True), ("VP", True), ("SubVP", False)])
def test_closed_form_is_the_flow(name, residual):
    process, t, s = PROCESSES[name]
    law = teleport.gaussian(cloud(), RANK, residual=residual)
    x = process.prior_sample(3, (D,), seed=1, dtype=torch.float64)
    flow = sde.ProbabilityFlow(1e-10, 1e-10)
    model = teleport.denoiser(law, process)
    numeric = sde.sample(model, process, flow, x.shape, times=(t, s), start=x, dtype=torch.float64)
    there = teleport.trajectory(x, law, process, t, s)
    torch.testing.assert_close(there, numeric, rtol=0, atol=1e-9)
    torch.testing.assert_close(teleport.trajectory(there, law, process, s, t), x, rtol=0, atol=1e-12 * 80)


def test_trajectories_compose_and_reach_the_data_s_moments():
    """At t = 0 the flow of N(alpha mu, alpha^2 S + sigma^2) has become N(mu, S): the law's own root, to rounding."""
    process, law = sde.EDM(0.02, 80.0), teleport.gaussian(cloud(), RANK)
    x = process.prior_sample(4, (D,), seed=2, dtype=torch.float64)
    half = teleport.trajectory(x, law, process, 80.0, 3.0)
    straight = teleport.trajectory(x, law, process, 80.0, 0.0)
    torch.testing.assert_close(teleport.trajectory(half, law, process, 3.0, 0.0), straight, rtol=1e-13, atol=1e-13)
    white = torch.linalg.solve(law.dense()[0] + 80.0**2 * torch.eye(D), (x - law.means).T).T
    values, vectors = torch.linalg.eigh(law.dense()[0])
    root = (vectors * torch.sqrt(values * (values + 80.0**2))) @ vectors.T
    torch.testing.assert_close(straight, law.means + white @ root, rtol=0, atol=1e-12)


def test_moments_and_the_paper_s_score():
    data = cloud()
    law = teleport.gaussian(data, residual=False)
    torch.testing.assert_close(law.means[0], data.mean(0))
    torch.testing.assert_close(law.dense()[0], torch.cov(data.T, correction=0), rtol=0, atol=1e-12)
    cut = teleport.gaussian(data, RANK, residual=False)
    values, vectors = torch.linalg.eigh(torch.cov(data.T, correction=0))
    l, u = values[-RANK:], vectors[:, -RANK:]
    x, sigma = torch.randn(5, D, dtype=torch.float64), 0.3
    delta = x - data.mean(0)
    published = -(delta - (delta @ u * (l / (l + sigma**2))) @ u.T) / sigma**2
    torch.testing.assert_close(mixture.score(x, cut, sigma=sigma), published, rtol=1e-11, atol=1e-11)
    shared = teleport.gaussian(data, RANK)
    assert torch.allclose(torch.trace(shared.dense()[0]), torch.cov(data.T, correction=0).trace())


def test_mixture_of_labels():
    data, labels = cloud(), torch.arange(400) % 3
    law = teleport.mixture_of(data, labels, RANK)
    assert law.n_components == 3
    for k in range(3):
        torch.testing.assert_close(law.means[k], data[labels == k].mean(0))
    process = sde.EDM(0.02, 20.0)
    x = process.prior_sample(2, (D,), seed=1, dtype=torch.float64)
    there = teleport.trajectory(x, law, process, 20.0, 2.0)
    flow, model = sde.ProbabilityFlow(1e-10, 1e-10), teleport.denoiser(law, process)
    exact = sde.sample(model, process, flow, x.shape, times=(20.0, 2.0), start=x, dtype=torch.float64)
    torch.testing.assert_close(there, exact, rtol=0, atol=1e-6)


def test_fewer_calls_at_equal_quality():
    """Heun's method on a mixture: less error with 15 calls after teleportation than with 19 from noise (21 % fewer)."""
    data = cloud(200)
    process, smooth = sde.EDM(0.02, 80.0), 0.2**2
    calls = []

    def model(x, t):
        calls.append(1)
        level = torch.sqrt(t.square() + smooth)
        own = (smooth / level.square())[:, None]
        return own * x + (1 - own) * kde.posterior_mean(x, data, level)

    x = process.prior_sample(256, (D,), seed=3, dtype=torch.float64)
    same = {"start": x, "dtype": torch.float64, "full": True, "seed": 0}
    exact = sde.sample(model, process, sde.Heun(), x.shape, 100, **same).x
    plain = sde.sample(model, process, sde.Heun(), x.shape, 10, **same)
    law = teleport.gaussian(data)
    calls.clear()
    ours = teleport.sample(model, process, sde.Heun(), x.shape, 8, law=law, time=8.0, **same)
    assert len(calls) == ours.calls == 15 and plain.calls == 19

    def error(run):
        return float((run.x - exact).square().mean(1).sqrt().median())

    assert error(ours) < error(plain)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: teleport.gaussian(torch.ones(3, 2, dtype=torch.int64)), TypeError, "data must be a float"),
        (lambda: teleport.gaussian(torch.randn(1, 2)), ValueError, "N >= 2"),
        (lambda: teleport.gaussian(torch.tensor([[0.0], [torch.nan]])), ValueError, "data must be finite"),
        (lambda: teleport.gaussian(cloud(), 7), ValueError, r"rank must be an int in \[1, 6\]"),
        (lambda: teleport.mixture_of(cloud(), torch.zeros(3).long()), ValueError, "labels must be an int64"),
        (
            lambda: teleport.trajectory(torch.randn(2, 5), teleport.gaussian(cloud()), sde.VP(), 1.0, 0.5),
            ValueError, "5 elements a sample, the law 6",
        ),
        (
            lambda: teleport.trajectory(torch.randn(2, 6).half(), teleport.gaussian(cloud()), sde.VP(), 1.0, 0.5),
            TypeError, "float32 or float64",
        ),
        (
            lambda: teleport.trajectory(torch.randn(2, D), teleport.gaussian(cloud()), sde.RectifiedFlow(), 1.0, 0.5),
            ValueError, "alpha > 0",
        ),
        (
            lambda: teleport.sample(
                lambda x, t: x, sde.VP(), sde.Heun(), (2, D), 3, law=teleport.gaussian(cloud()), time=1.5
            ),
            ValueError, "time must lie in",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_model_of_another_shape_is_named():
    with pytest.raises(ValueError, match="model must return a tensor of x's shape"):
        teleport.sample(
            lambda x, t: x[:, :2], sde.VP(), sde.DDIM(), (2, D), 3, law=teleport.gaussian(cloud()), time=0.5
        )


def test_model_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match="finite"):
        teleport.sample(
            lambda x, t: x / 0, sde.VP(), sde.DDIM(), (2, D), 3, law=teleport.gaussian(cloud()), time=0.5,
            check_finite=True,
        )  # fmt: skip
