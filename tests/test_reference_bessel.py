"""The reference of the Bessel family: against the truth tables, at the edges, across its regimes, under autograd."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from fokker.reference import _bessel_debye as debye
from fokker.reference import _bessel_middle as middle
from fokker.reference import _bessel_small as small
from fokker.reference import _bessel_temme as temme
from fokker.reference import _double_word as dw
from fokker.reference import bessel

TRUTH = Path(__file__).parent / "truth"
DERIVATIVES = (("",), ("_dv", "_dx"), ("_dvv", "_dvx", "_dxx"))
# Error allowed for hypot(v, x) >= 25 and below it; relative for these, against max(|truth|, 1) for the other three.
RELATIVE = ("log_ive", "iv_ratio", "kv_ratio")
VALUE_ALLOWED = {f: (1e-15, 4e-15) if f in RELATIVE else (7e-16, 4e-15) for f in bessel.FUNCTIONS}
GRAD_ALLOWED = 4e-15
HESS_ALLOWED = 2e-13

INF, NAN = math.inf, math.nan
# One point a regime of I and one a regime of K, orders on both sides of a half-integer, a small and a large argument.
POINTS = [(0.3, 0.2), (2.5, 0.7), (3.2, 1.4), (17.0, 5.0), (40.0, 2.0), (0.7, 60.0)]

names = pytest.mark.parametrize("name", bessel.FUNCTIONS)


@functools.lru_cache
def table(name):
    with np.load(TRUTH / f"{name}.npz") as file:
        return {key: file[key] for key in file}


def column(name, derivative):
    """log_ive and log_kve have the derivatives of log_iv and log_kv, but for d/dx."""
    return (name if derivative in ("", "_dx") else name.replace("ve", "v")) + derivative


def derivatives(name, order, v, x):
    if order == 0:
        return (getattr(bessel, name)(v, x),)
    return (bessel.bessel_grad if order == 1 else bessel.bessel_hess)(name, v, x)


def double(values, **kwargs):
    return torch.tensor(values, dtype=torch.float64, **kwargs)


def points(**kwargs):
    v, x = zip(*POINTS, strict=True)
    return double(v, **kwargs), double(x, **kwargs)


def worst(got, high, low, scale, rows):
    """The largest |got - truth| / scale, with the point it is at; an infinite truth must be met exactly."""
    finite = np.isfinite(high)
    assert np.array_equal(got[~finite], high[~finite])
    error = np.abs((got[finite] - high[finite]) - low[finite]) / scale[finite]
    assert not np.isnan(error).any()
    k = int(np.argmax(error))
    return error[k], (rows["v"][finite][k], rows["x"][finite][k])


@names
def test_values_against_truth(name):
    rows = table("bessel_f64")
    got = getattr(bessel, name)(torch.from_numpy(rows["v"]), torch.from_numpy(rows["x"])).numpy()
    high, low = rows[name + "_hi"], rows[name + "_lo"]
    # Below 1e-300 a result is subnormal or next to it: its last place is what counts.
    scale = np.maximum(np.abs(high), 1e-300 if name in RELATIVE else 1.0)
    far = np.hypot(rows["v"], rows["x"]) >= 25
    for part, allowed in zip((far, ~far), VALUE_ALLOWED[name], strict=True):
        error, at = worst(got[part], high[part], low[part], scale[part], {k: rows[k][part] for k in "vx"})
        assert error <= allowed, at


@names
def test_order_zero_is_relatively_accurate(name):
    """log I_0 ~ x^2/4 and its kin as x -> 0, where every term but one must vanish exactly."""
    rows = table("bessel_f64")
    keep = rows["v"] == 0
    got = getattr(bessel, name)(torch.from_numpy(rows["v"][keep]), torch.from_numpy(rows["x"][keep])).numpy()
    high, low = rows[name + "_hi"][keep], rows[name + "_lo"][keep]
    # log K_0 and log(e^x K_0) do cross zero, near x = 0.4 and x = 1.9: there an ulp of their terms is what can be had.
    scale = np.maximum(np.abs(high), 0.1 if name in ("log_kv", "log_kve") else 1e-300)
    error, at = worst(got, high, low, scale, {k: rows[k][keep] for k in "vx"})
    assert error <= 4e-15, at


@names
def test_gradients_against_truth(name):
    rows, truth = table("bessel_f64"), table("bessel_grad_f64")
    got = bessel.bessel_grad(name, torch.from_numpy(rows["v"]), torch.from_numpy(rows["x"]))
    for value, derivative in zip(got, DERIVATIVES[1], strict=True):
        high, low = (truth[column(name, derivative) + part].astype(np.float64) for part in ("_hi", "_lo"))
        error, at = worst(value.numpy(), high, low, np.maximum(np.abs(high), 1.0), rows)
        assert error <= GRAD_ALLOWED, (derivative, at)


@names
def test_second_derivatives_against_truth(name):
    rows = table("bessel_hess_f64")
    got = bessel.bessel_hess(name, torch.from_numpy(rows["v"]), torch.from_numpy(rows["x"]))
    for value, derivative in zip(got, DERIVATIVES[2], strict=True):
        high, low = (rows[column(name, derivative) + part] for part in ("_hi", "_lo"))
        scale = np.maximum(np.abs(high), 1.0)
        if derivative == "_dvx":  # at small v, d/dv of d/dx is a small difference of terms of size 1/x
            scale = np.maximum(scale, 1 / rows["x"])
        error, at = worst(value.numpy(), high, low, scale, rows)
        assert error <= HESS_ALLOWED, (derivative, at)


@names
def test_slope_in_the_order_at_zero_is_relatively_accurate(name):
    """-K_0/I_0 for log I (DLMF 10.38), down to where it underflows; 0 for log K."""
    rows, truth = table("bessel_f64"), table("bessel_grad_f64")
    keep = rows["v"] == 0
    got = bessel.bessel_grad(name, torch.from_numpy(rows["v"][keep]), torch.from_numpy(rows["x"][keep]))[0].numpy()
    high, low = (truth[column(name, "_dv") + part][keep].astype(np.float64) for part in ("_hi", "_lo"))
    if name in ("log_kv", "log_kve"):
        assert (got == 0).all()
        return
    error, at = worst(got, high, low, np.maximum(np.abs(high), 1e-290), {k: rows[k][keep] for k in "vx"})
    assert error <= 1e-14, at


@names
def test_float32_is_the_rounded_float64(name):
    rows = table("bessel_f32")
    v, x = torch.from_numpy(rows["v"]), torch.from_numpy(rows["x"])
    got = getattr(bessel, name)(v, x)
    assert got.dtype == torch.float32
    high = rows[name + "_hi"]
    fits = np.abs(high) < float(np.finfo(np.float32).max)
    error = np.abs(got.double().numpy() - high)[fits]
    assert (error <= 2.0**-24 * 1.0001 * np.maximum(np.abs(high[fits]), 2.0**-126) + 1e-15).all()


def _arc(radius, n):
    """Points (v, x) at this distance from the origin, (0, radius) first."""
    angle = torch.linspace(0, math.pi / 2, n, dtype=torch.float64)[1:-1]
    v, x = radius * torch.cos(angle), radius * torch.sin(angle)
    return torch.cat([double([0.0]), v]), torch.cat([double([radius]), x])


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("radius", [30.0, 31.0])
def test_regimes_agree_where_they_meet_at_r_30(order, radius):
    v, x = _arc(radius, 60)
    x = torch.clamp(x, min=2.0)
    for far, near in (
        (debye.log_function(False, False, order, v, x), middle.log_i(False, order, v, x)),
        (debye.log_function(True, True, order, v, x), middle.log_k(True, order, v, x)),
        (debye.ratio(False, order, v, x), middle.ratio_i(order, v, x)),
        (debye.ratio(True, order, v, x), middle.ratio_k(order, v, x)),
    ):
        for a, b in zip(far, near, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13 if order == 2 else 2e-15, atol=4e-15)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_regimes_agree_where_they_meet_at_small_x(order):
    v = torch.cat([double([0.0, 1e-9, 0.5, 1.5]), torch.linspace(0.01, 29.0, 60, dtype=torch.float64)])
    one, two = torch.ones_like(v), torch.full_like(v, 2.0)
    for a, b in zip(small.log_i(False, order, v, two), middle.log_i(False, order, v, two), strict=True):
        torch.testing.assert_close(a, b, rtol=4e-15, atol=4e-15)
    for a, b in zip(temme.log_k(False, order, v, one), middle.log_k(False, order, v, one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
    for a, b in zip(temme.ratio_k(order, v, one), middle.ratio_k(order, v, one), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13 if order == 2 else 4e-15, atol=1e-14)


# (v, x), then per function: f, f_v, f_x. Infinite and zero entries are limits (DLMF 10.25.2, 10.30.1-4, 10.40, 10.41).
EDGES = {
    (0.0, 0.0): ((0, -INF, 0), (0, -INF, -1), (INF, 0, -INF), (INF, 0, -INF), (0, 0, 0.5), (INF, INF, -INF)),
    (2.0, 0.0): ((-INF, -INF, INF),) * 2 + ((INF, INF, -INF),) * 2 + ((0, 0, 1 / 6), (INF, INF, -INF)),
    (1e-300, 0.0): ((-INF, -INF, INF),) * 2 + ((INF, INF, -INF),) * 2 + ((0, 0, 0.5), (INF, INF, -INF)),
    (0.0, INF): ((INF, 0, 1), (-INF, 0, 0), (-INF, 0, -1), (-INF, 0, 0), (1, 0, 0), (1, 0, 0)),
    (7.5, INF): ((INF, 0, 1), (-INF, 0, 0), (-INF, 0, -1), (-INF, 0, 0), (1, 0, 0), (1, 0, 0)),
    (INF, 4.0): ((-INF, -INF, INF),) * 2 + ((INF, INF, -INF),) * 2 + ((0, 0, 0), (INF, 0.5, -INF)),
    (INF, 0.0): ((-INF, -INF, INF),) * 2 + ((INF, INF, -INF),) * 2 + ((0, 0, 0), (INF, INF, -INF)),
    (INF, INF): ((NAN,) * 3, (-INF, NAN, NAN)) + ((NAN,) * 3,) * 4,
    (NAN, 1.0): ((NAN,) * 3,) * 6,
    (1.0, NAN): ((NAN,) * 3,) * 6,
    (-1.0, 1.0): ((NAN,) * 3,) * 6,
    (1.0, -1.0): ((NAN,) * 3,) * 6,
    (INF, NAN): ((NAN,) * 3,) * 6,
    (NAN, INF): ((NAN,) * 3,) * 6,
    (-1.0, 0.0): ((NAN,) * 3,) * 6,
}


@names
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_edges(name, dtype):
    keys = [k for k in EDGES if k[0] != 1e-300 or dtype == torch.float64]
    keys.append((-0.0, -0.0))
    v, x = torch.tensor(keys, dtype=dtype).unbind(1)
    want = torch.tensor([EDGES[k][bessel.FUNCTIONS.index(name)] for k in keys], dtype=dtype).unbind(1)
    got = derivatives(name, 0, v, x) + derivatives(name, 1, v, x)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0 if dtype == torch.float64 else 1e-3, atol=0, equal_nan=True)


@names
def test_limits_of_the_derivatives_are_approached(name):
    """At x = 0 and x = inf the table's constant is what nearby points tend to, second derivatives included."""
    for v in (0.0, 0.3, 0.5, 2.0):
        for edge, near in ((0.0, 1e-290), (INF, 1e290)):
            for order in (0, 1, 2):
                at_edge = derivatives(name, order, double(v), double(edge))
                at_near = derivatives(name, order, double(v), double(near))
                for a, b in zip(at_edge, at_near, strict=True):
                    if torch.isinf(a):
                        assert torch.sign(a) == torch.sign(b) and torch.abs(b) > 1, (v, edge, order)
                    else:
                        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@names
def test_gradcheck(name):
    check = functools.partial(torch.autograd.gradcheck, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert check(getattr(bessel, name), points(requires_grad=True), rtol=1e-6, atol=1e-7)


@names
def test_gradgradcheck(name):
    check = functools.partial(torch.autograd.gradgradcheck, fast_mode=True, check_fwd_over_rev=True)
    assert check(getattr(bessel, name), points(requires_grad=True), rtol=1e-6, atol=1e-7)


@names
def test_transforms(name):
    f = getattr(bessel, name)
    v, x = points()
    d_v, d_x = bessel.bessel_grad(name, v, x)
    by_grad = vmap(grad(f, argnums=(0, 1)))(v, x)
    assert torch.equal(by_grad[0], d_v) and torch.equal(by_grad[1], d_x)
    value, tangent = jvp(f, (v, x), (torch.full_like(v, 2.0), torch.full_like(x, 3.0)))
    assert torch.equal(value, f(v, x))
    torch.testing.assert_close(tangent, 2 * d_v + 3 * d_x, rtol=1e-14, atol=0)
    outer = vmap(vmap(f, (None, 0)), (0, None))(v, x)
    assert torch.equal(outer, f(v[:, None], x))
    assert torch.equal(vmap(f, (None, 0))(v[0], x), f(v[0], x))


@names
def test_hessians_agree_in_every_mode(name):
    point = double(POINTS[3])
    d_vv, d_vx, d_xx = bessel.bessel_hess(name, *point)
    want = torch.stack([torch.stack([d_vv, d_vx]), torch.stack([d_vx, d_xx])])

    def f(z):
        return getattr(bessel, name)(z[0], z[1])

    for way in (hessian(f), jacrev(jacrev(f)), jacrev(jacfwd(f)), jacfwd(jacfwd(f))):
        torch.testing.assert_close(way(point), want, rtol=1e-14, atol=0)


def test_third_derivatives_raise():
    v, x = points(requires_grad=True)
    with pytest.raises(NotImplementedError, match="third derivatives of log_kv"):
        bessel.bessel_hess("log_kv", v, x)[0].sum().backward()
    with pytest.raises(NotImplementedError, match="third derivatives of iv_ratio"):
        jvp(lambda a: bessel.bessel_hess("iv_ratio", a, x.detach()), (v.detach(),), (v.detach(),))


def test_gradients_of_broadcast_inputs_have_their_shapes():
    v = double(1.5, requires_grad=True)
    x = double([[0.5], [3.0], [50.0]], requires_grad=True)
    z = double([0.1, 0.2], requires_grad=True)
    bessel.log_iv(v, x + z).sum().backward()
    d_v, d_x = bessel.bessel_grad("log_iv", v, x + z)
    assert (v.grad.shape, x.grad.shape, z.grad.shape) == ((), (3, 1), (2,))
    torch.testing.assert_close(v.grad, d_v.sum())
    torch.testing.assert_close(x.grad, d_x.sum(1, keepdim=True))
    torch.testing.assert_close(z.grad, d_x.sum(0))


def test_unwanted_infinite_slope_does_no_harm():
    """d/dv log I_0(x) is -inf at x = 0; a gradient in x alone must still be 0 there."""
    x = double([0.0, 1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(bessel.log_iv(0.0, x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert slope[0] == 0 and curvature[0] == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_rounded_once(dtype):
    v, x = (t.to(dtype) for t in points())
    for name in bessel.FUNCTIONS:
        got = getattr(bessel, name)(v, x)
        assert got.dtype == dtype
        assert torch.equal(got, getattr(bessel, name)(v.double(), x.double()).to(dtype))
    x.requires_grad_()
    bessel.log_iv(v, x).sum().backward()
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, bessel.bessel_grad("log_iv", v.double(), x.detach().double())[1].to(dtype))


def test_promotion():
    x = torch.tensor([0.5, 2.0])
    assert bessel.log_iv(torch.tensor([1, 2]), x).dtype == torch.float32
    assert bessel.log_iv(torch.tensor([1, 2]), torch.tensor([3, 4])).dtype == torch.get_default_dtype()
    assert bessel.log_iv(x, x.double()).dtype == torch.float64
    assert bessel.log_iv(double(0.5), x).dtype == torch.float32
    assert torch.equal(bessel.log_iv(0.1, x), bessel.log_iv(torch.tensor(0.1), x))
    assert bessel.log_iv(0.1, x.double())[0] == bessel.log_iv(double(0.1), x.double())[0]
    assert bessel.log_kv(1, 2.0).shape == ()


def test_shapes():
    v, x = points()
    assert bessel.log_kv(v[:0], x[:0]).shape == (0,)
    assert bessel.log_kv(v[:, None], x[:0]).shape == (6, 0)
    strided = torch.stack([x, x], 1)[:, 0]
    assert torch.equal(bessel.log_kv(v, strided), bessel.log_kv(v, x))


def test_errors():
    v, x = points()
    with pytest.raises(ValueError, match=r"v \(6,\) and x \(5,\)"):
        bessel.log_iv(v, x[:5])
    with pytest.raises(TypeError, match="x must be real"):
        bessel.log_iv(v, x.to(torch.complex128))
    with pytest.raises(TypeError, match="v must be real"):
        bessel.kv_ratio(1j, x)
    with pytest.raises(ValueError, match="'jv'"):
        bessel.bessel_grad("jv", v, x)


def test_runs_without_values():
    """No branch looks at data: the function runs on tensors that have none."""
    v, x = torch.ones(3, 1, device="meta"), torch.ones(2, dtype=torch.float64, device="meta")
    for name, order in (("log_iv", 0), ("log_kv", 0), ("iv_ratio", 2), ("kv_ratio", 1)):
        for out in derivatives(name, order, v, x):
            assert out.shape == (3, 2) and out.dtype == torch.float64


def test_double_word_log():
    mpmath = pytest.importorskip("mpmath")
    u = torch.rand(60, dtype=torch.float64)
    a = torch.cat([10 ** (600 * u[:40] - 300), 1 + 1e-3 * u[40:]])
    low = a * 2.0**-53 * (torch.rand_like(a) - 0.5)
    got = dw.log((a, low))
    with mpmath.workdps(50):
        for h, e, lo, hi in zip(*(t.tolist() for t in (a, low, got[1], got[0])), strict=True):
            want = mpmath.log(mpmath.mpf(h) + mpmath.mpf(e))
            assert abs(mpmath.mpf(hi) + mpmath.mpf(lo) - want) <= 1e-26 * (1 + abs(want)), h


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log_iv", "kv_ratio"])
def test_compile(name):
    f = getattr(bessel, name)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    v, x = points()
    assert torch.equal(compiled(v, x), f(v, x))
    v.requires_grad_(), x.requires_grad_()
    compiled(v, x).sum().backward()
    d_v, d_x = bessel.bessel_grad(name, v.detach(), x.detach())
    assert torch.equal(v.grad, d_v) and torch.equal(x.grad, d_x)
