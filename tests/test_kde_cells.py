"""Float32 density sums by expansions about cells on the CPU: as near to float64 as the direct sums."""

import math

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import kde

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="the expansion is the CPU kernels'")
N, CHUNK = 4096, 2048  # so few queries are summed directly


@pytest.fixture(autouse=True)
def _cpu():
    with fokker.use_backend("cpu"):
        yield


def by_chunks(x, y, h, **settings):
    parts = [kde.evaluate(rows, y, h, **settings) for rows in x.split(CHUNK)]
    return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}


def errors(got, want, h):
    """Of log p in its allowance, of the score in its largest value."""
    size = want["log_prob"].abs() + (want["log_prob"] + want["score"].shape[1] * math.log(h)).abs()
    log = (got["log_prob"].double() - want["log_prob"]).abs() / (4e-7 * size + 2e-6)
    return float(log.max()), float((got["score"].double() - want["score"]).abs().max() / want["score"].abs().max())


def cloud(kind, dim, seed):
    t = torch.randn(N, dim, generator=torch.Generator().manual_seed(seed))
    if kind == "clustered":
        t[::2] = 5 + 0.01 * t[::2]
        t[1::2] = 9 + 0.5 * t[1::2]
    return {"offset": t + 1000, "skew": t.exp(), "uniform": t.erf()}.get(kind, t)


@pytest.mark.parametrize("kind", ["normal", "uniform", "clustered", "offset", "skew"])
@pytest.mark.parametrize("dim", [1, 2])
def test_near_float64(dim, kind):
    x, y = cloud(kind, dim, 0), cloud(kind, dim, 1)
    weights = torch.rand(N, generator=torch.Generator().manual_seed(2))
    weights[::7] = 0
    taken = False
    for h, w in ((0.1, None), (0.5, weights), (50.0, None)):
        got, direct = kde.evaluate(x, y, h, weights=w), by_chunks(x, y, h, weights=w)
        want = by_chunks(x.double(), y.double(), h, weights=w)
        log, score = errors(got, want, h)
        assert log <= 0.5 and score <= max(1e-6, errors(direct, want, h)[1]), (h, log, score)
        taken = taken or not torch.equal(got["log_prob"], direct["log_prob"])
    if fokker._native.cpu.isa() != "baseline":
        assert taken  # other roundings: the expansion ran


def test_far_and_odd_queries_and_data():
    x, y = cloud("normal", 2, 3), cloud("normal", 2, 4)
    x[5], x[6], x[7, 1] = 40.0, 1e6, math.inf
    y[3, 0] = -math.inf
    h = 0.7
    plain = kde.evaluate(x, y, h)
    direct, wide = by_chunks(x, y, h), by_chunks(x.double(), y.double(), h)
    for name in ("log_prob", "score"):  # left to the direct sum
        assert torch.equal(plain[name][5:8], direct[name][5:8])
    keep = torch.ones(N, dtype=torch.bool)
    keep[5:8] = False
    log, score = errors({k: v[keep] for k, v in plain.items()}, {k: v[keep] for k, v in wide.items()}, h)
    assert log <= 0.5 and score <= 1e-6
    x[9] = math.nan
    again = kde.evaluate(x, y, h)
    assert again["log_prob"][9].isnan() and int(again["log_prob"].isnan().sum()) == 1


def test_bits_do_not_depend_on_threads():
    x, y = cloud("normal", 2, 5), cloud("normal", 2, 6)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((kde.score(x, y, 0.6), kde.log_prob(x, y, 0.6)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
