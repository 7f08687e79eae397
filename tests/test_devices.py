"""What the host does for a GPU, without one: devices never mix, and nothing waits but where it says so.

The same calls on the CPU do not take torch's default device, whatever it is, for the home of their own numbers.
"""

import importlib.util

import numpy as np
import pytest
import torch
from fake_gpu import FakeGpu
from torch import Tensor

import fokker
from fokker import kde, mixture, nn, pairwise, sde
from fokker.cases import CASES
from fokker.systems import (
    absorbing,
    distill,
    dmcmc,
    feynman_kac,
    gbm_diffusion,
    interpolants,
    mixed_ode_sde,
    palm,
    particle_posterior,
    score_sde,
    superdiff,
    teleport,
    tweedie,
)  # fmt: skip

#: torch's CPU builds cannot index a tensor that says it is on a GPU
needs_fakes = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="needs a torch that is built with CUDA")
SHAPE = (4, 3, 8, 8)
CHECKED = {"vmf_fit"}  # looks at its input (validate=False does not)


ON = {"device": "cuda:0"}


def gpu(*shape, fill=1.0, dtype=torch.float32):
    return torch.full(shape, fill, dtype=dtype, **ON)


def device_of(found):
    return found.device.type if isinstance(found, Tensor) else device_of(found[0])


@pytest.mark.parametrize("name", [n for n in CASES if n not in CHECKED])
@needs_fakes
def test_ops(name):
    case = CASES[name]
    make = case.gentle or (lambda g: case.make(20, torch.float64, g))
    args = make(torch.Generator().manual_seed(11))
    for backend in (None, "reference"):
        with FakeGpu() as at, fokker.use_backend(backend) if backend else torch.no_grad():
            found = case.call(*(a.to("cuda:0") if isinstance(a, Tensor) else a for a in args))
        assert device_of(found) == "cuda"
        assert not at.waits


# ---- samplers -------------------------------------------------------------------------------------------------------
def model(x, t):
    return 0.1 * x


SAMPLERS = {
    "Euler-Maruyama": (sde.EulerMaruyama(), sde.VP()),
    "reverse diffusion": (sde.ReverseDiffusion(), sde.VE()),
    "ancestral": (sde.Ancestral(), sde.VP()),
    "predictor-corrector": (sde.PredictorCorrector(), sde.VP()),
    "DDIM": (sde.DDIM(0.5), sde.VP()),
    "EDM Heun": (sde.EDMHeun(), sde.EDM()),
    "Euler": (sde.Euler(), sde.RectifiedFlow()),
    "Euler ancestral": (sde.EulerAncestral(), sde.VP()),
    "Heun": (sde.Heun(), sde.EDM()),
    "DPM-Solver": (sde.DPMSolver(2), sde.VP()),
    "UniPC": (sde.UniPC(), sde.VP()),
    "DEIS": (sde.DEIS(), sde.VP()),
    "LMS": (sde.LMS(), sde.VP()),
    "window": (sde.FlowWindow(0.7, None), sde.RectifiedFlow()),
    "geometric": (sde.GeometricStep(), sde.GeometricBrownian(t_min=0.1)),
}


@pytest.mark.parametrize("name", SAMPLERS)
@needs_fakes
def test_samplers(name):
    sampler, process = SAMPLERS[name]
    with FakeGpu() as at:
        x = sde.sample(model, process, sampler, SHAPE, 5, seed=3, device="cuda:0", guidance=None)
    assert x.is_cuda
    assert not at.waits


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers")
@pytest.mark.parametrize(
    "name", ["DDPM", "DDIM", "EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LMSDiscrete"]
)
@needs_fakes
def test_schedulers(name):
    from fokker import schedulers

    scheduler = getattr(schedulers, f"{name}Scheduler")()
    scheduler.set_timesteps(5)
    with FakeGpu() as at:
        x = gpu(*SHAPE)
        for t in scheduler.timesteps:
            x = scheduler.step(0.1 * scheduler.scale_model_input(x, t), t, x).prev_sample
    assert x.is_cuda
    assert not at.waits


# ---- systems --------------------------------------------------------------------------------------------------------
def logits(x, *rest):
    return torch.zeros(*x.shape, 8, device=x.device)


def tokens():
    return gpu(4, 10, fill=0, dtype=torch.int64)


LAW = interpolants.interpolant("linear", t_min=0.1, t_max=0.9)
GBM = sde.GeometricBrownian(t_min=0.1)
LEVELS = dmcmc.levels(0.1, 4.0, 8)


def _posterior(steps):
    m = particle_posterior.Measurement(gpu(2, 192), gpu(2), 1.0)
    return particle_posterior.ParticlePosterior(model, m).sample(sde.EDM(), SHAPE, steps, 3, **ON)


def _teleport(steps):
    law = mixture.Mixture(gpu(1, 192), (gpu(1, 192, 2), gpu(1)), None, "lowrank")
    return teleport.sample(
        teleport.denoiser(law, sde.EDM()), sde.EDM(), sde.Heun(), (3, 192), steps, 0, law=law, time=2.0, **ON
    )


RUNS = {
    "score_sde": lambda n: score_sde.predictor_corrector(model, sde.VP(), SHAPE, n, 3, norms="batch", **ON),
    "inpaint": lambda n: score_sde.inpaint(
        model, sde.VP(), gpu(3, 8, 8), gpu(3, 8, 8, fill=True, dtype=torch.bool), SHAPE, n, **ON
    ),
    "superdiff or": lambda n: superdiff.SuperDiff([model, model], "or").sample(sde.VP(), SHAPE, n, 3, **ON),
    "superdiff and": lambda n: superdiff.SuperDiff([model, model], "and").sample(sde.VP(), SHAPE, n, 3, **ON),
    "feynman_kac": lambda n: feynman_kac.guide(model, model, 1.5).sample(sde.VP(), SHAPE, n, 3, **ON),
    "particle_posterior": _posterior,
    "mixed_ode_sde": lambda n: mixed_ode_sde.rollout(model, SHAPE, n, (1, 3), 3, **ON)[:1],
    "absorbing": lambda n: absorbing.sample(logits, sde.Absorbing(7), (4, 10), n, 3, cache=False, **ON),
    "dmcmc": lambda n: dmcmc.chain(model, lambda x: gpu(4, 8), LEVELS, SHAPE, n, 3, **ON),
    "gbm_diffusion": lambda n: gbm_diffusion.sample(model, GBM, SHAPE, n, 2, method="dls", **ON),
    "gbm_diffusion unsigned": lambda n: gbm_diffusion.sample(model, GBM, SHAPE, n, 2, method="ums", **ON),
    "interpolants": lambda n: interpolants.sample(lambda x, t: (-x, 0.5 * x), LAW, gpu(*SHAPE), n, 3, epsilon=0.5),
    "teleport": _teleport,
}


@pytest.mark.filterwarnings("ignore:the weights degenerated")
@pytest.mark.parametrize("name", RUNS)
@needs_fakes
def test_runs_of_systems(name):
    """A run waits to check its result, once, however long it is."""
    waits = []
    for steps in (4, 8):
        with FakeGpu() as at:
            found = RUNS[name](steps)
        assert device_of(getattr(found, "x", found)) == "cuda"
        waits.append(at.waits)
    assert waits[0] == waits[1] <= 8


def half(x, sigma):
    return 0.5 * x


LOSSES = {
    "absorbing lambda": lambda: absorbing.lambda_dce(logits, tokens(), 7, seed=0),
    "absorbing t": lambda: absorbing.t_dce(logits, tokens(), sde.Absorbing(7), seed=0),
    "absorbing score entropy": lambda: absorbing.dse(logits, tokens(), sde.Absorbing(7), seed=0),
    "absorbing any order": lambda: absorbing.any_order(
        logits, tokens(), 7, torch.arange(10, **ON).expand(4, 10)
    ),
    "gbm": lambda: gbm_diffusion.loss(model, gpu(*SHAPE), GBM, seed=0),
    "interpolants": lambda: interpolants.loss(
        lambda x, t: (-x, 0.5 * x), gpu(*SHAPE), gpu(*SHAPE), LAW, seed=0
    ),
    "dmd": lambda: distill.dmd(gpu(*SHAPE), gpu(*SHAPE), gpu(4), half, half),
    "sid": lambda: distill.sid(gpu(*SHAPE), gpu(*SHAPE), gpu(4), half, half),
    "f-distill": lambda: distill.f_distill(gpu(*SHAPE), gpu(*SHAPE), gpu(4), half, half, gpu(4)),
    "uni-instruct": lambda: distill.uni_instruct(gpu(*SHAPE), gpu(*SHAPE), gpu(4), half, half, gpu(4)),
    "palm": lambda: palm.step(gpu(8, 16), gpu(8, fill=0, dtype=torch.int64), gpu(3, 4, 16)),
    "mixed ODE-SDE advantages": lambda: mixed_ode_sde.advantages(gpu(4), 2),
    "tweedie": lambda: tweedie.Gaussian(0.5).denoise(gpu(3, 12), tweedie.kde_score(gpu(30, 12), 0.5)),
    "tweedie Poisson": lambda: tweedie.Poisson().denoise(gpu(3, 12), lambda y: -y),
    "ar-dae": lambda: tweedie.ar_dae_loss(lambda y: -y, gpu(3, 12), 0.1, seed=0),
    "dequantize": lambda: score_sde.dequantize(gpu(*SHAPE)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
@needs_fakes
def test_losses_do_not_wait(name):
    with FakeGpu() as at:
        found = LOSSES[name]()
    assert device_of(found) == "cuda"
    assert not at.waits


# ---- densities ------------------------------------------------------------------------------------------------------
COVARIANCES = {
    "isotropic": lambda: gpu(2),
    "diag": lambda: gpu(2, 3),
    "full": lambda: gpu(2, 3, 3),
    "lowrank": lambda: (gpu(2, 3, 1), gpu(2)),
}


@pytest.mark.parametrize("kind", COVARIANCES)
@needs_fakes
def test_mixtures_do_not_wait(kind):
    with FakeGpu() as at:
        law, x = mixture.Mixture(gpu(2, 3), COVARIANCES[kind](), None, kind), gpu(20, 3)
        for f in (mixture.log_prob, mixture.score, mixture.responsibilities, mixture.mahalanobis):
            assert f(x, law).is_cuda
        for sigma in (0.5, gpu(20)):
            assert mixture.posterior_mean(x, law, sigma=sigma).is_cuda
    assert not at.waits


@needs_fakes
def test_densities_do_not_wait():
    with FakeGpu() as at:
        x, y = gpu(20, 3), gpu(30, 3)
        for kernel in ("gaussian", "laplace", "exponential", "matern52", "student_t", "epanechnikov", "vmf"):
            assert kde.log_prob(x, y, 0.5, kernel=kernel).is_cuda
        assert kde.posterior_mean(x, y, gpu(20)).is_cuda
        assert kde.log_prob(x, y, gpu(), weights=gpu(30)).is_cuda
        for kind in ("biased", "unbiased"):
            assert pairwise.mmd2(x, y, estimator=kind, bandwidth=1.0).is_cuda
        assert pairwise.energy_distance(x, y).is_cuda
        assert pairwise.crps(x, gpu(20)).is_cuda
    assert not at.waits


# ---- models ---------------------------------------------------------------------------------------------------------
def _unet(architecture):
    sizes = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (8,), "label_dim": 3}
    model = nn.UNet(16, architecture=architecture, **sizes)
    return nn.EDMPrecond(model, label_dim=3).to("cuda:0")(gpu(2, 3, 16, 16), gpu(2), gpu(2, 3))


MODELS = {
    "DiT": lambda: nn.DiT(8, 2, 4, 32, 2, 4, num_classes=10).to("cuda:0")(
        gpu(2, 4, 8, 8), gpu(2), gpu(2, dtype=torch.int64)
    ),
    "FiT": lambda: nn.FiT(2, 4, 32, 2, 4, num_classes=10, qk_norm="rms").to("cuda:0")(
        gpu(2, 16, 16), gpu(2), gpu(2, dtype=torch.int64), gpu(2, 2, 16), gpu(2, 16)
    ),
    "ADM": lambda: _unet("adm"),
    "DDPM++": lambda: _unet("ddpm++"),
    "NCSN++": lambda: _unet("ncsn++"),
}


@pytest.mark.parametrize("name", MODELS)
@needs_fakes
def test_models_do_not_wait(name):
    with FakeGpu() as at, torch.no_grad():
        assert MODELS[name]().is_cuda
    assert not at.waits


# ---- another default device -----------------------------------------------------------------------------------------
@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setitem(ON, "device", "cpu")
    with torch.device("meta"):
        yield


@pytest.mark.filterwarnings("ignore:the weights degenerated")
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", [*RUNS, *LOSSES])
def test_default_device_of_systems(name):
    found = RUNS[name](4) if name in RUNS else LOSSES[name]()
    assert device_of(getattr(found, "x", found)) == "cpu"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", SAMPLERS)
def test_default_device_of_samplers(name):
    sampler, process = SAMPLERS[name]
    assert sde.sample(model, process, sampler, SHAPE, 5, seed=3, device="cpu").device.type == "cpu"


@pytest.mark.parametrize("name", CASES)
def test_default_device_of_ops(name):
    """Nor is what an op keeps one of inference mode."""
    case = CASES[name]
    make = case.gentle or (lambda g: case.make(20, torch.float64, g))
    args = list(make(torch.Generator().manual_seed(11)))
    for backend in ("reference", "cpu"):
        if backend not in case.backends or fokker.available_backends()[backend] != "ok":
            continue
        with fokker.use_backend(backend):
            with torch.device("meta"), torch.inference_mode():
                assert device_of(case.call(*args)) == "cpu"
            if case.gradients:
                leaves = [a.clone().requires_grad_() if i in case.gradients else a for i, a in enumerate(args)]
                case.call(*leaves).sum().backward()


@pytest.mark.usefixtures("elsewhere")
def test_default_device_of_estimators():
    pytest.importorskip("sklearn")
    from fokker import estimators

    x = np.random.default_rng(0).normal(size=(60, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for e in (estimators.KernelDensity(), estimators.GaussianMixture(2), estimators.VonMisesFisherMixture(2)):
        assert np.isfinite(e.fit(x).score_samples(x)).all()
