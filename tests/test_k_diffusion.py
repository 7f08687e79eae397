"""k-diffusion's samplers: against plain loops in float64, against exact solutions, and their noise."""

import math

import pytest
import torch

import fokker
from fokker import _k_diffusion as k
from fokker import schedulers

DATA = 0.5  # the standard deviation of the Gaussian data of exact solutions
SAMPLERS = [name for name in k.__all__ if name.startswith("sample")]
STOCHASTIC = [n for n in SAMPLERS if "ancestral" in n or "sde" in n]


def exact(x, sigma):
    """The posterior mean of data N(0, DATA^2)."""
    sigma = sigma.view(-1, *[1] * (x.dim() - 1))
    return x * DATA**2 / (DATA**2 + sigma**2)


def curved(x, sigma):
    sigma = sigma.view(-1, *[1] * (x.dim() - 1))
    return exact(x, sigma) + 0.1 * torch.tanh(x / (1 + sigma))


def listed(seed=0):
    """A noise sampler that gives the same normals in the same order each time."""
    g = torch.Generator().manual_seed(seed)
    return lambda a, b: torch.randn(2, 3, 4, generator=g, dtype=torch.float64)


# ---- the definitions ------------------------------------------------------------------------------------------------
def split(s, to, eta):
    up = min(to, eta * math.sqrt(to**2 * (s**2 - to**2) / s**2))
    return math.sqrt(to**2 - up**2), up


def loop(name, model, x, sigmas, noise, eta=1.0, s_noise=1.0, r=0.5, solver_type="midpoint", order=4):
    """A sampler as its paper writes it: lambda = -log sigma, D the model's prediction, slopes (x - D) / sigma."""
    s = [float(v) for v in sigmas]
    old, slopes = [], []

    def predict(x, sigma):
        return model(x, torch.full((len(x),), sigma, dtype=x.dtype))

    def slope(x, sigma):
        return (x - predict(x, sigma)) / sigma

    for i in range(len(s) - 1):
        a, b = s[i], s[i + 1]
        d = predict(x, a)
        down, up = split(a, b, eta) if "ancestral" in name else (b, 0.0)
        mid = math.sqrt(a * down)
        h = math.log(a / b) if b else math.inf
        if name in ("euler", "euler_ancestral") or (down == 0 and name not in ("lms", "dpmpp_2m_sde", "dpmpp_3m_sde")):
            x = x + (x - d) / a * (down - a)
        elif name == "heun":
            first = (x - d) / a
            x = x + (b - a) * (first + slope(x + (b - a) * first, b)) / 2
        elif name in ("dpm_2", "dpm_2_ancestral"):
            x = x + slope(x + (x - d) / a * (mid - a), mid) * (down - a)
        elif name == "lms":
            slopes = [(x - d) / a, *slopes][:order]
            x = x + sum(w * v for w, v in zip(lagrange(s[i::-1][: len(slopes)], a, b), slopes, strict=True))
        elif name == "dpmpp_2s_ancestral":
            half = math.log(a / down) / 2
            ahead = math.exp(-half) * x - math.expm1(-half) * d
            x = math.exp(-2 * half) * x - math.expm1(-2 * half) * predict(ahead, mid)
        elif name == "dpmpp_sde":
            mid = a * math.exp(-r * h)
            below, extra = split(a, mid, eta)
            ahead = below / a * x + (1 - below / a) * d + noise(a, mid) * s_noise * extra
            below, extra = split(a, b, eta)
            both = (1 - 1 / (2 * r)) * d + 1 / (2 * r) * predict(ahead, mid)
            x = below / a * x + (1 - below / a) * both + noise(a, b) * s_noise * extra
        else:
            tau = 0.0 if name == "dpmpp_2m" else eta
            full = (1 + tau) * h
            steps = [math.log(s[j] / s[j + 1]) / h for j in range(i - 1, max(i - 3, -1), -1)] if b else []
            grown = -math.expm1(-full)
            phi2 = 1 - grown / full
            new = (b / a * math.exp(-tau * h) if b else 0.0) * x + grown * d
            first = [(p - q) / w for p, q, w in zip([d, *old], old, steps, strict=False)]
            if name == "dpmpp_3m_sde" and len(first) == 2:
                curve = (first[0] - first[1]) / (steps[0] + steps[1])
                new = new + phi2 * (first[0] + steps[0] * curve) - (phi2 / full - 0.5) * curve
            elif first:
                new = new + (phi2 if name == "dpmpp_3m_sde" or solver_type == "heun" else grown / 2) * first[0]
            if tau and b:
                new = new + noise(a, b) * b * math.sqrt(-math.expm1(-2 * tau * h)) * s_noise
            x, old = new, [d, *old][: 2 if name == "dpmpp_3m_sde" else 1]
        if up:
            x = x + noise(a, b) * s_noise * up
    return x


def lagrange(nodes, a, b):
    """Integrals over [a, b] of the Lagrange polynomials of the nodes, by numpy's polynomials."""
    from numpy.polynomial import Polynomial

    found = []
    for j, node in enumerate(nodes):
        p = Polynomial([1.0])
        for i, other in enumerate(nodes):
            if i != j:
                p = p * Polynomial([-other, 1.0]) / (node - other)
        whole = p.integ()
        found.append(float(whole(b) - whole(a)))
    return found


VARIANTS = {
    "sample_lms": [{"order": 1}, {"order": 3}],
    "sample_dpmpp_2m_sde": [{"solver_type": "heun"}, {"eta": 0.0}],
    "sample_dpmpp_sde": [{"r": 0.7}],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_definition(name):
    x = 14.6 * torch.randn(2, 3, 4, dtype=torch.float64)
    variants = [{}, *VARIANTS.get(name, [])]
    if name in STOCHASTIC:
        variants.append({"eta": 0.5, "s_noise": 1.01})
    for sigmas in (k.get_sigmas_karras(9, 0.03, 14.6), k.get_sigmas_exponential(9, 0.03, 14.6)[:-1]):
        for options in variants:
            extra = {"noise_sampler": listed()} if name in STOCHASTIC else {}
            found = getattr(k, name)(curved, x, sigmas.double(), disable=True, **extra, **options)
            expected = loop(name.removeprefix("sample_"), curved, x, sigmas, listed(), **options)
            assert torch.allclose(found, expected, rtol=1e-11, atol=1e-11), options
            single = getattr(k, name)(curved, x.float(), sigmas, disable=True, **extra and {"noise_sampler": listed()},
                                      **options)  # fmt: skip
            assert single.dtype == torch.float32
            assert (single - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("sample_euler", 1),
        ("sample_heun", 2),
        ("sample_dpm_2", 2),
        ("sample_lms", 3),
        ("sample_dpmpp_2m", 2),
        ("sample_dpmpp_2s_ancestral", 2),
        ("sample_dpmpp_sde", 2),
        ("sample_dpmpp_2m_sde", 2),
        # k-diffusion (as Lu et al.'s code) gives the second difference half of the weight that order 3 would take
        ("sample_dpmpp_3m_sde", 2),
    ],
)
def test_order_of_convergence(name, order):
    """The probability flow of Gaussian data is known: x(sigma) / sqrt(data^2 + sigma^2) stays.

    Multistep methods begin with lower orders, which costs nothing here: at a large sigma the slope is constant.
    """
    x = torch.ones(1, 1, dtype=torch.float64)
    options = {"eta": 0.0} if name in STOCHASTIC else {}
    errors = []
    for n in (128, 256):
        sigmas = torch.logspace(3, -1, n + 1, dtype=torch.float64)
        found = getattr(k, name)(exact, x, sigmas, disable=True, **options)
        truth = math.sqrt((DATA**2 + float(sigmas[-1]) ** 2) / (DATA**2 + float(sigmas[0]) ** 2))
        errors.append(abs(float(found) - truth))
    assert math.log2(errors[0] / errors[1]) > order - 0.2


@pytest.mark.parametrize("name", STOCHASTIC)
def test_law_of_the_samples(name):
    """From the prior of Gaussian data to the data: 10,000 numbers, whose deviation has an error of 0.7%."""
    x = 10.0 * torch.randn(10, 1000)
    found = getattr(k, name)(exact, x, k.get_sigmas_karras(150, 0.02, 10.0), disable=True, seed=5)
    assert abs(float(found.std()) / DATA - 1) < 0.04
    assert abs(float(found.mean())) < 0.02


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_the_samples_own(name):
    sampler, sigmas = getattr(k, name), k.get_sigmas_karras(6, 0.03, 14.6)
    x = 14.6 * torch.randn(3, 2, 4)
    whole = sampler(curved, x, sigmas, disable=True, seed=7)
    one = sampler(curved, x[1:2], sigmas, disable=True, seed=7, sample_ids=[1])
    assert torch.equal(whole[1:2], one)
    assert not torch.equal(whole, sampler(curved, x, sigmas, disable=True, seed=8))
    torch.manual_seed(3)
    first = sampler(curved, x, sigmas, disable=True)
    torch.manual_seed(3)
    assert torch.equal(first, sampler(curved, x, sigmas, disable=True))


def test_noise_of_a_step_is_that_of_its_counter():
    sigmas = k.get_sigmas_karras(6, 0.03, 14.6)
    x = 14.6 * torch.randn(2, 3, 4)
    count = iter(range(6))
    found = k.sample_euler_ancestral(
        curved, x, sigmas, disable=True,
        noise_sampler=lambda a, b: fokker.random.normal(2, (3, 4), seed=9, step=next(count)),
    )  # fmt: skip
    assert torch.allclose(found, k.sample_euler_ancestral(curved, x, sigmas, disable=True, seed=9), atol=1e-5)


def test_stages_of_dpmpp_sde_share_a_path():
    """The noises of (sigma, middle) and (sigma, next) have the correlation of a Brownian path's increments."""
    x, seen = torch.zeros(200, 200), []

    def zero(x, sigma):
        seen.append(x)
        return torch.zeros_like(x)

    found = k.sample_dpmpp_sde(zero, x, torch.tensor([4.0, 1.0]), disable=True, seed=2)
    both = torch.corrcoef(torch.stack([seen[1].flatten(), found.flatten()]))
    assert abs(float(both[0, 1]) - math.sqrt((4 - 2) / (4 - 1))) < 0.02


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun", "sample_dpm_2"])
def test_churn(name):
    """Raised steps are those of the sampler without churn from x + sqrt(raised^2 - sigma^2) z."""
    sigmas = torch.tensor([8.0, 3.0, 0.0], dtype=torch.float64)
    x = 8 * torch.randn(2, 3, 4, dtype=torch.float64)
    sampler = getattr(k, name)
    found = sampler(curved, x, sigmas, disable=True, seed=4, s_churn=0.5, s_tmin=5.0, s_noise=1.1)
    raised = 8.0 * 1.25
    z = fokker.random.normal(2, (3, 4), seed=4, stream=2, dtype=torch.float64)
    x = x + 1.1 * math.sqrt(raised**2 - 64.0) * z
    x = sampler(curved, x, torch.tensor([raised, 3.0]).double(), disable=True)
    assert torch.allclose(found, sampler(curved, x, sigmas[1:], disable=True), rtol=1e-10)


def test_schedules():
    for schedule in (k.get_sigmas_karras, k.get_sigmas_exponential, k.get_sigmas_polyexponential):
        s = schedule(5, 0.1, 10.0)
        assert s.shape == (6,) and s[-1] == 0 and torch.all(s.diff() < 0)
        assert torch.allclose(s[[0, 4]], torch.tensor([10.0, 0.1]))
    s = k.get_sigmas_karras(5, 0.1, 10.0, rho=3.0)[:-1] ** (1 / 3)
    assert torch.allclose(s.diff(), s.diff()[:1].expand(4), atol=1e-6)
    s = k.get_sigmas_exponential(5, 0.1, 10.0)[:-1].log()
    assert torch.allclose(s.diff(), s.diff()[:1].expand(4), atol=1e-6)


def test_callback_arguments_and_gradient():
    seen = []
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    sigmas = k.get_sigmas_karras(4, 0.1, 2.0)
    found = schedulers.sample_dpmpp_2m(
        lambda x, sigma, scale: scale * curved(x, sigma), x, sigmas, {"scale": scale}, seen.append, True
    )
    assert [c["i"] for c in seen] == [0, 1, 2, 3] and all(
        set(c) == {"x", "i", "sigma", "sigma_hat", "denoised"} for c in seen
    )
    assert torch.equal(seen[2]["sigma"], sigmas[2])
    found.square().sum().backward()
    expected = loop("dpmpp_2m", lambda x, s: scale * curved(x, s), x, sigmas, None).square().sum()
    for g, e in zip((x.grad, scale.grad), torch.autograd.grad(expected, (x, scale)), strict=True):
        assert torch.allclose(g, e, rtol=1e-9)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, 1.0, 0.0], [math.inf, 1.0], [1.0, -0.5], [math.nan, 0.0]])
def test_bad_sigmas(sigmas):
    with pytest.raises(ValueError, match="sigmas must"):
        k.sample_euler(curved, torch.zeros(1, 2), torch.tensor(sigmas), disable=True)


def test_bad_arguments():
    sigmas = torch.tensor([2.0, 1.0, 0.0])
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        k.sample_euler(curved, torch.zeros(1, 2, dtype=torch.int64), sigmas)
    with pytest.raises(ValueError, match="solver_type"):
        k.sample_dpmpp_2m_sde(curved, torch.zeros(1, 2), sigmas, solver_type="x")
    with pytest.raises(ValueError, match="order"):
        k.sample_lms(curved, torch.zeros(1, 2), sigmas, order=0)
    with pytest.raises(ValueError, match="seed"):
        k.sample_euler_ancestral(curved, torch.zeros(1, 2), sigmas, disable=True, seed=-1)
    with pytest.raises(ValueError, match="sigma_min"):
        k.get_sigmas_karras(5, 2.0, 1.0)
