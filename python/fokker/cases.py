"""The one table of ops: what each is called with, how wrong it may be, and what it costs.

Parity, gradient, transform and compile tests, the benches and ``python -m fokker check`` all read `CASES`; an op added
here is tested, benched and cross-checked. The judge of a case is its truth table where it has one (ball arithmetic,
tests/truth), else its own reference in float64 on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import (
    _cases_denoiser_groups,
    _cases_denoiser_heads,
    _cases_denoiser_losses,
    _cases_denoiser_norms,
    _cases_sde,
    _vmf_ops,
    bessel,
    kde,
    mixture,
    pairwise,
    random,
    vmf,
)
from ._backend import use_backend
from .reference import kde as reference_kde
from .reference import mixture as reference_mixture

Arguments = tuple[Any, ...]
_HERE = Path(__file__).parent
# installed beside the package; an editable install finds the source tree's
TRUTH = _HERE / "truth" if (_HERE / "truth").exists() else _HERE.parents[1] / "tests" / "truth"
# One rounding of a float32 result to the half-precision output.
HALF = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True)
class Case:
    """One op, as every test and bench sees it."""

    name: str
    call: Callable[..., Any]
    #: ``make(size, dtype, generator)`` -> arguments on the CPU, tensors first; ``size`` is about the number of results
    make: Callable[[int, torch.dtype, torch.Generator], Arguments]
    #: dtype -> bound on `error`; a function of the arguments where the bound depends on them
    tolerance: Mapping[torch.dtype, float | Callable[..., Tensor]]
    #: the error: ``mixed`` is |e| / max(|truth|, 1), ``relative`` |e| / |truth|, ``scaled`` |e| over the row's largest
    metric: str = "mixed"
    #: rows of (arguments, truth hi, truth lo), for every dtype that has a table
    truth: Callable[[torch.dtype], list[tuple[Arguments, Tensor, Tensor]]] | None = None
    #: moderate float64 arguments for finite differences, and the indices of those it is differentiable in, how often
    gentle: Callable[[torch.Generator], Arguments] | None = None
    gradients: tuple[int, ...] = ()
    order: int = 2
    #: the reference judges in the dtype of the arguments (samples: the noise of float64 is another)
    same_dtype: bool = False
    elementwise: bool = True
    backends: tuple[str, ...] = ("reference", "cpu", "cuda", "triton", "emu")
    #: arithmetic operations of one result (rough), for the roofline
    flops: float = 0.0
    #: what the bench calls it beside: name -> function of the arguments as NumPy arrays
    opponents: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def bound(self, dtype: torch.dtype, args: Arguments) -> Any:
        """The tolerance for these arguments."""
        t = self.tolerance[dtype]
        return t(*args) if callable(t) else t

    def error(self, got: Tensor, hi: Tensor, lo: Tensor | None = None) -> Tensor:
        """Elementwise error against the truth ``hi + lo``; equal infinities and NaNs count as right."""
        # A subnormal result cannot be relatively accurate: there, errors count against the smallest normal number.
        size = hi.abs().clamp(min=torch.finfo(got.dtype).tiny)
        rounded = hi.to(got.dtype).double()  # also infinity, where the dtype ends before the truth
        got = got.detach().double().cpu()
        e = (got - hi) - (lo if lo is not None else 0.0)
        if self.metric == "mixed":
            size = size.clamp(min=1.0)
        elif self.metric == "scaled":
            size = size.amax(-1, keepdim=True).expand_as(size) if size.dim() else size
        e = torch.where(e == 0, 0.0, e.abs() / size)
        same = (got == hi) | (got.isnan() & hi.isnan()) | (got == rounded)
        return torch.where(same, 0.0, torch.where(e.isnan(), torch.inf, e))

    def judged(self, dtype: torch.dtype) -> Iterator[tuple[Arguments, Tensor, Tensor | None]]:
        """Arguments of ``dtype`` on the CPU with the truth they are held against."""
        if self.truth is not None and (rows := self.truth(dtype)):
            yield from rows
            return
        generator = torch.Generator().manual_seed(20260211)
        for size in (1, 7, 300, 4099):
            args = self.make(size, dtype, generator)
            wide = (
                args
                if self.same_dtype
                else tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
            )
            with use_backend("reference"), torch.no_grad():
                hi = self.call(*wide)
            yield args, hi.double(), None


CASES: dict[str, Case] = {}


def add(case: Case) -> None:
    """Enter a case into the table."""
    if case.name in CASES:
        raise ValueError(f"the table already has a case {case.name!r}")
    CASES[case.name] = case


@functools.cache
def table(name: str) -> dict[str, np.ndarray]:
    """A truth table by file name."""
    path = TRUTH / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: reinstall fokker (tests/truth/ holds the tables and their generators)"
        )
    with np.load(path) as data:
        return dict(data)


# ---- fokker.bessel -------------------------------------------------------------------------------------------------
def _bessel_truth(name: str) -> Callable[[torch.dtype], list[tuple[Arguments, Tensor, Tensor]]]:
    def rows(dtype: torch.dtype) -> list[tuple[Arguments, Tensor, Tensor]]:
        if dtype not in (torch.float32, torch.float64):
            return []
        t = table("bessel_f64" if dtype is torch.float64 else "bessel_f32")
        hi = torch.from_numpy(t[f"{name}_hi"])
        lo = torch.from_numpy(t[f"{name}_lo"]) if f"{name}_lo" in t else torch.zeros_like(hi)
        if dtype is torch.float32:  # a truth that float32 cannot hold is judged as what it rounds to
            small = hi.abs() < torch.finfo(dtype).tiny
            hi = torch.where(small | (hi.abs() > torch.finfo(dtype).max), hi.float().double(), hi)
        return [((torch.from_numpy(t["v"]), torch.from_numpy(t["x"])), hi, torch.where(hi.isfinite(), lo, 0.0))]

    return rows


def bessel_points(size: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orders and arguments from the whole of what ``dtype`` users meet: log-uniform, order 0 among them."""
    half = dtype in HALF
    v = 10 ** (torch.rand(size, generator=generator, dtype=torch.float64) * (5 if half else 8) - 3)
    x = 10 ** (torch.rand(size, generator=generator, dtype=torch.float64) * (6 if half else 10) - (3 if half else 4))
    v[::17] = 0.0
    return v.to(dtype), x.to(dtype)


def _single_bound(v: Tensor, x: Tensor) -> Tensor:
    return 2e-7 + 2e-11 * v.double()


for _name in bessel.FUNCTIONS:
    _is_log = _name.startswith("log_") and _name != "log_ive"
    add(
        Case(
            name=_name,
            call=getattr(bessel, _name),
            make=bessel_points,
            tolerance={
                torch.float64: 4e-15,
                torch.float32: _single_bound,
                **{k: 2 * v for k, v in HALF.items()},
            },
            metric="mixed" if _is_log else "relative",
            truth=_bessel_truth(_name),
            gentle=lambda g: (
                torch.tensor([0.3, 1.0, 2.5, 7.3, 40.2, 12.1], dtype=torch.float64),
                torch.tensor([0.7, 1.9, 2.2, 11.0, 15.0, 60.0], dtype=torch.float64),
            ),
            gradients=(0, 1),
            flops=200.0,
        )
    )


# ---- fokker.vmf ----------------------------------------------------------------------------------------------------
_TRUTH_NAMES = {
    "mean_resultant": "mean_resultant_length",
    "complement": "mean_resultant_complement",
    "resultant_second": "resultant_second_derivative",
}


def _vmf_truth(name: str) -> Callable[[torch.dtype], list[tuple[Arguments, Tensor, Tensor]]]:
    def rows(dtype: torch.dtype) -> list[tuple[Arguments, Tensor, Tensor]]:
        if dtype is not torch.float64:
            return []
        t = table("vmf_f64")
        if name.startswith("concentration_from"):
            pick = t["inverse_is_complement"] == name.endswith("complement")
            dim, x = t["inverse_dim"][pick], t["inverse_input"][pick]
            hi, lo = t["inverse_concentration_hi"][pick], t["inverse_concentration_lo"][pick]
        else:
            dim, x = t["dim"], t["concentration"]
            hi, lo = (t[f"{_TRUTH_NAMES.get(name, name)}_{part}"] for part in ("hi", "lo"))
        out = []
        for d in np.unique(dim):
            at = dim == d
            out.append(((torch.from_numpy(x[at]), int(d)), torch.from_numpy(hi[at]), torch.from_numpy(lo[at])))
        return out

    return rows


def _bregman_truth(dtype: torch.dtype) -> list[tuple[Arguments, Tensor, Tensor]]:
    if dtype is not torch.float64:
        return []
    t = table("vmf_f64")
    out = []
    for d in np.unique(t["bregman_dim"]):
        at = t["bregman_dim"] == d
        p, q, hi, lo = (torch.from_numpy(t[f"bregman_{k}"][at]) for k in ("p", "q", "hi", "lo"))
        out.append(((p, q, int(d)), hi, lo))
    return out


def _concentrations(size: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    span = 6 if dtype in HALF else 9
    k = 10 ** (torch.rand(size, generator=generator, dtype=torch.float64) * span - 3)
    k[::23] = 0.0
    return k.to(dtype)


def _vmf_arguments(name: str) -> Callable[[int, torch.dtype, torch.Generator], Arguments]:
    def make(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        if not name.startswith("concentration_from"):
            return _concentrations(size, dtype, generator), 128
        low = -3 if dtype in HALF else -6
        return (10 ** (torch.rand(size, generator=generator, dtype=torch.float64) * low - 0.1)).to(dtype), 128

    return make


def unit(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Uniform points on the sphere."""
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).to(dtype)


# float64 and float32 bounds; float32 results of a chain of a few roundings, 1.2e-7 each.
_VMF = {
    "log_normalizer": ("mixed", 4e-15, 4e-7),
    "mean_resultant": ("relative", 4e-15, 4e-7),
    "complement": ("relative", 4e-15, 4e-7),
    "resultant_derivative": ("relative", 1e-13, 1e-6),
    "resultant_second": ("relative", 1e-13, 4e-6),
    "entropy": ("mixed", 4e-15, 4e-7),
    "kl_uniform": ("relative", 1e-14, 1e-6),
    "concentration_from_resultant": ("relative", 1e-14, 1e-6),
    "concentration_from_complement": ("relative", 1e-14, 1e-6),
}
for _name, (_metric, _wide, _single) in _VMF.items():
    _inverse = _name.startswith("concentration_from")
    add(
        Case(
            name=f"vmf_{_name}",
            call=_vmf_ops.scalar[_name],
            make=_vmf_arguments(_name),
            tolerance={torch.float64: _wide, torch.float32: _single, **{k: 2 * v for k, v in HALF.items()}},
            metric=_metric,
            truth=_vmf_truth(_name),
            gentle=(lambda g: (torch.tensor([0.1, 0.35, 0.6, 0.9], dtype=torch.float64), 5))
            if _inverse
            else (lambda g: (torch.tensor([0.2, 1.5, 7.0, 30.0, 80.0], dtype=torch.float64), 5)),
            gradients=(0,) if _name != "resultant_second" else (),
            order=1 if _name == "resultant_derivative" else 2,
            flops=150.0,
        )
    )
add(
    Case(
        name="vmf_bregman",
        call=_vmf_ops.bregman,
        make=lambda size, dtype, g: (_concentrations(size, dtype, g), _concentrations(size, dtype, g), 128),
        tolerance={torch.float64: 1e-13, torch.float32: 4e-6, **{k: 2 * v for k, v in HALF.items()}},
        metric="relative",
        truth=_bregman_truth,
        gentle=lambda g: (
            torch.tensor([0.2, 1.5, 7.0, 30.0], dtype=torch.float64),
            torch.tensor([0.3, 1.4, 17.0, 10.0], dtype=torch.float64),
            5,
        ),
        gradients=(0, 1),
        backends=("reference", "cpu", "cuda", "emu"),
        flops=600.0,
    )
)


def _points(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
    k = 10 ** (torch.rand((), generator=generator, dtype=torch.float64) * 3)
    return unit((size, 64), dtype, generator), unit((64,), dtype, generator), k.to(dtype)


def _log_prob_bound(single: float) -> Callable[..., Tensor]:
    # log C + k mu.x: beside the result's own rounding, that of a sum of terms of the size of k
    return lambda x, mean, k: torch.as_tensor(single * (1 + 0.05 * float(torch.as_tensor(k).max())))


add(
    Case(
        name="vmf_log_prob",
        call=vmf.log_prob,
        make=_points,
        tolerance={torch.float64: _log_prob_bound(4e-15), torch.float32: 2e-7, **HALF},
        gentle=lambda g: (unit((4, 5), torch.float64, g), unit((5,), torch.float64, g), torch.tensor(3.0).double()),
        gradients=(0, 1, 2),
        elementwise=False,
        backends=("reference", "cpu", "cuda", "emu"),
        flops=128.0,
    )
)


def _mixture(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
    k = 10 ** (torch.rand(8, generator=generator, dtype=torch.float64) * 2)
    weights = torch.log_softmax(torch.randn(8, generator=generator, dtype=torch.float64), 0)
    return unit((size, 64), dtype, generator), unit((8, 64), dtype, generator), k.to(dtype), weights.to(dtype)


add(
    Case(
        name="vmf_mixture_log_prob",
        call=vmf.mixture_log_prob,
        make=_mixture,
        # float32: a product summed in float32 with terms up to k = 100
        tolerance={torch.float64: 1e-13, torch.float32: 4e-6, **{k: 8 * v for k, v in HALF.items()}},
        gentle=lambda g: (
            unit((6, 5), torch.float64, g),
            unit((3, 5), torch.float64, g),
            torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64),
            torch.log_softmax(torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64), 0),
        ),
        gradients=(0, 1, 2, 3),
        elementwise=False,
        backends=("reference", "cpu", "cuda", "emu"),
        flops=2 * 64 * 8,
    )
)


def _sample(mean: Tensor, k: Tensor) -> Tensor:
    return vmf.sample(mean, k, seed=20260101, step=3)


add(
    Case(
        name="vmf_sample",
        call=_sample,
        make=lambda size, dtype, g: (
            unit((max(1, size // 64), 64), dtype, g),
            _concentrations(max(1, size // 64), dtype, g),
        ),
        tolerance={torch.float64: 1e-13, torch.float32: 2e-6, **{k: 2 * v for k, v in HALF.items()}},
        metric="scaled",
        same_dtype=True,
        elementwise=False,
        backends=("reference", "cpu", "cuda", "emu"),
        flops=40.0,
    )
)


def _fit(x: Tensor, weights: Tensor) -> Tensor:
    direction, k = vmf.fit(x, weights)
    return torch.cat([direction, torch.log(k)[None]])


def _cluster(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
    size = max(size, 8)  # one point alone has no concentration
    x = unit((64,), torch.float64, generator) + 0.1 * torch.randn((size, 64), generator=generator, dtype=torch.float64)
    x = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.to(dtype), torch.rand(size, generator=generator, dtype=torch.float64).add(0.1).to(dtype)


add(
    Case(
        name="vmf_fit",
        call=_fit,
        make=_cluster,
        # the concentration is about 3000: it amplifies the rounding of 1 - R
        tolerance={torch.float64: 1e-11, torch.float32: 1e-6},
        metric="mixed",
        elementwise=False,
        backends=("reference", "cpu", "cuda", "emu"),
        flops=4.0,
    )
)


# ---- fokker.random -------------------------------------------------------------------------------------------------
_EXACT = 1e-30  # the same bits
#: metric, float64 and float32 bounds; a half may be rounded the other way, once
_RANDOM = {
    "bits": ("mixed", _EXACT, None),
    "uniform": ("mixed", _EXACT, _EXACT),
    "normal": ("mixed", 5e-15, 1e-6),
    "gumbel": ("mixed", 2e-15, 1e-6),
    "exponential": ("relative", 2e-15, 4e-7),
    "rademacher": ("mixed", _EXACT, _EXACT),
}


def _random_ids(size: int, dtype: torch.dtype, generator: torch.Generator) -> Arguments:
    return torch.randperm(max(1, size // 64), generator=generator) + 2**33, dtype


def _random_case(name: str) -> Callable[[Tensor, torch.dtype], Tensor]:
    def call(ids: Tensor, dtype: torch.dtype) -> Tensor:
        place = {"seed": 20260101, "step": 3, "stream": 9, "sample_ids": ids, "device": ids.device}
        if name == "bits":
            return random.bits(len(ids), 64, **place).to(dtype)
        return getattr(random, name)(len(ids), 64, dtype=dtype, **place)

    return call


for _name, (_metric, _wide, _single) in _RANDOM.items():
    _tolerance = {torch.float64: _wide}
    if _single is not None:
        _halves = {k: _EXACT if _single == _EXACT else 2 * v for k, v in HALF.items()}
        _tolerance |= {torch.float32: _single, **_halves}
    add(
        Case(
            name=f"random_{_name}",
            call=_random_case(_name),
            make=_random_ids,
            tolerance=_tolerance,
            metric=_metric,
            same_dtype=True,
            elementwise=False,
            flops=60.0 if _name == "normal" else 30.0,
        )
    )


def _increments(ids: Tensor, dtype: torch.dtype) -> Tensor:
    t = ((ids - ids.min()).double() + 0.5) / (len(ids) + 1)
    return random.brownian(
        len(ids), 64, t, 1.0, seed=20260101, stream=3, sample_ids=ids, dtype=dtype, device=ids.device
    )


add(
    Case(
        name="random_brownian",
        call=_increments,
        make=_random_ids,
        tolerance={torch.float64: 1e-14, torch.float32: 2e-6, **{k: 2 * v for k, v in HALF.items()}},
        same_dtype=True,
        elementwise=False,
        flops=2400.0,
    )
)


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
            gradients=(0, 1, 2),
            elementwise=False,
            **{"order": order, "flops": 500 * (2.0 * dim + 20.0), **settings},
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


def _gaussian_truth(name: str, diagonal: bool) -> Callable[[torch.dtype], list[tuple[Arguments, Tensor, Tensor]]]:
    # the dense definition, with its own factorisations
    def rows(dtype: torch.dtype) -> list[tuple[Arguments, Tensor, Tensor]]:
        if dtype not in (torch.float32, torch.float64):
            return []
        args = (_diagonals if diagonal else _gaussians)(300, dtype, torch.Generator().manual_seed(20260211))
        dense = (*args[:2], torch.diag_embed(args[2]) if diagonal else args[2], args[3])
        hi = getattr(reference_mixture, name)(*dense, _ALPHA, _SIGMA)
        return [(args, hi, torch.zeros_like(hi))]

    return rows


def _gaussian_call(name: str, diagonal: bool) -> Callable[..., Tensor]:
    def call(x: Tensor, means: Tensor, covariance: Tensor, weights: Tensor) -> Tensor:
        m = mixture.Mixture(means, covariance, weights, "diag" if diagonal else "full")
        return mixture.evaluate(x, m, outputs=(name,), alpha=_ALPHA, sigma=_SIGMA)[name]

    return call


_ALPHA, _SIGMA = 0.8, 0.6
for _name, _metric, _diagonal in (
    ("log_prob", "mixed", False),
    ("score", "scaled", False),
    ("log_prob", "mixed", True),
    ("posterior_mean", "scaled", True),
    ("responsibilities", "mixed", True),
):
    _maker = _diagonals if _diagonal else _gaussians
    add(
        Case(
            name=f"gaussian_mixture_{_name}{'_diag' if _diagonal else ''}",
            call=_gaussian_call(_name, _diagonal),
            make=_maker,
            # float32 is computed in float64 and rounded once
            tolerance={torch.float64: 1e-12, torch.float32: 2e-7},
            metric=_metric,
            truth=_gaussian_truth(_name, _diagonal),
            gentle=lambda g, make=_maker: make(4, torch.float64, g, 2, 3),
            gradients=(0, 1, 2, 3),
            order=1 if _name == "responsibilities" else 2,
            elementwise=False,
            flops=6 * ((12 if _diagonal else 12 * 12) * 2.0 + 4 * 12),
        )
    )


# ---- fokker.sde ----------------------------------------------------------------------------------------------------
_cases_sde.add_rows(Case, add, HALF)


# ---- fokker.denoiser -----------------------------------------------------------------------------------------------
_cases_denoiser_groups.add_rows(Case, add, HALF)
_cases_denoiser_norms.add_rows(Case, add, HALF)
_cases_denoiser_heads.add_rows(Case, add, HALF)
_cases_denoiser_losses.add_rows(Case, add, HALF)
