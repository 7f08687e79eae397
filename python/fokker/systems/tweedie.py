r"""Tweedie's formula: denoising by the score of the noisy data alone, for any exponential family, and what follows.

With l'(y) = grad log p(y) the score of the *noisy* data (Robbins 1956; Efron, "Tweedie's Formula and Selection Bias",
2011; K. Kim and J. C. Ye, "Noise2Score", NeurIPS 2021, arXiv 2106.07009):

    Gaussian     y = x + sigma z              E[x | y] = y + sigma^2 l'(y)                                  exact
    Poisson      y = zeta k, k ~ P(x / zeta)  E[x | y] = (y + zeta) p(y + zeta) / p(y)                      exact
        "midpoint"                            (y + zeta) exp(zeta l'(y + zeta / 2))
        "second_order"                        (y + zeta) exp(zeta l'(y) + zeta^2 l''(y) / 2)
        "published"                           (y + zeta / 2) exp(zeta l'(y))        up to 7 % off at small counts
    Gamma        y = x g, g ~ Gamma(k) / k    1 / E[1 / x | y] = k y / (k - 1 - y l'(y))                    exact
        "published" takes it for E[x | y], which it is below (5 % at k = 20); "second_order" multiplies by
        1 + Var(e | y) / E[e | y]^2 of e = -k / x,  E[e | y] = l' - (k - 1) / y,  Var(e | y) = l'' + (k - 1) / y^2
    Binomial     k of n, chance x             E[x / (1 - x) | k] = (k + 1) p(k + 1) / ((n - k) p(k))        exact
    any          h(y) exp(e T(y) - A(e))      E[e | y] = (l'(y) - (log h)'(y)) / T'(y)                      exact

Scores come from a density estimate (`kde_score`), from an amortised residual denoising autoencoder (`ar_dae_loss`; Lim
et al. 2020) or from a diffusion model (`model_score`). Beside them: the noise level from the score (`noise_level`; Kim
et al., CVPR 2022, arXiv 2112.03696), predictions that a regression has shrunken (`unshrink`; Pettersson, Jerzak and
Daoud 2025, arXiv 2508.01341), the minority score and its guidance (Um et al., ICLR 2024, arXiv 2301.12334), and
mean-field variational denoising under a score prior (`variational`; Cheng et al., "ScoreDVI", 2023, arXiv 2308.04682).

A score is a function of states ``(B, ...)`` that returns their shape and dtype; its finite values are checked (which
waits for the device). What differs from published code is said where it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kde, random
from .._sde_processes import Process, as_time, positive, spread
from .._sde_table import conversions
from ..random import Stream
from ._tweedie_families import Binomial, ExponentialFamily, Gamma, Gaussian, Poisson, Score, checked, state

__all__ = [
    "Binomial", "ExponentialFamily", "Gamma", "Gaussian", "Poisson", "Variational", "ar_dae_loss", "guided",
    "kde_score", "minority_score", "model_score", "noise_level", "unshrink", "variational",
]  # fmt: skip

TITLE = "denoising by the score of the noisy data: Gaussian, Poisson, Gamma, binomial noise; what else the score tells"
PAPER = "Kim and Ye, 2021, arXiv 2106.07009"
EXAMPLE = "tweedie.Poisson(gain=0.05).denoise(y, tweedie.kde_score(y, 0.05))"


def kde_score(data: Tensor, bandwidth: float, *, exclude_self: bool = False) -> Score:
    """The score of a Gaussian kernel density estimate of ``(N, ...)``, as a function of ``(B, ...)``.

    It is that of y + bandwidth z: with Gaussian noise take (sigma^2 + bandwidth^2)^{1/2} for y + bandwidth z itself.
    ``exclude_self``: for y the data themselves, leave each one out of its own estimate.
    """
    rows = state(data).flatten(1) if data.dim() > 1 else state(data)[:, None]

    def score(y: Tensor) -> Tensor:
        flat = y.flatten(1) if y.dim() > 1 else y[:, None]
        return kde.score(flat, rows.to(y.dtype), bandwidth, exclude_self=exclude_self).reshape(y.shape)

    return score


def ar_dae_loss(model: Score, y: Tensor, u: float | Tensor, *, seed: int | None = None, step: int = 0) -> Tensor:
    """mean |u R(y + u n) + n|^2: R tends to the score as u falls (Lim et al. 2020).

    y ``(B, ...)``; u > 0 a number or ``(B,)``, annealed by the caller (published: 0.05 to 0.001 of the data's range);
    n of stream TRAINING_NOISE. The mean is over all elements.
    """
    size = u if isinstance(u, Tensor) else torch.full((), float(u), dtype=y.dtype, device=y.device)
    if size.dim() > 1 or (not size.is_cuda and not bool((size > 0).all())):
        raise ValueError(f"u must be > 0, a number or ({y.shape[0]},), got {u}")
    place = {"seed": seed, "step": step, "stream": Stream.TRAINING_NOISE, "dtype": y.dtype, "device": y.device}
    n, size = random.normal(y.shape[0], tuple(y.shape[1:]), **place), spread(size, state(y))
    r = model(y + size * n)
    if r.shape != y.shape:
        raise ValueError(f"model must return {tuple(y.shape)}, as y is, got {tuple(r.shape)}")
    return (size * r + n).square().mean()


def model_score(model: Callable[..., Tensor], process: Process, t: float, prediction: str = "x0") -> Score:
    """The score at one time of a process, by a model of x0, epsilon, v, score or flow: of data noised to that level."""
    p, q = (float(c) for c in conversions(process, as_time(t), prediction, "score"))
    if not (math.isfinite(p) and math.isfinite(q)):
        raise ValueError(f"a prediction {prediction!r} does not give the score at time {t}")

    def score(y: Tensor) -> Tensor:
        return p * y + q * model(y, torch.full((y.shape[0],), float(t), dtype=y.dtype, device=y.device))

    return score


def noise_level(score: Score, y: Tensor, *, epsilon: float = 1e-3, seed: int = 0) -> float:
    r"""sigma of Gaussian noise, from how a small step changes the score: sigma^2 = |e|^2 / -<e, l'(y + e) - l'(y)>.

    (Kim et al. 2022: E[x | y] is taken for constant over the step e = epsilon z; sums over the whole
    batch where they take medians over pixels.) As E[-l''] = 1 / sigma^2 - Var(x | y) / sigma^4 an element, the estimate
    is too large by (1 - Var(x | y) / sigma^2)^{-1/2}: little for data of few dimensions in many.
    """
    positive(epsilon=epsilon)
    state(y)
    e = epsilon * random.normal(y.shape[0], tuple(y.shape[1:]), seed=seed, dtype=y.dtype, device=y.device)
    with torch.no_grad():
        change = (e * (checked(score, y + e) - checked(score, y))).double().sum()
    if not float(change) < 0:
        raise ValueError(f"the score does not fall along the steps ({float(change):.3g}): no noise level explains that")
    return math.sqrt(float(e.double().square().sum() / -change))


def unshrink(predictions: Tensor, residual_variance: float, score: Score | None = None) -> Tensor:
    """Tweedie's correction of predictions f ``(N,)`` that a regression has drawn to the mean: f - v (log p_f)'(f).

    ``residual_variance``: v = Var(Y - f), on held-out data; score: of the predictions, None: `kde_score` at Silverman's
    bandwidth. For normal data the slope of the corrected ones on Y is exactly 1, where that of f is R^2.
    """
    if not isinstance(residual_variance, (int, float)) or not 0 <= residual_variance < math.inf:
        raise ValueError(f"residual_variance must be finite and >= 0, got {residual_variance!r}")
    if state(predictions).dim() != 1 or len(predictions) < 2:
        raise ValueError(f"predictions must be (N,) with N >= 2, got {tuple(predictions.shape)}")
    if score is None:
        width = float(predictions.double().std()) * (0.75 * len(predictions)) ** -0.2
        if not width > 0:
            raise ValueError("predictions are all alike: their density has no score")
        score = kde_score(predictions, width)
    return predictions - residual_variance * checked(score, predictions)


def minority_score(
    x0: Tensor, model: Callable[..., Tensor], process: Process, t: float, *, probes: int = 8, seed: int = 0,
    distance: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """E d(x_0, E[x_0 | x_t]) over noise, ``(B,)``: how badly Tweedie's formula restores a sample (Um et al.).

    Large for samples of low density. model: x0 prediction; d: ``(B, ...)`` twice -> ``(B,)``; None: the mean square
    (the paper: LPIPS). It is computed without gradients.
    """
    if probes < 1:
        raise ValueError(f"probes must be >= 1, got {probes}")
    d = distance or (lambda a, b: (a - b).square().flatten(1).mean(1))
    total, time = 0.0, torch.full((state(x0).shape[0],), float(t), dtype=x0.dtype, device=x0.device)
    with torch.no_grad():
        for k in range(probes):
            noisy = process.diffuse(x0, t, seed=seed, step=k)
            total = total + d(x0, checked(lambda x: model(x, time), noisy))
    return total / probes  # type: ignore[return-value]


def guided(
    model: Callable[..., Tensor], process: Process, log_prob: Callable[[Tensor, Tensor], Tensor], weight: float = 1.0
) -> Callable[[Tensor, Tensor], Tensor]:
    """x0 predictions towards a level of the minority score: D + w (sigma^2 / alpha) grad log p(level | x_t).

    log_prob: (x_t, t) -> log p(level | x_t) ``(B,)``, a classifier on noisy samples (Um et al.; the
    paper's w is 2 to 4). With w = 1 and the true classifier the sampler's law is exactly p(x | level).
    """

    def found(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(y, t).sum(), y)
        a, s = process.alpha(t.double()), process.sigma(t.double())
        return model(x, t) + spread(weight * s * s / a, x) * slope

    return found


class Variational(NamedTuple):
    """What `variational` finds: a normal law of each element, and the noise that it took."""

    mean: Tensor  #: of y's shape
    variance: Tensor  #: of y's shape
    sigma: Tensor  #: ``(B,)``


def variational(
    y: Tensor, score: Score, sigma: float | None = None, *, steps: int = 200, samples: int = 1, seed: int = 0
) -> Variational:
    r"""The normal law q = N(m, diag v) of x nearest (in KL) to its posterior given y = x + sigma z and a prior's score.

    ScoreDVI's objective: E_q log p(y | x) + E_q log p(x) + H(q), the prior known by its score s alone (that of a
    Gaussian denoiser of small noise: `model_score`, `kde_score`). ``sigma=None`` learns it, one a sample, at the fixed
    point sigma^2 = mean((y - m)^2 + v), by MacKay's steps. The paper trains networks for m, v and the noise of each
    pixel; this takes natural-gradient steps (Khan and Rue 2023): precision 1 / v = 1 / sigma^2 - E s', with a running
    mean (weight step^{-0.6}) of E s' = E[s(m + v^{1/2} n) n] / v^{1/2} (Stein), and m by step^{-0.3} v times
    (y - m) / sigma^2 + E s, n in pairs of both signs. y ``(B, ...)``; ``samples`` pairs a step.
    """
    if steps < 1 or samples < 1:
        raise ValueError(f"steps and samples must be >= 1, got {steps} and {samples}")
    if sigma is not None:
        positive(sigma=sigma)
    shape = tuple(state(y).shape[1:])
    if not shape:
        raise ValueError(f"y must be (B, ...) with elements to a sample, got {tuple(y.shape)}")
    m, axes = y.clone(), tuple(range(1, y.dim()))
    noise = 0.1 * y.var(axes, keepdim=True)
    if sigma is not None:
        noise = torch.full_like(noise, sigma**2)
    curvature = torch.zeros_like(y)  # of the prior, -E s'
    with torch.no_grad():
        for k in range(steps):
            rate, precision = (k + 1) ** -0.6, torch.maximum(1 / noise + curvature, 0.1 / noise)
            root = precision.rsqrt()
            mean = torch.zeros_like(y)
            slope = torch.zeros_like(y)
            for j in range(samples):
                n = random.normal(y.shape[0], shape, seed=seed, step=k * samples + j, dtype=y.dtype, device=y.device)
                up, down = checked(score, m + root * n), checked(score, m - root * n)
                mean, slope = mean + (up + down) / (2 * samples), slope + n * (up - down) / (2 * samples * root)
            curvature = curvature - rate * (slope + curvature)
            m = m + rate**0.5 * ((y - m) / noise + mean) / precision
            if sigma is None:
                free = 1 - (1 / (precision * noise)).mean(axes, keepdim=True)
                wanted = (y - m).square().mean(axes, keepdim=True) / free.clamp(min=0.05)
                noise = noise + rate**0.5 * (wanted - noise)
    return Variational(
        m, 1 / torch.maximum(1 / noise + curvature, 0.1 / noise), noise.reshape(y.shape[0], -1)[:, 0].sqrt()
    )
