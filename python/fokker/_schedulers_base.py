"""What the classes of `fokker.schedulers` share: the place in a schedule, and the noise of a run."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._op import _is_compiling
from ._schedulers_plan import NO_NOISE, Plan, Result, Table, advance, tabulate
from ._sde_step import affine_step

try:
    import diffusers
except ImportError as error:
    raise ImportError(f"fokker.schedulers needs diffusers: pip install fokker[diffusers] ({error})") from error


class Noise:
    """Where the noise of a run comes from: a key, the samples' ids, and the number of the next draw."""

    def __init__(self, seed: int | Tensor, generator: Any, **place: Any) -> None:
        self.generator = generator
        self.place = {"seed": seed, **place}
        self.next: int | None = None
        self.fixed = generator is _FIXED

    def draw(self, step: int) -> dict[str, Any]:
        if "step" in self.place:
            return self.place
        number = step if self.next is None else self.next
        self.next = number + 1
        return {**self.place, "step": number}


_FIXED = object()


def _draw(generator: torch.Generator | None, home: torch.device, limit: int) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(0, limit, (1,), generator=generator, device=device)


class Fused:
    """Mixed in before a scheduler of diffusers: its own configuration and timesteps, our step."""

    _plan: Plan | None = None
    _noise: Noise | None = None
    #: False leaves ``pred_original_sample`` away (None) and so saves writing it
    want_original_sample = True

    def set_noise(
        self,
        seed: int | Tensor | None,
        *,
        step: Tensor | None = None,
        stream: int = 0,
        sample_ids: Any = None,
        element_offset: int = 0,
    ) -> None:
        """Take the noise of all runs from here on from this seed, whatever generator a step is given; None: no longer.

        Arguments as in `fokker.random`. Step i of a run takes counter step i, unless an int64 tensor ``step`` on the
        state's device holds it (CUDA graphs: the noise of a replay is that of the value at the time).
        """
        if seed is None:
            self._noise = None
            return
        place = {"stream": stream, "sample_ids": sample_ids, "element_offset": element_offset}
        if step is not None:
            place["step"] = step
        self._noise = Noise(seed, _FIXED, **place)

    def _draw_noise(self, sample: Tensor, step: int, generator: Any, seed: Any) -> dict[str, Any]:
        if seed is not None:
            return {"seed": seed, "step": step}
        noise = self._noise
        if noise is None or not (noise.fixed or noise.generator is generator):
            noise = self._noise = self._new_noise(sample, generator)
        return noise.draw(step)

    def _new_noise(self, sample: Tensor, generator: Any) -> Noise:
        """A generator gives the key of the run's noise, a list of them (one a sample) the samples' ids."""
        home = sample.device
        if isinstance(generator, (list, tuple)) and len(generator) == 1:
            generator_one = generator[0]
        elif isinstance(generator, (list, tuple)):
            if len(generator) != sample.shape[0]:
                raise ValueError(f"one generator a sample expected, got {len(generator)} for {sample.shape[0]} samples")
            ids = torch.cat([_draw(g, home, 2**62).to(home) for g in generator])
            return Noise(0, generator, sample_ids=ids)
        else:
            generator_one = generator
        key = _draw(generator_one, home, 2**63 - 1)
        return Noise(key if key.device == home and not key.is_cpu else int(key), generator)

    # -- the place in the schedule ----------------------------------------------------------------------------------
    _source = "sigmas"  # the attribute that the coefficients are made from
    _needs_timesteps = True

    def _current(self) -> Plan:
        """The plan of the present sigmas, timesteps and configuration."""
        plan = self._plan
        if (
            plan is None
            or getattr(self, self._source) is not plan.source
            or self.timesteps is not plan.timesteps
            or self._internal_dict is not plan.config
            or (not _is_compiling() and plan.source._version != plan.version)
        ):
            return self._replan()
        return plan

    def _replan(self) -> Plan:
        if self._needs_timesteps and getattr(self, "num_inference_steps", None) is None:
            raise ValueError(f"{type(self).__name__}: call set_timesteps before step or scale_model_input")
        plan = Plan(getattr(self, self._source), self.timesteps, self._internal_dict)
        for key in [*self._defaults(plan), *self._asked]:
            plan.tables[key] = self._make(plan, key)
        self._plan = plan
        return plan

    _asked: tuple[tuple[Any, ...], ...] = ()  # the tables that runs asked for beside the default ones

    def _defaults(self, plan: Plan) -> list[tuple[Any, ...]]:
        """Set the plan up, and name the tables that a run needs with default arguments."""
        raise NotImplementedError

    def _results(self, plan: Plan, *key: Any) -> tuple[list[Result], Any, Any]:
        """The results of a table's steps, and (p, q) of their prediction: see `tabulate`."""
        raise NotImplementedError

    def _make(self, plan: Plan, key: tuple[Any, ...]) -> Table:
        with np.errstate(all="ignore"):  # rows that no run reaches may divide by zero
            results, p, q = self._results(plan, *key)
            found = tabulate(plan.rows, results, p, q, clipped=plan.clip is not None, apart=plan.apart)
            if plan.apart:
                found.conversion = tabulate(plan.rows, [Result(d=1.0)], p, q)
        return found

    def _table(self, plan: Plan, key: tuple[Any, ...]) -> Table:
        """The table of ``_results(plan, *key)``; one that was asked for is made with each new schedule from then on."""
        return plan.tables.get(key) or self._ask(plan, key)

    @torch.compiler.disable(
        reason="tables for other than default arguments are made outside: take one such step before compiling"
    )
    def _ask(self, plan: Plan, key: tuple[Any, ...]) -> Table:
        found = plan.tables[key] = self._make(plan, key)
        self._asked = (*self._asked[-15:], key)
        return found

    def _advance(
        self, plan: Plan, table: Table, row: int | Tensor, sample: Tensor, model_output: Tensor,
        rest: tuple[Tensor, ...] = (), noise: dict[str, Any] = NO_NOISE, low: tuple[int, ...] = (),
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The table's results by one pass; by two and the quantile where x0 is thresholded dynamically."""
        if plan.apart:
            x0 = advance(table.conversion, row, sample, model_output, (model_output,), NO_NOISE, None, low)[0]
            terms = (self._threshold_sample(x0), model_output, *rest)
            return advance(table, row, sample, model_output, terms, noise, None, low)
        terms = (model_output, *rest) if plan.clip is None else (model_output, model_output, *rest)
        return advance(table, row, sample, model_output, terms, noise, plan.clip, low)

    def _at(self, plan: Plan, timestep: Any) -> int:
        """The step's index, found from the timestep where a run begins."""
        i = self._step_index
        if i is None:
            i = self._begin_index
            if i is None:
                i = plan.locate(timestep)
            elif not 0 <= i < plan.steps:
                raise ValueError(f"begin_index must be in [0, {plan.steps}), got {i}")
            self._step_index = i
        elif i >= plan.steps:
            raise ValueError(
                f"{type(self).__name__} was stepped past its end, {plan.steps} timesteps: call set_timesteps again"
            )
        return i

    def _scaled_input(self, plan: Plan, i: int, sample: Tensor, stage: int = 1) -> Tensor:
        """The sample over sqrt(sigma^2 + 1), what models of Karras' coordinates see."""
        scale = plan.scales.get(stage)
        if scale is None:
            sigma = self._input_sigma(plan, stage)
            scale = plan.scales[stage] = Table((1 / np.sqrt(sigma * sigma + 1))[:, None])
        if _is_compiling() and sample.is_floating_point():  # i may be symbolic: reading it here would compile anew
            return affine_step(sample, (), scale.on(sample), row=i)
        return sample * scale.wide[i].item()

    def _input_sigma(self, plan: Plan, stage: int) -> np.ndarray:
        return plan.values

    def _no_integers(self, timestep: Any) -> None:
        if type(timestep) is int or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise ValueError(
                f"timestep must be one of {type(self).__name__}.timesteps (a float), not an index, got {timestep}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}


def fused(cls: type) -> type:
    """Finish a class: the parent's ``set_timesteps``, followed by making the tables, under diffusers' public name."""
    parent = next(c for c in cls.__mro__ if c.__module__.startswith("diffusers."))

    @functools.wraps(parent.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        self._plan = None
        parent.set_timesteps(self, *args, **kwargs)
        if self._noise is not None and self._noise.fixed:
            self._noise.next = None
        else:
            self._noise = None
        self._replan()

    cls.set_timesteps = set_timesteps
    cls.__module__ = "fokker.schedulers"
    return cls


def output_class(parent: type) -> type:
    """The class of the results of a scheduler's step."""
    module = __import__(parent.__module__, fromlist=["_"])
    return getattr(module, f"{parent.__name__}Output", diffusers.schedulers.scheduling_utils.SchedulerOutput)
