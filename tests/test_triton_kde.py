"""Density sums in Triton, interpreted or on a GPU: against the reference, edges, float64 again, what is not there.

As tests/test_triton.py: without TRITON_INTERPRET=1 and without a GPU, one test runs this file in its own process.
"""

import math

import pytest
import torch
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process

import fokker
from fokker import _kde_ops as ops
from fokker import kde
from fokker._kde_nearest import nearest_index
from fokker.reference import kde as reference

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
F32, F64 = torch.float32, torch.float64
EVERYTHING = ops.SLOPE | ops.SQUARE | ops.DELTA
INF, NAN = math.inf, math.nan
KERNELS = reference.KERNELS[:9]  # without cosine


@IN_A_PROCESS
def test_interpreted_in_a_process():
    run_in_a_process(__file__)


def triton_sums(x, y, h, bias=None, values=None, kernel="gaussian", outputs=0, exclude=ops.NOTHING, highest=True):
    on = [None if t is None else t.to(DEVICE) for t in (x, y, h, bias, values)]
    index = reference.KERNELS.index(kernel)
    with fokker.use_backend("triton"):
        return tuple(t.cpu() for t in ops.sums(*on, index, 2.5, exclude, outputs, highest))


def check(x, y, h, bias=None, values=None, kernel="gaussian", outputs=0, exclude=ops.NOTHING, share=1.0, highest=True):
    """Log sums by the issue's bounds (times ``share``), what goes with them relative to its largest entry."""
    got = triton_sums(x, y, h, bias, values, kernel, outputs, exclude, highest)
    want = reference.sums(x, y, h, bias, values, kernel, 2.5, exclude, outputs)
    single = x.dtype is F32
    size = want[0].abs()
    allowed = share * (4e-7 * size + 2e-6 if single else 1e-12 * size.clamp(min=1))
    error = torch.where(got[0] == want[0], 0.0, (got[0] - want[0]).abs() / allowed)
    assert bool((error <= 1).all()), (kernel, float(error.max()), int(error.argmax()))
    for g, w in zip(got[1:], want[1:], strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        if w.numel():
            rtol = share * (1e-5 if single else 1e-12)
            torch.testing.assert_close(g, w, rtol=rtol, atol=rtol * float(w.abs().max()))


@RUNS
@pytest.mark.parametrize("absolute", [False, True])
def test_nearest(absolute):
    """Tails of both blocks, equal data, one datum left out, a NaN on either side, infinity; nothing to find."""
    for (batch, n, m, d), dtype in (((1, 70, 40, 3), F64), ((2, 5, 9, 17), F32), ((1, 1, 1, 1), F64)):
        x, y = torch.randn(batch, n, d, dtype=dtype), torch.randn(batch, m, d, dtype=dtype)
        y[:, m // 2] = y[:, 0] = x[:, 0]
        if m > 8:
            x[:, 2, 0], y[:, 3, 0], y[:, 4, 0] = NAN, NAN, INF
        for exclude in (ops.NOTHING, 0, -2):
            want = nearest_index.reference(x, y, exclude, absolute)
            with fokker.use_backend("triton"):
                got = nearest_index(x.to(DEVICE), y.to(DEVICE), exclude, absolute)
            assert torch.equal(got.cpu(), want)
    with fokker.use_backend("triton"):
        assert nearest_index(x.to(DEVICE), y[:, :0].to(DEVICE), ops.NOTHING, absolute).tolist() == [[-1]]


def case(n, m, d, dtype, batch=1, along="one"):
    """Standard normal points; bandwidths of which a good part of the data is in reach, by pair, query or datum."""
    x, y = torch.randn(batch, n, d, dtype=dtype), torch.randn(batch, m, d, dtype=dtype)
    shape = {"one": (batch, 1, 1), "query": (batch, n, 1), "datum": (batch, 1, m)}[along]
    return x, y, 1.5 * math.sqrt(d) * (0.7 + 0.6 * torch.rand(shape, dtype=F64)), torch.randn(batch, m, dtype=F64)


@RUNS
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel(kernel, dtype):
    for d, along in ((2, "datum"), (11, "query")):
        x, y, h, bias = case(5, 70, d, dtype, along=along)
        h = h * math.sqrt(d) if kernel == "laplace" else h
        check(x, y, h, bias, None, kernel, EVERYTHING)
        check(x, y, h, bias, torch.randn(1, 70, 3, dtype=dtype), kernel, ops.VALUES | ops.SQUARE, exclude=1)


@RUNS
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_tails_batches_and_wide_values(dtype):
    """More queries than a block, two batches, dimensions beyond a stretch of 32 and a chunk of 64 values."""
    check(*case(70, 33, 1, dtype, batch=2), outputs=EVERYTHING, exclude=0)
    check(*case(4, 35, 70, dtype, batch=2), outputs=EVERYTHING)
    check(*case(4, 35, 70, dtype), outputs=ops.VALUES)
    check(*case(4, 35, 3, dtype), torch.randn(1, 35, 70, dtype=dtype), outputs=ops.VALUES)


@RUNS
def test_backward():
    """The transposed sums: signed weights under a given top."""
    x, y, h, bias = case(20, 35, 3, F64)
    log_sum = reference.sums(x, y, h, bias, None, "student_t", 2.5, 1, 0)[0]
    log_sum[0, 3] = -INF  # a row without weight has no gradient
    grad = torch.randn(1, 20, dtype=F64)
    args = [t.to(DEVICE) for t in (x, y, h, bias, log_sum, grad)]
    with fokker.use_backend("triton"):
        got = ops.pulled(*args, 5, 2.5, 1, 0, True)
    masked = grad.clone()
    masked[0, 3] = 0
    want = reference.pulled(x, y, h, bias, log_sum, masked, "student_t", 2.5, 1)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=1e-11, atol=1e-12)


@RUNS
def test_inner_products():
    """Without `highest`: offset data keep the accuracy of centred ones, far from that of tf32 (2e-2 here)."""
    x, y, _, _ = case(6, 40, 20, F32)
    h = torch.full((1, 1, 1), 1.0, dtype=F64)
    check(x + 30, y + 30, h, outputs=EVERYTHING, share=6, highest=False)


@RUNS
@pytest.mark.parametrize("h", [0.05, 0.5, 4.0, 1e3])
def test_inner_products_and_their_bound(h):
    """With `highest` rows whose products are not good enough are found and done again: the bound of the CPU's holds."""
    x, y, _, bias = case(70, 80, 40, F32)
    x[0, :20] = y[0, :20] + 1e-3
    size = torch.full((1, 1, 1), h, dtype=F64)
    check(x + 3, y + 3, size, bias, outputs=EVERYTHING)
    check(x, y, torch.linspace(h / 2, h, 70, dtype=F64).reshape(1, 70, 1), outputs=ops.SLOPE, exclude=0)


@RUNS
def test_rows_in_doubt_are_done_again():
    """Biases cancel exponents of thousands: float64 for those rows, and only with `highest`."""
    _, y, _, _ = case(1, 40, 12, F32)
    x = y[:, :6] + torch.nn.functional.normalize(torch.randn(1, 6, 12), dim=2)
    h = torch.full((1, 1, 1), 0.02, dtype=F64)
    bias = torch.full((1, 40), 0.5 / 0.02**2, dtype=F64)
    check(x, y, h, bias, outputs=EVERYTHING)
    want = reference.sums(x, y, h, bias, None, "gaussian", 1.0, ops.NOTHING, 0)[0]
    loose = triton_sums(x, y, h, bias, highest=False)[0]
    assert float(((loose - want).abs() / (4e-7 * want.abs() + 2e-6)).max()) > 1


@RUNS
@pytest.mark.parametrize("kernel", ["gaussian", "matern32", "epanechnikov"])
@pytest.mark.parametrize("d", [3, 20])
def test_edges(kernel, d):
    """No data, all left out, NaN in a query or in the data, points at infinity."""
    x, y, h, bias = case(5, 40, d, F64)
    for out in (
        triton_sums(x, y[:, :0], h, kernel=kernel, outputs=EVERYTHING),
        triton_sums(x, y, h, torch.full((1, 40), -INF, dtype=F64), kernel=kernel, outputs=EVERYTHING),
    ):
        assert bool((out[0] == -INF).all()) and not any(bool(o.any()) for o in out[1:])
    clean = triton_sums(x, y[:, 1:], h, bias[:, 1:], kernel=kernel, outputs=EVERYTHING)
    x[0, 2, d - 1] = NAN
    x[0, 4, 0] = INF
    y[0, 0, 0] = INF
    got = triton_sums(x, y, h, bias, kernel=kernel, outputs=EVERYTHING)
    assert all(bool(g[0, 2].isnan().all()) for g in got)
    assert got[0][0, 4] == -INF and not any(bool(g[0, 4].any()) for g in got[1:])
    for g, w in zip(got, clean, strict=True):
        torch.testing.assert_close(g[:, [0, 1, 3]], w[:, [0, 1, 3]], rtol=1e-11, atol=1e-11)
    y[0, 7, d - 1] = NAN
    assert all(bool(g.isnan().all()) for g in triton_sums(x, y, h, bias, kernel=kernel, outputs=EVERYTHING))


@RUNS
def test_public_functions():
    """Density, score and their gradients through the forced backend."""
    x, y = (torch.randn(6, 2, dtype=F64, requires_grad=True, device=DEVICE) for _ in range(2))
    found = {}
    for backend in ("triton", "reference"):
        with fokker.use_backend(backend):
            value = kde.log_prob(x, y, 0.8)
            found[backend] = (value, kde.score(x, y, 0.8), *torch.autograd.grad(value.square().sum(), (x, y)))
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@RUNS
def test_what_is_not_there_says_so():
    x, y, h, bias = case(3, 5, 2, F64)
    with pytest.raises(fokker.BackendError, match="no Triton kernel for kernel='cosine'"):
        triton_sums(x, y, h, bias, kernel="cosine")


@RUNS
def test_without_tensor_cores(monkeypatch):
    """As on devices that have no float64 products: values, scores and the float64 pass."""
    from fokker.triton_kernels import kde as kernels

    monkeypatch.setattr(kernels, "dot_precision", lambda wide: None)
    for dtype in (F64, F32):
        x, y, h, bias = case(5, 40, 11, dtype)
        check(x, y, h, bias, torch.randn(1, 40, 3, dtype=dtype), share=5.0)
        check(x, y, h, bias, outputs=EVERYTHING, share=5.0)


@RUNS
def test_more_batches_than_a_grid_has(monkeypatch):
    from fokker.triton_kernels import kde as kernels

    monkeypatch.setattr(kernels, "MOST_BATCHES", 2)
    x, y, h, bias = case(5, 7, 3, F32, batch=5)
    check(x, y, h, bias, outputs=EVERYTHING)
