"""Density sums: accuracy in float32, edges, errors, gradients beyond the table's, streams; on every backend."""

import math
import warnings

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from torch.autograd import gradcheck, gradgradcheck

import fokker
from fokker import kde, mixture, pairwise
from fokker.cases import CASES

HERE = [b for b in BACKENDS if b in CASES["kde_log_prob_2d"].backends]
F64 = torch.float64


@pytest.fixture(params=HERE)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def cloud(n, d, seed=0, dtype=F64):
    return torch.randn(n, d, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense(x, y, h, log_w=None):
    """log p by differences in float64, pair by pair."""
    x, y = x.double(), y.double()
    t = -0.5 * (x[:, None] - y[None]).square().sum(-1) / h**2
    t = t - math.log(len(y)) if log_w is None else t + log_w
    return torch.logsumexp(t, 1) - x.shape[1] * (math.log(h) + 0.5 * math.log(2 * math.pi))


# ---- values --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", ["gaussian", "tophat", "epanechnikov", "exponential", "linear", "cosine"])
@pytest.mark.parametrize("dim", [1, 2, 5, 16])
def test_scikit_learn_agrees(backend, kernel, dim):
    """With leaf_size >= N its trees do nothing, and it is right (but for the cosine in even dimensions)."""
    if kernel == "cosine" and dim % 2 == 0:
        pytest.skip("scikit-learn leaves a term of the normaliser out: exp(score_samples) does not integrate to one")
    neighbors = pytest.importorskip("sklearn.neighbors")
    y, x, w = cloud(150, dim), cloud(40, dim, 1), torch.rand(150, dtype=F64)
    h = 1.3 * math.sqrt(dim)
    theirs = neighbors.KernelDensity(bandwidth=h, kernel=kernel, leaf_size=1000).fit(y, sample_weight=w)
    want = torch.from_numpy(theirs.score_samples(x))
    torch.testing.assert_close(kde.log_prob(x, y, h, weights=w, kernel=kernel), want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kernel", kde.KERNELS)
def test_densities_integrate_to_one(kernel):
    """On a fine grid in two dimensions (vmf: on the circle), mass outside the grid bounded by the tolerance."""
    if kernel == "vmf":
        angle = torch.arange(4000, dtype=F64) * (2 * math.pi / 4000)
        x = torch.stack([angle.cos(), angle.sin()], 1)
        mass = kde.log_prob(x, x[[3, 700]], 0.4, kernel=kernel).exp().sum() * (2 * math.pi / 4000)
        assert abs(mass - 1) < 1e-12
        return
    h, half, n = 0.5, 60.0, 1500
    nu = 9.0 if kernel == "student_t" else 1.0
    if kernel == "cauchy":
        half = 600.0
    axis = torch.linspace(-1, 1, n, dtype=F64) ** 3 * half  # dense where the density is
    step = torch.gradient(axis)[0]
    x = torch.cartesian_prod(axis, axis)
    y = torch.tensor([[0.1, 0.2], [-0.3, 0.4]], dtype=F64)
    density = kde.log_prob(x, y, h, kernel=kernel, nu=nu).exp().reshape(n, n)
    mass = float((density * step[:, None] * step[None]).sum())
    assert abs(mass - 1) < (5e-3 if kernel in ("cauchy", "tophat", "linear", "laplace") else 1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dim", [2, 7, 64, 784, 4096])
def test_float32_is_accurate_from_collapse_to_flat(backend, dim, offset):
    """4e-7 |log p| + 2e-6 nats at 'highest', next to data and far away, centred or not."""
    n = 30 if backend == "emu" else 120
    y = (cloud(n, dim) + offset).float()
    near = y[:10].double() + 0.02 * cloud(10, dim, 3)
    x = torch.cat([near, cloud(10, dim, 4) + offset, 3 * cloud(5, dim, 5) + offset]).float()
    for h in (0.02, 0.1, 0.5, 2.0, 10.0 * math.sqrt(dim)):
        want = dense(x, y, h)
        got = kde.log_prob(x, y, h).double()
        # log p is rounded to float32 at the end; the sum is what the bound is on
        size = torch.maximum(want.abs(), (want + dim * math.log(h)).abs())
        assert ((got - want).abs() <= 4e-7 * size + 2e-6).all(), (h, (got - want).abs().max())


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="long double is no longer than double here")
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dim", [1, 3, 7, 16, 784, 4096])
def test_float64_is_accurate_from_collapse_to_flat(backend, dim, offset):
    """1e-12 max(1, |log p|), judged by pairwise differences in 64-bit significands."""
    y = cloud(25, dim) + offset
    x = torch.cat([y[:3] + 0.02 * cloud(3, dim, 3), cloud(3, dim, 4) + offset, 3 * cloud(2, dim, 5) + offset])
    wide = x.numpy().astype(np.longdouble)[:, None] - y.numpy().astype(np.longdouble)
    square = (wide * wide).sum(-1)
    for h in (0.02, 0.5, 10.0 * math.sqrt(dim)):
        t = -square / (2 * np.longdouble(h) ** 2)
        top = t.max(1, keepdims=True)
        mean = top[:, 0] + np.log(np.exp(t - top).mean(1))
        want = mean - dim * (np.log(np.longdouble(h)) + np.log(2 * np.pi * np.longdouble(1)) / 2)
        got = kde.log_prob(x, y, h).numpy()
        assert (abs(got - want) <= 1e-12 * np.maximum(1, abs(want))).all(), (h, abs(got - want).max())


@pytest.mark.parametrize("dim", [5, 16, 64])
def test_float32_is_accurate_where_data_repeat(backend, dim):
    """The rounding errors of copies are one: they do not average out in a sum."""
    n, copies = (6, 40) if backend == "emu" else (24, 200)
    y = cloud(n, dim).float().repeat_interleave(copies, 0)
    x = cloud(n, dim, 50).float()
    for h in (0.05 * math.sqrt(dim), 0.1 * math.sqrt(dim)):
        want = torch.logsumexp(-0.5 * (x.double()[:, None] - y[None].double()).square().sum(-1) / h**2, 1)
        off = (kde.logsumexp(x, y, bandwidth=h).double() - want).abs()
        assert (off <= (4e-7 + 2.0**-24) * want.abs() + 2e-6).all(), (h, off.max())  # rounded to float32 at the end


@pytest.mark.parametrize("exclude_self", [False, True])
@pytest.mark.parametrize("kernel", ["epanechnikov", "linear", "cosine"])
def test_float32_is_accurate_near_the_edge_of_a_support(backend, kernel, exclude_self):
    """Where one datum, at almost the bandwidth, makes the sum, 1 - z is all rounding in float32."""
    for dim, h in ((3, 0.52), (4, 0.6), (16, 4.0)):
        y, x = cloud(150, dim, dtype=torch.float32), cloud(150, dim, 3, dtype=torch.float32)
        x = y if exclude_self else x
        outputs = ("log_prob", "score", "effective_sample_size")
        found, want = (
            kde.evaluate(*points, h, kernel=kernel, exclude_self=exclude_self, outputs=outputs)
            for points in ((x, y), (x.double(), y.double()))
        )
        p, q = found["log_prob"].double(), want["log_prob"]
        some = q > -math.inf
        assert some.sum() > 30 and torch.equal(p > -math.inf, some)
        assert ((p - q).abs()[some] <= 4e-7 * q[some].abs() + 2e-6).all()
        torch.testing.assert_close(found["score"].double(), want["score"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(
            found["effective_sample_size"].double(), want["effective_sample_size"], rtol=1e-4, atol=0
        )


@pytest.mark.parametrize("dim", [2, 64, 784])
def test_bound_holds_without_refinement(dim):
    y, x = cloud(200, dim).float(), cloud(50, dim, 1).float()
    for h in (0.1, 1.0, 10.0):
        got, bound = kde.log_prob(x, y, h, precision="high", return_bound=True)
        want = dense(x, y, h)
        assert ((got.double() - want).abs() <= bound + 2.0**-23 * (want.abs() + dim * abs(math.log(h)) + dim)).all()


def test_score_and_posterior_mean_are_those_of_autograd(backend):
    x, y = cloud(6, 3), cloud(9, 3, 1)
    for kernel in kde.KERNELS:
        if kernel == "vmf":
            x, y = (t / t.norm(dim=1, keepdim=True) for t in (x, y))
        leaf = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(kde.log_prob(leaf, y, 2.9, kernel=kernel, nu=2.0).sum(), leaf)
        torch.testing.assert_close(kde.score(x, y, 2.9, kernel=kernel, nu=2.0), want, rtol=1e-11, atol=1e-12)
    sigma = torch.rand(6, dtype=F64) + 0.5
    score = kde.score(x, y, sigma[:, None])
    torch.testing.assert_close(kde.posterior_mean(x, y, sigma), x + sigma[:, None] ** 2 * score, rtol=1e-12, atol=1e-12)


def test_laplacian_is_the_trace_of_the_hessian(backend):
    x, y = cloud(4, 3), cloud(9, 3, 1)
    with fokker.use_backend("reference"):
        hessian = [torch.autograd.functional.hessian(lambda p: kde.log_prob(p[None], y, 0.8)[0], p) for p in x]
    want = torch.stack([h.trace() for h in hessian])
    torch.testing.assert_close(kde.laplacian(x, y, 0.8), want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kde.laplacian(x.float(), y.float(), 0.8).double(), want, rtol=1e-5, atol=1e-5)


def test_effective_sample_size(backend):
    y = cloud(20, 2)
    assert torch.allclose(kde.effective_sample_size(y, y, 1e-4), torch.ones(20, dtype=F64))
    torch.testing.assert_close(kde.effective_sample_size(y, y, 1e6), torch.full((20,), 20.0, dtype=F64))


def test_leave_one_out(backend):
    y = cloud(40, 3)
    got = kde.log_prob(y, y, 0.7, exclude_self=True)
    want = torch.stack([kde.log_prob(y[i : i + 1], torch.cat([y[:i], y[i + 1 :]]), 0.7)[0] for i in range(40)])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    w = torch.rand(40, dtype=F64)
    got = kde.log_prob(y, y, 0.7, exclude_self=True, weights=w)
    keep = [torch.arange(40) != i for i in range(40)]
    want = torch.cat([kde.log_prob(y[i : i + 1], y[k], 0.7, weights=w[k]) for i, k in enumerate(keep)])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert kde.log_prob(y[:1], y[:1], 0.7, exclude_self=True) == -math.inf


def test_leave_one_out_beside_one_heavy_datum(backend):
    """1e20 + 2 - 1e20 is 0 in float64: the others' weight is not to be found by subtraction."""
    y, w = cloud(3, 2), torch.tensor([1.0, 1e20, 2.0], dtype=F64)
    others = kde.log_prob(y[1:2], y[[0, 2]], 0.8, weights=w[[0, 2]])
    found = kde.log_prob(y, y, 0.8, weights=w, exclude_self=True)
    torch.testing.assert_close(found[1:2], others, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("h", [1e-25, 1e25])
def test_bandwidths_beyond_the_range_of_float32(backend, h):
    y, x = cloud(9, 3, dtype=torch.float32), cloud(5, 3, 1, dtype=torch.float32)
    scale = max(h, 1.0)
    near = y[torch.cdist(x, y).argmin(1)] if h < 1 else y.mean(0).expand(5, 3)
    torch.testing.assert_close(kde.posterior_mean(x, y, h), near, rtol=1e-6, atol=1e-6)
    want = kde.log_prob(x.double() * scale, y.double() * scale, h)
    torch.testing.assert_close(kde.log_prob(x * scale, y * scale, h), want.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dim", [2, 4, 9])
@pytest.mark.parametrize("unit", [1e-15, 1e-9, 1e9])
def test_the_unit_of_length_does_not_matter(backend, unit, dim):
    """Of data in metres or nanometres: weights far below one times small offsets do not underflow to nothing."""
    y, w = cloud(60, dim).float(), torch.rand(60, dtype=F64, generator=torch.Generator().manual_seed(2))
    x = cloud(40, dim, 1).float()
    for h in (0.1 * unit, torch.full((40, 1), 0.1 * unit, dtype=F64)):
        a, b = x * unit, y * unit
        logits = -0.5 * (a.double()[:, None] - b.double()).square().sum(-1) / (0.1 * unit) ** 2
        assert logits.amax(1).min() < -70
        mean = torch.softmax(logits + w.log(), 1) @ b.double()
        found = kde.evaluate(a, b, h, weights=w, outputs=("score", "log_prob"))
        torch.testing.assert_close(
            found["score"].double() * unit, (mean - a.double()) / (0.01 * unit), rtol=1e-4, atol=1e-3
        )
        leaf = torch.as_tensor(h, dtype=F64).requires_grad_()
        (slope,) = torch.autograd.grad(kde.log_prob(a, b, leaf, weights=w).sum(), leaf)
        spread = (torch.softmax(logits + w.log(), 1) * -2 * logits).sum(1) - dim
        torch.testing.assert_close(slope.sum() * 0.1 * unit, spread.sum(), rtol=1e-4, atol=0)
        got = kde.posterior_mean(a, b, h if isinstance(h, float) else h[:, 0], weights=w)
        torch.testing.assert_close(got.double() / unit, mean / unit, rtol=0, atol=5e-6)


@pytest.mark.parametrize("sigma", [1e-3, 80.0, 1e6])
def test_denoising_in_float32_is_good_to_the_rounding_of_the_data(backend, sigma):
    """As x + sigma^2 score it would be off by the rounding of x, which is sigma times as large."""
    for dim in (2, 20):
        y = cloud(60, dim, dtype=torch.float32)
        x = y[:9] + sigma * cloud(9, dim, 1, dtype=torch.float32)
        want = kde.posterior_mean(x.double(), y.double(), sigma)
        for found in (
            kde.posterior_mean(x, y, sigma),
            kde.posterior_mean(x, y, torch.full((9,), sigma)),
            kde.KDEState(x, sigma, outputs=("posterior_mean",))
            .update(y[:40])
            .update(y[40:])
            .result()["posterior_mean"],
        ):
            torch.testing.assert_close(found.double(), want, rtol=0, atol=2e-6)


def test_kernel_sum(backend):
    x, y, v = cloud(5, 3), cloud(8, 3, 1), cloud(8, 4, 2)
    u = torch.tensor([1.0, -2.0, 0.0, 3.0, 1.0, 1.0, -1.0, 0.5], dtype=F64)
    k = torch.exp(-0.5 * (x[:, None] - y[None]).square().sum(-1) / 0.9**2)
    torch.testing.assert_close(kde.kernel_sum(x, y, v, 0.9, weights=u), k @ (u[:, None] * v), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kde.kernel_sum(x, y, None, 0.9), k.sum(1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kde.kernel_sum(x, y, None, 0.9, weights=u), k @ u, rtol=1e-12, atol=1e-13)
    for values in (v, None):
        narrow = kde.kernel_sum(x.float(), y.float(), None if values is None else v.float(), 0.9, weights=u.float())
        assert narrow.dtype is torch.float32
        want = kde.kernel_sum(x.float().double(), y.float().double(), None if values is None else v, 0.9, weights=u)
        torch.testing.assert_close(narrow.double(), want, rtol=1e-5, atol=1e-6)
    h = torch.rand(8, dtype=F64) + 0.5
    k = torch.exp(-0.5 * (x[:, None] - y[None]).square().sum(-1) / h**2)
    torch.testing.assert_close(kde.kernel_sum(x, y, v, h), k @ v, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kde.logsumexp(x, y, bandwidth=h), k.sum(1).log(), rtol=1e-12, atol=1e-13)


def test_logsumexp_with_biases(backend):
    x, y, a, b = cloud(5, 3), cloud(8, 3, 1), cloud(5, 1, 2)[:, 0], 30 * cloud(8, 1, 3)[:, 0]
    b[3] = -math.inf
    want = torch.logsumexp(-0.5 * (x[:, None] - y[None]).square().sum(-1) + a[:, None] + b, 1)
    torch.testing.assert_close(kde.logsumexp(x, y, a, b), want, rtol=1e-12, atol=1e-12)


def test_batches_layouts_and_numpy(backend):
    x, y = cloud(24, 3).reshape(2, 4, 3, 3), cloud(36, 3, 1).reshape(4, 9, 3)
    got = kde.log_prob(x, y, torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=F64)[:, None, None])
    for i in range(2):
        for j in range(4):
            want = kde.log_prob(x[i, j].clone(), y[j].clone(), 0.5 + 0.5 * j)
            torch.testing.assert_close(got[i, j], want, rtol=1e-13, atol=1e-13)
    turned = kde.score(x[0, 0].T.contiguous().T, y[0].T.contiguous().T, 1.0)
    torch.testing.assert_close(turned, kde.score(x[0, 0], y[0], 1.0), rtol=0, atol=0)
    array = kde.log_prob(x[0, 0].numpy(), y[0].numpy(), 1.0)
    assert isinstance(array, np.ndarray) and array.dtype == np.float64
    np.testing.assert_array_equal(array, kde.log_prob(x[0, 0], y[0], 1.0).numpy())
    assert kde.log_prob(x[0, 0].half(), y[0].half(), 1.0).dtype == torch.float16


@pytest.mark.parametrize("spread", ["one", "query", "datum"])
def test_laplace_corrected(backend, spread):
    """Against its formula, sum by sum, where it is negative too; streamed; without any weight."""
    d = 3
    x, y, w = 1.6 * cloud(40, d, 1), cloud(60, d), torch.rand(60, dtype=F64)
    h = {"one": 0.8, "query": 0.6 + torch.rand(40, 1, dtype=F64), "datum": 0.6 + torch.rand(60, dtype=F64)}[spread]
    wide = torch.as_tensor(h, dtype=F64)
    z = (x[:, None] - y).square().sum(-1) / wide**2
    kernel = w / w.sum() * torch.exp(-0.5 * z) / (2 * math.pi) ** (d / 2) / wide**d
    want = (kernel * (1 + d / 2 - z / 2)).sum(1)
    got = kde.laplace_corrected(x, y, h, weights=w)
    assert (want < 0).any() and (want > 0).any()
    size = torch.maximum(kernel.sum(1), want.abs())
    assert ((got.value - want).abs() / size).max() < 1e-13
    assert torch.equal(got.sign, want.sign())
    single = kde.laplace_corrected(x.float(), y.float(), h, weights=w)
    assert ((single.value - want).abs() / size).max() < 1e-5
    assert isinstance(kde.laplace_corrected(x.numpy(), y.numpy(), 0.8).value, np.ndarray)
    nothing = kde.laplace_corrected(x, y[:0], 0.8)
    assert (nothing.sign == 0).all() and (nothing.log_abs == -torch.inf).all()
    if spread != "datum":
        state = kde.KDEState(x, h, outputs=("log_prob", "laplace_factor"))
        state.update(y[:25], w[:25]).update(y[25:], w[25:])
        found = state.result()
        torch.testing.assert_close(found["laplace_factor"], want / kernel.sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 16, 100])
def test_fast_float64_keeps_to_its_bound(backend, dim):
    """Sums in float32 about the data's mean, 1e3 deviations from 0, with queries at the mean and far from it."""
    y, x = 1e3 + cloud(300, dim), 1e3 + torch.linspace(0, 3, 60, dtype=F64)[:, None] * cloud(60, dim, 1)
    for h in (0.1 * math.sqrt(dim), math.sqrt(dim)):
        got, bound = kde.log_prob(x, y, h, precision="fast", return_bound=True)
        want = kde.log_prob(x, y, h)
        assert got.dtype is F64 and not torch.equal(got, want)
        assert ((got - want).abs() <= bound + 4e-7 * want.abs() + 2e-6).all()
    names = ("score", "posterior_mean", "effective_sample_size", "nearest")
    fast, exact = (kde.evaluate(x, y, h, outputs=names, precision=p) for p in ("fast", "highest"))
    for name in names:
        torch.testing.assert_close(fast[name], exact[name], rtol=1e-6, atol=2e-5, msg=lambda t, n=name: f"{n}: {t}")
    streamed = kde.KDEState(x, h, outputs=names[:2], precision="fast").update(y[:100]).update(y[100:]).result()
    alone = kde.KDEState(x, h, outputs=names[1:2], precision="fast").update(y[:100]).update(y[100:]).result()
    for found in (streamed, alone, {"posterior_mean": kde.posterior_mean(x, y, h, precision="fast")}):
        assert (found["posterior_mean"] - exact["posterior_mean"]).abs().max() < 2e-5


def test_fast_elsewhere():
    """float32 has nothing faster; the sphere; derivatives; numbers beyond float32's squares stay in float64."""
    x, y = cloud(20, 4, 1), cloud(50, 4)
    single = (kde.log_prob(x.float(), y.float(), 0.8, precision=p) for p in ("fast", "high"))
    assert torch.equal(*single)
    assert kde.log_prob(x.numpy(), y.numpy(), 0.8, precision="fast").dtype == np.float64
    sphere = [torch.nn.functional.normalize(t, dim=1) for t in (x, y)]
    fast, exact = (kde.log_prob(*sphere, 0.5, kernel="vmf", precision=p) for p in ("fast", "high"))
    torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-5)
    slopes = []
    for precision in ("fast", "high"):
        leaves = [t.clone().requires_grad_() for t in (x + 100, y + 100)]
        slopes.append(torch.autograd.grad(kde.log_prob(*leaves, 0.8, precision=precision).sum(), leaves))
    for a, b in zip(*slopes, strict=True):
        assert a.dtype is F64
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for far, h in ((1e30 * y, 1e30), (y, 1e-30), (y, torch.tensor(1e-30, dtype=F64))):
        fast, exact = (kde.log_prob(far[:3], far, h, precision=p) for p in ("fast", "high"))
        assert torch.equal(fast, exact) and exact.isfinite().all()
    laplacians = (kde.evaluate(x, y, 0.8, outputs=("laplacian",), precision=p)["laplacian"] for p in ("fast", "high"))
    assert torch.equal(*laplacians)


def test_laplace_corrected_integrates_to_one():
    x, y = torch.linspace(-9, 9, 4001, dtype=F64)[:, None], cloud(30, 1)
    value = kde.laplace_corrected(x, y, 0.5).value
    assert abs(float(value.sum()) * 18 / 4000 - 1) < 1e-12 and (value < 0).any()


# ---- edges ---------------------------------------------------------------------------------------------------------
def test_nothing_there(backend):
    x, y = cloud(5, 3), cloud(8, 3, 1)
    assert kde.log_prob(x[:0], y, 1.0).shape == (0,) and kde.score(x[:0], y, 1.0).shape == (0, 3)
    assert (kde.log_prob(x, y[:0], 1.0) == -math.inf).all()
    assert (kde.score(x, y[:0], 1.0) == 0).all()
    far = x + 1e3
    for kernel in ("epanechnikov", "tophat", "linear", "cosine"):
        leaf = far.clone().requires_grad_()
        value = kde.log_prob(leaf, y, 1.0, kernel=kernel)
        assert (value == -math.inf).all()
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert (gradient == 0).all()
        assert kde.score(far, y, 1.0, kernel=kernel, outside=math.nan).isnan().all()
        h, w = (torch.ones(size, dtype=F64, requires_grad=True) for size in ((), 8))
        value = kde.log_prob(far, y, h, kernel=kernel, weights=w)
        assert all((g == 0).all() for g in torch.autograd.grad(value.sum(), (h, w)))
        assert (kde.effective_sample_size(far, y, 1.0, kernel=kernel) == 0).all()


def test_far_queries_are_exact(backend):
    y = cloud(8, 3, 1)
    x = cloud(5, 3) + 1e5
    torch.testing.assert_close(kde.log_prob(x, y, 1.0), dense(x, y, 1.0), rtol=1e-13, atol=0)


def test_nan_touches_its_row_only(backend):
    x, y = cloud(5, 3), cloud(8, 3, 1)
    plain = kde.log_prob(x, y, 1.0)
    x[2, 1] = math.nan
    got = kde.log_prob(x, y, 1.0)
    assert got[2].isnan() and torch.equal(got[[0, 1, 3, 4]], plain[[0, 1, 3, 4]])
    y[5, 0] = math.nan
    assert kde.log_prob(x, y, 1.0).isnan().all()


@pytest.mark.parametrize("kernel", ["gaussian", "matern32", "epanechnikov"])
def test_a_weight_of_zero_is_no_datum(backend, kernel):
    x, y, w = cloud(5, 3), cloud(8, 3, 1), torch.rand(8, dtype=F64)
    w[[1, 4]] = 0
    y[4] = x[0]  # the nearest of all, but for its weight
    some = w > 0
    for name in ("log_prob", "score", "effective_sample_size"):
        found = kde.evaluate(x, y, 2.0, kernel=kernel, weights=w, outputs=(name,))[name]
        want = kde.evaluate(x, y[some], 2.0, kernel=kernel, weights=w[some], outputs=(name,))[name]
        torch.testing.assert_close(found, want, rtol=1e-13, atol=1e-13)


def test_single_points_and_duplicates(backend):
    y = cloud(1, 3).repeat(6, 1)
    want = -1.5 * math.log(2 * math.pi)
    assert torch.allclose(kde.log_prob(y, y, 1.0), torch.full((6,), want, dtype=F64), atol=1e-14)
    for kernel in ("exponential", "laplace", "linear"):  # a cusp: 0 by definition
        assert (kde.score(y, y, 1.0, kernel=kernel) == 0).all()
    assert kde.score(y, y, 1.0, kernel="matern32").abs().max() < 1e-20  # smooth: 0 up to the rounding of the centring


def test_bits_do_not_depend_on_threads():
    x, y = cloud(700, 5).float(), cloud(900, 5, 1).float()
    few = x[:3]
    before = torch.get_num_threads()
    try:
        with fokker.use_backend("cpu"):
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append([kde.score(x, y, 1.0), kde.log_prob(few, y.repeat(40, 1), 1.0)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.slow
def test_more_pairs_than_an_int32_holds():
    with fokker.use_backend("cpu"):
        y = torch.linspace(-1, 1, 50_000)[:, None]
        x = torch.linspace(-1, 1, 45_000)[:, None]
        got = kde.log_prob(x, y, 0.1)
        torch.testing.assert_close(got[::9000], kde.log_prob(x[::9000], y, 0.1), rtol=1e-6, atol=1e-6)


# ---- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(3)}, ValueError, "x must have shape"),
        ({"x": torch.zeros(4, 2)}, ValueError, "agree in their last dimension"),
        ({"x": torch.zeros(4, 3, dtype=torch.complex64)}, TypeError, "x must be real"),
        ({"data": torch.zeros(4, 3).to_sparse()}, TypeError, "data must be a dense"),
        ({"bandwidth": 0.0}, ValueError, "bandwidth must be a positive number, got 0.0"),
        ({"bandwidth": math.nan}, ValueError, "bandwidth must be a positive number"),
        ({"bandwidth": np.float32(-1)}, ValueError, "bandwidth must be a positive number, got -1.0"),
        ({"data": np.array([["a"] * 3] * 5)}, TypeError, "data must hold numbers torch has"),
        ({"bandwidth": torch.ones(7)}, ValueError, "bandwidth .7,. does not broadcast"),
        ({"bandwidth": torch.ones(4, 5)}, ValueError, "not along both"),
        ({"weights": torch.ones(4)}, ValueError, "weights must have shape"),
        ({"weights": -torch.ones(5)}, ValueError, "weights must not be negative"),
        ({"weights": torch.zeros(5)}, ValueError, "weights must not all be zero"),
        ({"data": [[1.0, 2.0], [3.0]]}, ValueError, "data must be an array, got rows of several lengths"),
        ({"kernel": "student_t", "nu": "a"}, ValueError, "nu must be a positive number, got 'a'"),
        ({"kernel": "box"}, ValueError, "kernel must be one of gaussian"),
        ({"kernel": "student_t", "nu": 0.0}, ValueError, "nu must be a positive number"),
        ({"precision": "low"}, ValueError, "precision must be one of"),
        ({"exclude_self": True}, ValueError, "as many queries as data, got 4 and 5"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = {"x": torch.zeros(4, 3), "data": torch.zeros(5, 3), "bandwidth": 1.0} | change
    with pytest.raises(error, match=words):
        kde.log_prob(**arguments)


def test_output_names_are_checked():
    with pytest.raises(ValueError, match="outputs must name"):
        kde.evaluate(torch.zeros(4, 3), torch.zeros(5, 3), 1.0, outputs=("density",))
    with pytest.raises(ValueError, match="laplacian need kernel='gaussian'"):
        kde.evaluate(torch.zeros(4, 3), torch.zeros(5, 3), 1.0, outputs=("laplacian",), kernel="laplace")


def test_posterior_mean_names_sigma():
    x = cloud(4, 3)
    with pytest.raises(ValueError, match="sigma must be a positive number, got 0"):
        kde.posterior_mean(x, x, 0)
    with pytest.raises(ValueError, match=r"sigma must be a number or \(..., N=4\), got \(3,\)"):
        kde.posterior_mean(x, x, torch.ones(3))


def test_bad_bandwidth_tensors_give_nan():
    h = torch.tensor([1.0, 0.0, -1.0, math.nan], dtype=F64)[:, None]
    assert kde.log_prob(cloud(4, 3), cloud(5, 3), h).isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "epanechnikov"])
def test_bad_bandwidth_tensors_give_nan_in_every_output(backend, kernel):
    """To a kernel such a row is one outside every support, and -inf or 0 would look like an answer."""
    x, y = cloud(4, 3), cloud(4, 3, 1)
    h = torch.tensor([9.0, 0.0, -1.0, math.nan], dtype=F64)
    for bandwidth, bad in ((h[:, None], [False, True, True, True]), (h, [True] * 4), (h[1], [True] * 4)):
        found = [
            kde.kernel_sum(x, y, None, bandwidth, kernel=kernel),
            kde.kernel_sum(x, y, y, bandwidth, kernel=kernel).sum(-1),
            kde.logsumexp(x, y, bandwidth=bandwidth, kernel=kernel),
            kde.effective_sample_size(x, y, bandwidth, kernel=kernel),
            kde.score(x, y, bandwidth, kernel=kernel).sum(-1),
        ]
        if kernel == "gaussian":
            found.append(kde.evaluate(x, y, bandwidth, outputs=("posterior_mean",))["posterior_mean"].sum(-1))
        for value in found:
            assert value.isnan().tolist() == bad


# ---- gradients -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["one", "query", "datum"])
def test_gradients_of_weights_and_bandwidths(backend, kind):
    x, y, w = cloud(3, 2).requires_grad_(), cloud(4, 2, 1).requires_grad_(), torch.rand(4, dtype=F64).requires_grad_()
    shape = {"one": (), "query": (3, 1), "datum": (4,)}[kind]
    h = (torch.rand(shape, dtype=F64) + 1.1).requires_grad_()

    def density(x, y, h, w):
        return kde.log_prob(x, y, h, weights=w, kernel="student_t", nu=3.0)

    assert gradcheck(density, (x, y, h, w)) and gradgradcheck(density, (x, y, h, w))


def test_gradients_of_the_other_outputs(backend):
    x, y = cloud(3, 2).requires_grad_(), cloud(4, 2, 1).requires_grad_()
    h = torch.tensor(1.2, dtype=F64, requires_grad=True)

    def outputs(x, y, h):
        smooth = [name for name in kde.OUTPUTS if name != "nearest"]
        return tuple(kde.evaluate(x, y, h, outputs=smooth, exclude_self=False).values())

    assert gradcheck(outputs, (x, y, h)) and gradgradcheck(outputs, (x, y, h))


# ---- streams -------------------------------------------------------------------------------------------------------
def test_streams_equal_one_pass(backend, tmp_path):
    x, y, w = cloud(5, 3), cloud(70, 3, 1), torch.rand(70, dtype=F64)
    want = kde.evaluate(x, y, 0.7, outputs=kde.OUTPUTS, weights=w)
    halves = [kde.KDEState(x, 0.7, outputs=kde.OUTPUTS) for _ in range(2)]
    for k, half in enumerate(halves):
        part = slice(35 * k, 35 * k + 35)
        half.update_from(zip(y[part].split(9), w[part].split(9), strict=True))
    got = halves[0].merge(halves[1]).result()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12)
    stored = np.memmap(tmp_path / "data", dtype=np.float64, mode="w+", shape=(70, 3))
    stored[:] = y.numpy()
    state = kde.KDEState(x, 0.7).update_from(kde.chunks(stored, 16), show=True)
    torch.testing.assert_close(state.result()["log_prob"], kde.log_prob(x, y, 0.7), rtol=1e-12, atol=1e-12)


def test_states_must_match():
    x = cloud(5, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(N, d\), got \(1, 5, 3\)"):
        kde.KDEState(x[None], 0.7)
    a = kde.KDEState(x, 0.7)
    for other in (kde.KDEState(cloud(6, 3), 0.7), kde.KDEState(x + 1, 0.7), kde.KDEState(x, 0.8)):
        with pytest.raises(ValueError, match="same queries, bandwidth"):
            a.merge(other)
    assert a.merge(kde.KDEState(x.clone(), torch.tensor(0.7, dtype=F64))) is a
    assert (a.result()["log_prob"] == -math.inf).all()


def test_arrow_batches():
    pyarrow = pytest.importorskip("pyarrow")
    x, y = cloud(5, 3), cloud(40, 3, 1)
    table = pyarrow.table({str(k): y[:, k].numpy() for k in range(3)})
    got = kde.KDEState(x, 0.7).update_from(table.to_batches(max_chunksize=7)).result()["log_prob"]
    torch.testing.assert_close(got, kde.log_prob(x, y, 0.7), rtol=1e-12, atol=1e-12)
    # a column of vectors, in slices; nulls are not numbers
    vectors = pyarrow.table({"v": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(y.flatten().numpy()), 3)})
    for parts in ([vectors], vectors.to_batches(max_chunksize=7), [vectors[:11], vectors[11:]]):
        got = kde.KDEState(x, 0.7).update_from(parts).result()["log_prob"]
        torch.testing.assert_close(got, kde.log_prob(x, y, 0.7), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="no nulls, got 1"):
        kde.KDEState(x, 0.7).update_from([pyarrow.table({"a": [1.0, 2.0], "b": [1.0, None], "c": [1.0, 2.0]})])


def test_a_progress_bar_does_not_read_ahead():
    x, seen = cloud(5, 3), []

    class State(kde.KDEState):
        def update(self, data, weights=None):
            seen.append(len(read))
            return super().update(data, weights)

    read = []

    def chunks():
        for k in range(4):
            read.append(k)
            yield cloud(6, 3, k)

    State(x, 0.7).update_from(chunks(), show=True)
    assert seen == [1, 2, 3, 4]


def test_arrays_that_torch_cannot_hold(tmp_path):
    """Stored read-only, reversed, or lists: read all the same, without a warning."""
    x, y = cloud(5, 3).numpy(), cloud(20, 3, 1).numpy()
    stored = np.memmap(tmp_path / "data", dtype=np.float64, mode="w+", shape=y.shape)
    stored[:] = y
    stored = np.memmap(tmp_path / "data", dtype=np.float64, mode="r", shape=y.shape)
    want = kde.log_prob(x, y, 0.7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = (
            kde.log_prob(x, stored, 0.7),
            kde.log_prob(x, y[::-1], 0.7),
            kde.KDEState(x, 0.7).update(stored).result()["log_prob"],
        )
        listed = kde.KDEState(x.tolist(), 0.7).update(y.tolist()).result()["log_prob"]
    swapped = kde.log_prob(x.astype(">f8"), y.astype(">f8"), np.array(0.7, ">f8"))  # as FITS stores them
    for value in (*found, listed, swapped):
        np.testing.assert_allclose(value, want, rtol=1e-12)
    with pytest.raises(TypeError, match="x must hold numbers torch has, got dtype"):
        kde.log_prob(x.astype(np.longdouble), y, 0.7)


@pytest.mark.parametrize(
    "f",
    [
        lambda x, y, c: kde.log_prob(x, y, c),
        lambda x, y, c: kde.posterior_mean(x, y, c),
        lambda x, y, c: kde.log_prob(x, y, 0.5, kernel="student_t", nu=c),
        lambda x, y, c: mixture.score(x, mixture.Mixture(y, torch.ones(len(y)), None, "isotropic"), alpha=c, sigma=c),
        lambda x, y, c: pairwise.mmd2(x, y, bandwidth=c),
        lambda x, y, c: pairwise.sinkhorn(x, y, epsilon=c, iterations=3, tolerance=0.0).value,
    ],
    ids=["log_prob", "posterior_mean", "nu", "mixture", "mmd2", "sinkhorn"],
)
def test_numbers_that_change_under_compile(f):
    """They become symbols, of which Dynamo can ask comparisons only."""
    x, y = torch.randn(6, 3), torch.randn(5, 3)
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="eager")
    for c in (0.5, 0.75, 1.25):
        torch.testing.assert_close(compiled(x, y, c), f(x, y, c))
