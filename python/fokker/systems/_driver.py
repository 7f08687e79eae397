"""The loop of the methods that step particles: models called and checked, one fused step, weights, resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import sde
from .._sde_grids import make_times
from .._sde_loop import make_bar
from .._sde_ops import TERMS
from .._sde_sample import _seed, _shape
from .._sde_table import conversion
from ..random import Stream
from ._particles import Particles, Products, Resampling, Step, judge, long_step

__all__ = ["Method", "Particles", "Products", "Run", "Step", "drive"]


class Method:
    """What a method gives the driver: its models and one step; ``weighted``: whether it calls `Run.weigh`."""

    weighted = True
    #: the initial state is prior_std times this times normal numbers
    spread = 1.0
    #: whether the step's products hold x
    reads_x = False
    #: names of terms that are not scores, for messages
    extra: tuple[str, ...] = ()

    def __init__(self, models: Any) -> None:
        self.models = (models,) if callable(models) else tuple(models)
        if not self.models:
            raise ValueError("models must hold at least one model")
        for i, m in enumerate(self.models):
            if not callable(m):
                raise TypeError(f"models[{i}] must be callable as model(x, t), got {type(m).__name__}")

    def plan(self, process: Any, times: Tensor) -> list[Step]:
        """The steps between given times."""
        t = times[:-1]
        columns = (t, -times.diff(), process.rate(t), process.variance_rate(t), process.alpha(t), process.sigma(t))
        steps = [Step(i, *row) for i, row in enumerate(zip(*(c.tolist() for c in columns), strict=True))]
        for k in steps:
            if not (math.isfinite(k.f) and math.isfinite(k.g2)):
                raise ValueError(f"the process is singular at time {k.t:.6g}: take times that end before")
        return steps

    def begin(self, run: Run, x: Tensor) -> None:
        """Before the first step: tables of coefficients, what a particle carries."""

    def step(self, run: Run, k: Step, x: Tensor) -> Tensor:
        """The state after step k."""
        raise NotImplementedError


class Run:
    """One run of a method: what its ``step`` calls."""

    def __init__(
        self, method: Method, process: Any, steps: Sequence[Step], x: Tensor, seed: Any, ids: Any, prediction: str,
        model_dtype: torch.dtype | None,
    ) -> None:  # fmt: skip
        self.method, self.process, self.steps, self.seed, self.ids = method, process, steps, seed, ids
        self.prediction, self.dtype, self.device = prediction, x.dtype, x.device
        self.model_dtype = model_dtype or x.dtype
        self.batch, self.dim = x.shape[0], math.prod(x.shape[1:])
        self.log_weights = torch.zeros(self.batch, dtype=torch.float64, device=x.device)
        self.carried: dict[str, Tensor] = {}
        self.calls = 0
        self.scores_of = [(0.0, 1.0)] * len(steps)
        if prediction != "score":
            self.scores_of = [conversion(process, k.t, prediction, "score") for k in steps]
        self.with_x = method.reads_x or any(p for p, _ in self.scores_of)
        # the sums of squares of every step's vectors: one that is not finite tells whose output was not, at the end
        self.health = x.new_zeros(len(steps), 3 + len(method.models) + len(method.extra), dtype=torch.float64)

    def call(self, i: int, x: Tensor, t: float | Tensor) -> Tensor:
        """models[i](x, t), its output's shape, dtype and device checked; t a number or ``(B,)``."""
        times = t if isinstance(t, Tensor) else x.new_full((x.shape[0],), t)
        given = x if x.dtype is self.model_dtype else x.to(self.model_dtype)
        if self.prediction == "edm":
            sigma = self.process.sigma(times.double())
            scale = torch.rsqrt(sigma.square() + self.process.sigma_data**2).to(x.dtype)
            given = (x * scale.reshape(-1, *(1,) * (x.dim() - 1))).to(self.model_dtype)
            times = torch.log(sigma) / 4
        found = self.method.models[i](given, times.to(x.dtype))
        self.calls += 1
        return self.checked(f"models[{i}]", found, x.shape)

    def checked(self, name: str, found: Any, shape: Sequence[int]) -> Tensor:
        """What a user's function returned, if it is a tensor of that shape on this device, in the dtype asked for."""
        if not isinstance(found, Tensor):
            raise TypeError(f"{name} must return a tensor, got {type(found).__name__}")
        if found.shape != tuple(shape):
            raise ValueError(f"{name} must return shape {tuple(shape)}, got {tuple(found.shape)}")
        if found.dtype not in (self.dtype, self.model_dtype):
            raise TypeError(
                f"{name} must return {self.model_dtype} (the state's dtype, or model_dtype), got {found.dtype}"
            )
        if found.device != self.device:
            raise TypeError(f"{name} returned a tensor on {found.device}, the state is on {self.device}")
        return found

    def outputs(self, k: Step, x: Tensor) -> list[Tensor]:
        """Every model's output at (x, k.t): what `move` takes for the scores, of whatever prediction."""
        t = x.new_full((x.shape[0],), k.t)
        return [self.call(i, x, t) for i in range(len(self.method.models))]

    def table(self, rows: Sequence[Sequence[float]]) -> Tensor:
        """Weights [x, s_1 .. s_M, e_1 .. e_E, z] of every step, on the device at once: rows for `move`."""
        return (
            self._folded(torch.tensor(rows, dtype=torch.float64, device="cpu"), range(len(rows)))
            .to(self.dtype)
            .to(self.device)
        )

    def _folded(self, w: Tensor, steps: Sequence[int]) -> Tensor:
        """Weights of scores s = p x + q m as weights of the outputs m, with a column for x among the terms."""
        m = len(self.method.models)
        if self.prediction != "score":
            p, q = (
                self.scores_of[steps[0]]
                if len(steps) == 1
                else w.new_tensor([self.scores_of[i] for i in steps]).T[..., None]
            )
            s = w[:, 1 : 1 + m]
            w = torch.cat([w[:, :1] + p * s.sum(1, keepdim=True), q * s, w[:, 1 + m :]], 1)
        if self.with_x:
            w = torch.cat([w[:, :-1], w.new_zeros(len(w), 1), w[:, -1:]], 1)
        return w

    def move(
        self, k: Step, x: Tensor, outputs: Sequence[Tensor], weights: Tensor, *, row: int | None = None,
        extra: Sequence[Tensor] = (), stream: int = Stream.PREDICTOR, number: int | None = None, noisy: bool = True,
    ) -> tuple[Tensor, Products]:  # fmt: skip
        """y = a x + sum b_i s_i + sum c_j e_j + d z in one pass, and the inner products of all that is in it.

        weights: `table`'s with the ``row`` to take, or ``(B, C)`` of this step alone, in the same columns. noisy:
        whether products with y - x and z are wanted.
        """
        if row is None:
            weights = self._folded(weights, [k.index]).to(self.dtype)
        terms = [*outputs, *extra, *([x] if self.with_x else [])]
        place = {"seed": self.seed, "step": k.index if number is None else number, "stream": stream}
        place["sample_ids"] = self.ids
        # products of the terms alone are cheaper apart on a CPU; on a GPU that would be one more read
        apart = not (noisy or x.is_cuda) and bool(terms)
        if len(terms) <= TERMS and apart:
            y, gram = sde.affine_step(x, terms, weights, row=row, **place), sde.gram(terms)
        elif len(terms) <= TERMS:
            apart = False
            y, gram = sde.affine_step(x, terms, weights, row=row, dots=True, **place)
        else:
            apart = False
            y, gram = long_step(x, terms, weights if row is None else weights[row], place)
        first = 0 if apart else 1
        torch.sum(gram.diagonal(dim1=1, dim2=2), 0, out=self.health[k.index, 1 - first : 1 - first + gram.shape[1]])
        p, q = self.scores_of[k.index]
        if (p, q) != (0.0, 1.0):
            m, change = len(outputs), torch.eye(gram.shape[1], dtype=torch.float64, device="cpu")
            s = slice(first, first + m)
            change[s, s] *= q
            if p:
                change[s, -1 - first] = p
            change = change.to(self.device)
            gram = change @ gram @ change.T
        return y, Products(gram, first, len(outputs), len(extra))

    def add(self, k: Step, y: Tensor, x: Tensor, outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
        """y + sum_i weights[:, i] s_i (x, t), written over y; weights ``(B, M)`` in any float dtype."""
        p, q = self.scores_of[k.index]
        columns = [torch.ones_like(weights[:, :1]), q * weights]
        terms = list(outputs)
        if p:
            terms, columns = [*terms, x], [*columns, p * weights.sum(1, keepdim=True)]
        w = torch.cat(columns, 1).to(self.dtype)
        for i in range(0, len(terms), TERMS):
            part = w[:, 1 + i : 1 + i + TERMS]
            sde.affine_step(y, terms[i : i + TERMS], torch.cat([w[:, :1], part], 1), out=y)
        return y

    def weigh(self, change: Tensor) -> None:
        """Add to the log weights."""
        self.log_weights = self.log_weights + change


def drive(
    method: Method,
    process: Any,
    shape: Sequence[int],
    steps: int | None = None,
    seed: int | Tensor | None = None,
    *,
    times: Any = None,
    grid: str | Callable[..., Tensor] | None = None,
    prediction: str = "x0",
    start: Tensor | None = None,
    populations: int = 1,
    resampling: str | None = "systematic",
    threshold: float = 0.5,
    sample_ids: Any = None,
    dtype: torch.dtype = torch.float32,
    model_dtype: torch.dtype | None = None,
    device: Any = None,
    callback: Callable[[Particles], None] | None = None,
    progress: bool = False,
) -> Particles:
    """Run a method's steps from noise (or ``start``) to the end of the grid.

    Args:
        method: a `Method`; the driver calls its ``step`` for every step of its ``plan``.
        process, steps, times, grid, seed, prediction, sample_ids, dtype, model_dtype, device: as in
            `fokker.sde.sample`. The noise belongs to a particle's place, not to its ancestor, so twins part.
        shape: ``(B, ...)``, B particles.
        start: the first state, of that shape.
        populations: B is so many populations of B / populations particles; weights compete within one.
        resampling: how particles are drawn anew where the effective sample size is below ``threshold`` times their
            number ("systematic", "stratified", "multinomial", "residual"); None: never.
        callback: called with `Particles` after each step.
        progress: show a bar (tqdm where installed).

    Nothing waits for the device until the end, but what the callback does.

    Raises:
        ValueError: no particles, a shape that does not fit, a model's or reward's output of another shape or not
            finite (found at the end: the first step and the function are named), weights that are all zero.
        TypeError: an output of another dtype or device than asked for.

    Warns RuntimeWarning, once, where the effective sample size falls below 2 or a fiftieth of the particles.
    """
    size = _shape(shape)
    if not size[0]:
        raise ValueError(f"shape must hold at least one particle, got {size}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be float32 or float64 (model_dtype casts the models' input), got {dtype}")
    if populations < 1 or size[0] % populations:
        raise ValueError(f"populations must be a positive divisor of the {size[0]} particles, got {populations}")
    t = make_times(process, steps, times, grid or process.grid, False)
    device = torch.empty(0, device=start.device if start is not None else device).device
    seed = _seed(seed, device)
    with torch.no_grad():
        if start is None:
            place = {"seed": seed, "sample_ids": sample_ids, "dtype": dtype, "device": device}
            x = process.prior_sample(size[0], size[1:], **place)
            x = x * method.spread if method.spread != 1 else x
        elif tuple(start.shape) != size:
            raise ValueError(f"start must have shape {size}, got {tuple(start.shape)}")
        else:
            x = start.to(dtype)
        plan = method.plan(process, t)
        run = Run(method, process, plan, x, seed, sample_ids, prediction, model_dtype)
        method.begin(run, x)
        chooser = Resampling(run, populations, resampling, threshold) if method.weighted else None
        bar = make_bar(progress, t, 0)
        try:
            for k in plan:
                x = method.step(run, k, x)
                if chooser is not None:
                    x = chooser(k, x)
                if bar is not None:
                    bar.update()
                if callback is not None:
                    callback(_particles(run, k, x, chooser, populations))
        finally:
            if bar is not None:
                bar.close()
        found = _particles(run, plan[-1], x, chooser, populations)
        judge(run, found, size[0] // populations)
    return found


def _particles(run: Run, k: Step, x: Tensor, chooser: Resampling | None, populations: int) -> Particles:
    sizes = torch.stack(chooser.sizes) if chooser is not None else x.new_empty(0, populations, dtype=torch.float64)
    return Particles(k.index + 1, k.t - k.dt, x, run.log_weights, dict(run.carried), sizes, run.calls, populations)
