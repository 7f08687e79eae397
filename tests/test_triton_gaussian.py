"""Gaussian mixtures and sums of distances in Triton, interpreted or on a GPU: against the reference, edges, gradients.

As tests/test_triton.py: without TRITON_INTERPRET=1 and without a GPU, one slow test runs this file in its own process.
"""

import pytest
import torch
from interpreting import DEVICE, IN_A_PROCESS, RUNS, run_in_a_process
from test_gaussian_levels import arguments as levels
from test_gaussian_ops import arguments

import fokker
from fokker import mixture, pairwise
from fokker._gaussian_levels import gaussian_levels
from fokker._gaussian_ops import gaussian_joint, gaussian_log_sum, gaussian_moments, gaussian_pull
from fokker._pairwise_tiles import pair_distances

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
F32, F64 = torch.float32, torch.float64
INF, NAN = torch.inf, torch.nan


@pytest.mark.slow
@IN_A_PROCESS
def test_interpreted_in_a_process():
    run_in_a_process(__file__)


def on(backend, call, *args):
    """A call's results with tensors on the backend's device, back from there."""
    device = DEVICE if backend == "triton" else "cpu"
    with fokker.use_backend(backend):
        out = call(*(a.to(device) if isinstance(a, torch.Tensor) else a for a in args))
    return [o.cpu() for o in (out if isinstance(out, tuple) else (out,))]


def agree(call, *args, bound):
    """By Triton as by the reference in float64, beside the largest entry of each result; dtypes are the arguments'."""
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    for got, want in zip(on("triton", call, *args), on("reference", call, *wide), strict=True):
        assert got.is_contiguous() and got.dtype == args[0].dtype
        size = float(want[want.isfinite()].abs().max()) if want.isfinite().any() else 1.0
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound * max(1.0, size))


# ---- Gaussian mixtures -----------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize(("dtype", "bound"), [(F64, 1e-13), (F32, 1e-6)], ids=["float64", "float32"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("kind", ["diag", "dense", "triangular"])
def test_equals_the_reference(kind, shared, dtype, bound):
    """More queries than a block, components than a tile, columns than a product; one query, one dimension."""
    for (n, d), k in {(70, 17): 2, (3, 1): 20, (1, 35): 1}.items():
        (x, mean, root, bias), triangular = arguments(n, k, d, kind, shared, dtype)
        weight = torch.rand(k, n, dtype=dtype)
        weight[:, ::3] = 0.0
        agree(gaussian_log_sum, x, mean, root, bias, triangular, bound=bound)
        agree(gaussian_joint, x, mean, root, bias, triangular, False, bound=bound)
        agree(gaussian_pull, weight, x, mean, root, torch.randn(k, d, dtype=dtype), bound=bound)
    shares = gaussian_joint(x, mean, root, bias, triangular, True)[1]
    torch.testing.assert_close(shares, torch.ones_like(shares))  # of one component


@RUNS
@pytest.mark.parametrize("kind", ["isotropic", "diag"])
def test_levels_of_the_queries_own(kind):
    """More queries than a block, components and coordinates than a tile; one level, one covariance; a NaN; no noise."""
    for (n, d, k), shared in {(70, 5, 20): False, (3, 17, 1): True}.items():
        for dtype, bound in ((F64, 1e-12), (F32, 2e-5)):
            x, alpha, noise, *rest = levels(kind, n, d, k, shared, one=k == 1, dtype=dtype)
            for outputs in (15, 2) if dtype is F64 else (15,):
                agree(gaussian_levels, x, alpha, noise + 0.5, *rest, outputs, bound=bound)
    x, alpha, noise, bias, mean, variance, *none = levels(kind, 6, 3, 2)
    x[2, 1] = NAN
    noise[:2] = variance[:] = 0.0
    found = on("triton", gaussian_levels, x, alpha, noise, bias, mean, variance, *none, 7)
    for t in (*found[:3], found[3].mT):
        assert t[:3].isnan().all() if t is not found[1] else t[:2].isnan().all()
        assert t[3:].isfinite().all()


@RUNS
@pytest.mark.parametrize("triangular", [False, True])
def test_more_rows_than_a_block(triangular):
    (x, mean, root, bias), _ = arguments(3, 2, 70, "triangular" if triangular else "dense", False)
    agree(gaussian_joint, x, mean, root, bias, triangular, True, bound=1e-13)
    weight, tall = torch.rand(2, 3, dtype=F64), torch.randn(1, 67, 70, dtype=F64)
    agree(gaussian_pull, weight, x, mean, tall, None, bound=1e-13)


@RUNS
def test_inner_products_are_not_tf32():
    """float32 far from the origin: differences are taken first, and products keep 24 bits (tf32: 5e-4 here)."""
    (x, mean, root, bias), _ = arguments(40, 3, 24, "dense", False, F32)
    agree(gaussian_joint, x + 100, mean + 100, root, bias, False, False, bound=2e-6)


@RUNS
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_moments_by_parts(dtype, monkeypatch):
    """Parts whose length is not a block's give the same sums."""
    from fokker.triton_kernels import gaussian

    (x, mean, _, _), _ = arguments(150, 3, 9, "diag", False, dtype)
    weight = torch.rand(3, 150, dtype=dtype)
    weight[1] = 0.0
    for part in (gaussian.QUERIES_A_PART, 40):
        monkeypatch.setattr(gaussian, "QUERIES_A_PART", part)
        agree(gaussian_moments, weight, x, mean, False, bound=1e-14 if dtype is F64 else 1e-7)
    agree(gaussian_moments, weight, x, mean, True, bound=1e-13 if dtype is F64 else 1e-6)


@RUNS
@pytest.mark.parametrize("kind", ["diag", "triangular"])
def test_rows_that_do_not_count(kind):
    """A NaN touches its own query, and none whose weight is 0; with all weights 0 the density is -inf, shares 0."""
    (x, mean, root, bias), triangular = arguments(20, 3, 2, kind, False)
    x[7] = NAN
    _, shares = on("triton", gaussian_joint, x, mean, root, bias, triangular, True)
    assert shares[:, 7].isnan().all() and shares.isnan().sum() == 3
    weight = shares.nan_to_num()
    (pulled,) = on("triton", gaussian_pull, weight, x, mean, root, None)
    assert (pulled[7] == 0).all() and pulled.isfinite().all()
    assert all(m.isfinite().all() for m in on("triton", gaussian_moments, weight, x, mean, False))
    log_sum, shares = on("triton", gaussian_joint, x[:5], mean, root, torch.full_like(bias, -INF), triangular, True)
    assert (log_sum == -INF).all() and (shares == 0).all()
    assert on("triton", gaussian_log_sum, x[:0], mean, root, bias, triangular)[0].shape == (0,)
    assert not any(m.any() for m in on("triton", gaussian_moments, weight[:, :0], x[:0], mean, False))


@RUNS
@pytest.mark.parametrize("kind", ["diag", "full"])
def test_public_functions_and_their_gradients(kind):
    found = {}
    for backend in ("triton", "reference"):
        (x, means, root, bias), _ = arguments(4, 2, 3, "dense", False)
        covariance = root @ root.mT + torch.eye(3, dtype=F64)
        covariance = covariance if kind == "full" else covariance.diagonal(dim1=1, dim2=2)
        leaves = [t.to(DEVICE).clone().requires_grad_() for t in (x, means, covariance, bias.exp())]
        with fokker.use_backend(backend):
            m = mixture.Mixture(*leaves[1:], kind)
            value = mixture.evaluate(leaves[0], m, outputs=tuple(mixture.OUTPUTS), alpha=0.8, sigma=0.6)
            total = sum((v**3).sum() for v in value.values())
            first = torch.autograd.grad(total, leaves, create_graph=True)
            second = torch.autograd.grad(sum((t**2).sum() for t in first), leaves)
        found[backend] = [*value.values(), *first, *second]
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10 * float(want.detach().abs().max()))


# ---- sums of distances -----------------------------------------------------------------------------------------------
@RUNS
@pytest.mark.parametrize("slope", [False, True])
def test_distances_of_any_size(slope):
    """Lengths from the square root of the least number to that of the largest; equal points; tails of both blocks."""
    for batch, n, m, d in ((1, 1, 1, 1), (2, 70, 5, 2), (1, 3, 40, 17)):
        x, y = torch.randn(batch, n, d, dtype=F64), torch.randn(batch, m, d, dtype=F64)
        y[:, 0] = x[:, 0]  # exactly: no length, no direction
        weight = torch.rand(batch, m, dtype=F64)
        for size in (1e-150, 1.0, 1e153):
            got, want = (on(b, pair_distances, size * x, size * y, weight, slope) for b in ("triton", "reference"))
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14 * (size if a.dim() == 2 else 1.0))
    x[0, 1, 4], x[0, 2, 0] = NAN, INF
    total, *rest = on("triton", pair_distances, x, y, weight, slope)
    assert total[0, 0].isfinite() and total[0, 1].isnan() and total[0, 2] == INF
    assert not slope or (rest[0][0, 0].isfinite().all() and rest[0][0, 1].isnan().all())
    nothing = on("triton", pair_distances, x, y[:, :0], weight[:, :0], slope)
    assert not any(t.any() for t in nothing) and nothing[0].shape == (1, 3)


@RUNS
def test_gradients_of_distances():
    found = {}
    for backend in ("triton", "reference"):
        g = torch.Generator().manual_seed(5)
        x, y, w = (torch.randn(2, *s, generator=g, dtype=F64).to(DEVICE) for s in ((5, 3), (6, 3), (6,)))
        leaves = [x.requires_grad_(), y.requires_grad_(), w.abs().requires_grad_()]
        with fokker.use_backend(backend):
            value = pairwise.energy_distance(leaves[0], leaves[1], y_weights=leaves[2])
            first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum((t**2).sum() for t in first), leaves)
        found[backend] = [value, *first, *second]
    for got, want in zip(*found.values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
