"""What density sums hold beyond their inputs and outputs: at most 64 MiB for 100,000 x 100,000 pairs."""

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from fokker import kde
torch.set_num_threads(2)
n, d, backward = 100_000, {d}, {backward}
g = torch.Generator().manual_seed(1)
x, y = (torch.randn(n, d, generator=g).requires_grad_(backward) for _ in range(2))
h = 0.5 * d**0.5
small = [t.detach()[:2000].clone().requires_grad_(backward) for t in (x, y)]  # what is loaded once is in memory now
def run(a, b):
    p = kde.log_prob(a, b, h)
    if backward:
        p.sum().backward()
    return p
run(*small)
kept = torch.empty(n * (1 + 2 * d * backward)).fill_(1.0)  # stands for the outputs: log p, the gradients
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
del kept
out = run(x, y)
assert bool(out.isfinite().all())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("d", "backward"), [(2, False), (16, False), (64, False), (2, True), (16, True)])
def test_peak_memory(d, backward):
    code = CODE.format(d=d, backward=backward)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 64, f"{run.stdout.strip()} MiB"
