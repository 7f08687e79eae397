"""fokker.pairwise: first and second gradients, NaN, small and odd inputs, errors."""

import math

import numpy as np
import pytest
import torch
from pairwise_calls import CALLS, A, B, X, Y

import fokker
from fokker import _native, pairwise
from fokker._pairwise_tiles import pair_distances

# ---- gradients ------------------------------------------------------------------------------------------------------
SMOOTH = [
    "mmd2_ladder", "mmd2_weights", "mmd2_cauchy", "multi_population", "energy_weights", "distance_correlation",
    "joint_unbiased", "energy_score_weights", "vendi_1.0", "vendi_2_student_t", "characteristic",
]  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_second_gradient(name):
    x, y = X[:, :, :3].clone().requires_grad_(), Y[:, :, :3].clone().requires_grad_()
    if name == "characteristic":
        x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    inputs = (x,) if name.startswith("vendi") else (x, y)

    def f(*t):
        return CALLS[name](t[0], y if len(t) == 1 else t[1])

    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(f, inputs, fast_mode=True)


def test_gradients_in_weights_and_bandwidth():
    x, y = X[0, :5, :2], Y[0, :6, :2]
    a, b = A[0, :5].clone().requires_grad_(), (B[:6] + 0.1).clone().requires_grad_()
    h = torch.tensor([1.4, 0.6], dtype=torch.float64, requires_grad=True)
    observation = torch.tensor(0.2, dtype=torch.float64)
    for f, inputs in {
        lambda a, b, h: pairwise.mmd2(x, y, bandwidth=h, estimator="unbiased", x_weights=a, y_weights=b): (a, b, h),
        lambda a, b: pairwise.energy_distance(x, y, estimator="unbiased", x_weights=a, y_weights=b): (a, b),
        lambda a, b: pairwise.energy_distance(x[:, :1], y[:, :1], estimator="unbiased", x_weights=a, y_weights=b): (
            a,
            b,
        ),
        lambda a: pairwise.crps(x[:, 0], observation, weights=a): (a,),
        lambda a: pairwise.energy_score(x, y[0], weights=a): (a,),
    }.items():
        assert torch.autograd.gradcheck(f, inputs)


def test_a_third_gradient_is_an_error():
    x = X.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pairwise.energy_distance(x, Y).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(bend.sum(), x)


def test_equal_points_have_finite_gradients():
    x = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    for f in (
        lambda t: pairwise.energy_distance(t, t + 0.0),
        lambda t: pairwise.mmd2(t, t + 0.0, bandwidth=1.0, kernel="exponential"),
        lambda t: pairwise.distance_correlation(t, t + 0.0),
        lambda t: pairwise.energy_score(t, t[0]),
        lambda t: pairwise.alignment(t, t + 0.0, alpha=1.0),
    ):
        (slope,) = torch.autograd.grad(f(x), x)
        assert torch.equal(slope, torch.zeros_like(x))


# ---- edges ----------------------------------------------------------------------------------------------------------
def test_unbiased_beside_one_heavy_point():
    """1 - sum w^2 would leave 4 digits of the weight of the other pairs."""
    w = torch.tensor([1.0, 1e-12, 2e-12], dtype=torch.float64)
    x = X[0, :3]
    k = torch.exp(-0.5 * torch.cdist(x, x).square())
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    mass = w[pairs[:, 0]] * w[pairs[:, 1]]
    between = w / w.sum() @ torch.exp(-0.5 * torch.cdist(x, Y[0]).square()).mean(1)
    within = (mass * k[pairs[:, 0], pairs[:, 1]]).sum() / mass.sum()
    other = torch.exp(-0.5 * torch.cdist(Y[0], Y[0]).square())
    want = within + (other.sum() - 11) / 110 - 2 * between
    got = pairwise.mmd2(x, Y[0], bandwidth=1.0, estimator="unbiased", x_weights=w)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_nan_stays_in_its_batch():
    x = X.clone()
    x[1, 4, 0] = math.nan
    for name in (
        "mmd2_laplace",
        "energy",
        "energy_1d",
        "joint",
        "crps_fair",
        "energy_score",
        "uniformity",
        "vendi_0.5",
        "vendi_1.0",
        "vendi_2.0",
        "vendi_inf",
        "characteristic",
    ):
        assert CALLS[name](x, Y).isnan().tolist() == [False, True, False], name


def test_one_point_halves_broadcast_and_numpy():
    one = torch.zeros(1, 2, dtype=torch.float64)
    assert float(pairwise.mmd2(one, one + 3.0, bandwidth=0.1)) == 2.0
    assert float(pairwise.energy_distance(one, one + 3.0)) == pytest.approx(2 * math.sqrt(18.0))
    assert float(pairwise.vendi_score(one + 1.0)) == pytest.approx(1.0)
    assert float(pairwise.distance_covariance(one, one)) == 0.0
    assert pairwise.mmd2(X[0], Y).shape == (3,)
    half = pairwise.energy_distance(X.bfloat16(), Y.bfloat16())
    assert half.dtype == torch.bfloat16
    rounded = pairwise.energy_distance(X.bfloat16().double(), Y.bfloat16().double())
    torch.testing.assert_close(half.double(), rounded, rtol=2**-8, atol=0)
    assert isinstance(pairwise.mmd2(X.numpy(), Y.numpy()), np.ndarray)
    assert pairwise.distance_correlation(X.half(), X.half()).dtype == torch.float16


ERRORS = [
    (lambda: pairwise.mmd2(X, Y[..., :2]), "x .*and y .*last dimension"),
    (lambda: pairwise.mmd2(X[:, :0], Y), "x must hold at least 1 point"),
    (lambda: pairwise.mmd2(X[:, :1], Y, estimator="unbiased"), "x must hold at least 2 point"),
    (lambda: pairwise.mmd2(X, Y, kernel="tophat"), "kernel must be one of"),
    (lambda: pairwise.mmd2(X, Y, estimator="u"), "estimator must be one of biased, unbiased, got 'u'"),
    (lambda: pairwise.bandwidth_ladder(1.0, 0), "count must be an integer >= 1, got 0"),
    (lambda: pairwise.mmd2(X, Y, bandwidth=0.0), "bandwidth must be a positive number, got 0.0"),
    (lambda: pairwise.mmd2(X, Y, bandwidth=[]), "at least one number"),
    (lambda: pairwise.mmd2(X, Y, bandwidth="mean"), "bandwidth must be one of median"),
    (lambda: pairwise.mmd2(X, Y, x_weights=-A), "x_weights must not be negative"),
    (lambda: pairwise.mmd2(X, Y, y_weights=0 * B), "y_weights must not all be zero"),
    (lambda: pairwise.mmd2(X, Y, y_weights=B[:3]), "y_weights must have shape"),
    (lambda: pairwise.mmd2(X[:2], Y), "batches of x and y do not broadcast"),
    (lambda: pairwise.multi_population_objective(X, Y), "as many points, got 9 and 11"),
    (lambda: pairwise.energy_distance(X[0, :, 0], Y), r"x must have shape \(..., N, d\)"),
    (lambda: pairwise.distance_covariance(X, Y), "y must hold one point for each of x"),
    (lambda: pairwise.distance_covariance(X, X, estimator="unbiased"), "needs squared=True"),
    (lambda: pairwise.distance_covariance(X[:, :3], X[:, :3], estimator="unbiased", squared=True), "at least 4 points"),
    (lambda: pairwise.joint_distance_covariance(X), "two or more, got 1"),
    (lambda: pairwise.crps(X[..., :1, 0], Y[:, 0, 0]), "needs at least 2 member"),
    (lambda: pairwise.crps(X[..., 0], Y[:2, 0, 0]), "do not broadcast"),
    (lambda: pairwise.crps(X[..., 0], Y[:, 0, 0], alpha=1.5), "alpha must be in"),
    (lambda: pairwise.energy_score(X, Y[:, 0, :2]), "energy_score: wants"),
    (lambda: pairwise.uniformity(X[:, :1]), "at least 2 point"),
    (lambda: pairwise.uniformity(X, t=-1.0), "t must be a positive number"),
    (lambda: pairwise.alignment(X, Y), "one shape"),
    (lambda: pairwise.vendi_score(X, order=0.0), "order must be positive"),
    (lambda: pairwise.characteristic_discrepancy(X, Y, frequencies=torch.ones(3, 2)), "frequencies must have shape"),
    (lambda: pairwise.characteristic_discrepancy(X, Y, frequency_weights=[1.0]), "belong to given frequencies"),
    (lambda: pairwise.cmixup_sample([1.0], 1.0), "N >= 2"),
    (lambda: pairwise.cmixup_sample([1.0, math.nan], 1.0), "labels must be finite"),
    (lambda: pairwise.cmixup_sample([1.0, 2.0], 1.0, rows=[2]), "rows must be in"),
    (lambda: pairwise.nadaraya_watson(X, Y, Y[:, :3], 1.0), "values must have shape"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_wrong_types():
    with pytest.raises(TypeError, match="y must be real"):
        pairwise.energy_distance(X, Y.to(torch.complex128))


# ---- the kernel of distances ----------------------------------------------------------------------------------------
def _distances(backend, x, y, w):
    with fokker.use_backend(backend):
        return pair_distances(x, y, w, True)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "emu"])
def test_distances_of_any_size(isa):
    """Lengths from the square root of the least number to that of the largest; equal points; rows beside a tile."""
    backend, before = "emu" if isa == "emu" else "cpu", _native.cpu.isa()
    if isa == "emu" and _native.emu is None:
        pytest.skip("the emulator is not built")
    try:
        if isa != "emu":
            _native.cpu.set_isa(isa)
    except ValueError:
        pytest.skip(f"this processor has no {isa}")
    try:
        for n, m, d in ((1, 1, 1), (33, 5, 2), (40, 9, 17)):
            g = torch.Generator().manual_seed(n)
            x, y = (torch.randn(2, k, d, generator=g, dtype=torch.float64) for k in (n, m))
            for size in (1e-150, 1.0, 1e153):
                w = torch.rand(2, m, generator=g, dtype=torch.float64)
                y[:, 0] = x[:, 0]  # exactly: no length, no direction
                want = _distances("reference", size * x, size * y, w)
                for a, b in zip(_distances(backend, size * x, size * y, w), want, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14 * (size if a.dim() == 2 else 1.0))
        x[0, 3, 1], x[1, 0, 0] = torch.nan, torch.inf
        total, slope = _distances(backend, x, y, w)
        assert total[0, 3].isnan() and total[1, 0] == torch.inf and slope[0, 3].isnan().any()
        assert total[0, :3].isfinite().all() and total[1, 1:].isfinite().all()
    finally:
        _native.cpu.set_isa(before)
