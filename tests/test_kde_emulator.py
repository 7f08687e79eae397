"""The CUDA kernels of density sums on the emulator: tile tails, both kernels' extremes, rows done again, orders."""

import math

import pytest
import torch
from conftest import BACKENDS

from fokker import _kde_ops as ops
from fokker import _native
from fokker.reference import kde as reference

pytestmark = pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
F32, F64 = torch.float32, torch.float64
EVERYTHING = ops.SLOPE | ops.SQUARE | ops.DELTA
INF, NAN = math.inf, math.nan


def case(n, m, d, dtype, *, h=None, batch=1, bias=False):
    """Standard normal queries and data at a bandwidth at which a good part of the data counts."""
    x, y = torch.randn(batch, n, d, dtype=dtype), torch.randn(batch, m, d, dtype=dtype)
    bandwidth = torch.full((batch, 1, 1), math.sqrt(d) if h is None else h, dtype=F64)
    return x, y, bandwidth, torch.randn(batch, m, dtype=F64) if bias else None


def emulated(x, y, h, bias=None, values=None, kernel="gaussian", outputs=0, exclude=ops.NOTHING, highest=True):
    index = reference.KERNELS.index(kernel)
    return ops.sums.kernels["emu"](x, y, h, bias, values, index, 2.5, exclude, outputs, highest)


def check(x, y, h, bias=None, values=None, kernel="gaussian", outputs=0, exclude=ops.NOTHING):
    """Every result against the reference: log sums by the issue's bounds, moments relative to their largest."""
    got = emulated(x, y, h, bias, values, kernel, outputs, exclude)
    want = reference.sums(x, y, h, bias, values, kernel, 2.5, exclude, outputs)
    single = x.dtype is F32
    size = want[0].abs()
    allowed = 4e-7 * size + 2e-6 if single else 1e-12 * size.clamp(min=1)
    same = (got[0] == want[0]) | (got[0].isnan() & want[0].isnan())
    error = torch.where(same, 0.0, (got[0] - want[0]).abs() / allowed)
    assert bool((error <= 1).all()), (float(error.max()), int(error.argmax()))
    for g, w in zip(got[1:], want[1:], strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        if w.numel():
            atol = (1e-5 if single else 1e-12) * float(w[w.isfinite()].abs().max() if w.isfinite().any() else 1)
            torch.testing.assert_close(g, w, rtol=1e-5 if single else 1e-12, atol=atol, equal_nan=True)
    return got


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 127), (65, 129), (9, 700)])
@pytest.mark.parametrize("d", [1, 4, 7, 9, 33])
def test_tails(n, m, d, dtype):
    """Sizes beside multiples of the tiles; 700 data are enough for several threads to share a query."""
    check(*case(n, m, d, dtype, batch=2, bias=True), outputs=EVERYTHING)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "matern52"])
def test_many_dimensions(kernel, dtype):
    x, y, h, _ = case(5, 66, 4096, dtype, h=4096.0 if kernel == "laplace" else 64.0)
    check(x, y, h, kernel=kernel, outputs=EVERYTHING)
    values = torch.randn(1, 66, 130, dtype=dtype)
    check(x, y, h / 4, values=values, kernel=kernel, outputs=ops.VALUES | ops.SQUARE)


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("kernel", reference.KERNELS)
def test_values_of_every_kernel(kernel, d):
    """Given values, and y - x; a tile of 64 data without any weight between two that have some."""
    x, y, h, bias = case(6, 150, d, F64, bias=True)
    y[:, 64:128] += 1e4
    check(x, y, h * (d**0.5 if kernel == "laplace" else 1), bias, torch.randn(1, 150, 3, dtype=F64), kernel, ops.VALUES)
    check(x, y, h * (d**0.5 if kernel == "laplace" else 1), bias, None, kernel, ops.VALUES)


@pytest.mark.parametrize("d", [2, 20])
@pytest.mark.parametrize("exclude", [0, 3, -200, 64])
def test_left_out_pairs(d, exclude):
    check(*case(70, 140, d, F64), outputs=EVERYTHING, exclude=exclude)


@pytest.mark.parametrize("d", [3, 20])
def test_alone(d):
    """A single datum that is left out, and data that are all left out by their bias: -inf, and 0 for the others."""
    x, y, h, _ = case(1, 1, d, F32)
    log_sum, slope, square, delta = emulated(x, y, h, outputs=EVERYTHING, exclude=0)
    assert log_sum.item() == -INF and square.item() == 0 and delta.item() == 0 and not slope.any()
    x, y, h, _ = case(5, 30, d, F64)
    out = emulated(x, y, h, torch.full((1, 30), -INF, dtype=F64), outputs=EVERYTHING)
    assert bool((out[0] == -INF).all()) and not any(bool(o.any()) for o in out[1:])
    empty = emulated(x, y[:, :0], h, outputs=EVERYTHING)
    assert bool((empty[0] == -INF).all()) and not any(bool(o.any()) for o in empty[1:])


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "matern32", "epanechnikov"])
def test_nan_and_infinity(kernel, d, dtype):
    """A NaN in a query stays in its row, one in the data or the bias goes everywhere; infinite points weigh nothing."""
    x, y, h, bias = case(8, 70, d, dtype, bias=True)
    clean = emulated(x, y[:, 1:], h, bias[:, 1:], kernel=kernel, outputs=EVERYTHING)
    x[0, 2, d - 1] = NAN
    x[0, 5, 0] = INF
    y[0, 0, 0] = INF
    got = emulated(x, y, h, bias, kernel=kernel, outputs=EVERYTHING)
    assert all(bool(g[0, 2].isnan().all()) for g in got)
    assert got[0][0, 5] == -INF and not got[1][0, 5].any() and got[2][0, 5] == 0 and got[3][0, 5] == 0
    others = [0, 1, 3, 4, 6, 7]
    for g, w in zip(got, clean, strict=True):
        torch.testing.assert_close(g[:, others], w[:, others], rtol=2e-5, atol=2e-5)
    for spoil in ("y", "bias"):
        x, y, h, bias = case(3, 70, d, dtype, bias=True)
        (y if spoil == "y" else bias).view(-1)[-1] = NAN
        assert all(bool(g.isnan().all()) for g in emulated(x, y, h, bias, kernel=kernel, outputs=EVERYTHING))


@pytest.mark.parametrize("d", [2, 8, 30])
def test_rows_in_doubt_are_done_again(d):
    """Biases cancel exponents of thousands; float32 alone misses the bound there, and says so without `highest`."""
    x, y, _, _ = case(20, 130, d, F32)
    h = torch.full((1, 1, 1), 0.02, dtype=F64)
    nearest = torch.cdist(x.double(), y.double()).square().amin() / (2 * 0.02**2)
    bias = torch.full((1, 130), float(nearest), dtype=F64)
    bias[0, ::2] -= 0.1
    want = reference.sums(x, y, h, bias, None, "gaussian", 1.0, ops.NOTHING, 0)[0]
    check(x, y, h, bias, outputs=EVERYTHING)
    loose = emulated(x, y, h, bias, highest=False)[0]
    assert float(((loose - want).abs() / (4e-7 * want.abs() + 2e-6)).max()) > (1 if d > 2 else 0)


def test_beyond_the_range_of_float32():
    """Squared distances and bandwidths that float32 cannot hold."""
    x, y, h, _ = case(6, 70, 3, F32, h=1.0)
    check(x * 1e25, y * 1e25, h * 1e25, outputs=ops.SQUARE)
    check(x * 1e-25, y * 1e-25, h * 1e-25, outputs=ops.SQUARE)


@pytest.mark.parametrize("d", [3, 20])
def test_fixed_top(d):
    """Signed weights under a given top: the sums of the backward pass, and tops at infinity."""
    x, y, h, bias = case(40, 70, d, F64, bias=True)
    log_sum = reference.sums(x, y, h, bias, None, "student_t", 2.5, 1, 0)[0]
    log_sum[0, 3] = -INF  # a row without weight has no gradient
    grad = torch.randn(1, 40, dtype=F64)
    got = ops.pulled.kernels["emu"](x, y, h, bias, log_sum, grad, 5, 2.5, 1, 0, True)
    keep = torch.arange(40) != 3
    want = reference.pulled(x, y, h, bias, log_sum, torch.where(keep, grad, 0.0), "student_t", 2.5, 1)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize(("m", "d"), [(300, 2), (130, 7), (130, 18)])
def test_thread_order_does_not_matter(m, d, dtype):
    args = case(33, m, d, dtype, bias=True)
    values = torch.randn(1, m, 70, dtype=dtype)
    try:
        results = []
        for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            _native.emu.set_order(order, seed)
            some = emulated(*args, outputs=EVERYTHING, exclude=0)
            results.append((*some, *emulated(*args, values, outputs=ops.VALUES)))
    finally:
        _native.emu.set_order("forward", 0)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
