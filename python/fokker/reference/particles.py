"""Resampling of weighted particles in plain PyTorch: effective sample size, ancestors by four methods, the gather.

Groups of N particles each; all weights are logarithms, and only their differences inside a group matter. The
probabilities of each method: particle j has N w_j / sum w offspring on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import random

METHODS = ("systematic", "stratified", "multinomial", "residual")
RESAMPLING = int(random.Stream.RESAMPLING)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 over the last dimension: from 1 to N. nan where no weight is positive and finite."""
    top = log_weights.amax(-1, keepdim=True)
    w = (log_weights - top).exp()
    return w.sum(-1).square() / w.square().sum(-1)


def ancestors(
    log_weights: Tensor,
    method: str,
    count: int,
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = RESAMPLING,
    sample_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices (G, count) of the particles that offspring descend from, and the effective sample sizes (G,) in float64.

    log_weights (G, N). With C the cumulative weights divided by their sum and u float64 uniform numbers in (0, 1] of
    the group's counters, offspring i descends from the first j with C_j >= p_i:

        systematic   p_i = (i + u_0) / count
        stratified   p_i = (i + u_i) / count
        multinomial  p_i = u_i
        residual     floor(count w_j / sum w) copies of j in order, then multinomial draws (by their own u_i) from what
                     is left of each count w_j / sum w

    Degenerate groups (no positive weight, or nan or +inf among them): i mod N, and nan.
    Source: Douc, Cappe and Moulines 2005 (arXiv cs/0507025); Liu and Chen 1998 for the residual form.
    """
    groups, n = log_weights.shape
    l = log_weights.double()
    top = l.amax(-1, keepdim=True)
    w = (l - top).exp()
    w = torch.where(top.isfinite(), w, torch.nan)
    cumulative = w.cumsum(-1)
    total = cumulative[:, -1:]
    size = total[:, 0].square() / w.square().sum(-1)
    ids = torch.arange(groups, device=l.device) if sample_ids is None else sample_ids
    u = random.uniform(seed, step, stream, ids, 1 if method == "systematic" else count, dtype=torch.float64)
    i = torch.arange(count, dtype=torch.float64, device=l.device)
    if method == "residual":
        expected = w * (count / total)
        copies = expected.floor()
        ends, rest = copies.cumsum(-1), (expected - copies).cumsum(-1)
        fixed = torch.searchsorted(ends, (i + 1).expand(groups, count).contiguous())
        drawn = torch.searchsorted(rest, u * rest[:, -1:])
        found = torch.where(i < ends[:, -1:], fixed, drawn)
    else:
        p = u if method == "multinomial" else (i + u) / count
        found = torch.searchsorted(cumulative, p * total)
    found = found.clamp(max=n - 1)
    return torch.where(size.isnan()[:, None], (torch.arange(count, device=l.device) % n), found), size


def resample(
    log_weights: Tensor,
    method: str = "systematic",
    *,
    seed: int | Tensor,
    step: int | Tensor = 0,
    stream: int = RESAMPLING,
    sample_ids: Tensor | None = None,
    count: int | None = None,
    threshold: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(ancestors (G, count), new log weights (G, count), effective sample sizes (G,)) of log_weights (G, N).

    With a threshold only groups whose effective sample size is below threshold N are resampled; the others keep their
    particles and their weights, which accumulate. Weights of a resampled group are equal: 0.
    """
    n = log_weights.shape[1]
    count = n if count is None else count
    found, size = ancestors(log_weights, method, count, seed=seed, step=step, stream=stream, sample_ids=sample_ids)
    done = ~size.isnan() if threshold is None else size < threshold * n
    same = torch.arange(count, device=found.device) % n
    kept = log_weights[:, same]
    return (
        torch.where(done[:, None], found, same),
        torch.where(done[:, None], torch.zeros_like(kept), kept),
        size.to(log_weights.dtype),
    )


def gather(x: Tensor, ancestors: Tensor) -> Tensor:
    """x (..., N, *shape) by ancestors (..., M): particle ancestors[..., i] of the same group as entry i."""
    lead = ancestors.dim() - 1
    n, m = x.shape[lead], ancestors.shape[-1]
    index = ancestors.reshape(-1, m)
    base = torch.arange(len(index), device=x.device)[:, None] * n
    rows = x.reshape(len(index) * n, *x.shape[lead + 1 :])
    return rows.index_select(0, (index + base).flatten()).reshape(*ancestors.shape, *x.shape[lead + 1 :])
