"""fokker.systems.distill: exact gradients of divergences, running means, bad input; a mixture's one-step generators."""

import math

import numpy as np
import pytest
import torch

from fokker import denoiser, mixture, pairwise
from fokker.systems import distill

F64 = torch.float64


# ---- the gradient of the rate of a divergence ------------------------------------------------------------------------
def gauss(count):
    """Nodes and weights of an expectation over N(0, 1)."""
    x, w = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(x), torch.from_numpy(w / w.sum())


def rate(name, mean, std, sigma):
    """E_q[h(p / q) |s_p - s_q|^2] / 2 of p = N(0, 1) and q = N(mean, std^2), both with noise sigma."""
    p, q = 1 + sigma**2, std**2 + sigma**2
    x, w = gauss(120)
    x = mean + math.sqrt(q) * x
    log_ratio = -0.5 * x**2 / p + 0.5 * (x - mean) ** 2 / q + 0.5 * math.log(q / p)
    h = denoiser.divergence_weight(log_ratio, name, clamp=None)
    return 0.5 * float((w * h * (-x / p + (x - mean) / q) ** 2).sum())


@pytest.mark.parametrize("name", denoiser.DIVERGENCES)
def test_uni_instruct_along_the_path_is_the_exact_gradient(name):
    sigma, at = 0.7, (0.4, 0.9)
    theta = torch.tensor(at, dtype=F64, requires_grad=True)
    (z, wz), (n, wn) = gauss(60), gauss(60)
    y = (theta[0] + theta[1] * z).repeat_interleave(60)[:, None]
    weights = (wz[:, None] * wn).flatten()
    x = y + sigma * n.repeat(60)[:, None]
    p, q = 1 + sigma**2, at[1] ** 2 + sigma**2
    log_ratio = (-0.5 * x**2 / p + 0.5 * (x - at[0]) ** 2 / q + 0.5 * math.log(q / p))[:, 0]
    loss = distill.uni_instruct(
        y,
        x,
        torch.full((3600,), sigma, dtype=F64),
        lambda x, s: x / p,
        lambda x, s: (x * at[1] ** 2 + sigma**2 * at[0]) / q,
        log_ratio,
        divergence=name,
        path=True,
        scale=sigma**4 / (3600 * weights),  # an expectation by quadrature
    )
    (got,) = torch.autograd.grad(loss, theta)
    eps = 1e-4
    want = [
        (rate(name, at[0] + eps, at[1], sigma) - rate(name, at[0] - eps, at[1], sigma)) / (2 * eps),
        (rate(name, at[0], at[1] + eps, sigma) - rate(name, at[0], at[1] - eps, sigma)) / (2 * eps),
    ]
    torch.testing.assert_close(got, torch.tensor(want, dtype=F64), rtol=1e-6, atol=1e-8)


def test_sid_at_one_half_and_the_forward_kl_are_cases_of_it():
    y, n = torch.randn(2, 6, 3, dtype=F64, requires_grad=True).unbind(0)
    sigma = torch.full((6,), 0.5, dtype=F64)
    x = y + 0.5 * n
    teacher, fake = (lambda x, s: 0.3 * x.sin()), (lambda x, s: 0.5 * x)
    log_ratio = x.sum(1)
    scale = sigma**4
    for name, alpha, weight in (("reverse_kl", 0.5, 1.0), ("forward_kl", 1.0, log_ratio.exp())):
        args = (y, x, sigma, teacher, fake)
        one = distill.uni_instruct(*args, log_ratio, divergence=name, path=True, scale=scale)
        other = distill.sid(*args, alpha=alpha, weight=weight, scale=scale)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_f_distill_weights_the_gradient():
    y = torch.randn(5, 4, dtype=F64, requires_grad=True)
    sigma = torch.linspace(0.1, 2.0, 5, dtype=F64)
    x = distill.noised(y, sigma, seed=1)
    logits = torch.linspace(-3, 3, 5, dtype=F64)

    def grad(loss):
        return torch.autograd.grad(loss, y, retain_graph=True)[0]

    networks = (lambda x, s: 0.3 * x, lambda x, s: 0.5 * x)
    plain = grad(distill.dmd(y, x, sigma, *networks))
    for name in denoiser.DIVERGENCES:
        h = denoiser.divergence_weight(logits, name)[:, None]
        got = grad(distill.f_distill(y, x, sigma, *networks, logits, divergence=name, normalize=False))
        torch.testing.assert_close(got, h * plain, rtol=1e-12, atol=0)
        got = grad(distill.f_distill(y, x, sigma, *networks, logits, divergence=name))
        torch.testing.assert_close(got, h / h.mean() * plain, rtol=1e-12, atol=0)


def test_binned_mean():
    bins = distill.BinnedMean(0.1, 10.0, count=2, decay=0.5)
    sigma = torch.tensor([0.2, 0.5, 3.0, 100.0])
    first = bins(torch.tensor([1.0, 3.0, 5.0, 5.0]), sigma)
    torch.testing.assert_close(first, torch.tensor([0.5, 1.5, 1.0, 1.0]))
    second = bins(torch.tensor([4.0, 4.0]), sigma[:2])
    torch.testing.assert_close(second, torch.full((2,), 4.0 / 3.0))  # (2 + 4) / 2
    torch.testing.assert_close(bins.mean, torch.tensor([3.0, 5.0], dtype=F64))


# ---- training --------------------------------------------------------------------------------------------------------
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.6], [0.6, -1.0]])
STD, SIGMA_DATA = 0.4, 0.9


class Net(torch.nn.Module):
    """A small network of x and the noise level; ``out`` 0: the EDM-preconditioned denoiser, else plain outputs."""

    def __init__(self, out=0, width=64):
        super().__init__()
        self.out = out
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU(),
            torch.nn.Linear(width, out or 2),
        )  # fmt: skip

    def forward(self, x, sigma):
        scaled, noise = denoiser.edm_precondition_in(x, sigma, SIGMA_DATA)
        f = self.layers(torch.cat([scaled, noise[:, None], (4 * noise).sin()[:, None]], 1))
        if self.out:
            return f[:, 0]
        return denoiser.edm_precondition_out(x, f, sigma, SIGMA_DATA)


def generator():
    return torch.nn.Sequential(
        torch.nn.Linear(2, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 2)
    )


RUNS = {
    "dmd2": {},
    "forward_kl": {"method": "f_distill", "divergence": "forward_kl"},
    "jensen_shannon": {"method": "f_distill", "divergence": "jensen_shannon"},
    "sid": {"method": "sid", "alpha": 1.0},
    "uni_instruct": {"method": "uni_instruct", "divergence": "forward_kl", "settings": {"normalize": True}},
    "trajectory": {"method": "trajectory", "ode_steps": 12},
}
STEPS = {"trajectory": 200}


@pytest.fixture
def one_thread():
    """Small batches gain nothing from a second thread, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(name, steps):
    """A generator after some steps, as a function of how many samples, and the mixture it learns."""
    exact = mixture.Mixture(MEANS, torch.tensor(STD**2), covariance_type="isotropic")

    def teacher(x, sigma):
        return mixture.posterior_mean(x, exact, sigma=sigma, precision="high")

    run = distill.Distiller(
        generator(), teacher, Net(), discriminator=Net(1), sigma_min=0.1, sigma_max=3.0, sigma_data=SIGMA_DATA,
        lr=4e-3 if name == "trajectory" else 2e-3, fake_lr=4e-3, ema=0.98, **RUNS[name],
    )  # fmt: skip
    g, scale = torch.Generator().manual_seed(1), 3.0 if name == "trajectory" else 1.0
    for i in range(steps):
        real = mixture.sample(exact, (512,), seed=i) if run.needs_ratio else None
        run.step(scale * torch.randn(512, 2, generator=g), real)
    return lambda n: run.averaged(scale * torch.randn(n, 2, generator=g)).detach(), exact


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_one_step_generator_of_a_mixture(name, one_thread):
    """Three modes: MMD^2 to exact samples (Gaussian kernel of width 0.5) below 0.012; mean and covariance.

    Beside: two exact samples 2e-4, weights (.4, .3, .3) 0.003, the normal law with the mixture's moments 0.046, one
    mode missing 0.07.
    """
    sample, exact = trained(name, STEPS.get(name, 400))
    y, truth = sample(4096), mixture.sample(exact, (4096,), seed=10**6)
    assert float(pairwise.mmd2(y, truth, bandwidth=0.5, estimator="unbiased")) < 0.012
    torch.testing.assert_close(y.mean(0), MEANS.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(
        torch.cov(y.T), torch.cov(MEANS.T, correction=0) + STD**2 * torch.eye(2), rtol=0, atol=0.12
    )


@pytest.mark.parametrize("name", RUNS)
def test_every_method_takes_steps(name, one_thread):
    sample, _ = trained(name, 2)
    assert sample(5).shape == (5, 2) and sample(5).isfinite().all()


@pytest.mark.slow
def test_digits_by_one_call(tmp_path, one_thread):
    """Half the example's steps: nearer to held-out digits than a normal law with the digits' moments."""
    from fokker._cli.system_distill import example

    found = example(tmp_path, steps=500)
    assert max(found["DMD2"], found["f-distill, Jensen-Shannon"]) < 0.9 * found["normal"], found
    assert found["pictures"][0].exists()


def test_the_discriminator_learns_the_log_ratio():
    """Of N(0.5, 1) and N(0, 1) at noise sigma: r = exp((0.5 x - 0.125) / (1 + sigma^2))."""

    class Linear(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x, sigma):
            return (self.w[0] * x[:, 0] + self.w[1]) / (1 + sigma**2)

    net, sigma = Linear(), torch.full((200_000,), 0.5)
    false = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(2))
    real = false.flip(0) + 0.5
    data, x = distill.noised(real, sigma, seed=1, step=0), distill.noised(false, sigma, seed=1, step=1)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=30)

    def closure():
        optimizer.zero_grad()
        loss = distill.ratio_loss(net(data, sigma), net(x, sigma))
        loss.backward()
        return loss

    optimizer.step(closure)
    # the spread of the estimate is about 0.01 here
    torch.testing.assert_close(net.w.detach(), torch.tensor([0.5, -0.125]), rtol=0, atol=0.05)


# ---- bad input -------------------------------------------------------------------------------------------------------
def test_bad_input():
    y = torch.randn(4, 2)
    sigma, ratio = torch.ones(4), torch.zeros(4)
    x = distill.noised(y, sigma, seed=0)

    def good(x, s):
        return 0.5 * x

    def broken(x, s):
        return x / torch.tensor([1.0, 1.0, 0.0, 1.0])[:, None]

    with pytest.raises(ValueError, match=r"sigma must be a tensor \(4,\)"):
        distill.noised(y, torch.ones(3), seed=0)
    with pytest.raises(ValueError, match=r"teacher must return .* \(4, 2\) of x, got torch.float32 \(4,\)"):
        distill.dmd(y, x, sigma, lambda x, s: x[:, 0], good)
    with pytest.raises(ValueError, match="fake must return"):
        distill.sid(y, x, sigma, good, lambda x, s: None)
    with pytest.raises(ValueError, match=r"teacher is not finite in samples \[2\]"):
        distill.dmd(y, x, sigma, broken, good)
    with pytest.raises(ValueError, match=r"log_ratio must be one logit a sample, \(4,\)"):
        distill.f_distill(y, x, sigma, good, good, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="divergence must be one of"):
        distill.f_distill(y, x, sigma, good, good, ratio, divergence="kl")
    with pytest.raises(ValueError, match=r"target \(3, 2\) must have the shape"):
        distill.trajectory_matching(y, y[:3])
    with pytest.raises(ValueError, match="method must be one of"):
        distill.Distiller(generator(), good, Net(), method="gan")
    with pytest.raises(ValueError, match="needs a fake score"):
        distill.Distiller(generator(), good)
    with pytest.raises(ValueError, match="needs a discriminator"):
        distill.Distiller(generator(), good, Net(), method="f_distill")
    with pytest.raises(ValueError, match="real must be data"):
        distill.Distiller(generator(), good, Net(), method="f_distill", discriminator=Net(1)).step(y)
    with pytest.raises(ValueError, match="0 < low < high"):
        distill.BinnedMean(1.0, 0.5)
