"""The one table of ops: what each is called with, how wrong it may be, and what it costs.

Parity, gradient, transform and compile tests, the benches and ``python -m fokker check`` all read `CASES`; an op added
here is tested, benched and cross-checked. The judge of a case is its truth table where it has one (ball arithmetic,
tests/truth), else its own reference in float64 on the CPU.
"""

from __future__ import annotations

from . import (
    _cases_bessel,  # noqa: F401
    _cases_denoiser_groups,
    _cases_denoiser_heads,
    _cases_denoiser_losses,
    _cases_denoiser_norms,
    _cases_kde,  # noqa: F401
    _cases_random,  # noqa: F401
    _cases_sde,
)
from ._case import CASES, HALF, Case, add, table

__all__ = ["CASES", "Case", "add", "table"]

for _rows in (
    _cases_sde,
    _cases_denoiser_groups,
    _cases_denoiser_norms,
    _cases_denoiser_heads,
    _cases_denoiser_losses,
):
    _rows.add_rows(Case, add, HALF)
