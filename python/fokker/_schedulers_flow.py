"""Euler's method of rectified flows for diffusers, with its stochastic form and a timestep for each token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._schedulers_base import Fused, diffusers, fused, output_class
from ._schedulers_plan import NO_NOISE, Plan, Result
from ._sde_step import affine_step

FlowOutput = output_class(diffusers.FlowMatchEulerDiscreteScheduler)


@fused
class FlowMatchEulerDiscreteScheduler(Fused, diffusers.FlowMatchEulerDiscreteScheduler):
    """`diffusers.FlowMatchEulerDiscreteScheduler` with its step in one pass."""

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        plan.stochastic = bool(self.config.stochastic_sampling)
        return [(plan.stochastic,)]

    def _results(self, plan: Plan, stochastic: bool) -> tuple[list[Result], Any, Any]:
        sigma, sigma_to = plan.values[:-1], plan.values[1:]
        if stochastic:  # x0 = x - sigma v, then noise anew: (1 - sigma') x0 + sigma' z
            return [Result(1 - sigma_to, 0.0, -(1 - sigma_to) * sigma, [sigma_to])], 0.0, 1.0
        return [Result(1.0, 0.0, sigma_to - sigma)], 0.0, 1.0

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        *,
        noise: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own (which ignores the ``s_`` arguments, too); ``noise`` or ``seed`` give the noise.

        With ``per_token_timesteps`` (batch, tokens) each token moves from its own sigma to the schedule's next lower
        one by x + (sigma - sigma') v, of the opposite sign than other steps have: the outputs of the models that use
        it are negated. The result is float32 there.
        """
        plan = self._current()
        self._no_integers(timestep)
        i = self._at(plan, timestep)
        rest: tuple[Tensor, ...] = ()
        place = NO_NOISE
        if plan.stochastic:
            if noise is not None:
                rest = (noise,)
            else:
                place = self._draw_noise(sample, i, generator, seed)
        if per_token_timesteps is None:
            previous = self._advance(plan, self._table(plan, (plan.stochastic,)), i, sample, model_output, rest, place)[
                0
            ]
        else:
            previous = self._by_token(per_token_timesteps, sample, model_output, rest, place, plan.stochastic)
        self._step_index = i + 1
        if not return_dict:
            return (previous,)
        return FlowOutput(prev_sample=previous)

    def _by_token(
        self, timesteps: Tensor, sample: Tensor, model_output: Tensor, rest: tuple[Tensor, ...], place: dict[str, Any],
        stochastic: bool,
    ) -> Tensor:  # fmt: skip
        if timesteps.shape != sample.shape[:2] or sample.dim() != 3 or model_output.shape != sample.shape:
            raise ValueError(
                f"per_token_timesteps (batch, tokens) and sample, model_output (batch, tokens, channels) expected, got "
                f"{tuple(timesteps.shape)}, {tuple(sample.shape)} and {tuple(model_output.shape)}"
            )
        sigma = timesteps / self.config.num_train_timesteps
        levels = self.sigmas.to(sigma.device)[:, None, None]
        sigma_to = torch.where(levels < sigma - 1e-6, levels, 0.0).amax(0)
        if stochastic:
            if not rest:
                from . import random

                rest = (
                    random.normal(len(sample), sample.shape[1:], dtype=torch.float32, device=sample.device, **place),
                )
            columns = [1 - sigma_to, -(1 - sigma_to) * sigma, sigma_to]
        else:
            columns = [torch.ones_like(sigma), sigma - sigma_to]
        rows = torch.stack(columns, -1).reshape(-1, len(columns)).float()
        tokens = [t.reshape(-1, t.shape[-1]) for t in (model_output, *rest)]
        return affine_step(sample.float().reshape(-1, sample.shape[-1]), tokens, rows).reshape(sample.shape)
