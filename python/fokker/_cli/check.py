"""``python -m fokker check``: every op on every available backend against its judge, with its speed."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .._backend import available_backends, use_backend
from ..cases import CASES, Case
from .info import machine
from .progress import progress

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
SLOW = ("emu", "triton")  # on a CPU these interpret: checked on fewer points, not timed


@dataclass
class Row:
    """One op on one backend in one dtype."""

    op: str
    backend: str
    dtype: str
    points: int
    error: float
    #: the largest error as a share of its own tolerance: at most 1 is right
    share: float
    tolerance: float
    ok: bool
    rate: float | None = None
    speedup: float | None = None
    speedup_compiled: float | None = None
    note: str = ""


def _device(backend: str) -> str:
    return "cuda" if backend == "cuda" or (backend == "triton" and torch.cuda.is_available()) else "cpu"


def _to(args: tuple[Any, ...], device: str) -> tuple[Any, ...]:
    return tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)


def _thin(args: tuple[Any, ...], hi: Tensor, lo: Tensor | None, keep: int) -> tuple[Any, Tensor, Tensor | None]:
    n = hi.shape[0] if hi.dim() else 1
    if n <= keep:
        return args, hi, lo
    pick = torch.linspace(0, n - 1, keep).long()
    thin = tuple(a[pick] if isinstance(a, Tensor) and a.dim() and a.shape[0] == n else a for a in args)
    return thin, hi[pick], lo[pick] if lo is not None else None


@functools.lru_cache(maxsize=4)
def _judged(name: str, dtype: torch.dtype) -> list[tuple[tuple[Any, ...], Tensor, Tensor | None]]:
    return list(CASES[name].judged(dtype))  # the same truth for every backend


def judge(case: Case, backend: str, dtype: torch.dtype) -> Row:
    """The worst error of one op on one backend, as a share of what it may be."""
    worst, share, bound_at, points = 0.0, 0.0, 0.0, 0
    slow = backend in SLOW and _device(backend) == "cpu"
    thin = case.elementwise and slow
    with torch.no_grad():
        for args, hi, lo in _judged(case.name, dtype):
            if slow and not thin and points >= 200 and hi.numel() > 400:
                continue
            if thin:
                args, hi, lo = _thin(args, hi, lo, 400)
            with use_backend(backend):
                got = case.call(*_to(args, _device(backend)))
            if got.shape != hi.shape or got.dtype != dtype:
                return Row(
                    case.name,
                    backend,
                    str(dtype),
                    0,
                    float("inf"),
                    float("inf"),
                    0.0,
                    False,
                    note=f"shape {tuple(got.shape)} and dtype {got.dtype}, expected {tuple(hi.shape)}, {dtype}",
                )
            error = case.error(got, hi, lo).flatten()
            bound = torch.as_tensor(case.bound(dtype, args), dtype=torch.float64).expand(hi.shape).flatten()
            points += error.numel()
            if not error.numel():
                continue
            shares = error / bound
            at = int(shares.argmax())
            if float(shares[at]) >= share:
                share, worst, bound_at = float(shares[at]), float(error[at]), float(bound[at])
    name = str(dtype).removeprefix("torch.")
    return Row(case.name, backend, name, points, worst, share, bound_at, share <= 1.0)


def seconds(run: Callable[[], Any], device: str, budget: float = 0.06) -> float:
    """The best of a few runs, within a budget; the first, which warms up, counts only where it used the budget up."""
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    best, spent, runs = float("inf"), 0.0, 0
    while spent < budget or not runs:
        start = time.perf_counter()
        run()
        sync()
        took = time.perf_counter() - start
        best = min(best, took) if runs else float("inf") if took < budget else took
        spent, runs = (spent + took if runs or took >= budget else 0.0), runs + 1
    return best


class Speed:
    """Throughput beside the reference, eager and (if asked) compiled, which is timed once a dtype and device."""

    def __init__(self, compiled: bool) -> None:
        self.compiled = compiled
        self.reference: dict[tuple[str, torch.dtype, str], tuple[float, float | None]] = {}

    def _reference(
        self, case: Case, args: tuple[Any, ...], dtype: torch.dtype, device: str
    ) -> tuple[float, float | None]:
        key = (case.name, dtype, device)
        if key not in self.reference:
            with use_backend("reference"):
                eager = seconds(lambda: case.call(*args), device)
                compiled = None
                if self.compiled:
                    torch.compiler.reset()
                    function = torch.compile(lambda *a: case.call(*a))
                    compiled = seconds(lambda: function(*args), device)
            self.reference[key] = eager, compiled
        return self.reference[key]

    def measure(self, case: Case, row: Row, dtype: torch.dtype) -> None:
        """Fill in the row's speed."""
        device = _device(row.backend)
        if row.backend in SLOW and device == "cpu":
            return
        args = _to(case.make(4096, dtype, torch.Generator().manual_seed(1)), device)
        with torch.no_grad():
            eager, compiled = self._reference(case, args, dtype, device)
            with use_backend(row.backend):
                took = eager if row.backend == "reference" else seconds(lambda: case.call(*args), device)
                results = case.call(*args).numel()
        row.rate, row.speedup = results / took, eager / took
        row.speedup_compiled = compiled / took if compiled else None


def _select(args: argparse.Namespace) -> list[tuple[Case, str, torch.dtype]]:
    state = available_backends()
    for name in args.backend or []:
        if state.get(name) != "ok":
            raise SystemExit(f"--backend {name}: {state.get(name, 'unknown; one of ' + ', '.join(state))}")
    for name in args.dtype or []:
        if name not in DTYPES:
            raise SystemExit(f"--dtype {name}: one of {', '.join(DTYPES)}")
    cases = [c for c in CASES.values() if not args.op or any(o in c.name for o in args.op)]
    if not cases:
        raise SystemExit(f"--op: no op's name contains {' or '.join(args.op)}; there are {', '.join(CASES)}")
    backends = args.backend or [b for b, why in state.items() if why == "ok"]
    dtypes = [DTYPES[d] for d in (args.dtype or DTYPES)]
    interpreted = "triton" in backends and _device("triton") == "cpu"
    return [
        (case, backend, dtype)
        for case in cases
        for backend in backends
        if backend in case.backends
        for dtype in dtypes
        if dtype in case.tolerance and not (backend == "triton" and interpreted and dtype is not torch.float32)
    ]


def _line(row: Row) -> str:
    rate = f"{row.rate / 1e6:10.1f}" if row.rate else f"{'':10s}"
    speed = f"{row.speedup:8.1f}" if row.speedup else f"{'':8s}"
    compiled = f"{row.speedup_compiled:9.1f}" if row.speedup_compiled else f"{'':9s}"
    return (
        f"{row.op:32s} {row.backend:10s} {row.dtype:9s} {row.points:7d} {row.error:9.1e} {row.tolerance:9.1e} "
        f"{rate} {speed} {compiled}  {'ok' if row.ok else 'WRONG ' + row.note}"
    )


def run(args: argparse.Namespace) -> int:
    """Check, print the table, and return 1 if anything is wrong."""
    todo = _select(args)
    speed = Speed(args.compile)
    rows: list[Row] = []
    quiet = args.json == "-"
    if not quiet:
        facts = machine()
        print(
            f"fokker {facts['fokker']}, torch {facts['torch']}, {facts['cpu']} ({facts['cpu_isa']}), "
            f"{facts['threads']} threads, GPU {facts['gpu']['name'] if facts['gpu'] else 'none'}"
        )
        for name, why in available_backends().items():
            if why != "ok":
                print(f"backend {name} is left out: {why}")
        print(
            f"\n{'op':32s} {'backend':10s} {'dtype':9s} {'points':>7s} {'error':>9s} {'allowed':>9s} "
            f"{'M/s':>10s} {'x eager':>8s} {'x compile':>9s}"
        )
    for case, backend, dtype in progress(todo, "check"):
        try:
            row = judge(case, backend, dtype)
            if row.ok and not args.no_speed:
                speed.measure(case, row, dtype)
        except Exception as error:
            nothing = float("inf")
            row = Row(
                case.name, backend, str(dtype).removeprefix("torch."), 0, nothing, nothing, 0.0, False, note=repr(error)
            )
        rows.append(row)
        if not quiet:
            print(_line(row), flush=True)
    wrong = [r for r in rows if not r.ok]
    if args.json:
        text = json.dumps({"machine": machine(), "rows": [asdict(r) for r in rows]}, indent=1)
        if quiet:
            print(text)
        else:
            with open(args.json, "w") as file:
                file.write(text + "\n")
    if not quiet:
        print(
            f"\n{len(rows) - len(wrong)} of {len(rows)} right"
            + (f"; wrong: {', '.join(sorted({r.op for r in wrong}))}" if wrong else "")
        )
    else:
        print(f"{len(wrong)} wrong", file=sys.stderr)
    return 1 if wrong else 0
