"""fokker.sde.sample: every sampler's table against its textbook loop, and what the one loop promises around them."""

import functools
import math

import pytest
import torch
from sde_problems import denoiser, gaussians

import fokker
from fokker import _sde_loop, random, sde
from fokker._sde_ops import AFFINE
from fokker.reference import sde_samplers as textbook

B, D = 5, 2
PROCESSES = {
    "vp": sde.VP(t_min=0.01),
    "cosine": sde.VP("cosine", t_min=0.01),
    "subvp": sde.SubVP(t_min=0.02),
    "ve": sde.VE(0.02, 10.0),
    "edm": sde.EDM(sigma_max=20.0),
    "flow": sde.RectifiedFlow(t_max=0.99),
}
book = functools.partial

#: sampler, its loop
PAIRS = {
    "Euler-Maruyama": (sde.EulerMaruyama(), textbook.euler_maruyama),
    "reverse diffusion": (sde.ReverseDiffusion(), textbook.reverse_diffusion),
    "ancestral": (sde.Ancestral(), textbook.ancestral),
    "ancestral large": (sde.Ancestral("large"), book(textbook.ancestral, large=True)),
    "Langevin norm": (sde.PredictorCorrector(), book(textbook.langevin_corrector, snr=0.16, rule="norm", batch=False)),
    "Langevin batch": (
        sde.PredictorCorrector(norms="batch"),
        book(textbook.langevin_corrector, snr=0.16, rule="norm", batch=True),
    ),
    "Langevin std": (
        sde.PredictorCorrector(snr=0.1, rule="std"),
        book(textbook.langevin_corrector, snr=0.1, rule="std", batch=False),
    ),
    "DDIM": (sde.DDIM(), textbook.ddim),
    "DDIM 0.6": (sde.DDIM(0.6), book(textbook.ddim, eta=0.6)),
    "Euler ancestral": (sde.EulerAncestral(), textbook.euler_ancestral),
    "Euler ancestral 0.5": (sde.EulerAncestral(0.5), book(textbook.euler_ancestral, eta=0.5)),
    "EDM Heun": (sde.EDMHeun(), textbook.edm_heun),
    "EDM churn": (
        sde.EDMHeun(3.0, 0.05, 8.0, 1.003),
        book(textbook.edm_heun, churn=3.0, s_min=0.05, s_max=8.0, s_noise=1.003),
    ),
    "Euler sigma": (sde.Euler("sigma"), textbook.ddim),
    "Euler time": (sde.Euler("time"), textbook.probability_flow),
    "Heun sigma": (sde.Heun("sigma"), textbook.edm_heun),
    "Heun time": (sde.Heun("time"), book(textbook.probability_flow, heun=True)),
    "DEIS": (sde.DEIS(), textbook.adams_bashforth),
    "DEIS time": (sde.DEIS(2, "time"), book(textbook.adams_bashforth, order=2, variable="time")),
    "LMS": (sde.LMS(), book(textbook.adams_bashforth, order=4, variable="rho")),
    **{
        f"DPM++ {order}M {kind} eta={eta}": (
            sde.DPMSolver(order, kind=kind, eta=eta),
            book(textbook.dpm_solver_pp_multistep, order=order, kind=kind, eta=eta),
        )
        for order in (1, 2, 3)
        for kind in ("published", "exact")
        for eta in (0.0, 1.0)
    },
    **{
        f"DPM{'++' if data else ''} {order}S": (
            sde.DPMSolver(order, "x0" if data else "epsilon", multistep=False),
            book(textbook.dpm_solver_singlestep, order=order, data=data),
        )
        for order in (2, 3)
        for data in (True, False)
    },
    **{
        f"UniPC {order} {solver}": (sde.UniPC(order, solver), book(textbook.unipc, order=order, solver=solver))
        for order in (1, 2, 3)
        for solver in ("bh1", "bh2")
    },
}


def noises(seed=4):
    """The noise of a run, as a table and as a loop ask for it; and which of it was used."""
    asked = set()

    def loop(stream, number):
        asked.add((stream, number))
        return random.normal(B, (D,), seed=seed, step=number, stream=stream, dtype=torch.float64)

    return loop, asked


def first(process, batch=B, dtype=torch.float64):
    return process.prior_sample(batch, (D,), seed=9, dtype=dtype)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("process", PROCESSES)
def test_table_is_the_textbook_loop(name, process):
    process = PROCESSES[process]
    sampler, loop = PAIRS[name]
    zero = isinstance(process, sde.EDM) and "time" not in name
    t = sde.karras(process, 6, to_zero=zero)
    model, x = denoiser(process), first(process)
    noise, asked = noises()
    expected = loop(model, process, x, t.tolist(), noise)
    kernel = sde.sample(model, process, sampler, (B, D), times=t, seed=4, start=x, dtype=torch.float64)
    # a score near zero makes Langevin's step by norms huge, and with it rounding
    close = 1e-6 if "norm" in name or "batch" in name else 1e-9
    torch.testing.assert_close(kernel, expected, rtol=close, atol=close * float(expected.abs().max()))
    given = set()

    def injected(stream, number, like):
        given.add((stream, number))
        return random.normal(B, (D,), seed=4, step=number, stream=stream, dtype=torch.float64)

    same = sde.sample(model, process, sampler, (B, D), times=t, start=x, dtype=torch.float64, noise=injected)
    torch.testing.assert_close(same, kernel, rtol=1e-3 * close, atol=1e-3 * close * float(expected.abs().max()))
    assert given == asked


DETERMINISTIC = sde.DPMSolver(2)
NOISY = sde.EulerMaruyama()
KINDS = {
    "one step, noise": NOISY,
    "corrector": sde.PredictorCorrector(),
    "churn": sde.EDMHeun(churn=4.0),
    "multistep": sde.DPMSolver(3),
    "multistep, noise": sde.DPMSolver(2, eta=1.0),
    "UniPC": sde.UniPC(3),
    "singlestep": sde.DPMSolver(3, multistep=False),
    "LMS": sde.LMS(),
}
VP = PROCESSES["vp"]


def run(sampler, process=VP, steps=7, seed=3, shape=(B, D), prediction="x0", law=None, **more):
    model = more.pop("model", None) or denoiser(process, law, prediction)
    more.setdefault("dtype", torch.float64)
    return sde.sample(model, process, sampler, shape, steps, seed, grid="log_snr", prediction=prediction, **more)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "score", "flow"])
def test_prediction_types_are_one_sampler(name, prediction):
    torch.testing.assert_close(run(KINDS[name], prediction=prediction), run(KINDS[name]), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_whatever_the_batch_split(name):
    whole = run(KINDS[name])
    parts = [run(KINDS[name], shape=(2, D), sample_ids=[0, 1]), run(KINDS[name], shape=(3, D), sample_ids=range(2, 5))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)  # the model's own sums may differ


@pytest.mark.parametrize("name", KINDS)
def test_restart_from_any_step(name):
    states = []
    whole = run(KINDS[name], callback=states.append)
    assert [s.step for s in states] == list(range(1, 8)) and states[-1].time == VP.t_min
    torch.testing.assert_close(states[-1].x, whole, rtol=0, atol=0)
    for s in states[:-1]:
        torch.testing.assert_close(run(KINDS[name], start=s), whole, rtol=0, atol=0)
    x = run(KINDS[name], start=states[2].x, start_step=3)
    if KINDS[name].history:  # begins anew with lower orders
        assert 1e-12 < float((x - whole).abs().max()) < 0.5
    else:
        torch.testing.assert_close(x, whole, rtol=0, atol=0)


def test_multistep_from_a_tensor_numbers_its_noise_by_step():
    used = []

    def noise(stream, number, like):
        used.append(number)
        return torch.zeros_like(like)

    run(sde.DPMSolver(2, eta=1.0), start=first(VP), start_step=4, noise=noise)
    assert used == [4, 5, 6]


@pytest.mark.parametrize("name", KINDS)
def test_same_on_every_backend(name):
    """Float32, the same seed: what differs is rounding."""
    wide = run(KINDS[name], start=first(VP), noise=lambda s, n, x: random.normal(B, (D,), seed=3, step=n, stream=s))
    model = denoiser(VP)
    call = functools.partial(
        sde.sample, lambda x, t: model(x.double(), t).to(x), VP, KINDS[name], (B, D), 7, 3, grid="log_snr"
    )
    found = {}
    for backend, why in fokker.available_backends().items():
        if why == "ok" and backend != "triton" and backend in AFFINE[1, False].kernels:
            with fokker.use_backend(backend):
                found[backend] = call(start=first(VP).float())
    assert "reference" in found
    for x in found.values():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), wide, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(x, found["reference"], rtol=2e-5, atol=2e-5)


def test_seed_and_ids_make_the_noise():
    a, b = run(NOISY, seed=3), run(NOISY, seed=4)
    assert float((a - b).abs().min()) > 0
    twins = run(NOISY, sample_ids=[0, 0, 1, 2, 2])
    torch.testing.assert_close(twins[[0, 1, 2, 3]], twins[[1, 0, 2, 4]], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(twins[[0, 2, 3]], a[:3], rtol=1e-13, atol=1e-13)
    torch.manual_seed(5)
    drawn = run(NOISY, seed=None)
    torch.manual_seed(5)
    torch.testing.assert_close(run(NOISY, seed=None), drawn, rtol=0, atol=0)
    torch.testing.assert_close(run(NOISY, seed=torch.tensor([3])), a, rtol=0, atol=0)


# ---- guidance, clipping, callbacks ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("clip", [None, 0.8])
def test_guidance_is_that_of_the_combined_model(name, clip):
    strong, weak = denoiser(VP), denoiser(VP, gaussians((0.9, 1.0, 1.4)))

    def both(x, t):
        w = 1.0 if float(t[0]) < 0.2 else 1.7
        return w * strong(x, t) + (1 - w) * weak(x, t)

    clip = None if name == "corrector" else clip  # the correction's own score is not clipped
    calls = []

    def guide(x, t):
        calls.append(float(t[0]))
        return weak(x, t)

    found = run(KINDS[name], model=strong, guidance=lambda t: 1.0 if t < 0.2 else 1.7, guide=guide, clip=clip)
    torch.testing.assert_close(found, run(KINDS[name], model=both, clip=clip), rtol=1e-9, atol=1e-9)
    assert calls and min(calls) >= 0.2  # not called where its weight is 0


def test_guidance_by_conditions():
    def model(x, t, label):
        return label * denoiser(VP)(x, t)

    found = run(NOISY, model=model, condition={"label": 1.0}, unconditional={"label": 0.5}, guidance=2.0)
    expected = run(NOISY, model=lambda x, t: 1.5 * denoiser(VP)(x, t))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(NOISY, model=model, condition={"label": 1.0}), run(NOISY), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["one step, noise", "multistep", "UniPC", "singlestep", "LMS"])
@pytest.mark.parametrize("prediction", ["x0", "epsilon"])
def test_clip_is_that_of_a_clipping_model(name, prediction):
    clipped = run(KINDS[name], model=lambda x, t: denoiser(VP)(x, t).clamp(-0.5, 0.5))
    torch.testing.assert_close(run(KINDS[name], prediction=prediction, clip=0.5), clipped, rtol=1e-8, atol=1e-8)
    assert float((clipped - run(KINDS[name])).abs().max()) > 1e-2


def test_callback_replaces_the_state():
    def pin(state):
        return torch.cat([torch.zeros_like(state.x[:, :1]), state.x[:, 1:]], 1)

    assert float(run(DETERMINISTIC, callback=pin)[:, 0].abs().max()) == 0
    with pytest.raises(ValueError, match="callback must return"):
        run(DETERMINISTIC, callback=lambda s: s.x[:1])


def test_progress_bar(monkeypatch):
    auto = pytest.importorskip("tqdm.auto")
    bars = []

    class Bar:
        def __init__(self, **settings):
            self.n, self.total, self.closed = settings["initial"], settings["total"], False
            bars.append(self)

        def update(self):
            self.n += 1

        def close(self):
            self.closed = True

    monkeypatch.setattr(auto, "tqdm", Bar)
    run(DETERMINISTIC, progress=True)
    run(KINDS["singlestep"], progress=True, start=first(VP), start_step=4)
    assert [(b.n, b.total, b.closed) for b in bars] == [(7, 7, True)] * 2 and len(bars) == 2


def test_brownian_noise_outlives_the_number_of_steps():
    """More steps along one path come closer to each other; with other paths they do not."""
    x = first(VP)
    fine, *coarse = (
        run(sde.EulerMaruyama(last_mean=False), steps=n, start=x, noise="brownian") for n in (96, 12, 24, 48)
    )
    gaps = [float((c - fine).square().mean().sqrt()) for c in coarse]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 0.3 * float(
        (run(NOISY, start=x, seed=8) - fine).square().mean().sqrt()
    )
    with pytest.raises(ValueError, match="draw once a step"):
        run(KINDS["churn"], noise="brownian")


# ---- one pass -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sampler", "prediction", "reads", "writes"),
    [
        (sde.DDIM(), "epsilon", 1, 1),
        (sde.EulerMaruyama(), "v", 1, 1),
        (sde.DPMSolver(2), "x0", 2, 1),  # the prediction itself is what is kept
        (sde.DPMSolver(2), "epsilon", 2, 2),  # x' and the predicted x_0
        (sde.UniPC(2), "epsilon", 4, 3),  # x', the corrected state and the predicted x_0
        (sde.LMS(4), "epsilon", 4, 1),
    ],
)
def test_a_row_reads_what_it_must(sampler, prediction, reads, writes):
    plan = sde.table(VP, sampler, sde.log_snr(VP, 8), prediction=prediction)
    middle = plan.ops[5]
    assert (len(middle.terms), len(middle.writes)) == (reads, writes)
    assert len(plan.ops) == plan.calls == 8


def test_tables_are_cast_once(monkeypatch):
    """One table a pattern, of which each step takes a row."""
    seen = []
    real = _sde_loop.affine_step
    monkeypatch.setattr(
        _sde_loop,
        "affine_step",
        lambda x, terms, table, **k: seen.append((id(table), k["row"])) or real(x, terms, table, **k),
    )
    run(sde.DPMSolver(2, eta=1.0), steps=20)
    assert (
        len(seen) == 20 and len({table for table, _ in seen}) == 2 and [row for _, row in seen[1:]] == list(range(19))
    )


def test_channels_last_and_shapes():
    model = denoiser(VP)

    def wide(x, t):
        flat = x.permute(0, 2, 3, 1).reshape(-1, D)
        return model(flat, t.repeat_interleave(6)).reshape(2, 2, 3, D).permute(0, 3, 1, 2)

    x = VP.prior_sample(2, (D, 2, 3), seed=1, dtype=torch.float64)
    plain = run(NOISY, model=wide, shape=(2, D, 2, 3), start=x)
    last = run(NOISY, model=wide, shape=(2, D, 2, 3), start=x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, plain, rtol=1e-12, atol=1e-12)
    assert run(NOISY, model=lambda x, t: x, shape=(0, 4)).shape == (0, 4)
    assert run(NOISY, model=lambda x, t: x, shape=(3,)).shape == (3,)


def test_half_precision_networks():
    """The state stays float32: a bfloat16 network costs its own rounding and no more."""
    seen = []

    def half(x, t):
        seen.append((x.dtype, t.dtype))
        return denoiser(VP)(x.double(), t).to(torch.bfloat16)

    x = run(NOISY, model=half, dtype=torch.float32, model_dtype=torch.bfloat16, steps=20)
    assert x.dtype == torch.float32 and set(seen) == {(torch.bfloat16, torch.float32)}


def test_gradients():
    scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def model(x, t):
        return scale * denoiser(VP)(x, t)

    x = first(VP)
    run(KINDS["multistep, noise"], model=model, start=x, differentiable=True).sum().backward()
    step = 1e-5
    ends = [
        run(KINDS["multistep, noise"], model=lambda x, t, s=s: (0.9 + s) * denoiser(VP)(x, t), start=x).sum()
        for s in (step, -step)
    ]
    assert float(scale.grad) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-6)
    assert not run(NOISY, model=model, start=x).requires_grad


def test_compiled_model():
    net = torch.nn.Sequential(torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, D))
    model = torch.compile(lambda x, t: net(x) * t[:, None], backend="aot_eager", fullgraph=True)
    found = run(KINDS["UniPC"], model=model, dtype=torch.float32)
    torch.testing.assert_close(found, run(KINDS["UniPC"], model=lambda x, t: net(x) * t[:, None], dtype=torch.float32))


def test_edm_preconditioned_network():
    """F with D = c_skip x + c_out F(c_in x, log(sigma) / 4), made of the exact denoiser."""
    p = sde.EDM(sigma_max=20.0)
    exact = denoiser(p)

    def network(u, c):
        sigma = torch.exp(4 * c)[:, None]
        scale = torch.sqrt(sigma**2 + 0.25)
        x = u * scale
        return (exact(x, sigma[:, 0]) - 0.25 / scale**2 * x) / (0.5 * sigma / scale)

    found = sde.sample(network, p, sde.EDMHeun(4.0), (B, D), 8, 1, prediction="edm", dtype=torch.float64)
    torch.testing.assert_close(
        found, sde.sample(exact, p, sde.EDMHeun(4.0), (B, D), 8, 1, dtype=torch.float64), rtol=1e-8, atol=1e-8
    )


# ---- ends -----------------------------------------------------------------------------------------------------------
ONE_STEP = {k: v for k, v in {**KINDS, "DDIM": sde.DDIM(), "ancestral": sde.Ancestral()}.items() if k != "corrector"}


@pytest.mark.parametrize(
    "name", [k for k in ONE_STEP if k not in ("churn", "one step, noise", "LMS", "UniPC")] + ["UniPC"]
)
def test_from_pure_noise_to_data(name):
    """Rectified flow from t = 1, where alpha = 0, to t = 0, where sigma = 0: finite, and the last step is a mean."""
    p = sde.RectifiedFlow()
    x = sde.sample(denoiser(p), p, ONE_STEP[name], (B, D), 9, 2, dtype=torch.float64)
    assert bool(x.isfinite().all()) and float(x.abs().max()) < 5
    flow = sde.sample(
        denoiser(p, prediction="flow"), p, ONE_STEP[name], (B, D), 9, 2, dtype=torch.float64, prediction="flow"
    )
    torch.testing.assert_close(flow, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_to_sigma_zero(name):
    p = sde.EDM(sigma_max=20.0)
    states = []
    x = sde.sample(denoiser(p), p, KINDS[name], (B, D), 9, 2, dtype=torch.float64, callback=states.append)
    assert bool(x.isfinite().all())
    if name in ("one step, noise", "multistep", "multistep, noise", "singlestep", "UniPC"):
        before = states[-2]
        end = denoiser(p)(before.x, torch.full((B,), before.time))
        if name == "one step, noise":  # Euler-Maruyama in time: not D itself
            end = before.x + 2 * (end - before.x)
        torch.testing.assert_close(x, end, rtol=1e-10, atol=1e-10)


def test_last_step_returns_the_mean():
    for sampler, noisy in (
        (sde.EulerMaruyama(), sde.EulerMaruyama(last_mean=False)),
        (sde.Ancestral(), sde.Ancestral(last_mean=False)),
    ):
        plan, other = (sde.table(VP, s, sde.log_snr(VP, 5)) for s in (sampler, noisy))
        assert [op.noise is None for op in plan.ops] == [False] * 4 + [True]
        assert all(op.noise for op in other.ops)


def test_full_run():
    out = sde.sample(denoiser(VP), VP, sde.Heun(), (B, D), 6, 0, full=True, dtype=torch.float64)
    assert out.calls == 12 and len(out.times) == 7 and out.log_probs.shape == (0, B)
    torch.testing.assert_close(out.x, sde.sample(denoiser(VP), VP, sde.Heun(), (B, D), 6, 0, dtype=torch.float64))


def test_math_of_an_ancestral_step():
    """One number by hand: VE, sigma 2 to 1, D = 0: x / 4 and variance 3 / 4."""
    p = sde.EDM(sigma_max=2.0)
    (op,) = sde.table(p, sde.Ancestral(last_mean=False), torch.tensor([2.0, 1.0], dtype=torch.float64)).ops
    plan = sde.table(p, sde.Ancestral(last_mean=False), torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert plan.weights[op.table][op.row] == pytest.approx([0.25, 0.75, math.sqrt(0.75)], rel=1e-15)
