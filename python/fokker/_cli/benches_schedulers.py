"""Steps of `fokker.schedulers` beside those of diffusers' own classes: what a call costs, and real latents."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .benches import Bench, Run, on_threads

STEPS = 20
_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_SDE = {**_SD, "algorithm_type": "sde-dpmsolver++"}
#: what a run changes in a scheduler, of ours and of theirs
_STATE = (
    *("_step_index", "model_outputs", "timestep_list", "lower_order_nums", "last_sample", "this_order", "derivatives"),
    *("prev_derivative", "dt", "sample", "_noise", "_first_noise", "noise_sampler"),
)


class Case(NamedTuple):
    name: str
    config: dict[str, Any]
    #: numbers an element that a step reads and writes at least, averaged over a run
    moved: float
    #: the ratio asked for on latents, one thread (sde.md, section 7); 0: none
    asked: float
    #: the ratio asked for on a tiny tensor: a third, where diffusers takes 50 us or more
    tiny: float = 3.0
    #: without the prediction of x0, which diffusers computes anyway
    lean: bool = False


CASES = [
    Case("DDPMScheduler", _SD, 4, 4.5),
    Case("DDIMScheduler", _SD, 4, 6.0),
    Case("DDIMScheduler", _SD, 3, 6.0, lean=True),
    Case("EulerDiscreteScheduler", _SD, 4, 0.0, 0.0),
    Case("EulerDiscreteScheduler", _SD, 3, 0.0, 0.0, lean=True),
    Case("EulerAncestralDiscreteScheduler", _SD, 4, 4.5),
    Case("HeunDiscreteScheduler", _SD, 5.5, 0.0, 0.0),
    Case("LMSDiscreteScheduler", _SD, 8, 0.0),
    Case("DPMSolverMultistepScheduler", _SD, 5, 6.0),
    Case("DPMSolverMultistepScheduler", _SDE, 5, 4.5),
    Case("DPMSolverSDEScheduler", _SD, 6, 0.0),
    Case("UniPCMultistepScheduler", _SD, 8, 10.0),
    Case("DEISMultistepScheduler", _SD, 5, 6.0),
    Case("FlowMatchEulerDiscreteScheduler", {}, 3, 0.0, 0.0),
    Case("FlowMatchHeunDiscreteScheduler", {}, 5, 0.0, 0.0),
]


def _run(scheduler: Any, x: Tensor, m: Tensor) -> Run:
    """A run of STEPS steps from the same state each time; the timesteps are set once."""
    scheduler.set_timesteps(STEPS)
    scheduler.is_scale_input_called = True
    start = {k: scheduler.__dict__[k] for k in _STATE if k in scheduler.__dict__}
    timesteps = list(scheduler.timesteps[:STEPS])  # (Heun's have more)

    def go() -> Tensor:
        scheduler.__dict__.update({k: copy.copy(v) for k, v in start.items()})
        y = x
        for t in timesteps:
            y = scheduler.step(m, t, y, return_dict=False)[0]
        return y

    return go


def benches() -> Iterator[Bench]:
    """All of them; none without diffusers."""
    try:
        import diffusers

        from .. import schedulers
    except ImportError:
        return
    for shape in ((1, 4, 2, 2), (64, 3, 64, 64), (16, 4, 128, 128)):
        g = torch.Generator().manual_seed(1)
        x, m = (torch.randn(shape, generator=g) for _ in range(2))
        tiny = x.numel() < 1000
        for case in CASES:
            try:
                ours, theirs = (getattr(module, case.name)(**case.config) for module in (schedulers, diffusers))
            except ImportError:  # diffusers' DPMSolverSDEScheduler without torchsde
                continue
            if case.lean:
                ours.want_original_sample = False
            asked = case.tiny if tiny else case.asked
            label = (
                case.name.removesuffix("Scheduler")
                + (" SDE" if case.config is _SDE else "")
                + (" without x0" if case.lean else "")
            )
            yield Bench(
                f"scheduler {label}, {' x '.join(map(str, shape))}",
                {"fokker": on_threads(1, _run(ours, x, m)), "diffusers": on_threads(1, _run(theirs, x, m))},
                {"diffusers": asked} if asked else {},
                elements=STEPS * x.numel(),
                bytes=0 if tiny else int(STEPS * 4 * case.moved * x.numel()),
                note=f"{STEPS} steps" + (", each of which may take 20 us" if tiny else ", one thread"),
            )
