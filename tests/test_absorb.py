"""The absorbing step: which positions open, the law of the tokens down to rare ones, layouts, errors, graphs."""

import itertools
import math
import os

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _native, random
from fokker._sde_absorb import absorb_step

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WITH_TRITON = [*NATIVE, "triton"] if INTERPRETED or "triton" in BACKENDS else NATIVE
INF, NAN = math.inf, math.nan


def device_of(backend):
    return "cuda" if backend == "cuda" or (backend == "triton" and not INTERPRETED) else "cpu"


def inputs(batch, length, size, dtype=torch.float32, device="cpu", mask=None):
    g = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, size, (batch, length), generator=g)
    mask = size if mask is None else mask
    tokens[torch.rand(batch, length, generator=g) < 0.7] = mask
    logits = 2 * torch.randn(batch, length, size, generator=g, dtype=torch.float64)
    return tokens.to(device), logits.to(dtype).to(device), torch.linspace(0, 1, batch).to(device)


@pytest.mark.parametrize("backend", WITH_TRITON)
def test_equals_the_reference(backend):
    """Token for token: numbers that differ by 1e-6 decide none of these races otherwise."""
    ids = torch.tensor([5, 2**40, -3, 0])
    dtypes, sizes = (torch.float32, torch.float64, torch.bfloat16, torch.float16), (1, 2, 7, 300)
    if backend == "triton" and INTERPRETED:  # a millisecond an operation
        dtypes, sizes = (torch.float32, torch.float64), (70,)
    for dtype, size, mask, temperature in itertools.product(dtypes, sizes, (None, 0), (1.0, 0.5, 0.0)):
        tokens, logits, p = inputs(4, 9 if len(sizes) > 1 else 4, size, dtype, mask=mask)
        logits[1, :, size // 2] = NAN
        logits[2, ::2] = -INF
        place = {"seed": 2**64 - 7, "step": 9, "mask_id": size if mask is None else mask, "temperature": temperature}
        device = device_of(backend)
        with fokker.use_backend(backend):
            got = absorb_step(tokens.to(device), logits.to(device), p.to(device), sample_ids=ids.to(device), **place)
        with fokker.use_backend("reference"):
            want = absorb_step(tokens, logits, p, sample_ids=ids, **place)
        assert torch.equal(got.cpu(), want), (dtype, size, mask, temperature)


@pytest.mark.parametrize("backend", BACKENDS)
def test_race_and_opening_use_their_streams(backend):
    """Positions by stream 5, tokens by argmax(logits + gumbel of stream 6): the numbers of `fokker.random`."""
    device = device_of(backend)
    tokens, logits, p = inputs(5, 11, 10, device=device)
    with fokker.use_backend(backend):
        u = random.uniform(5, 11, seed=3, step=2, stream=5, device=device)
        race = random.gumbel(5, (11, 10), seed=3, step=2, stream=6, device=device)
        got = absorb_step(tokens, logits, p, mask_id=10, seed=3, step=2)
    opens = (tokens == 10) & (u <= p[:, None])
    assert torch.equal(got, torch.where(opens, (logits + race).argmax(-1), tokens))
    assert torch.equal(got[tokens != 10], tokens[tokens != 10])
    assert (got[-1] != 10).all() and torch.equal(got[0], tokens[0])  # probabilities 1 and 0


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_law_of_the_tokens():
    """Counts of 400,000 draws against softmax: chi-square, 7 degrees of freedom (false alarms 1e-6)."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.009, 0.0009, 0.0001], dtype=torch.float64)
    n = 400_000
    tokens = torch.full((40, n // 40), 8)
    got = absorb_step(tokens, p.log().float().expand(40, n // 40, 8), 1.0, mask_id=8, seed=5)
    counts = torch.bincount(got.flatten(), minlength=9).double()
    assert counts[8] == 0
    assert ((counts[:8] - n * p).square() / (n * p)).sum() <= 40.5
    cold = absorb_step(tokens, p.log().float().expand(40, n // 40, 8), 1.0, mask_id=8, seed=6, temperature=0.5)
    q = p.square() / p.square().sum()
    counts = torch.bincount(cold.flatten(), minlength=9).double()[:7]
    assert ((counts - n * q[:7]).square() / (n * q[:7])).sum() <= 40.5


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_rare_tokens_keep_their_share():
    """64 tokens of probability 2e-8 each over 2^21 draws: 2.7 expected in all; none in fp32 noise of -log(-log(u))."""
    size, rare = 65, 2e-8
    logits = torch.full((size,), math.log(rare))
    logits[0] = math.log1p(-64 * rare)
    n, found = 2**19, 0
    tokens = torch.full((32, n // 32), size)
    for seed in range(4):
        got = absorb_step(tokens, logits.expand(32, n // 32, size), 1.0, mask_id=size, seed=seed)
        found += int((got != 0).sum())
    # Poisson(2.68): more than 14 has probability 3e-7, none 0.07: the seeds are fixed and give some
    assert 1 <= found <= 14


def test_opening_probability():
    tokens = torch.full((50, 20000), 3)
    for p in (0.01, 0.5, 0.97):
        got = absorb_step(tokens, torch.zeros(1, 1, 3).expand(50, 20000, 3), p, mask_id=3, seed=8)
        share = (got != 3).double().mean().item()
        assert abs(share - p) <= 4.9 * math.sqrt(p * (1 - p) / tokens.numel())


@pytest.mark.parametrize("backend", NATIVE)
def test_batch_split_layout_and_threads_do_not_matter(backend):
    device = device_of(backend)
    tokens, logits, p = inputs(6, 17, 33, device=device)
    before = torch.get_num_threads()
    try:
        with fokker.use_backend(backend):
            whole = absorb_step(tokens, logits, p, mask_id=33, seed=1)
            torch.set_num_threads(2)
            assert torch.equal(absorb_step(tokens, logits, p, mask_id=33, seed=1), whole)
            halves = [
                absorb_step(tokens[a:b], logits[a:b], p[a:b], mask_id=33, seed=1, sample_ids=a)
                for a, b in ((0, 2), (2, 6))
            ]
            assert torch.equal(torch.cat(halves), whole)
            moved = logits.transpose(0, 1).contiguous().transpose(0, 1)
            last = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
            for other in (moved, last):
                assert torch.equal(absorb_step(tokens.t().contiguous().t(), other, p, mask_id=33, seed=1), whole)
            held = absorb_step(tokens, logits, p, mask_id=33, seed=torch.tensor(1, device=device))
            assert torch.equal(held, whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
def test_order_of_the_cuda_threads_does_not_matter():
    tokens, logits, p = inputs(2, 5, 700)
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                results.append(absorb_step(tokens, logits, p, mask_id=700, seed=1))
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        _native.emu.set_order("forward", 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_and_empty(backend):
    device = device_of(backend)
    with fokker.use_backend(backend):
        tokens = torch.full((2, 3), 5, device=device)
        logits = torch.zeros(2, 3, 5, device=device)
        assert (absorb_step(tokens, logits, 1.0, mask_id=5, seed=1, temperature=0.0) == 0).all()
        assert (absorb_step(tokens, logits, 1.0, mask_id=5, seed=1, temperature=0) == 0).all()
        assert absorb_step(tokens[:, :0], logits[:, :0], 1.0, mask_id=5, seed=1).shape == (2, 0)
        assert absorb_step(tokens[:0], logits[:0], 1.0, mask_id=5, seed=1).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokens": torch.zeros(2, 3)}, TypeError, "tokens must have dtype int64, got torch.float32"),
        ({"tokens": torch.zeros(2, dtype=torch.int64)}, ValueError, r"shape \(batch, length\), got \(2,\)"),
        ({"tokens": [1]}, TypeError, "tokens must be a tensor, got list"),
        ({"logits": torch.zeros(2, 4, 5)}, ValueError, r"logits \(2, 4, 5\) must be .* for tokens \(2, 3\)"),
        ({"logits": torch.zeros(2, 3, 5, dtype=torch.int64)}, TypeError, "logits must have dtype float32"),
        ({"probability": 1.5}, ValueError, r"probability must be in \[0, 1\], got 1.5"),
        ({"probability": torch.zeros(3)}, ValueError, r"probability must be a number or have shape \(2,\), got \(3,\)"),
        ({"probability": torch.zeros(2, dtype=torch.int64)}, TypeError, "a number or a float tensor"),
        ({"probability": "a"}, TypeError, "probability must be a number"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite and not negative, got -1.0"),
        ({"mask_id": 1.5}, TypeError, "mask_id must be an int, got float"),
        ({"seed": -1}, ValueError, "seed must be in"),
        ({"sample_ids": torch.arange(3)}, ValueError, r"sample_ids must have shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {"tokens": torch.zeros(2, 3, dtype=torch.int64), "logits": torch.zeros(2, 3, 5), "probability": 0.5}
    with pytest.raises(error, match=words):
        absorb_step(**{**arguments, "mask_id": 0, "seed": 1, **change})


def traced(tokens, logits, p, step: int):
    return absorb_step(tokens, logits, p, mask_id=10, seed=3, step=step) + 1


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    tokens, logits, p = inputs(3, 6, 10)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for step in (1, 4, 5):
        assert torch.equal(compiled(tokens, logits, p, step), traced(tokens, logits, p, step))
