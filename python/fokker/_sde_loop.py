"""The loop that runs a sampler's table: call the network, take one affine step, keep what later rows read."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import random
from ._elementwise import FLOATS
from ._sde_samplers_window import gaussian_log_prob
from ._sde_step import affine_step, gram
from ._sde_table import Op, Table

__all__ = ["Loop", "State"]


class State(NamedTuple):
    """A run between two steps: what a callback sees, and what `sample` can start from."""

    step: int  #: the next one
    time: Any  #: where x is: a float, or ``(B,)`` where each sample has its own times
    x: Tensor
    history: tuple[Tensor | None, ...] = ()  #: earlier predictions, in the form the sampler keeps, the newest first
    kept: Tensor | None = None  #: the state a predictor-corrector steps from


def make_bar(progress: bool, t: Tensor, first: int) -> Any:
    """A progress bar, or None."""
    if not progress:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=t.shape[-1] - 1, initial=first, desc="sample", leave=False)


class Loop:
    """The rows of a table, one after the other."""

    def __init__(
        self, plan: Table, model: Any, guide: Any, t: Tensor, offset: int, seed: Any, ids: Any, clip: float | None,
        noise: Any, model_dtype: Any, reduction: str, preconditioned: Any, check: bool, static: bool,
    ) -> None:  # fmt: skip
        if isinstance(noise, str) and noise not in ("counter", "brownian"):
            raise ValueError(f"noise must be 'counter', 'brownian' or a function, got {noise!r}")
        self.plan, self.model, self.guide, self.t, self.offset = plan, model, guide, t, offset
        self.seed, self.ids, self.clip, self.noise = seed, ids, clip, noise
        self.model_dtype, self.reduction, self.edm, self.check = model_dtype, reduction, preconditioned, check
        self.static = static
        self.calls = 0
        self.log_probs: list[Tensor] = []
        self.log_prob_steps: list[int] = []

    def __call__(self, state: State, callback: Any, bar: Any) -> Tensor:
        x = state.x
        batch, dtype, device = x.shape[0], x.dtype, x.device
        self.tables = self.plan.to(dtype, device)
        times = torch.as_tensor(self.plan.times, dtype=torch.float64, device="cpu")
        if self.edm is not None:
            self.scales = [(float(self.edm.sigma(v)) ** 2 + self.edm.sigma_data**2) ** -0.5 for v in times.tolist()]
            times = torch.log(self.edm.sigma(times)) / 4
        self.times, self.targets = (
            (c if c.dim() == 2 else c[:, None].repeat(1, batch)).to(dtype).to(device)
            for c in (times, torch.as_tensor(self.plan.targets, device="cpu"))
        )
        shares = [(op.share, 1 - op.share) for op in self.plan.ops if op.call is not None]
        self.shares = torch.tensor(shares, dtype=torch.float64, device="cpu").to(dtype).to(device)
        self.first_bad = torch.full((), len(times), dtype=torch.int64, device=device) if self.check else None
        depth = self.plan.depth
        history = [*state.history, *[None] * depth][:depth] if depth else []
        registers: dict[str, Any] = {f"m{k}": m for k, m in enumerate(history)}
        registers["s"] = state.kept
        ops = self.plan.ops
        for op, later in zip(ops, [*ops[1:], None], strict=True):
            step = op.step + self.offset
            if step < state.step:
                continue
            x = self._row(op, step, x, registers)
            if op.last:
                if bar is not None:
                    bar.update()
                if callback is not None:
                    history = tuple(registers[f"m{k}"] for k in range(depth))
                    at = float(self.t[step + 1]) if self.t.dim() == 1 else self.t[:, step + 1]
                    given = callback(State(step + 1, at, x, history, registers["s"]))
                    x = x if given is None else self._replaced(given, x, later)
        if bar is not None:
            bar.close()
        if self.first_bad is not None and (bad := int(self.first_bad)) < len(times):
            op = next(o for o in self.plan.ops if o.call == bad)
            raise ValueError(
                f"the model's output is not finite at step {op.step + self.offset}, time {op.time:.6g} (first of them)"
            )
        return x

    @staticmethod
    def _replaced(given: Any, x: Tensor, later: Op | None) -> Tensor:
        if later is not None and "s" in later.terms:
            raise ValueError(
                "callback cannot replace the state: the next step starts from a corrected one (UniPC: corrector=False)"
            )
        if not isinstance(given, Tensor) or given.shape != x.shape:
            raise ValueError(f"callback must return None or a tensor {tuple(x.shape)}, got {given!r}")
        return given.to(x)

    def _row(self, op: Op, step: int, x: Tensor, registers: dict[str, Any]) -> Tensor:
        if op.call is not None:
            self._predict(op, x, registers)
        terms = [registers.get(n) for n in op.terms]
        if any(m is None for m in terms):
            if "second" in op.terms and registers.get("second") is None:
                raise ValueError("the model returns one tensor, and the sampler reads two (see the sampler's page)")
            raise ValueError(f"step {step} reads predictions that start does not hold: give a tensor, or a State")
        weights, row = self.tables[op.table], op.row
        place: dict[str, Any] = {}
        if op.noise is not None:
            stream, number = op.noise
            number += self.offset
            if self.noise == "counter":
                place = {"seed": self.seed, "step": number, "stream": stream, "sample_ids": self.ids}
            else:
                terms = [*terms, self._noise(stream, number, step, x)]
        if op.langevin is not None:
            if place and not x.is_cuda:
                # read twice: on a CPU its numbers cost more than its bytes
                z = random.normal(x.shape[0], tuple(x.shape[1:]), dtype=x.dtype, device=x.device, **place)
                terms, place = [*terms, z], {}
            weights, row = self._langevin(op, x, terms, place), None
        found = affine_step(
            x, terms, weights, row=row, exponential=op.multiplicative, clip=self.clip if op.clip else None,
            dots=op.log_prob is not None, results=len(op.writes), **place,
        )  # fmt: skip
        if op.log_prob is not None:
            found, products = found
            self._log_prob(op, step, products[:, -1, -1], x[0].numel())
        if op.keep:
            registers["s"] = x
        for name, value in zip(op.writes, found if isinstance(found, tuple) else (found,), strict=True):
            registers[name] = value
        return registers["x"]

    def _predict(self, op: Op, x: Tensor, registers: dict[str, Any]) -> None:
        raw = self._call(self.model, op, x)
        self.calls += 1
        if isinstance(raw, (tuple, list)):
            raw, registers["second"] = raw
        if op.share != 1:
            raw = raw.clone() if self.static else raw
            registers["guide"] = guided = self._call(self.guide, op, x)
            if op.mix:
                raw = affine_step(raw.to(x.dtype), [guided], self.shares, row=op.call)
        for k in range(self.plan.depth - 1, 0, -1):
            registers[f"m{k}"] = registers[f"m{k - 1}"]
        registers["m"] = raw
        if self.plan.depth:
            registers["m0"] = raw if op.store else None
        if self.first_bad is not None:
            bad = torch.where(raw.isfinite().all(), self.first_bad, op.call)
            self.first_bad = torch.minimum(self.first_bad, bad)

    def _call(self, model: Any, op: Op, x: Tensor) -> Any:
        given = x if self.edm is None else x * self.scales[op.call]  # type: ignore[index]
        if self.model_dtype is not None:
            given = given.to(self.model_dtype)
        extra = () if op.target is None else (self.targets[op.target],)
        found = model(given, self.times[op.call], *extra)
        tensors = found if isinstance(found, (tuple, list)) else (found,)
        for m in tensors:
            if not isinstance(m, Tensor) or m.shape != x.shape:
                seen = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
                raise ValueError(f"the model must return a tensor of x's shape {tuple(x.shape)}, got {seen}")
            if m.dtype not in FLOATS:
                raise TypeError(f"the model must return a float dtype, as {x.dtype}, got {m.dtype}")
        return found

    def _noise(self, stream: int, number: int, step: int, x: Tensor) -> Tensor:
        if self.noise != "brownian":
            return self.noise(stream, number, x).to(x)
        if stream != 0 or number != step:
            raise ValueError("noise='brownian' is for samplers that draw once a step")
        first, last = float(self.t[0]), float(self.t[-1])
        a, b = ((first - float(self.t[k])) / (first - last) for k in (step, step + 1))
        place = {"sample_ids": self.ids, "dtype": x.dtype, "device": x.device}
        return random.brownian(x.shape[0], tuple(x.shape[1:]), a, b, seed=self.seed, **place) / (b - a) ** 0.5

    def _langevin(self, op: Op, x: Tensor, terms: list[Tensor], place: dict[str, Any]) -> Tensor:
        """The columns of x + k s + (2 k)^{1/2} z with k = 2 a (snr |z| / |s|)^2, ``(B, 3)``, s = p x + q m."""
        snr, a, batch, p, q = op.langevin  # type: ignore[misc]
        g = gram([x, *terms] if p else terms, **place)
        s2, z2 = g[:, -2, -2] * q * q, g[:, -1, -1]
        if p:
            s2 = (s2 + p * p * g[:, 0, 0] + 2 * p * q * g[:, 0, 1]).clamp(min=0)
        if batch:
            s2, z2 = s2.sqrt().mean().square(), z2.sqrt().mean().square()
        k = 2 * a * snr**2 * torch.where(s2 > 0, z2 / torch.where(s2 > 0, s2, 1.0), 0.0).expand(x.shape[0])
        return torch.stack([1 + k * p, k * q, (2 * k).sqrt()], 1).to(x.dtype)

    def _log_prob(self, op: Op, step: int, z2: Tensor, elements: int) -> None:
        self.log_probs.append(gaussian_log_prob(z2, op.log_prob, elements, self.reduction))  # type: ignore[arg-type]
        self.log_prob_steps.append(step)
