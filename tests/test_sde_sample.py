"""What fokker.sde.sample promises around a sampler: restarts, seeds, guidance, clipping, callbacks, networks."""

import functools

import pytest
import torch
from sde_problems import KINDS, NOISY, VP, B, D, denoiser, first, gaussians, run

import fokker
from fokker import random, sde
from fokker._sde_ops import AFFINE


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

    assert float(run(KINDS["multistep"], callback=pin)[:, 0].abs().max()) == 0
    pinned = run(sde.UniPC(2, corrector=False), callback=pin)
    assert float(pinned[:, 0].abs().max()) == 0
    with pytest.raises(ValueError, match="callback cannot replace the state"):
        run(sde.UniPC(2), callback=pin)
    with pytest.raises(ValueError, match="callback must return"):
        run(KINDS["multistep"], callback=lambda s: s.x[:1])


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
    run(KINDS["multistep"], progress=True)
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


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("more", [{}, {"guidance": 1.5}, {"guidance": 1.5, "clip": 0.7}], ids=str)
def test_models_that_write_over_their_output(name, more):
    out = torch.empty(B, D, dtype=torch.float64)

    def static(x, t):
        return out.copy_(denoiser(VP)(x, t))

    def weak(x, t):
        return out.copy_(0.5 * denoiser(VP)(x, t)) if static_run else 0.5 * denoiser(VP)(x, t)

    guide = {"guide": weak} if "guidance" in more else {}
    static_run = False
    want = run(KINDS[name], **more, **guide)
    static_run = True
    found = run(KINDS[name], model=static, static_output=True, **more, **guide)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


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
