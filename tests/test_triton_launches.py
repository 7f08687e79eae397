"""Triton launches as the just-in-time compiler sees them: what the interpreter and fixed signatures cannot show."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]


def launches(*options: str) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools/triton_launches.py"), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,  # a throttled machine
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]


def test_counters_and_a_few_ops():
    """Seeds, steps, counts of 1 (which Triton makes constants), counters in memory; one op a family."""
    few = "^resample|^absorb|^random|^affine|kde_score|kde_log_prob_16d|gaussian_mixture_score"
    few += "|denoiser_(layer|group_norm |silu)"
    launches("--op", few, "--dtype", "float32", "--sizes", "1")


@pytest.mark.slow
def test_whole_table():
    launches()
