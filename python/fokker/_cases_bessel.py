"""The rows of `fokker.bessel` and `fokker.vmf` in the table of ops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from . import _vmf_ops, bessel, vmf
from ._case import HALF, Arguments, Case, add, table


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
