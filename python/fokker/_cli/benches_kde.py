"""Density sums beside their opponents: torch.compile over chunked products, flash attention, scikit-learn, SciPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import kde
from .benches import Bench

_N = 10_000
_ROWS = 512  # queries a chunk of the product form: its logits stay in the cache
LOG_PROB = {2: 4.0, 16: 3.0, 64: 1.7, 784: 1.15}
SCORE = {2: 8.0, 16: 1.9, 64: 1.3, 784: 1.05}
SKLEARN = {2: 50.0, 16: 35.0, 64: 25.0, 784: 18.0}
SCIPY = {2: 35.0, 16: 28.0, 64: 23.0, 784: 22.0}


def _chunk(x: Tensor, y: Tensor, half_norm: Tensor, inverse: Tensor) -> Tensor:
    logits = torch.addmm(-half_norm * inverse, x * inverse, y.t())
    return torch.logsumexp(logits, 1) - 0.5 * inverse * x.square().sum(1)


def product_form(x: Tensor, y: Tensor, h: Tensor, chunk: Callable[..., Tensor]) -> Tensor:
    """log p by a matrix product and a log-sum-exp, chunk by chunk."""
    inverse = h.reciprocal().square()
    half_norm = 0.5 * y.square().sum(1)
    parts = [chunk(rows, y, half_norm, inverse) for rows in x.split(_ROWS)]
    constant = math.log(len(y)) + x.shape[1] * (torch.log(h) + 0.5 * math.log(2 * math.pi))
    return torch.cat(parts) - constant


def attention_form(x: Tensor, y: Tensor, h: float) -> Tensor:
    """The score by flash attention on augmented vectors: q = [x / h^2, 1], k = [y, -|y|^2 / 2h^2]."""
    q = torch.cat([x / h**2, torch.ones(len(x), 1)], 1)[None, None]
    k = torch.cat([y, -y.square().sum(1, keepdim=True) / (2 * h * h)], 1)[None, None]
    v = torch.cat([y, torch.zeros(len(y), 1)], 1)[None, None]
    mean = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, :, :-1]
    return (mean - x) / h**2


def _data(dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(dim)
    x, y = (torch.randn(_N, dim, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    return x, y, 0.5 * math.sqrt(dim)


def benches() -> Iterator[Bench]:
    """All of them; the slow opponents (scikit-learn, SciPy) see fewer queries."""
    compiled = torch.compile(_chunk, dynamic=False)
    for dim in (2, 16, 64, 784):
        x, y, h = _data(dim, torch.float32)
        size = torch.tensor(h)
        pairs = _N * _N
        yield Bench(
            f"KDE log_prob float32, d={dim}",
            {
                "fokker": functools.partial(kde.log_prob, x, y, h),
                "fokker high": functools.partial(kde.log_prob, x, y, h, precision="high"),
                "torch.compile": functools.partial(product_form, x, y, size, compiled),
                "torch": functools.partial(product_form, x, y, size, _chunk),
            },
            {"torch.compile": LOG_PROB[dim]},
            elements=pairs,
            flops=2.0 * dim * pairs,
            exps=pairs,
            note="10,000 x 10,000 pairs; chunked product and log-sum-exp",
        )
        yield Bench(
            f"KDE log_prob + score float32, d={dim}",
            {
                "fokker": functools.partial(kde.evaluate, x, y, h),
                "flash attention (score)": functools.partial(attention_form, x, y, h),
            },
            {"flash attention (score)": SCORE[dim]},
            elements=pairs,
            flops=4.0 * dim * pairs,
            exps=pairs,
        )
        yield from _backward(dim, x, y, h)
        yield from _slow(dim)


def _backward(dim: int, x: Tensor, y: Tensor, h: float) -> Iterator[Bench]:
    a, b = x[:4000].clone().requires_grad_(), y[:4000].clone().requires_grad_()

    def both() -> Any:
        return torch.autograd.grad(kde.log_prob(a, b, h).sum(), (a, b))

    yield Bench(
        f"KDE log_prob forward + backward float32, d={dim}",
        {"fokker": both, "forward": functools.partial(kde.log_prob, a.detach(), b.detach(), h)},
        {"forward": 0.25},  # backward at most three forwards
        elements=16_000_000,
    )


def _slow(dim: int) -> Iterator[Bench]:
    try:
        from scipy.stats import multivariate_normal
        from sklearn.neighbors import KernelDensity
    except ImportError:
        return
    x, y, h = _data(dim, torch.float64)
    x = x[: 1000 if dim > 100 else 2000]
    model = KernelDensity(bandwidth=h, leaf_size=_N).fit(y)
    normal = multivariate_normal(mean=[0.0] * dim, cov=h * h)

    def logpdf(rows: Tensor) -> Any:  # a query at a time is how SciPy's users write it
        return [torch.logsumexp(torch.from_numpy(normal.logpdf((row - y).numpy())), 0) for row in rows]

    def row(queries: Tensor, name: str, opponent: Callable[[], Any], ratio: float) -> Bench:
        return Bench(
            f"KDE log_prob float64, d={dim}, {len(queries)} queries",
            {"fokker": functools.partial(kde.log_prob, queries, y, h), name: opponent},
            {name: ratio},
            elements=len(queries) * _N,
            flops=2.0 * dim * len(queries) * _N,
            exps=len(queries) * _N,
            wide=True,
        )

    yield row(x, "scikit-learn brute", functools.partial(model.score_samples, x.numpy()), SKLEARN[dim])
    if dim < 100:  # SciPy whitens all data again for every query
        yield row(x[:200], "SciPy logpdf", functools.partial(logpdf, x[:200]), SCIPY[dim])
