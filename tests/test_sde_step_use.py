"""The affine and exponential steps in use: gradients, named errors, torch.compile, transforms, graphs, Triton."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import BACKENDS
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process
from sde_calls import NATIVE, SETTINGS, channels_last, close, device_of, flat, inputs, plain, reference, spaced

import fokker
from fokker._sde_step import affine_step, gram


# ---- gradients -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_equal_the_reference(settings, backend):
    """In the state, terms and coefficients: shared, by sample, of a row; through the inner products too."""
    bounds = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1}
    kinds = [{}, {"shared": True}, {"row": 3}]
    for dtype, kind, layout in itertools.product(bounds, kinds, (plain, channels_last)):
        if backend == "emu" and (dtype is torch.float64) == (layout is plain):
            continue
        grads = {}
        for name in (backend, "reference"):
            shape = (3, 2, 3, 5) if backend == "emu" else (3, 2, 9, 15)
            x, m, c = inputs(shape, 2, dtype, settings, device_of(name), layout, **kind)
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
        x, m, c = inputs((2, 2), 2, torch.float64, settings, device_of(backend), row=2)
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


# ---- errors --------------------------------------------------------------------------------------------------------
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
        ({"coefficients": torch.zeros(2)}, ValueError, r"\(3\) or \(3, 3\) with .* \[a, b_1, c\], got \(2,\)"),
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
        ({"out": torch.zeros(3, 4), "x": torch.zeros(3, 4, requires_grad=True)}, ValueError, "records no gradient"),
    ],
)
def test_bad_arguments_are_named(change, error, words, backend):
    arguments = {"x": torch.zeros(3, 4), "terms": [torch.zeros(3, 4)], "coefficients": torch.zeros(3), "seed": 1}
    with fokker.use_backend(backend), pytest.raises(error, match=words):
        affine_step(**{**arguments, **change})


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU module is not built")
def test_expanded_out_is_refused():
    with fokker.use_backend("cpu"), pytest.raises(ValueError, match=r"out .* must not be an expanded tensor"):
        affine_step(torch.zeros(3, 4), [], torch.ones(1), out=torch.zeros(3, 1).expand(3, 4))


# ---- tracing, transforms -------------------------------------------------------------------------------------------
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


# ---- Triton --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@IN_A_PROCESS
def test_triton_interpreted_in_a_process():
    pytest.importorskip("triton")
    here = Path(__file__).parent
    files = [__file__, str(here / "test_particles.py"), str(here / "test_absorb.py")]
    chosen = "by_triton or (equals_the_reference and triton)"
    run_in_a_process(*files, "-k", chosen)


@RUNS
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_by_triton(settings):
    runs = [((3, 7), plain, {}), ((2, 3, 5, 9), channels_last, {"shared": True}), ((2, 300), spaced, {})]
    for shape, layout, kind in runs:
        x, m, c = inputs(shape, 2, torch.float32, settings, DEVICE, layout, **kind)
        with fokker.use_backend("triton"):
            got = affine_step(x, m, c, **settings)
        close(got, reference(x, m, c, settings), torch.float32, (shape, layout.__name__))


def differentiated(backend, x, m, c, settings, weights):
    """Gradients in the state, the terms and the coefficients of a weighted sum of the results."""
    at = [t.clone().requires_grad_() for t in (x, *m, c)]
    with fokker.use_backend(backend):
        found = affine_step(at[0], at[1:-1], at[-1], **settings)
        found = found if isinstance(found, tuple) else (found,)
        return torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, found, strict=False)), at)


@RUNS
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_gradients_by_triton(settings):
    settings = {k: v for k, v in settings.items() if k != "dots"}
    for shape, layout, kind in [((3, 7), plain, {}), ((2, 3, 5, 9), channels_last, {"shared": True})]:
        x, m, c = inputs(shape, 2, torch.float32, settings, DEVICE, layout, **kind)
        weights = [torch.cos(x * (1 + k)) for k in range(3)]
        got = differentiated("triton", x, m, c, settings, weights)
        close(got, differentiated("reference", x, m, c, settings, weights), torch.float32, (shape, layout.__name__))


@RUNS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_by_triton(dtype):
    x, m, _ = inputs((3, 4, 200), 3, dtype, {}, DEVICE, spaced)
    for place in ({}, {"seed": 5, "step": 3, "stream": 2, "element_offset": 3, "sample_ids": 2**40}):
        with fokker.use_backend("reference"):
            want = gram([x, *m], **place)
        with fokker.use_backend("triton"):
            torch.testing.assert_close(gram([x, *m], **place), want, rtol=1e-6, atol=1e-4)
