"""fokker.pairwise.sinkhorn against a dense loop, exact transport, closed forms, and finite differences."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

import fokker
from fokker import pairwise
from fokker.reference import pairwise as reference


def cloud(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


X, Y = cloud(2, 8, 3), cloud(2, 10, 3, seed=4) + 0.5
A = torch.rand(2, 8, generator=torch.Generator().manual_seed(1)).double() + 0.1
B = torch.linspace(0.2, 1.5, 10).double()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("epsilon", [2.0, 0.3])
def test_the_dense_loop(epsilon, dtype):
    x, y = X.to(dtype), Y.to(dtype)
    got = pairwise.sinkhorn(x, y, epsilon=epsilon, x_weights=A, y_weights=B, iterations=30, tolerance=0.0)
    b = (B / B.sum()).expand(2, 10)
    value, f, g = reference.sinkhorn(x.double(), y.double(), A / A.sum(-1, keepdim=True), b, epsilon, 30)
    assert got.iterations == 30
    for found, want in ((got.value, value), (got.x_potential, f), (got.y_potential, g)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_plan_has_the_marginals_and_the_cost():
    e = 0.4
    r = pairwise.sinkhorn(X, Y, epsilon=e, x_weights=A, y_weights=B, tolerance=1e-12)
    a, b = A / A.sum(-1, keepdim=True), B / B.sum()
    cost = 0.5 * torch.cdist(X, Y).square()
    plan = a[..., None] * b * torch.exp((r.x_potential[..., None] + r.y_potential[:, None] - cost) / e)
    torch.testing.assert_close(plan.sum(-1), a, rtol=1e-11, atol=0)
    torch.testing.assert_close(plan.sum(-2), b.expand(2, 10), rtol=1e-9, atol=0)
    relative_entropy = (plan * torch.log(plan / (a[..., None] * b))).sum((-2, -1))
    torch.testing.assert_close(r.value, (plan * cost).sum((-2, -1)) + e * relative_entropy, rtol=1e-10, atol=0)
    assert float(r.error.max()) < 1e-12


def test_one_point_and_large_epsilon():
    one = torch.zeros(1, 2, dtype=torch.float64)
    r = pairwise.sinkhorn(one, one + 3.0, epsilon=0.01)
    assert float(r.value) == pytest.approx(9.0, rel=1e-13)
    flat = pairwise.sinkhorn(X, Y, epsilon=1e7).value  # the product plan
    torch.testing.assert_close(flat, 0.5 * torch.cdist(X, Y).square().mean((-2, -1)), rtol=1e-6, atol=0)
    # a point of no weight might as well not be there
    with_zero = pairwise.sinkhorn(X, Y, epsilon=0.5, x_weights=[1.0] * 7 + [0.0]).value
    torch.testing.assert_close(with_zero, pairwise.sinkhorn(X[:, :7], Y, epsilon=0.5).value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("scaling", [None, 0.7])
def test_small_epsilon_is_exact_transport(scaling):
    x, y = X[0], Y[0, :8]
    cost = 0.5 * torch.cdist(x, y).square().numpy()
    exact = cost[linear_sum_assignment(cost)].mean()
    e = 0.2
    r = pairwise.sinkhorn(x, y, epsilon=e, scaling=scaling, tolerance=1e-7)
    # the entropy of a plan of 8 x 8 is at most log 8 beyond that of the product
    assert exact - 1e-7 <= float(r.value) <= exact + e * math.log(8) + 1e-7
    assert float(r.error) < 1e-7


def test_scaling_saves_iterations():
    x, y = cloud(60, 2), cloud(60, 2, seed=8) + 10
    plain, scaled = (pairwise.sinkhorn(x, y, epsilon=0.03, scaling=s, tolerance=1e-2) for s in (None, 0.7))
    assert float(plain.value) == pytest.approx(float(scaled.value), rel=1e-4)
    assert 2 * scaled.iterations < plain.iterations


def test_divergence():
    e = 0.5
    plain = pairwise.sinkhorn(X, Y, epsilon=e, tolerance=1e-12).value
    selves = [pairwise.sinkhorn(t, t, epsilon=e, iterations=2000, tolerance=1e-12).value for t in (X, Y)]
    got = pairwise.sinkhorn(X, Y, epsilon=e, debias=True, tolerance=1e-12)
    torch.testing.assert_close(got.value, plain - 0.5 * (selves[0] + selves[1]), rtol=1e-9, atol=1e-10)
    assert float(got.value.min()) > 0
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    moved = pairwise.sinkhorn(X, X + shift, epsilon=e, debias=True, iterations=3000)
    torch.testing.assert_close(
        moved.value, torch.full((2,), 0.5 * float(shift.square().sum())).double(), rtol=1e-7, atol=0
    )
    same = pairwise.sinkhorn(X, X, epsilon=e, debias=True, iterations=3000)
    assert float(same.value.abs().max()) < 1e-8


def test_gaussians_have_the_closed_form():
    """Samples against the entropic cost of two normal laws (Janati et al. 2020), d = 1, to the sampling error.

    cost = m^2 / 2 + (s^2 + t^2) / 2 - (k - e) / 2 + e / 2 log((k + e) / 2e) with k = sqrt(4 s^2 t^2 + e^2), for C =
    |x - y|^2 / 2. Quantiles stand for the laws, so that the error is one of discretisation.
    """
    n, m, s, t, e = 400, 1.5, 1.0, 0.6, 0.5
    grid = torch.special.ndtri((torch.arange(n).double() + 0.5) / n)[:, None]
    got = pairwise.sinkhorn(s * grid, m + t * grid, epsilon=e, tolerance=1e-6)
    k = math.sqrt(4 * s * s * t * t + e * e)
    want = m * m / 2 + (s * s + t * t) / 2 - (k - e) / 2 + e / 2 * math.log((k + e) / (2 * e))
    assert float(got.value) == pytest.approx(want, rel=3e-3)


# ---- gradients ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("debias", [False, True])
def test_envelope_gradient(debias):
    def value(x, y, a, b, e):
        r = pairwise.sinkhorn(
            x, y, epsilon=e, x_weights=a, y_weights=b, debias=debias, iterations=3000, tolerance=1e-13
        )
        return r.value

    x, y, a, b = X[0, :4, :2], Y[0, :5, :2], A[0, :4], B[:5]
    e = torch.tensor(2.0, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, y, a, b, e)]
    assert torch.autograd.gradcheck(value, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)


def test_envelope_gradient_is_the_unrolled_one_at_convergence():
    inputs = [t.clone().requires_grad_() for t in (X, Y)]
    got = torch.autograd.grad(pairwise.sinkhorn(*inputs, epsilon=1.5, tolerance=1e-13).value.sum(), inputs)
    a, b = torch.full((2, 8), 1 / 8, dtype=torch.float64), torch.full((2, 10), 0.1, dtype=torch.float64)
    want = torch.autograd.grad(reference.sinkhorn(*inputs, a, b, 1.5, 300)[0].sum(), inputs)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_second_gradient_is_an_error():
    x = X.clone().requires_grad_()
    value = pairwise.sinkhorn(x, Y, epsilon=0.6).value.sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivative only"):
        torch.autograd.grad(slope.sum(), x)


# ---- edges ----------------------------------------------------------------------------------------------------------
def test_numpy_nan_and_broadcast():
    r = pairwise.sinkhorn(X.numpy(), Y[0].numpy(), epsilon=1.0)
    assert isinstance(r.value, np.ndarray) and r.value.shape == (2,) and r.x_potential.shape == (2, 8)
    x = X.clone()
    x[1, 0, 0] = math.nan
    assert pairwise.sinkhorn(x, Y, epsilon=1.0, iterations=5).value.isnan().tolist() == [False, True]
    far = pairwise.sinkhorn(X, Y + 1e4, epsilon=1e-3, iterations=3)  # costs of 1e8, exponents of 1e11
    assert bool(far.value.isfinite().all())


def test_epsilon_below_rounding_does_not_claim_to_have_converged():
    """At 1e-20 the potentials are fixed after a few steps, far from the optimum."""
    found = pairwise.sinkhorn(X, Y[:, :8], epsilon=1e-20, iterations=30)
    assert found.iterations == 30 and (found.error == math.inf).all()
    exact = pairwise.sinkhorn(X, Y[:, :8], epsilon=1e-20, iterations=2000, scaling=0.95).value
    for k in range(2):
        cost = 0.5 * torch.cdist(X[k], Y[k, :8]).square().numpy()
        assert float(exact[k]) == pytest.approx(cost[linear_sum_assignment(cost)].mean(), rel=1e-12)


def test_compile_fullgraph():
    x, y = X[0], Y[0]
    f = lambda x, y: pairwise.sinkhorn(x, y, epsilon=0.5, iterations=1, tolerance=0.0).value  # noqa: E731
    torch.compiler.reset()
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x, y)
    torch.testing.assert_close(got, f(x, y), rtol=1e-12, atol=1e-12)


def test_backends_agree():
    with fokker.use_backend("reference"):
        want = pairwise.sinkhorn(X, Y, epsilon=0.5, iterations=200)
    got = pairwise.sinkhorn(X, Y, epsilon=0.5, iterations=200, tolerance=0.0)
    torch.testing.assert_close(got.value, want.value, rtol=1e-12, atol=0)
    assert (want.error == 0).logical_or(want.error < 1e-9).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be a positive number, got 0.0"),
        ({"epsilon": math.nan}, "epsilon must be a positive number"),
        ({"epsilon": torch.ones(2)}, "epsilon must be a number or a 0-d tensor"),
        ({"epsilon": 1.0, "iterations": 0}, "iterations must be at least 1"),
        ({"epsilon": 1.0, "scaling": 1.0}, "scaling must be in"),
        ({"epsilon": 1.0, "x_weights": -A}, "x_weights must not be negative"),
        ({"epsilon": 1.0, "y_weights": B[:4]}, "y_weights must have shape"),
    ],
)
def test_errors_name_the_argument(settings, message):
    with pytest.raises(ValueError, match=message):
        pairwise.sinkhorn(X, Y, **settings)


def test_empty_cloud():
    with pytest.raises(ValueError, match="y must hold at least 1 point"):
        pairwise.sinkhorn(X, Y[:, :0], epsilon=1.0)
