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


_HALF = frozenset({torch.float16, torch.bfloat16})


class Noise:
    """Where the noise of a run comes from: a key, the samples' ids, and the number of the next draw."""

    def __init__(self, seed: int | Tensor, generator: Any, *, fixed: bool = False, **place: Any) -> None:
        self.generator, self.fixed = generator, fixed
        self.place = {"seed": seed, **place}
        self.next: int | None = None

    def draw(self, step: int) -> dict[str, Any]:
        if "step" in self.place:
            return self.place
        number = step if self.next is None else self.next
        self.next = number + 1
        return {**self.place, "step": number}


def _draw(generator: torch.Generator | None, home: torch.device, limit: int) -> Tensor:
    device = generator.device if generator is not None else torch.device("cpu")
    return torch.randint(0, limit, (1,), generator=generator, device=device)


class Fused:
    """Mixed in before a scheduler of diffusers: its own configuration and timesteps, our step."""

    _plan: Plan | None = None
    _noise: Noise | None = None
    _count = 0  # of the draws whose place in the schedule is not known on the host
    #: False leaves ``pred_original_sample`` away (None) and so saves writing it
    want_original_sample = True
    #: True keeps a float32 copy of a float16 or bfloat16 state from step to step, and hands out its rounding: the next
    #: step starts from the copy if it is given the very tensor that the step before returned, unchanged
    master_state = False
    _master: tuple[Tensor, int, Tensor] | None = None

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
        given = {
            "stream": stream or None,
            "sample_ids": sample_ids,
            "element_offset": element_offset or None,
            "step": step,
        }
        place = {k: v for k, v in given.items() if v is not None}
        self._noise = Noise(seed, None, fixed=True, **place)

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
        for stage in self._stages:
            sigma = self._input_sigma(plan, stage)
            factors = 1 / np.sqrt(sigma * sigma + 1)
            plan.scales[stage] = (factors.tolist(), Table(factors[:, None]))
        for key in [*self._defaults(plan), *self._asked]:
            plan.tables[key] = self._make(plan, key)
        if not self.timesteps.is_cpu:  # copied now, not at the first step (which may be captured in a graph)
            like = torch.empty(0, device=self.timesteps.device)
            for table in plan.tables.values():
                table.on(like)
        self._plan = plan
        return plan

    _stages: tuple[int, ...] = ()  # those with a scale of the model's input
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
        if len(plan.tables) > 100:  # arguments that change at every step
            plan.tables.clear()
        found = plan.tables[key] = self._make(plan, key)
        self._asked = (*self._asked[-15:], key)
        return found

    def _advance(
        self, plan: Plan, table: Table, row: int | Tensor, sample: Tensor, model_output: Tensor,
        rest: tuple[Tensor, ...] = (), noise: dict[str, Any] = NO_NOISE, low: tuple[int, ...] = (),
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """The table's results by one pass; by two and the quantile where x0 is thresholded dynamically."""
        if self.master_state and sample.dtype in _HALF and not _is_compiling():
            found = self._advance(plan, table, row, self._kept(sample), model_output, rest, noise, (0, *low))
            half = [y.to(sample.dtype) if r == 0 or r in low else y for r, y in enumerate(found)]
            self._master = (half[0], half[0]._version, found[0])
            return tuple(half)
        if plan.apart:
            x0 = advance(table.conversion, row, sample, model_output, (model_output,), NO_NOISE, None, low)[0]
            terms = (self._threshold_sample(x0), model_output, *rest)
            return advance(table, row, sample, model_output, terms, noise, None, low)
        terms = (model_output, *rest) if plan.clip is None else (model_output, model_output, *rest)
        return advance(table, row, sample, model_output, terms, noise, plan.clip, low)

    def _kept(self, sample: Tensor) -> Tensor:
        """The state that a later stage starts from: with ``master_state`` in float32, as the step before left it."""
        if not self.master_state or sample.dtype not in _HALF:
            return sample
        master = self._master
        if master is not None and master[0] is sample and master[1] == sample._version:
            return master[2]
        return sample.float()

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
        factors, table = plan.scales[stage]
        if _is_compiling() and sample.is_floating_point():  # i may be symbolic: reading it here would compile anew
            return affine_step(sample, (), table.on(sample), row=i)
        return sample * factors[i]

    def _input_sigma(self, plan: Plan, stage: int) -> np.ndarray:
        return plan.values

    def _no_integers(self, timestep: Any) -> None:
        if type(timestep) is int or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
            raise ValueError(
                f"timestep must be one of {type(self).__name__}.timesteps (a float), not an index, got {timestep}"
            )

    def __getstate__(self) -> dict[str, Any]:
        noise = self._noise
        kept = noise if noise is not None and noise.fixed else None
        return {**self.__dict__, "_plan": None, "_master": None, "_noise": kept}


class ByIndex(Fused):
    """Steps in the order of a schedule of sigmas, found from the timestep once."""

    def _blend(self, plan: Plan) -> tuple[Any, Any]:
        """(alpha, sigma) of x = alpha x0 + sigma noise for each sigma of the schedule."""
        raise NotImplementedError

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma noise in one pass: of a timestep a sample, or of the present step once a run has begun."""
        if self.num_inference_steps is None:
            return super().add_noise(original_samples, noise, timesteps)
        plan = self._current()
        table = plan.blends
        if table is None:
            table = plan.blends = Table(np.stack(np.broadcast_arrays(*self._blend(plan)), -1))
        rows = table.on(original_samples)
        if self._begin_index is not None:
            row = self._begin_index if self._step_index is None else self._step_index
            return affine_step(original_samples, (noise,), rows, row=row)
        found = [plan.locate(t) for t in timesteps.reshape(-1).tolist()]
        if len(found) not in (1, len(original_samples)):
            samples = len(original_samples)
            raise ValueError(f"timesteps must be one number a sample, got {len(found)} for {samples} samples")
        if len(set(found)) == 1:
            return affine_step(original_samples, (noise,), rows, row=found[0])
        return affine_step(original_samples, (noise,), rows[torch.tensor(found, device=rows.device)])


def fused(cls: type) -> type:
    """Finish a class: the parent's ``set_timesteps``, followed by making the tables, under diffusers' public name."""
    parent = next(c for c in cls.__mro__ if c.__module__.startswith("diffusers."))

    @functools.wraps(parent.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        self._plan, self._master, self._count = None, None, 0
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
