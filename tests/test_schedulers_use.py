"""fokker.schedulers in use: whose noise a step has, and what it says to wrong calls."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from scheduler_calls import NAMES, QUIET, SD, SHAPE, config_of, far, make, normals, run  # noqa: E402

import fokker  # noqa: E402
from fokker import schedulers  # noqa: E402

pytestmark = pytest.mark.filterwarnings(*QUIET)

SDE = {**SD, "algorithm_type": "sde-dpmsolver++"}
#: (class, configuration, keyword that takes noise)
NOISY = [
    ("DDPMScheduler", SD, "noise"),
    ("EulerAncestralDiscreteScheduler", SD, "noise"),
    ("DPMSolverMultistepScheduler", SDE, "variance_noise"),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "noise"),
]


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


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler"])
def test_forgotten_scale_of_the_input(name):
    x = normals(*SHAPE, seed=1)
    scheduler = make(name)
    scheduler.is_scale_input_called = False
    with pytest.warns(UserWarning, match="scale_model_input"):
        scheduler.step(x, scheduler.timesteps[0], x)


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
