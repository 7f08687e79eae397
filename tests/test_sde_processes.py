"""Processes and time grids of fokker.sde: the formulas against each other, against simulation, and at their ends."""

import itertools
import math

import pytest
import torch

from fokker import sde
from fokker._sde_table import conversion, conversions

GAUSSIAN = {
    "vp": sde.VP(),
    "cosine": sde.VP("cosine"),
    "subvp": sde.SubVP(),
    "ve": sde.VE(),
    "edm": sde.EDM(),
    "flow": sde.RectifiedFlow(t_max=0.999),
}


def times(process, n=9):
    low = max(process.t_min, 0.01 * process.t_max)
    return torch.linspace(low, 0.98 * process.t_max, n, dtype=torch.float64)


@pytest.fixture(params=GAUSSIAN)
def process(request):
    return GAUSSIAN[request.param]


def derivative(value, t):
    """d value / dt, 0 where value is a constant."""
    if not value.requires_grad:
        return torch.zeros_like(t).detach()
    return torch.autograd.grad(value.sum(), t, retain_graph=True)[0]


def test_rates_are_those_of_the_marginals(process):
    t = times(process).requires_grad_()
    f = derivative(process.log_alpha(t), t)
    torch.testing.assert_close(process.rate(t.detach()), f, rtol=1e-9, atol=1e-12)
    g2 = 2 * process.sigma(t).square() * derivative(torch.log(process.ratio(t)), t)
    torch.testing.assert_close(process.variance_rate(t.detach()), g2.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(process.diffusion(t.detach()).square(), g2.detach(), rtol=1e-9, atol=1e-12)


def test_slopes_are_derivatives(process):
    t = times(process).requires_grad_()
    for function, slope in zip((process.alpha, process.sigma), process.slopes(t.detach()), strict=True):
        torch.testing.assert_close(slope, derivative(function(t), t), rtol=1e-9, atol=1e-12)


def test_inverses(process):
    t = times(process)
    torch.testing.assert_close(process.time_of_ratio(process.ratio(t)), t, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-10, atol=1e-12)


def test_what_each_process_is():
    t = torch.linspace(0.01, 0.98, 7, dtype=torch.float64)
    for name in ("vp", "cosine"):
        p = GAUSSIAN[name]
        torch.testing.assert_close(p.alpha(t).square() + p.sigma(t).square(), torch.ones_like(t), rtol=1e-14, atol=0)
    subvp, vp = GAUSSIAN["subvp"], GAUSSIAN["vp"]
    torch.testing.assert_close(subvp.sigma(t), vp.sigma(t).square(), rtol=1e-12, atol=0)  # 1 - alpha^2, not its root
    ve = GAUSSIAN["ve"]
    assert float(ve.sigma(0.0)) == ve.sigma_min and float(ve.sigma(1.0)) == pytest.approx(ve.sigma_max, rel=1e-14)
    assert float(vp.log_alpha(1.0)) == pytest.approx(-0.25 * 19.9 - 0.05, rel=1e-14)
    s = 0.008
    cosine = torch.cos(math.pi / 2 * (t + s) / (1 + s)) / math.cos(math.pi / 2 * s / (1 + s))
    torch.testing.assert_close(GAUSSIAN["cosine"].alpha(t), cosine, rtol=1e-13, atol=0)


def test_small_times_keep_their_digits():
    """1 - alpha^2 at t = 1e-12 would be all rounding without expm1."""
    t = 1e-12
    assert float(sde.VP().sigma(t)) ** 2 == pytest.approx(0.1 * t, rel=1e-9)
    assert float(sde.SubVP().sigma(t)) == pytest.approx(0.1 * t, rel=1e-9)
    beta = float(sde.VP("cosine").beta(0.0))
    assert float(sde.VP("cosine").sigma(1e-10)) ** 2 == pytest.approx(beta * 1e-10, rel=1e-6)


@pytest.mark.parametrize("name", ["vp", "subvp", "ve", "edm"])
def test_marginals_are_those_of_the_sde(name):
    """Euler-Maruyama on the forward SDE from one point: mean and variance within four standard errors (1e-4 each)."""
    process = {**GAUSSIAN, "edm": sde.EDM(sigma_max=3.0)}[name]
    n, steps, end = 20_000, 200, 0.5 * process.t_max if name != "edm" else 3.0
    x0 = torch.full((n, 1), 0.7, dtype=torch.float64)
    x, dt, start = x0.clone(), end / steps, 0.0
    std0 = float(process.sigma(start))
    x = x + std0 * torch.randn(n, 1, dtype=torch.float64)
    for i in range(steps):
        t = start + (i + 0.5) * dt  # the middle of the step: its mean and variance are then right to second order
        x = x + process.drift(x, t) * dt + float(process.diffusion(t)) * math.sqrt(dt) * torch.randn_like(x)
    mean, std = process.marginal(x0, end)
    assert abs(float(x.mean() - mean[0])) < 4 * float(std) / math.sqrt(n) + 1e-3
    assert float(x.std() / std) == pytest.approx(1, abs=4 / math.sqrt(2 * n) + 3e-3)


def test_reverse_drift_and_flow(process):
    x, score = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    t = times(process, 4)
    forward, g2 = process.drift(x, t), process.variance_rate(t)[:, None]
    torch.testing.assert_close(process.reverse_drift(x, t, score), forward - g2 * score)
    torch.testing.assert_close(process.probability_flow(x, t, score), forward - 0.5 * g2 * score)
    torch.testing.assert_close(process.drift(x.float(), float(t[1])), process.drift(x, t[1]).float(), rtol=1e-6, atol=0)


def test_diffuse_and_prior(process):
    x0 = torch.randn(3000, 2)
    t = torch.full((3000,), float(times(process)[4]))
    x = process.diffuse(x0, t, seed=1)
    again = process.diffuse(x0[5:8], t[5:8], seed=1, sample_ids=range(5, 8))
    torch.testing.assert_close(x[5:8], again, rtol=0, atol=0)
    z = (x - process.alpha(t)[:, None].float() * x0) / process.sigma(t)[:, None].float()
    assert abs(float(z.mean())) < 0.06 and float(z.std()) == pytest.approx(1, abs=0.04)  # 4.6 standard errors
    y = process.prior_sample(5, (2, 3), seed=2)
    normal = torch.distributions.Normal(0.0, process.prior_std)
    exact = normal.log_prob(y.double()).sum((1, 2))
    torch.testing.assert_close(process.prior_log_prob(y), exact, rtol=1e-6, atol=1e-6)


PREDICTIONS = ("x0", "epsilon", "score", "v", "flow")


@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(PREDICTIONS, PREDICTIONS)))
def test_conversions(process, given, wanted):
    t = times(process)[1:]
    x0, z = torch.randn(len(t), 5, dtype=torch.float64), torch.randn(len(t), 5, dtype=torch.float64)
    a, s = process.alpha(t)[:, None], process.sigma(t)[:, None]
    da, ds = (c[:, None] for c in process.slopes(t))
    kinds = {"x0": x0, "epsilon": z, "score": -z / s, "v": a * z - s * x0, "flow": da * x0 + ds * z}
    p, q = (c[:, None] for c in conversions(process, t, given, wanted))
    torch.testing.assert_close(p * (a * x0 + s * z) + q * kinds[given], kinds[wanted], rtol=1e-8, atol=1e-8)
    assert conversion(process, float(t[2]), given, wanted) == (float(p[2]), float(q[2]))


def test_edm_preconditioning():
    p = sde.EDM(sigma_data=0.7)
    skip, out = conversion(p, 2.0, "edm", "x0")
    assert skip == pytest.approx(0.49 / 4.49, rel=1e-14) and out == pytest.approx(1.4 / math.sqrt(4.49), rel=1e-14)


def test_conversion_at_the_ends():
    flow = sde.RectifiedFlow()
    assert conversion(flow, 1.0, "flow", "x0") == (1.0, -1.0)
    assert conversion(flow, 1.0, "epsilon", "epsilon") == (0.0, 1.0)
    with pytest.raises(ValueError, match="'epsilon' does not give 'x0' at time 1"):
        conversion(flow, 1.0, "epsilon", "x0")
    with pytest.raises(ValueError, match="'x0' does not give 'score' at time 0"):
        conversion(sde.VP(), 0.0, "x0", "score")
    with pytest.raises(ValueError, match="prediction must be one of"):
        conversion(sde.VP(), 0.5, "noise", "x0")


# ---- geometric Brownian motion and interpolants ---------------------------------------------------------------------
def test_geometric_brownian():
    p = sde.GeometricBrownian(0.1, 0.5)
    x = torch.rand(6, 2, dtype=torch.float64) + 0.5
    mean, std = p.marginal(x, 0.3)
    torch.testing.assert_close(mean, x.log() + (0.1 - 0.125) * 0.3)
    assert float(std) == pytest.approx(0.5 * math.sqrt(0.3), rel=1e-14)
    law = torch.distributions.LogNormal(torch.tensor(-0.025).double(), torch.tensor(0.5).double())
    torch.testing.assert_close(p.prior_log_prob(x), law.log_prob(x).sum(1))
    drawn = p.prior_sample(50_000, (1,), seed=3, dtype=torch.float64).log()
    assert abs(float(drawn.mean()) + 0.025) < 4 * 0.5 / math.sqrt(50_000)
    # f - d(g^2) / dx - g^2 s and the flow, from their definition
    score = torch.randn_like(x)
    g2_slope = 2 * 0.25 * x
    torch.testing.assert_close(p.reverse_drift(x, 0.3, score), 0.1 * x - g2_slope - 0.25 * x.square() * score)
    flow = 0.1 * x - 0.5 * g2_slope - 0.125 * x.square() * score
    torch.testing.assert_close(p.probability_flow(x, 0.3, score), flow)
    torch.testing.assert_close(p.diffusion(x, 0.3), 0.5 * x)
    torch.testing.assert_close(p.drift(x, 0.3), 0.1 * x)


INTERPOLANTS = [
    *(("linear", g) for g in ("brownian", "quadratic", "sine", "none")),
    ("trigonometric", "brownian"),
    ("encoding-decoding", "sine"),
    ("mirror", "quadratic"),
]


@pytest.mark.parametrize(("path", "gamma"), INTERPOLANTS)
def test_interpolants(path, gamma):
    p = sde.StochasticInterpolant(path, gamma)
    t = torch.tensor([0.1, 0.3, 0.62, 0.9], dtype=torch.float64, requires_grad=True)
    for value, slope in zip(p.coefficients(t), p.slopes(t.detach()), strict=True):
        torch.testing.assert_close(slope, derivative(value, t), rtol=1e-9, atol=1e-12)
    first, last = (tuple(float(c) for c in p.coefficients(u)) for u in (0.0, 1.0))
    assert first == pytest.approx((0.0 if path == "mirror" else 1.0, 1.0 if path == "mirror" else 0.0, 0.0), abs=1e-15)
    assert last == pytest.approx((0.0, 1.0, 0.0), abs=1e-15)
    x0, x1 = torch.randn(2, 3, 2, dtype=torch.float64)
    at = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    mean, std = p.marginal(x0, x1, at)
    z = (p.bridge(x0, x1, at, seed=1) - mean) / std.clamp(min=1e-300)
    assert gamma == "none" or float(z.abs().max()) < 6
    slopes = [c[:, None] for c in p.slopes(at)]
    target = slopes[0] * x0 + slopes[1] * x1 + slopes[2] * z
    torch.testing.assert_close(p.velocity_target(x0, x1, z, at), target)
    torch.testing.assert_close(p.forward_drift(x0, 0.1, x1, z, 0.3), x1 + 0.3 * z)
    torch.testing.assert_close(p.reverse_drift(x0, 0.1, x1, z, 0.3), x1 - 0.3 * z)


# ---- grids ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["uniform", "karras", "log_snr", "logit_normal"])
def test_grids(process, name):
    t = getattr(sde, name)(process, 12)
    assert t.dtype == torch.float64 and len(t) == 13 and bool((t.diff() < 0).all())
    assert float(t[0]) == process.t_max
    assert float(t[-1]) == (0.0 if process.to_zero else process.t_min)
    open_end = getattr(sde, name)(process, 12, to_zero=not process.to_zero)
    assert len(open_end) == 13 and float(open_end[-1]) == (process.t_min if process.to_zero else 0.0)
    level = {"karras": lambda u: process.ratio(u) ** (1 / 7), "log_snr": process.log_snr, "uniform": lambda u: u}
    if name in level:
        gaps = level[name](open_end if process.to_zero else t).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand(12), rtol=1e-6, atol=0)


def test_karras_is_equation_5():
    p = sde.EDM()
    i = torch.arange(18, dtype=torch.float64)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sde.karras(p, 18)[:-1], sigma, rtol=1e-12, atol=0)


def test_flow_grids():
    p = sde.RectifiedFlow()
    t = sde.uniform(p, 4)
    torch.testing.assert_close(t, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64))
    shifted = sde.flow_shift(t, 3.0)
    torch.testing.assert_close(shifted, 3 * t / (1 + 2 * t), rtol=1e-15, atol=0)
    # the shift is one of log(alpha / sigma)
    torch.testing.assert_close(p.log_snr(shifted[1:-1]), p.log_snr(t[1:-1]) - math.log(3), rtol=1e-12, atol=1e-12)
    law = sde.logit_normal(p, 2000, mean=0.3, std=0.8)
    inner = torch.logit(law[1:-1])
    assert float(inner.mean()) == pytest.approx(0.3, abs=1e-6) and float(inner.std()) == pytest.approx(0.8, rel=1e-2)


def test_times_of_sigmas():
    p = sde.EDM()
    torch.testing.assert_close(sde.times_of_sigmas(p, [5.0, 1.0, 0.0]), torch.tensor([5.0, 1.0, 0.0]).double())
    t = sde.times_of_sigmas(sde.VP(), [5.0, 1.0, 0.2])
    torch.testing.assert_close(sde.VP().ratio(t), torch.tensor([5.0, 1.0, 0.2]).double())


def test_repr():
    assert repr(sde.EDM(sigma_max=20.0)).startswith("EDM(sigma_data=0.5, t_min=0.002, t_max=20.0")
    assert "path='linear'" in repr(sde.StochasticInterpolant())
