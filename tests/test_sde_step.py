"""The affine and exponential steps: the reference's numbers on every backend, noise, layouts, threads, out=."""

import itertools

import pytest
import torch
from conftest import BACKENDS
from sde_calls import (
    DTYPES,
    HALVES,
    NATIVE,
    SETTINGS,
    SHAPES,
    SMALL,
    channels_last,
    close,
    device_of,
    flat,
    inputs,
    plain,
    reference,
    spaced,
)

import fokker
from fokker import _native, random
from fokker._sde_step import affine_step


# ---- the same numbers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equals_the_reference(settings, backend):
    shapes = SMALL if backend == "emu" else SHAPES
    for shape, terms, layout in itertools.product(shapes, (0, 1, 3, 8), (plain, channels_last, spaced)):
        dtypes = DTYPES if terms == 1 else DTYPES[: 2 - (backend == "emu")]
        if "clip" in settings and terms == 0:
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
        if backend == "emu" and len(shape) == 3:
            shape = (shape[0] // 3, 4, shape[2] // 2)
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
    for shape in ((9, 3), (9, 2, 5, 7), (9, 70 if backend == "emu" else 3000)):
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
                place = {**settings, "sample_ids": order + base}
                moved = affine_step(x[order], [t[order] for t in m], c[order], **place)
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
    x, m, c = inputs((2, 3, 8, 10), 2, torch.float32, settings, layout=channels_last)
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
    shapes = ((4, 3), (2, 3, 5, 7), (2, 30 if backend == "emu" else 1300))
    for shape, layout in itertools.product(shapes, (plain, channels_last, spaced)):
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
            assert all(torch.equal(a, b) for a, b in zip(outs, want, strict=False)), (shape, layout.__name__, taken)
            if dots:  # summed in the order of memory, which an output of another layout changes
                torch.testing.assert_close(found[1], want[-1], rtol=1e-12, atol=1e-12)


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


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_results_past_the_cache():
    """From 64 MiB on results are streamed: the bits of a small batch, wherever they begin."""
    g = torch.Generator().manual_seed(1)
    memory = torch.randn(3, 5 * 2**20 * 4 + 64, generator=g)
    c = torch.randn(5, 2, generator=g)
    for start in (0, 3):
        x, m, out = (t[start : start + 5 * (2**22 - 3)].view(5, -1) for t in memory)
        with fokker.use_backend("cpu"):
            want = [affine_step(x[b : b + 1], [m[b : b + 1]], c[b : b + 1]) for b in range(5)]
            affine_step(x, [m], c, out=out)
        assert torch.equal(out, torch.cat(want))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_of_one_pass_are_those_of_one_each(dtype):
    """To the bit, also where a result lies over a vector, with noise, and with more vectors than go together."""
    for terms, layout, settings in itertools.product((0, 3, 6), (plain, spaced), ({}, {"seed": 2})):
        x, m, _ = inputs((3, 2, 9, 31), terms, dtype, settings, layout=layout)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        c = torch.randn(3, 3, 1 + terms + len(settings), dtype=torch.float64).to(wide)
        with fokker.use_backend("cpu"):
            want = [affine_step(x, m, c[:, r], **settings) for r in range(3)]
            got = affine_step(x, m, c, results=3, **settings)
            over = [t.clone() for t in (x, *m)]
            outs = (over[-1], torch.empty_like(x))
            affine_step(over[0], over[1:], c[:, :2], results=2, out=outs, **settings)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(outs, want[:2], strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_coefficients_of_any_strides(backend):
    x, m, table = inputs((3, 50), 1, torch.float32, {"seed": 0}, device_of(backend), row=4)
    wide = torch.stack([table, table], -1).flatten(-2)[..., ::2]
    turned = table.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    with fokker.use_backend(backend):
        want = affine_step(x, m, table, row=1, seed=3)
        for other in (wide, turned):
            assert torch.equal(affine_step(x, m, other, row=1, seed=3), want)
        shared = affine_step(x, m, table[1, 0], seed=3)
        assert torch.equal(affine_step(x, m, table[1, :1].expand(3, 3), seed=3), shared)
