"""A schedule on the host, its tables of coefficients, and the fused step that reads a row of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._op import _dispatch_depth, _forward_ad, _functorch_level, _grad_enabled, _is_compiling
from ._sde_ops import AFFINE, TERMS
from ._sde_step import affine_step

F32, F64 = torch.float32, torch.float64
NO_NOISE: dict[str, Any] = {}
Column = Any  # a float64 array (steps,), or a number


class Table:
    """Coefficients of every step of a schedule, (steps, C) or (steps, R, C), made once and kept where the state is."""

    def __init__(self, rows: np.ndarray) -> None:
        self.results = 1 if rows.ndim == 2 else rows.shape[1]
        self.wide = torch.from_numpy(np.ascontiguousarray(rows))
        self.narrow = self.wide.float()
        self.copies: dict[Any, Tensor] = {}
        self.conversion: Table  # of x0, where the prediction is made by a pass of its own

    def on(self, x: Tensor) -> Tensor:
        """The table for a state like x: float64 for a float64 one, else float32."""
        table = self.wide if x.dtype is F64 else self.narrow
        if x.is_cpu:
            return table
        if _is_compiling():
            return table.to(x.device)
        key = (x.device, table.dtype)
        found = self.copies.get(key)
        if found is None:
            found = self.copies[key] = table.to(x.device)
        return found


class Result:
    """One result of a step as weights: of the state, the (clipped) prediction, the raw model output, and the rest."""

    def __init__(self, x: Column = 0.0, d: Column = 0.0, m: Column = 0.0, rest: Sequence[Column] = ()) -> None:
        self.x, self.d, self.m, self.rest = x, d, m, tuple(rest)


def tabulate(
    steps: int, results: Sequence[Result], p: Column, q: Column, *, clipped: bool = False, apart: bool = False
) -> Table:
    """The table of steps whose prediction is D = p x + q m.

    Columns [x, m, rest..]; with ``clipped`` [x, D, m, rest.., p, q] (the kernel clips D); with ``apart`` (D made by an
    earlier pass, because something that is not linear happened to it) [x, D, m, rest..].
    """
    lines = []
    for r in results:
        if clipped or apart:
            columns = [r.x, r.d, r.m, *r.rest, *((p, q) if clipped else ())]
        else:
            columns = [r.x + r.d * p, r.m + r.d * q, *r.rest]
        lines.append(np.stack([np.broadcast_to(np.asarray(c, dtype=np.float64), (steps,)) for c in columns], -1))
    return Table(lines[0] if len(lines) == 1 else np.stack(lines, 1))


_PADDING = [(None,) * (TERMS - k) for k in range(TERMS + 1)]
_QUIET = (False, 0, 0, 0, 0, 0, False)


def _plain(sample: Tensor, terms: Sequence[Tensor], noise: dict[str, Any]) -> bool:
    """Whether the kernel may be called as it is: the checks of `affine_step` are half the time of a tiny step."""
    if _is_compiling() or _functorch_level() or _forward_ad._current_level >= 0 or _dispatch_depth():
        return False
    if noise and (len(noise) > 2 or type(noise["seed"]) is not int or not 0 <= noise["seed"] < 2**63):
        return False
    recorded, shape, on_gpu = _grad_enabled(), sample.shape, sample.is_cuda
    for t in (sample, *terms):
        if type(t) is not Tensor or t.shape != shape or t.is_neg() or t.is_cuda != on_gpu:
            return False
        if recorded and t.requires_grad:
            return False
    return bool(shape)


def _kernel(
    results: int, x: Tensor, coefficients: Tensor, terms: Sequence[Tensor], row: int | Tensor, noise: dict[str, Any],
    clip: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The backend's kernel of `affine_step`."""
    settings = _QUIET
    if noise:
        settings = (True, noise["seed"], noise["step"], 0, 0, 0, False)
    tensor, value = (row, -1) if isinstance(row, Tensor) else (None, row)
    kernel = AFFINE[results, False]._by_device[x.is_cuda]
    found = kernel(x, coefficients, *terms, *_PADDING[len(terms)], tensor, None, None, None, value, *settings, clip)
    return found if results > 1 else (found,)


def advance(
    table: Table, row: int | Tensor, sample: Tensor, model_output: Tensor, terms: Sequence[Tensor],
    noise: dict[str, Any], clip: float | None = None, low: tuple[int, ...] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    """The results of a step: the first in the model output's dtype, the others in float32 (float64 with a float64),
    those of the numbers ``low`` in the promoted dtype of sample and model output."""
    results = table.results
    try:
        if sample.dtype is F32 and model_output.dtype is F32:
            coefficients = table.on(sample)
            if _plain(sample, terms, noise):
                try:
                    return _kernel(results, sample, coefficients, terms, row, noise, clip)
                except (TypeError, ValueError, RuntimeError):
                    pass  # affine_step looks closer, and names what is wrong
            found = affine_step(sample, terms, coefficients, row=row, clip=clip, results=results, **noise)
            return found if results > 1 else (found,)
        return _mixed(table, row, sample, model_output, terms, noise, clip, low)
    except (TypeError, ValueError):
        if not isinstance(model_output, Tensor) or not isinstance(sample, Tensor):
            kinds = f"{type(model_output).__name__} and {type(sample).__name__}"
            raise TypeError(f"model_output and sample must be tensors, got {kinds}") from None
        if model_output.shape != sample.shape:
            shapes = f"{tuple(model_output.shape)} and {tuple(sample.shape)}"
            raise ValueError(f"model_output and sample must have the same shape, got {shapes}") from None
        raise


def _mixed(
    table: Table, row: int | Tensor, sample: Tensor, model_output: Tensor, terms: Sequence[Tensor],
    noise: dict[str, Any], clip: float | None, low: tuple[int, ...],
) -> tuple[Tensor, ...]:  # fmt: skip
    promoted = torch.promote_types(sample.dtype, model_output.dtype)
    wide = torch.promote_types(promoted, F32)
    kinds = [promoted if r in low else model_output.dtype if r == 0 else wide for r in range(table.results)]
    if wide is F64:
        sample = sample.double()
    coefficients = table.on(sample)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (sample, *terms))
    direct = AFFINE[table.results, False]._by_device[sample.is_cuda]
    if recorded or _is_compiling() or not getattr(direct, "writes_out", False):
        found = affine_step(sample.to(wide), terms, coefficients, row=row, clip=clip, results=table.results, **noise)
        found = found if table.results > 1 else (found,)
        return tuple(y.to(k) for y, k in zip(found, kinds, strict=True))
    out = [torch.empty_like(sample, dtype=k) for k in kinds]
    affine_step(sample, terms, coefficients, row=row, clip=clip, results=table.results, out=out, **noise)
    return tuple(out)


class Plan:
    """A schedule on the host: sigmas (or products of alphas) in float64, timesteps, and the tables made from them."""

    def __init__(self, source: Tensor, timesteps: Tensor, config: Any) -> None:
        self.source, self.version = source, source._version
        self.timesteps, self.config = timesteps, config
        self.apart = bool(config.get("thresholding"))
        clipped = config.get("clip_sample") and not self.apart
        self.clip = float(config["clip_sample_range"]) if clipped else None
        self.values: np.ndarray = source.detach().cpu().double().numpy()
        self.times: list[float] = timesteps.tolist()
        self.steps = len(self.times)
        self.narrow = timesteps.dtype is F32
        self.index: dict[float, int] = {}
        seen: dict[float, int] = {}
        for i, t in enumerate(self.times):
            seen[t] = seen.get(t, 0) + 1
            if seen[t] <= 2:  # diffusers starts at the second of equal timesteps
                self.index[t] = i
        self.rows = self.steps
        self.tables: dict[Any, Table] = {}
        self.weights: dict[Any, Any] = {}
        self.scales: dict[int, tuple[list[float], Table]] = {}
        self.blends: Table | None = None
        self.stochastic = self.euler_at_final = False

    def value(self, timestep: Any) -> float:
        """A timestep as a number; one that is an entry of the schedule's tensor is read from the host's copy."""
        if not isinstance(timestep, Tensor):
            return float(np.float32(timestep)) if self.narrow else timestep
        if timestep.numel() != 1:
            raise ValueError(f"timestep must be one number for the whole batch, got shape {tuple(timestep.shape)}")
        return self.times[timestep.storage_offset()] if self.owns(timestep) else timestep.item()

    def owns(self, timestep: Tensor) -> bool:
        """Whether it is an entry of the schedule's own tensor on an accelerator: its value need not be waited for."""
        ours = self.timesteps
        return (
            not timestep.is_cpu
            and timestep.dtype is ours.dtype
            and timestep.untyped_storage().data_ptr() == ours.untyped_storage().data_ptr()
            and ours.is_contiguous()
            and ours.storage_offset() == 0
            and timestep.storage_offset() < self.steps
        )

    def locate(self, timestep: Any) -> int:
        value = self.value(timestep)
        found = self.index.get(value)
        if found is None:
            ends = f"{self.times[0]:g} .. {self.times[-1]:g}" if self.times else "none"
            raise ValueError(f"timestep {value} is not one of the scheduler's {self.steps} timesteps ({ends})")
        return found
