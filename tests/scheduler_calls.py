"""diffusers' schedulers as judges: in their own float32, and in float64 from the same timesteps and sigmas."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from fokker import schedulers

diffusers = pytest.importorskip("diffusers")

NAMES = [name for name in schedulers.__all__ if name.endswith("Scheduler")]
if importlib.util.find_spec("torchsde") is None:
    NAMES.remove("DPMSolverSDEScheduler")
SHAPE = (2, 3, 4, 4)
#: what diffusers' own code warns of, for pytest.mark.filterwarnings
QUIET = (
    "ignore:.*:DeprecationWarning:diffusers",
    "ignore:.*__array:DeprecationWarning",
    "ignore:.*is deprecated:FutureWarning:diffusers",
)
#: Stable Diffusion's schedule
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V_TRAILING = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}


class _Wide:
    """torch, for a module of diffusers that is to compute in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def judged(scheduler: Any, noise: Tensor | None, wide: bool) -> Any:
    """diffusers' module with this noise as its next draw, and in float64 where ``wide``."""
    module = sys.modules[type(scheduler).__module__]
    saved = {k: getattr(module, k) for k in ("torch", "randn_tensor") if hasattr(module, k)}
    try:
        if wide:
            module.torch = _Wide()
        if noise is not None and hasattr(module, "randn_tensor"):
            module.randn_tensor = lambda *args, **kwargs: noise.double() if wide else noise
        if noise is not None and hasattr(scheduler, "noise_sampler"):
            scheduler.noise_sampler = lambda *args: noise.double() if wide else noise
        yield
    finally:
        for k, v in saved.items():
            setattr(module, k, v)


def widened(scheduler: Any) -> Any:
    """A copy whose tables are float64, from the float32 ones."""
    wide = copy.deepcopy(scheduler)
    for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if name in wide.__dict__:
            setattr(wide, name, getattr(wide, name).double())
    return wide


def pair(name: str, config: dict[str, Any], steps: int | None, **timesteps: Any) -> tuple[Any, Any]:
    """diffusers' scheduler and ours, ready to step."""
    found = []
    for module in (diffusers, schedulers):
        scheduler = getattr(module, name)(**config)
        if steps is not None or timesteps:
            scheduler.set_timesteps(steps, **timesteps)
        scheduler.is_scale_input_called = True
        found.append(scheduler)
    return found[0], found[1]


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference over the scale of b."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30))


def follow(
    theirs: Any, ours: Any, *, noise: str | None = None, start: int = 0, channels: int = 3, **step: Any
) -> tuple[float, float]:
    """Whole trajectories: the largest distances from diffusers' float64, (of ours, of diffusers' own float32).

    Each carries its own state; the model's outputs are given. ``noise`` is the argument that takes ours.
    """
    exact = widened(theirs)
    x = normals(*SHAPE, seed=1) * getattr(theirs, "init_noise_sigma", 1.0)
    states = [x.double(), x, x]
    worst = [0.0, 0.0]
    for k, t in enumerate(theirs.timesteps[start:]):
        m = normals(SHAPE[0], channels, *SHAPE[2:], seed=100 + k)
        z = normals(*SHAPE, seed=1000 + k) if noise else None
        outputs = []
        for scheduler, state, wide in ((exact, states[0], True), (theirs, states[1], False), (ours, states[2], False)):
            given = m.double() if wide else m
            extra = dict(step)
            if scheduler is ours and noise:
                extra[noise] = z
            scaled = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
            with judged(scheduler, z, wide) if scheduler is not ours else contextlib.nullcontext():
                outputs.append([scaled, *scheduler.step(given, t, state, return_dict=False, **extra)])
        for a, b, c in zip(*outputs, strict=True):
            assert b.dtype == c.dtype and b.shape == c.shape
            worst = [max(worst[0], far(c, a)), max(worst[1], far(b, a))]
        states = [o[1] for o in outputs]
    return worst[0], worst[1]


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
