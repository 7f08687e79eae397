"""fokker.distributions: construction, constraints, moments and errors of VonMisesFisher and HypersphericalUniform."""

import copy
import math
import pickle

import pytest
import torch
from sphere import F64, doubles, many, unit, within
from torch.distributions import constraints, kl_divergence

from fokker import vmf
from fokker._cli.check import _device
from fokker.distributions import HypersphericalUniform, VonMisesFisher, unit_vector


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
