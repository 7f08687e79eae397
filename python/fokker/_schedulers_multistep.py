"""DPM-Solver(++) with its SDE forms, and DEIS, for diffusers: multistep methods of order 1 to 3."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._schedulers_base import ByIndex, diffusers, fused, output_class
from ._schedulers_plan import NO_NOISE, Plan, Result

StepOutput = output_class(diffusers.DPMSolverMultistepScheduler)
_SHORT = 15  # diffusers' lower_order_final holds for fewer steps than this


class Multistep(ByIndex):
    """A history of predictions, the newest last in ``model_outputs``, as diffusers keeps it."""

    def _levels(self, plan: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(alpha, sigma, lambda) of every sigma of the schedule."""
        return (formulas.straight if self.config.use_flow_sigmas else formulas.variance_preserving)(plan.values)

    def _blend(self, plan: Plan) -> tuple[Any, Any]:
        return self._levels(plan)[:2]

    def _output(self, plan: Plan, data: bool) -> tuple[Result, Any, Any]:
        """(what the history holds, p, q): the prediction of x0 (``data``) or of the noise, one entry a step."""
        alpha, sigma, _ = (v[:-1] for v in self._levels(plan))
        kind = self.config.prediction_type
        to_x0 = formulas.x0_prediction(kind, alpha, plan.values[:-1] if kind == "flow_prediction" else sigma)
        if data:
            return Result(d=1.0), *to_x0
        if plan.apart or kind == "flow_prediction":
            return Result(1 / sigma, -alpha / sigma), *to_x0
        return Result(d=1.0), *formulas.noise_prediction(kind, alpha, sigma)

    def _join(self, output: Result, of_x: Any, weights: list[Any], noise: Any, keep: bool, order: int) -> list[Result]:
        """The step of_x x + sum weights m + noise z, and what enters the history where it is kept."""
        newest, *older = weights
        tail = [] if noise is None else [noise]
        step = Result(of_x + newest * output.x, newest * output.d, newest * output.m, [*older, *tail])
        if not keep:
            return [step]
        output.rest = (0.0,) * len(step.rest)
        return [step, output]

    def _order(self, last: bool, i: int, steps: int) -> int:
        """The order of step i: of the solver, of the history so far, and low at the end of a short run."""
        config = self._internal_dict
        wanted, short = config["solver_order"], config["lower_order_final"] and steps < _SHORT
        if wanted == 1 or self.lower_order_nums < 1 or (last and i == steps - 1) or (short and i == steps - 1):
            return 1
        if wanted == 2 or self.lower_order_nums < 2 or (short and i == steps - 2):
            return 2
        return 3

    def _multistep(
        self, plan: Plan, order: int, i: int, sample: Tensor, model_output: Tensor, noise: Tensor | None,
        place: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        """One step, after which the history has moved on."""
        keep = self._internal_dict["solver_order"] > 1
        table = self._table(plan, (order, keep))
        history = self.model_outputs
        rest = tuple(history[-1:-order:-1])
        if noise is not None:
            rest = (*rest, noise)
        found = self._advance(plan, table, i, sample, model_output, rest, place)
        del history[0]
        history.append(found[1] if keep else None)
        if self.lower_order_nums < self._internal_dict["solver_order"]:
            self.lower_order_nums += 1
        self._step_index = i + 1
        return found[0]

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        solver_order = self.config.solver_order
        if not 1 <= solver_order <= 3:
            raise ValueError(f"solver_order must be 1, 2 or 3, got {solver_order}")
        return [(order, solver_order > 1) for order in range(1, solver_order + 1)]


@fused
class DPMSolverMultistepScheduler(Multistep, diffusers.DPMSolverMultistepScheduler):
    """`diffusers.DPMSolverMultistepScheduler` with its step in one pass: all four algorithms, orders 1 to 3."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        plan.stochastic = self.config.algorithm_type.startswith("sde")
        final = self.config.final_sigmas_type == "zero"
        plan.euler_at_final = bool(self.config.euler_at_final or final)
        return super()._defaults(plan)

    def _results(self, plan: Plan, order: int, keep: bool) -> tuple[list[Result], Any, Any]:
        kind = self.config.algorithm_type
        stochastic, data = kind.startswith("sde"), kind.endswith("++")
        heun = self.config.solver_type == "heun"
        alpha, sigma, lam = self._levels(plan)
        to = alpha[1:], sigma[1:], lam[1:]
        lambdas = [formulas.before(lam[:-1], k) for k in range(order)]
        output, p, q = self._output(plan, data)
        if data:
            found = formulas.dpm_data(order, heun, *to, sigma[:-1], lambdas, 1.0 if stochastic else 0.0)
        else:
            found = formulas.dpm_noise(order, heun, *to, alpha[:-1], lambdas, stochastic)
        of_x, weights, noise = found
        if stochastic and order == 3:
            if not data:
                raise ValueError("sde-dpmsolver has no third order: solver_order must be 1 or 2")
            # diffusers 0.42 subtracts 1/2 where its source adds it in the second difference; kept, for the same result
            # (fokker's sample_dpmpp_3m_sde is the published method)
            weights = [w + d for w, d in zip(weights, formulas.second_difference(-to[0], to[2], lambdas), strict=True)]
        return self._join(output, of_x, weights, noise if stochastic else None, keep, order), p, q

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``seed`` gives the noise instead of a key drawn from ``generator``."""
        plan = self._current()
        i = self._at(plan, timestep)
        if self._internal_dict["variance_type"] in ("learned", "learned_range"):
            model_output = model_output[:, :3]
        noise, place = None, NO_NOISE
        if plan.stochastic:
            if variance_noise is None:
                place = self._draw_noise(sample, i, generator, seed)
            else:
                noise = variance_noise
        order = self._order(plan.euler_at_final, i, plan.steps)
        previous = self._multistep(plan, order, i, sample, model_output, noise, place)
        if not return_dict:
            return (previous,)
        return StepOutput(prev_sample=previous)


@fused
class DEISMultistepScheduler(Multistep, diffusers.DEISMultistepScheduler):
    """`diffusers.DEISMultistepScheduler` with its step in one pass; orders 1 to 3."""

    def _results(self, plan: Plan, order: int, keep: bool) -> tuple[list[Result], Any, Any]:
        alpha, sigma, _ = self._levels(plan)
        rho = sigma / alpha
        output, p, q = self._output(plan, False)
        weights = formulas.deis(order, rho[1:], [formulas.before(rho[:-1], k) for k in range(order)])
        weights = [alpha[1:] * w for w in weights]
        return self._join(output, alpha[1:] / alpha[:-1], weights, None, keep, order), p, q

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As diffusers' own."""
        plan = self._current()
        i = self._at(plan, timestep)
        order = self._order(False, i, plan.steps)
        previous = self._multistep(plan, order, i, sample, model_output, None, NO_NOISE)
        if not return_dict:
            return (previous,)
        return StepOutput(prev_sample=previous)
