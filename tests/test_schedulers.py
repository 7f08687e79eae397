"""fokker.schedulers against diffusers' own classes, step by step over whole trajectories, in their configurations.

The judge is diffusers' own code in float64 from the same timesteps and sigmas. Ours must be within 1e-6 of it, of each
result's own scale, or, where float32 itself does not allow that (a clipped prediction of x0, sigma = 4096, three
predictions that cancel), within twice diffusers' own float32.
"""

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
from scheduler_calls import QUIET, SD, V_TRAILING, far, follow, normals, pair  # noqa: E402

pytestmark = pytest.mark.filterwarnings(*QUIET)

TOLERANCE = 1e-6

KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
ZERO_SNR = {**V_TRAILING, "rescale_betas_zero_snr": True}
THRESHOLD = {"thresholding": True, "sample_max_value": 2.0}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SAMPLE = {"prediction_type": "sample"}
SIGMAS = [{}, V_TRAILING, KARRAS, EXPONENTIAL, BETA, LEADING]


def check(name, config, steps=20, timesteps=None, **kwargs):
    theirs, ours = pair(name, config, steps, **(timesteps or {}))
    exact, their_own = follow(theirs, ours, **kwargs)
    assert exact <= max(TOLERANCE, 2 * their_own), (
        f"{exact:.1e} from diffusers in float64 (its float32: {their_own:.1e})"
    )


@pytest.mark.parametrize("spacing", [{"timestep_spacing": s} for s in ("leading", "trailing", "linspace")])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddim(kind, spacing):
    config = {**SD, **spacing, "prediction_type": kind}
    check("DDIMScheduler", {**config, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False})
    check("DDIMScheduler", {**config, "clip_sample_range": 1.5}, noise="variance_noise", eta=0.7)
    check("DDIMScheduler", config, noise="variance_noise", eta=1.0, use_clipped_model_output=True)
    check("DDIMScheduler", {**config, **THRESHOLD})


def test_ddim_zero_snr():
    check("DDIMScheduler", {**SD, **ZERO_SNR, "clip_sample": False})
    check("DDIMScheduler", {**SD, **ZERO_SNR}, noise="variance_noise", eta=0.5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_ddpm(kind, variance):
    config = {**SD, "prediction_type": kind, "variance_type": variance}
    check("DDPMScheduler", {**config, "clip_sample": False}, noise="noise")
    check("DDPMScheduler", {**config, "timestep_spacing": "trailing"}, noise="noise")
    check("DDPMScheduler", {**config, **THRESHOLD}, noise="noise")
    check("DDPMScheduler", config, None, {"timesteps": [999, 800, 500, 499, 20, 0]}, noise="noise")


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_ddpm_learned_variance(variance):
    theirs, ours = pair("DDPMScheduler", {**SD, "variance_type": variance}, 10)
    for t in theirs.timesteps:
        x, z = normals(2, 3, 4, 4, seed=1), normals(2, 3, 4, 4, seed=int(t))
        m = normals(2, 6, 4, 4, seed=2)
        m[:, 3:] = m[:, 3:].sigmoid()
        torch.manual_seed(0)
        module = __import__(type(theirs).__module__, fromlist=["_"])
        keep, module.randn_tensor = module.randn_tensor, lambda *a, z=z, **k: z
        try:
            expected = theirs.step(m, t, x).prev_sample
        finally:
            module.randn_tensor = keep
        assert far(ours.step(m, t, x, noise=z).prev_sample, expected) < 3e-6


def test_ddpm_all_training_steps_without_set_timesteps():
    theirs, ours = pair("DDPMScheduler", {**SD, "num_train_timesteps": 60}, None)
    exact, _ = follow(theirs, ours, noise="noise")
    assert exact <= TOLERANCE


@pytest.mark.parametrize("config", [*SIGMAS, ZERO_SNR, {"final_sigmas_type": "sigma_min"}, SAMPLE], ids=str)
def test_euler(config):
    check("EulerDiscreteScheduler", {**SD, **config})
    check(
        "EulerDiscreteScheduler", {**SD, **config}, noise="noise", s_churn=8.0, s_noise=1.003, s_tmin=0.05, s_tmax=9.0
    )


def test_euler_of_sigmas_and_timesteps():
    check("EulerDiscreteScheduler", SD, None, {"sigmas": [14.0, 7.0, 3.0, 1.0, 0.2, 0.0]})
    check("EulerDiscreteScheduler", SD, None, {"timesteps": [999, 700, 301, 10]})
    check("EulerDiscreteScheduler", {**SD, **V_TRAILING, "timestep_type": "continuous", **KARRAS})


@pytest.mark.parametrize("config", [{}, V_TRAILING, LEADING, ZERO_SNR], ids=str)
def test_euler_ancestral(config):
    check("EulerAncestralDiscreteScheduler", {**SD, **config}, noise="noise")


@pytest.mark.parametrize("config", [*SIGMAS, SAMPLE], ids=str)
def test_lms(config):
    check("LMSDiscreteScheduler", {**SD, **config}, 12)
    check("LMSDiscreteScheduler", {**SD, **config}, 12, order=2)


@pytest.mark.parametrize("config", [*SIGMAS, SAMPLE, {"clip_sample": True, "clip_sample_range": 2.0}], ids=str)
def test_heun(config):
    check("HeunDiscreteScheduler", {**SD, **config})


@pytest.mark.parametrize("config", [{}, V_TRAILING, KARRAS, LEADING], ids=str)
def test_dpm_sde(config):
    pytest.importorskip("torchsde")
    check("DPMSolverSDEScheduler", {**SD, **config}, 12, noise="noise")


SOLVERS = [
    (algorithm, solver, order)
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver")
    for solver in ("midpoint", "heun")
    for order in (1, 2, 3)
    if not (algorithm == "sde-dpmsolver" and order == 3)
]


@pytest.mark.parametrize("config", [*SIGMAS, ZERO_SNR, FLOW, THRESHOLD, SAMPLE, {"use_lu_lambdas": True}], ids=str)
def test_dpm_multistep(config):
    for algorithm, solver, order in SOLVERS:
        final = {} if algorithm.endswith("++") else {"final_sigmas_type": "sigma_min"}
        if final and config is FLOW:
            continue  # diffusers has no such conversion
        full = {**SD, **config, "algorithm_type": algorithm, "solver_type": solver, "solver_order": order, **final}
        noise = "variance_noise" if algorithm.startswith("sde") else None
        for steps in (17, 5):
            check("DPMSolverMultistepScheduler", full, steps, noise=noise)


@pytest.mark.parametrize("last", [{"lower_order_final": False}, {"euler_at_final": True}], ids=str)
def test_dpm_multistep_at_its_end(last):
    for order in (2, 3):
        config = {**SD, **last, "solver_order": order, "final_sigmas_type": "sigma_min"}
        check("DPMSolverMultistepScheduler", config, 20)
        check("DPMSolverMultistepScheduler", {**config, **KARRAS}, 8)


@pytest.mark.parametrize("config", [*SIGMAS, FLOW, THRESHOLD, SAMPLE], ids=str)
def test_deis(config):
    for order in (1, 2, 3):
        for steps in (17, 5):
            check("DEISMultistepScheduler", {**SD, **config, "solver_order": order}, steps)


@pytest.mark.parametrize("config", [*SIGMAS, ZERO_SNR, FLOW, THRESHOLD, SAMPLE], ids=str)
def test_unipc(config):
    for order in (1, 2, 3):
        for kind in ("bh1", "bh2"):
            check("UniPCMultistepScheduler", {**SD, **config, "solver_order": order, "solver_type": kind}, 12)
        if config is not FLOW:
            noise = {"predict_x0": False, "disable_corrector": [0, 3], "final_sigmas_type": "sigma_min"}
            check("UniPCMultistepScheduler", {**SD, **config, **noise, "solver_order": order}, 12)


def test_unipc_of_dynamic_shift_and_another_predictor():
    config = {**FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.1}
    check("UniPCMultistepScheduler", config, 12, {"mu": 0.8})
    theirs, ours = pair("UniPCMultistepScheduler", SD, 8)
    for scheduler in (theirs, ours):
        scheduler.solver_p = diffusers.DDIMScheduler(**SD, clip_sample=False)
        scheduler.set_timesteps(8)
    x, m = normals(2, 3, 4, 4, seed=1), normals(2, 3, 4, 4, seed=2)
    t = theirs.timesteps[0]
    assert torch.equal(ours.step(m, t, x).prev_sample, theirs.step(m, t, x).prev_sample)


@pytest.mark.parametrize(
    ("config", "timesteps"),
    [
        ({"shift": 3.0}, {}),
        ({"use_dynamic_shifting": True, "shift_terminal": 0.1}, {"mu": 0.8}),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 1.7}),
        ({"use_karras_sigmas": True, "invert_sigmas": True}, {}),
        ({"use_beta_sigmas": True}, {}),
    ],
    ids=str,
)
def test_flow_euler(config, timesteps):
    check("FlowMatchEulerDiscreteScheduler", config, 20, timesteps)
    check("FlowMatchEulerDiscreteScheduler", {**config, "stochastic_sampling": True}, 20, timesteps, noise="noise")


@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_euler_by_token(stochastic):
    """Each token has its own timestep, and the step has the opposite sign."""
    theirs, ours = pair("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "stochastic_sampling": stochastic}, 20)
    x, m, z = (normals(2, 5, 7, seed=k) for k in range(3))
    tokens = torch.rand(2, 5) * 1000
    module = __import__(type(theirs).__module__, fromlist=["_"])
    keep, module.randn_tensor = module.randn_tensor, lambda *a, **k: z
    try:
        expected = theirs.step(m, theirs.timesteps[3], x, per_token_timesteps=tokens).prev_sample
    finally:
        module.randn_tensor = keep
    found = ours.step(m, ours.timesteps[3], x, per_token_timesteps=tokens, noise=z if stochastic else None).prev_sample
    assert far(found, expected) <= TOLERANCE


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_heun(shift):
    check("FlowMatchHeunDiscreteScheduler", {"shift": shift}, 10)
    check("FlowMatchHeunDiscreteScheduler", {"shift": shift}, 10, noise="noise", s_churn=3.0, s_tmax=0.9, s_noise=1.01)


@pytest.mark.parametrize(
    ("name", "noise", "start"),
    [
        ("EulerDiscreteScheduler", None, 7),
        ("LMSDiscreteScheduler", None, 5),
        ("HeunDiscreteScheduler", None, 8),
        ("DPMSolverMultistepScheduler", None, 6),
        ("UniPCMultistepScheduler", None, 6),
        ("DEISMultistepScheduler", None, 6),
        ("EulerAncestralDiscreteScheduler", "noise", 6),
    ],
)
@pytest.mark.parametrize("by_index", [True, False])
def test_start_in_the_middle(name, noise, start, by_index):
    """As image-to-image does, by set_begin_index or by the timestep of the first call."""
    theirs, ours = pair(name, SD, 12)
    if by_index:
        theirs.set_begin_index(start)
        ours.set_begin_index(start)
    x, z = normals(2, 3, 4, 4, seed=3), normals(2, 3, 4, 4, seed=4)
    t = ours.timesteps[start : start + 1]
    assert far(ours.add_noise(x, z, t.expand(2)), theirs.add_noise(x, z, t.expand(2))) <= TOLERANCE
    exact, their_own = follow(theirs, ours, noise=noise, start=start)
    assert exact <= max(TOLERANCE, 2 * their_own)
