"""`sample`: the one entry to every sampler, from noise or from any step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import random
from ._sde_grids import make_times
from ._sde_interpolants import StochasticInterpolant
from ._sde_loop import Loop, State, make_bar
from ._sde_samplers import Sampler
from ._sde_table import Table, fold, stacked

__all__ = ["Run", "State", "sample", "table"]


class Run(NamedTuple):
    """What `sample` returns with ``full=True``."""

    x: Tensor
    calls: int  #: of the model (a guide's are not counted)
    times: Tensor
    log_probs: Tensor  #: ``(steps with noise, B)`` in float64 of samplers that have them, else ``(0, B)``
    log_prob_steps: tuple[int, ...]


def table(
    process: Any,
    sampler: Sampler,
    times: Tensor,
    *,
    prediction: str = "x0",
    clip: bool = False,
    guidance: Callable[[float], float] | None = None,
    copy: bool = False,
) -> Table:
    """A sampler's affine steps between given times, in float64: what `sample` runs; times ``(B, n)`` of each sample."""
    if times.dim() == 2:
        kinds = {"prediction": prediction, "clip": clip, "guidance": guidance, "copy": copy}
        return stacked([table(process, sampler, row, **kinds) for row in times])
    return fold(
        sampler.rows(process, times), process, sampler.native, prediction, clip=clip, guidance=guidance, copy=copy
    )


def sample(
    model: Callable[..., Any],
    process: Any,
    sampler: Any,
    shape: Sequence[int],
    steps: int | None = None,
    seed: int | Tensor | None = None,
    *,
    times: Any = None,
    grid: str | Callable[..., Tensor] | None = None,
    prediction: str | None = None,
    condition: Mapping[str, Any] | None = None,
    guidance: float | Callable[[float], float] | None = None,
    guide: Callable[..., Any] | None = None,
    unconditional: Mapping[str, Any] | None = None,
    clip: float | None = None,
    start: Tensor | State | None = None,
    start_step: int = 0,
    sample_ids: Any = None,
    noise: str | Callable[[int, int, Tensor], Tensor] = "counter",
    dtype: torch.dtype = torch.float32,
    model_dtype: torch.dtype | None = None,
    static_output: bool = False,
    device: Any = None,
    callback: Callable[[State], Tensor | None] | None = None,
    progress: bool = False,
    check_finite: bool = False,
    differentiable: bool = False,
    log_prob_reduction: str = "mean",
    full: bool = False,
) -> Any:
    r"""Samples of a process by a sampler: noise, ``steps`` steps, the last state ``(B, *shape)``.

    Every step is one `affine_step` (a network call and one pass over memory), its noise made inside the kernel from
    ``(seed, step, sample id)``: the same seed gives the same samples on every backend (to float32 rounding) and
    whatever the split of the batch, if samples keep their ids.

    Args:
        model: called as model(x, t) (with ``condition``'s entries as keywords), x ``(B, ...)``, t ``(B,)`` in float32
            (float64 for a float64 state); a compiled one will do. With prediction "edm": F(c_in x, log(sigma) / 4).
        process, sampler: of `fokker.sde`.
        shape: ``(B, ...)`` of the result.
        steps, times, grid: the number of steps on a grid ("uniform", "karras", "log_snr", "logit_normal" or a function
            of process and steps; the process's own where None), or the times themselves, falling (rising for a forward
            interpolant): one sequence, or ``(B, steps + 1)`` with a row for each sample, as a start that is of another
            noise level in each needs (about a millisecond a row, once; not for prediction "edm" or brownian noise).
        seed: int in [0, 2^64) or an int64 tensor on the device; None: drawn from torch's generator.
        prediction: what the model returns: "x0" (the default), "epsilon", "v", "score", "flow" or "edm". Not for
            samplers whose model returns something of its own (geometric, consistency trajectory, interpolants).
        guidance: w of w model + (1 - w) guide, a number or a function of time; where w = 1 the guide is not called.
            ``guide`` is another model, or the same one called with ``unconditional``'s keywords.
        clip: clamp the predicted x_0 to [-clip, clip] (for samplers that have one).
        start, start_step: a `State` continues its run exactly as it would have gone on; a tensor is the state at
            ``start_step``: one-step samplers go on exactly, multistep ones begin anew with their lower orders.
        sample_ids: the samples' ids, see `fokker.random`.
        noise: "counter"; "brownian": increments of one Brownian path a sample over [first time, last time], so that
            another number of steps has the same noise (one draw a step only); or a function of (stream, number, x).
        dtype: of the state, float32 or float64 (bfloat16 loses 0.035 rms in 50 steps: give ``model_dtype`` instead,
            which the network's input alone is cast to).
        static_output: the model writes each output over its last one (CUDA graphs, torch.compile's "reduce-overhead"):
            predictions that later steps read are then copied, in the pass of their own step.
        callback: called with a `State` after each step; a tensor it returns takes the place of x (not in samplers that
            step from another state than they call the model at: UniPC's corrector).
        progress: show a bar (tqdm where installed).
        check_finite: a ValueError at the end names the first step whose model output was not finite; nothing waits for
            the device before. Else such values pass through.
        differentiable: record gradients (else the run is under no_grad).
        log_prob_reduction: "mean" or "sum" over a sample's elements, of samplers with step log-probabilities.
        full: return a `Run`.

    Raises:
        ValueError: times out of range or order, a negative seed, shapes that do not fit, an unknown name, a step with
            infinite coefficients (from alpha = 0, say).
        TypeError: a process that the sampler does not take, a dtype.
    """
    if hasattr(sampler, "run"):  # no table: adaptive steps, tokens
        options = {
            "times": times, "grid": grid, "prediction": prediction, "condition": condition, "start": start,
            "start_step": start_step, "sample_ids": sample_ids, "dtype": dtype, "device": device,
            "callback": callback, "progress": progress, "full": full, "guidance": guidance, "guide": guide,
            "unconditional": unconditional, "clip": clip, "noise": noise, "model_dtype": model_dtype,
            "check_finite": check_finite, "differentiable": differentiable, "static_output": static_output,
        }  # fmt: skip
        given = {
            k: v
            for k, v in options.items()
            if v is not None and v is not False and not (k in _DEFAULTS and v == _DEFAULTS[k])
        }
        if refused := sorted(set(given) - sampler.takes):
            raise ValueError(f"{type(sampler).__name__} does not take {', '.join(refused)}")
        return sampler.run(model, process, shape, steps, seed, **given)
    size = _shape(shape)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64 (model_dtype casts the network's input), got {dtype}")
    if log_prob_reduction not in ("mean", "sum"):
        raise ValueError(f"log_prob_reduction must be 'mean' or 'sum', got {log_prob_reduction!r}")
    t = make_times(process, steps, times, grid or getattr(process, "grid", "uniform"), sampler.forward)
    device = start[2].device if isinstance(start, State) else start.device if isinstance(start, Tensor) else device
    device = torch.empty(0, device=device).device
    seed = _seed(seed, device)
    state, offset = _start(process, sampler, size, t, start, start_step, seed, sample_ids, dtype, device)
    weight = None
    if guidance is not None:
        weight = guidance if callable(guidance) else (lambda _: float(guidance))  # type: ignore[arg-type]
        if guide is None and unconditional is None:
            raise ValueError("guidance needs a guide, or the keywords of an unconditional call")
        guide = functools.partial(guide or model, **(condition or {} if unconditional is None else unconditional))
    if t.dim() == 2 and (len(t) != size[0] or prediction == "edm" or noise == "brownian"):
        raise ValueError(
            f"times of each sample must be ({size[0]}, steps + 1), got {tuple(t.shape)}, and go neither with "
            "prediction='edm' nor with noise='brownian'"
        )
    plan = table(
        process, sampler, t[..., offset:],
        prediction=prediction or ("x0" if sampler.native in _NATIVE else sampler.native),
        clip=clip is not None, guidance=weight, copy=static_output,
    )  # fmt: skip
    run = Loop(
        plan, functools.partial(model, **condition) if condition else model, guide, t, offset, seed, sample_ids, clip,
        noise, model_dtype, log_prob_reduction, process if prediction == "edm" else None, check_finite, static_output,
    )  # fmt: skip
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        x = run(state, callback, make_bar(progress, t, state.step))
    if not full:
        return x
    logs = torch.stack(run.log_probs) if run.log_probs else x.new_empty(0, size[0], dtype=torch.float64)
    return Run(x, run.calls, t, logs, tuple(run.log_prob_steps))


#: of the options that a sampler without a table may not take
_DEFAULTS: dict[str, Any] = {"start_step": 0, "dtype": torch.float32, "noise": "counter"}
_NATIVE = ("x0", "epsilon", "score", "flow")


def _shape(shape: Any) -> tuple[int, ...]:
    try:
        size = tuple(int(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape must be a sequence of ints (B, ...), got {shape!r}") from None
    if not size or any(n < 0 for n in size):
        raise ValueError(f"shape must be (B, ...) without negative sizes, got {size}")
    return size


def _seed(seed: Any, device: torch.device) -> Any:
    if seed is None:
        return int(torch.randint(0, 2**63 - 1, ()))
    random.bits(0, (), seed=seed, device=device)  # checks it
    return seed


def _start(
    process: Any, sampler: Sampler, size: tuple[int, ...], t: Tensor, start: Any, start_step: int, seed: Any, ids: Any,
    dtype: torch.dtype, device: torch.device,
) -> tuple[State, int]:  # fmt: skip
    """The first state, and from which time on the table is made."""
    count = t.shape[-1] - 1
    if isinstance(start, State):
        start_step = start.step
    if not isinstance(start_step, int) or not 0 <= start_step <= count:
        raise ValueError(f"start_step must be an int in [0, {count}], got {start_step!r}")
    at = float(t[start_step]) if t.dim() == 1 else t[:, start_step]
    if t.dim() == 2 and start is None:
        raise ValueError("times of each sample need start, the states there")
    if start is None:
        if start_step:
            raise ValueError(f"start_step={start_step} needs start, the state there")
        if isinstance(process, StochasticInterpolant) and not sampler.forward:
            raise ValueError(f"start must be given: samples of the law at time {at:.6g}, which is no prior")
        place = {"seed": seed, "sample_ids": ids, "dtype": dtype, "device": device}
        return State(0, at, process.prior_sample(size[0], size[1:], **place)), 0
    x = start.x if isinstance(start, State) else start
    if tuple(x.shape) != size:
        raise ValueError(f"start must have shape {size}, got {tuple(x.shape)}")
    x = x.to(dtype)
    if isinstance(start, State):
        return start._replace(x=x), 0
    return State(start_step, at, x), start_step if sampler.history else 0
