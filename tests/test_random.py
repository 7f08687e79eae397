"""Counter-based random numbers: the same on every backend, split and layout; errors, tracing, graphs."""

import hashlib
import math

import pytest
import torch
from conftest import BACKENDS
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process

import fokker
from fokker import _native, random
from fokker.random import Stream

KINDS = ("bits", "uniform", "normal", "gumbel", "exponential", "rademacher")
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SEED, STEP, SAMPLE = 0x0123456789ABCDEF, 7, 3
PLACE = {"seed": SEED, "step": STEP, "sample_ids": SAMPLE}
NORMALS = "befe69cc bf892a9d 3f357658 bcd7ea3b 3fc7eb00 bf862906 3e54c0b4 3f827237"
WORDS = "7f6d5b08 ce4f4cdc c70f4cea 1e7c5815 2ba6422a 07eb21b8 950d861f 57ce4d95"
# SHA-256 (first 16 digits) of 65,536 elements at PLACE in stream 5: the same on every CPU instruction set and on CUDA.
KNOWN = {
    ("bits", torch.int64): "20a2877d1ba4d75e",
    ("bits", torch.int32): "99d05a6fc7a0e386",
    ("uniform", torch.float32): "889939b7ae7a2562",
    ("uniform", torch.float64): "72b3fe2d1875e4f9",
    ("normal", torch.float32): "80750cf9b6f8e9f0",
    ("normal", torch.float64): "976fa46d66122a52",
    ("normal", torch.float16): "b0f1eafa1a9be15e",
    ("normal", torch.bfloat16): "b1011a3010a67c4b",
    ("gumbel", torch.float32): "2b204d35083dc9c6",
    ("gumbel", torch.float64): "6492cde6f01c9946",
    ("exponential", torch.float32): "0c8561403ba74f02",
    ("exponential", torch.float64): "cead403b20b1324c",
    ("rademacher", torch.float32): "3fa228a1d7dd9603",
    ("rademacher", torch.float64): "b42bade1ba616204",
}
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
ISAS = ["baseline", "avx2", "avx512"]


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def dtypes_of(kind):
    return (torch.int64, torch.int32, torch.uint32) if kind == "bits" else FLOATS


def hexadecimal(t):
    return " ".join(f"{w & 0xFFFFFFFF:08x}" for w in t.flatten().cpu().view(torch.int32).tolist())


def digest(t):
    return hashlib.sha256(t.cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


@pytest.fixture
def isa():
    """Sets the instruction set of the CPU kernels, for one test."""
    if _native.cpu is None:
        pytest.skip("the CPU module is not built")
    before = _native.cpu.isa()

    def use(name):
        try:
            _native.cpu.set_isa(name)
        except ValueError as error:
            pytest.skip(str(error))

    yield use
    _native.cpu.set_isa(before)


# ---- known answers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
def test_known_words_and_normals(backend):
    with fokker.use_backend(backend):
        words = random.bits(1, 8, **PLACE, dtype=torch.int32, device=device_of(backend))
        z = random.normal(1, 8, **PLACE, device=device_of(backend))
    assert hexadecimal(words) == WORDS
    if backend in NATIVE:
        assert hexadecimal(z) == NORMALS
    want = [-0.496900916, -1.07161295, 0.708837032, -0.026356807]
    torch.testing.assert_close(z[0, :4].cpu(), torch.tensor(want), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ISAS)
def test_same_bits_on_every_instruction_set(isa, name):
    isa(name)
    for (kind, dtype), want in KNOWN.items():
        with fokker.use_backend("cpu"):
            assert digest(getattr(random, kind)(1, 65536, **PLACE, stream=5, dtype=dtype)) == want, (kind, dtype)


@pytest.mark.parametrize("backend", [b for b in NATIVE if b != "cpu"])
def test_same_bits_in_the_cuda_source(backend):
    for (kind, dtype), want in KNOWN.items():
        with fokker.use_backend(backend):
            x = getattr(random, kind)(1, 65536, **PLACE, stream=5, dtype=dtype, device=device_of(backend))
        assert digest(x) == want, (kind, dtype)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_exponential_and_gumbel_keep_both_tails():
    """Against float64 functions of the same word: relative 3e-7 in E from its smallest values to its largest."""
    n = 2**21
    w = random.bits(1, n, **PLACE).double()
    u = (w + 0.5) / 2**32
    exact = torch.where(u < 0.5, -(-u).log1p(), -((2**32 - 1 - w + 0.5) / 2**32).log())
    e, g = (f(1, n, **PLACE).double() for f in (random.exponential, random.gumbel))
    assert (e / exact - 1).abs().max() <= 3e-7
    assert ((g + exact.log()).abs() / g.abs().clamp(min=1)).max() <= 3e-7
    assert exact.min() < 1e-5 and exact.max() > 13


# ---- the same everywhere -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind, backend):
    exact = kind in ("bits", "uniform", "rademacher")
    bounds = {torch.float32: 1e-6, torch.float64: 5e-15, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    ids = torch.tensor([5, 2**40, -3, 0])
    for dtype in dtypes_of(kind):
        for shape, offset in (((), 0), (1, 2), ((3, 37), 0), ((2, 5, 3), 1), (1030, 3)):
            place = {"seed": 2**64 - 5, "step": 2**24 - 1, "stream": 255, "element_offset": offset, "dtype": dtype}
            with fokker.use_backend(backend):
                got = getattr(random, kind)(4, shape, sample_ids=ids.to(device_of(backend)), **place,
                                            device=device_of(backend)).cpu()  # fmt: skip
            with fokker.use_backend("reference"):
                want = getattr(random, kind)(4, shape, sample_ids=ids, **place)
            assert got.dtype == want.dtype == dtype and got.shape == want.shape
            if exact:
                assert torch.equal(got, want)
            else:
                got, want = got.double(), want.double()
                assert ((got - want).abs() / want.abs().clamp(min=1)).max() <= bounds[dtype], (shape, dtype)


@pytest.mark.parametrize("backend", NATIVE)
def test_brownian_equals_the_reference(backend):
    device = device_of(backend)
    bounds = {torch.float32: 2e-6, torch.float64: 1e-14, torch.float16: 4e-3, torch.bfloat16: 4e-2}
    times = [(0.3, 0.31), (0.0, 1.0), (0.5, 0.25), (0.2, 0.2), (1.0, 1.0)]
    times.append((torch.tensor([0.1, 0.5, 1.0, 0.7]), torch.tensor(0.75)))
    for dtype, bound in bounds.items():
        for shape in ((), 3, (2, 67)):
            for t0, t1 in times:
                options = {"seed": 3, "stream": 2, "element_offset": 1, "dtype": dtype}
                at = [t.to(device) if isinstance(t, torch.Tensor) else t for t in (t0, t1)]
                with fokker.use_backend(backend):
                    got = random.brownian(4, shape, *at, device=device, **options)
                with fokker.use_backend("reference"):
                    want = random.brownian(4, shape, t0, t1, **options)
                assert got.shape == want.shape and (got.cpu().double() - want.double()).abs().max() <= bound
                if not isinstance(t0, torch.Tensor):  # times in memory: the same bits
                    held = [torch.full((4,), t, dtype=torch.float64, device=device) for t in (t0, t1)]
                    with fokker.use_backend(backend):
                        assert torch.equal(random.brownian(4, shape, *held, device=device, **options), got)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_batch_split_order_and_offset_do_not_matter(kind, backend):
    draw = getattr(random, kind)
    options = {"seed": 3, "step": 2, "stream": 1, "device": device_of(backend)}
    with fokker.use_backend(backend):
        for shape in (3, (2, 5, 7)):
            whole = draw(9, shape, **options)
            assert torch.equal(torch.cat([draw(4, shape, **options), draw(5, shape, sample_ids=4, **options)]), whole)
            order = torch.tensor([8, 0, 3, 3], device=options["device"])
            assert torch.equal(draw(4, shape, sample_ids=order, **options), whole[order])
            assert torch.equal(draw(4, shape, sample_ids=order.tolist(), **options), whole[order])
        row = draw(1, 70, **options)
        for begin, end in ((0, 3), (3, 64), (64, 70)):
            assert torch.equal(draw(1, end - begin, element_offset=begin, **options), row[:, begin:end])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_format_does_not_matter(kind, backend):
    """Logical order inside a sample, whatever the strides of ``out``; what lies between its elements is left alone."""
    draw, device = getattr(random, kind), device_of(backend)
    for dtype in dtypes_of(kind):
        for shape, offset in (((4, 6, 6), 0), ((3, 5, 7), 0), ((4, 20, 20), 2), ((2, 3, 2, 5, 2), 0)):
            options = {"seed": 3, "element_offset": offset}
            with fokker.use_backend(backend):
                plain = draw(3, shape, dtype=dtype, device=device, **options)
                outs = [torch.empty_like(plain)]
                outs.append(torch.empty((3, *reversed(shape)), dtype=dtype, device=device))
                outs[-1] = outs[-1].permute(0, *range(len(shape), 0, -1))
                spaced = torch.zeros((*plain.shape, 2), dtype=dtype, device=device)
                outs.append(spaced[..., 1])
                outs.append(torch.zeros((5, *shape), dtype=dtype, device=device)[1:4])
                if len(shape) == 3:
                    outs.append(torch.empty_like(plain, memory_format=torch.channels_last))
                for out in outs:
                    strides = out.stride()
                    assert draw(3, shape, out=out, **options) is out and out.stride() == strides
                    assert torch.equal(out, plain)
                assert not spaced[..., 0].any()


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_large_channels_last_and_thread_count(isa):
    """Tiled channels_last fills and any number of threads: the same bits."""
    before = torch.get_num_threads()
    try:
        for name in ("avx2", _native.cpu.isa()):
            isa(name)
            for shape, offset in (((3, 40, 50), 0), ((5, 33, 31), 3)):
                results = []
                for threads in (1, 2, 3):
                    torch.set_num_threads(threads)
                    out = torch.empty(7, *shape).to(memory_format=torch.channels_last)
                    results += [random.normal(7, shape, seed=4, element_offset=offset, out=out)]
                    results += [random.normal(7, shape, seed=4, element_offset=offset)]
                assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
def test_order_of_the_cuda_threads_does_not_matter():
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                out = torch.empty(3, 4, 6, 6).to(memory_format=torch.channels_last)
                results.append(random.normal(3, (4, 6, 6), seed=1, out=out))
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        _native.emu.set_order("forward", 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_and_step_in_memory(backend):
    device = device_of(backend)
    with fokker.use_backend(backend):
        for seed in (9, 2**63 + 9):
            held = torch.tensor(seed - 2**64 if seed >= 2**63 else seed, device=device)
            for step in (0, 2**24 - 1):
                want = random.normal(2, 5, seed=seed, step=step, device=device)
                for shape in ((), (1,)):
                    at = torch.tensor(step, device=device).reshape(shape)
                    assert torch.equal(random.normal(2, 5, seed=held, step=at, device=device), want)
        wrapped = torch.tensor(2**24 + 5, device=device)  # mod 2^24: a counter on the device may run on
        want = random.normal(2, 5, seed=1, step=5, device=device)
        assert torch.equal(random.normal(2, 5, seed=1, step=wrapped, device=device), want)
        held, before = torch.tensor([4], device=device), None
        for _ in range(2):  # the value counts at the time of the call
            now = random.brownian(2, 5, 0.2, 0.7, seed=held, device=device)
            assert before is None or not torch.equal(now, before)
            held, before = held.add_(1), now


def test_generators_seed():
    g = torch.Generator().manual_seed(3)
    first, second = random.normal(2, 3, generator=g), random.normal(2, 3, generator=g)
    assert not torch.equal(first, second)
    g.manual_seed(3)
    assert torch.equal(random.normal(2, 3, generator=g), first)
    torch.manual_seed(5)
    default = random.normal(2, 3)
    torch.manual_seed(5)
    assert torch.equal(random.normal(2, 3), default)


def test_dtypes_and_shapes():
    assert random.normal(0, 3, seed=1).shape == (0, 3)
    assert random.normal(3, (2, 0), seed=1).shape == (3, 2, 0)
    assert random.bits(2, seed=1).shape == (2,) and random.bits(2, seed=1).dtype == torch.int64
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert random.normal(2, 3, seed=1).dtype == torch.float64
    finally:
        torch.set_default_dtype(before)
    single = random.normal(2, 33, seed=1)
    for half in (torch.float16, torch.bfloat16):
        assert torch.equal(random.normal(2, 33, seed=1, dtype=half), single.to(half))
    words = random.bits(2, 33, seed=1)
    assert torch.equal(random.bits(2, 33, seed=1, dtype=torch.uint32).to(torch.int64), words)
    assert torch.equal(random.bits(2, 33, seed=1, dtype=torch.int32).to(torch.int64) % 2**32, words)
    signs = random.rademacher(2, 33, seed=1)
    assert torch.equal(signs, torch.where(words < 2**31, 1.0, -1.0))
    assert torch.equal(random.rademacher(2, 33, seed=1, dtype=torch.float64), signs.double())


# ---- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"seed": torch.tensor(1.0)}, TypeError, "seed must be an int or an int64 tensor, got dtype torch.float32"),
        ({"seed": torch.tensor([1, 2])}, ValueError, r"seed must have one element, got shape \(2,\)"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "seed or generator, not both"),
        ({"step": -1}, ValueError, r"step must be in \[0, 2\^24\), got -1"),
        ({"step": 2**24}, ValueError, "step must be in"),
        ({"step": torch.tensor([1, 2])}, ValueError, "step must have one element"),
        ({"stream": 256}, ValueError, r"stream must be in \[0, 256\), got 256"),
        ({"stream": -1}, ValueError, "stream"),
        ({"stream": "a"}, TypeError, "stream must be an int, got str"),
        ({"batch": -1}, ValueError, "batch and shape must not be negative"),
        ({"batch": 2.0}, TypeError, "batch must be an int, got float"),
        ({"shape": (3, -1)}, ValueError, "batch and shape must not be negative"),
        ({"shape": (3, 1.5)}, TypeError, "shape must be an int"),
        (
            {"sample_ids": torch.arange(3)},
            ValueError,
            r"sample_ids must have shape \(2,\), one id a sample, got \(3,\)",
        ),
        ({"sample_ids": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "sample_ids must have shape"),
        ({"sample_ids": torch.zeros(2)}, TypeError, "sample_ids must have dtype int64, got torch.float32"),
        ({"sample_ids": [1, 2, 3]}, ValueError, "sample_ids must have shape"),
        ({"sample_ids": "ab"}, TypeError, "sample_ids must be"),
        ({"sample_ids": -1}, ValueError, "sample_ids must be in"),
        ({"element_offset": -1}, ValueError, "element_offset -1"),
        ({"element_offset": 2**34 - 4}, ValueError, r"within \[0, 2\^34\) elements"),
        ({"element_offset": 2**33, "dtype": torch.float64}, ValueError, r"within \[0, 2\^33\) elements"),
        (
            {"dtype": torch.int32},
            TypeError,
            "one of float16, bfloat16, float32, float64, got torch.int32",
        ),
        ({"dtype": torch.complex64}, TypeError, "dtype must be one of"),
        ({"out": torch.empty(2, 6)}, ValueError, r"out must have shape \(2, 5\), got \(2, 6\)"),
        ({"out": torch.empty(2, 5), "dtype": torch.float64}, TypeError, "out has dtype torch.float32"),
        ({"out": torch.empty(2, 5, dtype=torch.int64)}, TypeError, "dtype must be one of"),
        ({"out": torch.empty(2, 5, requires_grad=True)}, ValueError, "out must not require a gradient"),
        ({"out": torch.empty(2, 5).to_sparse()}, TypeError, "out must be a dense"),
        ({"seed": torch.tensor(5).to_sparse()}, TypeError, "seed must be a dense"),
        ({"sample_ids": [2**63, 0]}, ValueError, "sample_ids must lie in"),
        ({"seed": None, "generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
        ({"out": [1.0]}, TypeError, "out must be a tensor, got list"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {"batch": 2, "shape": 5, "seed": 1, **change}
    if "generator" not in change:
        arguments.setdefault("seed", 1)
    with pytest.raises(error, match=words):
        random.normal(arguments.pop("batch"), arguments.pop("shape"), **arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_writing_out_is_seen_by_autograd(backend):
    out = torch.ones(2, 5, device=device_of(backend))
    x = torch.ones(2, 5, device=device_of(backend), requires_grad=True)
    y = (x * out).sum()
    with fokker.use_backend(backend):
        random.normal(2, 5, seed=1, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("backend", NATIVE)
def test_an_output_that_overlaps_itself_is_refused(backend):
    with fokker.use_backend(backend), pytest.raises(ValueError, match="must not be an expanded tensor"):
        random.normal(2, 5, seed=1, out=torch.empty(1, 5, device=device_of(backend)).expand(2, 5))


def test_bits_take_integer_dtypes_only():
    with pytest.raises(TypeError, match=r"dtype must be one of int64, int32, uint32, got torch\.float32"):
        random.bits(1, 2, seed=1, dtype=torch.float32)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"t0": -0.1}, ValueError, r"t0 must be in \[0, 1\], got -0.1"),
        ({"t1": math.nan}, ValueError, "t1 must be in"),
        ({"t1": "a"}, TypeError, "t1 must be a number or a floating tensor, got str"),
        ({"t1": torch.arange(2)}, TypeError, "t1 must be a number or a floating tensor, got dtype torch.int64"),
        ({"t1": torch.rand(3)}, ValueError, r"t1 must be a number or have shape \(2,\), got \(3,\)"),
        ({"stream": 64}, ValueError, r"stream must be in \[0, 64\), got 64"),
    ],
)
def test_bad_brownian_arguments_are_named(change, error, words):
    arguments = {"t0": 0.1, "t1": 0.2, **change}
    with pytest.raises(error, match=words):
        random.brownian(2, 5, arguments.pop("t0"), arguments.pop("t1"), seed=1, **arguments)


# ---- tracing, graphs, Triton ---------------------------------------------------------------------------------------
def traced(seed: int, step: int) -> torch.Tensor:
    return random.normal(4, (3, 5), seed=seed, step=step, stream=Stream.CHURN) + 1


def traced_tensors(seed, step, t):
    x = random.rademacher(4, 7, seed=seed, step=step, dtype=torch.bfloat16)
    return x, random.bits(2, 3, seed=seed, dtype=torch.uint32), random.brownian(4, 7, t, 0.75, seed=seed)


def traced_out(out):
    return random.gumbel(4, 7, seed=3, out=out) * 2


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for seed, step in ((5, 1), (6, 2), (2**63 - 1, 3)):
        assert torch.equal(compiled(seed, step), traced(seed, step))
    compiled = torch.compile(traced_tensors, fullgraph=True, backend="aot_eager")
    for seed, step in ((5, 1), (6, 2)):
        arguments = torch.tensor(seed), torch.tensor(step), torch.tensor(0.3)
        assert all(torch.equal(a, b) for a, b in zip(compiled(*arguments), traced_tensors(*arguments), strict=True))
    out = torch.empty(4, 7)
    doubled = torch.compile(traced_out, fullgraph=True, backend="aot_eager")(out)
    assert torch.equal(out, random.gumbel(4, 7, seed=3)) and torch.equal(doubled, 2 * out)


def test_export_and_vmap():
    class Model(torch.nn.Module):
        def forward(self, ids):
            return random.normal(4, 3, seed=1, sample_ids=ids)

    ids = torch.arange(4)
    assert torch.equal(torch.export.export(Model(), (ids,)).module()(ids), random.normal(4, 3, seed=1))
    twice = torch.func.vmap(lambda x: x + random.normal(4, 3, seed=1))(torch.zeros(2, 4, 3))
    assert torch.equal(twice[1], random.normal(4, 3, seed=1)) or torch.allclose(
        twice[1], random.normal(4, 3, seed=1), rtol=0, atol=1e-6
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_makes_fresh_noise():
    seed, step = torch.tensor(5, device="cuda"), torch.tensor(0, device="cuda")
    out, path = torch.empty(4, 100, device="cuda"), torch.empty(4, 100, device="cuda")
    t = torch.tensor(0.25, device="cuda")

    def body():
        random.normal(4, 100, seed=seed, step=step, out=out)
        random.brownian(4, 100, t, 1.0, seed=seed, out=path)
        step.add_(1)

    with torch.cuda.stream(torch.cuda.Stream()):
        body()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    for k in (3, 4):
        step.fill_(k)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, random.normal(4, 100, seed=5, step=k, device="cuda"))


@IN_A_PROCESS
def test_triton_interpreted_in_a_process():
    pytest.importorskip("triton")
    run_in_a_process(__file__, "-k", "by_triton")


@RUNS
@pytest.mark.parametrize("kind", [*KINDS, "brownian"])
def test_by_triton(kind):
    exact = kind in ("bits", "uniform", "rademacher")
    bounds = {torch.float32: 1e-6, torch.float64: 5e-15, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    options = {"seed": 2**64 - 5, "element_offset": 3, "device": DEVICE}
    for dtype in dtypes_of(kind):
        out = torch.empty(2, 3, 5, 5, dtype=dtype, device=DEVICE).to(memory_format=torch.channels_last)
        held = {**options, "seed": torch.tensor(-5, device=DEVICE), "sample_ids": torch.tensor([7, 8], device=DEVICE)}
        times = ()
        if kind == "brownian":
            times = (0.25, 0.3125)
        else:
            options |= {"step": 11, "stream": 200}
            held |= {"step": torch.tensor(2**24 + 11, device=DEVICE), "stream": 200}
        draw = getattr(random, kind)
        with fokker.use_backend("triton"):
            got = draw(2, (3, 5, 5), *times, sample_ids=7, dtype=dtype, **options)
            draw(2, (3, 5, 5), *times, out=out, **held)
        with fokker.use_backend("reference"):
            want = draw(2, (3, 5, 5), *times, sample_ids=7, dtype=dtype, **options)
        assert torch.equal(got, out)
        if exact:
            assert torch.equal(got, want)
        else:
            size = want.double().abs().clamp(min=1)
            assert ((got.double() - want.double()).abs() / size).max() <= bounds[dtype], dtype
