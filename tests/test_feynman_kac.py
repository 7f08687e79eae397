"""Feynman-Kac correctors on mixtures with exact scores: weighted samples match the exact target, unweighted do not."""

import pytest
import torch
from systems_problems import F64, Law, cdf_of, t_statistics

from fokker import sde
from fokker.systems import feynman_kac as fk

VE = sde.VE(0.1, 8.0)
GRID = torch.linspace(-6, 6, 4001, dtype=F64)
POPULATIONS, SIZE = 32, 128
#: of |t| with 31 degrees of freedom, nine deciles: passed by chance in 2 of 10^4 tests
LIMIT = 5.0


def laws(process, prediction="score"):
    return (
        Law(process, [[-1.3], [0.9]], [0.1, 0.25], [0.35, 0.65], prediction),
        Law(process, [[-0.9], [0.5]], [0.3, 0.1], [0.95, 0.05], prediction),
    )


def reward(x):
    return -0.5 * ((x[:, 0] - 0.4) / 0.5) ** 2


CASES = {
    "anneal": (lambda p, q, **o: fk.anneal(p, 2.0, **o), lambda p, q, r: 2 * p),
    "flatten": (lambda p, q, **o: fk.anneal(p, 0.5, **o), lambda p, q, r: 0.5 * p),
    "product": (lambda p, q, **o: fk.product([p, q], **o), lambda p, q, r: p + q),
    "guide": (lambda p, q, **o: fk.guide(p, q, 2.5, **o), lambda p, q, r: 2.5 * p - 1.5 * q),
    "geometric": (lambda p, q, **o: fk.geometric([p, q], [0.5, 0.5], **o), lambda p, q, r: 0.5 * (p + q)),
    "tilt": (lambda p, q, **o: fk.tilt(p, reward, **o), lambda p, q, r: p + r),
    "tilted product": (
        lambda p, q, **o: fk.product([p, q], [1, 0.5], reward=reward, **o),
        lambda p, q, r: p + 0.5 * q + r,
    ),
}


def run(name, process=VE, prediction="score", steps=60, populations=POPULATIONS, size=SIZE, options=None, **more):
    make, target = CASES[name]
    more = {"grid": "log_snr", "dtype": F64, "populations": populations, "prediction": prediction, **more}
    p, q = laws(process, prediction)
    found = make(p, q, **(options or {})).sample(process, (populations * size, 1), steps, 1, **more)
    line = GRID[:, None]
    return found, target(p.log_prob(line, found.time), q.log_prob(line, found.time), reward(line))


@pytest.mark.parametrize("name", CASES)
def test_weighted_samples_match_the_target(name):
    found, log_density = run(name)
    t, _ = t_statistics(found.x, found.log_weights, POPULATIONS, log_density, GRID)
    assert t < LIMIT
    heuristic, _ = run(name, options={"correct": False})
    assert not heuristic.effective_sample_size.numel()
    t, error = t_statistics(heuristic.x, heuristic.log_weights, POPULATIONS, log_density, GRID)
    assert t > 1.5 * LIMIT and error > 0.04


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("product", "epsilon"),
        ("tilt", "x0"),
        pytest.param("product", "x0", marks=pytest.mark.slow),
        pytest.param("tilt", "epsilon", marks=pytest.mark.slow),
    ],
)
def test_vp_and_other_predictions(name, prediction):
    """f is not 0 here, and scores are folded into the step: also the same samples as from scores."""
    process = sde.VP(t_min=0.02)
    found, log_density = run(name, process, prediction)
    t, _ = t_statistics(found.x, found.log_weights, POPULATIONS, log_density, GRID)
    assert t < LIMIT
    again, _ = run(name, process, "score")
    torch.testing.assert_close(found.x, again.x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.log_weights, again.log_weights, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("noise", [0.6, 1.3])
def test_any_share_of_the_noise(noise):
    """From exact samples of the target at sigma = 0.8, whose weights are light."""
    p, _ = laws(VE)
    first, last = (float(VE.time_of_ratio(s)) for s in (0.8, 0.3))
    c = cdf_of(2 * p.log_prob(GRID[:, None], first), GRID)
    u = torch.rand(POPULATIONS * SIZE, dtype=F64)
    i = torch.searchsorted(c, u).clamp(1, len(GRID) - 1)
    start = (GRID[i - 1] + (u - c[i - 1]) / (c[i] - c[i - 1]) * (GRID[1] - GRID[0]))[:, None]
    found = fk.anneal(p, 2.0, noise=noise).sample(
        VE, tuple(start.shape), None, 1, times=torch.linspace(first, last, 61, dtype=F64), start=start, dtype=F64,
        prediction="score", populations=POPULATIONS,
    )  # fmt: skip
    t, _ = t_statistics(found.x, found.log_weights, POPULATIONS, 2 * p.log_prob(GRID[:, None], last), GRID)
    assert t < LIMIT


def test_resampled_particles_have_equal_weights():
    found, log_density = run("tilt")
    x = found.resampled(seed=3, count=200)
    assert x.shape == (POPULATIONS * 200, 1)
    t, _ = t_statistics(x, torch.zeros(len(x), dtype=F64), POPULATIONS, log_density, GRID)
    assert t < LIMIT


def test_bad_arguments_are_named():
    p, q = laws(VE)
    for make, kind, text in (
        (lambda: fk.FeynmanKac([p, q], [1.0]), ValueError, r"exponents must be one number a model \(2\), got 1"),
        (lambda: fk.FeynmanKac(p, -1.0), ValueError, "exponents must be finite with a sum > 0"),
        (lambda: fk.anneal(p, 2.0, noise=0.0), ValueError, "noise must be finite and > 0"),
        (lambda: fk.geometric([p, q], [0.5, 0.6]), ValueError, "weights must sum to one, got 1.1"),
        (lambda: fk.FeynmanKac([]), ValueError, "models must hold at least one model"),
        (lambda: fk.FeynmanKac([p, 3]), TypeError, r"models\[1\] must be callable"),
    ):
        with pytest.raises(kind, match=text):
            make()


@pytest.mark.parametrize(
    ("bad", "kind", "text"),
    [
        (lambda x: x, ValueError, r"reward must return shape \(8,\), got \(8, 1\)"),
        (lambda x: x.sum(), ValueError, r"reward must return shape \(8,\), got \(\)"),
        (lambda x: x[:, 0].detach(), ValueError, "reward must be differentiable"),
        (lambda x: 1.0, TypeError, "reward must return a tensor, got float"),
        (lambda x: x[:, 0].half(), TypeError, "reward must return torch.float64"),
        (lambda x: x[:, 0] / 0 * 0, ValueError, "the reward's gradient is not finite at step 0, time 1"),
    ],
)
def test_bad_rewards_are_named(bad, kind, text):
    with pytest.raises(kind, match=text):
        fk.tilt(laws(VE)[0], bad).sample(VE, (8, 1), 3, 0, dtype=F64, prediction="score")
