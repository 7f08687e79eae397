r"""Samplers as their papers write them: one plain loop each, which the tables of `fokker.sde` are held against.

Every function takes ``model(x, t)`` (the predicted x_0, with a number t), ``process`` (anything with alpha(t), sigma(t)
and, where named, rate(t) = f, variance_rate(t) = g^2 and time_of_ratio), the state x at times[0], the times, and
``noise(stream, number)``, standard normal tensors; it returns the state at times[-1]. The last step of one-step methods
is without noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Model = Callable[..., Tensor]
Noise = Callable[[int, int], Tensor]
PREDICTOR, CORRECTOR, CHURN = 0, 1, 2


def _level(process: Any, t: float) -> tuple[float, float, float]:
    """alpha, sigma and lambda = log(alpha / sigma)."""
    a, s = float(process.alpha(t)), float(process.sigma(t))
    return a, s, (math.log(a) - math.log(s) if a and s else math.copysign(math.inf, a - s))


def _score(model: Model, process: Any, x: Tensor, t: float) -> Tensor:
    a, s, _ = _level(process, t)
    return (a * model(x, t) - x) / s**2


def _epsilon(model: Model, process: Any, x: Tensor, t: float) -> Tensor:
    a, s, _ = _level(process, t)
    return (x - a * model(x, t)) / s


def euler_maruyama(model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Song et al. 2021, appendix E: the reverse SDE by Euler and Maruyama."""
    for i in range(len(times) - 1):
        t, dt = times[i], times[i] - times[i + 1]
        f, g2 = float(process.rate(t)), float(process.variance_rate(t))
        x = x - (f * x - g2 * _score(model, process, x, t)) * dt
        if i + 2 < len(times):
            x = x + math.sqrt(g2 * dt) * noise(PREDICTOR, i)
    return x


def reverse_diffusion(model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Song et al. 2021, equation 46: the forward discretisation turned around."""
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        variance = s**2 - (a / a1 * s1) ** 2
        x = (2 - a / a1) * x + variance * _score(model, process, x, times[i])
        if i + 2 < len(times):
            x = x + math.sqrt(variance) * noise(PREDICTOR, i)
    return x


def ancestral(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, large: bool = False
) -> Tensor:
    """Ho et al. 2020, equations 6 and 7, for any alpha and sigma: a draw from q(x' | x, x_0)."""
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        forward = s**2 - (a / a1) ** 2 * s1**2
        mean = (a / a1) * s1**2 / s**2 * x + a1 * forward / s**2 * model(x, times[i])
        x = mean
        if i + 2 < len(times):
            x = mean + math.sqrt(forward if large else s1**2 * forward / s**2) * noise(PREDICTOR, i)
    return x


def langevin_corrector(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, snr: float, rule: str, batch: bool
) -> Tensor:
    """Song et al. 2021, algorithms 3 and 5 with one correction a level, then `reverse_diffusion`'s step."""
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        score, z = _score(model, process, x, times[i]), noise(CORRECTOR, i)
        if rule == "std":
            k = torch.full((x.shape[0],), 2 * (a / a1) ** 2 * (snr * s) ** 2, dtype=x.dtype)
        else:
            up, down = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
            up, down = (up.mean(), down.mean()) if batch else (up, down)
            k = (2 * (a / a1) ** 2 * (snr * up / down) ** 2).expand(x.shape[0])
        k = k.reshape(-1, *(1,) * (x.dim() - 1))
        x = x + k * score + torch.sqrt(2 * k) * z
        variance = s**2 - (a / a1 * s1) ** 2
        x = (2 - a / a1) * x + variance * _score(model, process, x, times[i])
        if i + 2 < len(times):
            x = x + math.sqrt(variance) * noise(PREDICTOR, i)
    return x


def ddim(model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, eta: float = 0.0) -> Tensor:
    """Song, Meng and Ermon 2021, equation 12."""
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        d = model(x, times[i])
        v = eta * s1 / s * math.sqrt(max(s**2 - (a / a1 * s1) ** 2, 0.0))
        x = a1 * d + math.sqrt(s1**2 - v**2) * (x - a * d) / s
        if v and i + 2 < len(times):
            x = x + v * noise(PREDICTOR, i)
    return x


def euler_ancestral(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, eta: float = 1.0
) -> Tensor:
    """Euler to sigma_down on x / alpha, then noise of sigma_up."""
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        old, new, u = s / a, s1 / a1, x / a
        up = min(new, eta * math.sqrt(new**2 * (old**2 - new**2) / old**2))
        down = math.sqrt(new**2 - up**2)
        u = u + (u - model(x, times[i])) / old * (down - old)
        x = a1 * (u + up * noise(PREDICTOR, i)) if up and i + 2 < len(times) else a1 * u
    return x


def edm_heun(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, churn: float = 0.0,
    s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Karras et al. 2022, algorithm 2, on x / alpha."""
    n = len(times) - 1
    for i in range(n):
        (a, s, _), (a1, s1, _) = (_level(process, t) for t in times[i : i + 2])
        old, new, u, t = s / a, s1 / a1, x / a, times[i]
        if churn and s_min <= old <= s_max:
            hat = old * (1 + min(churn / n, math.sqrt(2) - 1))
            u = u + math.sqrt(hat**2 - old**2) * s_noise * noise(CHURN, i)
            old, t = hat, float(process.time_of_ratio(hat))
        d = (u - model(float(process.alpha(t)) * u, t)) / old
        nxt = u + (new - old) * d
        if new > 0:
            d1 = (nxt - model(a1 * nxt, times[i + 1])) / new
            nxt = u + (new - old) * 0.5 * (d + d1)
        x = a1 * nxt
    return x


def probability_flow(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, heun: bool = False
) -> Tensor:
    """Song et al. 2021, equation 13, by Euler's or Heun's steps in time."""

    def slope(x: Tensor, t: float) -> Tensor:
        return float(process.rate(t)) * x - 0.5 * float(process.variance_rate(t)) * _score(model, process, x, t)

    for t, t1 in itertools.pairwise(times):
        d = slope(x, t)
        nxt = x + (t1 - t) * d
        x = x + (t1 - t) * 0.5 * (d + slope(nxt, t1)) if heun and float(process.sigma(t1)) else nxt
    return x


def dpm_solver_pp_multistep(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, order: int = 2, eta: float = 0.0,
    kind: str = "published",
) -> Tensor:  # fmt: skip
    """DPM-Solver++(1M, 2M, 3M) and their SDE forms: Lu et al. 2022, algorithm 2, equations 14 to 19."""
    old: list[tuple[Tensor, float]] = []
    for i in range(len(times) - 1):
        (_, s, l), (a1, s1, l1) = (_level(process, t) for t in times[i : i + 2])
        m, h = model(x, times[i]), l1 - l
        hh = (1 + eta) * h
        drop = -math.expm1(-hh)
        y = s1 / s * math.exp(-eta * h) * x + a1 * drop * m if math.isfinite(h) else a1 * m
        k = min(order, i + 1) if math.isfinite(h) else 1
        second = 1 - drop / hh if math.isfinite(h) else 0.0
        if k == 2:
            r = (l - old[0][1]) / h
            y = y + a1 * (second if kind == "exact" else 0.5 * drop) * (m - old[0][0]) / r
        elif k == 3:
            r0, r1 = (l - old[0][1]) / h, (old[0][1] - old[1][1]) / h
            d10, d11 = (m - old[0][0]) / r0, (old[0][0] - old[1][0]) / r1
            d2 = (d10 - d11) / (r0 + r1)
            d1 = d10 + r0 * d2
            third = 0.5 - second / hh
            y = y + a1 * second * d1 + (2 if kind == "exact" else 1) * a1 * third * d2
        if eta and math.isfinite(h):  # up to the level's own noise, in the last step too
            y = y + s1 * math.sqrt(-math.expm1(-2 * eta * h)) * noise(PREDICTOR, i)
        old = [(m, l), *old][:2]
        x = y
    return x


def dpm_solver_singlestep(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, order: int = 2, data: bool = True
) -> Tensor:
    """DPM-Solver-2, -3 (Lu et al. 2022, algorithms 1, 2) and DPM-Solver++(2S), (3S) (``data``; algorithm 1 there)."""

    def predict(x: Tensor, t: float) -> Tensor:
        return model(x, t) if data else _epsilon(model, process, x, t)

    for i in range(len(times) - 1):
        (a, s, l), (a1, s1, l1) = (_level(process, t) for t in times[i : i + 2])
        if not s1:  # infinite in lambda
            return a1 * model(x, times[i])
        h, m = l1 - l, predict(x, times[i])

        def move(x: Tensor, m: Tensor, at: tuple[float, float, float], a=a, s=s, l=l) -> Tensor:
            b, r, k = at
            if data:
                return r / s * x - b * math.expm1(l - k) * m
            return b / a * x - r * math.expm1(k - l) * m

        def between(share: float, l=l, h=h) -> tuple[float, tuple[float, float, float]]:
            t = float(process.time_of_ratio(math.exp(-(l + share * h))))
            return t, _level(process, t)

        sign, size = (-h, a1) if data else (h, s1)
        if order == 2:
            t_mid, mid = between(0.5)
            x = move(x, predict(move(x, m, mid), t_mid), (a1, s1, l1))
            continue
        t_1, one = between(1 / 3)
        t_2, two = between(2 / 3)
        m1 = predict(move(x, m, one), t_1)
        z2, g2 = (2 / 3 * sign), (two[0] if data else two[1])
        u2 = move(x, m, two) - g2 * 2 * (math.expm1(z2) / z2 - 1) * (m1 - m)
        m2 = predict(u2, t_2)
        x = move(x, m, (a1, s1, l1)) - size * 1.5 * (math.expm1(sign) / sign - 1) * (m2 - m)
    return x


def unipc(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, order: int = 2, solver: str = "bh2"
) -> Tensor:
    """Zhao et al. 2023, algorithms 1 and 5 with data prediction: predict, evaluate, correct without a new call."""
    grid = [_level(process, t) for t in times]
    seen = [model(x, times[0])]  # the newest first

    def step(x: Tensor, i: int, p: int, at_end: Tensor | None) -> Tensor:
        (_, s, l), (a1, s1, l1) = grid[i], grid[i + 1]
        h = l1 - l
        base = s1 / s * x - a1 * math.expm1(-h) * seen[0]
        ratios = [(grid[i - k][2] - l) / h for k in range(1, p)] + ([1.0] if at_end is not None else [])
        values = [*seen[1:p], *([at_end] if at_end is not None else [])]
        if not ratios:
            return base
        b_h = -h if solver == "bh1" else math.expm1(-h)
        value, factor, right = math.expm1(-h) / -h - 1, 1.0, []
        for j in range(1, len(ratios) + 1):
            factor *= j
            right.append(value * factor / b_h)
            value = value / -h - 1 / (factor * (j + 1))
        rows = torch.tensor([[r ** (j - 1) for r in ratios] for j in range(1, len(ratios) + 1)], dtype=torch.float64)
        rho = torch.linalg.solve(rows, torch.tensor(right, dtype=torch.float64)) if len(ratios) > 1 else [0.5]
        total = sum(float(c) * (v - seen[0]) / r for c, v, r in zip(rho, values, ratios, strict=True))
        return base - a1 * b_h * total

    for i in range(len(times) - 1):
        last = not math.isfinite(grid[i + 1][2])
        p = 1 if last else min(order, i + 1)
        guess = float(grid[i + 1][0]) * seen[0] if last else step(x, i, p, None)
        if i + 2 == len(times):
            return guess
        new = model(guess, times[i + 1])
        x = step(x, i, p, new)
        seen = [new, *seen][: max(order, 2)]
    return x


def adams_bashforth(
    model: Model, process: Any, x: Tensor, times: Sequence[float], noise: Noise, order: int = 3,
    variable: str = "log_rho",
) -> Tensor:  # fmt: skip
    """DEIS (Zhang and Chen 2023, equation 15) and linear multistep: epsilon's polynomial integrated by small sums."""
    grid = [_level(process, t) for t in times]
    seen: list[Tensor] = []
    places: list[float] = []
    for i in range(len(times) - 1):
        (a, s, _), (a1, s1, _) = grid[i], grid[i + 1]
        seen = [_epsilon(model, process, x, times[i]), *seen][:order]
        here = {"log_rho": math.log(s / a), "rho": s / a, "time": times[i]}[variable]
        places = [here, *places][:order]
        if not s1 and variable != "rho":  # infinite in log rho
            return a1 * model(x, times[i])
        rho = torch.linspace(s / a, s1 / a1, 20001, dtype=torch.float64)
        v = {"log_rho": rho.log, "rho": rho.clone, "time": lambda rho=rho: process.time_of_ratio(rho)}[variable]()
        total = torch.zeros_like(x)
        for j, m in enumerate(seen):
            base = torch.ones_like(rho)
            for k, other in enumerate(places):
                if k != j:
                    base = base * (v - other) / (places[j] - other)
            ends = base[0] + base[-1] + 4 * base[1::2].sum() + 2 * base[2:-1:2].sum()  # Simpson's rule
            total = total + float(ends * (rho[1] - rho[0]) / 3) * m
        x = a1 * (x / a + total)
    return x
