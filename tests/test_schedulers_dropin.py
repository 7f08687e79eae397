"""fokker.schedulers as a drop-in: signatures, configurations, copies, pipelines, dtypes, gradients, torch.compile."""

import copy
import inspect
import pickle
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

diffusers = pytest.importorskip("diffusers")
from scheduler_calls import NAMES, QUIET, SD, SHAPE, V_TRAILING, config_of, far, judged, make, normals, pair, run  # noqa: E402

from fokker import schedulers  # noqa: E402

pytestmark = pytest.mark.filterwarnings(*QUIET)
SDE = {**SD, "algorithm_type": "sde-dpmsolver++"}


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_diffusers(name):
    ours, theirs = getattr(schedulers, name), getattr(diffusers, name)
    assert issubclass(ours, theirs) and ours.__name__ == name and ours.__module__ == "fokker.schedulers"
    for method in ("__init__", "step", "set_timesteps", "scale_model_input", "add_noise"):
        if hasattr(theirs, method):
            names = [n for n in inspect.signature(getattr(theirs, method)).parameters if n not in ("args", "kwargs")]
            assert list(inspect.signature(getattr(ours, method)).parameters)[: len(names)] == names


@pytest.mark.parametrize("name", NAMES)
def test_configuration_round_trips(name, tmp_path):
    theirs, ours = pair(name, config_of(name), None)
    ours.save_pretrained(tmp_path)
    found = [getattr(schedulers, name).from_config(theirs.config)]
    found += [getattr(module, name).from_pretrained(tmp_path) for module in (schedulers, diffusers)]
    for scheduler in found:
        for key, value in theirs.config.items():
            assert key.startswith("_") or scheduler.config[key] == value


def test_in_a_pipeline():
    """The one line that a user changes, in a pipeline of diffusers with a tiny U-Net."""
    size = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    pipe = diffusers.DDIMPipeline(diffusers.UNet2DModel(**size, **blocks), diffusers.DDIMScheduler(**SD))
    pipe.set_progress_bar_config(disable=True)
    found = []
    for scheduler in (pipe.scheduler, schedulers.DDIMScheduler.from_config(pipe.scheduler.config)):
        pipe.scheduler = scheduler
        g = torch.Generator().manual_seed(0)
        found.append(torch.from_numpy(pipe(2, num_inference_steps=5, output_type="np", generator=g).images))
    assert far(found[1], found[0]) < 1e-5


def test_from_another_schedulers_configuration():
    pipe = diffusers.PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(pipe.config, use_karras_sigmas=True)
    ours = schedulers.DPMSolverMultistepScheduler.from_config(pipe.config, use_karras_sigmas=True)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
    assert torch.equal(theirs.timesteps, ours.timesteps) and torch.equal(theirs.sigmas, ours.sigmas)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_copy_in_the_middle_of_a_run(name):
    scheduler = make(name, 5)
    scheduler.set_noise(3)
    x, m = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2)
    for t in scheduler.timesteps[:3]:
        x = scheduler.step(m, t, x).prev_sample
    t = scheduler.timesteps[3]
    twins = [pickle.loads(pickle.dumps(scheduler)), copy.deepcopy(scheduler)]
    expected = scheduler.step(m, t, x).prev_sample
    for twin in twins:
        assert torch.equal(twin.step(m, t, x).prev_sample, expected)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_add_noise_and_velocity_with_a_timestep_a_sample(name):
    theirs, ours = pair(name, SD, None)
    x, z, t = normals(5, 3, 4, seed=1), normals(5, 3, 4, seed=2), torch.tensor([0, 999, 500, 3, 3])
    for method in ("add_noise", "get_velocity"):
        assert far(getattr(ours, method)(x, z, t), getattr(theirs, method)(x, z, t)) < 1e-6
        assert far(getattr(ours, method)(x, z, t[:1]), getattr(theirs, method)(x, z, t[:1])) < 1e-6
    with pytest.raises(ValueError, match="timesteps must be one number a sample"):
        ours.add_noise(x, z, t[:3])


@pytest.mark.parametrize("name", [n for n in NAMES if n[:4] not in ("DDPM", "DDIM", "Flow")])
def test_add_noise_by_the_schedule(name):
    x, z = normals(4, 3, 4, seed=1), normals(4, 3, 4, seed=2)
    theirs, ours = pair(name, SD, None)
    t = theirs.timesteps[[0, 500, 30, 30]]
    assert far(ours.add_noise(x, z, t), theirs.add_noise(x, z, t)) < 1e-6
    theirs, ours = pair(name, SD, 8)
    for t in (ours.timesteps[[0, 3, 7, 3]], ours.timesteps[4:5]):
        assert far(ours.add_noise(x, z, t), theirs.add_noise(x, z, t)) < 1e-6
    with pytest.raises(ValueError, match="one number a sample"):
        ours.add_noise(x, z, ours.timesteps[:3])
    with pytest.raises(ValueError, match="not one of the scheduler"):
        ours.add_noise(x, z, torch.full((4,), -3.0))
    for scheduler in (theirs, ours):
        scheduler.set_begin_index(2)
    assert far(ours.add_noise(x, z, t.expand(4)), theirs.add_noise(x, z, t.expand(4))) < 1e-6
    for scheduler in (theirs, ours):
        scheduler.step(x, scheduler.timesteps[2], x)
    assert far(ours.add_noise(x, z, t.expand(4)), theirs.add_noise(x, z, t.expand(4))) < 1e-6


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_steps_in_any_order(name):
    theirs, ours = pair(name, SD, 7)
    x, m, z = (normals(*SHAPE, seed=k) for k in range(3))
    for k in (3, 0, 6, 6, 2):
        t = theirs.timesteps[k]
        with judged(theirs, z, False):
            expected = theirs.step(m, t, x).prev_sample
        noise = {"noise": z} if name[:4] == "DDPM" else {}
        for timestep in (t, int(t)):
            assert far(ours.step(m, timestep, x, **noise).prev_sample, expected) < 2e-6


def test_custom_sigmas_are_noticed():
    theirs, ours = pair("EulerDiscreteScheduler", SD, 4)
    x, m = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2)
    for scheduler in (theirs, ours):
        scheduler.sigmas[1] *= 1.5
    t = theirs.timesteps[0]
    assert far(ours.step(m, t, x).prev_sample, theirs.step(m, t, x).prev_sample) < 1e-6


def test_without_the_original_sample():
    whole, lean = make("EulerDiscreteScheduler"), make("EulerDiscreteScheduler")
    lean.want_original_sample = False
    x, m, t = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2), whole.timesteps[0]
    a, b = whole.step(m, t, x), lean.step(m, t, x)
    assert torch.equal(a.prev_sample, b.prev_sample) and b.pred_original_sample is None


# ---- dtypes, gradients, compilation ---------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, dtype):
    """Results have diffusers' dtype; a half result is the float32 one rounded, and so not worse than diffusers'."""
    theirs, ours = pair(name, config_of(name), 5)
    single = make(name, 5)
    for k, t in enumerate(theirs.timesteps[:3]):
        x, m, z = (normals(*SHAPE, seed=3 * k + j).to(dtype) for j in range(3))
        noise = (
            {"noise": z}
            if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler", "DPMSolverSDEScheduler")
            else {}
        )
        with judged(theirs, z, False):
            expected = theirs.step(m, t, x, return_dict=False)
        found = ours.step(m, t, x, return_dict=False, **noise)
        exact = single.step(m.float(), t, x.float(), return_dict=False, **{n: v.float() for n, v in noise.items()})
        assert [f.dtype for f in found] == [e.dtype for e in expected]
        for f, e in zip(found, exact, strict=True):
            assert far(f, e) <= {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float64: 1e-6}[dtype]


@pytest.mark.parametrize("name", NAMES)
def test_master_state(name):
    """A bfloat16 run with it ends within one rounding of the float32 run; without it the roundings add up."""
    errors = []
    for master in (True, False):
        single, half = make(name, 25), make(name, 25)
        half.master_state = master
        x = y = normals(*SHAPE, seed=1).bfloat16()
        x = x.float()
        for k, t in enumerate(single.timesteps):
            m = normals(*SHAPE, seed=k).bfloat16()
            noise = {"seed": 4} if "noise" in inspect.signature(single.step).parameters else {}
            x = single.step(m.float(), t, x, **noise).prev_sample
            y = half.step(m, t, y, **noise).prev_sample
        assert y.dtype == torch.bfloat16
        errors.append(far(y, x))
    assert errors[0] <= 2**-8 and errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
def test_gradients(name):
    """Through three steps, as guidance by a loss takes them."""
    found = []
    for scheduler in pair(name, SD, 5):
        x, m = (normals(*SHAPE, seed=k).requires_grad_() for k in (1, 2))
        y = x
        for t in scheduler.timesteps[:3]:
            y = scheduler.step(torch.tanh(y) * m, t, y).prev_sample
        found.append(torch.autograd.grad(y.square().sum(), (x, m)))
    for a, b in zip(*found, strict=True):
        assert far(b, a) < 1e-5


class _Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value on the host."""

    reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += "local_scalar" in str(function) or "nonzero" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [n for n in NAMES if n[:4] not in ("DDPM", "DDIM")])
def test_nothing_is_read_on_the_host(name):
    scheduler = make(name)
    scheduler.set_begin_index(0)
    scheduler.set_noise(3)
    x = normals(*SHAPE, seed=1)
    with _Reads() as counted:
        run(scheduler, x)
    assert counted.reads == 0


@pytest.mark.parametrize(
    ("name", "config", "graphs"),
    [
        ("DDPMScheduler", SD, 3),
        ("EulerDiscreteScheduler", {**SD, **V_TRAILING}, 3),
        ("HeunDiscreteScheduler", SD, 4),
        ("DPMSolverMultistepScheduler", SDE, 4),
        ("UniPCMultistepScheduler", SD, 4),
    ],
)
def test_compile_without_a_graph_break(name, config, graphs):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    eager, traced = make(name, 7, **config), make(name, 7, **config)
    for scheduler in (eager, traced):
        scheduler.set_noise(5)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)

    def step(m, t, x):
        return traced.step(m, t, traced.scale_model_input(x, t)).prev_sample

    torch._dynamo.reset()
    fast = torch.compile(step, fullgraph=True, backend=backend)
    x = y = normals(*SHAPE, seed=1)
    for k, t in enumerate(eager.timesteps):
        m = normals(*SHAPE, seed=k)
        y = eager.step(m, t, eager.scale_model_input(y, t)).prev_sample
        x = fast(m, t, x)
        assert far(x, y) < 1e-6
    assert len(compiled) <= graphs


def test_the_name_of_what_is_missing(monkeypatch):
    for name in [n for n in sys.modules if n.startswith("fokker._schedulers_") and "coefficients" not in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(schedulers.__dict__, "DDIMScheduler", raising=False)
    with pytest.raises(ImportError, match=r"pip install fokker\[diffusers\]"):
        _ = schedulers.DDIMScheduler
    assert callable(schedulers.sample_euler)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = schedulers.Nothing
