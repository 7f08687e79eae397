r"""Masked (absorbing) discrete diffusion: the process, and a sampler that calls the network only where a token opens.

Each token is independently masked by time t with probability m(t), m(0) = 0, m(1) = 1. Back from t to s < t a masked
token opens with probability (m(t) - m(s)) / m(t), to a draw from the network's softmax, and stays as it is from then on
(Austin et al. 2021; Sahoo et al., "MDLM", 2024, equation 7; Shi et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import random
from ._sde_absorb import absorb_step
from ._sde_grids import make_times
from ._sde_loop import State, make_bar
from ._sde_processes import as_time
from .random import Stream

__all__ = ["Absorbing", "Unmask"]


class Absorbing:
    """The mask's share over time: schedule "linear", m = t (log-linear noise), or "cosine", m = sin(pi t / 2).

    ``mask_id``: the mask's token. The prior is the sequence of masks alone.
    """

    t_min, t_max = 0.0, 1.0
    to_zero = True
    grid = "uniform"

    def __init__(self, mask_id: int, schedule: str = "linear") -> None:
        if schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be 'linear' or 'cosine', got {schedule!r}")
        self.mask_id, self.schedule = int(mask_id), schedule

    def masked(self, t: Any) -> Tensor:
        """m(t), the probability that a token is masked."""
        t = as_time(t)
        return t if self.schedule == "linear" else torch.sin(math.pi / 2 * t)

    def alpha(self, t: Any) -> Tensor:
        """1 - m(t), the probability that it is not."""
        return 1 - self.masked(t)

    def rate(self, t: Any) -> Tensor:
        """m' / (1 - m), at which a token is masked: the drift of the forward jump process."""
        t = as_time(t)
        return self._slope(t) / (1 - self.masked(t))

    def reverse_rate(self, t: Any) -> Tensor:
        """m' / m, at which a masked token opens as time runs back."""
        t = as_time(t)
        return self._slope(t) / self.masked(t)

    def _slope(self, t: Tensor) -> Tensor:
        return torch.ones_like(t) if self.schedule == "linear" else math.pi / 2 * torch.cos(math.pi / 2 * t)

    def opening(self, t: Any, s: Any) -> Tensor:
        """(m(t) - m(s)) / m(t): the probability that a token masked at t is open at s < t."""
        later = self.masked(t)
        return (later - self.masked(s)) / later

    def diffuse(self, x0: Tensor, t: Any, *, seed: Any = None, step: Any = 0, sample_ids: Any = None) -> Tensor:
        """Tokens ``(B, L)`` at times ``()`` or ``(B,)``: masked where a uniform number is at most m(t)."""
        place = {"seed": seed, "step": step, "stream": Stream.TRAINING_NOISE, "sample_ids": sample_ids}
        u = random.uniform(x0.shape[0], tuple(x0.shape[1:]), dtype=torch.float32, device=x0.device, **place)
        return torch.where(u <= self.masked(t).float().to(x0.device).reshape(-1, 1), self.mask_id, x0)

    def prior_sample(self, batch: int, shape: Any, *, device: Any = None, **_: Any) -> Tensor:
        """Masks alone, ``(batch, *shape)`` of int64."""
        return torch.full((batch, *shape), self.mask_id, dtype=torch.int64, device=device)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """0 for masks alone, else -inf, ``(B,)`` in float64."""
        every = (x == self.mask_id).flatten(1).all(1)
        return torch.where(every, 0.0, -torch.inf).double()

    def __repr__(self) -> str:
        return f"Absorbing(mask_id={self.mask_id}, schedule={self.schedule!r})"


@dataclass(frozen=True)
class Unmask:
    """Tokens opened step by step: exact for any number of steps up to the independence of those opened together.

    Where and when a position opens is decided by counters alone, so it is known before the first call which steps open
    nothing: those call no network (``cache=False``: every step calls it, with the same samples as result). MDLM's cache
    keeps the logits until a token changes; here a network may depend on time.

    ``temperature``: of the softmax; 0: its largest.
    """

    temperature: float = 1.0
    cache: bool = True
    #: the options of `sample` that it heeds
    takes = frozenset(
        ("times", "grid", "condition", "start", "start_step", "sample_ids", "device", "callback", "progress", "full")
    )

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")

    def run(
        self, model: Callable[..., Tensor], process: Any, shape: Any, steps: int | None, seed: Any, *,
        times: Any = None, grid: Any = None, condition: Any = None, start: Any = None, start_step: int = 0,
        sample_ids: Any = None, device: Any = None, callback: Any = None, progress: bool = False, full: bool = False,
    ) -> Any:  # fmt: skip
        """What `sample` calls: model(tokens, t) -> logits ``(B, L, V)``; ``start``: tokens, masked where they are open
        to choice. The network is not called where a step opens no masked position of the whole batch."""
        from ._sde_sample import Run, _seed, _shape

        if not isinstance(process, Absorbing):
            raise TypeError(f"Unmask takes an Absorbing process, got {type(process).__name__}")
        size = _shape(shape)
        if len(size) != 2:
            raise ValueError(f"shape must be (B, L), got {size}")
        t = make_times(process, steps, times, grid or process.grid, False)
        if isinstance(start, State):
            start, start_step = start.x, start.step
        if not isinstance(start_step, int) or not 0 <= start_step < len(t):
            raise ValueError(f"start_step must be an int in [0, {len(t) - 1}], got {start_step!r}")
        tokens = process.prior_sample(size[0], size[1:], device=device) if start is None else start
        if tuple(tokens.shape) != size or tokens.dtype is not torch.int64:
            raise ValueError(f"start must be int64 of shape {size}, got {tokens.dtype} {tuple(tokens.shape)}")
        seed = _seed(seed, tokens.device)
        chances = [float(process.opening(t[i], t[i + 1])) for i in range(len(t) - 1)]
        wanted = self._wanted(tokens, process, chances, start_step, seed, sample_ids)
        clock = t.float()[:, None].repeat(1, size[0]).to(tokens.device)
        bar, calls = make_bar(progress, t, start_step), 0
        with torch.no_grad():
            for i in range(start_step, len(chances)):
                if wanted[i]:
                    logits = model(tokens, clock[i], **(condition or {}))
                    calls += 1
                    place = {"mask_id": process.mask_id, "seed": seed, "step": i, "sample_ids": sample_ids}
                    tokens = absorb_step(tokens, logits, chances[i], temperature=self.temperature, **place)
                if bar is not None:
                    bar.update()
                if callback is not None:
                    given = callback(State(i + 1, float(t[i + 1]), tokens))
                    tokens = tokens if given is None else given
                    if given is not None:
                        wanted = self._wanted(tokens, process, chances, i + 1, seed, sample_ids)
        if bar is not None:
            bar.close()
        return Run(tokens, calls, t, torch.empty(0, size[0], dtype=torch.float64, device="cpu"), ()) if full else tokens

    def _wanted(
        self, tokens: Tensor, process: Absorbing, chances: list[float], first: int, seed: Any, ids: Any
    ) -> list[bool]:
        """Which steps open a position: `absorb_step`'s own draws, looked at beforehand (one wait for the device)."""
        if not self.cache:
            return [True] * len(chances)
        closed = tokens == process.mask_id
        found = [torch.zeros((), dtype=torch.bool, device=tokens.device)] * first
        for i in range(first, len(chances)):
            place = {"seed": seed, "step": i, "stream": Stream.UNMASK, "sample_ids": ids, "device": tokens.device}
            u = random.uniform(tokens.shape[0], tuple(tokens.shape[1:]), dtype=torch.float32, **place)
            opens = closed & (u <= chances[i])
            found.append(opens.any())
            closed = closed & ~opens
        return torch.stack(found).tolist() if found else []
