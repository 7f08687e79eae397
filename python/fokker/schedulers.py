"""Drop-in schedulers for diffusers, each step one fused pass: ``Scheduler.from_config(pipe.scheduler.config)``.

The classes carry diffusers' names, configuration, timesteps and methods (they are subclasses: `set_timesteps`,
`save_config` and `from_config` are diffusers' own); `step` computes the same update from a table of float64
coefficients, in one pass over memory, without waiting for the device. In float32 it agrees with diffusers' arithmetic
to its rounding.

    from fokker.schedulers import DPMSolverMultistepScheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

What differs, on purpose:

- Noise is fokker's counter noise (`fokker.random`), other numbers than torch's: ``generator`` is asked once a run, for
  the key; a list of generators, one a sample, gives each sample its own noise, whatever the batch. `set_noise` fixes
  the key, ``step(..., seed=)`` or ``step(..., noise=)`` (``variance_noise=`` where diffusers has it) the noise of one
  step.
- A state in float16 or bfloat16 is stepped in float32, and the history of a multistep solver is float32. With
  ``master_state = True`` a float32 copy of the state goes from step to step, so that rounding does not add up.
- ValueError where a scheduler is stepped past its end or before `set_timesteps` (DDPM alone needs none), and for a
  timestep that is not one of the schedule's.
- ``want_original_sample = False`` leaves `pred_original_sample` away, which saves writing it.

Under torch.compile a step has no graph break. Compile with ``fullgraph=True`` after ``set_begin_index``, so that no
timestep is searched for, and reach the scheduler through an argument or a closure: torch compiles anew for each value
of a counter that it finds in a module's globals.

The classes need diffusers (``pip install fokker[diffusers]``), DPMSolverSDEScheduler also torchsde, as it does there.
Without it there is the functional form of k-diffusion: ``x = sample_dpmpp_2m_sde(model, x, sigmas, ...)``, see
`fokker._k_diffusion` for what the functions share.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import _k_diffusion
from ._k_diffusion import *  # noqa: F403

_MODULES = {
    "DDPMScheduler": "_schedulers_ddpm",
    "DDIMScheduler": "_schedulers_ddpm",
    "EulerDiscreteScheduler": "_schedulers_euler",
    "EulerAncestralDiscreteScheduler": "_schedulers_euler",
    "LMSDiscreteScheduler": "_schedulers_euler",
    "HeunDiscreteScheduler": "_schedulers_heun",
    "FlowMatchHeunDiscreteScheduler": "_schedulers_heun",
    "DPMSolverSDEScheduler": "_schedulers_dpm_sde",
    "DPMSolverMultistepScheduler": "_schedulers_multistep",
    "DEISMultistepScheduler": "_schedulers_multistep",
    "UniPCMultistepScheduler": "_schedulers_unipc",
    "FlowMatchEulerDiscreteScheduler": "_schedulers_flow",
}

__all__ = sorted([*_MODULES, *_k_diffusion.__all__])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f".{_MODULES[name]}", __package__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
