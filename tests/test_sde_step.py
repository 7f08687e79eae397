"""The affine and exponential steps: the reference's numbers on every backend, noise, layouts, out=, errors, graphs."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _native, random
from fokker._sde_step import affine_step, gram

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
#: a sum of terms of order one, and one more rounding for a half
BOUNDS = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SHAPES = [(3,), (5, 1), (3, 7), (2, 3, 24, 43), (3, 20, 9, 11), (2, 130, 5, 6), (70, 2)]
SETTINGS = [
    {},
    {"seed": 5, "step": 3, "stream": 2},
    {"seed": 5, "element_offset": 3, "results": 2, "dots": True},
    {"seed": 1, "exponential": True},
    {"results": 3, "dots": True},
    {"clip": 0.8, "results": 2, "seed": 3, "sample_ids": 2**40},
    {"clip": 0.5, "exponential": True, "dots": True},
]


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def plain(t):
    return t


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def spaced(t):
    return torch.stack([t, t], -1)[..., 0]


def flat(found):
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in flat(part)]


def inputs(shape, terms, dtype, settings, device="cpu", layout=plain, shared=False, term_dtype=None, row=None):
    """State, terms and coefficients of a step, the same ones for every backend."""
    g = torch.Generator().manual_seed(3)

    def normal(size, dtype):
        return torch.randn(size, generator=g, dtype=torch.float64).to(dtype)

    wide = torch.float64 if dtype is torch.float64 else torch.float32
    columns = 1 + terms + ("seed" in settings) + 2 * ("clip" in settings)
    results = settings.get("results", 1)
    size = [] if row is None else [row]
    size += [] if shared else [shape[0]]
    size += [results] * (results > 1) + [columns]
    x = layout(normal(shape, dtype)).to(device)
    m = [layout(normal(shape, term_dtype or dtype)).to(device) for _ in range(terms)]
    return x, m, 0.6 * normal(size, wide).to(device)


def reference(x, m, c, settings):
    with fokker.use_backend("reference"):
        return flat(affine_step(x.cpu(), [t.cpu() for t in m], c.cpu(), **settings))


def close(got, want, dtype, name=""):
    for a, b in zip(flat(got), want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        bound = BOUNDS[dtype]
        if a.dtype is torch.float64 and dtype is not torch.float64:  # inner products: of the result before it is rounded
            bound = 1e-5
        error = ((a.cpu().double() - b.double()).abs() / b.double().abs().clamp(min=1)).max()
        assert error <= bound, f"{name}: {float(error):.3g}"


# ---- the same numbers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_reference(settings, backend):
    for shape, terms, layout in itertools.product(SHAPES, (0, 1, 3, 8), (plain, channels_last, spaced)):
        dtypes = DTYPES if terms == 1 and backend != "emu" else DTYPES[: 2 - (backend == "emu")]
        if ("clip" in settings and terms == 0) or (backend == "emu" and (terms == 3 or layout is spaced)):
            continue
        for dtype in dtypes:
            x, m, c = inputs(shape, terms, dtype, settings, device_of(backend), layout)
            with fokker.use_backend(backend):
                got = affine_step(x, m, c, **settings)
            close(got, reference(x, m, c, settings), dtype, (shape, terms, dtype, layout.__name__))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_on_every_instruction_set(isa):
    before = _native.cpu.isa()
    try:
        _native.cpu.set_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for settings, shape, dtype in itertools.product(SETTINGS, SHAPES, DTYPES):
            x, m, c = inputs(shape, 2, dtype, settings, layout=channels_last)
            with fokker.use_backend("cpu"):
                close(affine_step(x, m, c, **settings), reference(x, m, c, settings), dtype, (settings, shape, dtype))
    finally:
        _native.cpu.set_isa(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes(backend):
    settings = {"seed": 4, "results": 2}
    for dtype, other in itertools.product(DTYPES, DTYPES):
        x, m, c = inputs((3, 4, 50), 2, dtype, settings, device_of(backend), term_dtype=other)
        with fokker.use_backend(backend):
            got = affine_step(x, m, c, **settings)
            out = [torch.empty_like(x, dtype=other) for _ in range(2)]
            assert affine_step(x, m, c, **settings, out=out) is out
        close(got, reference(x, m, c, settings), dtype)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        if dtype not in HALVES:  # one rounding, that of the dtype written to
            assert all(torch.equal(a, b.to(wide).to(other)) for a, b in zip(out, got, strict=True))


@pytest.mark.parametrize("backend", NATIVE)
def test_half_precision_is_the_rounded_float32_result(backend):
    for half in HALVES:
        x, m, c = inputs((4, 3, 65), 2, half, {"seed": 1}, device_of(backend))
        with fokker.use_backend(backend):
            single = affine_step(x.float(), [t.float() for t in m], c, seed=1)
            assert torch.equal(affine_step(x, m, c, seed=1), single.to(half))


@pytest.mark.parametrize("backend", NATIVE)
def test_one_term_bound(backend):
    """|error| <= 3e-7 of the sum of the terms' sizes (float32, two terms and noise)."""
    settings = {"seed": 9}
    x, m, c = inputs((8, 1000), 2, torch.float32, settings, device_of(backend))
    with fokker.use_backend(backend):
        y = affine_step(x, m, c, **settings).cpu().double()
        z = random.normal(8, 1000, seed=9, device=device_of(backend)).cpu().double()
    parts = [c[:, k, None].cpu().double() * v.cpu().double() for k, v in enumerate([x, *m, z])]
    assert ((y - sum(parts)).abs() <= 3e-7 * sum(p.abs() for p in parts)).all()


# ---- noise ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", NATIVE)
def test_noise_is_that_of_fokker_random(backend):
    """Bit for bit, in every layout, for short and long samples, any offset and ids."""
    device = device_of(backend)
    for dtype, shape, offset in itertools.product(
        (torch.float32, torch.float64), [(), (1,), (5,), (64,), (65,), (3, 20, 21), (4, 24, 24), (130, 6, 6)], (0, 3)
    ):
        for ids in (None, 7, torch.tensor([5, 2**40, -3], device=device)):
            place = {"seed": 2**64 - 5, "step": 2**24 - 1, "stream": 255, "element_offset": offset, "sample_ids": ids}
            x = torch.zeros(3, *shape, dtype=dtype, device=device)
            c = torch.tensor([0.0, 1.0], dtype=dtype, device=device)
            with fokker.use_backend(backend):
                want = random.normal(3, shape, dtype=dtype, device=device, **place)
                for layout in (plain, channels_last, spaced):
                    got = affine_step(layout(x), [], c, **place)
                    assert torch.equal(got, want), (dtype, shape, offset, layout.__name__)


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_step_and_row_in_memory(backend):
    device = device_of(backend)
    x, m, table = inputs((3, 40), 1, torch.float32, {"seed": 0}, device, row=4)
    with fokker.use_backend(backend):
        want = affine_step(x, m, table, row=2, seed=2**63 + 9, step=7)
        assert torch.equal(affine_step(x, m, table[2], seed=2**63 + 9, step=7), want)
        for size in ((), (1,)):
            seed, step, row = (torch.full(size, v, device=device) for v in (9 - 2**63, 7 + 2**24, 2))
            assert torch.equal(affine_step(x, m, table, row=row, seed=seed, step=step), want)
        held = torch.tensor([1], device=device)
        first = affine_step(x, m, table, row=held, seed=1)
        assert torch.equal(affine_step(x, m, table, row=held.add_(1), seed=1), affine_step(x, m, table, row=2, seed=1))
        assert not torch.equal(first, affine_step(x, m, table, row=2, seed=1))
        for outside in (-1, 4):  # of the table: known only when the kernel runs
            at = torch.tensor(outside, device=device)
            assert affine_step(x, m, table, row=at, seed=1).isnan().all()


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("settings", SETTINGS[:6], ids=str)
def test_batch_split_does_not_matter(settings, backend):
    for shape in ((9, 3), (9, 2, 5, 7), (9, 700)):
        x, m, c = inputs(shape, 2, torch.float32, settings, device_of(backend))
        base = settings.get("sample_ids", 0)
        with fokker.use_backend(backend):
            whole = flat(affine_step(x, m, c, **settings))
            parts = []
            for begin, end in ((0, 4), (4, 9)):
                place = {"sample_ids": base + begin} if "seed" in settings else {}
                parts.append(
                    flat(affine_step(x[begin:end], [t[begin:end] for t in m], c[begin:end], **{**settings, **place}))
                )
            assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*parts, strict=True), whole, strict=True))
            if "seed" in settings:
                order = torch.tensor([8, 0, 3], device=x.device)
                moved = affine_step(x[order], [t[order] for t in m], c[order], **{**settings, "sample_ids": order + base})
                assert all(torch.equal(a, w[order]) for a, w in zip(flat(moved), whole, strict=True))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_thread_count_does_not_matter():
    before = torch.get_num_threads()
    try:
        for layout in (plain, channels_last):
            settings = {"seed": 5, "dots": True, "results": 2}
            x, m, c = inputs((5, 4, 90, 70), 1, torch.float32, settings, layout=layout)
            results = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                with fokker.use_backend("cpu"):
                    results.append(flat(affine_step(x, m, c, **settings)))
            assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
@pytest.mark.parametrize("settings", SETTINGS[2:4], ids=str)
def test_order_of_the_cuda_threads_does_not_matter(settings):
    x, m, c = inputs((2, 3, 20, 10), 2, torch.float32, settings, layout=channels_last)
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                results.append(flat(affine_step(x, m, c, **settings)))
        assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0], strict=True))
    finally:
        _native.emu.set_order("forward", 0)


# ---- out ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_out_may_be_an_operand(settings, backend):
    """Written in place of x, or of a term, with the numbers that a fresh result has."""
    results, dots = settings.get("results", 1), settings.get("dots", False)
    for shape, layout in itertools.product(((4, 3), (2, 3, 5, 7), (2, 1300)), (plain, channels_last, spaced)):
        for taken in ("x", "term", "fresh"):
            x, m, c = inputs(shape, 2, torch.float32, settings, device_of(backend), layout)
            with fokker.use_backend(backend):
                want = flat(affine_step(x, m, c, **settings))
                first = {"x": x, "term": m[1], "fresh": spaced(torch.zeros_like(x))}[taken]
                strides = first.stride()
                outs = [first] + [torch.empty_like(x) for _ in range(results - 1)]
                out = outs if results > 1 else first
                found = affine_step(x, m, c, **settings, out=out)
            assert (found[0] if dots else found) is out and first.stride() == strides
            got = [*outs, found[1]] if dots else outs
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True)), (shape, layout.__name__, taken)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layout_of_the_result(backend):
    x, m, c = inputs((2, 3, 5, 7), 1, torch.float32, {}, device_of(backend), channels_last)
    with fokker.use_backend(backend):
        assert affine_step(x, m, c).is_contiguous(memory_format=torch.channels_last)
        assert affine_step(x.expand(2, 3, 5, 7).mT, [m[0].mT], c).shape == (2, 3, 7, 5)
        wide = torch.randn(2, 1, 5, 7, device=x.device).expand(2, 3, 5, 7)
        close(affine_step(wide, m, c), reference(wide, m, c, {}), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_and_special_values(backend):
    device = device_of(backend)
    with fokker.use_backend(backend):
        for shape in ((0, 3), (3, 0), (0,)):
            x = torch.zeros(shape, device=device)
            y, d = affine_step(x, [x], torch.ones(3, device=device), seed=1, dots=True)
            assert y.shape == shape and d.shape == (shape[0], 3, 3) and not d.any()
        bad = torch.tensor([[float("nan"), float("inf"), -float("inf"), 1.0]], device=device)
        one = torch.ones(1, 4, device=device)
        y = affine_step(bad, [one], torch.tensor([1.0, 1.0], device=device))
        assert y[0, 0].isnan() and y[0, 1] == float("inf") and y[0, 2] == -float("inf") and y[0, 3] == 2
        clipped = affine_step(one, [bad], torch.tensor([0.0, 1.0, 0.0, 2.0], device=device), clip=1.5)
        assert clipped[0, 0].isnan() and clipped[0, 1:].tolist() == [1.5, -1.5, 1.5]


# ---- gradients --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_equal_the_reference(settings, backend):
    """In the state, terms and coefficients: shared, by sample, of a row; through the inner products too."""
    bounds = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}
    kinds = [{}, {"shared": True}, {"row": 3}]
    for dtype, kind, layout in itertools.product(bounds, kinds, (plain, channels_last)):
        grads = {}
        for name in (backend, "reference"):
            x, m, c = inputs((3, 2, 9, 15), 2, dtype, settings, device_of(name), layout, **kind)
            leaves = [t.requires_grad_() for t in (x, *m, c)]
            extra = {"row": 1} if "row" in kind else {}
            if extra and settings.get("dots"):
                extra = {"row": torch.tensor(1, device=x.device)}
            with fokker.use_backend(name):
                found = flat(affine_step(x, m, c, **settings, **extra))
                weights = [torch.linspace(-1, 1, t.numel(), device=t.device).reshape(t.shape) for t in found]
                loss = sum((w * t.double()).sum() for w, t in zip(weights, found, strict=True))
                grads[name] = [g.cpu() for g in torch.autograd.grad(loss, leaves)]
        for got, want in zip(*grads.values(), strict=True):
            assert got.dtype == want.dtype and got.shape == want.shape
            scale = want.double().abs().max().clamp(min=1)
            assert ((got.double() - want.double()).abs() / scale).max() <= bounds[dtype], (dtype, kind)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "emu"])
def test_numerical_gradients(backend):
    for exponential, clip, results in itertools.product((False, True), (None, 0.7), (1, 2)):
        settings = {"exponential": exponential, "dots": True, "results": results, "seed": 3}
        if clip is not None:
            settings["clip"] = clip
        x, m, c = inputs((2, 2, 2), 2, torch.float64, settings, device_of(backend), row=2)
        leaves = [t.requires_grad_() for t in (x, *m, c)]

        def f(x, a, b, c, settings=settings):
            return tuple(flat(affine_step(x, [a, b], c, row=1, **settings)))

        with fokker.use_backend(backend):
            assert torch.autograd.gradcheck(f, leaves)
            assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_gradient_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            x, m, c = inputs((3, 40000), 1, torch.float32, {"seed": 1})
            leaves = [t.requires_grad_() for t in (x, *m, c)]
            with fokker.use_backend("cpu"):
                results.append(torch.autograd.grad(affine_step(x, m, c, seed=1).square().sum(), leaves))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    finally:
        torch.set_num_threads(before)


# ---- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", [b for b in ("reference", "cpu") if b in BACKENDS])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": 1.0}, TypeError, "x must be a tensor, got float"),
        ({"x": torch.zeros(())}, ValueError, "x must have shape .batch, ...., got a 0-dimensional tensor"),
        ({"x": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "x must have dtype float32.*got torch.int64"),
        ({"terms": [torch.zeros(3, 4)] * 9}, ValueError, "at most 8 terms are supported, got 9"),
        ({"terms": [torch.zeros(3, 5)]}, ValueError, r"terms\[0\] \(3, 5\) must have the shape of x \(3, 4\)"),
        ({"terms": [torch.zeros(3, 4, device="meta")]}, TypeError, r"terms\[0\] is on meta, x on cpu"),
        ({"terms": [torch.zeros(3, 4, dtype=torch.int64)]}, TypeError, r"terms\[0\] must have dtype"),
        ({"coefficients": [1.0, 2.0]}, TypeError, "coefficients must be a tensor, got list"),
        ({"coefficients": torch.zeros(2)}, ValueError, r"shape \(3\) or \(3, 3\) with the columns \[a, b_1, c\], got \(2,\)"),
        ({"coefficients": torch.zeros(2, 3)}, ValueError, "coefficients must have shape"),
        ({"coefficients": torch.zeros(())}, ValueError, "coefficients must have shape"),
        ({"coefficients": torch.zeros(3).double()}, TypeError, "dtype torch.float32 for a state of torch.float32"),
        ({"coefficients": torch.zeros(3, device="meta")}, TypeError, "coefficients is on meta, x on cpu"),
        ({"row": 0}, ValueError, r"coefficients must have shape \(steps, 3\) or \(steps, 3, 3\)"),
        ({"row": 5, "coefficients": torch.zeros(5, 3)}, ValueError, r"row must be in \[0, 5\), .*got 5"),
        ({"row": -1, "coefficients": torch.zeros(5, 3)}, ValueError, r"row must be in \[0, 5\), .*got -1"),
        ({"row": 1.5, "coefficients": torch.zeros(5, 3)}, TypeError, "row must be an int, got float"),
        ({"row": torch.tensor(1.0), "coefficients": torch.zeros(5, 3)}, TypeError, "row must be an int or an int64"),
        ({"seed": -1}, ValueError, r"seed must be in \[0, 2\^64\), got -1"),
        ({"step": 2**24}, ValueError, r"step must be in \[0, 2\^24\)"),
        ({"stream": 256}, ValueError, "stream must be in"),
        ({"sample_ids": torch.arange(4)}, ValueError, r"sample_ids must have shape \(3,\)"),
        ({"element_offset": -1}, ValueError, "element_offset -1"),
        ({"element_offset": 2**34 - 3}, ValueError, "element_offset"),
        ({"results": 4}, ValueError, "results must be 1, 2 or 3, got 4"),
        ({"results": 2}, ValueError, r"shape \(2, 3\) or \(3, 2, 3\)"),
        ({"clip": -1.0}, ValueError, "coefficients must have shape"),
        ({"clip": -1.0, "coefficients": torch.zeros(5)}, ValueError, "clip must be finite and not negative, got -1.0"),
        ({"clip": "a", "coefficients": torch.zeros(5)}, TypeError, "clip must be a number, got str"),
        ({"clip": 1.0, "terms": [], "coefficients": torch.zeros(4)}, ValueError, "clip replaces the first term"),
        ({"out": torch.zeros(3, 5)}, ValueError, r"out \(3, 5\) must have the shape of x"),
        ({"out": torch.zeros(3, 4, dtype=torch.int64)}, TypeError, "out must have dtype"),
        ({"out": [torch.zeros(3, 4)] * 2}, ValueError, "out must be 1 tensor, got 2"),
        ({"out": [1.0]}, TypeError, "out must be a tensor, got float"),
        ({"out": torch.zeros(3, 4, requires_grad=True)}, ValueError, "out= records no gradient"),
        ({"out": torch.zeros(3, 4), "x": torch.zeros(3, 4, requires_grad=True)}, ValueError, "out= records no gradient"),
    ],
)
def test_bad_arguments_are_named(change, error, words, backend):
    arguments = {"x": torch.zeros(3, 4), "terms": [torch.zeros(3, 4)], "coefficients": torch.zeros(3), "seed": 1}
    with fokker.use_backend(backend), pytest.raises(error, match=words):
        affine_step(**{**arguments, **change})


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU module is not built")
def test_expanded_out_is_refused():
    with fokker.use_backend("cpu"), pytest.raises(ValueError, match="out .* must not be an expanded tensor"):
        affine_step(torch.zeros(3, 4), [], torch.ones(1), out=torch.zeros(3, 1).expand(3, 4))


# ---- tracing, transforms ----------------------------------------------------------------------------------------------
def traced(x, m, table, row: int, step: int):
    return affine_step(x, [m], table, row=row, seed=7, step=step) * 2


def traced_out(x, m, c, out):
    y, d = affine_step(x, [m], c, dots=True, out=out)
    return y + 1, d


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    x, (m,), table = inputs((3, 50), 1, torch.float32, {"seed": 0}, row=9)
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    for row in (1, 4, 5, 7):
        torch.testing.assert_close(compiled(x, m, table, row, row + 1), traced(x, m, table, row, row + 1))
    out = torch.empty_like(x)
    got, d = torch.compile(traced_out, fullgraph=True, backend="aot_eager")(x, m, table[0, :, :2].contiguous(), out)
    want, want_d = affine_step(x, [m], table[0, :, :2].contiguous(), dots=True)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(got, want + 1)
    torch.testing.assert_close(d, want_d)


def test_export_vmap_and_jvp():
    x, (m,), c = inputs((3, 8), 1, torch.float64, {"seed": 0})

    class Model(torch.nn.Module):
        def forward(self, x, m, c):
            return affine_step(x, [m], c, seed=3, sample_ids=4)

    want = affine_step(x, [m], c, seed=3, sample_ids=4)
    torch.testing.assert_close(torch.export.export(Model(), (x, m, c)).module()(x, m, c), want)
    rows = torch.func.vmap(lambda s: affine_step(x * s, [m], c, seed=3))(torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(rows[1], affine_step(x * 2, [m], c, seed=3))
    _, slope = torch.func.jvp(lambda t: affine_step(t, [m], c, exponential=True, seed=3), (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, affine_step(torch.ones_like(x), [m], c, exponential=True, seed=3))
    inner = torch.func.grad(lambda t: gram([t, m]).sum())(x)
    torch.testing.assert_close(inner, 2 * (x + m))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replayed_graph_steps_on():
    x, m, table = inputs((4, 100), 1, torch.float32, {"seed": 0}, "cuda", row=6)
    step, out = torch.tensor(0, device="cuda"), torch.empty_like(x)

    def body():
        affine_step(x, m, table, row=step, seed=5, step=step, out=out, dots=True)
        step.add_(1)

    with torch.cuda.stream(torch.cuda.Stream()):
        body()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    for k in (2, 4):
        step.fill_(k)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, affine_step(x, m, table, row=k, seed=5, step=k))


# ---- Triton -------------------------------------------------------------------------------------------------------------
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


@pytest.mark.skipif(TRITON == "cuda" or INTERPRETED, reason="this process runs the kernels itself")
def test_triton_interpreted_in_a_process():
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "by_triton"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=1800,  # a throttled machine
    )
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]


@pytest.mark.skipif(TRITON == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_by_triton(settings):
    for shape, layout, kind in (((3, 7), plain, {}), ((2, 3, 5, 9), channels_last, {"shared": True}), ((2, 300), spaced, {})):
        x, m, c = inputs(shape, 2, torch.float32, settings, TRITON, layout, **kind)
        with fokker.use_backend("triton"):
            got = affine_step(x, m, c, **settings)
        close(got, reference(x, m, c, settings), torch.float32, (shape, layout.__name__))
