"""What runs of particle methods are made of: steps, states, inner products, resampling, and the verdict at the end."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import random, sde
from .._sde_ops import TERMS
from .._sde_particles import gather

__all__ = ["Particles", "Products", "Resampling", "Step", "finite", "judge", "long_step"]


class Step(NamedTuple):
    """One step of the grid, from time t down to t - dt, in float64 on the host."""

    index: int
    t: float
    dt: float
    f: float = 0.0  #: the drift is f x
    g2: float = 0.0  #: the diffusion's square, g^2
    alpha: float = 1.0
    sigma: float = 0.0


class Particles(NamedTuple):
    """A run between two steps, and what it returns at the end."""

    step: int  #: the next one
    time: float
    x: Tensor  #: ``(B, ...)``
    log_weights: Tensor  #: ``(B,)`` in float64: gathered since the population was last resampled
    carried: dict[str, Tensor]  #: what a method keeps a particle, ``(B, ...)``: log densities, say
    effective_sample_size: Tensor  #: ``(steps, populations)``, before resampling; empty for methods without weights
    calls: int  #: of all models together
    populations: int = 1

    def resampled(self, seed: int = 0, count: int | None = None, method: str = "systematic") -> Tensor:
        """``count`` particles of equal weight of each population (None: as many as it has), one after the other."""
        groups = self.log_weights.reshape(self.populations, -1)
        found = sde.resample(groups, method, seed=seed, step=self.step, count=count)
        return gather(self.x.unflatten(0, groups.shape), found.ancestors).flatten(0, 1)


class Products:
    """Inner products ``(B, J, J)`` in float64 of [y - x, scores s_i, extra terms e_i, (x), noise z]."""

    def __init__(self, gram: Tensor, first: int, scores: int, extra: int) -> None:
        self.gram = gram  #: without y - x and z where ``first`` is 0
        self.s, self.e = slice(first, first + scores), slice(first + scores, first + scores + extra)
        self.at_x, self.at_z = first + scores + extra, gram.shape[1] - 1

    @property
    def ss(self) -> Tensor:
        """<s_i, s_j>, ``(B, M, M)``."""
        return self.gram[:, self.s, self.s]

    @property
    def se(self) -> Tensor:
        """<s_i, e_j>, ``(B, M, E)``."""
        return self.gram[:, self.s, self.e]

    @property
    def ee(self) -> Tensor:
        """<e_i, e_j>, ``(B, E, E)``."""
        return self.gram[:, self.e, self.e]

    @property
    def sz(self) -> Tensor:
        """<s_i, z>, ``(B, M)``."""
        return self.gram[:, self.s, self.at_z]

    @property
    def sdx(self) -> Tensor:
        """<s_i, y - x>, ``(B, M)``."""
        return self.gram[:, 0, self.s]

    @property
    def ex(self) -> Tensor:
        """<e_i, x>, ``(B, E)``, of a run that reads x."""
        return self.gram[:, self.at_x, self.e]


def long_step(x: Tensor, terms: Sequence[Tensor], weights: Tensor, place: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """`affine_step` of more terms than it takes: chains of them, and the inner products block by block."""
    one = torch.ones_like(weights[..., :1])
    y = x
    for i in range(0, len(terms), TERMS):
        part = weights[..., 1 + i : 1 + min(i + TERMS, len(terms))]
        first = weights[..., :1] if i == 0 else one
        last = i + TERMS >= len(terms)
        w = torch.cat([first, part, *([weights[..., -1:]] if last else [])], -1)
        y = sde.affine_step(y, terms[i : i + TERMS], w, **(place if last else {}))
    z = random.normal(
        x.shape[0], tuple(x.shape[1:]), dtype=x.dtype, device=x.device, **place
    )  # once more: its products with every block
    vectors = [y - x, *terms, z]
    half = (TERMS + 1) // 2
    blocks = [slice(i, i + half) for i in range(0, len(vectors), half)]
    gram = torch.empty(x.shape[0], len(vectors), len(vectors), dtype=torch.float64, device=x.device)
    for a in blocks:
        for b in blocks:
            n = len(vectors[a])
            gram[:, a, b] = sde.gram([*vectors[a], *vectors[b]])[:, :n, n:]
    return y, gram


class Resampling:
    """Draws populations anew after a step, where their weights have become too uneven."""

    def __init__(self, run: Any, populations: int, kind: str | None, threshold: float) -> None:
        self.run, self.kind, self.threshold = run, kind, threshold
        sde.resample(torch.zeros(1, 1, device="cpu"), kind or "systematic", seed=0, threshold=threshold)  # checks them
        self.groups = (populations, run.batch // populations)
        self.sizes: list[Tensor] = []
        self.stay = torch.arange(self.groups[1], device=run.device).expand(self.groups)
        ids = run.ids
        if isinstance(ids, Tensor):
            self.ids: Any = ids.reshape(self.groups)[:, 0].contiguous()
        else:  # a population goes by the id of its first particle
            self.ids = torch.arange(populations, device=run.device) * self.groups[1] + (0 if ids is None else int(ids))

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        run = self.run
        logs = run.log_weights.reshape(self.groups)
        if self.kind is None:
            self.sizes.append(sde.effective_sample_size(logs))
            return x
        if not x.is_cuda:  # looking at numbers is free on a CPU; not a number goes on to the op
            size = 1 / torch.softmax(logs, 1).square().sum(1)
            if bool((size >= self.threshold * self.groups[1]).all()):
                self.sizes.append(size)
                return x
        place = {"seed": run.seed, "step": k.index, "sample_ids": self.ids}
        found = sde.resample(logs, self.kind, threshold=self.threshold, **place)
        self.sizes.append(found.effective_sample_size)
        run.log_weights = found.log_weights.reshape(-1)
        if not x.is_cuda and torch.equal(found.ancestors, self.stay):  # on a GPU looking would mean waiting
            return x
        for name, value in run.carried.items():
            run.carried[name] = gather(value.unflatten(0, self.groups), found.ancestors).flatten(0, 1)
        return gather(x.unflatten(0, self.groups), found.ancestors).flatten(0, 1)


def judge(run: Any, found: Particles, count: int) -> None:
    """Errors and warnings of a finished run: the one time it waits for the device."""
    bad = ~run.health.isfinite()
    names = ["x", *(f"models[{i}]" for i in range(len(run.method.models))), *run.method.extra, "x", "x"]
    if bool(bad.any()):
        i = int(bad.any(1).nonzero()[0])
        at = bad[i].tolist()
        culprit = next((n for n, b in zip(names[1:], at[1:], strict=False) if b), "x")
        k = run.steps[i]
        raise ValueError(f"{culprit} is not finite at step {k.index}, time {k.t:.6g} (first of them)")
    sizes = found.effective_sample_size
    if not sizes.numel():
        return
    worst = sizes.nan_to_num(nan=0.0).amin(1)
    i = int(worst.argmin())
    size, k = float(worst[i]), run.steps[i]
    if not size:
        i = int((worst == 0).nonzero()[0])
        raise ValueError(
            f"no particle has a finite positive weight at step {run.steps[i].index}, time {run.steps[i].t:.6g}"
        )
    if count > 2 and size < max(2.0, count / 50):
        warnings.warn(
            f"the weights degenerated: effective sample size {size:.1f} of {count} particles at step {k.index}, time "
            f"{k.t:.6g}; take more particles, smaller steps, resampling or a milder target",
            RuntimeWarning,
            stacklevel=4,
        )


def finite(x: Tensor) -> Tensor:
    """Samples of `fokker.sde.sample`, which must be finite; the one time that their run waits for the device."""
    bad = int((~x.isfinite()).flatten(1).any(1).sum()) if x.numel() else 0
    if bad:
        raise ValueError(
            f"{bad} of {len(x)} samples are not finite: the model's output was not (check_finite=True names the step)"
        )
    return x
