"""pytest-benchmark over the one table of ops: each case on every backend that runs here, beside its opponents.

    python -m pytest bench/test_ops.py [-k log_iv] [--benchmark-json=ops.json]

Not part of the tests (pyproject.toml's testpaths is tests). ``python -m fokker bench`` has the figures that the README
quotes, over the ranges of the design page; this is the finer net for comparing two commits (pytest-benchmark compare).
"""

import itertools
import time

import pytest
import torch
from torch import Tensor

import fokker
from fokker._cli.info import machine
from fokker.cases import CASES

pytest.importorskip("pytest_benchmark", reason="pip install fokker[bench]")

SIZE = 8192  # results, about
SECONDS, ROUNDS = 0.1, 15  # of measuring a case, and the most rounds of it
DTYPES = (torch.float64, torch.float32)
MACHINE = machine()


def device_of(backend: str) -> str:
    return "cuda" if backend in ("cuda", "triton") else "cpu"


def runs_here(backend: str) -> bool:
    # The emulator and interpreted Triton say nothing about speed.
    usable = fokker.available_backends().get(backend) == "ok" and backend != "emu"
    return usable and (backend != "triton" or torch.cuda.is_available())


ROWS = [
    pytest.param(case, who, dtype, id=f"{case.name}-{who}-{str(dtype)[6:]}")
    for case, dtype in itertools.product(CASES.values(), DTYPES)
    if dtype in case.tolerance
    for who in (*filter(runs_here, case.backends), *case.opponents)
    if who in case.backends or dtype is torch.float64  # opponents know NumPy's float64
]


def bytes_moved(args, result) -> int:
    """What is read and written once: a broadcast tensor counts what it holds."""
    results = result if isinstance(result, tuple) else (result,)
    return sum(t.untyped_storage().nbytes() for t in (*args, *results) if isinstance(t, Tensor))


@pytest.mark.parametrize(("case", "who", "dtype"), ROWS)
def test_op(benchmark, case, who, dtype):
    backend = who if who in case.backends else None
    device = device_of(who)
    args = case.make(SIZE, dtype, torch.Generator().manual_seed(1))
    args = tuple(a.to(device) if isinstance(a, Tensor) else a for a in args)
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    plain = tuple(a.numpy() if isinstance(a, Tensor) else a for a in args) if backend is None else args
    call = case.call if backend else case.opponents[who]

    def run():
        result = call(*plain)
        synchronise()
        return result

    with fokker.use_backend(backend or "auto"), torch.no_grad():
        result = run()  # warms up
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        rounds = max(3, min(ROUNDS, int(SECONDS / took)))
        loops = max(1, int(SECONDS / rounds / took))
        benchmark.pedantic(run, rounds=rounds, iterations=loops)
    elements = result[0].numel() if isinstance(result, tuple) else result.numel() if backend else result.size
    benchmark.group = f"{case.name} {str(dtype)[6:]}"
    benchmark.extra_info |= {
        "op": case.name,
        "backend": who,
        "dtype": str(dtype)[6:],
        "shape": [list(a.shape) if isinstance(a, Tensor) else a for a in args],
        "elements": elements,
        "flops": case.flops * elements,
        "bytes": bytes_moved(args, result),
        **MACHINE,
    }
