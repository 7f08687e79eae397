"""What a row of the table of ops is (`fokker.cases`), and the table itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._backend import use_backend

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
