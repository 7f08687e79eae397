"""Heun's two-stage method for diffusers, in Karras' coordinates and for flows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._schedulers_base import Fused, diffusers, fused, output_class
from ._schedulers_euler import _NO_CHURN, InKarrasCoordinates
from ._schedulers_plan import NO_NOISE, Plan, Result

HeunOutput = output_class(diffusers.HeunDiscreteScheduler)
FlowOutput = output_class(diffusers.FlowMatchHeunDiscreteScheduler)


@fused
class HeunDiscreteScheduler(InKarrasCoordinates, diffusers.HeunDiscreteScheduler):
    """`diffusers.HeunDiscreteScheduler` with each of its two stages in one pass.

    The second stage is x + dt (d + d') / 2 with the first one's state x, slope d and step dt.
    """

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(True, 1), (True, 2), (False, 1), (False, 2)]

    def _results(self, plan: Plan, wanted: bool, stage: int) -> tuple[list[Result], Any, Any]:
        # the sigmas come twice, so that each stage's is that of its row
        sigma = plan.values[:-1]
        if stage == 1:
            step = plan.values[1:] - sigma
            results = [Result(1 + step / sigma, -step / sigma), Result(1 / sigma, -1 / sigma)]
        else:  # the terms after the model output: the first stage's state and slope
            half = (sigma - formulas.before(sigma, 1)) / 2
            results = [Result(half / sigma, -half / sigma, 0.0, [1.0, half])]
        if wanted:
            results.append(Result(d=1.0, rest=[0.0] * (2 * (stage == 2))))
        return results, *formulas.edm_prediction(self.config.prediction_type, sigma)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As diffusers' own."""
        plan = self._current()
        i = self._at(plan, timestep)
        wanted = self.want_original_sample
        if self.dt is None:
            kept = self._kept(sample)
            found = self._advance(plan, self._table(plan, (wanted, 1)), i, sample, model_output, (), NO_NOISE, (0, 2))
            self.prev_derivative, self.sample, self.dt = found[1], kept, i
        else:
            rest = (self.sample, self.prev_derivative)
            found = self._advance(plan, self._table(plan, (wanted, 2)), i, sample, model_output, rest, NO_NOISE, (0, 1))
            self.prev_derivative = self.sample = self.dt = None
        self._step_index = i + 1
        original = found[-1] if wanted else None
        if not return_dict:
            return found[0], original
        return HeunOutput(prev_sample=found[0], pred_original_sample=original)


@fused
class FlowMatchHeunDiscreteScheduler(Fused, diffusers.FlowMatchHeunDiscreteScheduler):
    """`diffusers.FlowMatchHeunDiscreteScheduler` with each of its two stages in one pass, churn included."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(1, *_NO_CHURN), (2, *_NO_CHURN)]

    def _results(
        self, plan: Plan, stage: int, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[Result], Any, Any]:
        sigma = plan.values[:-1]
        if stage == 1:
            raised = formulas.churn(sigma, len(sigma), s_churn, s_tmin, s_tmax)
            step, slope = plan.values[1:] - raised, sigma / raised
            results = [Result(1.0, 0.0, step * slope), Result(0.0, 0.0, slope)]
            if s_churn > 0:  # the second stage starts from the raised state
                added = s_noise * np.sqrt(np.maximum(raised * raised - sigma * sigma, 0.0))
                results[0].rest, results[1].rest = (added,), (0.0,)
                results.append(Result(1.0, rest=[added]))
        else:
            first = formulas.before(sigma, 1)
            half = (sigma - formulas.churn(first, len(sigma), s_churn, s_tmin, s_tmax)) / 2
            results = [Result(0.0, 0.0, half, [1.0, half])]
        return results, 0.0, 1.0

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``noise`` or ``seed`` give the churn's noise instead of a key from ``generator``."""
        plan = self._current()
        self._no_integers(timestep)
        i = self._at(plan, timestep)
        churn = (float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)) if s_churn > 0 else _NO_CHURN
        stage = 1 if self.dt is None else 2
        table = self._table(plan, (stage, *churn))
        if stage == 2:
            found = self._advance(plan, table, i, sample, model_output, (self.sample, self.prev_derivative))
            self.prev_derivative = self.sample = self.dt = None
        else:
            rest, place = (), NO_NOISE
            if s_churn > 0 and noise is not None:
                rest = (noise,)
            elif s_churn > 0:
                place = self._draw_noise(sample, i, generator, seed)
            kept = self._kept(sample)
            found = self._advance(plan, table, i, sample, model_output, rest, place)
            self.prev_derivative, self.dt = found[1], i
            self.sample = found[2] if s_churn > 0 else kept
        self._step_index = i + 1
        if not return_dict:
            return (found[0],)
        return FlowOutput(prev_sample=found[0])
