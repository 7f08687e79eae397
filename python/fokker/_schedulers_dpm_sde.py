"""DPM-Solver++ SDE in two stages for diffusers (k-diffusion's ``dpmpp_sde``), its noise of one Brownian path."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _schedulers_coefficients as formulas
from . import random
from ._schedulers_base import diffusers, fused
from ._schedulers_euler import InKarrasCoordinates
from ._schedulers_plan import NO_NOISE, Plan, Result

try:
    from diffusers.schedulers.scheduling_dpmsolver_sde import DPMSolverSDESchedulerOutput as SDEOutput
except ImportError as error:
    raise ImportError(
        f"DPMSolverSDEScheduler needs torchsde, as in diffusers: pip install torchsde ({error})"
    ) from error


@fused
class DPMSolverSDEScheduler(InKarrasCoordinates, diffusers.DPMSolverSDEScheduler):
    """`diffusers.DPMSolverSDEScheduler` with each of its two stages in one pass.

    The first stage goes to the geometric mean of two sigmas, the second one from the same state to the next sigma.
    Their noise is one Brownian path's in sigma, of correlation sqrt((sigma - middle) / (sigma - next)): the second
    stage mixes the first one's numbers with fresh ones. With ``brownian = True`` it is `fokker.random.brownian`'s, the
    same path for any number of steps (and some 30 normals an element). ``noise_sampler_seed`` is the seed, a list of
    them gives the samples' ids.
    """

    _stages = (1, 2)
    brownian = False
    _first_noise: Tensor | None = None

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(wanted, stage, 1.0, True) for wanted in (True, False) for stage in (1, 2)]

    def _input_sigma(self, plan: Plan, stage: int) -> np.ndarray:
        sigma = plan.values[:-1]
        return sigma if stage == 1 else np.sqrt(formulas.before(sigma, 1) * sigma)

    def _results(
        self, plan: Plan, wanted: bool, stage: int, s_noise: float, drawn: bool
    ) -> tuple[list[Result], Any, Any]:
        """Terms after the model output: (stage 2) the first stage's state, and its noise where ours is drawn."""
        middle = self._input_sigma(plan, stage)
        prediction = formulas.edm_prediction(self.config.prediction_type, middle)
        if stage == 1:
            sigma, last = plan.values[:-1], plan.values[1:]
            to = np.sqrt(sigma * last)
        else:
            last = to = plan.values[:-1]
            sigma = formulas.before(last, 1)
        down, up = formulas.ancestral(sigma, to)
        of_x, of_x0 = formulas.euler(sigma, down)
        up = up * s_noise
        if stage == 1:  # at sigma' = 0 both formulas give x0
            results = [Result(of_x, of_x0, 0.0, [up])]
            if drawn:
                results.append(Result(rest=[1.0]))
        else:
            share = formulas.shared_noise(sigma, middle, to)
            tail = [up * share, up * np.sqrt(1 - share * share)] if drawn else [up]
            results = [Result(0.0, of_x0, 0.0, [of_x, *tail])]
        if wanted:
            results.append(Result(d=1.0, rest=[0.0] * len(results[0].rest)))
        return results, *prediction

    @property
    def mid_point_sigma(self) -> float | None:
        """The sigma of the second stage while it is due."""
        if self.sample is None or self._plan is None or self._step_index is None:
            return None
        return float(self._input_sigma(self._plan, 2)[self._step_index])

    @mid_point_sigma.setter
    def mid_point_sigma(self, value: None) -> None:
        pass  # diffusers' set_timesteps clears it

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """As diffusers' own: sample / sqrt(sigma^2 + 1) at the stage's sigma."""
        plan = self._current()
        i = self._at(plan, timestep)
        return self._scaled_input(plan, i, sample, 1 if self.sample is None else 2)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
        *,
        generator: Any = None,
        noise: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``noise``, ``seed`` or ``generator`` give the noise where there is no fixed one."""
        plan = self._current()
        i = self._at(plan, timestep)
        wanted = self.want_original_sample
        stage = 1 if self.sample is None else 2
        if noise is None and self.brownian and i < plan.steps - 1:
            noise = self._increment(plan, i, stage, sample, generator, seed)
        drawn = noise is None and (stage == 1 or self._first_noise is not None)
        table = self._table(plan, (wanted, stage, float(s_noise), drawn))
        rest: tuple[Tensor, ...] = () if stage == 1 else (self.sample,)
        place = NO_NOISE
        if noise is not None:
            rest = (*rest, noise)
        else:
            place = self._keyed(sample, i, generator, seed)
            if stage == 2 and drawn:
                rest = (*rest, self._first_noise)
        kept = self._kept(sample)
        found = self._advance(
            plan, table, i, sample, model_output, rest, place, (0, table.results - 1) if wanted else (0,)
        )
        if stage == 2 or i == plan.steps - 1:  # the last step goes to sigma = 0 at once
            self.sample = self._first_noise = None
        else:
            self.sample, self._first_noise = kept, found[1] if drawn else None
        self._step_index = i + 1
        original = found[-1] if wanted else None
        if not return_dict:
            return found[0], original
        return SDEOutput(prev_sample=found[0], pred_original_sample=original)

    def _keyed(self, sample: Tensor, i: int, generator: Any, seed: Any) -> dict[str, Any]:
        """The noise of `_draw_noise`; keyed by the configuration's seed where nothing else is given."""
        given = self.noise_sampler_seed
        if (
            seed is not None
            or generator is not None
            or given is None
            or (self._noise is not None and self._noise.fixed)
        ):
            return self._draw_noise(sample, i, generator, seed)
        if isinstance(given, (list, tuple)):
            return {"seed": 0, "step": i, "sample_ids": torch.tensor(given, dtype=torch.int64, device=sample.device)}
        return {"seed": int(given), "step": i}

    def _increment(self, plan: Plan, i: int, stage: int, sample: Tensor, generator: Any, seed: Any) -> Tensor:
        """The increment of the path over the stage's sigmas, of variance 1; the path's times are sigma / sigma_max."""
        place = self._keyed(sample, i, generator, seed)
        place = {k: v for k, v in place.items() if k != "step"}
        first = plan.values[i + 1 - stage]
        last = np.sqrt(plan.values[i] * plan.values[i + 1]) if stage == 1 else plan.values[i]
        t0, t1 = (float(v / plan.values.max()) for v in (first, last))
        dtype = torch.promote_types(sample.dtype, torch.float32)
        path = random.brownian(len(sample), sample.shape[1:], t0, t1, dtype=dtype, device=sample.device, **place)
        return path / (t0 - t1) ** 0.5
