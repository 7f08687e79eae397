"""`fokker.kde.evaluate`: which sums its outputs need, and the outputs from the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._kde_arguments import PRECISIONS, Call, arrange, host_may_look, restore
from ._kde_nearest import NAMES as NEAREST
from ._kde_nearest import nearest
from ._kde_ops import DELTA, SLOPE, SQUARE, VALUES

KERNELS = (
    "gaussian", "laplace", "exponential", "matern32", "matern52", "student_t", "cauchy", "epanechnikov", "tophat",
    "linear", "cosine", "vmf",
)  # fmt: skip
#: sums over all data, from one pass
SUMS = ("log_prob", "score", "posterior_mean", "laplacian", "effective_sample_size", "laplace_factor")
OUTPUTS = (*SUMS, *NEAREST)


def evaluate(
    x: Any,
    data: Any,
    bandwidth: Any,
    outputs: tuple[str, ...],
    weights: Any,
    kernel: str,
    nu: float,
    exclude_self: bool,
    precision: str,
    outside: float,
) -> dict[str, Any]:
    check_outputs(outputs, kernel)
    precision = "highest" if "laplacian" in outputs and precision in PRECISIONS else precision
    c = arrange("kde", x, data, bandwidth, weights, kernel, nu, exclude_self, precision, KERNELS)
    summed = tuple(name for name in outputs if name not in NEAREST)
    found = _summed(c, summed, outside) if summed else {}
    if len(summed) < len(outputs):
        found |= nearest(c)
    return {name: restore(c, found[name]) for name in outputs}


def _summed(c: Call, outputs: tuple[str, ...], outside: float) -> dict[str, Tensor]:
    if "laplacian" in outputs:
        c = c.widened()
    per_datum = c.bandwidth.shape[2] != 1
    mask = 0
    if "score" in outputs or "laplacian" in outputs:
        mask |= SLOPE
    elif "posterior_mean" in outputs:
        mask |= VALUES
    elif torch.is_grad_enabled() and c.x.requires_grad:
        mask |= SLOPE  # the gradient in x, at hand when backward asks for it
    if {"laplacian", "laplace_factor"} & set(outputs) or (
        torch.is_grad_enabled() and c.bandwidth.requires_grad and not per_datum
    ):
        mask |= DELTA
    if "effective_sample_size" in outputs:
        mask |= SQUARE
    posterior = None
    if mask & VALUES:
        parts, posterior = posterior_sums(c, mask)
    else:
        parts = c.sums(mask)
        if "posterior_mean" in outputs and per_datum:
            posterior = posterior_sums(c, VALUES)[1]
    return finish(c, outputs, *parts, outside, posterior)


def posterior_sums(c: Call, mask: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The sums, and E[y | x]: of the data as values, as x + E[y - x] would be off by the rounding of x.

    Few coordinates have kernels for differences alone, several times faster: where the host may look, queries no
    farther out than four times the data take those.
    """
    data, queries = c.y.detach(), c.x.detach()
    far = None
    if data.shape[2] <= 4 and data.numel() and host_may_look(data, queries):
        far = ~(queries.abs().amax(-1, keepdim=True) <= 4 * data.abs().amax((1, 2), keepdim=True))
        parts = c.sums(mask)
        near = c.x + parts[1]
        if not bool(far.any()):
            return parts, c.placed(near)
    centre = data.mean(1, keepdim=True) if data.shape[1] else data.new_zeros(data.shape[0], 1, data.shape[2])
    centre = torch.where(centre.isfinite(), centre, 0.0)
    about = (c.y - centre).masked_fill_(data.isinf(), 0.0)  # a datum at infinity has no weight, and 0 * inf is NaN
    parts = c.sums(mask, about)
    found = torch.where((parts[0] == -torch.inf)[..., None], c.x, parts[1] + centre)
    return parts, c.placed(found if far is None else torch.where(far, found, near))


def check_outputs(outputs: Sequence[str], kernel: str) -> tuple[str, ...]:
    """The names, or a ValueError."""
    if unknown := [o for o in outputs if o not in OUTPUTS] or not outputs:
        raise ValueError(f"outputs must name one or more of {', '.join(OUTPUTS)}, got {unknown or outputs!r}")
    gaussian_only = {"posterior_mean", "laplacian", "laplace_factor"} & set(outputs)
    if gaussian_only and kernel != "gaussian":
        raise ValueError(f"{' and '.join(sorted(gaussian_only))} need kernel='gaussian', got {kernel!r}")
    return tuple(outputs)


def finish(
    c: Call,
    outputs: Sequence[str],
    log_sum: Tensor,
    mean: Tensor,
    square: Tensor,
    spread: Tensor,
    outside: float,
    posterior: Tensor | None = None,
) -> dict[str, Tensor]:
    """The outputs from the sums: ``mean`` the mean gradient, ``spread`` the mean of d log w / d log h.

    ``posterior`` is E[y | x] where that was summed; elsewhere it is x + h^2 times the gradient.
    """
    h = c.bandwidth
    found: dict[str, Tensor] = {}
    for name in outputs:
        if name == "log_prob":
            found[name] = c.normalised(log_sum)
        elif name == "score":
            # vmf: the row factor exp(|x|^2 / 2h^2) that turns a gaussian into an inner product
            value = mean + (c.x / h.square()).to(mean.dtype) if c.vmf else mean
            found[name] = torch.where((log_sum == -torch.inf)[..., None], outside, value) if outside != 0.0 else value
        elif name == "posterior_mean":
            found[name] = c.placed(c.x + mean * h.square().to(mean.dtype)) if posterior is None else posterior
        elif name == "laplacian":
            if h.shape[2] != 1:
                raise ValueError("laplacian needs one bandwidth or one a query, got one a datum")
            inner = h[..., 0].square()
            value = spread / inner - mean.double().square().sum(-1) - c.x.shape[-1] / inner
            found[name] = torch.where(log_sum == -torch.inf, 0.0, value)
        elif name == "laplace_factor":
            found[name] = torch.where(log_sum == -torch.inf, 0.0, 1.0 + 0.5 * (c.x.shape[-1] - spread))
        else:
            found[name] = torch.where(square == 0, 0.0, 1.0 / torch.where(square == 0, 1.0, square))
    return found
