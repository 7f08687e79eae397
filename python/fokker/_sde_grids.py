r"""Time grids: where a sampler calls the network, from t_max down, as float64 tensors of ``steps + 1`` times.

Each function takes a process and the number of steps. The last time is the process's ``t_min``; with ``to_zero`` (as
`EDM` and `RectifiedFlow` have it by themselves) it is 0, where sigma = 0, the others being spread over ``steps`` times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._sde_processes import Process, as_time, positive

__all__ = ["check_times", "flow_shift", "karras", "log_snr", "logit_normal", "make_times", "times_of_sigmas", "uniform"]


def _fractions(process: Any, steps: int, to_zero: bool | None) -> tuple[Tensor, bool]:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be an int >= 1, got {steps!r}")
    zero = process.to_zero if to_zero is None else to_zero
    count = steps if zero else steps + 1
    return torch.linspace(0.0, 1.0, count, dtype=torch.float64, device="cpu"), zero


def _finish(times: Tensor, zero: bool) -> Tensor:
    return torch.cat([times, times.new_zeros(1)]) if zero else times


def uniform(process: Any, steps: int, *, to_zero: bool | None = None) -> Tensor:
    """Equal steps in time (with ``to_zero``: from t_max to 0 itself)."""
    _, zero = _fractions(process, steps, to_zero)
    return torch.linspace(process.t_max, 0.0 if zero else process.t_min, steps + 1, dtype=torch.float64, device="cpu")


def karras(process: Process, steps: int, *, rho: float = 7.0, to_zero: bool | None = None) -> Tensor:
    """Equal steps in (sigma / alpha)^{1 / rho} (Karras et al. 2022, equation 5)."""
    positive(rho=rho)
    u, zero = _fractions(process, steps, to_zero)
    high, low = (float(process.ratio(t)) ** (1 / rho) for t in (process.t_max, process.t_min))
    if not math.isfinite(high):
        raise ValueError("the grid needs alpha > 0 at t_max: give the process a smaller t_max, or use a uniform grid")
    times = process.time_of_ratio((high + u * (low - high)) ** rho)
    return _finish(_pinned(times, process), zero)


def log_snr(process: Process, steps: int, *, to_zero: bool | None = None) -> Tensor:
    """Equal steps in lambda = log(alpha / sigma) (Lu et al., "DPM-Solver", 2022, section 3.4)."""
    u, zero = _fractions(process, steps, to_zero)
    low, high = (float(process.log_snr(t)) for t in (process.t_max, process.t_min))
    if not math.isfinite(low):
        raise ValueError("the grid needs alpha > 0 at t_max: give the process a smaller t_max, or use a uniform grid")
    return _finish(_pinned(process.time_of_log_snr(low + u * (high - low)), process), zero)


def logit_normal(
    process: Any, steps: int, *, mean: float = 0.0, std: float = 1.0, to_zero: bool | None = None
) -> Tensor:
    """Quantiles of a logit-normal time between the ends: many steps in the middle (Esser et al. 2024, section 3.1)."""
    positive(std=std)
    _, zero = _fractions(process, steps, to_zero)
    last = 0.0 if zero else process.t_min
    u = torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64, device="cpu")
    return last + (process.t_max - last) * torch.sigmoid(mean + std * torch.special.ndtri(u))


def flow_shift(times: Tensor, shift: float) -> Tensor:
    """t -> shift t / (1 + (shift - 1) t) of times in [0, 1]: more steps at high noise (Esser et al. 2024, eq. 23)."""
    positive(shift=shift)
    times = as_time(times)
    if bool(((times < 0) | (times > 1)).any()):
        raise ValueError(f"flow_shift wants times in [0, 1], got {float(times.min()):.6g} to {float(times.max()):.6g}")
    return shift * times / (1 + (shift - 1) * times)


def _pinned(times: Tensor, process: Process) -> Tensor:
    """The ends exactly, without the rounding of there and back."""
    times[0] = process.t_max
    if len(times) > 1:
        times[-1] = process.t_min
    return times


def times_of_sigmas(process: Process, sigmas: Any) -> Tensor:
    """The times of given sigma / alpha, which must decrease and be finite and >= 0; 0 is time 0."""
    s = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").cpu()
    if s.dim() != 1 or len(s) < 2:
        raise ValueError(f"sigmas must be a sequence of two or more, got shape {tuple(s.shape)}")
    if not bool(s.isfinite().all()) or bool((s < 0).any()):
        raise ValueError("sigmas must be finite and >= 0")
    if bool((s.diff() >= 0).any()):
        at = int((s.diff() >= 0).nonzero()[0, 0])
        raise ValueError(f"sigmas must decrease, got {float(s[at]):.6g} before {float(s[at + 1]):.6g}")
    return torch.where(s == 0, 0.0, process.time_of_ratio(torch.where(s == 0, 1.0, s)))


def check_times(process: Any, times: Any, forward: bool = False) -> Tensor:
    """Times as a float64 tensor: two or more, finite, within [0, t_max], falling (``forward``: rising).

    ``(B, n)``: of each sample.
    """
    t = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach().cpu()
    if t.dim() == 2 and len(t):
        return torch.stack([check_times(process, row, forward) for row in t])
    if t.dim() != 1 or len(t) < 2:
        raise ValueError(f"times must be a sequence of two or more, got shape {tuple(t.shape)}")
    if not bool(t.isfinite().all()):
        raise ValueError("times must be finite")
    slack = 1e-9 * process.t_max
    if bool((t < 0).any()) or bool((t > process.t_max + slack).any()):
        raise ValueError(
            f"times must lie in [0, {process.t_max:.6g}], got {float(t.min()):.6g} to {float(t.max()):.6g}"
        )
    gaps = t.diff() if forward else -t.diff()
    if bool((gaps <= 0).any()):
        at = int((gaps <= 0).nonzero()[0, 0])
        word = "rise" if forward else "fall"
        raise ValueError(f"times must {word}, got {float(t[at]):.6g} before {float(t[at + 1]):.6g}")
    return t


GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform, "karras": karras, "log_snr": log_snr, "logit_normal": logit_normal,
}  # fmt: skip


def make_times(process: Any, steps: int | None, times: Any, grid: str | Callable[..., Tensor], forward: bool) -> Tensor:
    """The times of a run: those given, or a grid's."""
    if times is not None:
        shape = np.shape(times)  # of a tensor too, wherever it is
        count = shape[-1] if shape else 0
        if steps is not None and count != steps + 1:
            raise ValueError(f"times must hold steps + 1 = {steps + 1} numbers, got {count}")
        return check_times(process, times, forward)
    if steps is None:
        raise ValueError("give steps or times")
    if isinstance(grid, str) and grid not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join(GRIDS)} or a function, got {grid!r}")
    made = GRIDS[grid](process, steps) if isinstance(grid, str) else grid(process, steps)
    return check_times(process, made.flip(0) if forward and made[0] > made[-1] else made, forward)
