r"""Exponential integrators as tables: DPM-Solver and DPM-Solver++ with and without noise, UniPC, DEIS, LMS.

With lambda = log(alpha / sigma) and h the step in it, the flow of a prediction m is, exactly,

    x0 (z = -h, G = alpha'):       x' = (sigma' / sigma) x - G z int_0^1 e^{z (1 - u)} m(lambda + u h) du
    epsilon (z = h, G = sigma'):   x' = (alpha' / alpha) x - G z int_0^1 e^{z (1 - u)} m(lambda + u h) du

(Lu et al., "DPM-Solver", 2022, proposition 3.1; "DPM-Solver++", 2022, proposition 4.1): the methods differ in the
polynomial that stands for m. A step that ends where sigma = 0 or begins where alpha = 0 is infinite: order 1 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, float64, tensor

from ._sde_samplers import Level, Sampler, levels, step_up
from ._sde_table import Row

__all__ = ["DEIS", "LMS", "DPMSolver", "UniPC", "phi"]


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^{z (1 - u)} u^{k-1} / (k-1)! du, without cancellation (Hochbruck and Ostermann 2010)."""
    if abs(z) < 1:
        term, total = 1 / math.factorial(k), 0.0
        for n in range(1, 25):
            total += term
            term *= z / (n + k)
        return total
    value = math.expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / z
    return value


def polynomial_weights(nodes: Sequence[float], z: float) -> list[float]:
    """w_j = int_0^1 e^{z (1 - u)} l_j(u) du for the Lagrange polynomials of the nodes u_j (0 now, 1 at the target)."""
    moments = [math.factorial(k) * phi(k + 1, z) for k in range(len(nodes))]
    powers = np.vander(np.array(nodes, dtype=np.float64), increasing=True).T
    return np.linalg.solve(powers, np.array(moments)).tolist()


def _flow(data: bool, old: Level, new: Level) -> tuple[float, float, float]:
    """(what x is multiplied by, G, z) of a step."""
    h = step_up(old, new)
    if data:
        return new.s / old.s, new.a, -h
    return (new.a / old.a if old.a else math.inf), new.s, h


def _constant(data: bool, old: Level, new: Level, eta: float = 0.0) -> float:
    """-G expm1(z), what a prediction that does not change is multiplied by: finite at infinite steps too."""
    lead, size, z = _flow(data, old, new)
    if not data and math.isinf(z):
        return -lead * old.s
    return -size * math.expm1(z * (1 + eta))


def _order(i: int, order: int, grid: Sequence[Level], last_order: bool) -> int:
    """The order that step i can have: a prediction more each step, 1 where a step it looks at is infinite."""
    if not math.isfinite(step_up(grid[i], grid[i + 1])) or (last_order and i + 2 == len(grid)):
        return 1
    k = 1
    while k < min(order, i + 1) and math.isfinite(grid[i - k].l):
        k += 1
    return k


@dataclass(frozen=True)
class DPMSolver(Sampler):
    r"""DPM-Solver (predict="epsilon") and DPM-Solver++ (predict="x0") of order 1, 2 or 3; eta > 0: their SDE forms.

    multistep: order k reads k - 1 earlier predictions; one network call a step. kind "exact" integrates the polynomial
    through them exactly. "published" is the 2M of the paper, x' = (sigma' / sigma) x - alpha' expm1(-h) (m0 + (m0 -
    m1) / (2 r)), r = h_before / h, and the 3M of published code, whose second difference has half its weight: that one
    is of order 2. None: "published" for order 2, "exact" for order 3. Else singlestep: order 2 at the middle of the
    step in lambda, order 3 at its thirds (Lu et al. 2022, algorithms 1 and 2; DPM-Solver++ algorithm 1), ``order``
    calls a step.

    eta (multistep, x0): the reverse SDE whose noise has eta times the variance of its own, x' = (sigma' / sigma)
    e^{-eta h} x + ... + sigma' (1 - e^{-2 eta h})^{1/2} w, with (1 + eta) h for h in the weights (SDE-DPM-Solver++, Lu
    et al. 2022, section 5; Gonzalez et al. 2023). Orders 1, 2, 3 in h for eta = 0, at least 1 in law for eta > 0.

    ``lower_order_final``: order 1 in the last step, for few steps.
    """

    order: int = 2
    predict: str = "x0"
    multistep: bool = True
    eta: float = 0.0
    kind: str | None = None
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if self.predict not in ("x0", "epsilon"):
            raise ValueError(f"predict must be 'x0' or 'epsilon', got {self.predict!r}")
        if self.kind not in (None, "published", "exact"):
            raise ValueError(f"kind must be 'published', 'exact' or None, got {self.kind!r}")
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a finite number >= 0, got {self.eta}")
        if self.eta and not (self.multistep and self.predict == "x0"):
            raise ValueError("eta > 0 needs multistep=True and predict='x0'")

    @property
    def native(self) -> str:  # type: ignore[override]
        return self.predict

    @property
    def history(self) -> int:  # type: ignore[override]
        return self.order - 1 if self.multistep else 0

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = levels(process, times)
        rows = []
        for i in range(len(grid) - 1):
            if self.multistep:
                rows.append(self._multistep(i, grid))
            else:
                rows += self._singlestep(i, grid, process)
        return rows

    def _multistep(self, i: int, grid: Sequence[Level]) -> Row:
        data, old, new = self.predict == "x0", grid[i], grid[i + 1]
        lead, size, z = _flow(data, old, new)
        h = step_up(old, new)
        weights = {}
        if self.eta:
            lead, z = lead * math.exp(-self.eta * h), z * (1 + self.eta)
            weights["z"] = new.s * math.sqrt(-math.expm1(-2 * self.eta * h))
        order = _order(i, self.order, grid, self.lower_order_final)
        if order == 1:
            return Row(i, old.t, {"x": {"x": lead, "m0": _constant(data, old, new, self.eta), **weights}})
        if (self.kind or ("published" if self.order == 2 else "exact")) == "exact":
            w = [z * v for v in polynomial_weights([(grid[i - k].l - old.l) / h for k in range(order)], z)]
        elif order == 2:
            r = step_up(grid[i - 1], old) / h
            w = [math.expm1(z) * (1 + 0.5 / r), -math.expm1(z) * 0.5 / r]
        else:
            # m0 + d1 u + d2 u^2 / 2 of divided differences d1 at u = 0 and d2
            r0, r1 = step_up(grid[i - 1], old) / h, step_up(grid[i - 2], grid[i - 1]) / h
            second = np.array([1 / r0, -1 / r0 - 1 / r1, 1 / r1]) / (r0 + r1)
            first = np.array([1 / r0, -1 / r0, 0.0]) + r0 * second
            value = np.array([phi(1, z), 0.0, 0.0]) + phi(2, z) * first + phi(3, z) * second
            w = (z * value).tolist()
        weights |= {f"m{k}": -size * v for k, v in enumerate(w)}
        return Row(i, old.t, {"x": {"x": lead, **weights}})

    def _singlestep(self, i: int, grid: Sequence[Level], process: Any) -> list[Row]:
        data, old, new = self.predict == "x0", grid[i], grid[i + 1]
        lead, size, z = _flow(data, old, new)
        if self.order == 1 or not math.isfinite(z) or (self.lower_order_final and i + 2 == len(grid)):
            return [Row(i, old.t, {"x": {"x": lead, "m0": _constant(data, old, new)}})]
        parts = (0.5,) if self.order == 2 else (1 / 3, 2 / 3)
        at = tensor([old.l + r * (new.l - old.l) for r in parts], dtype=float64)
        middle = levels(process, process.time_of_log_snr(at))
        lead1 = _flow(data, old, middle[0])[0]
        rows = [Row(i, old.t, {"x": {"x": lead1, "m0": _constant(data, old, middle[0])}}, keep=True)]
        if self.order == 2:
            last = {"s": lead, "m0": -size * math.expm1(z)}  # r = 1/2: the prediction at the middle for both
            return [*rows, Row(i, middle[0].t, {"x": last})]
        lead2, size2, z2 = _flow(data, old, middle[1])
        slope = -size2 * z2 * phi(2, z2) * 2  # r2 / r1 = 2
        rows.append(Row(i, middle[0].t, {"x": {"s": lead2, "m1": -size2 * math.expm1(z2) - slope, "m0": slope}}))
        slope = -size * z * phi(2, z) / parts[1]
        return [*rows, Row(i, middle[1].t, {"x": {"s": lead, "m2": -size * math.expm1(z) - slope, "m0": slope}})]


@dataclass(frozen=True)
class UniPC(Sampler):
    r"""The unified predictor-corrector of order 1, 2 or 3 (Zhao et al., "UniPC", 2023, algorithms 1 and 5, in x0).

    The predictor of order p from the corrected state, the corrector from the prediction at the uncorrected one (no
    further call): x_c = (sigma' / sigma) x - alpha' B [expm1(z) m0 / B + sum_k rho_k (m_k - m0) / r_k], z = -h, with
    sum_k r_k^{j-1} rho_k = z phi_{j+1}(z) j! / B; B = z ("bh1") or expm1(z) ("bh2"). Corrector and predictor are one
    pass with results x', x_c. Order p + 1.
    """

    order: int = 2
    solver: str = "bh2"
    corrector: bool = True
    history = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order}")
        if self.solver not in ("bh1", "bh2"):
            raise ValueError(f"solver must be 'bh1' or 'bh2', got {self.solver!r}")

    def _update(self, old: Level, new: Level, others: Sequence[Level]) -> list[float]:
        """[of x, of the prediction at ``old``, of those at ``others``] of a step from old to new."""
        lead, size, z = _flow(True, old, new)
        total = math.expm1(z)
        if not others:
            return [lead, -size * total]
        scale = z if self.solver == "bh1" else total
        r = [step_up(old, level) / step_up(old, new) for level in others]
        if len(r) == 1:
            rho = np.array([0.5])
        else:
            right = [z * phi(j + 1, z) * math.factorial(j) / scale for j in range(1, len(r) + 1)]
            rho = np.linalg.solve(np.vander(np.array(r), increasing=True).T, np.array(right))
        part = [-size * scale * float(p) / q for p, q in zip(rho, r, strict=True)]
        return [lead, -size * total - sum(part), *part]

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = levels(process, times)
        rows = []
        for i in range(len(grid) - 1):
            old, new = grid[i], grid[i + 1]
            p = _order(i, self.order, grid, False)
            w = self._update(old, new, [grid[i - k] for k in range(1, p)])
            step = {"x": w[0], **{f"m{k}": v for k, v in enumerate(w[1:])}}
            # the corrector of the step that led here has the order that step's predictor had
            q = _order(i - 1, self.order, grid, False) if i else 0
            if i == 0 or not self.corrector or not math.isfinite(step_up(grid[i - 1], old)):
                rows.append(Row(i, old.t, {"x": step}, keep=self.corrector))
                continue
            before = grid[i - 1]
            c = self._update(before, old, [*(grid[i - 1 - k] for k in range(1, q)), old])
            fixed = {"s": c[0], "m1": c[1], **{f"m{1 + k}": c[1 + k] for k in range(1, q)}, "m0": c[-1]}
            both = {k: w[0] * v for k, v in fixed.items()}
            for k, v in step.items():
                if k != "x":
                    both[k] = both.get(k, 0.0) + v
            rows.append(Row(i, old.t, {"x": both, "s": fixed}))
        return rows


@dataclass(frozen=True)
class DEIS(Sampler):
    r"""x' = (alpha' / alpha) x + alpha' sum_j m_j int l_j(v) d(sigma / alpha), m = epsilon, of order 1 to 4.

    The multistep exponential integrator of Zhang and Chen, "Fast sampling of diffusion models with exponential
    integrator" (2023), equations 14 and 15: Lagrange polynomials l_j in variable v = "log_rho" (log(sigma / alpha)),
    "time" (their tAB-DEIS) or "rho" (their rhoAB: linear multistep, see `LMS`).
    """

    order: int = 3
    variable: str = "log_rho"
    native = "epsilon"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be from 1 to 4, got {self.order}")
        if self.variable not in ("log_rho", "time", "rho"):
            raise ValueError(f"variable must be 'log_rho', 'time' or 'rho', got {self.variable!r}")

    @property
    def history(self) -> int:  # type: ignore[override]
        return self.order - 1

    def _weights(self, grid: Sequence[Level], i: int, order: int, process: Any) -> list[float]:
        """The integrals over sigma / alpha from level i to level i + 1."""
        old, new = grid[i], grid[i + 1]
        back = [grid[i - k] for k in range(order)]
        if self.variable == "log_rho" and order > 1:
            h = step_up(old, new)  # an epsilon's integral, e^{-lambda} taken out
            w = polynomial_weights([(b.l - old.l) / h for b in back], h)
            return [-new.s / new.a * h * v for v in w]
        x, share = np.polynomial.legendre.leggauss(32)
        u, share = 0.5 * (x + 1), 0.5 * share
        if self.variable == "time" and order > 1:
            lam = old.l + u * (new.l - old.l)
            at = process.time_of_log_snr(tensor(lam)).numpy()
            mass, nodes = share * -np.exp(-lam) * (new.l - old.l), [b.t for b in back]
        else:
            low, high = old.s / old.a, new.s / new.a
            at, mass, nodes = low + u * (high - low), share * (high - low), [b.s / b.a for b in back]
        found = []
        for j, own in enumerate(nodes):
            rest = [n for k, n in enumerate(nodes) if k != j]
            found.append(float((mass * np.prod([(at - n) / (own - n) for n in rest], axis=0)).sum()))
        return found

    def rows(self, process: Any, times: Tensor) -> list[Row]:
        grid = levels(process, times)
        rows = []
        for i in range(len(grid) - 1):
            old, new = grid[i], grid[i + 1]
            if self.variable == "rho" and new.s == 0:
                order = min(self.order, i + 1)
            else:
                order = _order(i, self.order, grid, False)
            lead = new.a / old.a if old.a else math.inf
            w = self._weights(grid, i, order, process) if old.a else [math.inf]
            rows.append(Row(i, old.t, {"x": {"x": lead, **{f"m{k}": new.a * v for k, v in enumerate(w)}}}))
        return rows


@dataclass(frozen=True)
class LMS(DEIS):
    """Adams and Bashforth's linear multistep in sigma / alpha, of order 1 to 4 (k-diffusion's LMS; `DEIS` in rho)."""

    order: int = 4
    variable: str = "rho"
