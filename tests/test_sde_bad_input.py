"""What fokker.sde refuses, by name, and what it lets through."""

import math

import pytest
import torch
from sde_problems import denoiser

from fokker import sde

VP, FLOW = sde.VP(), sde.RectifiedFlow()
MODEL = denoiser(VP)


def run(sampler=None, process=VP, model=None, shape=(3, 2), steps=5, seed=0, **more):
    return sde.sample(model or denoiser(process), process, sampler or sde.DDIM(), shape, steps, seed, **more)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"steps": None}, "give steps or times"),
        ({"steps": 0}, "steps must be an int >= 1, got 0"),
        ({"steps": 2.5}, "steps must be an int >= 1, got 2.5"),
        ({"times": [1.0, 0.5]}, r"times must hold steps \+ 1 = 6 numbers, got 2"),
        ({"steps": None, "times": [0.5]}, "times must be a sequence of two or more"),
        ({"steps": None, "times": [0.5, 0.7, 0.1]}, "times must fall, got 0.5 before 0.7"),
        ({"steps": None, "times": [0.5, 0.5]}, "times must fall, got 0.5 before 0.5"),
        ({"steps": None, "times": [1.5, 0.5]}, r"times must lie in \[0, 1\], got 0.5 to 1.5"),
        ({"steps": None, "times": [0.5, -0.1]}, r"times must lie in \[0, 1\]"),
        ({"steps": None, "times": [math.nan, 0.1]}, "times must be finite"),
        ({"grid": "linear"}, "grid must be one of uniform, karras, log_snr, logit_normal or a function, got 'linear'"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**64}, "seed must be in"),
        ({"shape": ()}, "shape must be"),
        ({"shape": (-1, 2)}, "without negative sizes"),
        ({"prediction": "noise"}, "prediction must be one of x0, epsilon, v, score, flow, edm, got 'noise'"),
        ({"guidance": 2.0}, "guidance needs a guide"),
        ({"clip": -1.0}, "clip must be finite and not negative"),
        ({"start": torch.zeros(2, 2)}, r"start must have shape \(3, 2\), got \(2, 2\)"),
        ({"start_step": 2}, "start_step=2 needs start"),
        ({"start": torch.zeros(3, 2), "start_step": 6}, r"start_step must be an int in \[0, 5\], got 6"),
        ({"start": sde.State(9, 0.1, torch.zeros(3, 2))}, r"start_step must be an int in \[0, 5\], got 9"),
        ({"sample_ids": [0, 1]}, r"sample_ids must have shape \(3,\)"),
        ({"noise": "pink"}, "noise must be 'counter', 'brownian' or a function, got 'pink'"),
        ({"log_prob_reduction": "max"}, "log_prob_reduction must be 'mean' or 'sum'"),
    ],
)
def test_values_of_a_run(more, text):
    with pytest.raises(ValueError, match=text):
        run(sde.EulerMaruyama() if "noise" in more else None, **more)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"shape": 3}, "shape must be a sequence of ints"),
        ({"dtype": torch.bfloat16}, "dtype must be float32 or float64"),
        ({"process": sde.GeometricBrownian()}, "takes a Gaussian process"),
        ({"sampler": sde.GeometricStep()}, "GeometricStep takes a GeometricBrownian process, got VP"),
        ({"sampler": sde.FlowWindow()}, "FlowWindow takes a RectifiedFlow process, got VP"),
        ({"sampler": sde.InterpolantStep()}, "InterpolantStep takes a StochasticInterpolant, got VP"),
        ({"sampler": sde.Unmask(), "shape": (3, 2)}, "Unmask takes an Absorbing process, got VP"),
    ],
)
def test_types_of_a_run(more, text):
    with pytest.raises(TypeError, match=text):
        run(**{"model": MODEL, **more})


def test_sigmas_must_decrease():
    for sigmas, text in (
        ([2.0, 3.0, 1.0], "sigmas must decrease, got 2 before 3"),
        ([2.0, 2.0], "sigmas must decrease"),
        ([2.0, -1.0], "finite and >= 0"),
        ([math.inf, 1.0], "finite and >= 0"),
        ([1.0], "two or more"),
    ):
        with pytest.raises(ValueError, match=text):
            sde.times_of_sigmas(VP, sigmas)


def test_shapes_of_the_model():
    with pytest.raises(ValueError, match=r"the model must return a tensor of x's shape \(3, 2\), got \(3, 1\)"):
        run(model=lambda x, t: x[:, :1])
    with pytest.raises(ValueError, match="got NoneType"):
        run(model=lambda x, t: None)


@pytest.mark.parametrize("sampler", [sde.DDIM(), sde.DPMSolver(2), sde.Heun(), sde.EulerMaruyama()], ids=repr)
def test_what_is_not_finite(sampler):
    """Checked: the first bad step is named, at the end. Unchecked: it goes through, and spoils its own sample alone."""

    def model(x, t):
        out = MODEL(x, t)
        return torch.where((t < 0.5)[:, None] & (torch.arange(3) == 1)[:, None], math.nan, out)

    x = run(sampler, model=model, grid="uniform")
    assert bool(x[1].isnan().all()) and bool(x[[0, 2]].isfinite().all())
    with pytest.raises(ValueError, match=r"not finite at step [23], time 0\.(40|20)"):
        run(sampler, model=model, grid="uniform", check_finite=True)
    assert bool(run(sampler, check_finite=True).isfinite().all())


def test_the_check_waits_at_the_end_only(monkeypatch):
    waits = []
    real = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: waits.append(1) or real(self))
    counts = []
    for steps in (4, 16):
        waits.clear()
        sde.sample(lambda x, t: 0.5 * x, VP, sde.DPMSolver(2), (2, 3), steps, 0, check_finite=True)
        counts.append(len(waits))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("sampler", "process", "prediction", "text"),
    [
        (sde.DDIM(), FLOW, "epsilon", "'epsilon' does not give 'x0' at time 1, where alpha = 0"),
        (sde.EulerMaruyama(), FLOW, "x0", "infinite coefficients"),
        (sde.ReverseDiffusion(), FLOW, "x0", None),
        (sde.DEIS(), FLOW, "x0", "infinite coefficients"),
        (sde.Heun("sigma"), FLOW, "x0", "variable='sigma' needs alpha > 0"),
    ],
    ids=str,
)
def test_singular_ends(sampler, process, prediction, text):
    model = denoiser(process)
    if text is None:
        assert bool(run(sampler, process, model).isfinite().all())
        return
    with pytest.raises(ValueError, match=text):
        run(sampler, process, model, prediction=prediction)


def test_grids_need_alpha():
    for grid in (sde.karras, sde.log_snr):
        with pytest.raises(ValueError, match="needs alpha > 0 at t_max"):
            grid(FLOW, 5)
    with pytest.raises(ValueError, match=r"flow_shift wants times in \[0, 1\]"):
        sde.flow_shift(torch.tensor([2.0, 0.5]), 3.0)
    with pytest.raises(ValueError, match="shift must be a finite number > 0"):
        sde.flow_shift(torch.tensor([0.5]), 0.0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: sde.VP("sine"), "schedule must be 'linear' or 'cosine'"),
        (lambda: sde.VP(beta_min=-1.0), "beta_min must be a finite number > 0"),
        (lambda: sde.VP("cosine", t_max=1.0), "t_max must be below 1"),
        (lambda: sde.VE(2.0, 1.0), "sigma_max must exceed sigma_min"),
        (lambda: sde.EDM(sigma_min=0.0), "sigma_min must be a finite number > 0"),
        (lambda: sde.RectifiedFlow(t_max=1.5), "t_max must be at most 1"),
        (lambda: sde.GeometricBrownian(sigma=-1.0), "sigma must be a finite number > 0"),
        (lambda: sde.StochasticInterpolant("bent"), "path must be one of"),
        (lambda: sde.StochasticInterpolant("encoding-decoding"), "needs gamma='sine'"),
        (lambda: sde.StochasticInterpolant(t_min=0.6, t_max=0.5), "t_min and t_max"),
        (lambda: sde.Absorbing(0, "square"), "schedule must be"),
        (lambda: sde.Ancestral("medium"), "variance must be"),
        (lambda: sde.DDIM(-0.1), "eta must be a finite number >= 0"),
        (lambda: sde.PredictorCorrector(snr=0.0), "snr must be a finite number > 0"),
        (lambda: sde.PredictorCorrector(sde.DPMSolver(2)), "one-step sampler"),
        (lambda: sde.PredictorCorrector(norms="none"), "rule must be"),
        (lambda: sde.Euler("speed"), "variable must be one of"),
        (lambda: sde.EDMHeun(churn=-1.0), "churn and noise must be >= 0"),
        (lambda: sde.DPMSolver(4), "order must be 1, 2 or 3"),
        (lambda: sde.DPMSolver(predict="v"), "predict must be"),
        (lambda: sde.DPMSolver(kind="best"), "kind must be"),
        (lambda: sde.DPMSolver(multistep=False, eta=1.0), "eta > 0 needs multistep=True"),
        (lambda: sde.UniPC(4), "order must be 1, 2 or 3"),
        (lambda: sde.UniPC(2, "bh3"), "solver must be"),
        (lambda: sde.DEIS(5), "order must be from 1 to 4"),
        (lambda: sde.DEIS(variable="sigma"), "variable must be"),
        (lambda: sde.ConsistencyTrajectory(1.5), r"gamma must be in \[0, 1\]"),
        (lambda: sde.FlowWindow(window=(3, 1)), "window must be"),
        (lambda: sde.FlowWindow(kind="sde"), "kind must be one of"),
        (lambda: sde.InterpolantStep(-1.0), "epsilon must be finite and >= 0"),
        (lambda: sde.InterpolantStep(0.5, heun=True), "heun=True is for the flow"),
        (lambda: sde.Unmask(-1.0), "temperature must be"),
    ],
)
def test_what_cannot_be_made(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_interpolants_need_a_start_and_a_vanishing_epsilon():
    p = sde.StochasticInterpolant()
    pair = lambda x, t: (x, x)  # noqa: E731
    with pytest.raises(ValueError, match="start must be given: samples of the law that the interpolant starts from"):
        run(sde.InterpolantStep(), p, lambda x, t: x)
    with pytest.raises(ValueError, match="start must be given: samples of the law at time 1, which is no prior"):
        run(sde.InterpolantStep(backward=True), sde.StochasticInterpolant(one_sided=True), lambda x, t: x)
    with pytest.raises(ValueError, match="no prior of its own"):
        p.prior_log_prob(torch.zeros(3, 2))
    one = sde.StochasticInterpolant(one_sided=True)
    start = one.prior_sample(3, (2,), seed=0)
    torch.testing.assert_close(one.prior_log_prob(start), sde.VP().prior_log_prob(start))
    x = run(sde.InterpolantStep(), one, lambda x, t: x)  # dx/dt = x
    torch.testing.assert_close(x, 1.2**5 * start)
    with pytest.raises(ValueError, match=r"epsilon is 0\.5 at time 0, where gamma = 0: use proportional=True"):
        run(sde.InterpolantStep(0.5), p, pair, start=torch.zeros(3, 2))
    x = run(sde.InterpolantStep(0.5, proportional=True), p, pair, start=torch.ones(3, 2))
    assert bool(x.isfinite().all())
    with pytest.raises(ValueError, match="times must rise"):
        run(sde.InterpolantStep(), p, lambda x, t: x, start=torch.zeros(3, 2), steps=None, times=[1.0, 0.0])
    with pytest.raises(ValueError, match="the model returns one tensor, and the sampler reads two"):
        run(sde.InterpolantStep(0.5, proportional=True), p, lambda x, t: x, start=torch.ones(3, 2))


def test_options_without_effect_are_refused():
    for sampler, process, more in (
        (sde.ProbabilityFlow(), VP, {"guidance": 2.0, "guide": MODEL}),
        (sde.ProbabilityFlow(), VP, {"callback": print, "clip": 1.0}),
        (sde.Unmask(), sde.Absorbing(3), {"prediction": "x0"}),
        (sde.Unmask(), sde.Absorbing(3), {"noise": "brownian", "check_finite": True}),
    ):
        with pytest.raises(ValueError, match=f"{type(sampler).__name__} does not take {', '.join(sorted(more))}"):
            run(sampler, process, MODEL, **more)


def test_restart_without_history():
    state = sde.State(3, 0.4, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="step 3 reads predictions that start does not hold"):
        run(sde.DPMSolver(2), start=state)
