"""SuperDiff on mixtures with exact scores: its log densities, the laws of OR, the gaps of AND."""

import math

import pytest
import torch
from systems_problems import F64, Law, t_statistics

from fokker import sde
from fokker.systems.superdiff import SuperDiff

VE, VP = sde.VE(0.1, 8.0), sde.VP(t_min=0.05)
GRID = torch.linspace(-6, 6, 4001, dtype=F64)


def three(process, prediction="score"):
    return [
        Law(process, [[-1.0], [0.8]], [0.15, 0.3], [0.35, 0.65], prediction),
        Law(process, [[-0.6], [1.2]], [0.4, 0.2], [0.6, 0.4], prediction),
        Law(process, [[0.3]], [0.5], [1.0], prediction),
    ]


def spread_out(process, count, dim=4):
    g = torch.Generator().manual_seed(3)
    means = torch.randn(count, 2, dim, generator=g, dtype=F64).tolist()
    return [Law(process, m, [0.2, 0.3], [0.4, 0.6]) for m in means]


def run(models, mode, shape, steps, process=VE, seed=1, prediction="score", **more):
    options = {"grid": "log_snr", "dtype": F64, "prediction": prediction, **more.pop("run", {})}
    return SuperDiff(models, mode, **more).sample(process, shape, steps, seed, **options)


def exact(models, found):
    return torch.stack([m.log_prob(found.x, found.time) for m in models], 1)


@pytest.mark.parametrize(
    ("mode", "process"),
    [
        pytest.param("or", VP, id="or-vp"),
        *(pytest.param(m, p, marks=pytest.mark.slow) for m, p in (("or", VE), ("mean", VE), ("mean", VP))),
    ],
)
def test_densities_along_the_path(mode, process):
    """Every model's log density at every time: root mean square errors fall as steps^{-1/2}, means are near 0."""
    models = three(process)
    rms = []
    for steps in (40, 160, 640):
        errors = []

        def keep(state, errors=errors, every=steps // 4):
            if state.step % every == 0:
                errors.append(state.carried["log_density"] - exact(models, state))

        run(models, mode, (400, 1), steps, process, run={"callback": keep})
        assert len(errors) == 4
        rms.append(torch.stack(errors).square().mean((1, 2)).sqrt())
    order = torch.log(rms[0] / rms[2]) / math.log(16)
    assert bool((order > 0.35).all()) and bool((order < 0.7).all()), order
    assert float(rms[2].max()) < 0.4 and abs(float(errors[-1].mean())) < 0.06


@pytest.mark.parametrize("bias", [pytest.param(None, marks=pytest.mark.slow), [0.0, 1.0, -1.0]])
def test_or_samples_the_mixture(bias):
    """|t| with 31 degrees of freedom at nine deciles: 5 is passed by chance in 2 of 10^4 tests."""
    models = [*three(VE)[1:], Law(VE, [[-2.0]], [0.1], [1.0])]
    found = run(models, "or", (32 * 128, 1), 80, bias=bias)
    line = GRID[:, None]
    logs = torch.stack([m.log_prob(line, found.time) for m in models])
    target = (logs + torch.tensor(bias or [0.0] * 3, dtype=F64)[:, None]).logsumexp(0)
    t, _ = t_statistics(found.x, found.log_weights, 32, target, GRID)
    assert t < 5
    # and not that of their average score
    mean = run(models, "mean", (32 * 128, 1), 80)
    assert t_statistics(mean.x, mean.log_weights, 32, target, GRID)[0] > 10


@pytest.mark.parametrize("count", [2, 3, pytest.param(5, marks=pytest.mark.slow)])
def test_and_keeps_the_densities_together(count):
    models = spread_out(VE, count, 6)
    found = run(models, "and", (300, 6), 120)
    log_q = found.carried["log_density"]
    assert float((log_q - log_q.mean(1, keepdim=True)).abs().max()) < 1e-6
    plain = run(models, "mean", (300, 6), 120)
    gap, wide = (
        float((e - e.mean(1, keepdim=True)).abs().mean()) for e in (exact(models, found), exact(models, plain))
    )
    assert gap < 0.35 * wide, (gap, wide)
    # what is wanted of AND: even the least likely model finds the sample likely
    assert float(exact(models, found).amin(1).mean()) > float(exact(models, plain).amin(1).mean()) + 0.5


def test_and_with_a_bias():
    models = spread_out(VE, 2)
    log_q = run(models, "and", (50, 4), 60, bias=[1.5, 0.0]).carried["log_density"]
    torch.testing.assert_close(log_q[:, 0] - log_q[:, 1], torch.full((50,), 1.5, dtype=F64), rtol=0, atol=1e-6)


def test_and_of_equal_models_is_that_model():
    """Nothing to choose: no division of 0 by 0; and more models than one pass takes."""
    one = spread_out(VE, 1)[0]
    alone = run([one], "and", (20, 4), 30)
    for count in (2, 10):
        same = run([one] * count, "and", (20, 4), 30)
        torch.testing.assert_close(same.x, alone.x, rtol=1e-9, atol=1e-9)
        wanted = alone.carried["log_density"].expand(-1, count)
        torch.testing.assert_close(same.carried["log_density"], wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("mode", ["or", "and"])
@pytest.mark.parametrize("prediction", ["x0", "epsilon"])
@pytest.mark.parametrize("count", [3, 9])
def test_predictions(mode, prediction, count):
    """Scores folded into the step, in one pass or several, are the scores."""
    args = (mode, (16, 1), 20, VP)
    a = run((three(VP) * 3)[:count], *args)
    b = run((three(VP, prediction) * 3)[:count], *args, prediction=prediction)
    torch.testing.assert_close(a.x, b.x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(a.carried["log_density"], b.carried["log_density"], rtol=1e-6, atol=1e-6)


def test_temperature():
    """0: densities do not matter; inf: the likeliest model alone; in between the mean lies in between."""
    models = three(VE)
    flat = run(models, "or", (50, 1), 30, temperature=0.0)
    torch.testing.assert_close(flat.x, run(models, "mean", (50, 1), 30).x)
    hard = run(models, "or", (50, 1), 30, temperature=math.inf)
    sharp = run(models, "or", (50, 1), 30, temperature=1e7)
    # at the start all are equal, where inf takes the first and 1e7 all
    assert float((hard.x - sharp.x).abs().mean()) < 0.2
    kappa = SuperDiff(models, "or", temperature=math.inf).sample
    assert kappa(VE, (4, 1), 3, 0, dtype=F64, prediction="score").x.isfinite().all()


def test_bad_arguments_are_named():
    models = three(VE)
    for make, text in (
        (lambda: SuperDiff(models, "xor"), "mode must be 'or', 'and' or 'mean', got 'xor'"),
        (lambda: SuperDiff(models, temperature=-1.0), "temperature must be >= 0"),
        (lambda: SuperDiff(models, bias=[0.0]), "bias must be 3 finite numbers"),
        (lambda: run(models, "or", (0, 1), 3), r"shape must hold at least one particle, got \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
