"""Resampling of particles and the absorbing step in Triton: csrc/cuda/particles.cu and absorb.cu."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import configuration
from .elementary import const, exp
from .random import COUNTERS, GUMBEL, UNIFORM, counters_of, numbers_at, rows_at
from .strided import launching, load, store


@triton.jit(do_not_specialize=COUNTERS)
def absorb_kernel(
    tokens, logits, probability, out, seed_at, step_at, ids, length, size, token_batch, token_stride, logit_batch,
    logit_stride, probability_stride, mask_id, seed: tl.int64, step: tl.int64, first_id: tl.int64,
    SCALE: tl.constexpr, GREEDY: tl.constexpr, WIDE: tl.constexpr, SEED: tl.constexpr, STEP: tl.constexpr,
    IDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A position a program: whether it opens (stream 5), and the token that wins the Gumbel race (stream 6)."""
    position = tl.program_id(0).to(tl.int64)
    b = position // length
    l = position % length
    token = tl.load(tokens + b * token_batch + l * token_stride)
    seed, step, sample = counters_of(seed_at, step_at, ids, b, seed, step, first_id, True, SEED, STEP, IDS)
    lane = tl.arange(0, 4).to(tl.int64)
    u0, u1, u2, u3 = numbers_at(seed, lane * 0 + l // 4, step | 5 << 24, sample, UNIFORM, False)
    u = tl.where(lane == 0, u0, tl.where(lane == 1, u1, tl.where(lane == 2, u2, u3)))
    u = tl.sum(tl.where(lane == l % 4, u, 0.0), 0)
    if (token == mask_id) & (u <= tl.load(probability + b * probability_stride)):
        per: tl.constexpr = 2 if WIDE else 4
        real: tl.constexpr = tl.float64 if WIDE else tl.float32
        begin = l * size
        at = logits + b * logit_batch + l * logit_stride
        best = tl.full([BLOCK, per], float("-inf"), real)
        chosen = tl.zeros([BLOCK, per], tl.int64) + size
        for first in range(begin // per, (begin + size + per - 1) // per, BLOCK):
            block = first + tl.arange(0, BLOCK).to(tl.int64)
            v = (block * per)[:, None] + tl.arange(0, per)[None, :] - begin
            inside = (v >= 0) & (v < size) & (v != mask_id)
            score = load(at, v, inside, 0.0)
            score = score * const(score, SCALE)
            if not GREEDY:
                score += rows_at(seed, block, step | 6 << 24, sample, GUMBEL, WIDE)
            better = inside & (score > best)  # never with a nan
            best = tl.where(better, score, best)
            chosen = tl.where(better, v, chosen)
        best = tl.reshape(best, [BLOCK * per])
        chosen = tl.reshape(chosen, [BLOCK * per])
        found = tl.min(tl.where(best == tl.max(best, 0), chosen, size), 0)  # of equal scores the lowest
        token = tl.where(found < size, found, token)
    tl.store(out + position, token)


def absorb_step(
    tokens: Tensor,
    logits: Tensor,
    probability: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    mask_id: int,
    temperature: float,
    seed_value: int,
    step_value: int,
    first: int,
) -> Tensor:
    """Tokens after a step; the arguments are those of `_sde_absorb.op`."""
    out = torch.empty(tokens.shape, dtype=torch.int64, device=tokens.device)
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        logits = logits.contiguous()
    if out.numel() == 0:
        return out
    wide = logits.dtype is torch.float64
    chosen = configuration("random", torch.float64 if wide else torch.float32)
    with launching(tokens):
        absorb_kernel[(out.numel(),)](
            tokens, logits, probability, out, *(out if t is None else t for t in (seed, step, ids)), tokens.shape[1],
            logits.shape[2], *tokens.stride(), *logits.stride()[:2], probability.stride(0), mask_id,
            seed_value, step_value, first, SCALE=1.0 / temperature if temperature else 1.0, GREEDY=temperature == 0,
            WIDE=wide, SEED=seed is not None, STEP=step is not None, IDS=ids is not None, BLOCK=chosen.block,
            **chosen.options,
        )  # fmt: skip
    return out


# ---- resampling -----------------------------------------------------------------------------------------------------
RESIDUAL = tl.constexpr(3)


@triton.jit
def weight(logs, j, n, top):
    """exp(l_j - max l) in float64; 0 past the end and of -inf, which `exp` does not take."""
    gap = load(logs, j, j < n, float("-inf")).to(tl.float64) - top
    return tl.where(gap > float("-inf"), exp(gap), 0.0)


@triton.jit
def first_at_least(cumulative, x, n, rounds):
    """The first j with cumulative[j] >= x, at most n - 1."""
    low = x.to(tl.int64) * 0
    high = low + (n - 1)
    for _ in range(rounds):
        middle = (low + high) // 2
        below = tl.load(cumulative + middle) < x
        low = tl.where(below & (low < high), middle + 1, low)
        high = tl.where(below, high, middle)
    return tl.minimum(low, n - 1)


@triton.jit(do_not_specialize=(*COUNTERS, "n", "count"))
def resample_kernel(
    log_weights, ancestors, new_weights, sizes, work, seed_at, step_at, ids, n, count, rounds, seed: tl.int64,
    step: tl.int64, stream, first_id: tl.int64, METHOD: tl.constexpr, THRESHOLD: tl.constexpr, SEED: tl.constexpr,
    STEP: tl.constexpr, IDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A group a program: the effective size, cumulative weights through `work` (2 n), then the offspring's places."""
    g = tl.program_id(0).to(tl.int64)
    logs = log_weights + g * n
    lanes = tl.arange(0, BLOCK).to(tl.int64)
    tops = tl.full([BLOCK], float("-inf"), tl.float64)
    bad = tl.zeros([BLOCK], tl.int32)
    for at in range(0, n, BLOCK):
        j = at + lanes
        l = load(logs, j, j < n, float("-inf")).to(tl.float64)
        bad += (l != l).to(tl.int32)
        tops = tl.where(l > tops, l, tops)
    top = tl.max(tops, 0)
    fine = (tl.sum(bad, 0) == 0) & (top < float("inf")) & (top > float("-inf"))
    top = tl.where(fine, top, 0.0)
    sums = tl.zeros([BLOCK], tl.float64)
    squares = tl.zeros([BLOCK], tl.float64)
    for at in range(0, n, BLOCK):
        w = weight(logs, at + lanes, n, top)
        sums += w
        squares += w * w
    total = tl.sum(sums, 0)
    effective = tl.where(fine, total * total / tl.sum(squares, 0), float("nan"))
    store(sizes, g + lanes * 0, effective + lanes * 0.0, lanes == 0)
    wanted = fine
    if THRESHOLD is not None:
        wanted = fine & (effective < const(effective, THRESHOLD) * n.to(tl.float64))
    if wanted:
        seed, step, sample = counters_of(seed_at, step_at, ids, g, seed, step, first_id, True, SEED, STEP, IDS)
        cumulative = work + g * 2 * n
        rest = cumulative + n
        carry = total * 0.0
        carry_rest = carry
        for at in range(0, n, BLOCK):
            j = at + lanes
            w = weight(logs, j, n, top)
            if METHOD == RESIDUAL:
                expected = w * (count.to(tl.float64) / total)
                w = tl.floor(expected)
                part = expected - w
                tl.store(rest + j, carry_rest + tl.cumsum(part, 0), mask=j < n)
                carry_rest += tl.sum(part, 0)
            tl.store(cumulative + j, carry + tl.cumsum(w, 0), mask=j < n)
            tl.debug_barrier()  # the next tile goes on from what this one ended with, to the bit
            carry = tl.load(cumulative + tl.minimum(at + BLOCK, n) - 1)
            if METHOD == RESIDUAL:
                carry_rest = tl.load(rest + tl.minimum(at + BLOCK, n) - 1)
        for at in range(0, count, BLOCK):
            i = at + lanes
            place = i.to(tl.float64)
            index = i * 0 if METHOD == 0 else i
            u0, u1, _, _ = numbers_at(seed, index // 2, step | stream << 24, sample, UNIFORM, True)
            u = tl.where(index % 2 == 0, u0, u1)
            if METHOD == RESIDUAL:
                found = first_at_least(rest, u * carry_rest, n, rounds)
                found = tl.where(place < carry, first_at_least(cumulative, place + 1.0, n, rounds), found)
            elif METHOD == 2:
                found = first_at_least(cumulative, u * carry, n, rounds)
            else:
                found = first_at_least(cumulative, (place + u) / count.to(tl.float64) * carry, n, rounds)
            tl.store(ancestors + g * count + i, found, mask=i < count)
            store(new_weights, g * count + i, place * 0.0, i < count)
    else:
        for at in range(0, count, BLOCK):
            i = at + lanes
            tl.store(ancestors + g * count + i, i % n, mask=i < count)
            store(new_weights, g * count + i, load(logs, i % n, i < count, 0.0), i < count)


def resample(
    log_weights: Tensor,
    seed: Tensor | None,
    step: Tensor | None,
    ids: Tensor | None,
    method: int,
    threshold: float | None,
    seed_value: int,
    step_value: int,
    stream: int,
    first: int,
    found: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill ancestors, new log weights and effective sizes; the arguments are those of `_sde_particles.op`."""
    ancestors, new_weights, sizes = found
    groups, n = log_weights.shape
    if groups == 0:
        return found
    work = torch.empty(groups, 2 * n, dtype=torch.float64, device=log_weights.device)
    chosen = configuration("resample", torch.float32)
    with launching(log_weights):
        resample_kernel[(groups,)](
            log_weights.contiguous(), ancestors, new_weights, sizes, work,
            *(ancestors if t is None else t for t in (seed, step, ids)), n, ancestors.shape[1],
            (n - 1).bit_length() + 1, seed_value, step_value, stream, first, METHOD=method, THRESHOLD=threshold,
            SEED=seed is not None, STEP=step is not None, IDS=ids is not None, BLOCK=chosen.block, **chosen.options,
        )  # fmt: skip
    return found
