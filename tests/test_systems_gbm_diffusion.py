"""fokker.systems.gbm_diffusion on log-normal data, whose law is known at every time."""

import numpy as np
import pytest
import torch
from sde_problems import KS_LIMIT, ks, normal_cdf

from fokker import sde
from fokker.systems import gbm_diffusion

F64 = torch.float64
MEAN, STD = 0.3, 0.4  # of log data
PROCESS = sde.GeometricBrownian(0.1, 0.8, t_min=1e-3)


def moments(k):
    """Mean and standard deviation of log X_k."""
    v = PROCESS.volatility**2
    return MEAN + (PROCESS.mu - 0.5 * v) * k, (STD**2 + v * k) ** 0.5


def exact(x, k):
    mean, std = moments(k[:, None] if isinstance(k, torch.Tensor) else k)
    return -1 - (x.log() - mean) / (std * std)


def test_multiplicative_denoising_score_matching_is_explicit_score_matching():
    """Differences between two candidates of the two losses, by Gauss and Hermite's quadrature over (X_0, z)."""
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(40))
    weights = weights / weights.sum()
    k, v = 0.37, PROCESS.volatility**2
    x0 = torch.exp(MEAN + STD * nodes)[:, None].expand(40, 40)
    mean, std = PROCESS.marginal(x0, k)
    x, w = torch.exp(mean + std * nodes), weights[:, None] * weights
    candidates = (lambda x: 0.3 - x.log(), lambda x: x.log() ** 2 - 0.5 * x.log())
    denoising = [
        float((w * gbm_diffusion.residual(h(x), x, x0, PROCESS, k).square()).sum()) for h in candidates
    ]  # fmt: skip
    explicit = [float((w * (k * v * (h(x) - exact(x, k))).square()).sum()) for h in candidates]
    assert denoising[0] - denoising[1] == pytest.approx(explicit[0] - explicit[1], abs=1e-12)


def test_loss_is_least_at_the_true_score():
    """h = a + b log x fitted to 20000 pairs at k = 0.5: the true a and b within 4 standard errors, about 0.05."""
    x0 = torch.exp(MEAN + STD * torch.randn(20000, 1, dtype=F64))
    k = torch.full((20000,), 0.5, dtype=F64)
    parameters = torch.zeros(2, dtype=F64, requires_grad=True)

    def value(p):
        return gbm_diffusion.loss(lambda x, k: p[0] + p[1] * x.log(), x0, PROCESS, times=k, seed=1).mean()

    slope = torch.autograd.functional.jacobian(value, torch.zeros(2, dtype=F64))
    curve = torch.autograd.functional.hessian(value, torch.zeros(2, dtype=F64))
    found = -torch.linalg.solve(curve, slope)
    mean, std = moments(0.5)
    torch.testing.assert_close(found, torch.tensor([mean / std**2 - 1, -1 / std**2], dtype=F64), rtol=0, atol=0.08)
    gbm_diffusion.loss(lambda x, k: parameters[0] + parameters[1] * x.log(), x0, PROCESS, seed=1).mean().backward()
    assert bool((parameters.grad != 0).all())


@pytest.mark.parametrize("method", ["dls", "log", "ums"])
def test_samples_have_the_law(method):
    """3000 samples of log-normal data by the exact score: KS at 1e-4, of 100 steps (300 of UMS, an Euler scheme)."""
    steps = 300 if method == "ums" else 100
    x = gbm_diffusion.sample(
        exact, PROCESS, (3000, 1), steps, 5, method=method, moments=(MEAN, STD), dtype=F64, last_mean=False,
        grid=lambda p, n: torch.linspace(1, p.t_min**0.5, n + 1, dtype=F64).square(),
    )  # fmt: skip
    mean, std = moments(PROCESS.t_min)
    assert bool((x > 0).all())
    assert ks(x[:, 0].log(), lambda u: normal_cdf(u, mean, std)) < KS_LIMIT


def test_log_state_is_the_same_sampler():
    same = {"moments": (MEAN, STD), "repeats": 2, "anneal": 0.99, "final": 3}
    a, b = (
        gbm_diffusion.sample(exact, PROCESS, (4, 3), 20, 5, method=m, dtype=F64, **same) for m in ("dls", "log")
    )  # fmt: skip
    torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    run = gbm_diffusion.sample(exact, PROCESS, (4, 3), 20, 5, method="log", dtype=F64, full=True, **same)
    assert torch.equal(run.x, b) and run.calls == 43
    for method in ("dls", "ums"):  # a sample depends on its id alone
        whole = gbm_diffusion.sample(exact, PROCESS, (4, 3), 5, 5, method=method, dtype=F64)
        part = gbm_diffusion.sample(exact, PROCESS, (2, 3), 5, 5, method=method, dtype=F64, sample_ids=2)
        torch.testing.assert_close(part, whole[2:], rtol=1e-12, atol=0)


def test_signs():
    """DLS keeps them by an exponential; one large step of UMS turns some."""
    x = torch.tensor([[-1.0], [2.0]])
    far = sde.GeometricBrownian(0.1, 2.0)
    flat = lambda x, k: 0 * x - 2  # noqa: E731
    place = {"times": [1.0, 0.1], "last_mean": False}
    kept = gbm_diffusion.sample(flat, far, (200, 1), seed=1, start=x.abs().repeat(100, 1), **place)
    assert bool((kept > 0).all())
    turned = gbm_diffusion.sample(flat, far, (200, 1), seed=1, start=x.repeat(100, 1), method="ums", **place)
    assert bool((turned.sign() != x.repeat(100, 1).sign()).any())


def test_forward_and_prior():
    x0 = torch.exp(MEAN + STD * torch.randn(3000, 1, dtype=F64))
    x = gbm_diffusion.forward(x0, PROCESS, 0.7, seed=2)
    assert ks(x[:, 0].log(), lambda u: normal_cdf(u, *moments(0.7))) < KS_LIMIT
    start = gbm_diffusion.prior(PROCESS, 3000, (1,), moments=(MEAN, STD), seed=3, dtype=F64)
    assert ks(start[:, 0].log(), lambda u: normal_cdf(u, *moments(1.0))) < KS_LIMIT
    assert gbm_diffusion.log_moments(x0) == pytest.approx((MEAN, STD), abs=0.03)


def test_score_of_a_data_set():
    """Two data points: h by the mixture's formula."""
    data, k = torch.tensor([[1.2, 1.9], [1.6, 1.1]], dtype=F64), torch.tensor([0.4, 0.9], dtype=F64)
    x = torch.tensor([[1.0, 1.5], [1.3, 1.4]], dtype=F64)
    found = gbm_diffusion.empirical(data, PROCESS)(x, k)
    mean = data.log() + (PROCESS.mu - 0.5 * PROCESS.volatility**2) * k[:, None, None]
    var = PROCESS.volatility**2 * k[:, None]
    delta = mean - x.log()[:, None]
    share = torch.softmax(-0.5 * delta.square().sum(2) / var, 1)
    torch.testing.assert_close(found, (share[..., None] * delta).sum(1) / var - 1)


DATA = torch.ones(2, 2)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: gbm_diffusion.forward(-DATA, PROCESS, 0.5), ValueError, "x0 must be positive and finite"),
        (lambda: gbm_diffusion.forward(DATA.half(), PROCESS, 0.5), TypeError, "x0 must be"),
        (lambda: gbm_diffusion.loss(lambda x, k: x[:, 0], DATA, PROCESS), ValueError, r"model must return \(2, 2\)"),
        (lambda: gbm_diffusion.sample(exact, PROCESS, (2, 2), 3, method="euler"), ValueError, "method must be one of"),
        (lambda: gbm_diffusion.sample(exact, sde.VP(), (2, 2), 3), TypeError, "must be a GeometricBrownian"),
        (lambda: gbm_diffusion.sample(exact, PROCESS, (2, 2), 3, start=-DATA), ValueError, "start must be positive"),
        (lambda: gbm_diffusion.sample(lambda x, k: x[:1], PROCESS, (2, 2), 3), ValueError, "must return a tensor of x"),
        (
            lambda: gbm_diffusion.sample(lambda x, k: x / 0, PROCESS, (2, 2), 3, check_finite=True),
            ValueError, "finite",
        ),
        (lambda: gbm_diffusion.empirical(0 * DATA, PROCESS), ValueError, "data must be positive"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
