r"""Absorbing discrete diffusion as any-order conditionals: RADD's samplers, expected calls and likelihood bounds.

J. Ou et al., "Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data", ICLR 2025
(arXiv 2406.03736); score entropy: Lou et al. 2024 (arXiv 2310.16834). Tokens ``(B, L)`` are masked by time t with
probability m(t) each, alpha = 1 - m. For a masked position i and the open ones x_o (theorem 1),

    concrete score   p_t(x with i = v) / p_t(x) = alpha / (1 - alpha) p_0(v | x_o),

so a network c(tokens) of the conditionals alone, logits ``(B, L, V)``, no time among its arguments, is all there is to
learn. A step that opens nothing leaves its input, and so its output, as they were: the call is left out, and

    E[calls of n steps] = sum_i 1 - (1 - (m(t_{i-1}) - m(t_i)) / m(T))^L        (log-linear: n (1 - (1 - 1/n)^L)).

Four bounds on -log p_0(x), equal in expectation for any c (theorem 2), with l ~ U(0, 1) a masking rate:

    any_order   E over orders of  sum_i -log c(x_i | those before it in the order)
    lambda_dce  E 1/l sum_{i masked} -log c(x_i | x_o)
    t_dce       E over t ~ U(0, T) of  m'(t) / m(t) sum_{i masked} -log c(x_i | x_o)
    dse         E over t of  m'/(1-m) sum_{i masked} [sum_v s_v - r log s_{x_i} + r log r - r],  r = alpha / (1 - alpha)

The sampler is `fokker.sde.Unmask` over the fused `absorb_step`. What differs from the paper's code: draws race with
-log1p(-u) from all 32 bits (there -log(u + 1e-10) in float32, which starves tokens below 1e-6), Euler's and the exact
step are one (they agree for log-linear noise), l is stratified over the batch, and no call is made for the whole batch
where none of its positions opens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random, sde
from .._sde_grids import check_times
from .._sde_processes import as_time
from ..random import Stream

__all__ = [
    "any_order", "concrete_score", "dse", "expected_calls", "lambda_dce", "sample", "sample_any_order", "t_dce",
]  # fmt: skip

TITLE = "masked tokens as conditionals of clean data: cached and any-order samplers, likelihood bounds"
PAPER = "Ou et al., ICLR 2025, arXiv 2406.03736"
EXAMPLE = "absorbing.sample(model, sde.Absorbing(mask_id=50257), (8, 1024), steps=256, seed=0, full=True)"

Model = Callable[[Tensor], Tensor]


def _tokens(x: Any, mask_id: int, clean: bool = False) -> Tensor:
    if not isinstance(x, Tensor) or x.dtype is not torch.int64:
        raise TypeError(f"tokens must be int64, got {getattr(x, 'dtype', type(x).__name__)}")
    if x.dim() != 2 or not x.numel():
        raise ValueError(f"tokens must be (B, L) with B, L >= 1, got {tuple(x.shape)}")
    if clean and not x.is_cuda and bool((x == mask_id).any()):
        raise ValueError(f"tokens of data must not hold the mask, {mask_id}")
    return x


def _logits(model: Model, x: Tensor) -> Tensor:
    found = model(x)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        seen = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"model must return a float tensor, got {seen}")
    if found.dim() != 3 or found.shape[:2] != x.shape:
        raise ValueError(f"model must return logits {(*x.shape, 'V')}, got {tuple(found.shape)}")
    return found


def _log_probs(model: Model, x: Tensor, mask_id: int) -> Tensor:
    """log c ``(B, L, V)``, the mask left out of the softmax; a NaN is an error where the host may look, on a CPU."""
    logits = _logits(model, x)
    if not logits.is_cuda and bool(logits.isnan().any()):
        raise ValueError("model must not return NaN logits")
    if 0 <= mask_id < logits.shape[-1]:
        at = torch.arange(logits.shape[-1], device=x.device) == mask_id
        logits = logits.masked_fill(at, -math.inf)
    return logits.log_softmax(-1)


def concrete_score(model: Model, tokens: Tensor, process: sde.Absorbing, t: float | Tensor) -> Tensor:
    """alpha / (1 - alpha) c(v | x_o) at masked positions, 0 at open ones, ``(B, L, V)``; t a number or ``(B,)``."""
    closed = _tokens(tokens, process.mask_id) == process.mask_id
    log_c = _log_probs(model, tokens, process.mask_id)
    m = process.masked(as_time(t))
    ratio = ((1 - m) / m).to(log_c).reshape(-1, 1, 1)
    return torch.where(closed[..., None], ratio * log_c.exp(), 0.0)


# ---- sampling -------------------------------------------------------------------------------------------------------
def sample(
    model: Model, process: sde.Absorbing, shape: Sequence[int], steps: int | None = None, seed: Any = None, *,
    temperature: float = 1.0, cache: bool = True, **options: Any,
) -> Any:  # fmt: skip
    """Tokens ``(B, L)`` in ``steps`` steps; with ``full=True`` a `fokker.sde.Run` whose ``calls`` counts the network's.

    The last step opens all that is left. ``start``: tokens with masks where they are open to choice. Options as in
    `fokker.sde.sample`, temperature and cache as in `fokker.sde.Unmask`.
    """
    sampler = sde.Unmask(temperature, cache)
    return sde.sample(lambda x, t: _logits(model, x), process, sampler, shape, steps, seed, **options)


def expected_calls(
    length: int, process: sde.Absorbing, steps: int | None = None, *, times: Any = None, batch: int = 1
) -> float:
    """The mean number of calls of `sample` from masks alone, for ``batch`` samples of ``length`` that share calls."""
    if length < 1 or batch < 1:
        raise ValueError(f"length and batch must be >= 1, got {length} and {batch}")
    if times is None:
        if steps is None or steps < 1:
            raise ValueError(f"give times, or steps >= 1, got {steps}")
        times = torch.linspace(process.t_max, 0.0, steps + 1, dtype=torch.float64, device="cpu")
    m = process.masked(check_times(process, times))
    opens = -m.diff() / m[0]
    return float(-torch.expm1(length * batch * torch.log1p(-opens.clamp(max=1 - 1e-16))).sum())


def sample_any_order(
    model: Model, mask_id: int, shape: Sequence[int], seed: int, *, per_call: int = 1, start: Tensor | None = None,
    temperature: float = 1.0, sample_ids: Any = None, device: Any = None,
) -> Tensor:  # fmt: skip
    """Tokens opened in a random order of each sample's own, ``per_call`` at a time: exact with one, L / per_call calls.

    The orders are those of the uniform numbers of stream UNMASK, step L; tokens race as in `fokker.sde.absorb_step`.
    """
    size = tuple(int(n) for n in shape)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"shape must be (B, L) with B, L >= 1, got {size}")
    if per_call < 1:
        raise ValueError(f"per_call must be >= 1, got {per_call}")
    x = torch.full(size, mask_id, dtype=torch.int64, device=device) if start is None else _tokens(start, mask_id)
    if tuple(x.shape) != size:
        raise ValueError(f"start must have shape {size}, got {tuple(x.shape)}")
    place = {"seed": seed, "step": size[1], "sample_ids": sample_ids, "device": x.device}
    u = random.uniform(*size, stream=Stream.UNMASK, dtype=torch.float64, **place)
    # open positions come first and are passed over
    rank = torch.where(x == mask_id, u, -1.0).argsort(1).argsort(1) - (x != mask_id).sum(1, keepdim=True)
    held = mask_id + 1 if mask_id < 2**62 else mask_id - 1
    with torch.no_grad():
        for i in range(0, int(rank.max()) + 1, per_call):
            now = (rank >= i) & (rank < i + per_call)
            given = torch.where(now, x, held)  # what does not hold the mask stays closed to this step
            drawn = sde.absorb_step(
                given, _logits(model, x), 1.0, mask_id=mask_id, seed=seed, step=i, sample_ids=sample_ids,
                temperature=temperature,
            )  # fmt: skip
            x = torch.where(now, drawn, x)
    return x


# ---- bounds on -log p, in nats of a sequence ------------------------------------------------------------------------
def _rates(batch: int, seed: Any, step: Any, device: Any) -> Tensor:
    """(u + i) / B: uniform numbers in (0, 1], one from each of B strata, float64; the strata are dealt at random."""
    place = {"seed": seed, "step": step, "stream": Stream.TRAINING_TIME, "dtype": torch.float64, "device": device}
    u = random.uniform(batch, 2, **place)
    return (u[:, 0] + u[:, 1].argsort()) / batch


def _masked(x: Tensor, mask_id: int, rates: Tensor, seed: Any, step: Any) -> tuple[Tensor, Tensor]:
    """x with each position masked at its sample's rate, and where."""
    place = {"seed": seed, "step": step, "stream": Stream.TRAINING_NOISE, "dtype": torch.float64, "device": x.device}
    closed = random.uniform(*x.shape, **place) <= rates[:, None]
    return torch.where(closed, mask_id, x), closed


def _own(log_c: Tensor, x: Tensor, closed: Tensor) -> Tensor:
    """log c(x_i | x_o) where closed, else 0."""
    at = log_c.gather(-1, torch.where(closed, x, 0)[..., None])[..., 0]
    return torch.where(closed, at, 0.0)


def lambda_dce(model: Model, tokens: Tensor, mask_id: int, *, seed: Any = None, step: Any = 0) -> Tensor:
    """1/l sum_{masked} -log c, ``(B,)``: unbiased for a bound on -log p_0(x), differentiable; in nats a sequence."""
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    rates = _rates(len(_tokens(tokens, mask_id, True)), seed, step, tokens.device)
    x, closed = _masked(tokens, mask_id, rates, seed, step)
    own = _own(_log_probs(model, x, mask_id), tokens, closed)
    return -own.sum(1) / rates.to(own.dtype)


def t_dce(model: Model, tokens: Tensor, process: sde.Absorbing, *, seed: Any = None, step: Any = 0) -> Tensor:
    """The same over times t ~ U(0, 1) of a process, weighted by m'/m, ``(B,)``."""
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    t = _rates(len(_tokens(tokens, process.mask_id, True)), seed, step, tokens.device)
    x, closed = _masked(tokens, process.mask_id, process.masked(t), seed, step)
    own = _own(_log_probs(model, x, process.mask_id), tokens, closed)
    return -own.sum(1) * process.reverse_rate(t).to(own.dtype)


def dse(
    score: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    process: sde.Absorbing,
    *,
    seed: Any = None,
    step: Any = 0,
) -> Tensor:
    """Denoising score entropy of log concrete scores ``(B, L, V)`` of (tokens, t ``(B,)``): ``(B,)``, >= 0.

    For any scores, normalised or not (Lou et al. 2024); those of `concrete_score` make it `t_dce` itself. What a score
    says of the mask does not count.
    """
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    t = _rates(len(_tokens(tokens, process.mask_id, True)), seed, step, tokens.device)
    x, closed = _masked(tokens, process.mask_id, process.masked(t), seed, step)
    log_s = _logits(lambda y: score(y, t), x)
    own = _own(log_s, tokens, closed)
    if 0 <= process.mask_id < log_s.shape[-1]:
        at = torch.arange(log_s.shape[-1], device=x.device) == process.mask_id
        log_s = log_s.masked_fill(at, -math.inf)
    m = process.masked(t).to(own)
    r = ((1 - m) / m)[:, None]
    total = log_s.exp().sum(-1) - r * own + torch.xlogy(r, r) - r
    return torch.where(closed, total, 0.0).sum(1) * process.rate(t).to(own)


def any_order(model: Model, tokens: Tensor, mask_id: int, orders: Tensor) -> Tensor:
    """sum_i -log c(x_i | those before it) along given orders, ``(B,)``: -log p_0(x) itself for the true conditionals.

    orders: ``(B, L)`` int64, permutations; L calls. Differentiable.
    """
    if orders.shape != _tokens(tokens, mask_id, True).shape or orders.dtype is not torch.int64:
        raise ValueError(f"orders must be int64 {tuple(tokens.shape)}, got {orders.dtype} {tuple(orders.shape)}")
    rank = orders.argsort(1)
    wrong = orders.gather(1, rank) != torch.arange(orders.shape[1], device=orders.device)
    if not wrong.is_cuda and bool(wrong.any()):
        raise ValueError("orders must hold permutations of 0 .. L - 1")
    total: Any = 0.0
    for i in range(tokens.shape[1]):
        now = rank == i
        log_c = _log_probs(model, torch.where(rank >= i, mask_id, tokens), mask_id)
        total = total - _own(log_c, tokens, now).sum(1)
    return total
