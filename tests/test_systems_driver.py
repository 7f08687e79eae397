"""The driver of particle methods: what it checks, resamples, reports, and where its noise belongs."""

import re
import warnings

import pytest
import torch
from systems_problems import F64, Law

import fokker
from fokker import random, sde
from fokker.systems import feynman_kac as fk
from fokker.systems._driver import Method, drive
from fokker.systems.superdiff import SuperDiff

VE = sde.VE(0.1, 8.0)


def law(prediction="score"):
    return Law(VE, [[-1.0], [0.8]], [0.15, 0.3], [0.35, 0.65], prediction)


pytestmark = pytest.mark.filterwarnings("ignore:the weights degenerated")


def run(models, shape=(8, 1), steps=5, seed=0, method=None, **more):
    options = {"dtype": F64, "prediction": "score", **more}
    return drive(method or fk.product(models), VE, shape, steps, seed, **options)


class Recorder(Method):
    """Unit normal steps with chosen weights."""

    def __init__(self, change):
        super().__init__(law())
        self.change = change

    def step(self, run, k, x):
        y, _ = run.move(k, x, [x], x.new_tensor([[1.0, 0.0, 1.0]]).expand(len(x), 3))
        run.weigh(self.change(k, x))
        return y


@pytest.mark.parametrize(
    ("model", "kind", "text"),
    [
        (lambda x, t: x[:, :0], ValueError, r"models[1] must return shape (8, 1), got (8, 0)"),
        (lambda x, t: x[:4], ValueError, r"models[1] must return shape (8, 1), got (4, 1)"),
        (lambda x, t: x.float(), TypeError, "models[1] must return torch.float64 (the state's dtype, or model_dtype)"),
        (lambda x, t: x.long(), TypeError, "got torch.int64"),
        (lambda x, t: None, TypeError, "models[1] must return a tensor, got NoneType"),
        (lambda x, t: x / 0, ValueError, "models[1] is not finite at step 0, time 1 (first of them)"),
        (
            lambda x, t: x * (float("nan") if float(t[0]) < 0.5 else 1), ValueError,
            "models[1] is not finite at step 3, time 0.4",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "method", [lambda m: fk.product(m), lambda m: SuperDiff(m, "or"), lambda m: SuperDiff(m, "and")]
)
def test_bad_models_are_named(model, kind, text, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind, match=re.escape(text)):
            run(None, method=method([law(), model]))


def test_bad_arguments_are_named():
    for more, kind, text in (
        ({"shape": (0, 1)}, ValueError, "shape must hold at least one particle, got (0, 1)"),
        ({"populations": 3}, ValueError, "populations must be a positive divisor of the 8 particles, got 3"),
        ({"dtype": torch.float16}, TypeError, "dtype must be float32 or float64"),
        ({"start": torch.zeros(3, 1)}, ValueError, "start must have shape (8, 1), got (3, 1)"),
        ({"prediction": "noise"}, ValueError, "prediction must be one of"),
        ({"steps": None}, ValueError, "give steps or times"),
        ({"threshold": 2.0}, ValueError, "threshold must be in [0, 1]"),
        ({"threshold": -0.1}, ValueError, "threshold must be in [0, 1]"),
        ({"resampling": "best"}, ValueError, "method must be one of systematic"),
        ({"seed": -1}, ValueError, "seed must be in"),
    ):
        with pytest.raises(kind, match=re.escape(text)):
            run([law(), law()], **more)
    flow = sde.RectifiedFlow()
    with pytest.raises(ValueError, match="the process is singular at time 1"):
        drive(fk.product(law()), flow, (4, 1), 3, 0, prediction="flow")


def test_model_dtype_is_what_the_model_sees_and_may_return():
    seen = []

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return -x / 64

    out = run([model], dtype=torch.float32, model_dtype=torch.bfloat16)
    assert out.x.dtype is torch.float32 and set(seen) == {(torch.bfloat16, torch.float32)}


def test_weights_accumulate_and_populations_compete_among_themselves():
    """Log weights of -k for the k-th particle: kept until the effective sample size falls, then gone with it."""
    place = torch.arange(8, dtype=F64).repeat(2) * torch.tensor([0.1, 0.0], dtype=F64).repeat_interleave(8)
    out = run(None, (16, 1), 3, method=Recorder(lambda k, x: -place), populations=2, threshold=0.2)
    torch.testing.assert_close(out.log_weights, -3 * place)
    out = run(None, (16, 1), 3, method=Recorder(lambda k, x: -30 * place), populations=2, threshold=0.5)
    assert float(out.log_weights.abs().max()) == 0
    assert out.effective_sample_size.shape == (3, 2)
    w = torch.exp(-30 * place[:8])
    torch.testing.assert_close(
        out.effective_sample_size[0], torch.tensor([w.sum() ** 2 / w.square().sum(), 8.0]).to(F64)
    )


def test_twins_part():
    """All descend from one particle after the first step, and all differ after the second: noise goes by place."""
    only = torch.full((64,), -200.0, dtype=F64)
    only[7] = 0.0
    states = []
    with pytest.warns(RuntimeWarning, match="effective sample size 1.0 of 64 particles at step 0, time 1"):
        run(
            None, (64, 2), 2, method=Recorder(lambda k, x: only if k.index == 0 else 0 * only),
            callback=lambda s: states.append(s.x),
        )  # fmt: skip
    assert len(torch.unique(states[0], dim=0)) == 1
    assert len(torch.unique(states[1], dim=0)) == 64
    noise = random.normal(64, (2,), seed=0, step=1, dtype=F64)
    torch.testing.assert_close(states[1], states[0] + noise)


def test_degenerate_weights_warn_once_and_zero_weights_are_an_error():
    with pytest.warns(RuntimeWarning, match="the weights degenerated") as found:
        run(None, (100, 1), 6, method=Recorder(lambda k, x: -5000 * x[:, 0].square()))
    assert len(found) == 1
    with pytest.raises(ValueError, match=r"no particle has a finite positive weight at step 1, time 0\.8"):
        run(None, (8, 1), 5, method=Recorder(lambda k, x: x[:, 0] * 0 - (torch.inf if k.index else 0)))


@pytest.mark.parametrize("kind", ["systematic", "stratified", "multinomial", "residual", None])
def test_resampling_methods(kind):
    out = run([law(), law()], (64, 1), 20, resampling=kind, threshold=1.0)
    assert bool((out.log_weights == 0).all()) == (kind is not None)


def test_the_batch_may_be_split():
    """Populations with their own ids are the same alone and in company."""
    whole = run([law(), law()], (24, 1), 20, populations=3)
    for i in range(3):
        part = run([law(), law()], (8, 1), 20, sample_ids=8 * i)
        torch.testing.assert_close(part.x, whole.x[8 * i : 8 * i + 8], rtol=0, atol=0)
        torch.testing.assert_close(part.log_weights, whole.log_weights[8 * i : 8 * i + 8], rtol=0, atol=0)
        ids = torch.arange(8 * i, 8 * i + 8)
        torch.testing.assert_close(run([law(), law()], (8, 1), 20, sample_ids=ids).x, part.x, rtol=0, atol=0)


def test_backends_agree():
    wanted = run([law(), law()], (6, 1), 3)
    for name, why in fokker.available_backends().items():
        if why == "ok" and name in ("reference", "emu"):
            with fokker.use_backend(name):
                other = run([law(), law()], (6, 1), 3)
            torch.testing.assert_close(other.x, wanted.x, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(other.log_weights, wanted.log_weights, rtol=1e-9, atol=1e-9)


def test_calls_callbacks_and_progress(capsys):
    steps = []
    out = run([law(), law()], steps=4, callback=lambda s: steps.append((s.step, round(s.time, 6))), progress=True)
    assert steps == [(1, 0.75), (2, 0.5), (3, 0.25), (4, 0.0)] and out.calls == 8 and out.step == 4
