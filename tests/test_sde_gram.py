"""Inner products of vectors and regenerated noise: exact, repeatable, differentiable, the same from a step."""

import itertools

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _native, random
from fokker._sde_step import affine_step, gram

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
SHAPES = [(3,), (5, 1), (4, 7), (2, 3, 24, 43), (3, 20, 9, 11), (2, 130, 5, 6)]
#: for the emulator, which takes a few microseconds a thread
SMALL = [(5, 1), (4, 7), (2, 3, 4, 9)]


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def vectors_of(shape, count, dtype, device, channels_last=False):
    g = torch.Generator().manual_seed(5)
    found = [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype).to(device) for _ in range(count)]
    if channels_last and len(shape) == 4:
        found = [v.to(memory_format=torch.channels_last) for v in found]
    return found


def exact(vectors):
    v = torch.stack([t.reshape(len(t), -1).double().cpu() for t in vectors], 1)
    return v @ v.mT, v.norm(dim=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_are_exact_sums(backend):
    """Within 1e-6 (float64: 1e-14) of |v| |w|, products and sums in float64, noise as `fokker.random` makes it."""
    device = device_of(backend)
    for dtype, count, noisy, last in itertools.product(
        (torch.float32, torch.float64, torch.bfloat16), (1, 2, 4, 9), (False, True), (False, True)
    ):
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        for shape in SHAPES if backend != "emu" else SMALL:
            vectors = vectors_of(shape, count, dtype, device, last)
            place = {"seed": 11, "step": 2, "stream": 1, "element_offset": 1, "sample_ids": 5} if noisy else {}
            with fokker.use_backend(backend):
                got = gram(vectors, **place)
                z = [random.normal(shape[0], shape[1:], dtype=wide, device=device, **place)] if noisy else []
            want, size = exact(vectors + z)
            assert got.dtype is torch.float64 and got.shape == (shape[0], count + noisy, count + noisy)
            assert torch.equal(got, got.mT)
            bound = 1e-6 if backend == "reference" and noisy else 1e-14
            limit = bound * size[:, :, None] * size[:, None, :]
            assert ((got.cpu() - want).abs() <= limit).all(), (dtype, shape)


@pytest.mark.parametrize("backend", NATIVE)
def test_a_step_carries_the_same_products(backend):
    """Of [y - x, m, z] with y the step's own result; to the rounding of one float32 subtraction, and no more."""
    device = device_of(backend)
    for shape in SHAPES if backend != "emu" else SMALL:
        for settings in ({"seed": 3}, {"seed": 3, "exponential": True}, {"clip": 0.7, "seed": 3}, {}):
            x, m1, m2 = vectors_of(shape, 3, torch.float32, device)
            columns = 3 + ("seed" in settings) + 2 * ("clip" in settings)
            c = torch.linspace(0.3, 0.9, columns, device=device)
            with fokker.use_backend(backend):
                y, dots = affine_step(x, [m1, m2], c, dots=True, **settings)
                assert torch.equal(y, affine_step(x, [m1, m2], c, **settings))
                z = [random.normal(shape[0], shape[1:], seed=3, device=device)] if "seed" in settings else []
            used = (c[-2] * x + c[-1] * m1).clamp(-0.7, 0.7) if "clip" in settings else m1
            want, size = exact([y - x, used, m2, *z])
            bound = 1e-6 if "clip" in settings else 1e-14
            assert ((dots.cpu() - want).abs() <= bound * size[:, :, None] * size[:, None, :]).all(), (shape, settings)


@pytest.mark.parametrize("backend", NATIVE)
def test_bits_do_not_depend_on_batch_or_repetition(backend):
    device = device_of(backend)
    for shape in ((6, 5), (6, 3, 4, 5), (6, 40 if backend == "emu" else 20000)):
        vectors = vectors_of(shape, 3, torch.float32, device)
        with fokker.use_backend(backend):
            whole = gram(vectors, seed=1)
            assert torch.equal(whole, gram(vectors, seed=1))
            parts = [gram([v[b : b + 1] for v in vectors], seed=1, sample_ids=b) for b in range(6)]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        vectors, results = vectors_of((3, 3, 150, 100), 2, torch.float32, "cpu"), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with fokker.use_backend("cpu"):
                results.append(gram(vectors, seed=1))
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
def test_order_of_the_cuda_threads_does_not_matter():
    vectors = vectors_of((1, 3, 50, 40), 1, torch.float32, "cpu")
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                results.append(gram(vectors, seed=1))
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        _native.emu.set_order("forward", 0)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "emu"])
def test_gradients(backend):
    for count, noisy in ((1, False), (2, True), (5, True)):
        leaves = [v.requires_grad_() for v in vectors_of((2, 2, 3), count, torch.float64, device_of(backend))]
        place = {"seed": 3} if noisy else {}
        with fokker.use_backend(backend):
            assert torch.autograd.gradcheck(lambda *v, p=place: gram(v, **p), leaves)
            assert torch.autograd.gradgradcheck(lambda *v, p=place: gram(v, **p), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes_and_empty(backend):
    device = device_of(backend)
    with fokker.use_backend(backend):
        a, b = vectors_of((2, 50), 2, torch.float32, device)
        got = gram([a, b.bfloat16()])
        want, size = exact([a, b.bfloat16()])
        assert ((got.cpu() - want).abs() <= 1e-14 * size[:, :, None] * size[:, None, :]).all()
        leaves = [a.requires_grad_(), b.bfloat16().requires_grad_()]
        grads = torch.autograd.grad(gram(leaves).sum(), leaves)
        assert [g.dtype for g in grads] == [torch.float32, torch.bfloat16]
        for shape in ((0, 4), (3, 0)):
            zero = gram([torch.zeros(shape, device=device)], seed=1)
            assert zero.shape == (shape[0], 2, 2) and not zero.any()


@pytest.mark.parametrize(
    ("vectors", "error", "words"),
    [
        ([], ValueError, "vectors must be 1 to 9 tensors, got 0"),
        ([torch.zeros(2, 3)] * 10, ValueError, "vectors must be 1 to 9 tensors, got 10"),
        ([1.0], TypeError, r"vectors\[0\] must be a tensor, got float"),
        ([torch.zeros(2, 3), torch.zeros(3, 2)], ValueError, r"\(3, 2\) must have the shape of vectors\[0\] \(2, 3\)"),
        ([torch.zeros(2, 3, dtype=torch.int32)], TypeError, r"vectors\[0\] must have dtype float32"),
    ],
)
def test_bad_arguments_are_named(vectors, error, words):
    with pytest.raises(error, match=words):
        gram(vectors)


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    a, b = vectors_of((2, 50), 2, torch.float32, "cpu")
    compiled = torch.compile(lambda a, b, s: gram([a, b], seed=s) * 2, fullgraph=True, backend="aot_eager")
    for seed in (3, 4, 9):
        torch.testing.assert_close(compiled(a, b, seed), 2 * gram([a, b], seed=seed))
