"""fokker.distributions: the whole torch.distributions interface of VonMisesFisher and HypersphericalUniform.

Seeds are fixed, so each statistical test passes or fails for good. SIGMAS = 5 standard errors: a right sampler fails
one two-sided comparison with probability 5.7e-7; a backend has about 500 of them, 3e-4 in all.
"""

import copy
import math
import pickle

import pytest
import scipy.stats
import torch
from conftest import BACKENDS
from torch.distributions import Categorical, Independent, MixtureSameFamily, constraints, kl_divergence

import fokker
from fokker import vmf
from fokker._cli.check import _device
from fokker.cases import CASES
from fokker.distributions import HypersphericalUniform, VonMisesFisher, unit_vector

F64 = torch.float64
SIGMAS = 5.0
FUSED = [b for b in BACKENDS if b in CASES["vmf_sample"].backends]


@pytest.fixture(params=FUSED)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def unit(*shape, dtype=F64):
    x = torch.randn(*shape, dtype=F64)
    return (x / x.norm(dim=-1, keepdim=True)).to(dtype)


def doubles(*values):
    return torch.tensor(values, dtype=F64)


def many(backend, n=20_000):
    """How many samples: the emulator is slow, and the same samples."""
    return n // 40 if backend == "emu" else n


def within(samples, truth, label=""):
    """The mean over the first dimension is the truth, to SIGMAS standard errors."""
    error = samples.std(0) / math.sqrt(len(samples))
    assert bool(((samples.mean(0) - truth).abs() <= SIGMAS * error + 1e-14 * (1 + truth.abs())).all()), label


# ---- construction --------------------------------------------------------------------------------------------------
def test_shapes_and_expand():
    p = VonMisesFisher(unit(3, 1, 4), doubles(1.0, 2.0), validate_args=True)
    assert p.batch_shape == (3, 2) and p.event_shape == (4,) and p.dim == 4
    assert p.mean_direction.shape == (3, 2, 4) and p.concentration.shape == (3, 2)
    assert p.has_rsample and p.support.event_dim == 1 and "VonMisesFisher" in repr(p)
    for name in ("mean", "mode", "variance", "stddev"):
        assert getattr(p, name).shape == (3, 2, 4), name
    assert p.covariance_matrix.shape == (3, 2, 4, 4) and p.entropy().shape == (3, 2)
    for shape in ((), (0,), (5, 6)):
        assert p.sample(shape).shape == (*shape, 3, 2, 4)
    assert p.log_prob(p.sample((7,))).shape == (7, 3, 2)
    assert p.log_prob(unit(4)).shape == (3, 2)
    big = p.expand((5, 3, 2))
    assert type(big) is VonMisesFisher and big.batch_shape == (5, 3, 2) and big._validate_args is True
    assert big.mean_direction.data_ptr() == p.mean_direction.data_ptr()  # a view
    x = big.sample()
    assert x.shape == (5, 3, 2, 4)
    torch.testing.assert_close(big.log_prob(x), p.log_prob(x), rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(big.entropy()[1], p.entropy(), rtol=1e-15, atol=0)

    u = HypersphericalUniform(4, (3,), F64)
    assert u.batch_shape == (3,) and u.event_shape == (4,) and u.dim == 4 and "HypersphericalUniform" in repr(u)
    wide = u.expand((2, 3))
    assert wide.batch_shape == (2, 3) and wide.sample((5,)).shape == (5, 2, 3, 4) and wide.sample().dtype == F64
    for name in ("mean", "variance", "stddev"):
        assert getattr(wide, name).shape == (2, 3, 4), name
    assert wide.entropy().shape == (2, 3) and wide.log_prob(unit(7, 1, 1, 4)).shape == (7, 2, 3)


def test_scalar_parameters_and_dtypes():
    for dtype in (torch.float32, F64, torch.float16):
        p = VonMisesFisher(torch.tensor([0.6, 0.8], dtype=dtype), 3)
        assert p.batch_shape == () and p.concentration.dtype == dtype
        assert p.sample((2,)).dtype == p.log_prob(p.sample()).dtype == p.entropy().dtype == p.mean.dtype == dtype
        u = HypersphericalUniform(2, dtype=dtype)
        assert u.sample((2,)).dtype == u.entropy().dtype == u.mean.dtype == dtype
    assert HypersphericalUniform(3).sample().dtype == torch.get_default_dtype()


def test_constraints():
    assert VonMisesFisher.arg_constraints == {"mean_direction": unit_vector, "concentration": constraints.nonnegative}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, F64):
        x = unit(50, 700).to(dtype)
        assert bool(unit_vector.check(x).all()) and not bool(unit_vector.check(1.05 * x).any())
    assert unit_vector.check(torch.ones(2, 3, 1)).shape == (2, 3)
    assert not bool(unit_vector.check(torch.tensor([math.nan, 1.0])))
    mean, k = unit(2, 3), doubles(1.0, 2.0)
    for bad_mean, bad_k, message in (
        (mean * 1.01, k, "mean_direction"),
        (mean * math.nan, k, "mean_direction"),
        (mean * 0, k, "mean_direction"),
        (mean, k - 1.5, "concentration"),
        (mean, k * math.nan, "concentration"),
    ):
        with pytest.raises(ValueError, match=f"parameter {message}"):
            VonMisesFisher(bad_mean, bad_k, validate_args=True)
        assert VonMisesFisher(bad_mean, bad_k, validate_args=False).batch_shape == (2,)
    p = VonMisesFisher(mean, k, validate_args=True)
    for q in (p, HypersphericalUniform(3, (2,), F64, validate_args=True)):
        with pytest.raises(ValueError, match="within the support"):
            q.log_prob(1.01 * mean)
        with pytest.raises(ValueError, match="right-most size of value must match event_shape"):
            q.log_prob(unit(2, 4))
    loose = VonMisesFisher(mean, k, validate_args=False)
    torch.testing.assert_close(loose.log_prob(2 * mean), vmf.log_normalizer(3, k) + 2 * k, rtol=1e-13, atol=0)


BAD = {
    "array": (lambda: VonMisesFisher(unit(3).numpy(), 1.0), (TypeError, ValueError), "mean_direction must be a tensor"),
    "0-d": (lambda: VonMisesFisher(torch.tensor(1.0), 1.0), ValueError, "mean_direction must be a tensor of shape"),
    "dim 1": (lambda: VonMisesFisher(torch.ones(5, 1), 1.0), ValueError, "dimension must be at least 2"),
    "integers": (lambda: VonMisesFisher(torch.tensor([1, 0]), 1.0), TypeError, "mean_direction must be float16"),
    "complex": (lambda: VonMisesFisher(unit(3) + 0j, 1.0), TypeError, "mean_direction must be float16, bfloat16"),
    "complex k": (lambda: VonMisesFisher(unit(3), torch.tensor(1 + 1j)), TypeError, "concentration must be real"),
    "device": (lambda: VonMisesFisher(unit(3), torch.ones(2, device="meta")), TypeError, "concentration is on meta"),
    "shapes": (lambda: VonMisesFisher(unit(3, 4), torch.ones(2)), ValueError, "do not broadcast"),
    "uniform 1": (lambda: HypersphericalUniform(1), ValueError, "dim must be at least 2"),
    "uniform float": (lambda: HypersphericalUniform(3.5), TypeError, "dim must be an int"),
    "uniform dtype": (lambda: HypersphericalUniform(3, dtype=torch.int64), TypeError, "dtype must be float16"),
    "dims": (lambda: kl_divergence(VonMisesFisher(unit(3), 1.0), VonMisesFisher(unit(4), 1.0)), ValueError, "3 and 4"),
    "dims 2": (lambda: kl_divergence(VonMisesFisher(unit(3), 1.0), HypersphericalUniform(4)), ValueError, "3 and 4"),
    "fit": (lambda: VonMisesFisher.fit(torch.empty(0, 3)), ValueError, "n >= 1"),
    "fit rows": (lambda: VonMisesFisher.fit(torch.ones(2, 3)), ValueError, "rows of x must be unit vectors"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_named_error(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_deepcopy_and_pickle():
    for p in (VonMisesFisher(unit(2, 3), doubles(1.0, 20.0)), HypersphericalUniform(3, (2,), F64)):
        x = unit(2, 3)
        for q in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
            assert q.batch_shape == p.batch_shape and torch.equal(q.log_prob(x), p.log_prob(x))
            assert torch.equal(q.sample((3,), seed=4), p.sample((3,), seed=4))


# ---- moments -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3, 6, 30])
def test_moments_match_samples(backend, d):
    """Mean, variance and covariance of samples at k = 0, 1.5 and 300: SIGMAS standard errors an entry."""
    p = VonMisesFisher(unit(d).to(_device(backend)), doubles(0.0, 1.5, 300.0).to(_device(backend)))
    x = p.sample((many(backend),), seed=d).cpu()
    mean, variance, covariance = p.mean.cpu(), p.variance.cpu(), p.covariance_matrix.cpu()
    within(x, mean, "mean")
    centred = x - mean
    within(centred.square(), variance, "variance")
    torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), variance, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(p.stddev.cpu(), variance.sqrt())
    v = unit(12, d)  # the covariance along random directions
    within((centred @ v.T).square(), torch.einsum("id,bde,ie->bi", v, covariance, v), "covariance")
    # E |x|^2 = 1, whatever the distribution
    total = variance.sum(-1) + mean.square().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-14, atol=0)


def test_variance_is_regular_at_both_ends(backend):
    """k = 0: I/d. Large k: 1/k across and (d-1)/(2 k^2) along, with no digits lost."""
    d, device = 5, _device(backend)
    mean = torch.eye(d, dtype=F64, device=device)[1]
    for k in (0.0, 1e-9):
        variance = VonMisesFisher(mean, k).variance.cpu()
        torch.testing.assert_close(variance, torch.full((d,), 1 / d, dtype=F64), rtol=1e-14, atol=0)
    for k in (1e9, 1e100):
        want = torch.full((d,), 1 / k, dtype=F64)
        want[1] = (d - 1) / 2 / k**2
        torch.testing.assert_close(VonMisesFisher(mean, k).variance.cpu(), want, rtol=1e-8, atol=0)


def test_mode_is_the_maximum(backend):
    p = VonMisesFisher(unit(5, 4).to(_device(backend)), 3.0)
    assert torch.equal(p.mode, p.mean_direction)
    assert bool((p.log_prob(p.mode) >= p.log_prob(p.sample((50,), seed=1))).all())


def test_uniform(backend):
    d = 5
    u = HypersphericalUniform(d, (2,), F64, _device(backend), validate_args=True)
    x = u.rsample((many(backend),), seed=3)
    assert bool(u.support.check(x).all())
    area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    torch.testing.assert_close(u.log_prob(x[:9]).cpu(), torch.full((9, 2), -area, dtype=F64))
    torch.testing.assert_close(u.entropy().cpu(), torch.full((2,), area, dtype=F64))
    x = x.cpu()
    within(x, u.mean.cpu())
    within(x.square(), u.variance.cpu())
    assert torch.equal(u.mean.cpu(), torch.zeros(2, d, dtype=F64))
    same = VonMisesFisher(torch.eye(d, dtype=F64, device=_device(backend))[0], 0.0).sample((3, 2), seed=3)
    assert torch.equal(u.sample((3,), seed=3), same)


# ---- entropy, divergences ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3, 8, 100])
def test_entropy_and_divergences_by_monte_carlo(backend, d):
    device = _device(backend)
    pairs = [
        VonMisesFisher(unit(d).to(device), 4.0),
        VonMisesFisher(unit(d).to(device), 90.0),
        VonMisesFisher(unit(d).to(device), 0.0),
        HypersphericalUniform(d, (), F64, device),
    ]
    for i, p in enumerate(pairs):
        x = p.sample((many(backend, 5000),), seed=100 * d + i)
        log_p = p.log_prob(x).cpu()
        within(-log_p, p.entropy().cpu(), f"entropy {i}")
        for j, q in enumerate(pairs):
            divergence = kl_divergence(p, q).cpu()
            within(log_p - q.log_prob(x).cpu(), divergence, f"KL {i} {j}")
            assert divergence >= 0 and (i != j or divergence == 0)
    assert float(kl_divergence(pairs[2], pairs[3])) == 0.0 and abs(float(kl_divergence(pairs[3], pairs[2]))) < 1e-15


def test_divergence_shapes_and_gradients():
    mean, other, k = unit(3, 4), unit(4), doubles(0.5, 2.0, 40.0)
    p = VonMisesFisher(mean, k)
    wide = VonMisesFisher(other.expand(2, 1, 4), 3.0)
    for q in (VonMisesFisher(other, 3.0), wide, HypersphericalUniform(4, (2, 1), F64)):
        shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
        assert kl_divergence(p, q).shape == shape and kl_divergence(q, p).shape == shape
    leaves = [t.clone().requires_grad_() for t in (mean, k)]
    to_uniform = kl_divergence(VonMisesFisher(*leaves), HypersphericalUniform(4, (), F64))
    (slope,) = torch.autograd.grad(to_uniform.sum(), leaves[1])
    torch.testing.assert_close(slope, k * vmf.ops.scalar["resultant_derivative"](k, 4), rtol=1e-13, atol=0)
    from_uniform = kl_divergence(HypersphericalUniform(4, (), F64), VonMisesFisher(*leaves))
    (slope,) = torch.autograd.grad(from_uniform.sum(), leaves[1])
    torch.testing.assert_close(slope, vmf.mean_resultant_length(4, k), rtol=1e-13, atol=0)


@pytest.mark.parametrize("d", [2, 3, 10, 80])
def test_agrees_with_scipy(backend, d):
    """SciPy's logpdf and entropy are right up to dimension 80 and moderate concentrations."""
    mean, x = unit(d), unit(20, d)
    for k in (1.0, 12.0, 300.0):
        theirs = scipy.stats.vonmises_fisher(mean.numpy(), k)
        ours = VonMisesFisher(mean.to(_device(backend)), k)
        want = torch.from_numpy(theirs.logpdf(x.numpy()))
        torch.testing.assert_close(ours.log_prob(x.to(_device(backend))).cpu(), want, rtol=1e-11, atol=1e-11)
        assert float(ours.entropy()) == pytest.approx(float(theirs.entropy()), rel=1e-10, abs=1e-10)


def test_fit_agrees_with_scipy():
    x = unit(8) + 0.2 * torch.randn(500, 8, dtype=F64)
    x = x / x.norm(dim=1, keepdim=True)
    p = VonMisesFisher.fit(x)
    mean, k = scipy.stats.vonmises_fisher.fit(x.numpy())
    torch.testing.assert_close(p.mean_direction, torch.from_numpy(mean), rtol=1e-12, atol=1e-12)
    assert float(p.concentration) == pytest.approx(float(k), rel=1e-8)
    assert type(p) is VonMisesFisher and p.batch_shape == ()
    weighted = VonMisesFisher.fit(x, torch.cat([torch.ones(250), torch.zeros(250)]))
    half = VonMisesFisher.fit(x[:250])
    torch.testing.assert_close(weighted.concentration, half.concentration, rtol=1e-12, atol=0)


# ---- gradients and composition -------------------------------------------------------------------------------------
def test_gradient_flags(backend):
    device = _device(backend)
    mean, k = unit(2, 3).to(device).requires_grad_(), doubles(1.0, 5.0).to(device).requires_grad_()
    p = VonMisesFisher(mean, k)
    assert p.rsample((2,)).requires_grad and not p.sample((2,)).requires_grad
    assert p.log_prob(unit(3).to(device)).requires_grad and p.entropy().requires_grad and p.mean.requires_grad
    assert not HypersphericalUniform(3).rsample().requires_grad
    x = p.rsample((4,), seed=1)
    assert torch.equal(x, p.sample((4,), seed=1))
    grads = torch.autograd.grad(x.square().sum() + x.sum(), (mean, k))
    assert all(bool(g.isfinite().all()) and bool(g.any()) for g in grads)


def test_log_prob_gradient(backend):
    at = [t.to(_device(backend)).requires_grad_() for t in (unit(3, 5), doubles(0.4, 3.0, 60.0), unit(4, 1, 5))]
    p = lambda mean, k: VonMisesFisher(mean, k, validate_args=False)  # noqa: E731
    assert torch.autograd.gradcheck(lambda mean, k, x: p(mean, k).log_prob(x), at)
    assert torch.autograd.gradcheck(lambda mean, k: p(mean, k).entropy(), at[:2])
    assert torch.autograd.gradcheck(lambda mean, k: p(mean, k).variance, at[:2])
    assert torch.autograd.gradcheck(lambda mean, k: p(mean, k).mean, at[:2])


def test_mixture_same_family(backend):
    device = _device(backend)
    weights, mean, k = doubles(0.2, 0.5, 0.3), unit(3, 6), doubles(2.0, 30.0, 0.0)
    mixture = MixtureSameFamily(Categorical(weights.to(device)), VonMisesFisher(mean.to(device), k.to(device)))
    x = mixture.sample((many(backend, 4000),))
    assert x.shape == (many(backend, 4000), 6)
    fused = vmf.mixture_log_prob(x, mean.to(device), k.to(device), weights.log().to(device))
    torch.testing.assert_close(mixture.log_prob(x), fused, rtol=1e-12, atol=1e-12)
    within(x.cpu(), mixture.mean.cpu())
    within((x.cpu() - mixture.mean.cpu()).square(), mixture.variance.cpu())


def test_independent(backend):
    device = _device(backend)
    p = VonMisesFisher(unit(3, 4).to(device), doubles(1.0, 2.0, 50.0).to(device))
    joint = Independent(p, 1)
    x = joint.rsample((5,))
    assert x.shape == (5, 3, 4) and joint.event_shape == (3, 4) and joint.batch_shape == ()
    torch.testing.assert_close(joint.log_prob(x), p.log_prob(x).sum(-1))
    torch.testing.assert_close(joint.entropy(), p.entropy().sum(-1))
    q = VonMisesFisher(p.mean_direction, 3.0)
    torch.testing.assert_close(kl_divergence(joint, Independent(q, 1)), kl_divergence(p, q).sum())


def test_transformed():
    """A scaled sphere: log |det| of the ambient map, which is what TransformedDistribution knows."""
    p = VonMisesFisher(unit(3), 4.0)
    scaled = torch.distributions.TransformedDistribution(
        p, torch.distributions.transforms.AffineTransform(0.0, 2.0, event_dim=1), validate_args=False
    )
    y = scaled.rsample((6,))
    torch.testing.assert_close(y.norm(dim=-1), torch.full((6,), 2.0, dtype=F64))
    torch.testing.assert_close(scaled.log_prob(y), p.log_prob(y / 2) - 3 * math.log(2))


def test_compiles():
    mean, k, x = unit(3, 5), doubles(0.5, 3.0, 80.0), unit(4, 1, 5)
    torch.compiler.reset()

    def f(mean, k, x):
        p = VonMisesFisher(mean, k, validate_args=False)
        q = HypersphericalUniform(5, (), F64, validate_args=False)
        return p.log_prob(x).sum() + p.entropy().sum() + kl_divergence(p, q).sum()

    leaves = [t.requires_grad_() for t in (mean, k, x)]
    got, want = torch.compile(f, fullgraph=True, backend="aot_eager")(*leaves), f(*leaves)
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_compiles_a_method_of_a_distribution_made_outside():
    p = VonMisesFisher(unit(3, 5), doubles(0.5, 3.0, 80.0), validate_args=False)
    torch.compiler.reset()
    x = unit(4, 3, 5)
    compiled = torch.compile(lambda x: p.log_prob(x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), p.log_prob(x), rtol=1e-14, atol=1e-14)


def test_vmap_over_parameters(backend):
    mean, k, x = (t.to(_device(backend)) for t in (unit(6, 4), doubles(0, 1, 5, 20, 100, 1e4), unit(6, 4)))
    f = lambda m, c, y: VonMisesFisher(m, c, validate_args=False).log_prob(y)  # noqa: E731
    torch.testing.assert_close(torch.func.vmap(f)(mean, k, x), f(mean, k, x), rtol=1e-13, atol=1e-13)
    got = torch.func.vmap(torch.func.grad(f, argnums=1))(mean, k, x)
    torch.testing.assert_close(got, (mean * x).sum(-1) - vmf.mean_resultant_length(4, k), rtol=1e-12, atol=1e-12)
