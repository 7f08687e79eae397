"""The update of masked (absorbing) discrete diffusion in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import random

UNMASK, TOKEN_RACE = int(random.Stream.UNMASK), int(random.Stream.TOKEN_RACE)


def absorb_step(
    tokens: Tensor,
    logits: Tensor,
    probability: Tensor,
    *,
    mask_id: int,
    seed: int | Tensor,
    step: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """tokens (B, L) after a step: each masked one is drawn from softmax(logits / temperature) with a probability (B,).

    A position is unmasked if its uniform number (stream 5, element l) is at most the probability; its token is
    argmax_v(logits_v / temperature + gumbel_v) with the numbers of stream 6 (element l V + v), mask_id left out, the
    lowest index of equal ones. Where no logit is above -inf the mask stays. temperature 0: the largest logit.
    logits (B, L, V), computed in float64 for float64 logits, else in float32.
    Source: Gumbel 1954; Ou et al. 2024 (arXiv 2406.03736).
    """
    batch, length, size = logits.shape
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    ids = torch.arange(batch, device=tokens.device) if sample_ids is None else sample_ids
    u = random.uniform(seed, step, UNMASK, ids, length)
    open_now = (tokens == mask_id) & (u <= probability.to(torch.float32)[:, None])
    score = logits.to(wide)
    if temperature > 0:
        race = random.gumbel(seed, step, TOKEN_RACE, ids, length * size, dtype=wide).reshape(logits.shape)
        score = score * (1.0 / temperature) + race
    score = torch.where(score.isnan(), -torch.inf, score)
    if 0 <= mask_id < size:
        score = torch.where(torch.arange(size, device=score.device) == mask_id, -torch.inf, score)
    best, drawn = score.max(-1)
    return torch.where(open_now & (best > -torch.inf), drawn, tokens)
