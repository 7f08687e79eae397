"""UniPC for diffusers: corrector, new prediction and predictor by one pass with three results."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._schedulers_base import diffusers, fused
from ._schedulers_multistep import Multistep, StepOutput
from ._schedulers_plan import Plan, Result


@fused
class UniPCMultistepScheduler(Multistep, diffusers.UniPCMultistepScheduler):
    """`diffusers.UniPCMultistepScheduler` with its step in one pass, B(h) of both kinds; orders 1 to 6.

    A ``solver_p`` (another scheduler as the predictor) is left to diffusers' own step.
    """

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        most = self.config.solver_order
        if not 1 <= most <= 6:
            raise ValueError(f"solver_order must be in [1, 6], got {most}")
        plan.apart = plan.apart and self.predict_x0  # as diffusers, which thresholds predictions of x0 only
        if self.solver_p is not None:
            return []
        orders = range(1, most + 1)
        return [(c, order) for c in range(most + 1) for order in orders if c == 0 or order <= c + 1]

    def _weights(self, plan: Plan, order: int, corrector: bool) -> tuple[Any, list[Any]]:
        """(of x, of the outputs) of each step: the predictor's from it, the corrector's to it."""
        key = (order, corrector)
        if key not in plan.weights:
            alpha, sigma, lam = self._levels(plan)
            late = 1 if corrector else 0
            start = tuple(formulas.before(v[:-1], late) for v in (alpha, sigma, lam))
            to = tuple(v[:-1] if corrector else v[1:] for v in (alpha, sigma, lam))
            older = [formulas.before(lam[:-1], late + k) for k in range(1, order)]
            bh1 = self.config.solver_type == "bh1"
            plan.weights[key] = formulas.unipc(order, corrector, bh1, self.predict_x0, to, start, older)
        return plan.weights[key]

    def _results(self, plan: Plan, corrected: int, order: int) -> tuple[list[Result], Any, Any]:
        """Rows over [x, D, m, last sample, h1, h2, ..]; without a corrector over [x, D, m, h1, ..]."""
        output, p, q = self._output(plan, self.predict_x0)
        of_x, weights = self._weights(plan, order, False)
        newest, *older = weights
        if not corrected:
            step = Result(of_x + newest * output.x, newest * output.d, newest * output.m, older)
            output.rest = (0.0,) * len(older)
            return [step, output], p, q
        of_last, found = self._weights(plan, corrected, True)
        *history, now = found  # of h1, h2, .. and of the new output
        size = max(len(history), len(older))
        history = [*history, *[0.0] * (size - len(history))]
        older = [*older, *[0.0] * (size - len(older))]
        state = Result(now * output.x, now * output.d, now * output.m, [of_last, *history])
        step = Result(
            of_x * state.x + newest * output.x,
            of_x * state.d + newest * output.d,
            of_x * state.m + newest * output.m,
            [of_x * of_last, *(of_x * a + b for a, b in zip(history, older, strict=True))],
        )
        output.rest = (0.0,) * (1 + size)
        return [step, output, state], p, q

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As diffusers' own."""
        if self.solver_p is not None:
            return super().step(model_output, timestep, sample, return_dict)
        plan = self._current()
        i = self._at(plan, timestep)
        config = self._internal_dict
        wanted = config["solver_order"]
        corrected = self.this_order if self.last_sample is not None and self._corrects(i) else 0
        left = plan.steps - i if config["lower_order_final"] else wanted
        order = min(wanted, left, self.lower_order_nums + 1)
        table = self._table(plan, (corrected, order))
        history = self.model_outputs
        size = max(corrected, order - 1)
        rest = tuple(history[-1 : -1 - size : -1])
        if corrected:
            rest = (self.last_sample, *rest)
        kept = self._kept(sample)
        found = self._advance(plan, table, i, sample, model_output, rest)
        del history[0], self.timestep_list[0]
        history.append(found[1])
        self.timestep_list.append(timestep)
        self.last_sample = found[2] if corrected else kept
        self.this_order = order
        if self.lower_order_nums < wanted:
            self.lower_order_nums += 1
        self._step_index = i + 1
        if not return_dict:
            return (found[0],)
        return StepOutput(prev_sample=found[0])

    def _corrects(self, i: int) -> bool:
        return i > 0 and i - 1 not in self.disable_corrector
