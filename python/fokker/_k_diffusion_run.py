"""k-diffusion's schedules, and a run of one of its samplers: tables, model calls, noise, callback and progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _schedulers_coefficients as formulas
from ._sde_step import affine_step
from .reference.random import Stream

Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]


def _schedule(values: np.ndarray, device: Any) -> Tensor:
    return torch.from_numpy(np.append(values, 0.0)).to(device=device, dtype=torch.float32)


def _range(n: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    if n < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(f"n >= 1 and 0 < sigma_min <= sigma_max expected, got {n}, {sigma_min} and {sigma_max}")
    return np.linspace(1.0, 0.0, n)


def get_sigmas_karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = "cpu") -> Tensor:
    """n sigmas from sigma_max to sigma_min, equally spaced in sigma^(1/rho), then 0 (Karras et al. 2022, eq. 5)."""
    ramp = _range(n, sigma_min, sigma_max)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _schedule((low + ramp * (high - low)) ** rho, device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> Tensor:
    """n sigmas from sigma_max to sigma_min, equally spaced in log sigma, then 0."""
    return get_sigmas_polyexponential(n, sigma_min, sigma_max, 1.0, device)


def get_sigmas_polyexponential(
    n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, device: Any = "cpu"
) -> Tensor:
    """n sigmas from sigma_max to sigma_min, log sigma a polynomial of degree rho in the step, then 0."""
    ramp = _range(n, sigma_min, sigma_max) ** rho
    return _schedule(sigma_min * (sigma_max / sigma_min) ** ramp, device)


class Rows:
    """Coefficients of all steps on the state's device, with and without their noise column."""

    def __init__(self, x: Tensor, lines: np.ndarray, noisy: bool) -> None:
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        self.table = torch.from_numpy(lines).to(device=x.device, dtype=wide)
        self.results = 1 if lines.ndim == 2 else lines.shape[1]
        self.noise = lines.reshape(len(lines), -1, lines.shape[-1])[:, 0, -1] if noisy else np.zeros(len(lines))
        self.quiet = self.table[..., :-1].contiguous() if noisy else self.table


class Run:
    """A run of a sampler: sigmas on the host in float64, model calls, noise, callback and progress bar."""

    def __init__(
        self, model: Model, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any,
        noise_sampler: NoiseSampler | None, seed: Any, sample_ids: Any,
    ) -> None:  # fmt: skip
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x must be a floating tensor, got {getattr(x, 'dtype', type(x).__name__)}")
        self.sigmas = (
            sigmas if isinstance(sigmas, Tensor) else torch.as_tensor(sigmas, dtype=torch.float32, device="cpu")
        )
        self.levels: np.ndarray = self.sigmas.detach().cpu().double().numpy()
        if self.levels.ndim != 1 or len(self.levels) < 2:
            raise ValueError(f"sigmas must have shape (steps + 1,), got {tuple(self.sigmas.shape)}")
        if not np.all(np.diff(self.levels) < 0) or self.levels[-1] < 0 or not math.isfinite(self.levels[0]):
            raise ValueError("sigmas must be finite, decreasing and not negative")
        self.x, self.model, self.extra_args = x, model, extra_args or {}
        self.callback, self.disable = callback, disable
        self.noise_sampler, self.seed, self.sample_ids = noise_sampler, seed, sample_ids
        self.now, self.to = self.levels[:-1], self.levels[1:]
        self.steps = len(self.now)

    def __iter__(self) -> Iterator[int]:
        try:
            from tqdm.auto import trange
        except ImportError:
            return iter(range(self.steps))
        return iter(trange(self.steps, disable=self.disable))

    def rows(self, *lines: list[Any], noisy: bool = False) -> Rows:
        """A table of steps with their results, each a list of columns (steps,); the last is of z if ``noisy``."""
        each = [np.stack(np.broadcast_arrays(np.zeros(self.steps), *columns)[1:], -1) for columns in lines]
        return Rows(self.x, each[0] if len(each) == 1 else np.stack(each, 1), noisy)

    def inputs(self, sigma: np.ndarray) -> Tensor:
        """The model's second argument at each step, (steps, B)."""
        dtype = self.x.dtype if self.x.dtype in (torch.float32, torch.float64) else torch.float32
        found = torch.from_numpy(np.ascontiguousarray(sigma)).to(device=self.x.device, dtype=dtype)
        return found[:, None].expand(-1, len(self.x)).contiguous()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x, sigma, **self.extra_args)

    def report(self, x: Tensor, i: int, denoised: Tensor, sigma_hat: Tensor | None = None) -> None:
        if self.callback is not None:
            sigma = self.sigmas[i]
            hat = sigma if sigma_hat is None else sigma_hat[0]
            self.callback({"x": x, "i": i, "sigma": sigma, "sigma_hat": hat, "denoised": denoised})

    def drawn(self, number: int, stream: int = Stream.PREDICTOR) -> dict[str, Any]:
        if self.seed is None:
            self.seed = int(torch.randint(0, 2**63 - 1, (1,)))
        return {"seed": self.seed, "step": number, "stream": int(stream), "sample_ids": self.sample_ids}

    def update(
        self, x: Tensor, terms: tuple[Tensor, ...], rows: Rows, i: int, to: float = 0.0, number: int | None = None
    ) -> Any:
        """The update of step i; ``to`` is the sigma that a noise sampler is told."""
        if rows.noise[i] == 0:
            return affine_step(x, terms, rows.quiet, row=i, results=rows.results)
        if self.noise_sampler is not None:
            noise = self.noise_sampler(self.sigmas[i], torch.full_like(self.sigmas[i], to))
            return affine_step(x, (*terms, noise), rows.table, row=i, results=rows.results)
        place = self.drawn(i if number is None else number)
        return affine_step(x, terms, rows.table, row=i, results=rows.results, **place)

    def churned(self, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float) -> tuple[np.ndarray, Any]:
        """(raised sigmas, a function that raises the state of step i to them)."""
        raised = formulas.churn(self.now, self.steps, s_churn, s_tmin, s_tmax)
        added = s_noise * np.sqrt(np.maximum(raised * raised - self.now * self.now, 0.0))
        rows = self.rows([1.0, added], noisy=True)

        def up(x: Tensor, i: int) -> Tensor:
            if raised[i] == self.now[i]:
                return x
            return affine_step(x, (), rows.table, row=i, **self.drawn(i, Stream.CHURN))

        return raised, up
