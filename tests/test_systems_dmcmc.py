"""fokker.systems.dmcmc on mixtures with the exact denoiser and the exact law of the noise level."""

import math

import pytest
import torch
from sde_problems import KS_LIMIT, ks, normal_cdf

from fokker import mixture, sde
from fokker.pairwise import energy_distance
from fokker.systems import dmcmc

F64 = torch.float64
LAW = mixture.Mixture(
    torch.tensor([[-3.0, 1.0], [3.0, 0.0], [0.0, -4.0]], dtype=F64), torch.full((3,), 0.05, dtype=F64), None,
    "isotropic",
)  # fmt: skip
SIGMAS = dmcmc.levels(0.05, 10.0, 24)


def model(x, s):
    return mixture.posterior_mean(x, LAW, sigma=s.double()).to(x)


CLASSIFIER = dmcmc.exact_levels(LAW, SIGMAS)


def test_chain_keeps_the_joint_law():
    """Started from the joint law, 1500 chains, 30 steps: levels uniform (chi-square), x at its level by KS (1e-4)."""
    n = 1500
    at = torch.arange(n) % len(SIGMAS)
    x = mixture.sample(LAW, n, seed=1)
    x = x + SIGMAS[at][:, None] * torch.randn(n, 2, dtype=F64)
    # a small step: its bias, of order eta / sigma^2, stays below what the test sees
    run = dmcmc.chain(
        model, CLASSIFIER, SIGMAS, (n, 2), 1, 3, skip=30, start=x, sigma=SIGMAS[at], dtype=F64,
        eta=lambda s: (0.2 * s).square(),
    )  # fmt: skip
    x, s = run.last
    counts = torch.bincount(torch.searchsorted(SIGMAS, s), minlength=len(SIGMAS)).double()
    wanted = n / len(SIGMAS)
    assert float(((counts - wanted).square() / wanted).sum()) < 59.4  # chi-square of 23 degrees at 4e-5
    variance = LAW.covariance[0] + s * s

    def cdf(u):  # of the first coordinate, of each x with its own level: uniform numbers
        return normal_cdf(u[:, None], LAW.means[:, 0], variance.sqrt()[:, None]).mean(1)

    assert ks(cdf(x[:, 0]), lambda u: u) < KS_LIMIT
    assert run.calls == 30


def test_kept_states_are_those_of_the_least_level():
    seen = []

    def watched(x):
        seen.append(x.clone())
        return CLASSIFIER(x)

    trace = []
    run = dmcmc.chain(
        model, watched, SIGMAS, (5, 2), 3, 2, skip=4, burn_in=1, dtype=F64,
        callback=lambda p: trace.append(p.carried["sigma"].clone()),
    )  # fmt: skip
    assert run.x.shape == (3, 5, 2) and run.calls == 16
    for w in range(3):
        sigma, x = torch.stack(trace[4 + 4 * w : 8 + 4 * w]), torch.stack(seen[4 + 4 * w : 8 + 4 * w])
        least = sigma.min(0)
        assert torch.equal(run.sigma[w], least.values)
        assert torch.equal(run.x[w], x[least.indices, torch.arange(5)])
    assert torch.equal(run.last[0], seen[-1]) and torch.equal(run.last[1], trace[-1])


def test_predictions_agree_and_chains_go_by_their_ids():
    run = dmcmc.chain(model, CLASSIFIER, SIGMAS, (4, 2), 2, 5, skip=3, dtype=F64)

    def epsilon(x, s):
        return (x - model(x, s)) / s[:, None]

    def score(x, s):
        return -epsilon(x, s) / s[:, None]

    for other, name in ((epsilon, "epsilon"), (score, "score")):
        same = dmcmc.chain(other, CLASSIFIER, SIGMAS, (4, 2), 2, 5, skip=3, dtype=F64, prediction=name)
        torch.testing.assert_close(same.x, run.x)
    part = dmcmc.chain(model, CLASSIFIER, SIGMAS, (2, 2), 2, 5, skip=3, dtype=F64, sample_ids=2)
    torch.testing.assert_close(part.x, run.x[:, 2:], rtol=1e-12, atol=1e-12)
    largest = dmcmc.chain(model, CLASSIFIER, SIGMAS, (4, 2), 1, 5, skip=1, dtype=F64, temperature=0.0)
    assert torch.equal(largest.sigma[0], SIGMAS[CLASSIFIER(largest.x[0]).argmax(1)])


def test_times_of_each_sample_are_runs_of_each():
    s = torch.tensor([0.4, 2.0, 5.0], dtype=F64)
    times = dmcmc.grid(s, 6, 0.05)
    assert times.shape == (3, 7) and torch.allclose(times[:, 0], s) and bool((times[:, -1] == 0).all())
    process, x = sde.EDM(0.05, 10.0), torch.randn(3, 2, dtype=F64)
    for sampler in (sde.Heun(), sde.DPMSolver(2), sde.EulerAncestral(), sde.UniPC(2)):
        if isinstance(sampler, (sde.DPMSolver, sde.UniPC)):
            chosen = times[:, :-1]
        else:
            chosen = times
        together = sde.sample(model, process, sampler, (3, 2), start=x, times=chosen, seed=1, dtype=F64)
        for i in range(3):
            alone = sde.sample(
                model, process, sampler, (1, 2), start=x[i : i + 1], times=chosen[i], seed=1, dtype=F64, sample_ids=i
            )
            torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_fewer_calls_at_equal_quality():
    """Energy distance to 2000 draws of the law: 10 calls a sample, burn-in among them, beat Euler's 20 from noise."""
    truth = mixture.sample(LAW, 2000, seed=5)
    noise = sde.sample(model, sde.EDM(0.05, 10.0), sde.Euler(), (2000, 2), 20, 1, dtype=F64)
    x, calls = dmcmc.sample(
        model, CLASSIFIER, SIGMAS, (250, 2), 8, 4, 3, skip=4, burn_in=4, dtype=F64
    )  # fmt: skip
    assert calls == 10
    assert energy_distance(x.flatten(0, 1), truth) < energy_distance(noise, truth)
    share = torch.cdist(x.flatten(0, 1), LAW.means).argmin(1).bincount(minlength=3).double() / 2000
    assert float((share - 1 / 3).abs().max()) < 0.08  # chains of 8 windows: not independent


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"windows": 0}, ValueError, "windows must be"),
        ({"shape": (0, 2)}, ValueError, "at least one particle"),
        ({"skip": 0}, ValueError, "skip must be"),
        ({"sigmas": SIGMAS.flip(0)}, ValueError, "sigmas must be a rising"),
        ({"eta": -1.0}, ValueError, "eta must be finite"),
        ({"eta": lambda s: s - 1}, ValueError, "eta must give"),
        ({"prediction": "flow"}, ValueError, "prediction must be"),
        ({"sigma": torch.ones(2)}, ValueError, r"sigma must have shape \(4,\)"),
        ({"model": lambda x, s: x[:, :1]}, ValueError, r"models\[0\] must return shape \(4, 2\)"),
        ({"model": lambda x, s: x.half()}, TypeError, r"models\[0\] must return torch.float32"),
        ({"model": lambda x, s: x / 0}, ValueError, r"models\[0\] is not finite"),
        ({"classifier": lambda x: x}, ValueError, r"classifier must return shape \(4, 24\)"),
        ({"classifier": lambda x: torch.full((4, 24), math.nan)}, ValueError, "classifier is not finite"),
    ],
)
def test_bad_input_is_named(change, error, words):
    arguments = {
        "model": lambda x, s: 0 * x, "classifier": lambda x: torch.zeros(len(x), 24), "sigmas": SIGMAS, "shape": (4, 2),
        "windows": 1, "seed": 0,
    }  # fmt: skip
    with pytest.raises(error, match=words):
        dmcmc.chain(**{**arguments, **change})


def test_bad_times_of_samples_are_named():
    process, x = sde.EDM(0.05, 10.0), torch.randn(3, 2)
    times = dmcmc.grid(torch.ones(3), 4, 0.05)
    run = {"start": x, "seed": 0}
    with pytest.raises(ValueError, match="start, the states there"):
        sde.sample(model, process, sde.Euler(), (3, 2), times=times, seed=0)
    with pytest.raises(ValueError, match=r"must be \(3, steps \+ 1\), got \(2, 5\)"):
        sde.sample(model, process, sde.Euler(), (3, 2), times=times[:2], **run)
    with pytest.raises(ValueError, match="rows differ in their weights alone"):
        mixed = torch.stack([times[0], 2 * times[0]])
        sde.sample(model, process, sde.EDMHeun(1.0, s_max=1.5), (2, 2), times=mixed, start=x[:2], seed=0)
    with pytest.raises(ValueError, match="steps must be >= 2"):
        dmcmc.grid(torch.ones(2), 1, 0.1)
