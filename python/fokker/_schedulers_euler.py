"""Euler, Euler ancestral and linear multistep (LMS) for diffusers, in Karras' coordinates x = x0 + sigma eps."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._schedulers_base import ByIndex, diffusers, fused, output_class
from ._schedulers_plan import NO_NOISE, Plan, Result

EulerOutput = output_class(diffusers.EulerDiscreteScheduler)
AncestralOutput = output_class(diffusers.EulerAncestralDiscreteScheduler)
LMSOutput = output_class(diffusers.LMSDiscreteScheduler)
_NO_CHURN = (0.0, 0.0, math.inf, 1.0)


class InKarrasCoordinates(ByIndex):
    """The model sees x / sqrt(sigma^2 + 1)."""

    _stages = (1,)

    def _warned(self) -> None:
        if self._step_index is None and not self.is_scale_input_called:
            warnings.warn("call scale_model_input before step: the model is to see x / sqrt(sigma^2 + 1)", stacklevel=3)

    def _blend(self, plan: Plan) -> tuple[Any, Any]:
        return 1.0, plan.values

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """As diffusers' own: sample / sqrt(sigma^2 + 1)."""
        plan = self._current()
        i = self._at(plan, timestep)
        self.is_scale_input_called = True
        return self._scaled_input(plan, i, sample)


@fused
class EulerDiscreteScheduler(InKarrasCoordinates, diffusers.EulerDiscreteScheduler):
    """`diffusers.EulerDiscreteScheduler` with its step in one pass, churn included."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(True, *_NO_CHURN), (False, *_NO_CHURN)]

    def _results(
        self, plan: Plan, wanted: bool, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
    ) -> tuple[list[Result], Any, Any]:
        sigma, sigma_to = plan.values[:-1], plan.values[1:]
        raised = formulas.churn(sigma, len(sigma), s_churn, s_tmin, s_tmax)
        kind = self.config.prediction_type
        p, q = formulas.edm_prediction(kind, raised if kind == "epsilon" else sigma)
        of_x, of_x0 = formulas.euler(raised, sigma_to)
        step, original = Result(of_x, of_x0), Result(d=1.0)
        if s_churn > 0:  # the step is from x + added z, which the prediction sees too
            added = s_noise * np.sqrt(np.maximum(raised * raised - sigma * sigma, 0.0))
            step.rest = ((of_x + of_x0 * p) * added,)
            original.rest = (p * added,)
        return [step, original] if wanted else [step], p, q

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
        self._warned()
        i = self._at(plan, timestep)
        wanted = self.want_original_sample
        if s_churn > 0:
            table = self._table(plan, (wanted, float(s_churn), float(s_tmin), float(s_tmax), float(s_noise)))
            rest, place = ((), self._draw_noise(sample, i, generator, seed)) if noise is None else ((noise,), NO_NOISE)
            found = self._advance(plan, table, i, sample, model_output, rest, place)
        else:
            found = self._advance(plan, self._table(plan, (wanted, *_NO_CHURN)), i, sample, model_output)
        self._step_index = i + 1
        original = found[1] if wanted else None
        if not return_dict:
            return found[0], original
        return EulerOutput(prev_sample=found[0], pred_original_sample=original)


@fused
class EulerAncestralDiscreteScheduler(InKarrasCoordinates, diffusers.EulerAncestralDiscreteScheduler):
    """`diffusers.EulerAncestralDiscreteScheduler` with its step in one pass."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(True,), (False,)]

    def _results(self, plan: Plan, wanted: bool) -> tuple[list[Result], Any, Any]:
        sigma, sigma_to = plan.values[:-1], plan.values[1:]
        down, up = formulas.ancestral(sigma, sigma_to)
        results = [Result(*formulas.euler(sigma, down), rest=[up])]
        if wanted:
            results.append(Result(d=1.0, rest=[0.0]))
        return results, *formulas.edm_prediction(self.config.prediction_type, sigma)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``noise`` or ``seed`` give the noise instead of a key drawn from ``generator``."""
        plan = self._current()
        self._no_integers(timestep)
        self._warned()
        i = self._at(plan, timestep)
        wanted = self.want_original_sample
        rest, place = ((), self._draw_noise(sample, i, generator, seed)) if noise is None else ((noise,), NO_NOISE)
        found = self._advance(plan, self._table(plan, (wanted,)), i, sample, model_output, rest, place)
        self._step_index = i + 1
        original = found[1] if wanted else None
        if not return_dict:
            return found[0], original
        return AncestralOutput(prev_sample=found[0], pred_original_sample=original)


@fused
class LMSDiscreteScheduler(InKarrasCoordinates, diffusers.LMSDiscreteScheduler):
    """`diffusers.LMSDiscreteScheduler` with its step in one pass; orders 1 to 8, integrated exactly."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        return [(wanted, 4, have) for wanted in (True, False) for have in range(1, 5)]

    def _results(self, plan: Plan, wanted: bool, order: int, have: int) -> tuple[list[Result], Any, Any]:
        """Weights of the newest ``have`` derivatives in the method of min(i + 1, order) steps.

        As in diffusers, a run that begins in the middle of the schedule has fewer derivatives than the method's order
        at first, and takes the weights of those that it has.
        """
        sigma, sigma_to = plan.values[:-1], plan.values[1:]
        weights = np.zeros((have, plan.steps))
        for size in range(1, order + 1):
            rows = np.arange(plan.steps) + 1 >= order if size == order else np.arange(plan.steps) + 1 == size
            found = formulas.adams_bashforth(sigma_to, [formulas.before(sigma, k) for k in range(size)])
            for k in range(min(size, have)):
                weights[k, rows] = found[k][rows]
        none = [0.0] * (have - 1)
        step = Result(1 + weights[0] / sigma, -weights[0] / sigma, 0.0, weights[1:])
        derivative = Result(1 / sigma, -1 / sigma, 0.0, none)
        results = [step, derivative, Result(d=1.0, rest=none)] if wanted else [step, derivative]
        return results, *formulas.edm_prediction(self.config.prediction_type, sigma)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, order: int = 4, return_dict: bool = True
    ) -> Any:
        """As diffusers' own."""
        plan = self._current()
        self._warned()
        i = self._at(plan, timestep)
        if not 1 <= order <= 8:
            raise ValueError(f"order must be in [1, 8], got {order}")
        wanted = self.want_original_sample
        history = self.derivatives
        del history[: max(len(history) - order + 1, 0)]
        table = self._table(plan, (wanted, order, len(history) + 1))
        found = self._advance(plan, table, i, sample, model_output, tuple(reversed(history)), NO_NOISE, (0, 2))
        history.append(found[1])
        self._step_index = i + 1
        original = found[2] if wanted else None
        if not return_dict:
            return found[0], original
        return LMSOutput(prev_sample=found[0], pred_original_sample=original)
