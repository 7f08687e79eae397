"""DDPM and DDIM for diffusers: steps addressed by their timestep, in any order, from a table over all timesteps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _schedulers_coefficients as formulas
from . import random
from ._op import _is_compiling
from ._schedulers_base import Fused, diffusers, fused, output_class
from ._schedulers_plan import NO_NOISE, Plan, Result
from ._sde_step import affine_step

DDPMOutput = output_class(diffusers.DDPMScheduler)
DDIMOutput = output_class(diffusers.DDIMScheduler)


class ByTimestep(Fused):
    """Steps without a history: a table has a row for every timestep of the training schedule."""

    _source = "alphas_cumprod"
    _blends: tuple[Tensor, Tensor] | None = None

    def _row(self, plan: Plan, timestep: Any, device: torch.device) -> tuple[int | Tensor, int]:
        """The table's row, and the counter step of its noise: its place in the schedule.

        A tensor on an accelerator that is no entry of the schedule's (and any, when compiled) is read by the kernel
        itself: the row of an unknown timestep is then nan, and the noise counts the calls.
        """
        if isinstance(timestep, Tensor) and (_is_compiling() or not (timestep.is_cpu or plan.owns(timestep))):
            if timestep.numel() != 1 or timestep.dtype is not torch.int64:
                raise ValueError(f"timestep must be one int64 number, got {timestep.dtype} {tuple(timestep.shape)}")
            self._count += 1
            return timestep.reshape(1).to(device), self._count - 1
        value = plan.value(timestep)
        if not 0 <= value < plan.rows or value not in self._known(plan):
            raise ValueError(f"timestep {value} is not one of the scheduler's {plan.steps} timesteps")
        return int(value), plan.index.get(value, 0)

    def _prediction(self, plan: Plan) -> tuple[Any, Any]:
        return formulas.x0_prediction(self.config.prediction_type, np.sqrt(plan.values), np.sqrt(1 - plan.values))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(A_t) x0 + sqrt(1 - A_t) noise with a timestep a sample, in one pass."""
        return self._blend(original_samples, noise, timesteps, 0)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """sqrt(A_t) noise - sqrt(1 - A_t) x0 with a timestep a sample, in one pass."""
        return self._blend(sample, noise, timesteps, 1)

    def _blend(self, sample: Tensor, noise: Tensor, timesteps: Tensor, which: int) -> Tensor:
        if self.alphas_cumprod.device != sample.device:
            self.alphas_cumprod = self.alphas_cumprod.to(sample.device)
        if self._blends is None or self._blends[0] is not self.alphas_cumprod:
            kept = self.alphas_cumprod.double()
            signal, lost = kept.sqrt(), (1 - kept).sqrt()
            self._blends = self.alphas_cumprod, torch.stack([signal, lost, -lost, signal], 1).reshape(-1, 2, 2)
        wide = torch.float64 if sample.dtype is torch.float64 else torch.float32
        rows = self._blends[1][timesteps.to(sample.device).reshape(-1), which].to(wide)
        if len(rows) not in (1, len(sample)):
            raise ValueError(f"timesteps must be one number a sample, got {len(rows)} for {len(sample)} samples")
        return affine_step(sample, (noise,), rows if len(rows) == len(sample) else rows[0])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_blends": None}


@fused
class DDPMScheduler(ByTimestep, diffusers.DDPMScheduler):
    """`diffusers.DDPMScheduler` with its step in one pass; usable without `set_timesteps` (all training timesteps)."""

    _needs_timesteps = False

    def _known(self, plan: Plan) -> Any:
        return plan.index

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        plan.rows = len(plan.values)
        learned = self.variance_type in ("learned", "learned_range")
        return [(True, learned), (False, learned)]

    def _levels(self, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Products of alphas of every timestep and of the one that follows it (nan where it is not in the schedule)."""
        kept_to = np.full(plan.rows, np.nan)
        if self.custom_timesteps or self.num_inference_steps:
            times = [int(t) for t in plan.times]
            for t, to in zip(reversed(times), [-1, *reversed(times[1:])], strict=True):
                kept_to[t] = plan.values[to] if to >= 0 else 1.0
        else:
            kept_to[:] = np.concatenate([[1.0], plan.values[:-1]])
        return plan.values, kept_to

    def _results(self, plan: Plan, wanted: bool, learned: bool) -> tuple[list[Result], Any, Any]:
        kept, kept_to = self._levels(plan)
        of_x, of_x0, variance = formulas.ddpm(kept, kept_to)
        kind = self.variance_type
        if learned or kind in ("fixed_large", "fixed_large_log"):
            variance = 1 - kept / kept_to
        deviation = np.ones_like(kept) if learned else np.sqrt(np.maximum(variance, 1e-20))
        deviation[0] = 0.0
        results = [Result(of_x, of_x0, 0.0, [deviation])]
        if wanted:
            results.append(Result(d=1.0, rest=[0.0]))
        return results, *self._prediction(plan)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        *,
        noise: Tensor | None = None,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``noise`` or ``seed`` give the noise instead of a key drawn from ``generator``."""
        plan = self._current()
        row, place = self._row(plan, timestep, sample.device)
        learned = self.variance_type in ("learned", "learned_range")
        rest: tuple[Tensor, ...] = ()
        if learned and model_output.shape[1] == 2 * sample.shape[1]:
            model_output, predicted = torch.split(model_output, sample.shape[1], dim=1)
            noise = self._scaled(plan, row, place, predicted, sample, generator, noise, seed)
        elif learned:
            raise ValueError(
                f"variance_type {self.variance_type!r} needs a model output of twice the sample's channels"
            )
        wanted = self.want_original_sample
        table = self._table(plan, (wanted, learned))
        if noise is None:
            place = self._draw_noise(sample, place, generator, seed)
        else:
            rest, place = (noise,), NO_NOISE
        found = self._advance(plan, table, row, sample, model_output, rest, place, (0, 1))
        original = found[1] if wanted else None
        if not return_dict:
            return found[0], original
        return DDPMOutput(prev_sample=found[0], pred_original_sample=original)

    def _scaled(
        self, plan: Plan, row: Any, place: int, predicted: Tensor, sample: Tensor, generator: Any, noise: Any, seed: Any
    ) -> Tensor:
        """Noise times the deviation that the model predicts, which differs from element to element."""
        if noise is None:
            drawn = self._draw_noise(sample, place, generator, seed)
            noise = random.normal(len(sample), sample.shape[1:], dtype=sample.dtype, device=sample.device, **drawn)
        if self.variance_type == "learned":
            return predicted.sqrt() * noise
        kept, kept_to = self._levels(plan)
        with np.errstate(all="ignore"):
            low = np.log(np.maximum(formulas.ddpm(kept, kept_to)[2], 1e-20))
            high = np.log(1 - kept / kept_to)
        ends = torch.from_numpy(np.stack([low, high], -1)).to(sample)[row].reshape(2)
        share = (predicted + 1) / 2
        return torch.exp(0.5 * (share * ends[1] + (1 - share) * ends[0])) * noise


@fused
class DDIMScheduler(ByTimestep, diffusers.DDIMScheduler):
    """`diffusers.DDIMScheduler` with its step in one pass."""

    def _known(self, plan: Plan) -> Any:
        return range(plan.rows)

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        plan.rows = len(plan.values)
        return [(True, 0.0, False), (False, 0.0, False)]

    def _results(self, plan: Plan, wanted: bool, eta: float, rederived: bool) -> tuple[list[Result], Any, Any]:
        kept = plan.values
        stride = self.config.num_train_timesteps // self.num_inference_steps
        final = np.full(min(stride, len(kept)), float(self.final_alpha_cumprod))
        kept_to = np.concatenate([final, kept[: len(kept) - len(final)]])
        of_x0, of_noise, deviation = formulas.ddim(kept, kept_to, eta)
        signal, lost = np.sqrt(kept), np.sqrt(1 - kept)
        if rederived:  # eps from the clipped x0
            step = Result(of_noise / lost, of_x0 - of_noise * signal / lost)
        else:
            p, q = formulas.noise_prediction(self.config.prediction_type, signal, lost)
            step = Result(of_noise * p, of_x0, of_noise * q)
        results = [step, Result(d=1.0)] if wanted else [step]
        if eta > 0:
            step.rest = (deviation,)
            results[-1].rest = results[-1].rest or (0.0,)
        return results, *self._prediction(plan)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: int | Tensor | None = None,
    ) -> Any:
        """As diffusers' own; ``seed`` gives the noise instead of a key drawn from ``generator``."""
        plan = self._current()
        row, place = self._row(plan, timestep, sample.device)
        wanted = self.want_original_sample
        table = self._table(plan, (wanted, float(eta), bool(use_clipped_model_output)))
        if not eta > 0:
            found = self._advance(plan, table, row, sample, model_output, (), NO_NOISE, (0, 1))
        elif variance_noise is None:
            drawn = self._draw_noise(sample, place, generator, seed)
            found = self._advance(plan, table, row, sample, model_output, (), drawn, (0, 1))
        elif generator is not None:
            raise ValueError("give generator or variance_noise, not both")
        else:
            found = self._advance(plan, table, row, sample, model_output, (variance_noise,), NO_NOISE, (0, 1))
        original = found[1] if wanted else None
        if not return_dict:
            return found[0], original
        return DDIMOutput(prev_sample=found[0], pred_original_sample=original)
