"""A sampler as a table: rows of weights over a few registers, folded so that each row is one affine step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference.random import Stream

__all__ = ["Op", "Row", "Table", "fold", "stacked"]

PREDICTIONS = ("x0", "epsilon", "v", "score", "flow", "edm")


class Row(NamedTuple):
    """One affine step of a sampler.

    The registers are ``x`` (the state), ``m0, m1, ..`` (predictions, the newest first), ``s`` (a state kept from an
    earlier row), ``second`` (a model's second output) and ``z`` (fresh noise). ``results`` gives for each register that
    is written the weights of those that are read.
    """

    step: int  #: of the sampler, counted from 0
    time: float | None  #: the model is called at (x, time) before the row; None: no call
    results: Mapping[str, Mapping[str, float]]
    keep: bool = False  #: s becomes what x was when the row began
    stream: int = Stream.PREDICTOR
    number: int | None = None  #: the counter's step; that of the sampler where None
    target: float | None = None  #: a second time handed to the model (consistency trajectories)
    native: str = ""  #: what m0 is here, if not what the sampler's other rows take
    langevin: tuple[float, float] | None = None  #: (r, a) of a step that Langevin's rule makes on the device
    log_prob: float | None = None  #: the standard deviation of a step whose log-probability is wanted
    multiplicative: bool = False  #: x exp(weights), x's own being a constant


class Op(NamedTuple):
    """A row, folded: what one iteration of the loop in `_sde_sample` does."""

    step: int
    last: bool  #: of its step
    call: int | None  #: which row of the table of times
    time: float | None
    target: int | None
    terms: tuple[str, ...]
    writes: tuple[str, ...]
    table: int
    row: int
    noise: tuple[int, int] | None  #: stream and counter's step
    share: float  #: the guided model's weight, the guide having 1 - share
    mix: bool  #: whether guide and model are added up before the row
    keep: bool
    store: bool  #: whether later rows read this row's prediction
    clip: bool
    langevin: tuple[float, ...] | None
    log_prob: float | None
    multiplicative: bool


@dataclass
class Table:
    """All rows of one run: float64 weights until `to` casts them, once."""

    ops: list[Op]
    weights: list[Any]
    times: list[float]
    targets: list[float]
    depth: int  #: predictions kept
    calls: int

    def to(self, dtype: torch.dtype, device: Any) -> list[Tensor]:
        """The weights by pattern, ``(rows, C)`` or ``(rows, R, C)``; of `stacked`, with a B after the rows."""
        return [torch.as_tensor(w, dtype=torch.float64, device="cpu").to(dtype).to(device) for w in self.weights]


def stacked(tables: Sequence[Table]) -> Table:
    """One table of samples that have each their own times: the same rows, weights and times with a place a sample."""

    def shape(table: Table) -> list[Op]:
        return [op._replace(time=None) for op in table.ops]

    first = tables[0]
    if any(shape(t) != shape(first) for t in tables[1:]):
        raise ValueError(
            "times of each sample need a sampler whose rows differ in their weights alone: no Langevin rule, step "
            "log-probabilities or guidance by time, and churn for all samples or none"
        )
    every = [torch.tensor(w, dtype=torch.float64, device="cpu") for t in tables for w in t.weights]
    count = len(first.weights)
    weights: list[Any] = [torch.stack(every[k::count], 1) for k in range(count)]
    times: Any = torch.tensor([t.times for t in tables], dtype=torch.float64, device="cpu").T
    targets: Any = torch.tensor([t.targets for t in tables], dtype=torch.float64, device="cpu").T
    return Table(first.ops, weights, times, targets, first.depth, first.calls)


def _parts(process: Any, t: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(u, w) of a prediction u x_0 + w eps at times t."""
    zero = torch.zeros_like(t)
    if name == "x0":
        return zero + 1, zero
    if name in ("epsilon", "score"):
        return zero, zero + 1
    a, s = process.alpha(t), process.sigma(t)
    if name == "v":
        return -s, a
    if name == "flow":
        return process.slopes(t)
    if name == "edm":  # x_0 = c_skip x + c_out F
        d = process.sigma_data
        skip, out = d * d / (s * s + d * d), s * d / torch.sqrt(s * s + d * d)
        return (1 - skip * a) / out, -skip * s / out
    raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {name!r}")


def conversions(process: Any, t: Tensor, given: str, wanted: str) -> tuple[Tensor, Tensor]:
    """(P, Q) with wanted = P x + Q given, at each of the float64 times t.

    Every prediction is u x_0 + w eps of x = alpha x_0 + sigma eps: x0 (1, 0); epsilon (0, 1); score (0, -1 / sigma);
    v = (-sigma, alpha) (Salimans and Ho 2022); flow = the path's slope (alpha', sigma') (Lipman et al. 2023); edm:
    x_0 = c_skip x + c_out F (Karras et al. 2022, table 1). So P = (u' w - w' u) / D and Q = (w' alpha - u' sigma) / D,
    D = alpha w - sigma u; infinite or NaN where ``given`` does not tell.
    """
    if given == wanted or wanted == "raw":
        return torch.zeros_like(t), torch.ones_like(t)
    a, s = process.alpha(t), process.sigma(t)
    u, w = _parts(process, t, given)
    v, y = _parts(process, t, wanted)
    d = a * w - s * u
    p, q = (v * w - y * u) / d, (y * a - v * s) / d
    if given == "score":
        q = q * -s
    return (-p / s, -q / s) if wanted == "score" else (p, q)


def _finite(p: float, q: float, process: Any, t: float, given: str, wanted: str) -> tuple[float, float]:
    if not (math.isfinite(p) and math.isfinite(q)):
        raise ValueError(
            f"a prediction {given!r} does not give {wanted!r} at time {t:.6g}, where alpha = "
            f"{float(process.alpha(t)):.3g}, sigma = {float(process.sigma(t)):.3g}"
        )
    return p, q


def conversion(process: Any, t: float, given: str, wanted: str) -> tuple[float, float]:
    """`conversions` at one time; a ValueError where they are not finite (x0 of epsilon where alpha = 0, for one)."""
    p, q = (float(c) for c in conversions(process, torch.tensor(t, dtype=torch.float64, device="cpu"), given, wanted))
    return _finite(p, q, process, t, given, wanted)


class _Conversions:
    """`conversion` at the times of all rows, made at once."""

    def __init__(self, process: Any, rows: Sequence[Row]) -> None:
        self.process, self.found = process, {}
        self.times = [math.nan if row.time is None else row.time for row in rows]

    def __call__(self, r: int, given: str, wanted: str) -> tuple[float, float]:
        if given == wanted or wanted == "raw":
            return 0.0, 1.0
        if (given, wanted) not in self.found:
            times = torch.tensor(self.times, dtype=torch.float64, device="cpu")
            self.found[given, wanted] = [c.tolist() for c in conversions(self.process, times, given, wanted)]
        p, q = self.found[given, wanted]
        return _finite(p[r], q[r], self.process, self.times[r], given, wanted)


def _used(rows: Sequence[Row]) -> tuple[set[int], int]:
    """Which calls' predictions are read again after their own row, and how many are kept."""
    used: set[int] = set()
    depth, calls = 0, []
    for r, row in enumerate(rows):
        if row.time is not None:
            calls.append(r)
        for weights in row.results.values():
            for name, w in weights.items():
                if name[0] == "m" and w and calls[-1 - int(name[1:])] != r:
                    used.add(calls[-1 - int(name[1:])])
                    depth = max(depth, 1 + int(name[1:]))
    return used, depth


def fold(
    rows: Sequence[Row],
    process: Any,
    native: str,
    prediction: str,
    *,
    clip: bool = False,
    guidance: Callable[[float], float] | None = None,
    copy: bool = False,
) -> Table:
    """Put prediction type, guidance and clipping into the weights, so that a row reads what the network returned.

    m0 = P x + Q m of the network's own m, which guidance makes w m + (1 - w) m'. A prediction that later rows read
    becomes one more result of the same pass, unless it is the network's output itself (with ``copy`` also then). With
    ``clip`` the pass clamps x0 = p x + q m itself.
    """
    used, depth = _used(rows)
    convert = _Conversions(process, rows)
    patterns: dict[Any, int] = {}
    weights: list[list[Any]] = []
    ops: list[Op] = []
    times: list[float] = []
    targets: list[float] = []
    for r, row in enumerate(rows):
        results = {name: dict(w) for name, w in row.results.items()}
        tail: tuple[float, ...] = ()
        langevin, share, mix = None, 1.0, False
        if row.time is not None:
            clamped = clip and row.langevin is None
            wanted = row.native or native
            first = convert(r, prediction, "x0" if clamped else wanted)
            p, q = convert(r, "x0", wanted) if clamped else first
            share = guidance(row.time) if guidance else 1.0
            # a clamp and a norm are not linear: they need the guided prediction itself
            mix = share != 1 and (clamped or row.langevin is not None)
            if row.langevin is not None:
                langevin = (*row.langevin, p, q)
            if r in used and (copy or clamped or (share != 1 and not mix) or (p, q) != (0.0, 1.0)):
                results["m0"] = {"m0": 1.0}
            for w in results.values():
                b = w.pop("m0", 0.0)
                if b * p:
                    w["x"] = w.get("x", 0.0) + b * p
                w["m"] = b * q * (1.0 if mix else share)
                if not mix and share != 1:
                    w["guide"] = b * q * (1 - share)
            tail = first if clamped else ()
        names = {n for w in results.values() for n, v in w.items() if v} - {"x", "z"}
        if tail or langevin:
            names.add("m")
        terms = tuple(sorted(names, key=lambda n: (n != "m", n != "guide", n)))
        noisy = any(w.get("z") for w in results.values()) or langevin is not None
        lines = [
            [w.get("x", 0.0), *(w.get(n, 0.0) for n in terms), *([w.get("z", 0.0)] if noisy else []), *tail]
            for w in results.values()
        ]
        if not all(math.isfinite(v) for line in lines for v in line):
            raise ValueError(
                f"step {row.step} (time {row.time}) has infinite coefficients: the process or its slope is singular "
                "there; take other end times, another solver variable or a prediction of x0"
            )
        pattern = (terms, tuple(results), noisy, bool(tail), row.multiplicative)
        table = patterns.setdefault(pattern, len(patterns))
        if table == len(weights):
            weights.append([])
        weights[table].append(lines if len(lines) > 1 else lines[0])
        ops.append(
            Op(
                row.step,
                r + 1 == len(rows) or rows[r + 1].step != row.step,
                len(times) if row.time is not None else None,
                row.time,
                len(targets) if row.target is not None else None,
                terms,
                tuple(results),
                table,
                len(weights[table]) - 1,
                (int(row.stream), row.step if row.number is None else row.number) if noisy else None,
                share,
                mix,
                row.keep,
                r in used,
                bool(tail),
                langevin,
                row.log_prob,
                row.multiplicative,
            )
        )
        if row.time is not None:
            times.append(row.time)
        if row.target is not None:
            targets.append(row.target)
    return Table(ops, weights, times, targets, depth, len(times))
