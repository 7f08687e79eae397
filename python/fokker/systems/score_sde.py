r"""Score-based generative modeling through SDEs: predictor-corrector, probability flow, likelihoods, and conditions.

Y. Song, J. Sohl-Dickstein, D. P. Kingma, A. Kumar, S. Ermon and B. Poole, "Score-Based Generative Modeling through
Stochastic Differential Equations", ICLR 2021 (arXiv 2011.13456).

Samples come from the reversed SDE dx = (f x - g^2 s) dt + g dW (equation 6), each step a predictor's and then Langevin
corrections x + k s + (2 k)^{1/2} z, k = 2 a (snr |z| / |s|)^2 (algorithms 1 to 5), or from the probability flow
dx = (f x - g^2 s / 2) dt (equation 13), whose divergence gives log densities (equation 39). All of it is
`fokker.sde.sample` and `fokker.sde.log_likelihood`; what a condition adds is in the score alone:

    class y       s(x, t) + w grad log p_t(y | x)                         (section 5, equation 14)
    inpainting    s(x~, t) off the mask, where x~ is x with the known part drawn at noise level t (appendix I.2)
    colorization  the same on channels turned by an orthogonal matrix whose first row is grey (appendix I.3)

Differences from the paper's code: k's norms are a sample's own, not averaged over the batch (``norms="batch"`` is
theirs); the known part is drawn at the time of the call itself, with its own noise a call, not at the time before; and
it enters the score, so that one loop runs every sampler. The imputed score takes p_t(unknown | known) for that of one
noisy draw of the known part: exact as t falls to 0, and corrections make up for the way there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import random, sde
from ..random import Stream
from ._particles import finite

__all__ = [
    "ClassConditional", "Imputed", "bits_per_dim", "colorize", "dequantize", "grey_first", "inpaint",
    "predictor_corrector", "probability_flow",
]  # fmt: skip

TITLE = "predictor-corrector, probability flow, bits per dimension; classes, inpainting, colorization by one score"
PAPER = "Song et al., ICLR 2021, arXiv 2011.13456"
EXAMPLE = "score_sde.inpaint(score, sde.VE(), image, mask, (16, 3, 32, 32), 500, seed=0)"


def predictor_corrector(
    score: Callable[..., Tensor], process: Any, shape: Sequence[int], steps: int, seed: Any = None, *,
    snr: float = 0.16, corrections: int = 1, predictor: sde.Sampler | None = None, rule: str = "norm",
    norms: str = "sample", prediction: str = "score", **options: Any,
) -> Tensor:  # fmt: skip
    """Samples by algorithm 1: ``predictor`` (reverse diffusion where None) and Langevin ``corrections`` at every level.

    Options as in `fokker.sde.sample` and `fokker.sde.PredictorCorrector`; 0.16 is the paper's snr for VE on CIFAR-10.
    ValueError: samples that are not finite.
    """
    sampler = sde.PredictorCorrector(
        sde.ReverseDiffusion() if predictor is None else predictor, snr, corrections, rule, norms
    )
    return finite(sde.sample(score, process, sampler, shape, steps, seed, prediction=prediction, **options))


def probability_flow(
    score: Callable[..., Tensor], process: Any, shape: Sequence[int], seed: Any = None, *, rtol: float = 1e-5,
    atol: float = 1e-5, prediction: str = "score", **options: Any,
) -> Tensor:  # fmt: skip
    """Samples by adaptive Runge-Kutta steps along the probability flow (section 4.3)."""
    flow = sde.ProbabilityFlow(rtol, atol)
    return finite(sde.sample(score, process, flow, shape, seed=seed, prediction=prediction, **options))


def dequantize(
    images: Tensor, levels: int = 256, ends: tuple[float, float] = (-1.0, 1.0), *, seed: Any = 0, sample_ids: Any = None
) -> Tensor:
    """Whole numbers 0 .. levels - 1 ``(B, ...)`` spread evenly over their bins and put into ``ends``, float32."""
    if not images.is_cuda and bool(((images < 0) | (images >= levels)).any()):
        raise ValueError(f"images must hold whole numbers from 0 to {levels - 1}")
    place = {"seed": seed, "stream": Stream.TRAINING_NOISE, "sample_ids": sample_ids, "device": images.device}
    u = random.uniform(images.shape[0], tuple(images.shape[1:]), **place)
    return ends[0] + (ends[1] - ends[0]) / levels * (images + u)


def bits_per_dim(
    score: Callable[..., Tensor], process: Any, x: Tensor, *, levels: int = 256,
    ends: tuple[float, float] = (-1.0, 1.0), prediction: str = "score", **options: Any,
) -> Tensor:  # fmt: skip
    """-log2 p(x) / D + log2(levels / (high - low)), ``(B,)`` in float64: what a number of ``levels`` costs.

    x: dequantised samples in ``ends``. The mean over data bounds the negative log-likelihood of the whole numbers from
    above (section 4.3; Theis et al. 2016). Options as in `fokker.sde.log_likelihood`.
    """
    found = sde.log_likelihood(score, process, x, prediction=prediction, **options)
    return -found.log_prob / (math.log(2) * x[0].numel()) + math.log2(levels / (ends[1] - ends[0]))


class ClassConditional:
    """s(x, t) + scale grad log p_t(y | x): a model for any sampler with prediction "score".

    Args:
        score: model(x, t).
        classifier: log p_t(y | x) of every class, called as classifier(x, t) -> ``(B, classes)``, differentiable in x.
        y: classes ``(B,)`` in int64, or one for all.
        scale: w of the classifier; 1 samples p(x | y).
    """

    def __init__(
        self, score: Callable[..., Tensor], classifier: Callable[..., Tensor], y: Tensor | int, scale: float = 1.0
    ) -> None:
        self.score, self.classifier, self.y, self.scale = score, classifier, y, scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            given = x.detach().requires_grad_()
            logs = self.classifier(given, t)
            if not isinstance(logs, Tensor) or logs.dim() != 2 or logs.shape[0] != x.shape[0]:
                seen = tuple(logs.shape) if isinstance(logs, Tensor) else type(logs).__name__
                raise ValueError(f"classifier must return shape ({x.shape[0]}, classes), got {seen}")
            if not logs.requires_grad:
                raise ValueError("classifier must be differentiable in x: its result has no gradient")
            y = torch.as_tensor(self.y, device=x.device).expand(x.shape[0])
            (slope,) = torch.autograd.grad(logs.gather(1, y[:, None]).sum(), given)
        return self.score(x, t) + self.scale * slope.to(x.dtype)


class Imputed:
    """The score of what is off the mask, given the rest: a model for any sampler with prediction "score".

    Args:
        score: the unconditional model(x, t).
        process: of `fokker.sde`, which draws the known part at noise level t.
        known: the known numbers ``(B, ...)`` or ``(...)``; what is off the mask in them does not matter.
        mask: bool, True where known, of known's shape without the batch or with it.
        channels: an orthogonal matrix ``(C, C)``: known, mask and the state are then of channels turned by it
            (dimension 1), the score of those before.
        seed, sample_ids: of the known part's noise.

    Make a new one for a new run: it counts its calls.
    """

    def __init__(
        self, score: Callable[..., Tensor], process: Any, known: Tensor, mask: Tensor, *,
        channels: Tensor | None = None, seed: int = 0, sample_ids: Any = None,
    ) -> None:  # fmt: skip
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask must have dtype bool, got {mask.dtype}")
        self.score, self.process, self.known, self.mask = score, process, known, mask
        self.channels, self.seed, self.ids, self.calls = channels, seed, sample_ids, 0

    def turned(self, x: Tensor, back: bool = False) -> Tensor:
        """Channels turned by the matrix, or back."""
        if self.channels is None:
            return x
        m = self.channels.to(x)
        return torch.einsum("ji,bj...->bi..." if back else "ij,bj...->bi...", m, x)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        known, now = self.known.to(x).expand(x.shape), t.flatten()[:1].double()
        level = torch.stack([self.process.alpha(now), self.process.sigma(now)], 1)[0].to(x.dtype)
        place = {"seed": self.seed, "step": self.calls, "stream": Stream.TRAINING_NOISE, "sample_ids": self.ids}
        self.calls += 1
        given = torch.where(self.mask, sde.affine_step(known, (), level, **place), x)
        s = self.turned(self.score(self.turned(given, back=True), t))
        return s.masked_fill(self.mask, 0.0)

    def finish(self, x: Tensor) -> Tensor:
        """Samples with the known part as it is, channels turned back."""
        return self.turned(torch.where(self.mask, self.known.to(x), x), back=True)


def inpaint(
    score: Callable[..., Tensor], process: Any, known: Tensor, mask: Tensor, shape: Sequence[int], steps: int,
    seed: int = 0, *, channels: Tensor | None = None, sample_ids: Any = None, **options: Any,
) -> Tensor:  # fmt: skip
    """Samples given the known part (appendix I.2), by `predictor_corrector` of `Imputed`."""
    for name, given in (("known", known), ("mask", mask)):
        try:
            torch.broadcast_shapes(given.shape, tuple(shape))
        except RuntimeError:
            raise ValueError(f"{name} {tuple(given.shape)} must fit samples of shape {tuple(shape)}") from None
    model = Imputed(score, process, known, mask, channels=channels, seed=seed, sample_ids=sample_ids)
    return model.finish(predictor_corrector(model, process, shape, steps, seed, sample_ids=sample_ids, **options))


def grey_first(channels: int = 3) -> Tensor:
    """An orthogonal matrix with rows (1, .. 1) / C^{1/2}, then differences of channels (Helmert's)."""
    rows = [torch.ones(channels, dtype=torch.float64, device="cpu")]
    for k in range(1, channels):
        row = torch.zeros(channels, dtype=torch.float64, device="cpu")
        row[:k], row[k] = 1.0, -float(k)
        rows.append(row)
    m = torch.stack(rows)
    return m / m.norm(dim=1, keepdim=True)


def colorize(
    score: Callable[..., Tensor], process: Any, grey: Tensor, shape: Sequence[int], steps: int, seed: int = 0,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Colours for grey images (the mean of the channels, ``(B, 1, H, W)`` or ``(1, H, W)``): appendix I.3.

    ``shape`` is ``(B, C, H, W)``; the samples' channels have the mean ``grey`` exactly.
    """
    c = shape[1]
    known = torch.zeros(*grey.shape[:-3], c, *grey.shape[-2:], dtype=grey.dtype, device=grey.device)
    known[..., :1, :, :] = grey * math.sqrt(c)
    mask = torch.zeros(c, 1, 1, dtype=torch.bool, device=grey.device)
    mask[0] = True
    return inpaint(score, process, known, mask, shape, steps, seed, channels=grey_first(c), **options)
