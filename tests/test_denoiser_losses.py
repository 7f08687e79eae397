"""Losses of fokker.denoiser: values and gradients by the papers' formulas, layouts, known optima, bad input."""

import math

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import denoiser
from fokker.reference import denoiser_losses as reference

F64 = torch.float64
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
KINDS = ("epsilon", "x0", "v", "flow", "score", "F")
SHAPES = [(3,), (5, 1), (40, 2), (3, 7), (2, 3, 5, 9), (2, 3, 70, 71)]
SMALL = SHAPES[:5]


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def normal(*shape, seed=0, dtype=F64, device="cpu"):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=F64).to(device, dtype)


def levels(batch, seed=9, device="cpu"):
    return (torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.3).to(device)


def spaced(t):
    return torch.stack([t, t], -1)[..., 0]


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


@pytest.fixture(params=NATIVE)
def native(request):
    with fokker.use_backend(request.param):
        yield request.param


def grads(loss, *leaves):
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


# ---- denoising score matching ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("weighting", [None, "x0", "vp", "edm"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_weightings(kind, weighting):
    alpha = 1.0 if kind == "F" else levels(4, seed=2)
    p, data, noise = (normal(4, 3, 5, seed=k).requires_grad_() for k in range(3))
    sigma, w = levels(4), levels(4, seed=5)
    space = {"vp": "epsilon", "edm": "F"}.get(weighting, weighting)
    want = reference.denoising_score_matching(p, data, noise, sigma, alpha, kind, space, w)
    got = denoiser.denoising_score_matching(
        p, sigma, alpha, data=data, noise=noise, kind=kind, weighting=weighting, weight=w, reduction="none"
    )
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    for g, r in zip(grads(got.sum(), p, data, noise), grads(want.sum(), p, data, noise), strict=True):
        torch.testing.assert_close(g, r, rtol=1e-12, atol=1e-14)


def test_named_weightings_are_the_papers():
    x, data, sigma = normal(4, 6, seed=1), normal(4, 6, seed=2), levels(4)
    edm = denoiser.denoising_score_matching(x, sigma, data=data, kind="x0", weighting="edm", reduction="none")
    lam = (sigma**2 + 0.25) / (0.5 * sigma) ** 2  # Karras et al. 2022, table 1
    torch.testing.assert_close(edm, lam * (x - data).square().mean(1), rtol=1e-13, atol=0)
    for name in ("vp", "ve"):  # lambda = sigma^2 on scores, Song et al. 2021
        score = denoiser.denoising_score_matching(x, sigma, noise=data, kind="score", weighting=name, reduction="none")
        want = (sigma[:, None] * x + data).square().mean(1)
        torch.testing.assert_close(score, want, rtol=1e-13, atol=0)
    plain = denoiser.denoising_score_matching(x, sigma, noise=data)
    torch.testing.assert_close(plain, torch.nn.functional.mse_loss(x, data), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_any_two_of_data_noise_and_noisy(kind):
    alpha = 1.0 if kind == "F" else 0.7
    p, data, noise, sigma = *(normal(3, 8, seed=k) for k in range(3)), levels(3)
    given = {"data": data, "noise": noise, "noisy": alpha * data + sigma[:, None] * noise}
    values = []
    for left_out in given:
        two = {k: v for k, v in given.items() if k != left_out}
        values.append(denoiser.denoising_score_matching(p, sigma, alpha, kind=kind, reduction="none", **two))
    for v in values[1:]:
        torch.testing.assert_close(v, values[0], rtol=1e-11, atol=0)


def test_reductions():
    p, noise = normal(4, 3, 5, seed=1), normal(4, 3, 5, seed=2)
    found = {r: denoiser.denoising_score_matching(p, 1.0, noise=noise, reduction=r) for r in ("mean", "sum", "none")}
    torch.testing.assert_close(found["none"].mean(), found["mean"])
    torch.testing.assert_close(found["sum"], (p - noise).square().sum())
    assert denoiser.denoising_score_matching(p[:0], 1.0, noise=noise[:0], reduction="none").shape == (0,)
    assert denoiser.denoising_score_matching(p[:0], 1.0, noise=noise[:0], reduction="sum") == 0


# ---- multiplicative score matching -----------------------------------------------------------------------------------
def test_geometric_brownian_motion_by_the_formula():
    mu, sigma, k = 0.32, 0.8, levels(4)
    s, data = normal(4, 9, seed=1), normal(4, 9, seed=2).exp()
    x = data * normal(4, 9, seed=3).exp()
    got = denoiser.multiplicative_score_matching(
        s, x, data, (mu - sigma**2 / 2) * k, sigma**2 * k, weight=9.0, reduction="none"
    )
    t = k[:, None]
    want = (t * sigma**2 * x * s + torch.log(x / data) - mu * t + 1.5 * sigma**2 * t).square().sum(1)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    h = denoiser.multiplicative_score_matching(
        x * s, x, data, (mu - sigma**2 / 2) * k, sigma**2 * k, weight=9.0, hyvarinen=True, reduction="none"
    )
    torch.testing.assert_close(h, want, rtol=1e-12, atol=0)


def test_log_normal_data_have_the_known_optimum():
    """log x_0 ~ N(0, t2): at the exact score the expected loss is v t2 / (t2 + v), and the gradient's mean is zero."""
    n, t2, v, m = 200_000, 0.6, 0.25, -0.1
    data = (math.sqrt(t2) * normal(n, 1, seed=1)).exp()
    x = data * (m + math.sqrt(v) * normal(n, 1, seed=2)).exp()
    s = ((-1.0 - (x.log() - m) / (t2 + v)) / x).requires_grad_()
    loss = denoiser.multiplicative_score_matching(s, x, data, m, v)
    want = v * t2 / (t2 + v)
    assert abs(float(loss.detach()) - want) < 4 * want * math.sqrt(2 / n)  # false alarms: 6e-5
    slope = n * grads(loss, s)[0] / x.detach()
    assert abs(float(slope.mean())) < 4 * float(slope.std()) / math.sqrt(n)


# ---- score differences -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("given_scale", [False, True])
@pytest.mark.parametrize("kind", ["vsd", "sid", "sim"])
def test_score_difference_by_autograd(kind, given_scale, native):
    device = device_of(native)
    y, r, f = (normal(4, 3, 5, seed=k, device=device).requires_grad_() for k in range(3))
    w = levels(4, device=device)
    scale = levels(4, seed=3, device=device) if given_scale else None
    got = denoiser.score_difference(y, r, f, kind=kind, weight=w, scale=scale, reduction="none")
    want = reference.score_difference(y, r, f, kind, weight=w, scale=scale)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    for g, e in zip(grads(got.sum(), y, r, f), grads(want.sum(), y, r, f), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-15)


def test_gradients_are_those_of_the_table():
    y, r, f = (normal(4, 6, seed=k).requires_grad_() for k in range(3))
    h, alpha = levels(4)[:, None], 1.2
    w = (y - r).detach().abs().mean(1, keepdim=True)
    delta = (r - f).detach()
    e, b = (r - y).detach(), (f - y).detach()
    zero = torch.zeros_like(delta)
    want = {
        "vsd": (-h * delta / w, zero, zero),
        "sid": (-h * delta / w, h * (e + delta - 2 * alpha * delta) / w, h * (2 * alpha * delta - e) / w),
        "sim": (-h * delta / w, h * b / w, h * (delta - b) / w),
    }
    for kind, expected in want.items():
        loss = denoiser.score_difference(y, r, f, kind=kind, alpha=alpha, weight=h, reduction="sum")
        for got, e_ in zip(grads(loss, y, r, f), expected, strict=True):
            torch.testing.assert_close(got, e_, rtol=1e-12, atol=1e-15)


def test_the_floor_of_the_weight():
    y = normal(2, 4)
    loss = denoiser.score_difference(y, y.clone(), y + 1e-3, kind="sim", reduction="none", floor=1e-5)
    torch.testing.assert_close(loss, torch.full((2,), -1e-6 / 1e-5, dtype=F64), rtol=1e-9, atol=0)


def test_not_finite_comes_out_as_nan(native):
    y, r, f = (normal(3, 4, seed=k, device=device_of(native)) for k in range(3))
    r[1, 2] = math.inf
    for kind in ("vsd", "sid", "sim"):
        loss = denoiser.score_difference(y, r, f, kind=kind, reduction="none")
        assert loss.isnan().tolist() == [False, True, False]


# ---- every backend, dtype, layout ------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", [spaced, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16], ids=str)
def test_layouts_and_dtypes(native, dtype, layout):
    device = device_of(native)
    tolerance = 1e-12 if dtype is F64 else 2e-7
    for shape in SMALL if native == "emu" else SHAPES:
        y, r, f = (layout(normal(*shape, seed=k, dtype=dtype, device=device)).requires_grad_() for k in range(3))
        sigma = levels(shape[0], device=device)
        got = denoiser.score_difference(y, r, f, kind="sid", reduction="none")
        wide = [t.detach().double().requires_grad_() for t in (y, r, f)]
        want = reference.score_difference(*wide, "sid")
        assert got.dtype is (F64 if dtype is F64 else torch.float32)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
        # rounded once, after float32 arithmetic
        unit = {F64: 1e-13, torch.float32: 4e-7, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
        for g, e in zip(grads(got.sum(), y, r, f), grads(want.sum(), *wide), strict=True):
            assert g.dtype is dtype
            torch.testing.assert_close(g.double(), e, rtol=2 * unit, atol=unit * float(e.abs().max()))
        x = (y.detach().double().exp()).to(dtype)
        data = (r.detach().double().exp()).to(dtype)
        p = f.detach().requires_grad_()
        loss = denoiser.multiplicative_score_matching(p, x, data, 0.1, sigma, reduction="none")
        q = p.detach().double().requires_grad_()
        expected = reference.multiplicative_score_matching(q, x, data, 0.1, sigma)
        torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=0)
        (g,), (e,) = grads(loss.sum(), p), grads(expected.sum(), q)
        torch.testing.assert_close(g.double(), e, rtol=2 * unit, atol=unit * float(e.abs().max()))


def test_mixed_dtypes(native):
    device = device_of(native)
    p = normal(3, 40, seed=1, dtype=torch.bfloat16, device=device).requires_grad_()
    data = normal(3, 40, seed=2, dtype=torch.float32, device=device)
    noise = normal(3, 40, seed=3, device=device).requires_grad_()
    got = denoiser.denoising_score_matching(p, 0.7, 0.4, data=data, noise=noise, kind="v")
    want = reference.denoising_score_matching(p.double(), data, noise, 0.7, 0.4, "v").mean()
    assert got.dtype is F64
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    (gp, gn), (ep, en) = grads(got, p, noise), grads(want, p, noise)
    assert gp.dtype is torch.bfloat16 and gn.dtype is F64
    torch.testing.assert_close(gp, ep, rtol=0, atol=0)
    torch.testing.assert_close(gn, en, rtol=1e-12, atol=1e-16)


def test_a_sample_does_not_depend_on_its_batch(native):
    shape = (6, 5, 11) if native == "emu" else (6, 3, 60, 61)
    y, r, f = (normal(*shape, seed=k, dtype=torch.float32, device=device_of(native)) for k in range(3))
    whole = denoiser.score_difference(y, r, f, reduction="none")
    alone = torch.cat(
        [denoiser.score_difference(*(t[b : b + 1] for t in (y, r, f)), reduction="none") for b in range(6)]
    )
    assert torch.equal(whole, alone)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="wants the CPU kernels")
def test_nothing_large_is_saved_for_backward():
    y, r, f, x = (normal(4, 3, 20, 20, seed=k).exp().requires_grad_() for k in range(4))
    calls = (
        lambda: denoiser.score_difference(y, r, f, kind="sid"),
        lambda: denoiser.score_difference(y, r, f),
        lambda: denoiser.denoising_score_matching(y, 0.5, 0.5, data=r, noise=f, kind="v", weighting="edm"),
        lambda: denoiser.multiplicative_score_matching(y, r, f, 0.0, 1.0),
    )
    for call in calls:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=kept: k.append(t) or t, lambda t: t):
            call()
        assert any(t.numel() == y.numel() for t in kept)
        assert all(t.numel() < 40 or t.data_ptr() in {a.data_ptr() for a in (y, r, f, x)} for t in kept)


# ---- f-divergences ---------------------------------------------------------------------------------------------------
GENERATORS = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "squared_hellinger": lambda r: 1 - r.sqrt(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "softened_reverse_kl": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "neyman": lambda r: (r - 1) ** 2 / (2 * r),
    "pearson": lambda r: (r - 1) ** 2 / 2,
    "le_cam": lambda r: (r - 1) ** 2 / (2 * (r + 1)),
}


@pytest.mark.parametrize("name", denoiser.DIVERGENCES)
def test_weights_are_r_squared_times_the_second_derivative(name):
    l = torch.linspace(-4, 4, 33, dtype=F64)
    r = l.exp().requires_grad_()
    (first,) = torch.autograd.grad(GENERATORS[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(denoiser.divergence_weight(l, name), (r**2 * second).detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(reference.divergence_weight(l, name), (r**2 * second).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", denoiser.DIVERGENCES)
def test_noise_lowers_a_divergence_at_the_rate_of_its_weight(name):
    """dD_f / dsigma^2 = -E_q[h(r) |s_p - s_q|^2] / 2, for two mixtures in one dimension, by quadrature."""
    x = torch.linspace(-14, 14, 8001, dtype=F64)
    step = float(x[1] - x[0])

    def density(means, variance):
        means = torch.tensor(means, dtype=F64)[:, None]
        logs = -0.5 * (x - means) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance)
        weights = logs.softmax(0)
        return logs.logsumexp(0) - math.log(len(means)), (weights * (means - x) / variance).sum(0)

    def divergence(t):
        (p, _), (q, _) = density([-0.6, 0.9], 1.0 + t), density([-0.8, 0.2, 0.7], 1.5 + t)
        return float((q.exp() * GENERATORS[name]((p - q).exp())).sum() * step)

    slope = (divergence(0.5 + 1e-3) - divergence(0.5 - 1e-3)) / 2e-3
    (p, sp), (q, sq) = density([-0.6, 0.9], 1.5), density([-0.8, 0.2, 0.7], 2.0)
    h = denoiser.divergence_weight(p - q, name, clamp=None)
    want = -0.5 * float((q.exp() * h * (sp - sq) ** 2).sum() * step)
    assert slope == pytest.approx(want, rel=1e-5)


def test_weight_options():
    l = torch.tensor([-30.0, 0.0, 30.0])
    torch.testing.assert_close(denoiser.divergence_weight(l, "forward_kl"), l.clamp(-10, 10).exp())
    h = denoiser.divergence_weight(l, "jensen_shannon", normalize=True)
    torch.testing.assert_close(h.mean(), torch.tensor(1.0))


# ---- bad input -------------------------------------------------------------------------------------------------------
X = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: denoiser.denoising_score_matching(X, 1.0), ValueError, "'epsilon' needs noise"),
        (
            lambda: denoiser.denoising_score_matching(X, 1.0, data=X, kind="v"),
            ValueError,
            "needs two of data, noise and noisy, got data",
        ),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X[:2]), ValueError, r"noise \(2, 4\) must have"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X.long()), TypeError, "noise must have dtype"),
        (lambda: denoiser.denoising_score_matching(X, torch.ones(2), noise=X), ValueError, r"sigma must be .* \(3,\)"),
        (lambda: denoiser.denoising_score_matching(X, "1", noise=X), TypeError, "sigma must be a number"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X, kind="eps"), ValueError, "kind must be one of"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X, weighting="a"), ValueError, "weighting must be"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X, reduction="a"), ValueError, "reduction must be"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, 0.5, data=X, noise=X, kind="F"), ValueError, "alpha = 1"),
        (lambda: denoiser.denoising_score_matching(X, 1.0, noise=X, weight=X), ValueError, r"weight must be"),
        (lambda: denoiser.denoising_score_matching(X[0, 0], 1.0, noise=X), ValueError, "0-dimensional"),
        (lambda: denoiser.multiplicative_score_matching(X, X, X[0], 0.0, 1.0), ValueError, r"data \(4,\) must have"),
        (lambda: denoiser.score_difference(X, X, None), TypeError, "fake must be a tensor"),
        (lambda: denoiser.score_difference(X, X, X, kind="kl"), ValueError, "kind must be one of"),
        (lambda: denoiser.score_difference(X, X, X, floor=0.0), ValueError, "floor must be positive"),
        (lambda: denoiser.score_difference(X, X, X, floor="1e-5"), TypeError, "floor must be a number, got str"),
        (
            lambda: denoiser.score_difference(X, X, X, kind="sid", alpha="1"),
            TypeError,
            "alpha must be a number, got str",
        ),
        (
            lambda: denoiser.divergence_weight(torch.ones(3), clamp="10"),
            TypeError,
            "clamp must be a number or None, got",
        ),
        (
            lambda: denoiser.denoising_score_matching(X, 1.0, data=X, noise=X, kind="F", sigma_data="0.5"),
            TypeError,
            "sigma_data must be a number, got str",
        ),
        (
            lambda: denoiser.denoising_score_matching(X, 1.0, data=X, noise=X, kind="F", sigma_data=0.0),
            ValueError,
            "sigma_data must be positive and finite, got 0",
        ),
        (lambda: denoiser.score_difference(X, X, X, scale=torch.ones(4)), ValueError, r"scale must be"),
        (lambda: denoiser.divergence_weight(torch.ones(3), "kl"), ValueError, "divergence must be one of"),
        (lambda: denoiser.divergence_weight(torch.ones(3, dtype=torch.int64)), TypeError, "floating-point"),
        (lambda: denoiser.divergence_weight(torch.ones(3), clamp=-1.0), ValueError, "clamp must be positive"),
    ],
)
def test_bad_input(call, error, says):
    with pytest.raises(error, match=says):
        call()
