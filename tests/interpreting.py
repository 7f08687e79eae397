"""Triton kernels in tests: on a GPU, or interpreted, which wants TRITON_INTERPRET=1 before Triton is imported.

A file of such tests marks them `RUNS`, and has one test more that without either runs the file in its own process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
HERE = DEVICE == "cuda" or INTERPRETED
RUNS = pytest.mark.skipif(not HERE, reason="needs a GPU or TRITON_INTERPRET=1")
IN_A_PROCESS = pytest.mark.skipif(HERE, reason="this process runs the kernels itself")


def run_in_a_process(*arguments: str) -> None:
    """pytest with these files and options, interpreted; some tests must pass and none fail."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=1800,  # a throttled machine
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]
