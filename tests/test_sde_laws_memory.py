"""Samplers that are no chains in x alone have the right law, at their published order, on a mixture: by quadrature.

Multistep ones with noise are chains in (x_n, x_{n-1}, ...), whose joint density is followed; churn is a Gaussian step
and a monotone map. Nothing here is random.
"""

import math

import pytest
import torch
from scipy.interpolate import CubicSpline
from sde_problems import denoiser, slope

from fokker import mixture, sde

LAW = mixture.Mixture(
    torch.tensor([[-0.9], [0.8]], dtype=torch.float64), torch.tensor([0.2, 0.12], dtype=torch.float64),
    torch.tensor([0.4, 0.6], dtype=torch.float64), "isotropic",
)  # fmt: skip


def density(line, process, t):
    a, s = float(process.alpha(t)), float(process.sigma(t))
    return mixture.log_prob(line[:, None], LAW, alpha=a, sigma=s).exp()


def weak_errors(process, sampler, line, law, steps):
    """The largest error of the distribution function at the end."""
    found = []
    for n in steps:
        plan = sde.table(process, sampler, sde.log_snr(process, n, to_zero=False))
        gap = law(plan, process, line) - density(line, process, process.t_min)
        found.append(float(gap.cumsum(0).abs().max() * (line[1] - line[0])))
    return found


def gauss(gaps, std):
    return torch.exp(-0.5 * (gaps / std).square()) / (std * math.sqrt(2 * math.pi))


def along(values, axis, dims):
    return values.reshape(*[1] * axis, -1, *[1] * (dims - 1 - axis))


def multistep(plan, process, line, depth):
    """The law at the end of steps y = a x + sum_k b_k D(x_{n-k}) + c z, k = 0 .. depth."""
    dx, model = float(line[1] - line[0]), denoiser(process, LAW)
    p = density(line, process, process.t_max)  # of (x_n, x_{n-1}, ...)
    seen = []
    for op in plan.ops:
        a, *b, c = plan.weights[op.table][op.row]
        assert op.noise is not None and c > 1.5 * dx  # resolved: the sums are then exact to rounding
        seen.insert(0, model(line[:, None], op.time)[:, 0])
        mean = along(a * line, 0, p.dim()) + sum(along(w * seen[k], k, p.dim()) for k, w in enumerate(b))
        rows = (gauss(y - mean, c) * p for y in line)
        p = torch.stack([row.sum(-1) * dx if p.dim() > depth else row for row in rows])
    while p.dim() > 1:
        p = p.sum(-1) * dx
    return p


@pytest.mark.parametrize(
    ("sampler", "depth", "points", "steps", "order"),
    [
        pytest.param(sde.DPMSolver(2, eta=1.0), 1, 161, (8, 16, 32), 1.7, id="2M"),
        pytest.param(sde.DPMSolver(2, eta=1.0, kind="exact"), 1, 161, (8, 16, 32), 1.8, id="2M exact"),
        pytest.param(sde.DPMSolver(3, eta=1.0), 2, 81, (8, 16), 2.0, id="3M", marks=pytest.mark.slow),
    ],
)
def test_multistep_with_noise_in_law(sampler, depth, points, steps, order):
    line = torch.linspace(-4.5, 4.5, points, dtype=torch.float64)
    errors = weak_errors(sde.VP(t_min=0.1, t_max=0.6), sampler, line, lambda *a: multistep(*a, depth), steps)
    assert slope(errors) > order, errors
    assert errors[-1] < 2e-3


def churned(plan, process, line):
    """The law at the end of steps that add noise to x and then map it by Heun's two calls."""
    dx, model = float(line[1] - line[0]), denoiser(process, LAW)
    p = density(line, process, process.t_max)
    y, named = line, {}
    for op in plan.ops:
        a, *b = plan.weights[op.table][op.row]
        if op.noise is not None:  # the churn
            assert not op.terms and b[0] > 1.5 * dx
            p = (gauss(line[:, None] - a * line, b[0]) * p).sum(1) * dx
            continue
        if op.keep:
            named["s"] = y
        named["m"], named["m1"] = model(y[:, None], op.time)[:, 0], named.get("m")
        y = a * y + sum(w * named[n] for w, n in zip(b, op.terms, strict=True))
        if op.last:  # p at the point that the map takes to each of the line, times the inverse map's slope
            back = CubicSpline(y, line)
            x, log_p = torch.from_numpy(back(line)), CubicSpline(line, p.log())
            inside = (x >= line[0]) & (x <= line[-1])
            p = torch.where(inside, torch.from_numpy(log_p(x)).exp() * torch.from_numpy(back(line, 1)), 0.0)
            p = p.clamp(min=1e-300)  # outside, for the logarithm
            y, named = line, {}
    return p


@pytest.mark.parametrize("process", [sde.VP(t_min=0.1, t_max=0.6), sde.VE(0.2, 1.0)], ids=["vp", "ve"])
def test_churn_in_law(process):
    line = torch.linspace(-6, 6, 801, dtype=torch.float64)
    errors = weak_errors(process, sde.EDMHeun(churn=2.0), line, churned, (8, 16, 32))
    assert slope(errors) == pytest.approx(2, abs=0.2), errors
    assert errors[-1] < 1e-3


def test_the_quadrature_sees_a_wrong_sampler():
    """Churn whose noise is 5 % too strong does not converge to the law."""
    line = torch.linspace(-6, 6, 401, dtype=torch.float64)
    errors = weak_errors(sde.VP(t_min=0.1, t_max=0.6), sde.EDMHeun(churn=2.0, noise=1.05), line, churned, (16, 32))
    assert slope(errors) < 1.5 and errors[-1] > 2e-3, errors
