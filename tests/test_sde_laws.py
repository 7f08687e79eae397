"""Samplers with noise have the right law, at their published order, on mixtures whose scores are known.

They are Markov chains with Gaussian steps (or, where they are not, linear on a Gaussian law), so the law of the result
is computed, by quadrature, with no sampling error; nothing here is random but the last test, whose false-alarm rate is
stated.
"""

import math

import pytest
import torch
from sde_problems import KS_LIMIT, denoiser, differences, ks, normal_cdf, slope

from fokker import mixture, sde

# ---- with noise: the law of the result by quadrature ----------------------------------------------------------------
LINE = torch.linspace(-4.5, 4.5, 401, dtype=torch.float64)
LAW = mixture.Mixture(
    torch.tensor([[-0.9], [0.8]], dtype=torch.float64), torch.tensor([0.2, 0.12], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64), "isotropic",
)  # fmt: skip


def density(process, t):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    return mixture.log_prob(LINE[:, None], LAW, alpha=a, sigma=s).exp()


def pushed(plan, model, p, logs=False):
    """The law of the state after a table of Gaussian steps y = mean(x) + std z from the density p on LINE.

    ``logs``: LINE holds log x of a multiplicative table.
    """
    dx = float(LINE[1] - LINE[0])
    for op in plan.ops:
        weights = list(plan.weights[op.table][op.row])
        x = LINE.exp() if logs else LINE
        t = torch.full((len(LINE),), op.time, dtype=torch.float64)
        found = model(x[:, None], t)
        found = found if isinstance(found, tuple) else (found,)
        named = dict(zip(("m", "second"), (f[:, 0] for f in found), strict=False))
        a, b, c = weights[0], weights[1 : 1 + len(op.terms)], weights[-1]
        mean = (LINE + a if logs else a * LINE) + sum(w * named[n] for w, n in zip(b, op.terms, strict=True))
        assert op.noise is not None and c > 1.5 * dx  # resolved: the sums below are then exact to rounding
        gaps = (LINE[:, None] - mean) / c
        p = (torch.exp(-0.5 * gaps.square()) / (c * math.sqrt(2 * math.pi)) * p).sum(1) * dx
    return p


def distance(p, q):
    """The largest difference of the two distribution functions."""
    dx = float(LINE[1] - LINE[0])
    return float((p - q).cumsum(0).abs().max()) * dx


def weak_errors(process, sampler, steps, end=None):
    found = []
    for n in steps:
        t = sde.log_snr(process, n, to_zero=False)
        plan = sde.table(process, sampler, t)
        law = pushed(plan, denoiser(process, LAW), density(process, process.t_max))
        found.append(distance(law, density(process, process.t_min)))
    return found


NOISY = {
    "Euler-Maruyama": sde.EulerMaruyama(last_mean=False),
    "reverse diffusion": sde.ReverseDiffusion(last_mean=False),
    "ancestral": sde.Ancestral(last_mean=False),
    "ancestral large": sde.Ancestral("large", last_mean=False),
    "DDIM 0.7": sde.DDIM(0.7, last_mean=False),
    "DDIM 1": sde.DDIM(1.0, last_mean=False),
    "Euler ancestral": sde.EulerAncestral(last_mean=False),
    "SDE-DPM++ 1": sde.DPMSolver(1, eta=1.0),
}


SHORT = {
    "vp": sde.VP(t_min=0.1, t_max=0.6),
    "ve": sde.VE(0.2, 1.0),
    "flow": sde.RectifiedFlow(t_min=0.2, t_max=0.7),
}


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("process", ["vp", "ve", "flow"])
def test_order_in_law(name, process):
    p = {"vp": sde.VP(t_min=0.1, t_max=0.6), "ve": sde.VE(0.2, 1.0), "flow": sde.RectifiedFlow(t_min=0.2, t_max=0.7)}[
        process
    ]
    errors = weak_errors(p, NOISY[name], (8, 16, 32))
    assert slope(errors) == pytest.approx(1, abs=0.2), errors
    assert errors[-1] < 0.03


def test_corrector_s_bias_is_that_of_its_step():
    """Langevin's steps at one level, from its own law: the bias shrinks as snr^2, with any number of corrections."""
    p = sde.VP(t_min=0.1, t_max=0.6)
    t = torch.tensor([0.3, 0.29], dtype=torch.float64)
    found = []
    for snr in (0.4, 0.2):
        plan = sde.table(p, sde.PredictorCorrector(snr=snr, corrections=30, rule="std"), t)
        plan.ops = [op for op in plan.ops if op.noise and op.noise[0] == 1]
        law = pushed(plan, denoiser(p, LAW), density(p, 0.3))
        found.append(distance(law, density(p, 0.3)))
    assert math.log2(found[0] / found[1]) == pytest.approx(2, abs=0.35), found


def test_predictor_corrector_converges_with_both():
    p = sde.VP(t_min=0.1, t_max=0.6)
    found = []
    for n in (8, 16, 32):
        sampler = sde.PredictorCorrector(sde.Ancestral(last_mean=False), snr=0.3 / math.sqrt(n), rule="std")
        plan = sde.table(p, sampler, sde.log_snr(p, n))
        found.append(distance(pushed(plan, denoiser(p, LAW), density(p, p.t_max)), density(p, p.t_min)))
    assert slope(found) == pytest.approx(1, abs=0.25), found


@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_flow_windows_in_law(kind):
    p = sde.RectifiedFlow(t_min=0.2, t_max=0.7)
    found = []
    for n in (8, 16, 32):
        plan = sde.table(
            p, sde.FlowWindow(0.7, None, kind, last_mean=False), sde.uniform(p, n, to_zero=False), prediction="x0"
        )
        found.append(distance(pushed(plan, denoiser(p, LAW), density(p, 0.7)), density(p, 0.2)))
    assert slope(found) == pytest.approx(1, abs=0.2), found


def test_geometric_steps_in_law():
    """Multiplicative noise: the law of log x, whose data is the mixture."""
    p = sde.GeometricBrownian(0.1, 0.8, t_min=0.1, t_max=0.6)

    class Logs:  # log x_t = log x_0 + drift t + sigma t^{1/2} z, moved back to the drift's start
        drift = p.mu - 0.5 * p.volatility**2

        @staticmethod
        def law(t):
            return mixture.Mixture(
                LAW.means + Logs.drift * t, LAW.covariance + p.volatility**2 * t, LAW.weights, "isotropic"
            )

    def hyvarinen(x, t):  # x d/dx log p(x) = d/dl log p(l) - 1
        return mixture.score(x.log(), Logs.law(float(t[0]))) - 1

    def at(t):
        return mixture.log_prob(LINE[:, None], Logs.law(t)).exp()

    found = []
    for n in (8, 16, 32):
        plan = sde.table(
            p, sde.GeometricStep(last_mean=False), sde.uniform(p, n, to_zero=False), prediction="hyvarinen"
        )
        found.append(distance(pushed(plan, hyvarinen, at(0.6), logs=True), at(0.1)))
    assert slope(found) == pytest.approx(1, abs=0.2), found
    flows = []
    x0 = torch.linspace(0.3, 3, 8, dtype=torch.float64)[:, None]
    for n in (16, 32, 64):
        t = sde.uniform(p, n, to_zero=False)
        flows.append(
            sde.sample(hyvarinen, p, sde.GeometricStep(flow=True), (8, 1), times=t, start=x0, dtype=torch.float64)
        )
    assert differences(flows) == pytest.approx(1, abs=0.2)


# ---- interpolants ---------------------------------------------------------------------------------------------------
def interpolant_model(p, second="denoiser"):
    """b and E[z | x] between N(0.2, 0.5^2) and LAW: mixtures of three-dimensional Gaussians of (x_0, x_1, z)."""

    def model(x, t):
        a, b, g = (c[:, None] for c in p.coefficients(t))
        da, db, dg = (c[:, None] for c in p.slopes(t))
        var = a**2 * 0.25 + b**2 * LAW.covariance + g**2
        mean = a * 0.2 + b * LAW.means[:, 0]
        r = torch.softmax(LAW.weights.log() - 0.5 * (x - mean) ** 2 / var - 0.5 * var.log(), 1)
        pull = (x - mean) / var
        z = (r * g * pull).sum(1, keepdim=True)
        x0 = (r * (0.2 + 0.25 * a * pull)).sum(1, keepdim=True)
        x1 = (r * (LAW.means[:, 0] + LAW.covariance * b * pull)).sum(1, keepdim=True)
        b = da * x0 + db * x1 + torch.where(g > 0, dg, 0.0) * z
        return b, (z if second == "denoiser" else -z / g)

    return model


def interpolant_density(p, t):
    a, b, g = (float(c) for c in p.coefficients(t))
    var = a**2 * 0.25 + b**2 * LAW.covariance + g**2
    mean = a * 0.2 + b * LAW.means[:, 0]
    each = torch.exp(-0.5 * (LINE[:, None] - mean) ** 2 / var) / torch.sqrt(2 * math.pi * var)
    return (LAW.weights * each).sum(1)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("path", "gamma"), [("linear", "brownian"), ("trigonometric", "quadratic"), ("encoding-decoding", "sine")]
)
def test_interpolants_in_law(path, gamma, backward):
    p = sde.StochasticInterpolant(path, gamma, t_min=0.1, t_max=0.9)
    sampler = sde.InterpolantStep(0.5, backward=backward, last_mean=False)
    if gamma == "quadratic":
        sampler = sde.InterpolantStep(2.0, backward=backward, proportional=True, last_mean=False)
    found = []
    for n in (16, 32, 64):
        t = torch.linspace(0.1, 0.9, n + 1, dtype=torch.float64)
        plan = sde.table(p, sampler, t.flip(0) if backward else t, prediction="raw")
        ends = (0.9, 0.1) if backward else (0.1, 0.9)
        found.append(
            distance(
                pushed(plan, interpolant_model(p), interpolant_density(p, ends[0])), interpolant_density(p, ends[1])
            )
        )
    assert slope(found) == pytest.approx(1, abs=0.25), found


@pytest.mark.parametrize("backward", [False, True])
def test_interpolant_flow(backward):
    p = sde.StochasticInterpolant("linear", "quadratic", t_min=0.05, t_max=0.95)
    model, x = interpolant_model(p), torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    for heun, order in ((False, 1), (True, 2)):
        sampler = sde.InterpolantStep(backward=backward, heun=heun)
        found = [
            sde.sample(lambda x, t: model(x, t)[0], p, sampler, (8, 1), n, start=x, dtype=torch.float64)
            for n in (32, 64, 128)
        ]
        assert differences(found) == pytest.approx(order, abs=0.25)


def test_one_sided_interpolant_is_a_gaussian_path():
    """x_0 normal: the score comes out of the velocity alone."""
    p = sde.StochasticInterpolant(one_sided=True, t_min=0.1, t_max=0.9)
    path = sde.RectifiedFlow()

    def velocity(x, t):  # time runs the other way
        return -denoiser(path, LAW, "flow")(x, 1 - t)

    found = []
    for n in (8, 16, 32):
        t = torch.linspace(0.1, 0.9, n + 1, dtype=torch.float64)
        plan = sde.table(p, sde.InterpolantStep(0.5, last_mean=False), t, prediction="raw")
        found.append(distance(pushed(plan, velocity, density(path, 0.9)), density(path, 0.1)))
    assert slope(found) == pytest.approx(1, abs=0.25), found


# ---- linear ones: the exact variance --------------------------------------------------------------------------------
def gaussian_error(process, sampler, n):
    """|variance / truth - 1| for data N(0, 0.3): the run is linear, its noise is fed in one draw at a time."""
    one = torch.ones(1, 1, dtype=torch.float64)
    law = mixture.Mixture(0 * one, 0.3 * one[0], None, "isotropic")
    t = sde.log_snr(process, n, to_zero=False)
    draws = []
    sde.sample(
        denoiser(process, law), process, sampler, (1, 1), times=t, seed=0, dtype=torch.float64,
        noise=lambda s, k, x: draws.append((s, k)) or torch.zeros_like(x),
    )  # fmt: skip
    count = 1 + len(draws)
    first = torch.zeros(count, 1, dtype=torch.float64)

    def variance(t):
        return 0.3 * float(process.alpha(t)) ** 2 + float(process.sigma(t)) ** 2

    first[0] = math.sqrt(variance(process.t_max))

    def impulse(stream, number, like):
        z = torch.zeros_like(like)
        z[1 + draws.index((stream, number))] = 1.0
        return z

    x = sde.sample(
        denoiser(process, law), process, sampler, (count, 1), times=t, start=first, dtype=torch.float64, noise=impulse
    )
    return abs(float(x.square().sum()) / variance(process.t_min) - 1)


#: sampler, order of its variance: that of the law may be lower
LINEAR = {
    "SDE-DPM++ 2M": (sde.DPMSolver(2, eta=1.0), 1.5),
    "SDE-DPM++ 2M exact": (sde.DPMSolver(2, eta=1.0, kind="exact"), 1.7),
    "SDE-DPM++ 3M": (sde.DPMSolver(3, eta=1.0), 1.7),
    "SDE-DPM++ 2M eta=0.3": (sde.DPMSolver(2, eta=0.3), 1.5),
    "churn": (sde.EDMHeun(churn=4.0), 1.7),
    "Euler-Maruyama": (sde.EulerMaruyama(last_mean=False), 0.9),
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_order_in_variance(process, name):
    sampler, order = LINEAR[name]
    p = {"vp": sde.VP(t_min=0.1, t_max=0.6), "ve": sde.VE(0.2, 4.0)}[process]
    errors = [gaussian_error(p, sampler, n) for n in (16, 32, 64)]
    assert slope(errors) > order, errors


# ---- samples --------------------------------------------------------------------------------------------------------
EVERY = {
    "Euler-Maruyama": sde.EulerMaruyama(),
    "reverse diffusion": sde.ReverseDiffusion(),
    "ancestral": sde.Ancestral(),
    "DDIM 0.7": sde.DDIM(0.7),
    "Langevin": sde.PredictorCorrector(snr=0.05, rule="std"),
    "SDE-DPM++ 2M": sde.DPMSolver(2, eta=1.0),
    "churn": sde.EDMHeun(churn=4.0),
    "DDIM": sde.DDIM(),
    "Heun": sde.Heun(),
    "DPM++ 2M": sde.DPMSolver(2),
    "UniPC": sde.UniPC(3),
    "LMS": sde.LMS(),
}


@pytest.mark.parametrize("name", EVERY)
def test_samples_have_the_law(name):
    """Kolmogorov and Smirnov's distance of 8000 samples in float32, from VP's prior: 1e-4 false alarms a test.

    The law is that at t_min, and what the steps leave of a bias is added to the limit: 0.01 of the first-order ones.
    """
    p, n = sde.VP(t_min=0.02), 8000
    model = denoiser(p, LAW)
    steps = 40 if name in ("Heun", "DPM++ 2M", "UniPC", "LMS", "churn") else 120
    x = sde.sample(lambda x, t: model(x, t).to(x), p, EVERY[name], (n, 1), steps, seed=11, grid="log_snr")
    a, s = float(p.alpha(p.t_min)), float(p.sigma(p.t_min))
    stds = torch.sqrt(a * a * LAW.covariance + s * s)

    def cdf(u):
        return (LAW.weights * normal_cdf(u[:, None], a * LAW.means[:, 0], stds)).sum(1)

    assert ks(x[:, 0], cdf) < KS_LIMIT + 0.01 * math.sqrt(n)
