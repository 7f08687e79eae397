"""Resampling: the law of the ancestors, thresholds, degenerate groups, the gather; the same on every backend."""

import itertools
import math
import os

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _native, random
from fokker._sde_particles import METHODS, effective_sample_size, gather, resample

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WITH_TRITON = [*NATIVE, "triton"] if INTERPRETED or "triton" in BACKENDS else NATIVE
INF, NAN = math.inf, math.nan


def device_of(backend):
    return "cuda" if backend == "cuda" or (backend == "triton" and not INTERPRETED) else "cpu"


def weights(groups, n, dtype=torch.float64, spread=2.0):
    g = torch.Generator().manual_seed(9)
    return (spread * torch.randn(groups, n, generator=g, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("backend", WITH_TRITON)
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_reference(method, backend):
    few = backend == "triton" and INTERPRETED
    for dtype, n, count, threshold in itertools.product(
        (torch.float32, torch.float64, torch.bfloat16), (5, 150) if few else (2, 37, 300), (None, 5, 1000), (None, 0.3)
    ):
        if few and (count == 1000 or (n == 150 and dtype.itemsize != 8)):
            continue
        if (threshold is not None and count is not None) or (backend == "emu" and count == 1000):
            continue
        w = weights(7, n, dtype)
        w[2, : n // 2] = -INF
        w[3] = -INF
        w[4, n // 3] = NAN
        w[5, n // 3] = INF
        options = {"seed": 2**64 - 3, "step": 5, "count": count, "threshold": threshold}
        ids = torch.tensor([4, 2**40, -5, 1, 2, 3, 9])
        with fokker.use_backend(backend):
            got = resample(w.to(device_of(backend)), method, sample_ids=ids.to(device_of(backend)), **options)
        with fokker.use_backend("reference"):
            want = resample(w, method, sample_ids=ids, **options)
        assert torch.equal(got.ancestors.cpu(), want.ancestors), (dtype, n, count)
        assert got.log_weights.dtype == dtype
        assert torch.equal(got.log_weights.nan_to_num().cpu(), want.log_weights.nan_to_num())
        torch.testing.assert_close(got.effective_sample_size.cpu(), want.effective_sample_size, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", METHODS)
def test_offspring_counts(method, backend):
    """On average M w_j / sum w each (4.9 sigma: false alarms 1e-6); within one of it for systematic and residual."""
    groups, n = 60 if backend == "emu" else 4000, 20
    w = weights(1, n).expand(groups, n).to(device_of(backend))
    with fokker.use_backend(backend):
        found = resample(w, method, seed=3).ancestors.cpu()
    counts = torch.zeros(groups, n).scatter_add_(1, found, torch.ones(groups, n))
    expected = n * weights(1, n).softmax(1)
    assert (counts.sum(1) == n).all()
    # no method varies more than independent draws do; the normal law holds where offspring are not too few
    spread = (expected / groups).sqrt()
    off = (counts.double().mean(0) - expected).abs() > 4.9 * spread
    assert not (off & (groups * expected > 20)).any()
    if method == "systematic":
        assert ((counts - expected).abs() < 1 + 1e-9).all()
    if method == "residual":
        assert (counts >= expected.floor()).all()
    if method in ("systematic", "stratified"):
        assert (found.diff(dim=1) >= 0).all()
    if method == "stratified":
        assert ((counts - expected).abs() < 2).all()


@pytest.mark.parametrize("method", METHODS)
def test_particles_without_weight_have_no_offspring(method):
    w = weights(50, 30)
    w[:, ::3] = -INF
    found = resample(w, method, seed=1, count=500).ancestors
    assert (found % 3 != 0).all()
    one = torch.full((4, 10), -INF)
    one[:, 6] = -1e30
    assert (resample(one, method, seed=1).ancestors == 6).all()
    even = resample(torch.zeros(5, 64), method, seed=1)
    assert (even.effective_sample_size == 64).all()
    if method != "multinomial":
        assert torch.equal(even.ancestors, torch.arange(64).expand(5, 64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_u0_is_that_of_the_resampling_stream(backend):
    """Systematic: p_i = (i + u_0) / N with u_0 the first float64 uniform of stream 4, group by group."""
    device = device_of(backend)
    w = weights(6, 11)
    with fokker.use_backend(backend):
        u = random.uniform(6, 1, seed=8, step=2, stream=4, dtype=torch.float64, device=device, sample_ids=3).cpu()
        found = resample(w.to(device), seed=8, step=2, sample_ids=3).ancestors.cpu()
    cumulative = w.softmax(1).cumsum(1)
    want = torch.searchsorted(cumulative, (torch.arange(11) + u) / 11).clamp(max=10)
    assert torch.equal(found, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_threshold_keeps_weights_until_they_degenerate(backend):
    w = torch.tensor([[0.0, 0.1, -0.1, 0.0], [0.0, -9.0, -9.0, -9.0]], device=device_of(backend))
    with fokker.use_backend(backend):
        got = resample(w, seed=1, threshold=0.5)
    assert got.ancestors[0].tolist() == [0, 1, 2, 3] and torch.equal(got.log_weights[0], w[0])
    assert got.ancestors[1].tolist() == [0, 0, 0, 0] and not got.log_weights[1].any()
    assert got.effective_sample_size[0] > 3.9 and got.effective_sample_size[1] < 1.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_degenerate_groups(backend):
    """Identity and nan unless checked; the check names the group."""
    w = torch.zeros(4, 3, device=device_of(backend))
    w[1], w[2, 0], w[3, 1] = -INF, NAN, INF
    with fokker.use_backend(backend):
        got = resample(w, seed=1, count=5)
        assert got.effective_sample_size.isnan().tolist() == [False, True, True, True]
        assert (got.ancestors[1:] == torch.tensor([0, 1, 2, 0, 1], device=w.device)).all()
        with pytest.raises(ValueError, match=r"log_weights of group 1 have no positive weight, or nan or \+inf"):
            resample(w, seed=1, check=True)
        assert resample(w[:1], seed=1, check=True).ancestors.shape == (1, 3)


@pytest.mark.parametrize("backend", NATIVE)
def test_split_of_groups_and_threads_do_not_matter(backend):
    w = weights(9, 500).to(device_of(backend))
    before = torch.get_num_threads()
    try:
        for method in METHODS:
            with fokker.use_backend(backend):
                whole = resample(w, method, seed=4)
                torch.set_num_threads(2)
                parts = [resample(w[a:b], method, seed=4, sample_ids=a) for a, b in ((0, 4), (4, 9))]
                torch.set_num_threads(before)
            for i in range(3):
                assert torch.equal(torch.cat([p[i] for p in parts]), whole[i])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_cuda_threads_does_not_matter(method):
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                results.append(resample(weights(2, 600), method, seed=1).ancestors)
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        _native.emu.set_order("forward", 0)


def test_effective_sample_size():
    w = weights(3, 50)
    p = w.softmax(1)
    torch.testing.assert_close(effective_sample_size(w + 700), 1 / p.square().sum(1), rtol=1e-12, atol=0)
    torch.testing.assert_close(resample(w, seed=1).effective_sample_size, effective_sample_size(w), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(effective_sample_size, w.requires_grad_())


def test_leading_shapes_seeds_in_memory_and_empty():
    w = weights(6, 5)
    whole = resample(w, seed=4, step=3)
    nested = resample(w.reshape(2, 3, 5), seed=torch.tensor(4), step=torch.tensor([3 + 2**24]))
    assert all(torch.equal(a.flatten(), b.flatten()) for a, b in zip(nested, whole, strict=True))
    assert nested.ancestors.shape == (2, 3, 5) and nested.effective_sample_size.shape == (2, 3)
    assert resample(w[0], seed=1).ancestors.shape == (5,)
    assert resample(w[:0], seed=1).ancestors.shape == (0, 5)
    assert resample(w, seed=1, count=0).ancestors.shape == (6, 0)
    torch.testing.assert_close(resample(w.t().contiguous().t(), seed=4, step=3).ancestors, whole.ancestors)


def test_gather():
    x = torch.randn(2, 3, 5, 4, 2, dtype=torch.float64, requires_grad=True)
    found = resample(weights(6, 5).reshape(2, 3, 5), seed=1, count=7).ancestors
    got = gather(x, found)
    assert got.shape == (2, 3, 7, 4, 2)
    for a, b, i in itertools.product(range(2), range(3), range(7)):
        assert torch.equal(got[a, b, i], x[a, b, found[a, b, i]])
    assert torch.equal(gather(x[0, 0], found[0, 0]), x[0, 0][found[0, 0]])
    assert torch.autograd.gradcheck(lambda t: gather(t, found), x)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"log_weights": 1.0}, TypeError, "log_weights must be a tensor, got float"),
        ({"log_weights": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "log_weights must have dtype float32"),
        ({"log_weights": torch.zeros(())}, ValueError, r"log_weights must have shape \(..., N\), N >= 1, got \(\)"),
        ({"log_weights": torch.zeros(3, 0)}, ValueError, "log_weights must have shape"),
        ({"method": "best"}, ValueError, "method must be one of systematic, .*, got 'best'"),
        ({"count": -1}, ValueError, "count must not be negative, got -1"),
        ({"count": 1.5}, TypeError, "count must be an int, got float"),
        ({"threshold": 1.5}, ValueError, r"threshold must be in \[0, 1\]"),
        ({"threshold": "a"}, TypeError, "threshold must be a number, got str"),
        ({"threshold": 0.5, "count": 4}, ValueError, "with a threshold count must be the number of particles 3, got 4"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"sample_ids": torch.arange(3)}, ValueError, r"sample_ids must have shape \(2,\)"),
        ({"stream": 256}, ValueError, "stream must be in"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    with pytest.raises(error, match=words):
        resample(**{"log_weights": torch.zeros(2, 3), "seed": 1, **change})


def test_bad_gathers_are_named():
    with pytest.raises(ValueError, match="leading shape of ancestors"):
        gather(torch.zeros(2, 3), torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="ancestors must have dtype int64"):
        gather(torch.zeros(2, 3), torch.zeros(2, 3))


def traced(w, x, seed: int):
    found = resample(w, "stratified", seed=seed, threshold=0.9)
    return gather(x, found.ancestors) * 2, found.log_weights, found.effective_sample_size


def test_compile_and_vmap():
    torch.compiler.reset()
    w, x = weights(4, 8), torch.randn(4, 8, 3)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for seed in (1, 5, 6):
        assert all(torch.equal(a, b) for a, b in zip(compiled(w, x, seed), traced(w, x, seed), strict=True))
    both = torch.func.vmap(lambda t: resample(t, seed=2).ancestors)(torch.stack([w, -w]))
    assert torch.equal(both[1], resample(-w, seed=2).ancestors)
