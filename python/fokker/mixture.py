r"""Gaussian mixtures, at any noise level: log density, score, denoiser, responsibilities, distances, samples.

For a mixture p_0 = sum_k w_k N(mu_k, S_k) (`Mixture`: isotropic, diagonal, low-rank plus isotropic or full covariances)
and x = alpha x_0 + sigma z with z standard normal, x is drawn from the mixture of N(alpha mu_k, C_k),
C_k = alpha^2 S_k + sigma^2 I: the exact marginal of a variance-exploding (alpha = 1) or variance-preserving
(alpha^2 + sigma^2 = 1) diffusion of p_0. With responsibilities r_k(x) = w_k N(x; alpha mu_k, C_k) / p(x),

    score           grad log p(x)  = -sum_k r_k C_k^-1 (x - alpha mu_k)
    posterior mean  E[x_0 | x]     =  sum_k r_k (mu_k + alpha S_k C_k^-1 (x - alpha mu_k))

and score = (alpha E[x_0 | x] - x) / sigma^2 (Tweedie's formula; Efron 2011), though neither is computed from the other.

Queries ``x`` are (..., d); ``alpha`` and ``sigma`` are numbers, or tensors that broadcast to the batch (...), one a
query. All is differentiable in x, alpha, sigma, means, covariances and weights, twice, with no array of all queries by
all components by d in either direction. Isotropic mixtures of many components whose scale does not vary along both
queries and components go to the fused sums of `fokker.kde`. Others at one noise level (on the CPU: at a few, each by
itself) go to kernels by a root of each inverse covariance (if full, a Cholesky factorisation a component and call, then
O(d^2) a pair). Queries at a level each (training's diffusion times), and low rank, go to a kernel in the components'
eigenvectors, by one eigendecomposition a mixture: full O(d^2) a pair, low rank O(d r) by Woodbury's identity and the
matrix determinant lemma, with the gradient of log p in x. Torch ops, tile by tile, do the same where other derivatives
are wanted (at many levels, or of low rank at d > 128 or of few queries), under torch.compile with gradients on, and for
full and low-rank covariances on a GPU. All in float64 with precision="highest" whatever the dtype of x (the result's
own rounding, 6e-8 of it in float32, is all that is lost), in the dtype of x with "high".

A query holding an infinity has log density -inf, score 0 and responsibilities 0; a NaN touches its row only. A number
``sigma`` < 0 is a ValueError, a tensor's entry < 0 gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._gaussian_levels import level_sums, log_density, takes
from ._gaussian_parameters import Mixture, noise_level
from ._gaussian_sampling import sample
from ._gaussian_tiles import DISTANCE, MEAN, SCORE, SHARES, _transformed, mixture_sums
from ._gaussian_whitened import root_pays, whitened_sums
from ._kde_arguments import PRECISIONS, Call, _tensor, arrange, is_number
from ._kde_ops import SLOPE, VALUES
from ._op import _dispatch_depth

__all__ = [
    "Mixture",
    "anomaly_score",
    "evaluate",
    "log_prob",
    "mahalanobis",
    "posterior_mean",
    "responsibilities",
    "sample",
    "score",
    "select_components",
]
# What a CPU's density sum, made for long rows, needs: components; with derivatives, at one level. Queries that pay for
# sums of their own, where there are several levels; with derivatives. Measured on a CPU.
_FEW, _FEW_TRACKED = 128, 16
_A_LEVEL, _A_LEVEL_TRACKED = 1024, 256
OUTPUTS = {"log_prob": 0, "score": SCORE, "posterior_mean": MEAN, "responsibilities": SHARES, "mahalanobis": DISTANCE}


def log_prob(x: Any, mixture: Mixture, *, alpha: Any = 1.0, sigma: Any = 0.0, precision: str = "highest") -> Any:
    r"""log p(x) of alpha x_0 + sigma z, x_0 from the mixture, in nats.

    Args:
        x: ``(..., d)``, a tensor or a NumPy array.
        mixture: a `Mixture`.
        alpha: a number, or a tensor that broadcasts to ``(...)``.
        sigma: a number >= 0, or a tensor that broadcasts to ``(...)``.
        precision: "highest" or "high", see the module's page ("fast" is "high").

    Returns:
        ``(...)`` in the wider of the dtypes of x and means; NumPy where neither x nor the mixture came as tensors.

    Raises:
        ValueError: shapes that do not fit, numbers out of range, an unknown precision, a covariance that is not
            positive semi-definite.
        TypeError: complex, sparse or unlike devices.
    """
    return evaluate(x, mixture, outputs=("log_prob",), alpha=alpha, sigma=sigma, precision=precision)["log_prob"]


def score(x: Any, mixture: Mixture, *, alpha: Any = 1.0, sigma: Any = 0.0, precision: str = "highest") -> Any:
    """The score grad_x log p(x), ``(..., d)``; arguments, dtypes and errors as in `log_prob`."""
    return evaluate(x, mixture, outputs=("score",), alpha=alpha, sigma=sigma, precision=precision)["score"]


def posterior_mean(x: Any, mixture: Mixture, *, alpha: Any = 1.0, sigma: Any = 0.0, precision: str = "highest") -> Any:
    """E[x_0 | alpha x_0 + sigma z = x], ``(..., d)``: the ideal denoiser; arguments as in `log_prob`."""
    name = "posterior_mean"
    return evaluate(x, mixture, outputs=(name,), alpha=alpha, sigma=sigma, precision=precision)[name]


def responsibilities(
    x: Any, mixture: Mixture, *, alpha: Any = 1.0, sigma: Any = 0.0, precision: str = "highest"
) -> Any:
    """The posterior probability of each component, ``(..., K)``; arguments as in `log_prob`."""
    name = "responsibilities"
    return evaluate(x, mixture, outputs=(name,), alpha=alpha, sigma=sigma, precision=precision)[name]


def mahalanobis(x: Any, mixture: Mixture, *, alpha: Any = 1.0, sigma: Any = 0.0, precision: str = "highest") -> Any:
    """((x - alpha mu_k)^T C_k^-1 (x - alpha mu_k))^(1/2), ``(..., K)``; the gradient at x = alpha mu_k is 0."""
    name = "mahalanobis"
    return evaluate(x, mixture, outputs=(name,), alpha=alpha, sigma=sigma, precision=precision)[name]


def evaluate(
    x: Any,
    mixture: Mixture,
    *,
    outputs: Any = ("log_prob", "score"),
    alpha: Any = 1.0,
    sigma: Any = 0.0,
    precision: str = "highest",
) -> dict[str, Any]:
    """Any of `log_prob`, `score`, `posterior_mean`, `responsibilities` and `mahalanobis` from one pass, by name.

    Arguments, dtypes and errors as in `log_prob`, shapes as in each function; a ValueError for an unknown output.
    """
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture must be a fokker.mixture.Mixture, got {type(mixture).__name__}")
    names = tuple(outputs)
    if unknown := [n for n in names if n not in OUTPUTS] or not names:
        raise ValueError(f"outputs must name one or more of {', '.join(OUTPUTS)}, got {unknown or outputs!r}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    numpy = not isinstance(x, Tensor) and mixture.numpy
    means = mixture.means
    x = _tensor("mixture", "x", x, means.device)
    if not x.dim() or x.shape[-1] != mixture.dim:
        raise ValueError(f"x must have shape (..., d={mixture.dim}) as the mixture has, got {tuple(x.shape)}")
    batch = x.shape[:-1]
    level = tuple(noise_level(v, n, batch, x.device) for v, n in ((alpha, "alpha"), (sigma, "sigma")))
    dtype = torch.promote_types(x.dtype, means.dtype)
    # An infinity is taken out, or infinity minus infinity would make NaN of what is -inf.
    infinite = (x.abs() == torch.inf).any(-1, keepdim=True) & ~x.isnan().any(-1, keepdim=True)
    rows = torch.where(infinite, 0.0, x).reshape(-1, mixture.dim)
    mask = 0
    for name in names:
        mask |= OUTPUTS[name]
    unmoved = is_number(alpha) and alpha == 1
    compute = torch.float64 if precision == "highest" or dtype is torch.float64 else torch.float32

    constants = (mixture.covariance_type, *level, mixture.means, mixture.weights, *mixture._parts)
    free = takes(*constants, x)
    sloped = not mask and not free and takes(*constants)

    def run(rows: Tensor, *level: Tensor) -> dict[str, Tensor]:
        if _fused(mixture, mask, free, *level):
            return _by_density_sums(rows, mixture, *level, unmoved, names, precision)
        return _by_components(rows, mixture, *level, mask, compute, free, sloped)

    groups = None if _fused(mixture, mask, free, *level) else _levels(mixture, free, *level)
    # the products below are in the dtype that was chosen
    with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
        found = run(rows, *level) if groups is None else _at_each(groups, run, rows, *level)
    results = {}
    for name in names:
        value = found[name].to(dtype).reshape((*batch, *found[name].shape[1:]))
        outside = {"log_prob": -torch.inf, "score": 0.0, "responsibilities": 0.0, "mahalanobis": torch.inf}
        value = torch.where(
            infinite if value.dim() == x.dim() else infinite[..., 0], outside.get(name, torch.nan), value
        )
        results[name] = value.detach().numpy() if numpy else value
    return results


def _levels(mixture: Mixture, free: bool, alpha: Tensor, sigma: Tensor) -> list[Tensor] | None:
    """The queries at each of a few noise levels, as a sampler's are; None where they are many or nobody may look."""
    n = max(alpha.shape[0], sigma.shape[0])
    plain = alpha.device.type == "cpu" and type(alpha) is type(sigma) is Tensor
    if n == 1 or not plain or _transformed() or _dispatch_depth():
        return None
    kind = mixture.covariance_type
    if (free and kind in ("isotropic", "lowrank")) or (
        torch.is_grad_enabled() and (alpha.requires_grad or sigma.requires_grad)
    ):
        return None
    code = torch.zeros(n, dtype=torch.int64, device="cpu")
    for v in (alpha, sigma):
        values, index = torch.unique(v, return_inverse=True)
        code = code * len(values) + index
    counts = torch.unique(code, return_counts=True)[1]
    rows, least = n // len(counts), _A_LEVEL if free else _A_LEVEL_TRACKED
    matrices = kind in ("full", "lowrank")
    if (len(counts) > 1 and rows < least) or (matrices and not root_pays(rows, mixture.dim)):
        return None
    return list(torch.argsort(code, stable=True).split(counts.tolist()))


def _at_each(
    groups: list[Tensor], run: Callable[..., dict[str, Tensor]], x: Tensor, *level: Tensor
) -> dict[str, Tensor]:
    if len(groups) == 1:
        return run(x, *(v[:1] for v in level))
    parts = [run(x[at], *(v if v.shape[0] == 1 else v[at[:1]] for v in level)) for at in groups]
    back = torch.argsort(torch.cat(groups))
    return {name: torch.cat([p[name] for p in parts])[back] for name in parts[0]}


def _by_components(
    x: Tensor, mixture: Mixture, alpha: Tensor, sigma: Tensor, mask: int, compute: torch.dtype, free: bool,
    sloped: bool,
) -> dict[str, Tensor]:  # fmt: skip
    noise, log_w, kind = sigma.square(), mixture.log_weights(), mixture.covariance_type
    rooted = alpha.shape[0] == sigma.shape[0] == 1 and (kind != "lowrank" or root_pays(*x.shape))
    if free and not (rooted and (kind in ("full", "diag") or (kind == "isotropic" and not mask))):
        found = level_sums(x, alpha, noise, log_w, mixture.means, mixture.factors(), mask, compute)
    elif rooted:
        means, covariance = mixture.means.double(), mixture.symmetric()
        found = whitened_sums(x, alpha, noise, log_w, means, kind, covariance, mask, compute)
    elif sloped:
        found = {"log_prob": log_density(x, alpha, noise, log_w, mixture.means, mixture.factors(), compute)}
    else:
        sums = mixture_sums(x, alpha, noise, log_w, mixture.means, mixture.factors(), mask, compute)
        wanted = ("log_prob", *(n for n in OUTPUTS if n != "log_prob" and mask & OUTPUTS[n]))
        found = dict(zip(wanted, sums, strict=True))
    if "mahalanobis" in found:
        squared = found["mahalanobis"]
        found["mahalanobis"] = torch.where(squared == 0, 0.0, torch.sqrt(torch.where(squared == 0, 1.0, squared)))
    return found


# ---- isotropic mixtures as density sums -----------------------------------------------------------------------------
def _fused(mixture: Mixture, mask: int, free: bool, alpha: Tensor, sigma: Tensor) -> bool:
    """Whether the scales alpha^2 v_k + sigma_i^2 and the centres are those of a density sum, and that pays."""
    if mixture.covariance_type != "isotropic" or mask & (SHARES | DISTANCE) or alpha.shape[0] != 1:
        return False
    few = mixture.n_components <= (_FEW if free else _FEW_TRACKED)
    if alpha.device.type == "cpu" and few and (free or sigma.shape[0] == 1):
        return False
    return sigma.shape[0] == 1 or mixture.shared


def _by_density_sums(
    x: Tensor, mixture: Mixture, alpha: Tensor, sigma: Tensor, unmoved: bool, names: tuple[str, ...], precision: str
) -> dict[str, Tensor]:
    v, noise = mixture.covariance.double(), sigma.square()
    variance = alpha.square() * v + noise  # (1,), (K,), or (n,) where v is shared
    h = torch.sqrt(variance)
    h = h[:, None] if mixture.shared else h
    # alpha mu rounded to float32 would be another mixture
    centres = mixture.means if unmoved else alpha * mixture.means.double()
    precision = "high" if precision == "fast" else precision
    c = arrange("mixture", x, centres, h, mixture.weights, "gaussian", 1.0, False, precision, ("gaussian",))
    found = {}
    if "log_prob" in names or "score" in names:
        slope = "score" in names or (torch.is_grad_enabled() and x.requires_grad)
        total, mean, _, _ = c.sums(SLOPE if slope else 0)
        found = {"log_prob": c.normalised(total)[0], "score": mean[0] if slope else mean}
    if "posterior_mean" in names:
        found["posterior_mean"] = _denoised(c, mixture, alpha, v, noise, variance)
    return found


def _denoised(c: Call, mixture: Mixture, alpha: Tensor, v: Tensor, noise: Tensor, variance: Tensor) -> Tensor:
    # mu + alpha v / c (x - alpha mu) = (sigma^2 / c) mu + (alpha v / c) x, with c = alpha^2 v + sigma^2
    keep, pull = noise / variance, alpha * v / variance
    means = mixture.means.double()
    x = c.x[0].double()
    if mixture.shared:
        values = c.sums(VALUES, means[None].to(c.x.dtype))[1][0].double()
        return keep[:, None] * values + pull[:, None] * x
    values = torch.cat([keep[:, None] * means, pull[:, None]], 1)
    mean = c.sums(VALUES, values[None].to(c.x.dtype))[1][0].double()
    return mean[:, :-1] + mean[:, -1:] * x


# ---- anomalies ------------------------------------------------------------------------------------------------------
def select_components(mixture: Mixture, keep: int | float = 1.0, by: str = "weight") -> Mixture:
    """The components that describe the bulk of the data, weights scaled to sum to one.

    Args:
        mixture: a `Mixture`.
        keep: an int, how many; or a float in (0, 1], the fewest that together hold this share of the weight.
        by: "weight", heaviest first; or "log_det", tightest (smallest log det S_k) first.

    The choice has no derivative; means, covariances and weights of those kept have. ValueError: keep, by out of range.
    """
    if by not in ("weight", "log_det"):
        raise ValueError(f"by must be 'weight' or 'log_det', got {by!r}")
    w = mixture.weights.detach().double()
    rank = torch.argsort(-w if by == "weight" else mixture.log_dets().detach(), stable=True)
    if isinstance(keep, int) and not isinstance(keep, bool):
        if not 1 <= keep <= mixture.n_components:
            raise ValueError(f"keep must be from 1 to n_components={mixture.n_components}, got {keep}")
        count = keep
    elif isinstance(keep, float) and 0 < keep <= 1:
        held = w[rank].cumsum(0) / w.sum()
        count = int((held < keep * (1 - 1e-12)).sum()) + 1
    else:
        raise ValueError(f"keep must be an int, or a float in (0, 1], got {keep!r}")
    return mixture.select(rank[:count])


def anomaly_score(
    x: Any, mixture: Mixture, *, kind: str = "log_prob", keep: int | float = 1.0, by: str = "weight",
    precision: str = "highest",
) -> Any:  # fmt: skip
    """How far each query is from the components kept, ``(...)``: the larger, the stranger.

    kind "log_prob": -log p(x); "mahalanobis": the distance to the nearest component. ``keep`` and ``by`` as in
    `select_components`: with the rare or the wide components left out, what only they explain is an anomaly. Dtypes,
    derivatives and errors as in `log_prob` and `mahalanobis`.
    """
    if kind not in ("log_prob", "mahalanobis"):
        raise ValueError(f"kind must be 'log_prob' or 'mahalanobis', got {kind!r}")
    kept = select_components(mixture, keep, by)
    if kind == "log_prob":
        return -log_prob(x, kept, precision=precision)
    nearest = mahalanobis(x, kept, precision=precision)
    return nearest.amin(-1) if isinstance(nearest, Tensor) else nearest.min(-1)
