"""The rows of `fokker.kde`, `fokker.pairwise` and `fokker.mixture` in the table of ops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import kde, mixture, pairwise
from ._case import HALF, Arguments, Case, add
from .reference import kde as reference_kde
from .reference import mixture as reference_mixture


# ---- fokker.kde ----------------------------------------------------------------------------------------------------
def _cloud(dim: int) -> Callable[[int, torch.dtype, torch.Generator], Arguments]:
    def make(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        x = 3 + torch.randn(size, dim, generator=generator, dtype=torch.float64)
        y = 3 + torch.randn(max(2, min(size, 500)), dim, generator=generator, dtype=torch.float64)
        return x.to(dtype), y.to(dtype), torch.tensor(0.8 * dim**0.5, dtype=torch.float64)

    return make


def _gentle_cloud(g: torch.Generator, h: float = 1.3) -> Arguments:
    x, y = (torch.randn(n, 3, generator=g, dtype=torch.float64) for n in (4, 5))
    return x, y, torch.tensor(h, dtype=torch.float64)


def _kde_case(name: str, call: Callable[..., Tensor], dim: int, kernel: str, **settings: Any) -> None:
    order = 1 if kernel in ("laplace", "exponential", "epanechnikov", "linear") else 2
    add(
        Case(
            name=name,
            call=call,
            make=_cloud(dim),
            # float32 at "highest": 4e-7 |log p| + 2e-6 nats; in half precision its rounding besides
            tolerance={torch.float64: 1e-12, torch.float32: 2.4e-6, **{k: 2 * v for k, v in HALF.items()}},
            gentle=functools.partial(_gentle_cloud, h=6.0 if kernel in ("epanechnikov", "linear") else 1.3),
            elementwise=False,
            **{"gradients": (0, 1, 2), "order": order, "flops": 500 * (2.0 * dim + 20.0), **settings},
        )
    )


def _log_density(kernel: str) -> Callable[..., Tensor]:
    return lambda x, y, h: kde.log_prob(x, y, h, kernel=kernel, nu=3.0)


for _dim in (2, 16, 64):
    _kde_case(f"kde_log_prob_{_dim}d", _log_density("gaussian"), _dim, "gaussian")
for _kernel in reference_kde.KERNELS[1:]:
    if _kernel not in ("tophat", "cosine"):  # whose gradients are zero, or whose values all but follow epanechnikov's
        _kde_case(f"kde_{_kernel}", _log_density(_kernel), 3, _kernel)
_kde_case("kde_score", lambda x, y, h: kde.score(x, y, h), 16, "gaussian", metric="scaled")
_kde_case("kde_posterior_mean", lambda x, y, h: kde.posterior_mean(x, y, h), 16, "gaussian", metric="scaled")
_kde_case("kde_effective_sample_size", lambda x, y, h: kde.effective_sample_size(x, y, h), 16, "gaussian")
_kde_case(
    "kde_laplace_factor",
    lambda x, y, h: kde.evaluate(x, y, h, outputs=("laplace_factor",))["laplace_factor"],
    3,
    "gaussian",
)
_kde_case(
    "kde_nearest_distance",
    lambda x, y, h: kde.evaluate(x, y, h, outputs=("nearest_distance",))["nearest_distance"],
    3,
    "gaussian",
    gradients=(0, 1),
    flops=500 * 9.0,
)
_kde_case(
    "kde_kernel_sum",
    lambda x, y, h: kde.kernel_sum(x, y, y[:, :2], h, kernel="matern52"),
    3,
    "matern52",
    metric="scaled",
)


# ---- fokker.pairwise -----------------------------------------------------------------------------------------------
def _pair_of_clouds(dim: int) -> Callable[[int, torch.dtype, torch.Generator], Arguments]:
    def make(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        # many small clouds: a result each
        x = torch.randn(size, 6, dim, generator=generator, dtype=torch.float64)
        y = 0.5 + torch.randn(size, 7, dim, generator=generator, dtype=torch.float64)
        return x.to(dtype), y.to(dtype)

    return make


def _pairwise_case(
    name: str, call: Callable[..., Tensor], dim: int, gradients: tuple[int, ...] = (0, 1), **s: Any
) -> None:
    make = _pair_of_clouds(dim)
    add(
        Case(
            name=name,
            call=call,
            make=make,
            # sums of terms of order one; in half precision the rounding of the result
            tolerance={torch.float64: 1e-13, torch.float32: 2e-6, **{k: 2 * v for k, v in HALF.items()}},
            gentle=lambda g: make(2, torch.float64, g),
            gradients=gradients,
            elementwise=False,
            # most are composed of ops that have their own rows: the emulator would only be slow
            **{"backends": ("reference", "cpu", "cuda"), "flops": 3 * 42 * (3.0 * dim + 20.0), **s},
        )
    )


def _in_step(x: Tensor, y: Tensor) -> Tensor:
    return pairwise.distance_covariance(x, y[..., :6, :2], squared=True)


_pairwise_case("pairwise_mmd2", lambda x, y: pairwise.mmd2(x, y, bandwidth=[2.0, 1.0], estimator="unbiased"), 3)
_pairwise_case(
    "pairwise_energy_distance",
    lambda x, y: pairwise.energy_distance(x, y),
    3,
    backends=("reference", "cpu", "cuda", "triton", "emu"),
)
_pairwise_case("pairwise_energy_distance_1d", lambda x, y: pairwise.energy_distance(x, y), 1, order=1)
_pairwise_case("pairwise_distance_covariance", _in_step, 3)
_pairwise_case("pairwise_crps", lambda x, y: pairwise.crps(x[..., 0], y[..., 0, 0]), 1, order=1)
_pairwise_case("pairwise_energy_score", lambda x, y: pairwise.energy_score(x, y[..., 0, :]), 3)
_pairwise_case("pairwise_uniformity", lambda x, y: pairwise.uniformity(x), 3, (0,))
_pairwise_case(
    "pairwise_vendi_score", lambda x, y: pairwise.vendi_score(x, order=2.0, kernel="matern52", bandwidth=1.0), 3, (0,)
)
_pairwise_case(
    "pairwise_sinkhorn",
    lambda x, y: pairwise.sinkhorn(x, y, epsilon=0.5, iterations=5, tolerance=0.0).value,
    3,
    (),
    flops=11 * 42 * 30.0,
)


# ---- fokker.mixture ------------------------------------------------------------------------------------------------
def _gaussians(rows: int, dtype: torch.dtype, generator: torch.Generator, k: int = 6, d: int = 12) -> Arguments:
    root = torch.randn(k, d, d, generator=generator, dtype=torch.float64)
    covariance = root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)
    means = 3 + torch.randn(k, d, generator=generator, dtype=torch.float64)
    weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.1
    x = 3 + 1.5 * torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return tuple(t.to(dtype) for t in (x, means, covariance, weights))


def _diagonals(rows: int, dtype: torch.dtype, generator: torch.Generator, k: int = 6, d: int = 12) -> Arguments:
    x, means, covariance, weights = _gaussians(rows, dtype, generator, k, d)
    return x, means, covariance.diagonal(dim1=-2, dim2=-1).contiguous(), weights


def _timed(make: Callable[..., Arguments]) -> Callable[..., Arguments]:
    """The same with a diffusion time t for every query, at alpha = cos t and sigma = sin t."""

    def timed(rows: int, dtype: torch.dtype, generator: torch.Generator, *sizes: int) -> Arguments:
        args = make(rows, dtype, generator, *sizes)
        return *args, (0.1 + 1.4 * torch.rand(rows, generator=generator, dtype=torch.float64)).to(dtype)

    return timed


def _noise(time: Tensor | None) -> tuple[Any, Any]:
    return (0.8, 0.6) if time is None else (torch.cos(time.double()), torch.sin(time.double()))


def _gaussian_truth(
    name: str, make: Callable[..., Arguments]
) -> Callable[[torch.dtype], list[tuple[Arguments, Tensor, Tensor]]]:
    # the dense definition, with its own factorisations
    def rows(dtype: torch.dtype) -> list[tuple[Arguments, Tensor, Tensor]]:
        if dtype not in (torch.float32, torch.float64):
            return []
        args = make(300, dtype, torch.Generator().manual_seed(20260211))
        x, means, covariance, weights, *time = args
        dense = torch.diag_embed(covariance) if covariance.dim() == 2 else covariance
        hi = getattr(reference_mixture, name)(x, means, dense, weights, *_noise(*time or (None,)))
        return [(args, hi, torch.zeros_like(hi))]

    return rows


def _gaussian_call(name: str, diagonal: bool) -> Callable[..., Tensor]:
    def call(x: Tensor, means: Tensor, covariance: Tensor, weights: Tensor, time: Tensor | None = None) -> Tensor:
        m = mixture.Mixture(means, covariance, weights, "diag" if diagonal else "full")
        alpha, sigma = _noise(time)
        return mixture.evaluate(x, m, outputs=(name,), alpha=alpha, sigma=sigma)[name]

    return call


for _name, _metric, _diagonal, _by_time in (
    ("log_prob", "mixed", False, False),
    ("score", "scaled", False, False),
    ("log_prob", "mixed", True, False),
    ("posterior_mean", "scaled", True, False),
    ("responsibilities", "mixed", True, False),
    ("log_prob", "mixed", False, True),
    ("score", "scaled", True, True),
):
    _maker = _diagonals if _diagonal else _gaussians
    _maker = _timed(_maker) if _by_time else _maker
    add(
        Case(
            name=f"gaussian_mixture_{_name}{'_diag' if _diagonal else ''}{'_by_time' if _by_time else ''}",
            call=_gaussian_call(_name, _diagonal),
            make=_maker,
            # float32 is computed in float64 and rounded once
            tolerance={torch.float64: 1e-12, torch.float32: 2e-7},
            metric=_metric,
            truth=_gaussian_truth(_name, _maker),
            gentle=lambda g, make=_maker: make(4, torch.float64, g, 2, 3),
            gradients=(0, 1, 2, 3, 4) if _by_time else (0, 1, 2, 3),
            order=1 if _name == "responsibilities" else 2,
            elementwise=False,
            flops=6 * ((12 if _diagonal else 12 * 12) * 2.0 + 4 * 12),
        )
    )
