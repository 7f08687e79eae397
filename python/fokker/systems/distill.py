r"""One-step distillation of a diffusion model: DMD2, f-distill, SiD, Uni-Instruct, trajectory matching.

- T. Yin et al., "Improved Distribution Matching Distillation for Fast Image Synthesis" (DMD2), NeurIPS 2024, arXiv
  2405.14867; the gradient and its weight: "One-step Diffusion with Distribution Matching Distillation", 2311.18828,
  equations 7 and 8.
- Y. Xu, W. Nie, A. Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching" (f-distill), 2502.15681.
- M. Zhou et al., "Score identity Distillation" (SiD), ICML 2024, 2404.04057.
- W. Luo et al., "One-Step Diffusion Distillation through Score Implicit Matching" (SIM), NeurIPS 2024, 2410.16794.
- Y. Wang et al., "Uni-Instruct", NeurIPS 2025, 2505.20755.
- E. Luhman, T. Luhman, "Knowledge Distillation in Iterative Generative Models", 2101.02388.

A generator G makes y = G(z). With a noised sample x = y + sigma n, the teacher's prediction D_r(x, sigma) of the data,
that of a fake score D_f which is trained on the generator's own samples, Delta = D_r - D_f = sigma^2 (s_p - s_q), the
density ratio r = p / q of teacher and generator at x and a number a sample w = max(mean |y - D_r|, 1e-5), the losses
are, with < > a mean over a sample's elements:

    DMD2           gradient -Delta / w in y             reverse KL (2311.18828, equations 7 and 8)
    f-distill      gradient -h(r) Delta / w in y        h(r) = r^2 f''(r)
    SiD            <Delta (D_r - y) - alpha Delta^2> / w                        gradients through x too
    SIM            <Delta (D_f - y)> / w                is SiD at alpha = 1
    Uni-Instruct   h(r) <Delta (D_f - y)> / w
    trajectory     <(y - x_0(z))^2>                     x_0(z): the teacher's probability-flow ODE from z

and the fake score descends (sigma^2 + s_d^2) / (sigma s_d)^2 <(D_f - y)^2>, `fake_score_loss`. r is the exponential
of the logit of a discriminator trained on noised data and noised samples (`ratio_loss`).

The common ground (checked in the tests): along Gaussian noise dD_f(p || q) / dsigma^2 = -E_q[h(r) |s_p - s_q|^2] / 2,
and the gradient of that rate in the generator's parameters is that of

    sigma^-4 h(r) <Delta (D_f - y) + (1 - alpha) Delta^2>,    alpha = (1 + d log h / d log r) / 2,

through y, x, r(x) and the teacher: SiD with alpha = 1/2 for the reverse KL divergence, SIM weighted by r for the
forward one. `uni_instruct` with ``path=True`` is this.

Differences from the papers' code: the weight is of the ratio of one logit a sample, never of a BCE value or of a norm
over the whole batch; dividing h by its batch mean (which couples samples) is an option and said so; no
``nan_to_num``: what is not finite is a named error. Denoisers are called as D(x, sigma), sigma (B,), and return x_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .. import sde
from ..denoiser import DIVERGENCES, denoising_score_matching, divergence_weight, score_difference

__all__ = [
    "BinnedMean",
    "Distiller",
    "dmd",
    "f_distill",
    "fake_score_loss",
    "gan_loss",
    "noised",
    "ratio_loss",
    "sid",
    "trajectory",
    "trajectory_matching",
    "uni_instruct",
]

TITLE = "One-step distillation: DMD2, f-distill, SiD, Uni-Instruct and trajectory matching over one fused loss"
PAPER = "Yin et al. 2024, arXiv 2405.14867; Xu et al. 2025, 2502.15681; Zhou et al. 2024, 2404.04057"
EXAMPLE = "distill.Distiller(generator, teacher, fake, method='sid').step(z)"

Denoiser = Callable[[Tensor, Tensor], Tensor]


def noised(y: Tensor, sigma: Tensor, *, seed: int, step: int = 0) -> Tensor:
    """x = y + sigma n with n made in the kernel (`fokker.random`): one pass, no noise stored; differentiable in y."""
    if not isinstance(sigma, Tensor) or sigma.shape != y.shape[:1]:
        raise ValueError(f"sigma must be a tensor ({len(y)},), got {getattr(sigma, 'shape', sigma)}")
    wide = torch.float64 if y.dtype is torch.float64 else torch.float32
    return sde.affine_step(y, (), torch.stack([torch.ones_like(sigma), sigma], 1).to(wide), seed=seed, step=step)


def _denoised(model: Denoiser, name: str, x: Tensor, sigma: Tensor) -> Tensor:
    found = model(x, sigma)
    if not isinstance(found, Tensor) or found.shape != x.shape or not found.is_floating_point():
        seen = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must return a floating-point tensor of the shape {tuple(x.shape)} of x, got {seen}")
    return found


def _finite(loss: Tensor, **named: Tensor) -> Tensor:
    """The mean of the samples' losses, all finite; a GPU is not waited for."""
    if not loss.is_cuda and not bool(loss.isfinite().all()):
        for name, t in named.items():
            bad = (~t.detach().isfinite()).flatten(1).any(1) if t.dim() > 1 else ~t.detach().isfinite()
            if bool(bad.any()):
                raise ValueError(f"{name} is not finite in samples {bad.nonzero().flatten().tolist()[:8]}")
        raise ValueError("the loss overflows though what it is made of is finite")
    return loss.mean()


def _log_ratio(log_ratio: Tensor, y: Tensor) -> Tensor:
    if not isinstance(log_ratio, Tensor) or log_ratio.shape != y.shape[:1]:
        raise ValueError(f"log_ratio must be one logit a sample, ({len(y)},), got {getattr(log_ratio, 'shape', None)}")
    return log_ratio


# ---- the losses of a generator ---------------------------------------------------------------------------------------
def dmd(
    y: Tensor, noisy: Tensor, sigma: Tensor, teacher: Denoiser, fake: Denoiser, *, weight: Tensor | float = 1.0
) -> Tensor:
    """Distribution matching (DMD, DMD2): reverse KL. Its gradient goes to y alone, past both networks.

    Args:
        y, noisy: samples (B, *shape), with their graph, and x = y + sigma n (`noised`). sigma: (B,).
        weight: h, a constant a sample.
    """
    x = noisy.detach()
    with torch.no_grad():
        real, false = _denoised(teacher, "teacher", x, sigma), _denoised(fake, "fake", x, sigma)
    loss = score_difference(y, real, false, kind="vsd", weight=weight, reduction="none")
    return _finite(loss, y=y, teacher=real, fake=false)


def f_distill(
    y: Tensor, noisy: Tensor, sigma: Tensor, teacher: Denoiser, fake: Denoiser, log_ratio: Tensor, *,
    divergence: str = "jensen_shannon", normalize: bool = True, bins: BinnedMean | None = None
) -> Tensor:  # fmt: skip
    """f-distill: `dmd` weighted by h(r) of any of `fokker.denoiser.DIVERGENCES`.

    Args:
        log_ratio: the discriminator's logits (B,) at noisy, clamped to [-10, 10]; taken as constants.
        normalize: divide h by its mean over the batch, as the paper's second stage does.
        bins: first divide h by its running mean at the sample's noise level.
    """
    h = divergence_weight(_log_ratio(log_ratio, y).detach(), divergence)
    h = h if bins is None else bins(h, sigma)
    return dmd(y, noisy, sigma, teacher, fake, weight=h / h.mean() if normalize else h)


def sid(
    y: Tensor, noisy: Tensor, sigma: Tensor, teacher: Denoiser, fake: Denoiser, *, alpha: float = 1.2,
    weight: Tensor | float = 1.0, scale: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Score identity distillation; ``noisy`` must carry y's graph, and the networks' parameters want no gradient.

    alpha: 1 and 1.2 are the paper's choices, 1 is SIM, 1/2 the exact gradient for the reverse KL divergence.
    """
    real, false = _denoised(teacher, "teacher", noisy, sigma), _denoised(fake, "fake", noisy, sigma)
    loss = score_difference(y, real, false, kind="sid", alpha=alpha, weight=weight, scale=scale, reduction="none")
    return _finite(loss, y=y, teacher=real, fake=false)


def uni_instruct(
    y: Tensor, noisy: Tensor, sigma: Tensor, teacher: Denoiser, fake: Denoiser, log_ratio: Tensor, *,
    divergence: str = "forward_kl", normalize: bool = False, path: bool = False, scale: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Uni-Instruct: SIM weighted by h(r), a constant a sample.

    Args:
        log_ratio: the discriminator's logits (B,) at noisy.
        normalize: divide h by its mean over the batch.
        path: the exact gradient of the rate of D_f instead (see above): log_ratio must then carry the graph of noisy;
            exact with ``scale`` sigma^4 and an exact ratio, h unclamped.
        scale: (B,) in place of w.
    """
    l = _log_ratio(log_ratio, y)
    if not path:
        h = divergence_weight(l.detach(), divergence, normalize=normalize)
        return sid(y, noisy, sigma, teacher, fake, alpha=1.0, weight=h, scale=scale)
    h = divergence_weight(l, divergence, clamp=None)
    with torch.enable_grad():
        at = l if l.requires_grad else l.detach().requires_grad_()
        log_h = divergence_weight(at, divergence, clamp=None).log()
        slope = torch.zeros_like(l)
        if log_h.requires_grad:
            (slope,) = torch.autograd.grad(log_h.sum(), at, create_graph=True, materialize_grads=True)
    h = h / h.mean().detach() if normalize else h
    return sid(y, noisy, sigma, teacher, fake, alpha=0.5 * (1.0 + slope), weight=h, scale=scale)


def trajectory(teacher: Denoiser, z: Tensor, process: Any, *, steps: int = 18, sampler: Any = None) -> Tensor:
    """x_0(z): the end of the teacher's probability-flow ODE from noise z, by EDM's Heun method or another sampler."""
    return sde.sample(teacher, process, sampler or sde.EDMHeun(), z.shape, steps, 0, start=z, dtype=z.dtype)


def trajectory_matching(y: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """<(y - x_0(z))^2> of a generator at the same z as the `trajectory`."""
    if target.shape != y.shape:
        raise ValueError(f"target {tuple(target.shape)} must have the shape of y {tuple(y.shape)}")
    loss = denoising_score_matching(y, 1.0, data=target, kind="x0", weight=weight, reduction="none")
    return _finite(loss, y=y, target=target)


# ---- the losses of what stands beside it -----------------------------------------------------------------------------
def fake_score_loss(y: Tensor, noisy: Tensor, sigma: Tensor, fake: Denoiser, sigma_data: float = 0.5) -> Tensor:
    """Denoising score matching of the fake score on the generator's samples (constants), in EDM's weighting."""
    found = _denoised(fake, "fake", noisy.detach(), sigma)
    loss = denoising_score_matching(
        found, sigma, data=y.detach(), kind="x0", weighting="edm", sigma_data=sigma_data, reduction="none"
    )
    return _finite(loss, y=y, fake=found)


def ratio_loss(real: Tensor, false: Tensor) -> Tensor:
    """Binary cross entropy of logits at noised data and noised samples: its optimum is the log density ratio."""
    return softplus(-real).mean() + softplus(false).mean()


def gan_loss(false: Tensor) -> Tensor:
    """The generator's part of the same game (non-saturating), which DMD2 and f-distill add."""
    return softplus(-false).mean()


class BinnedMean:
    """h divided by a running mean at its noise level: the paper's first stage, an exponential average a bin.

    Args:
        low, high: the range of sigma; bins are even in log sigma, levels outside fall into the outermost.
        decay: of the average, once a call; a bin starts with the first mean it sees.
    """

    def __init__(self, low: float, high: float, count: int = 16, decay: float = 0.9) -> None:
        if not 0 < low < high or count < 1 or not 0 <= decay < 1:
            raise ValueError(f"0 < low < high, count >= 1, 0 <= decay < 1 expected, got {low, high, count, decay}")
        self.low, self.step, self.decay = math.log(low), math.log(high / low) / count, decay
        self.mean: Tensor = torch.full((count,), torch.nan, dtype=torch.float64, device="cpu")

    def __call__(self, h: Tensor, sigma: Tensor) -> Tensor:
        """h over the mean of its bin, after this batch entered it."""
        self.mean = self.mean.to(h.device)
        at = ((sigma.log() - self.low) / self.step).long().clamp(0, len(self.mean) - 1)
        count = torch.zeros_like(self.mean).index_add(0, at, torch.ones_like(h, dtype=torch.float64))
        now = torch.zeros_like(self.mean).index_add(0, at, h.detach().double()) / count
        moved = torch.where(self.mean.isnan(), now, self.decay * self.mean + (1 - self.decay) * now)
        self.mean = torch.where(count > 0, moved, self.mean)
        return h / self.mean[at].to(h.dtype)


# ---- training --------------------------------------------------------------------------------------------------------
class Distiller:
    """The two-time-scale training of a one-step generator (DMD2, algorithm 1; SiD, algorithm 1).

    Args:
        generator: z -> y. teacher: D_r(x, sigma), fixed. fake: D_f(x, sigma), a module that starts as anything.
        method: "dmd2", "f_distill", "sid", "uni_instruct" or "trajectory" (which needs no fake).
        discriminator: (x, sigma) -> logits (B,), for "f_distill", "uni_instruct" and ``gan_weight``.
        divergence: of `fokker.denoiser.DIVERGENCES`. alpha: of SiD.
        fake_steps: updates of fake and discriminator to one of the generator.
        gan_weight: of `gan_loss` beside the generator's loss.
        sigma_min, sigma_max: noise levels, drawn even in log sigma. sigma_data: of the data.
        process, ode_steps: of "trajectory"; `fokker.sde.EDM` from sigma_max where None.
        ema: decay of the running average of the generator's weights, which `averaged` holds (0: the generator itself).
        settings: further keywords of the method's loss.
    """

    METHODS = ("dmd2", "f_distill", "sid", "uni_instruct", "trajectory")

    def __init__(
        self, generator: torch.nn.Module, teacher: Denoiser, fake: Any = None, *, method: str = "dmd2",
        discriminator: Any = None, divergence: str = "jensen_shannon", alpha: float = 1.2, fake_steps: int = 2,
        gan_weight: float = 0.0, sigma_min: float = 0.02, sigma_max: float = 3.0, sigma_data: float = 0.5,
        lr: float = 1e-3, fake_lr: float = 2e-3, process: Any = None, ode_steps: int = 18, ema: float = 0.0,
        seed: int = 0, settings: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if method not in self.METHODS:
            raise ValueError(f"method must be one of {', '.join(self.METHODS)}, got {method!r}")
        if divergence not in DIVERGENCES:
            raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {divergence!r}")
        if method != "trajectory" and fake is None:
            raise ValueError(f"method {method!r} needs a fake score")
        self.needs_ratio = method in ("f_distill", "uni_instruct") or gan_weight != 0
        if self.needs_ratio and discriminator is None:
            raise ValueError(f"method {method!r} with gan_weight={gan_weight} needs a discriminator")
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"0 < sigma_min < sigma_max expected, got {sigma_min} and {sigma_max}")
        self.generator, self.teacher, self.fake, self.discriminator = generator, teacher, fake, discriminator
        self.method, self.divergence, self.alpha, self.gan_weight = method, divergence, alpha, gan_weight
        self.fake_steps, self.levels, self.sigma_data = fake_steps, (sigma_min, sigma_max), sigma_data
        self.process, self.ode_steps = process, ode_steps
        self.settings, self.seed, self.draws = settings or {}, seed, 0
        beside = [p for m in (fake, discriminator) if m is not None for p in m.parameters()]
        self.beside = beside
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        self.averaged: torch.nn.Module = generator
        if ema:
            self.averaged = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(ema))
        self.optimizer = torch.optim.Adam(generator.parameters(), lr, betas=(0.0, 0.99))
        self.beside_optimizer = torch.optim.Adam(beside, fake_lr, betas=(0.0, 0.99)) if beside else None

    def _noised(self, *batches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Noise levels (B,) and each batch noised by them, with noise of its own."""
        y = batches[0]
        low, high = (math.log(s) for s in self.levels)
        share = torch.rand(len(y), device=y.device, dtype=torch.float32)
        sigma = (low + (high - low) * share).exp().to(torch.float64 if y.dtype is torch.float64 else torch.float32)
        found = []
        for batch in batches:
            found.append(noised(batch, sigma, seed=self.seed, step=self.draws))
            self.draws += 1
        return sigma, found

    def _train_beside(self, z: Tensor, real: Tensor | None) -> None:
        with torch.no_grad():
            y = self.generator(z)
        loss: Tensor | float = 0.0
        if self.fake is not None:
            sigma, (x,) = self._noised(y)
            loss = fake_score_loss(y, x, sigma, self.fake, self.sigma_data)
        if self.needs_ratio:
            if real is None or real.shape != y.shape:
                raise ValueError(
                    f"real must be data of the shape {tuple(y.shape)} of the samples, for the discriminator, got "
                    f"{None if real is None else tuple(real.shape)}"
                )
            sigma, (x, data) = self._noised(y, real)
            loss = loss + ratio_loss(self.discriminator(data, sigma), self.discriminator(x, sigma))
        assert self.beside_optimizer is not None
        self.beside_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[union-attr]
        self.beside_optimizer.step()

    def loss(self, z: Tensor) -> Tensor:
        """The generator's loss at z, with its graph."""
        y = self.generator(z)
        if self.method == "trajectory":
            process = self.process or sde.EDM(sigma_max=self.levels[1])
            return trajectory_matching(y, trajectory(self.teacher, z, process, steps=self.ode_steps))
        sigma, (x,) = self._noised(y)
        args = (y, x, sigma, self.teacher, self.fake)
        ratio = self.discriminator(x, sigma) if self.needs_ratio else None
        if self.method == "dmd2":
            found = dmd(*args, **self.settings)
        elif self.method == "sid":
            found = sid(*args, alpha=self.alpha, **self.settings)
        else:
            of = f_distill if self.method == "f_distill" else uni_instruct
            found = of(*args, ratio, divergence=self.divergence, **self.settings)
        return found + self.gan_weight * gan_loss(ratio) if self.gan_weight else found

    def step(self, z: Tensor, real: Tensor | None = None) -> float:
        """One update: ``fake_steps`` of what stands beside the generator, then one of it; returns its loss.

        z: noise (B, ...) for the generator (of standard deviation sigma_max for "trajectory"). real: data, for the
        discriminator.
        """
        if self.method != "trajectory" or self.needs_ratio:
            for _ in range(self.fake_steps):
                self._train_beside(z[torch.randperm(len(z), device=z.device)], real)
        for p in self.beside:
            p.requires_grad_(False)
        try:
            loss = self.loss(z)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            if isinstance(self.averaged, AveragedModel):
                self.averaged.update_parameters(self.generator)
        finally:
            for p in self.beside:
                p.requires_grad_(True)
        return float(loss.detach())
