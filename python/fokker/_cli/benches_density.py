"""Gaussian mixtures and pairwise statistics beside scikit-learn and dense PyTorch; two threads beside one."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import kde, mixture, pairwise
from .._gaussian_em import Parameters, Rows, expect, maximise
from .._gaussian_tiles import SCORE, mixture_sums
from .benches import Bench, on_threads


def benches() -> Iterator[Bench]:
    """All of them; the dense opponents hold N x M arrays, which at these sizes fit in memory."""
    yield from _threads()
    yield from _fast()
    yield from _nearest()
    yield from _mixtures()
    yield from _times()
    yield from _low_rank()
    yield from _levels()
    yield from _pairwise()


def _threads() -> Iterator[Bench]:
    for dim in (2, 16, 64):
        g = torch.Generator().manual_seed(dim)
        x, y = (torch.randn(10_000, dim, generator=g) for _ in range(2))
        run = functools.partial(kde.log_prob, x, y, 0.5 * math.sqrt(dim))
        yield Bench(
            f"KDE log_prob float32 on two threads, d={dim}",
            {"fokker": on_threads(2, run, 10), "fokker on one": on_threads(1, run, 10)},
            {"fokker on one": 1.8},
            elements=1_000_000_000,
            note="ten calls",
        )


def _em_step(x: Tensor, now: Parameters) -> Parameters:
    rows = Rows(x, torch.ones(len(x), dtype=torch.float64), None)
    return maximise(expect(rows, now), now, 1e-6)


def _their_em_step(model: Any, x: np.ndarray) -> None:
    _, log_shares = model._e_step(x)
    held = model.weights_, model.means_, model.covariances_, model.precisions_cholesky_
    model._m_step(x, log_shares)
    model.weights_, model.means_, model.covariances_, model.precisions_cholesky_ = held


def _mixtures() -> Iterator[Bench]:
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError:
        return
    g = torch.Generator().manual_seed(5)
    n, d, k = 16_384, 16, 64
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    weights = torch.softmax(torch.randn(k, generator=g, dtype=torch.float64), 0)
    means = torch.randn(k, d, generator=g, dtype=torch.float64)
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64) / 4 + torch.eye(d, dtype=torch.float64)
    diagonal = 0.5 + torch.rand(k, d, generator=g, dtype=torch.float64)
    full = root @ root.mT
    for kind, covariances in (("full", full), ("diag", diagonal)):
        theirs = GaussianMixture(k, covariance_type=kind)
        theirs.weights_, theirs.means_ = weights.numpy(), means.numpy()
        theirs.covariances_ = covariances.numpy()
        precision = torch.linalg.inv(torch.linalg.cholesky(full)).mT if kind == "full" else diagonal.rsqrt()
        theirs.precisions_cholesky_ = precision.numpy()
        ours = mixture.Mixture(means, covariances, weights, kind)
        points = x.numpy()
        agree = np.abs(theirs.score_samples(points) - mixture.log_prob(x, ours).numpy()).max()
        if not agree < 1e-9:
            raise AssertionError(f"the two mixtures differ by {agree}")
        yield Bench(
            f"Gaussian mixture log_prob float64, {kind}, 16,384 x 16, 64 components",
            {
                "fokker": functools.partial(mixture.log_prob, x, ours),
                "scikit-learn": functools.partial(theirs.score_samples, points),
            },
            {"scikit-learn": 3.0},
            elements=n,
        )
        yield Bench(
            f"Gaussian mixture responsibilities float64, {kind}, 16,384 x 16, 64 components",
            {
                "fokker": functools.partial(mixture.responsibilities, x, ours),
                "scikit-learn": functools.partial(theirs.predict_proba, points),
            },
            {"scikit-learn": 1.0},
            elements=n,
        )
        yield Bench(
            f"Gaussian mixture, a step of EM, float64, {kind}, 16,384 x 16, 64 components",
            {
                "fokker": functools.partial(_em_step, x, Parameters(kind, weights, means, (covariances,))),
                "scikit-learn": functools.partial(_their_em_step, theirs, points),
            },
            {"scikit-learn": 1.0},
            elements=n,
        )


def _low_rank() -> Iterator[Bench]:
    for n, d, k, rank in ((16_384, 16, 64, 4), (4096, 64, 10, 8), (2048, 128, 10, 16)):
        g = torch.Generator().manual_seed(d)
        x, means, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (k, d), (k, d, rank)))
        m = mixture.Mixture(means, (w, torch.full((k,), 0.5, dtype=torch.float64)), None, "lowrank")
        level = (torch.full((1,), v, dtype=torch.float64) for v in (0.8, 0.36))
        tiles = functools.partial(mixture_sums, x, *level, m.log_weights(), means, m.factors())
        for name, call, outputs in (("log_prob", mixture.log_prob, 0), ("score", mixture.score, SCORE)):
            yield Bench(
                f"Gaussian mixture {name} float64, lowrank {rank}, {n:,} x {d}, {k} components",
                {
                    "fokker": functools.partial(call, x, m, alpha=0.8, sigma=0.6),
                    "fokker by tiles": functools.partial(tiles, outputs, torch.float64),
                },
                {"fokker by tiles": 1.0},
                elements=n,
            )


def _levels() -> Iterator[Bench]:
    n, d, k, count = 4096, 16, 64, 8
    g = torch.Generator().manual_seed(8)
    x, means = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (k, d)))
    root = torch.randn(k, d, d, generator=g, dtype=torch.float64) / 4
    full = root @ root.mT + 0.5 * torch.eye(d, dtype=torch.float64)
    sigma = (torch.arange(n) % count + 1).double() / count
    one = torch.ones(1, dtype=torch.float64)
    for kind, covariance in (("full", full), ("diag", full.diagonal(dim1=1, dim2=2).contiguous())):
        m = mixture.Mixture(means, covariance, None, kind)
        rest = m.log_weights(), means, m.factors(), SCORE, torch.float64
        yield Bench(
            f"Gaussian mixture score float64, {kind}, {n:,} x {d} at {count} noise levels, {k} components",
            {
                "fokker": functools.partial(mixture.score, x, m, sigma=sigma),
                "fokker by tiles": functools.partial(mixture_sums, x, one, sigma.square(), *rest),
            },
            {"fokker by tiles": 1.0},
            elements=n,
        )


def _fast() -> Iterator[Bench]:
    """Double-precision numbers summed in float32, within `fokker.kde.error_bound`, beside the sums in float64."""
    for n, d in ((10_000, 2), (10_000, 16), (5_000, 64)):
        g = torch.Generator().manual_seed(d)
        x, y = (torch.randn(m, d, generator=g, dtype=torch.float64) for m in (n, 10_000))
        call = functools.partial(kde.log_prob, x, y, 0.5 * math.sqrt(d))
        yield Bench(
            f"KDE log_prob of float64, precision fast, {n:,} x 10,000, d={d}",
            {"fokker": functools.partial(call, precision="fast"), "fokker in float64": call},
            {"fokker in float64": 1.5},
            elements=n * 10_000,
        )


def _by_products(x: Tensor, y: Tensor) -> Tensor:
    square = y.square().sum(1)
    return torch.cat([(square - 2 * (rows @ y.mT)).argmin(1) for rows in x.split(512)])


def _nearest() -> Iterator[Bench]:
    """The nearest datum by differences, beside products (which lose equal points' digits) and scikit-learn's."""
    for d, ask in ((2, 3.0), (16, 3.0), (64, 1.5)):
        g = torch.Generator().manual_seed(d)
        x, y = (torch.randn(10_000, d, generator=g) for _ in range(2))
        calls: dict[str, Any] = {
            "fokker": functools.partial(kde.evaluate, x, y, 1.0, outputs=("nearest",)),
            "torch, products of 512 rows": functools.partial(_by_products, x, y),
        }
        try:
            from sklearn.neighbors import NearestNeighbors

            theirs = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y.numpy())
            calls["scikit-learn, brute"] = functools.partial(theirs.kneighbors, x.numpy(), return_distance=False)
        except ImportError:
            pass
        agree = float((calls["fokker"]()["nearest"] == _by_products(x, y)).float().mean())
        if not agree > 0.99:
            raise AssertionError(f"only {agree:.2%} of the nearest data are the same")
        name = f"nearest datum float32, 10,000 x 10,000, d={d}"
        yield Bench(name, calls, {"torch, products of 512 rows": ask}, elements=100_000_000)


def _plain_score(x: Tensor, alpha: Tensor, noise: Tensor, log_w: Tensor, means: Tensor, variance: Tensor) -> Tensor:
    c = alpha.square()[:, None, None] * variance + noise[:, None, None]
    delta = x[:, None, :] - alpha[:, None, None] * means
    share = torch.softmax(log_w - 0.5 * (delta.square() / c + torch.log(c)).sum(-1), 1)
    return -(share[..., None] * delta / c).sum(1)


def _times() -> Iterator[Bench]:
    """Every query at its own diffusion time, beside torch ops in tiles and torch.compile of the plain formula."""
    compiled = torch.compile(_plain_score, dynamic=False)
    for kind, n, d, k, rank in (
        ("diag", 4096, 16, 64, 0), ("isotropic", 4096, 2, 64, 0), ("full", 4096, 16, 64, 0), ("full", 1024, 64, 10, 0),
        ("lowrank", 2048, 256, 10, 16),
    ):  # fmt: skip
        g = torch.Generator().manual_seed(d)
        x, means = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (k, d)))
        t = 0.1 + 1.4 * torch.rand(n, generator=g, dtype=torch.float64)
        spread = torch.rand(k, d, generator=g, dtype=torch.float64) + 0.2
        root = torch.randn(k, d, rank or d, generator=g, dtype=torch.float64) / d**0.5
        covariance = {"isotropic": spread[:, 0], "diag": spread, "lowrank": (root, spread[:, 0])}.get(kind)
        if covariance is None:
            covariance = root @ root.mT + torch.diag_embed(spread)
        m = mixture.Mixture(means, covariance, None, kind)
        alpha, sigma = torch.cos(t), torch.sin(t)
        level = alpha, sigma.square(), m.log_weights(), means
        calls: dict[str, Any] = {
            "fokker": functools.partial(mixture.score, x, m, alpha=alpha, sigma=sigma),
            "fokker by tiles": functools.partial(mixture_sums, x, *level, m.factors(), SCORE, torch.float64),
        }
        asked = {"fokker by tiles": 2.0}
        if kind in ("isotropic", "diag"):
            variance = spread[:, :1] if kind == "isotropic" else spread
            calls["torch.compile"] = functools.partial(compiled, x, *level, variance)
            asked["torch.compile"] = 2.0
            agree = float((calls["torch.compile"]() - calls["fokker"]()).abs().max())
            if not agree < 1e-9:
                raise AssertionError(f"the two scores differ by {agree}")
        name = f"Gaussian mixture score float64, {kind}, {n:,} x {d}, a time a query, {k} components"
        yield Bench(name, calls, asked, elements=n)


def _gaussian_mean(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return torch.exp(torch.cdist(x, y).square() * scale).mean()


def _dense_sinkhorn(x: Tensor, y: Tensor, epsilon: float, iterations: int) -> Tensor:
    cost = 0.5 * torch.cdist(x, y).square() / epsilon
    f, g = torch.zeros(len(x)), torch.zeros(len(y))
    for _ in range(iterations):
        f = math.log(len(y)) - torch.logsumexp(g - cost, 1)
        g = math.log(len(x)) - torch.logsumexp(f[:, None] - cost, 0)
    return epsilon * (f.mean() + g.mean())


def _pairwise() -> Iterator[Bench]:
    g = torch.Generator().manual_seed(6)
    x, y = (torch.randn(4096, 16, generator=g) for _ in range(2))
    h = 4.0

    def dense_mmd2() -> Tensor:
        scale = -0.5 / h**2
        return _gaussian_mean(x, x, scale) + _gaussian_mean(y, y, scale) - 2 * _gaussian_mean(x, y, scale)

    yield Bench(
        "mmd2 float32, 4,096 + 4,096 x 16",
        {"fokker": functools.partial(pairwise.mmd2, x, y, bandwidth=h), "torch, dense": dense_mmd2},
        elements=3 * 4096**2,
    )

    def dense_energy(a: Tensor, b: Tensor, mode: str) -> Tensor:
        distance = functools.partial(torch.cdist, compute_mode=mode)
        return 2 * distance(a, b).mean() - distance(a, a).mean() - distance(b, b).mean()

    wide = x.double(), y.double(), "donot_use_mm_for_euclid_dist"
    yield Bench(
        "energy_distance float32, 4,096 + 4,096 x 16",
        {
            "fokker": functools.partial(pairwise.energy_distance, x, y),
            "torch, dense, by differences in float64": functools.partial(dense_energy, *wide),
            "torch, dense": functools.partial(dense_energy, x, y, "use_mm_for_euclid_dist_if_necessary"),
        },
        {"torch, dense": 1.0},
        elements=3 * 4096**2,
        note="fokker's distances are sums of differences in float64; torch's default loses half of the digits",
    )
    ensemble, seen = torch.randn(20_000, 50, generator=g), torch.randn(20_000, generator=g)

    def dense_crps() -> Tensor:
        spread = (ensemble[:, :, None] - ensemble[:, None, :]).abs().sum((1, 2)) / (2 * 50 * 49)
        return (ensemble - seen[:, None]).abs().mean(1) - spread

    yield Bench(
        "crps (fair) float32, 20,000 ensembles of 50",
        {"fokker": functools.partial(pairwise.crps, ensemble, seen), "torch, dense": dense_crps},
        elements=20_000,
    )
    a, b = x[:2048], y[:2048]
    solve = functools.partial(pairwise.sinkhorn, a, b, epsilon=2.0, iterations=20, tolerance=0.0)
    yield Bench(
        "sinkhorn float32, 2,048 x 2,048 x 16, 20 iterations",
        {"fokker": solve, "torch, dense": functools.partial(_dense_sinkhorn, a, b, 2.0, 20)},
        elements=40 * 2048**2,
    )
