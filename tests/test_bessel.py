"""fokker.bessel beyond the table of ops: derivatives against ball arithmetic, edges, seams, NumPy, errors."""

import math

import numpy as np
import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import bessel
from fokker._cli.check import _device
from fokker.bessel import FUNCTIONS
from fokker.cases import CASES, table

INF, NAN = math.inf, math.nan
F64 = torch.float64


@pytest.fixture(params=BACKENDS)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def call(name, v, x, backend, dtype=F64):
    device = _device(backend)
    return getattr(bessel, name)(
        torch.tensor(v, dtype=dtype, device=device), torch.tensor(x, dtype=dtype, device=device)
    )


def thin(backend, n, keep=500):
    step = max(1, n // keep) if backend == "emu" else 1
    return slice(None, None, step)


# ---- accuracy ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FUNCTIONS)
def test_far_from_the_origin_three_ulp(backend, name):
    """hypot(v, x) >= 25, float64: 7e-16 max(1, |f|) for log I and log K, 1e-15 relative for log_ive and the ratios."""
    t = table("bessel_f64")
    far = np.hypot(t["v"], t["x"]) >= 25
    v, x, hi, lo = (
        torch.from_numpy(t[k][far][thin(backend, far.sum())]) for k in ("v", "x", f"{name}_hi", f"{name}_lo")
    )
    got = getattr(bessel, name)(v.to(_device(backend)), x.to(_device(backend)))
    error = CASES[name].error(got, hi, torch.where(hi.isfinite(), lo, 0.0))
    worst = int(error.argmax())
    allowed = 7e-16 if name in ("log_iv", "log_kv") else 1e-15
    assert error[worst] <= allowed, (name, float(v[worst]), float(x[worst]), float(error[worst]))


def test_order_zero_near_zero_is_relatively_accurate(backend):
    """log I_0(x) ~ x^2/4: |error| against |log I_0| itself."""
    t = table("bessel_f64")
    at = (t["v"] == 0) & (t["x"] > 1e-150)
    v, x, hi, lo = (torch.from_numpy(t[k][at]) for k in ("v", "x", "log_iv_hi", "log_iv_lo"))
    got = bessel.log_iv(v.to(_device(backend)), x.to(_device(backend))).cpu()
    assert float((((got - hi) - lo).abs() / hi.abs()).max()) <= 4e-15


def slope_error(got, hi, lo, floor):
    """|error| over max(|truth|, floor of the function's scale)."""
    ok = hi.isfinite() & (hi.abs() < torch.finfo(got.dtype).max / 4)
    e = ((got.double().cpu() - hi) - lo).abs() / hi.abs().clamp(min=floor)
    return torch.where(ok, e, 0.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_derivatives(backend, name):
    """Both first derivatives against ball arithmetic, float64: within 4e-15 max(|f'|, 1)."""
    t, g = table("bessel_f64"), table("bessel_grad_f64")
    pick = thin(backend, len(t["v"]))
    v, x = (torch.from_numpy(t[k][pick]).to(_device(backend)) for k in ("v", "x"))
    dv, dx = bessel._grad(v, x, FUNCTIONS.index(name), True, True)
    for got, along in ((dv, "dv"), (dx, "dx")):
        key = f"{name}_{along}"
        if key + "_hi" not in g:  # log_ive and log_kve share d/dv with log_iv and log_kv
            key = f"{name[:-1].replace('ive', 'iv').replace('kve', 'kv')}_{along}"
        hi, lo = (torch.from_numpy(g[f"{key}_{part}"][pick]).double() for part in ("hi", "lo"))
        error = slope_error(got, hi, lo, 1.0)
        worst = int(error.argmax())
        assert error[worst] <= 4e-15, (key, float(v[worst]), float(x[worst]), float(got[worst]), float(hi[worst]))


@pytest.mark.parametrize("name", ["log_iv", "log_kv", "iv_ratio", "kv_ratio"])
def test_second_derivatives(backend, name):
    """All second derivatives against ball arithmetic, float64: within 1e-13 max(|f''|, 1)."""
    t = table("bessel_hess_f64")
    v, x = (torch.from_numpy(t[k]).to(_device(backend)) for k in ("v", "x"))
    # The reference's mixed derivative of log K loses eps/x at tiny x, where the kernels do not.
    whole = torch.from_numpy(t["x"] > (1e-2 if backend == "reference" else 0.0))
    for got, along in zip(bessel._hess(v, x, FUNCTIONS.index(name)), ("dvv", "dvx", "dxx"), strict=True):
        hi, lo = (torch.from_numpy(t[f"{name}_{along}_{part}"]) for part in ("hi", "lo"))
        error = torch.where(whole, slope_error(got, hi, lo, 1.0), 0.0)
        worst = int(error.argmax())
        assert error[worst] <= 1e-13, (
            name,
            along,
            float(v[worst]),
            float(x[worst]),
            float(got[worst]),
            float(hi[worst]),
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_seams_are_smooth(backend, name):
    """Across every threshold of the kernels the first derivatives agree to 1e-13."""
    radii = [20.0, 25.0, 40.0, 80.0, 200.0, 1000.0]
    angles = torch.linspace(0.01, 1.56, 40, dtype=F64)
    v, x = [], []
    for r in radii:
        for side in (1 - 1e-15, 1 + 1e-15):
            v.append(r * side * torch.cos(angles))
            x.append(r * side * torch.sin(angles))
    orders = torch.cat([torch.linspace(0, 20, 30, dtype=F64), torch.arange(0, 12, dtype=F64) + 0.5])
    for seam in (1.0, 2.0, 10.0, 12.0):
        for side in (1 - 2e-16, 1 + 3e-16):
            v.append(orders)
            x.append(torch.full_like(orders, seam * side))
    half = torch.arange(1, 10, dtype=F64) - 0.5
    for side in (1 - 3e-16, 1 + 3e-16):
        v.append((half * side).repeat(3))
        x.append(torch.cat([torch.full_like(half, s) for s in (0.3, 1.7, 5.0)]))
    for low_v, high_v, low_x, high_x in zip(v[::2], v[1::2], x[::2], x[1::2], strict=True):
        device = _device(backend)
        low = bessel._grad(low_v.to(device), low_x.to(device), FUNCTIONS.index(name), True, True)
        high = bessel._grad(high_v.to(device), high_x.to(device), FUNCTIONS.index(name), True, True)
        for a, b in zip(low, high, strict=True):
            assert float(((a - b).abs() / a.abs().clamp(min=1.0)).max()) <= 1e-13


# ---- edges ---------------------------------------------------------------------------------------------------------
EDGES = {  # (v, x): log I, log I e^-x, log K, log K e^x
    (0.0, 0.0): (0.0, 0.0, INF, INF),
    (1.5, 0.0): (-INF, -INF, INF, INF),
    (1e-300, 0.0): (-INF, -INF, INF, INF),
    (0.0, INF): (INF, -INF, -INF, -INF),
    (2.5, INF): (INF, -INF, -INF, -INF),
    (INF, 1.0): (-INF, -INF, INF, INF),
    (NAN, 1.0): (NAN, NAN, NAN, NAN),
    (1.0, NAN): (NAN, NAN, NAN, NAN),
    (-1.0, 1.0): (NAN, NAN, NAN, NAN),
    (-0.5, 2.0): (NAN, NAN, NAN, NAN),
    (1.0, -1.0): (NAN, NAN, NAN, NAN),
    (2.0, -INF): (NAN, NAN, NAN, NAN),
    (-INF, 1.0): (NAN, NAN, NAN, NAN),
    (-0.0, 1.0): None,
    (1.0, -0.0): (-INF, -INF, INF, INF),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("point", EDGES, ids=str)
def test_edges(backend, point, dtype):
    if dtype is torch.float32 and 0 < point[0] < 1e-40:
        pytest.skip("the order is zero in float32")
    want = EDGES[point]
    for i, name in enumerate(("log_iv", "log_ive", "log_kv", "log_kve")):
        got = float(call(name, *point, backend, dtype))
        expect = float(call(name, abs(point[0]), point[1], backend, dtype)) if want is None else want[i]
        assert got == expect or (math.isnan(got) and math.isnan(expect)), (name, point, got)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ratio_edges(backend, dtype):
    for (v, x), i_want, k_want in (
        ((0.0, 0.0), 0.0, INF),
        ((2.0, 0.0), 0.0, INF),
        ((0.0, INF), 1.0, 1.0),
        ((2.0, INF), 1.0, 1.0),
        ((INF, 1.0), 0.0, INF),
        ((-1.0, 1.0), NAN, NAN),
        ((1.0, -1.0), NAN, NAN),
        ((NAN, 1.0), NAN, NAN),
    ):
        for name, want in (("iv_ratio", i_want), ("kv_ratio", k_want)):
            got = float(call(name, v, x, backend, dtype))
            assert got == want or (math.isnan(got) and math.isnan(want)), (name, v, x, got)


def test_large_numbers_do_not_overflow(backend):
    """v*v or x*x overflows from 1e154 on (1e19 in float32): the result must not."""
    for dtype, big in ((torch.float64, 1e200), (torch.float32, 1e25)):
        v, x = torch.tensor([1.0, big, big, big * 1e-5]), torch.tensor([big, 1.0, big, big])
        for name in FUNCTIONS:
            got = (
                call(name, v.tolist(), x.tolist(), backend, dtype)
                if dtype is torch.float32
                else call(name, [1.0, big, big, big * 1e-5], [big, 1.0, big, big], backend, dtype)
            )
            assert not bool(got.isnan().any()), (name, dtype, got)
    # I_1(x) ~ e^x / sqrt(2 pi x)
    assert float(call("log_ive", 1.0, 1e200, backend)) == pytest.approx(-0.5 * math.log(2 * math.pi * 1e200), rel=1e-15)


def test_subnormal_argument(backend):
    x = 5e-324
    assert float(call("log_iv", 1.0, x, backend)) == pytest.approx(math.log(x) - math.log(2), rel=1e-14)
    assert float(call("log_kv", 0.0, x, backend)) == pytest.approx(
        math.log(math.log(2) - math.log(x) - 0.5772156649), rel=1e-10
    )


@pytest.mark.parametrize("name", ["log_kv", "kv_ratio"])
def test_second_derivatives_of_k_at_the_least_arguments(backend, name):
    """Powers of 1/x overflow there while what they multiply vanishes or cancels: infinities, not nan."""
    oracle = pytest.importorskip("oracle")
    if backend == "reference":
        pytest.skip("its formulas divide by powers of x")
    device = _device(backend)
    for v in (0.0, 0.3, 1.0, 1.5, 9.75):
        for x in (5e-324, 1e-310, 1e-200, 1e-100):
            at = (torch.tensor([u], dtype=F64, device=device) for u in (v, x))
            got = [float(g) for g in bessel._hess(*at, FUNCTIONS.index(name))]
            want = [float(b.mid()) for b in oracle.derivatives(name, v, x, 2)]
            for k in range(3):
                # there the ratio is nearly 2 v / x: its curvature in v is held in units of the ratio
                apart = name == "kv_ratio" and 0 < v <= 0.5 and k == 0
                if (slack := 4e-13 * v / x if apart else 1e-13) < float("inf"):
                    assert got[k] == pytest.approx(want[k], rel=1e-13, abs=slack), (v, x, k)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["log_kv", "log_kve", "kv_ratio"])
def test_no_derivative_of_k_is_nan_inside(backend, name, dtype):
    if backend == "reference":
        pytest.skip("its formulas divide by powers of x")
    least = torch.finfo(dtype).tiny
    orders = torch.tensor([0.0, 0.3, 0.5, 0.7, 1.0, 1.5, 2.5, 5.0, 9.75], dtype=dtype)
    arguments = torch.tensor([least * 1e-6, least / 8, least, 1e3 * least, least**0.5, 1e6 * least**0.5], dtype=dtype)
    v, x = (t.flatten().to(_device(backend)) for t in torch.meshgrid(orders, arguments, indexing="ij"))
    function = FUNCTIONS.index(name)
    for out in (
        getattr(bessel, name)(v, x),
        *bessel._grad(v, x, function, True, True),
        *bessel._hess(v, x, function),
    ):
        assert not bool(out.isnan().any()), (v.cpu()[out.cpu().isnan()], x.cpu()[out.cpu().isnan()])


@pytest.mark.parametrize("name", ["iv_ratio", "kv_ratio", "log_ive", "log_kve"])
def test_float32_dense(name):
    """float32 against float64 where orders and arguments are small: within the bound that the op is asked for."""
    g = torch.Generator().manual_seed(3)
    v = torch.cat([11 * torch.rand(100_000, generator=g), 0.6 * torch.rand(200_000, generator=g), torch.zeros(20_000)])
    x = torch.cat(
        [10 ** (3 * torch.rand(v.numel() // 2, generator=g) - 2), 0.05 + torch.rand(v.numel() // 2, generator=g)]
    )
    x = x[torch.randperm(x.numel(), generator=g)]
    with fokker.use_backend("cpu"):
        got, truth = getattr(bessel, name)(v, x).double(), getattr(bessel, name)(v.double(), x.double())
    size = truth.abs() if name != "log_kve" else truth.abs().clamp(min=1.0)
    error = (got - truth).abs() / size
    worst = int(error.argmax())
    assert error[worst] <= 2e-7, (float(v[worst]), float(x[worst]), float(error[worst]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_at_the_edges(backend, name):
    """At x = 0 and x = inf the limits, never nan inside the domain of the function."""
    v = torch.tensor([0.0, 0.0, 1.5, 1.5], dtype=F64, device=_device(backend))
    x = torch.tensor([0.0, INF, 0.0, INF], dtype=F64, device=_device(backend))
    for d in bessel._grad(v, x, FUNCTIONS.index(name), True, True):
        assert not bool(d.isnan().any()), (name, d)


# ---- the interface -------------------------------------------------------------------------------------------------
def test_numpy_in_numpy_out():
    x = np.linspace(0.1, 9.0, 50).reshape(5, 10)
    v = np.arange(5.0)[:, None]
    got = bessel.log_iv(v, x)
    assert isinstance(got, np.ndarray) and got.dtype == np.float64 and got.shape == (5, 10)
    np.testing.assert_array_equal(got, bessel.log_iv(torch.from_numpy(v), torch.from_numpy(x)).numpy())
    out = np.empty((5, 10))
    assert bessel.log_iv(v, x, out=out) is out
    np.testing.assert_array_equal(out, got)
    assert bessel.log_iv(2, x.astype(np.float32)).dtype == np.float32
    assert bessel.log_iv(np.arange(3), 2).dtype == np.float64
    assert isinstance(bessel.log_iv(1.0, 2.0), np.float64)
    x.setflags(write=False)
    np.testing.assert_array_equal(bessel.log_iv(v, x[::-1, ::2]), bessel.log_iv(v, x[::-1, ::2].copy()))
    np.testing.assert_array_equal(bessel.log_iv(1.5, np.asfortranarray(x)), bessel.log_iv(1.5, x.copy()))


def test_numpy_out_is_written_in_place():
    x = np.linspace(0.1, 9.0, 64)
    out = np.zeros(128)
    with fokker.use_backend("cpu"):
        bessel.log_kv(1.25, x, out=out[::2])
        np.testing.assert_array_equal(out[::2], bessel.log_kv(1.25, x))
        assert not out[1::2].any()
        want = bessel.log_kv(1.25, x)
        bessel.log_kv(1.25, x, out=x)
        np.testing.assert_array_equal(x, want)


def test_out_tensor():
    v, x = torch.rand(4), torch.rand(4) + 1
    out = torch.empty(4)
    assert bessel.log_iv(v, x, out=out) is out
    assert torch.equal(out, bessel.log_iv(v, x))
    buffer = torch.rand(5) + 1
    want = bessel.log_iv(0.5, buffer[1:].clone())
    bessel.log_iv(0.5, buffer[1:], out=buffer[:-1])  # overlapping memory
    assert torch.equal(buffer[:-1], want)
    with pytest.raises(ValueError, match=r"out must have shape \(4,\), dtype torch.float32"):
        bessel.log_iv(v, x, out=torch.empty(3))
    with pytest.raises(ValueError, match="does not record a gradient"):
        bessel.log_iv(v, x.requires_grad_(), out=out)


def test_promotion():
    f32, f64 = torch.rand(3), torch.rand(3, dtype=F64)
    assert bessel.log_iv(1, f32).dtype == torch.float32
    assert bessel.log_iv(0.1, f32).dtype == torch.float32
    assert bessel.log_iv(torch.tensor(0.1, dtype=F64), f32).dtype == torch.float32
    assert bessel.log_iv(f64, f32).dtype == F64
    assert bessel.log_iv(f32.bfloat16(), f32.half()).dtype == torch.float32
    assert bessel.log_iv(torch.arange(3), torch.arange(3)).dtype == torch.get_default_dtype()
    assert bessel.log_iv(f32, 2).shape == (3,)
    torch.testing.assert_close(bessel.log_iv(0.1, f32), bessel.log_iv(torch.full((3,), 0.1), f32))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (torch.rand(3), torch.rand(4)),
            ValueError,
            r"v \(3,\) and x \(4,\) do not broadcast|x \(4,\) and v \(3,\) do not",
        ),
        ((torch.rand(3, dtype=torch.cfloat), torch.rand(3)), TypeError, "v must be real"),
        ((np.ones(3, dtype=complex), np.ones(3)), TypeError, "v must be real"),
        ((torch.rand(3), np.ones(3)), TypeError, "x is a NumPy array beside a torch tensor"),
        (("a", torch.rand(3)), TypeError, "v must be a tensor, a NumPy array or a real number, got str"),
        ((1.0, torch.rand(3).to_sparse()), TypeError, "x must be a dense"),
        ((1.0, [1.0, 2.0]), TypeError, "x must be a tensor"),
        ((torch.rand(3), torch.rand(3, device="meta")), TypeError, "must be on one device"),
    ],
)
def test_errors_name_the_argument(args, error, message):
    with pytest.raises(error, match=message):
        bessel.log_iv(*args)


def test_lazy_negation_is_seen():
    z = torch.view_as_complex(torch.rand(4, 2) + 0.5)
    lazy = torch.imag(z.conj())
    assert lazy.is_neg()
    torch.testing.assert_close(bessel.log_ive(0.5, -lazy), bessel.log_ive(0.5, torch.imag(z).clone()))
    assert bool(bessel.log_iv(0.5, lazy).isnan().all())


def test_third_derivative_says_so():
    x = torch.tensor(2.0, dtype=F64, requires_grad=True)
    (d1,) = torch.autograd.grad(bessel.log_iv(1.5, x), x, create_graph=True)
    (d2,) = torch.autograd.grad(d1, x, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.autograd.grad(d2, x)


def test_a_broadcast_order_is_not_materialised():
    x = torch.rand(2**22)
    bessel.log_iv(1.5, x[:16])
    v = torch.rand(2**22, 1).mT  # (1, n) beside (3, n)
    with torch.profiler.profile(profile_memory=True) as profile:
        bessel.log_iv(torch.tensor([[0.5], [1.5], [2.5]]), v)
    peak = max(e.cpu_memory_usage for e in profile.events())
    assert peak <= 3 * v.numel() * 4 + 4096
