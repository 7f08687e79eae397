"""Pruned density sums on the CPU: they equal the dense ones to rounding, and are chosen where they pay."""

import math
import subprocess

import pytest
import torch
from conftest import BACKENDS
from cpp import programs
from torch.testing import assert_close

import fokker
from fokker import kde

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="pruning is the CPU kernels'")
F32, F64 = torch.float32, torch.float64
N = 5000
CHUNK = 900  # queries; so few are never pruned
OUTPUTS = ("log_prob", "score", "effective_sample_size")


@pytest.fixture(autouse=True)
def _cpu():
    with fokker.use_backend("cpu"):
        yield


def cloud(kind, n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    if kind == "uniform":
        return torch.rand(n, d, generator=g, dtype=F64)
    points = torch.randn(n, d, generator=g, dtype=F64)
    if kind == "clustered":  # two scales, far apart, neither centred
        points[::2] = 5 + 0.01 * points[::2]
        points[1::2] = 100 + 3 * points[1::2]
    return points


def dense(x, y, h, dtype=F64, **settings):
    """The same by queries too few to be pruned; a bandwidth by query is cut up with them."""
    by_query = isinstance(h, torch.Tensor) and h.dim() == 2
    parts = []
    for i in range(0, len(x), CHUNK):
        rows = h[i : i + CHUNK] if by_query else h
        parts.append(kde.evaluate(x[i : i + CHUNK].to(dtype), y.to(dtype), rows, outputs=OUTPUTS, **settings))
    return {name: torch.cat([p[name] for p in parts]) for name in OUTPUTS}


def errors(got, want, h):
    """Of log p in its allowance, of the score in its largest value, of the effective sample size relative to it."""
    d = want["score"].shape[1]
    size = (want["log_prob"] + d * torch.as_tensor(h).log().reshape(-1)).abs() + want["log_prob"].abs()
    off = torch.where(got["log_prob"] == want["log_prob"], 0.0, got["log_prob"].double() - want["log_prob"]).abs()
    log = (off / (4e-7 * size.nan_to_num(posinf=0.0) + 2e-6)).nan_to_num(math.inf).max()
    score = (got["score"].double() - want["score"]).abs().max() / want["score"].abs().max().clamp(min=1e-300)
    share = got["effective_sample_size"].double() / want["effective_sample_size"].clamp(min=1e-300)
    empty = want["effective_sample_size"] == 0
    return float(log), float(score), float(torch.where(empty, 1.0, share).sub(1).abs().max())


def check(x, y, h, score=1e-12, **settings):
    """Float32 as near to float64 as the dense sums are, float64 equal to them."""
    want = dense(x.float(), y.float(), h, **settings)
    got = errors(kde.evaluate(x.float(), y.float(), h, outputs=OUTPUTS, **settings), want, h)
    unpruned = errors(dense(x.float(), y.float(), h, F32, **settings), want, h)
    # near the edge of a compact kernel 1 - z^2 loses its digits either way
    assert got[0] <= max(1.0, 2 * unpruned[0]), (got, unpruned)
    # sums in another order round differently: in tiles 72 like terms in a row, 36 units in the last place at most
    assert got[1] <= 4 * unpruned[1] + 2.2e-6 and got[2] <= 4 * unpruned[2] + 2.2e-6, (got, unpruned)
    got = errors(kde.evaluate(x, y, h, outputs=OUTPUTS, **settings), dense(x, y, h, **settings), h)
    assert got[0] <= 1e-6 and got[1] <= score and got[2] <= 1e-12, got


@pytest.mark.parametrize("kind", ["normal", "clustered", "uniform"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_bandwidths_from_tiny_to_flat(dim, kind):
    x, y = cloud(kind, N, dim), cloud(kind, N, dim, 1)
    for h in (1e-4, 3e-3, 0.05, 0.3, 10.0):
        check(x, y, h)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_laplacian(dim):
    x, y = cloud("normal", N, dim), cloud("normal", N, dim, 1)
    want = torch.cat([kde.laplacian(rows, y, 0.1) for rows in x.split(CHUNK)])
    assert_close(kde.laplacian(x, y, 0.1), want, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("kind", ["normal", "clustered"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_weights_and_bandwidths_that_differ(dim, kind):
    x, y = cloud(kind, N, dim), cloud(kind, N, dim, 1)
    g = torch.Generator().manual_seed(2)
    weights = torch.rand(N, generator=g, dtype=F64) ** 4
    weights[::7] = 0
    check(x, y, 0.1, weights=weights)
    check(x, y, 0.02 + 0.2 * torch.rand(N, 1, generator=g, dtype=F64))
    check(x, y, 0.02 + 0.2 * torch.rand(N, generator=g, dtype=F64), weights=weights)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_leave_one_out(dim):
    y = cloud("normal", N, dim)
    w = torch.rand(N, dtype=F64)
    for h in (1e-3, 0.1):
        got = kde.log_prob(y, y, h, exclude_self=True, weights=w)
        all_but = [slice(i, i + CHUNK) for i in range(0, N, CHUNK)]
        for rows in all_but:
            logits = -0.5 * torch.cdist(y[rows], y, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / h**2 + w.log()
            logits[torch.arange(logits.shape[0]), torch.arange(N)[rows]] = -math.inf
            want = logits.logsumexp(1) - (w.sum() - w[rows]).log() - dim * (math.log(h) + 0.5 * math.log(2 * math.pi))
            assert_close(got[rows], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [k for k in kde.KERNELS if k not in ("gaussian", "vmf")])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_other_kernels(dim, kernel):
    x, y = cloud("clustered", 2000, dim), cloud("clustered", N, dim, 1)
    for h in (0.01, 0.5):
        check(x, y, h, kernel=kernel, nu=3.0)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_values(dim, dtype):
    x, y, v = (t.to(dtype) for t in (cloud("normal", N, dim), cloud("normal", N, dim, 1), cloud("normal", N, 3, 2)))
    got = kde.kernel_sum(x, y, v, 0.1)
    want = torch.cat([kde.kernel_sum(rows, y, v, 0.1) for rows in x.split(CHUNK)])
    size = kde.kernel_sum(x, y, v.abs(), 0.1)
    assert ((got - want).abs() <= (2e-6 if dtype == F32 else 2e-14) * (size + 1e-30)).all()
    sigma = 0.05 + 0.1 * torch.rand(N, dtype=dtype)
    got = kde.posterior_mean(x, y, sigma)
    want = torch.cat(
        [kde.posterior_mean(*rows) for rows in zip(x.split(CHUNK), [y] * 6, sigma.split(CHUNK), strict=False)]
    )
    assert_close(got, want, rtol=0, atol=1e-6 if dtype == F32 else 1e-14)


@pytest.mark.parametrize("kind", ["normal", "clustered"])
@pytest.mark.parametrize("dim", [1, 2, 3, 4])
def test_gradients_in_queries_data_and_bandwidth(dim, kind):
    """By the transposed sums, pruned with weights of any sign and biases of any size; d = 4 is dense but small."""
    x, y = cloud(kind, N, dim).requires_grad_(), cloud(kind, N, dim, 1).requires_grad_()
    h = torch.tensor(0.1, dtype=F64, requires_grad=True)
    g = cloud("normal", N, 1, 3)[:, 0]
    got = torch.autograd.grad(kde.log_prob(x, y, h), (x, y, h), g)
    want = [torch.zeros_like(t) for t in (x, y, h)]
    data = [y.detach()[i : i + 625].clone().requires_grad_() for i in range(0, N, 625)]
    for rows, weight in zip(x.detach().split(625), g.split(625), strict=True):
        leaf = rows.clone().requires_grad_()
        log = torch.stack([kde.log_prob(leaf, part, h) for part in data]).logsumexp(0)
        found = torch.autograd.grad(log, (leaf, h, *data), weight)
        want[1] += torch.cat(found[2:])
        want[2] += found[1]
    for a, b in zip(got[1:], want[1:], strict=True):
        assert_close(a, b, rtol=1e-9, atol=float(1e-11 * b.abs().max()))
    half = [t.detach().float().requires_grad_() for t in (x, y, h)]
    exact = [t.detach().double().requires_grad_() for t in half]
    single = torch.autograd.grad(kde.log_prob(*half), half, g.float())
    double = torch.autograd.grad(kde.log_prob(*exact), exact, g)
    for a, b in zip(single, double, strict=True):
        assert_close(a.double(), b, rtol=0, atol=float((4e-5 if kind == "normal" else 2e-3) * b.abs().max()))


def test_rows_that_are_not_finite():
    x, y = cloud("normal", N, 2), cloud("normal", N, 2, 1)
    plain = kde.log_prob(x, y, 0.1)
    odd = x.clone()
    odd[7, 0], odd[4000, 1], odd[99] = math.nan, math.inf, 1e5
    got = kde.log_prob(odd, y, 0.1)
    assert got[7].isnan() and got[4000] == -math.inf and -1e13 < got[99] < -1e11
    keep = torch.ones(N, dtype=torch.bool)
    keep[[7, 99, 4000]] = False
    assert_close(got[keep], plain[keep], rtol=1e-13, atol=1e-13)
    gone = y.clone()
    gone[3] = math.inf  # no weight anywhere
    rest = torch.cat([y[:3], y[4:]])
    assert_close(kde.log_prob(x, gone, 0.1), kde.log_prob(x, rest, 0.1) + math.log((N - 1) / N), rtol=1e-13, atol=1e-13)
    gone[3] = math.nan
    assert kde.log_prob(x, gone, 0.1).isnan().all()


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_duplicates(dim):
    y = cloud("normal", 50, dim).repeat_interleave(N // 50, 0)
    check(cloud("normal", N, dim, 1), y, 0.05)
    assert_close(kde.log_prob(y, y[:1].expand(N, dim), 0.1), kde.log_prob(y, y[:1], 0.1), rtol=1e-13, atol=1e-13)


def test_bits_do_not_depend_on_threads():
    x, y = cloud("normal", N, 2).float(), cloud("normal", N, 2, 1).float()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            leaf = y.clone().requires_grad_()
            p = kde.log_prob(x, leaf, 0.05)
            found.append([p.detach(), kde.score(x, y, 0.05), torch.autograd.grad(p.sum(), leaf)[0]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_data_that_come_near_late(dim, dtype):
    """Exponents of 10^6 to 10^12 first and small ones after: dense sums must not round in the scale of the first."""
    far, near = 100 + cloud("normal", 3000, dim), cloud("normal", 400, dim, 1)
    y = torch.cat([far, near]).to(dtype)
    for h in (1e-4, 1e-2, 0.1):
        x = (near[:50] + 20 * h).to(dtype)
        logits = -0.5 * (x.double()[:, None] - y.double()[None]).square().sum(-1) / h**2
        want = logits.logsumexp(1)
        got = kde.logsumexp(x.double(), y.double(), bandwidth=h) if dtype == F64 else kde.logsumexp(x, y, bandwidth=h)
        allowed = 1e-12 * want.abs().clamp(min=1) if dtype == F64 else 4e-7 * want.abs() + 2e-6
        assert ((got.double() - want).abs() <= allowed + (0 if dtype == F64 else 2.0**-23) * want.abs()).all(), h


# ---- the decision ---------------------------------------------------------------------------------------------------
PROGRAM = """
#include <cstdio>
#include <cstdlib>
#include <random>
#include "cpu/kde_sample.h"
using namespace fokker;
using namespace fokker::cpu;

// n m d h clusters: the guessed share, whether pruning is chosen, and whether the order holds every datum once.
int main(int, char** a) {
  KdeSums call;
  call.n = std::atoll(a[1]), call.m = std::atoll(a[2]), call.d = std::atoll(a[3]);
  const double h = std::atof(a[4]);
  const int clusters = std::atoi(a[5]);
  std::mt19937 bits(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(call.n * call.d), y(call.m * call.d);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = normal(bits) + 50 * (i / call.d % clusters);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] = normal(bits) + 50 * (i / call.d % clusters);
  call.x = x.data(), call.y = y.data(), call.bandwidth = &h;
  KdeScan scan;
  scan.query_norm.assign(call.n, 1.0);
  const KdeTiles<float> tiles(call, scan);
  std::vector<int> seen(call.m, 0);
  for (std::int32_t j : tiles.order) ++seen[j];
  bool whole = tiles.order.size() == seen.size() && tiles.queries.size() == std::size_t(call.n);
  for (std::size_t j = 0; j < seen.size(); ++j) whole = whole && seen[j] == 1 && tiles.order[tiles.place[j]] == int(j);
  std::printf("%g %d %d", guess_share<float>(call, scan), should_prune<float>(call, scan, true), whole);
}
"""


@pytest.fixture(scope="module")
def decide(tmp_path_factory):
    if programs.COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("decision")
    (folder / "decide.cpp").write_text(PROGRAM)
    sources = [str(folder / "decide.cpp"), str(programs.ROOT / "csrc/cpu/isa.cpp")]
    subprocess.run([programs.COMPILER, *programs.COMMON, *sources, "-o", str(folder / "decide")], check=True)

    def run(*arguments):
        done = subprocess.run([folder / "decide", *map(str, arguments)], capture_output=True, text=True, check=True)
        share, chosen, whole = done.stdout.split()
        assert whole == "1"
        return float(share), chosen == "1"

    return run


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_decision(decide, dim):
    silverman = (50_000 * (dim + 2) / 4) ** (-1 / (dim + 4))
    share, chosen = decide(50_000, 50_000, dim, silverman, 1)
    assert chosen and 0.2 < share < 0.75
    assert decide(50_000, 50_000, dim, 0.01 * silverman, 1)[0] < 0.2
    assert decide(50_000, 50_000, dim, 0.01 * silverman, 1)[1]
    assert decide(50_000, 50_000, dim, 100.0, 1) == (1.0, False)  # flat: everything counts
    assert decide(5000, 5000, dim, 0.5, 20)[1]  # clusters out of each other's sight
    assert not decide(2000, 2000, dim, 1.0, 1)[1]
    assert not decide(500, 50_000, dim, 1e-3, 1)[1]  # so few queries are dense
    assert not decide(50_000, 500, dim, 1e-3, 1)[1]
