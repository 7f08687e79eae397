"""fokker.sde.sample: every sampler's table against its textbook loop, and what the one loop promises around them."""

import functools
import math

import pytest
import torch
from sde_problems import KINDS, VP, B, D, denoiser, first, run

from fokker import _sde_loop, random, sde
from fokker.reference import sde_samplers as textbook

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
