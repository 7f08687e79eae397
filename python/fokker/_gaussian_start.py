"""Where EM for Gaussian mixtures starts and how it moves on: k-means++, covariances of clusters, split and merge."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ._gaussian_em import Parameters, Rows, clipped, expect, joint_of, maximise
from ._gaussian_ops import gaussian_joint
from ._seeding import systematic

_SEED_ROWS = 1 << 14  # k-means++ and the clusters' spectra see a systematic sample past this many rows
_LLOYD = 10


def _gaps(x: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (n, K), by differences."""
    one, zero = x.new_ones(1, x.shape[1]), x.new_zeros(len(centres))
    return -2 * gaussian_joint(x, centres, one, zero, False, False)[1].mT


def plus_plus(x: Tensor, w: Tensor, count: int, random: np.random.RandomState, greedy: bool, given: Tensor) -> Tensor:
    """``count`` rows as centres, drawn by weight times squared distance to the nearest so far (``given`` first).

    ``greedy`` draws a few candidates and keeps the one that lowers the sum of distances most (Arthur and
    Vassilvitskii 2007, section 5); without it rows are drawn by weight alone.
    """
    chosen = list(given)
    gap = _gaps(x, given).amin(1) if len(given) else torch.full((len(x),), math.inf, dtype=torch.float64, device="cpu")
    left = torch.where(gap > 0, w, 0.0)
    trials = 2 + int(math.log(count)) if greedy else 1
    for _ in range(count - len(given)):
        mass = left * gap if greedy and chosen else left * (gap > 0)
        if not float(mass.sum()) > 0:  # every row left is a copy of a chosen one
            mass = left if float(left.sum()) > 0 else w
        cumulative = mass.cumsum(0)
        at = torch.from_numpy(random.uniform(size=trials if chosen else 1)) * cumulative[-1]
        candidates = torch.searchsorted(cumulative, at, right=True).clamp(max=len(mass) - 1)
        gaps = torch.minimum(gap[:, None], _gaps(x, x[candidates]))
        best = int((w @ gaps).argmin())
        chosen.append(x[candidates[best]])
        left = left.clone()
        left[candidates[best]] = 0.0
        gap = gaps[:, best]
    return torch.stack(chosen)


def start(
    rows: Rows, kind: str, count: int, rank: int, init: str | Tensor, floor: float, random: np.random.RandomState
) -> Parameters:
    """Centres by ``init`` (labelled components: their rows' mean), Lloyd's steps, the clusters' covariances."""
    labels = rows.labels
    unknown = rows.weights if labels is None else torch.where(labels < 0, rows.weights, 0.0)
    known: list[Tensor] = []
    where: list[int] = []
    if labels is not None:
        for k in range(count):
            mine = (labels == k) & (rows.weights > 0)
            if bool(mine.any()):
                w = rows.weights[mine].double()[:, None]
                known.append((rows.x[mine].double() * w).sum(0) / w.sum())
                where.append(k)
    given = torch.stack(known) if known else torch.zeros(0, rows.x.shape[1], dtype=torch.float64, device="cpu")
    use = unknown if bool((unknown > 0).any()) else rows.weights
    sample, w = systematic(rows.x.double(), use.double(), max(_SEED_ROWS, 16 * count), random)
    if isinstance(init, Tensor):
        centres = init.clone()
        centres[where] = given
    else:
        # Distances in units of each feature's spread: k-means++ should not see one feature alone.
        centre = (w @ sample) / w.sum()
        scale = torch.sqrt((w @ (sample - centre).square()) / w.sum())
        scale = torch.where(scale > 0, scale, 1.0)
        z, held = (sample - centre) / scale, (given - centre) / scale
        picked = plus_plus(z, w, count, random, init == "k-means++", held)
        if init == "k-means++":
            picked = _lloyd(z, w, picked, len(held))
        rest = [k for k in range(count) if k not in where]
        centres = torch.empty(count, rows.x.shape[1], dtype=torch.float64, device="cpu")
        centres[where + rest] = picked * scale + centre
        centres[where] = given
    return _clusters(rows, kind, centres, rank, floor)


def _lloyd(x: Tensor, w: Tensor, centres: Tensor, held: int) -> Tensor:
    """A few steps of k-means; the first ``held`` centres stay."""
    for _ in range(_LLOYD):
        nearest = _gaps(x, centres).argmin(1)
        mass = torch.zeros(len(centres), dtype=torch.float64, device="cpu").index_add_(0, nearest, w)
        sums = torch.zeros_like(centres).index_add_(0, nearest, w[:, None] * x)
        moved = torch.where((mass > 0)[:, None], sums / mass.clamp(min=1e-300)[:, None], centres)
        moved[:held] = centres[:held]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _clusters(rows: Rows, kind: str, centres: Tensor, rank: int, floor: float) -> Parameters:
    """An M step from hard assignments to the nearest centre (labels where there are any)."""
    x, k, d = rows.x, len(centres), rows.x.shape[1]
    nearest = torch.cat([_gaps(x[i : i + 4096].double(), centres).argmin(1) for i in range(0, len(x), 4096)])
    if rows.labels is not None:
        nearest = torch.where(rows.labels >= 0, rows.labels, nearest)
    w = rows.weights.double()
    mean = (w @ x.double()) / w.sum()
    overall = torch.cat([x[i : i + 4096].double() - mean for i in range(0, len(x), 4096)]).square()
    spread = ((w @ overall) / w.sum()).clamp(min=floor)  # (d,): where a cluster has no width of its own
    shape = {
        "isotropic": lambda: spread.mean().expand(k).clone(),
        "diag": lambda: spread.expand(k, d).clone(),
        "full": lambda: torch.diag(spread).expand(k, d, d).clone(),
        "tied": lambda: torch.diag(spread)[None].clone(),
    }
    equal = torch.full((k,), 1 / k, dtype=torch.float64, device="cpu")
    if kind != "lowrank":
        blank = Parameters(kind, equal, centres, (shape[kind](),))
        return maximise(expect(rows, blank, nearest), blank, floor)
    blank = Parameters("diag", equal, centres, (spread.expand(k, d).clone(),))
    rough = maximise(expect(rows, blank, nearest), blank, floor)
    return Parameters(kind, rough.weights, rough.means, _spectra(rows, nearest, rough, rank, floor))


def _spectra(rows: Rows, label: Tensor, rough: Parameters, rank: int, floor: float) -> tuple[Tensor, Tensor]:
    """Principal axes of the clusters (Tipping and Bishop 1999: the maximum-likelihood W and t of each)."""
    k, d = rough.means.shape
    w = torch.zeros(k, d, rank, dtype=torch.float64, device="cpu")
    t = rough.covariance[0].mean(1).clone()
    for i in range(k):
        mine = (label == i) & (rows.weights > 0)
        mine = mine.nonzero()[:, 0][:_SEED_ROWS]
        if not len(mine):
            continue
        weight = rows.weights[mine].double()
        z = (rows.x[mine].double() - rough.means[i]) * torch.sqrt(weight / weight.sum())[:, None]
        _, s, axes = torch.linalg.svd(z, full_matrices=False)
        e = torch.zeros(rank, dtype=torch.float64, device="cpu")
        found = min(rank, len(s))
        e[:found] = s[:found].square()
        t[i] = ((s.square().sum() - e.sum()) / max(1, d - rank)).clamp(min=floor)
        w[i, :, :found] = axes[:found].mT * torch.sqrt((e[:found] - t[i]).clamp(min=floor))
    return w, t


def split_and_merge(
    rows: Rows, now: Parameters, limit: int, floor: float, random: np.random.RandomState
) -> list[Parameters]:
    """Starts with two components merged and a third split, the most promising first (Ueda et al. 2000).

    Merged are those whose responsibilities overlap most, split those that describe their own points worst, by
    the divergence of the whole mixture from them on their rows. Labelled components stay as they are.
    """
    k = len(now.means)
    sample, w = systematic(rows.x.double(), rows.weights.double(), 4096, random)
    share, log_density = _posterior(sample, now)
    fixed = torch.zeros(k, dtype=torch.bool, device="cpu")
    if rows.labels is not None:
        fixed[rows.labels[rows.labels >= 0].unique()] = True
    share = share * w[:, None]
    length = torch.linalg.vector_norm(share, dim=0).clamp(min=1e-300)
    overlap = (share.mT @ share) / length[:, None] / length
    mass = share.sum(0).clamp(min=1e-300)
    total = torch.logsumexp(log_density + torch.log(now.weights), 1)
    # Kullback-Leibler divergence of the rows of k, as a density that the whole mixture stands in for, from component k
    divergence = (share * (total[:, None] - torch.log(now.weights) - log_density)).sum(0) / mass
    split_order = [int(c) for c in torch.argsort(-divergence) if not fixed[c]]
    pairs = [(i, j) for i in range(k) for j in range(i + 1, k) if not fixed[i] and not fixed[j]]
    pairs.sort(key=lambda p: -float(overlap[p]))
    out = []
    for i, j in pairs[:limit]:
        for c in split_order:
            if c not in (i, j) and len(out) < limit:
                out.append(_moved(now, i, j, c, floor))
    return out[:limit]


def _posterior(x: Tensor, now: Parameters) -> tuple[Tensor, Tensor]:
    """Responsibilities and component log densities (n, K) of a few rows."""
    _, joint = joint_of(now)(x, False)
    logs = (joint - torch.log(now.weights)[:, None]).mT
    return torch.softmax(joint, 0).mT, logs


def _moved(now: Parameters, i: int, j: int, c: int, floor: float) -> Parameters:
    """i and j become one, with their mean and covariance; c becomes two, apart along its longest axis."""
    weights, means = now.weights.clone(), now.means.clone()
    covariance = [t.clone() for t in now.covariance]
    d = means.shape[1]
    a, b = now.weights[i], now.weights[j]
    p, q = a / (a + b), b / (a + b)
    gap = now.means[i] - now.means[j]
    weights[i], means[i] = a + b, p * now.means[i] + q * now.means[j]
    first = now.covariance[0]
    between = p * q * gap
    if now.kind == "isotropic":
        covariance[0][i] = p * first[i] + q * first[j] + (between * gap).sum() / d
        axis, variance = torch.eye(d, dtype=torch.float64, device="cpu")[0], first[c]
    elif now.kind == "diag":
        covariance[0][i] = p * first[i] + q * first[j] + between * gap
        axis, variance = torch.eye(d, dtype=torch.float64, device="cpu")[int(first[c].argmax())], first[c].max()
    elif now.kind == "lowrank":
        axes, s, _ = torch.linalg.svd(first[c], full_matrices=False)
        axis, variance = axes[:, 0], s[0].square() + now.covariance[1][c]
        if s[0] > 0:
            covariance[0][c] = first[c] - 0.5 * axis[:, None] * (axis @ first[c])
    else:
        own = first[0 if now.kind == "tied" else c]
        values, vectors = torch.linalg.eigh(own)
        axis, variance = vectors[:, -1], values[-1]
        if now.kind == "full":
            covariance[0][i] = clipped(p * first[i] + q * first[j] + between[:, None] * gap, floor)
            covariance[0][c] = clipped(own - 0.75 * variance * axis[:, None] * axis, floor)
    if now.kind in ("isotropic", "diag"):
        covariance[0][c] = first[c] * torch.where(axis > 0, 0.25, 1.0) if now.kind == "diag" else first[c] * 0.5
    weights[c] = weights[j] = 0.5 * now.weights[c]
    step = 0.8 * torch.sqrt(variance) * axis
    means[c], means[j] = now.means[c] + step, now.means[c] - step
    if now.kind != "tied":
        for t in covariance:
            t[j] = t[c]
    return Parameters(now.kind, weights, means, tuple(covariance))
