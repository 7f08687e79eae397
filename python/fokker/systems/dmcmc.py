r"""Denoising MCMC: Langevin and Gibbs steps in (x, sigma), then the reverse integration from each sample's own sigma.

B. Kim and J. C. Ye, "Denoising MCMC for Accelerating Diffusion-Based Generative Models", ICML 2023 (arXiv 2209.14593).
Data noised to a random level, x = x_0 + sigma z with sigma from a prior on the levels, is a joint law of (x, sigma)
that a Markov chain mixes over easily: at large sigma all modes are one. Denoising Langevin Gibbs (DLG):

    x     <- x + eta / 2 score(x, sigma) + eta^{1/2} z          a Langevin step at the level that x is at
    sigma <- a draw from p(sigma | x)                           by a classifier of noise levels

Of every ``skip`` steps the (x, sigma) of the least sigma is kept, near the data already, and any sampler of
`fokker.sde` takes it from there to sigma = 0 in few steps of Karras' grid below its own sigma.

What differs from the paper's code: sigma is drawn from the classifier's softmax (``temperature=0``: its largest, as
there) by the race of `fokker.sde.absorb_step`; eta may depend on sigma, as a constant one, fit for the least level, is
slow at the large ones; the integrators are those of `fokker.sde`, with times of each sample. The chain runs in the
driver of all systems; a step is one fused pass for x, one for sigma, and one gather a window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import mixture, sde
from ._driver import Method, Run, Step, drive

__all__ = ["Chain", "LangevinGibbs", "chain", "exact_levels", "grid", "levels", "sample"]

TITLE = "Langevin and Gibbs steps over states and noise levels, then few reverse steps from each level"
PAPER = "Kim and Ye, ICML 2023, arXiv 2209.14593"
EXAMPLE = "dmcmc.sample(model, classifier, dmcmc.levels(0.01, 50.0), (64, 3, 32, 32), windows=4, steps=6, seed=0)"

Eta = float | Callable[[Tensor], Tensor]


def levels(sigma_min: float, sigma_max: float, count: int = 1000) -> Tensor:
    """Noise levels equal in log sigma, rising, ``(count,)`` in float64: sigma_min (sigma_max / sigma_min)^t."""
    if not (0 < sigma_min < sigma_max < math.inf and count >= 2):
        raise ValueError(f"0 < sigma_min < sigma_max and count >= 2 expected, got {sigma_min}, {sigma_max}, {count}")
    return torch.logspace(math.log10(sigma_min), math.log10(sigma_max), count, dtype=torch.float64, device="cpu")


def exact_levels(law: mixture.Mixture, sigmas: Tensor) -> Callable[[Tensor], Tensor]:
    """The perfect classifier of a mixture: log p(x | sigma_k), ``(B, K)``, for levels that are equally likely."""

    def logits(x: Tensor) -> Tensor:
        return mixture.log_prob(x.flatten(1)[:, None].expand(-1, len(sigmas), -1), law, sigma=sigmas.to(x.device))

    return logits


class Chain(NamedTuple):
    """What `chain` returns."""

    x: Tensor  #: kept states, ``(windows, B, ...)``
    sigma: Tensor  #: their noise levels, ``(windows, B)`` in float64
    last: tuple[Tensor, Tensor]  #: (x, sigma) where the chain stands, to go on from
    calls: int  #: of the model; the classifier has as many


class LangevinGibbs(Method):
    """DLG as a method of the systems' driver; carried: "sigma" ``(B,)``, kept: the windows' (x, sigma)."""

    weighted = False
    extra = ("classifier",)

    def __init__(
        self, model: Callable[..., Tensor], classifier: Callable[[Tensor], Tensor], sigmas: Tensor, *, eta: Eta,
        skip: int, prediction: str, temperature: float, sigma: Tensor | None, burn_in: int,
    ) -> None:  # fmt: skip
        super().__init__(model)
        if (
            not isinstance(sigmas, Tensor)
            or sigmas.dim() != 1
            or len(sigmas) < 2
            or not bool((sigmas.diff() > 0).all())
        ):
            raise ValueError(f"sigmas must be a rising tensor (K,), K >= 2, got {getattr(sigmas, 'shape', sigmas)}")
        if not float(sigmas[0]) > 0 or not math.isfinite(float(sigmas[-1])):
            raise ValueError(f"sigmas must be positive and finite, got {float(sigmas[0])} to {float(sigmas[-1])}")
        if skip < 1 or burn_in < 0:
            raise ValueError(f"skip must be >= 1 and burn_in >= 0, got {skip} and {burn_in}")
        if prediction not in ("x0", "epsilon", "score"):
            raise ValueError(f"prediction must be x0, epsilon or score, got {prediction!r}")
        if not callable(eta) and not 0 < eta < math.inf:
            raise ValueError(f"eta must be finite and > 0, or a function of sigma, got {eta!r}")
        self.classifier, self.sigmas, self.eta, self.skip = classifier, sigmas.double(), eta, skip
        self.output, self.temperature, self.first, self.burn_in = prediction, temperature, sigma, burn_in
        self.kept: list[tuple[Tensor, Tensor]] = []

    def plan(self, process: Any, times: Tensor) -> list[Step]:
        return [Step(i, float(times[0]), 0.0) for i in range(len(times) - 1)]

    def begin(self, run: Run, x: Tensor) -> None:
        self.sigmas = self.sigmas.to(run.device)
        first = self.sigmas[-1].expand(run.batch) if self.first is None else self.first.double()
        if tuple(first.shape) != (run.batch,):
            raise ValueError(f"sigma must have shape ({run.batch},), got {tuple(first.shape)}")
        # weights [x, model's output, z] of every level, so that a step only looks them up
        s = self.sigmas
        eta = self.eta(s) if callable(self.eta) else torch.full_like(s, self.eta)
        if eta.shape != s.shape or not bool(((eta > 0) & eta.isfinite()).all()):
            raise ValueError("eta must give a finite number > 0 at every level")
        v = s * s
        a, b = {"x0": (-1 / v, 1 / v), "epsilon": (0 * s, -1 / s), "score": (0 * s, 0 * s + 1)}[self.output]
        self.weights = torch.stack([1 + 0.5 * eta * a, 0.5 * eta * b, eta.sqrt()], 1).to(run.dtype)
        self.index = torch.searchsorted(self.sigmas, first.contiguous()).clamp(max=len(s) - 1)
        self.times = s.to(run.dtype)
        self.closed = torch.full((run.batch, 1), len(s), dtype=torch.int64, device=run.device)
        # a ring: a step never writes over the state that it starts from, nor over one of its window
        self.states = x.new_empty(self.skip + 1, *x.shape)
        self.at = torch.empty(self.skip, run.batch, dtype=torch.int64, device=run.device)
        self.rows = torch.arange(run.batch, device=run.device)
        run.carried["sigma"] = self.sigmas[self.index]

    def step(self, run: Run, k: Step, x: Tensor) -> Tensor:
        j = (k.index - self.burn_in) % self.skip
        ring = self.skip + 1
        out = run.call(0, x, self.times[self.index])
        y = sde.affine_step(
            x,
            [out],
            self.weights[self.index],
            seed=run.seed,
            step=k.index,
            sample_ids=run.ids,
            out=self.states[k.index % ring],
        )
        logits = run.checked("classifier", self.classifier(y), (run.batch, len(self.sigmas)))
        drawn = sde.absorb_step(
            self.closed, logits[:, None], 1.0, mask_id=len(self.sigmas), seed=run.seed, step=k.index,
            sample_ids=run.ids, temperature=self.temperature,
        )  # fmt: skip
        self.at[j] = drawn[:, 0]
        self.index = self.at[j].clamp(max=len(self.sigmas) - 1)
        if j + 1 == self.skip:
            run.health[k.index, 1] = y.sum()  # what is not finite stays so
            # where no logit was a number nothing is drawn, and the mask stays
            run.health[k.index, 2] = torch.where(self.at.max() < len(self.sigmas), 0.0, torch.nan)
            if k.index >= self.burn_in:
                least, best = self.at.clamp(max=len(self.sigmas) - 1).min(0)
                slots = (best + k.index + 1 - self.skip) % ring
                self.kept.append((self.states[slots, self.rows], self.sigmas[least]))
        run.carried["sigma"] = self.sigmas[self.index]
        return y


def chain(
    model: Callable[..., Tensor], classifier: Callable[[Tensor], Tensor], sigmas: Tensor, shape: Sequence[int],
    windows: int, seed: int | None = None, *, eta: Eta = lambda s: (0.5 * s).square(), skip: int = 10,
    prediction: str = "x0", burn_in: int = 0, temperature: float = 1.0, start: Tensor | None = None,
    sigma: Tensor | None = None, sample_ids: Any = None, dtype: torch.dtype = torch.float32, **options: Any,
) -> Chain:  # fmt: skip
    """``windows`` windows of ``skip`` DLG steps of B chains, after ``burn_in`` windows whose states are not kept.

    Args:
        model: model(x ``(B, ...)``, sigma ``(B,)``) of prediction "x0", "epsilon" or "score" of x_0 + sigma z.
        classifier: x ``(B, ...)`` -> logits ``(B, K)`` of p(sigma_k | x), of x's dtype.
        sigmas: ``(K,)`` rising, from `levels`.
        eta: the Langevin step: a number (the paper on CIFAR-10: 0.8 in units of a score network's own scale), or a
            function of sigma; the square of a fraction of sigma moves alike at all levels.
        start, sigma: the first state ``(B, ...)`` and its levels ``(B,)``; None: noise of the largest level.
        options: as in the driver: device, callback (whose x later steps write over), progress, model_dtype.

    Raises:
        ValueError, TypeError: as the module's page and `LangevinGibbs` say; outputs not finite are found at the end.
    """
    if windows < 1:
        raise ValueError(f"windows must be >= 1, got {windows}")
    method = LangevinGibbs(
        model, classifier, sigmas, eta=eta, skip=skip, prediction=prediction, temperature=temperature, sigma=sigma,
        burn_in=burn_in * skip,
    )  # fmt: skip
    process = sde.EDM(float(sigmas[0]), float(sigmas[-1]))
    found = drive(
        method, process, shape, (windows + burn_in) * skip, seed, prediction="score", start=start, grid="uniform",
        sample_ids=sample_ids, dtype=dtype, **options,
    )  # fmt: skip
    x, s = (torch.stack(c) for c in zip(*method.kept, strict=True))
    return Chain(x, s, (found.x.clone(), found.carried["sigma"]), found.calls)


def grid(sigma: Tensor, steps: int, sigma_min: float, *, rho: float = 7.0) -> Tensor:
    """Karras' grid of each sigma ``(B,)``: down to sigma_min in ``steps`` - 1 steps, then to 0: ``(B, steps + 1)``.

    A sigma at or below sigma_min starts a hair above it.
    """
    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}")
    if not 0 < sigma_min < math.inf:
        raise ValueError(f"sigma_min must be finite and > 0, got {sigma_min}")
    high = sigma.double().cpu().clamp(min=sigma_min * (1 + 1e-3 * steps))[:, None] ** (1 / rho)
    u = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    found = (high + u * (sigma_min ** (1 / rho) - high)) ** rho
    return torch.nn.functional.pad(found, (0, 1))


def sample(
    model: Callable[..., Tensor], classifier: Callable[[Tensor], Tensor], sigmas: Tensor, shape: Sequence[int],
    windows: int, steps: int, seed: int | None = None, *, sampler: Any = None, sigma_min: float | None = None,
    prediction: str = "x0", sample_ids: Any = None, **options: Any,
) -> tuple[Tensor, int]:  # fmt: skip
    """``windows`` B samples ``(windows, B, ...)``, and the model's calls a sample: ``skip`` and the integrator's.

    Each window's kept (x, sigma) goes down its own `grid` of ``steps`` steps by a sampler of `fokker.sde` (None: Euler,
    one call a step; with churn for its noise the range must hold for all samples or none). Other options as in `chain`.
    Calls of burn-in are counted among all samples.
    """
    seed = int(torch.randint(0, 2**63 - 1, ())) if seed is None else seed
    found = chain(
        model, classifier, sigmas, shape, windows, seed, prediction=prediction, sample_ids=sample_ids, **options
    )  # fmt: skip
    low = float(sigmas[0]) if sigma_min is None else sigma_min
    process = sde.EDM(min(low, float(sigmas[0])), float(sigmas[-1]) * 1.01)
    x, s = found.x.flatten(0, 1), found.sigma.flatten()
    run = sde.sample(
        model, process, sde.Euler() if sampler is None else sampler, x.shape, times=grid(s, steps, low), start=x,
        seed=seed + 1, prediction=prediction, dtype=x.dtype, full=True,
    )  # fmt: skip
    return run.x.unflatten(0, found.x.shape[:2]), run.calls + -(-found.calls // windows)
