"""fokker.schedulers in use: noise, errors, dtypes, configurations on disk, gradients, torch.compile, nothing waited for."""

import copy
import inspect
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

diffusers = pytest.importorskip("diffusers")
from scheduler_calls import SD, SHAPE, V_TRAILING, far, judged, normals, pair  # noqa: E402

import fokker  # noqa: E402
from fokker import schedulers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:diffusers", "ignore:.*__array:DeprecationWarning")

NAMES = [name for name in schedulers.__all__ if name.endswith("Scheduler") and hasattr(diffusers, name)]
SDE = {**SD, "algorithm_type": "sde-dpmsolver++"}
#: (class, configuration, keyword that takes noise)
NOISY = [
    ("DDPMScheduler", SD, "noise"),
    ("EulerAncestralDiscreteScheduler", SD, "noise"),
    ("DPMSolverMultistepScheduler", SDE, "variance_noise"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "noise"),
]


def config_of(name):
    return {} if name.startswith("FlowMatch") else SD


def make(name, steps=6, **config):
    scheduler = getattr(schedulers, name)(**(config or config_of(name)))
    scheduler.set_timesteps(steps)
    scheduler.is_scale_input_called = True
    return scheduler


def run(scheduler, x, outputs=lambda m: m, **step):
    for k, t in enumerate(scheduler.timesteps):
        m = outputs(normals(*SHAPE, seed=k))[: len(x)].to(x)
        x = scheduler.step(m, t, x, return_dict=False, **step)[0]
    return x


# ---- noise ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "config", "keyword"), NOISY)
def test_noise_is_that_of_its_counter(name, config, keyword):
    x, m = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2)
    drawn, given, fixed = (make(name, **config) for _ in range(3))
    fixed.set_noise(11)
    for i, t in enumerate(drawn.timesteps):
        z = fokker.random.normal(2, SHAPE[1:], seed=11, step=i)
        found = drawn.step(m, t, x, seed=11).prev_sample
        assert far(found, given.step(m, t, x, **{keyword: z}).prev_sample) < 1e-6
        assert torch.equal(found, fixed.step(m, t, x).prev_sample)


@pytest.mark.parametrize(("name", "config", "keyword"), NOISY)
def test_generator_is_the_key_of_a_run(name, config, keyword):
    x = normals(*SHAPE, seed=1)
    scheduler = make(name, **config)
    g = torch.Generator().manual_seed(5)
    first = run(scheduler, x, generator=g)
    state = g.get_state()
    scheduler.set_timesteps(6)
    other = run(scheduler, x, generator=g)
    assert not torch.equal(state, g.get_state()) and not torch.equal(first, other)
    scheduler.set_timesteps(6)
    assert torch.equal(first, run(scheduler, x, generator=g.manual_seed(5)))
    scheduler.set_timesteps(6)
    torch.manual_seed(5)
    assert torch.equal(first, run(scheduler, x))


@pytest.mark.parametrize(("name", "config", "keyword"), NOISY)
def test_noise_does_not_depend_on_the_batch(name, config, keyword):
    x = normals(*SHAPE, seed=1)
    scheduler = make(name, **config)
    scheduler.set_noise(3)
    whole = run(scheduler, x)
    scheduler.set_timesteps(6)
    assert torch.equal(whole[:1], run(scheduler, x[:1]))
    both = [torch.Generator().manual_seed(s) for s in (8, 9)]
    scheduler.set_noise(None)
    scheduler.set_timesteps(6)
    whole = run(scheduler, x, generator=both)
    scheduler.set_timesteps(6)
    alone = [torch.Generator().manual_seed(9), torch.Generator().manual_seed(8)]
    assert torch.equal(whole.flip(0), run(scheduler, x.flip(0), lambda m: m.flip(0), generator=alone))
    with pytest.raises(ValueError, match="one generator a sample"):
        scheduler.set_timesteps(6)
        run(scheduler, x, generator=[*both, both[0]])


def test_sample_ids_and_device_counters():
    scheduler = make("EulerAncestralDiscreteScheduler")
    x, m, t = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2), scheduler.timesteps[0]
    whole = scheduler.step(m, t, x, seed=4).prev_sample
    scheduler.set_timesteps(6)
    scheduler.set_noise(torch.tensor(4), step=torch.tensor([0]), sample_ids=[1, 0])
    swapped = scheduler.step(m.flip(0), t, x.flip(0)).prev_sample
    assert torch.equal(whole, swapped.flip(0))


def test_repeated_timesteps_of_ddpm_have_fresh_noise():
    scheduler = make("DDPMScheduler")
    x, m, t = normals(*SHAPE, seed=1), normals(*SHAPE, seed=2), scheduler.timesteps[2]
    scheduler.set_noise(4)
    assert not torch.equal(scheduler.step(m, t, x).prev_sample, scheduler.step(m, t, x).prev_sample)


@pytest.mark.parametrize("brownian", [False, True])
def test_stages_of_dpm_sde_share_a_brownian_path(brownian):
    pytest.importorskip("torchsde")
    scheduler = make("DPMSolverSDEScheduler", 4)
    scheduler.brownian = brownian
    scheduler.set_noise(6)
    x = torch.zeros(100, 100)
    first = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    second = scheduler.step(first / scheduler.mid_point_sigma, scheduler.timesteps[1], first).prev_sample  # x0 = 0
    s = scheduler.sigmas[:2].double()
    expected = ((s[0] - (s[0] * s[1]).sqrt()) / (s[0] - s[1])).sqrt()
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1] - expected) < 0.03
    up = s[1] * (1 - (s[1] / s[0]) ** 2).sqrt()
    assert abs(second.std() / up - 1) < 0.03


def test_seed_of_dpm_sde():
    pytest.importorskip("torchsde")
    x = normals(*SHAPE, seed=1)
    found = [run(make("DPMSolverSDEScheduler", 4, **SD, noise_sampler_seed=seed), x) for seed in (3, 3, [0, 1], [1, 0])]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[2], found[3])


# ---- what a caller may get wrong ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_stepped_past_its_end(name):
    scheduler = make(name, 3)
    x = run(scheduler, normals(*SHAPE, seed=1))
    if name[:4] in ("DDPM", "DDIM"):  # addressed by timestep: there is no end
        assert torch.isfinite(x).all()
        return
    with pytest.raises(ValueError, match="past its end"):
        scheduler.step(x, scheduler.timesteps[-1], x)


@pytest.mark.parametrize("name", NAMES)
def test_before_set_timesteps(name):
    scheduler = getattr(schedulers, name)(**config_of(name))
    x = normals(*SHAPE, seed=1)
    if name in ("DDPMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverSDEScheduler"):
        scheduler.step(x, scheduler.timesteps[0], x)  # diffusers sets them when it makes these
        return
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_timestep_and_wrong_tensors(name):
    scheduler = make(name)
    x = normals(*SHAPE, seed=1)
    with pytest.raises(ValueError, match="not one of the scheduler"):
        scheduler.step(x, torch.tensor(-7.0), x)
    if hasattr(scheduler, "_begin_index"):
        scheduler.set_begin_index(99)
        with pytest.raises(ValueError, match="begin_index"):
            scheduler.step(x, scheduler.timesteps[0], x)
        scheduler.set_begin_index(0)
    t = scheduler.timesteps[0]
    with pytest.raises(ValueError, match="same shape"):
        scheduler.step(x[:1], t, x)
    with pytest.raises(TypeError, match="must be tensors"):
        scheduler.step(x.numpy(), t, x)
    with pytest.raises(ValueError, match=r"one number|must be one"):
        make(name).step(x, torch.zeros(2, dtype=t.dtype), x)
    found = scheduler.step(x, t, x).prev_sample  # the failed calls have not moved it
    assert torch.isfinite(found).all() or name.startswith("DDPM")


def test_indices_are_not_timesteps():
    for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"):
        x = normals(*SHAPE, seed=1)
        with pytest.raises(ValueError, match="not an index"):
            make(name).step(x, 0, x)
    with pytest.raises(ValueError, match="generator or variance_noise"):
        make("DDIMScheduler").step(x, 0, x, eta=1.0, generator=torch.Generator(), variance_noise=x)
    with pytest.raises(ValueError, match="no third order"):
        make(
            "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min"
        )
    with pytest.raises(ValueError, match="order must be"):
        make("LMSDiscreteScheduler").step(x, 999.0, x, order=9)


# ---- the drop-in ----------------------------------------------------------------------------------------------------
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
    import sys

    for name in [n for n in sys.modules if n.startswith("fokker._schedulers_") and "coefficients" not in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(schedulers.__dict__, "DDIMScheduler", raising=False)
    with pytest.raises(ImportError, match=r"pip install fokker\[diffusers\]"):
        _ = schedulers.DDIMScheduler
    assert callable(schedulers.sample_euler)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = schedulers.Nothing
