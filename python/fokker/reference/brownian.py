"""A Brownian path on [0, 1] out of counters: any increment at any times, without a state, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .random import Stream, normal_at

#: The bridge halves [0, 1] this often; below, the law of W(t) at one time an interval is exact.
BROWNIAN_LEVELS = 18


def _half(t: Tensor, path: int) -> tuple[Tensor, Tensor]:
    # Only correctly rounded operations: the coefficients have the same bits on every device.
    level = torch.arange(1, BROWNIAN_LEVELS + 2, device=t.device)
    intervals = torch.ones_like(level).bitwise_left_shift(level - 1).double()
    x = t[:, None] * intervals
    k = torch.minimum(x.floor(), intervals - 1)
    u = x - k  # where t stands in its interval
    triangle = (0.25 / intervals).sqrt() * (1 - (2 * u - 1).abs())
    leaf = (u * (1 - u) / intervals).clamp(min=0).sqrt()
    c = torch.cat([t[:, None], torch.where(level <= BROWNIAN_LEVELS, triangle, leaf)], 1)
    nodes = k.nan_to_num(0.0).clamp(min=0).long() | level << 24
    nodes = torch.nn.functional.pad(nodes, (1, 0)) + (int(Stream.BROWNIAN.value) << 24 | path << BROWNIAN_LEVELS)
    return c, nodes


def brownian_terms(t0: Tensor, t1: Tensor, path: int) -> tuple[Tensor, Tensor]:
    """W(t1) - W(t0) as sum_j c_j z_j over independent normals: c (n, J) float64 and their second counter words (n, J).

    Levy's construction written out in Schauder functions: a Brownian path on [0, 1] is ``t z_0`` and, for each level
    l = 1 .. L, the triangle of height 2^{-(l+1)/2} over the dyadic interval of length 2^{1-l} that holds t, times that
    interval's normal; inside an interval of the last level, sqrt(u (1 - u) 2^{-L}) of one more. Level l and interval k
    have stream BROWNIAN + l and step k + 2^L path. Where t0 and t1 share an interval their coefficients are subtracted,
    so a short increment loses no digits. t0, t1 (n,) float64; outside [0, 1] the coefficients are nan.
    Source: Karatzas and Shreve, Brownian Motion and Stochastic Calculus, 2.3.
    """
    low, high = torch.minimum(t0, t1), torch.maximum(t0, t1)
    (c0, n0), (c1, n1) = _half(low, path), _half(high, path)
    same = n0 == n1
    c = torch.cat([torch.where(same, c1 - c0, -c0), torch.where(same, 0.0, c1)], 1)
    c = torch.where((t1 < t0)[:, None], -c, c)
    inside = (low >= 0) & (high <= 1)  # False where either is nan
    return torch.where(inside[:, None], c, torch.nan), torch.cat([n0, n1], 1)


def normal_sum(
    seed: int | Tensor,
    coefficients: Tensor,
    nodes: Tensor,
    sample_ids: Tensor | Sequence[int],
    n_elements: int,
    element_offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """sum_j c_j z_j (B, n_elements) with normals z_j of second counter word nodes_j; tables (B or 1, J)."""
    total: Tensor | float = 0.0
    for c, node in zip(coefficients.double().unbind(1), nodes.unbind(1), strict=True):
        if bool((c != 0).any()):
            z = normal_at(seed, node[:, None], sample_ids, n_elements, element_offset, dtype)
            total = total + torch.where(c[:, None] == 0, 0.0, c[:, None] * z)
    ids = sample_ids if isinstance(sample_ids, Tensor) else torch.as_tensor(sample_ids)
    return torch.as_tensor(total, device=ids.device).to(dtype).expand(len(ids), n_elements).clone()
