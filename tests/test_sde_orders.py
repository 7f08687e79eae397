"""Every sampler of fokker.sde converges at its published order on Gaussian mixtures whose scores are known.

Here the solvers of the probability flow, against a fine solution in float64; those with noise in test_sde_laws.py.
"""

import functools
import itertools

import pytest
import torch
from sde_problems import denoiser, slope

from fokker import sde

B, D = 6, 2


# ---- deterministic --------------------------------------------------------------------------------------------------
PROCESSES = {
    "vp": sde.VP(t_min=0.05, t_max=0.6),
    "cosine": sde.VP("cosine", t_min=0.1, t_max=0.7),
    "subvp": sde.SubVP(t_min=0.15, t_max=0.6),
    "ve": sde.VE(0.1, 3.0),
    "edm": sde.EDM(0.1, 3.0),
    "flow": sde.RectifiedFlow(t_min=0.1, t_max=0.8),
}
EXACT = sde.ProbabilityFlow(1e-10, 1e-10)


@functools.cache
def start(process):
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return PROCESSES[process].prior_std * x


@functools.cache
def exact(process, n):
    """The flow at the first four times of a grid of n steps and at the last."""
    p = PROCESSES[process]
    t = sde.log_snr(p, n, to_zero=False)
    at, xs = [*range(4), n], [start(process)]
    for i, j in itertools.pairwise(at):
        ends = (float(t[i]), float(t[j]))
        xs.append(sde.sample(denoiser(p), p, EXACT, (B, D), times=ends, start=xs[-1], dtype=torch.float64))
    return t, xs


def error(process, sampler, n, depth):
    """The largest error at the end, multistep methods having begun with ``depth`` exact predictions."""
    p = PROCESSES[process]
    t, xs = exact(process, n)
    seen = [denoiser(p, prediction=sampler.native)(xs[i], t[i]) for i in range(depth)]
    state = sde.State(depth, float(t[depth]), xs[depth], tuple(seen[::-1]), xs[depth - 1] if depth else None)
    x = sde.sample(denoiser(p), p, sampler, (B, D), times=t, start=state, dtype=torch.float64)
    return float((x - xs[-1]).abs().max())


#: sampler, published order, exact predictions it begins with
SOLVERS = {
    "DDIM": (sde.DDIM(), 1, 0),
    "Euler sigma": (sde.Euler("sigma"), 1, 0),
    "Euler time": (sde.Euler("time"), 1, 0),
    "Heun sigma": (sde.Heun("sigma"), 2, 0),
    "Heun time": (sde.Heun("time"), 2, 0),
    "EDM Heun": (sde.EDMHeun(), 2, 0),
    "DPM 1": (sde.DPMSolver(1, "epsilon"), 1, 0),
    "DPM++ 1": (sde.DPMSolver(1), 1, 0),
    "DPM 2M": (sde.DPMSolver(2, "epsilon"), 2, 1),
    "DPM++ 2M": (sde.DPMSolver(2), 2, 1),
    "DPM++ 2M exact": (sde.DPMSolver(2, kind="exact"), 2, 1),
    "DPM 3M": (sde.DPMSolver(3, "epsilon"), 3, 2),
    "DPM++ 3M": (sde.DPMSolver(3), 3, 2),
    "DPM++ 3M published code": (sde.DPMSolver(3, kind="published"), 2, 2),
    "DPM 2S": (sde.DPMSolver(2, "epsilon", multistep=False), 2, 0),
    "DPM++ 2S": (sde.DPMSolver(2, multistep=False), 2, 0),
    "DPM 3S": (sde.DPMSolver(3, "epsilon", multistep=False), 3, 0),
    "DPM++ 3S": (sde.DPMSolver(3, multistep=False), 3, 0),
    "UniP 2": (sde.UniPC(2, corrector=False), 2, 1),
    "UniP 3": (sde.UniPC(3, corrector=False), 3, 2),
    "UniPC 1": (sde.UniPC(1), 2, 1),
    "UniPC 2": (sde.UniPC(2), 3, 2),
    "UniPC 2 bh1": (sde.UniPC(2, "bh1"), 3, 2),
    "UniPC 3": (sde.UniPC(3), 4, 3),
    "DEIS 2": (sde.DEIS(2), 2, 1),
    "DEIS 3": (sde.DEIS(3), 3, 2),
    "DEIS 4": (sde.DEIS(4), 4, 3),
    "DEIS 3 time": (sde.DEIS(3, "time"), 3, 2),
    "LMS 2": (sde.LMS(2), 2, 1),
    "LMS 3": (sde.LMS(3), 3, 2),
    "LMS 4": (sde.LMS(4), 4, 3),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_order_of_the_flow_s_solvers(name):
    sampler, order, depth = SOLVERS[name]
    errors = [error("vp", sampler, n, depth) for n in (32, 64, 128)]
    assert slope(errors) == pytest.approx(order, abs=0.2), errors
    assert errors[-1] < {1: 0.02, 2: 1e-3, 3: 2e-5, 4: 2e-6}[order]


@pytest.mark.parametrize("name", ["DDIM", "Heun time", "EDM Heun", "DPM++ 2M", "DPM++ 3S", "UniPC 2", "LMS 4"])
@pytest.mark.parametrize("process", [p for p in PROCESSES if p != "vp"])
def test_order_on_other_processes(process, name):
    sampler, order, depth = SOLVERS[name]
    errors = [error(process, sampler, n, depth) for n in (64, 128)]
    assert slope(errors) == pytest.approx(order, abs=0.35), errors


def test_two_orders_begin_from_nothing():
    """From pure noise, with their own lower-order beginning: order 2 in all methods of order 2 and above."""
    for sampler in (sde.DPMSolver(2), sde.DPMSolver(3), sde.UniPC(2), sde.UniPC(3), sde.DEIS(3), sde.LMS(4)):
        errors = [error("vp", sampler, n, 0) for n in (64, 128)]
        assert slope(errors) > 1.7, (sampler, errors)


def test_adaptive_flow_meets_its_tolerance():
    p = PROCESSES["vp"]
    _, xs = exact("vp", 32)
    for tolerance in (1e-4, 1e-6, 1e-8):
        x = sde.sample(
            denoiser(p), p, sde.ProbabilityFlow(tolerance, tolerance), (B, D), start=xs[0], dtype=torch.float64
        )
        assert float((x - xs[-1]).abs().max()) < 20 * tolerance
    one = sde.sample(denoiser(p), p, sde.ProbabilityFlow(), (2, D), start=xs[0][2:4], dtype=torch.float64)
    all_of_them = sde.sample(denoiser(p), p, sde.ProbabilityFlow(), (B, D), start=xs[0], dtype=torch.float64)
    torch.testing.assert_close(one, all_of_them[2:4], rtol=1e-12, atol=1e-12)
