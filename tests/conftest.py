"""Shared by all tests: what runs here is said in pytest's header, and every test starts from the same seed."""

import os

import pytest
import torch

import fokker
from fokker import _native
from fokker.cases import CASES

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # a worker a core; tests of threads ask for theirs


def pytest_report_header(config):
    backends = ", ".join(f"{name}={why}" for name, why in fokker.available_backends().items())
    isa = _native.cpu.isa() if _native.cpu is not None else "none"
    return [
        f"fokker {fokker.__version__} from {fokker.__file__}; backends: {backends}",
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU kernels for {isa}",
    ]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def usable(backend: str) -> bool:
    """Whether a backend can run here (interpreted Triton has its own tests: tests/test_triton.py)."""
    return fokker.available_backends()[backend] == "ok" and not (backend == "triton" and not torch.cuda.is_available())


BACKENDS = [b for b in fokker.available_backends() if usable(b)]

#: those with every vMF op (Triton has the scalar ones only)
FUSED = [b for b in BACKENDS if b in CASES["vmf_sample"].backends]


@pytest.fixture(params=FUSED)
def backend(request):
    """Each backend of FUSED in turn, selected for the length of the test."""
    with fokker.use_backend(request.param):
        yield request.param


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request):
    """Each instruction set of the CPU kernels in turn, for the length of the test."""
    before = _native.cpu.isa()
    try:
        _native.cpu.set_isa(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.cpu.set_isa(before)
