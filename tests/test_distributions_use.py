"""fokker.distributions in use: entropies, divergences, fits, gradients, composition and compilation."""

import math

import pytest
import scipy.stats
import torch
from sphere import F64, doubles, many, unit, within
from torch.distributions import Categorical, Independent, MixtureSameFamily, kl_divergence

from fokker import vmf
from fokker._cli.check import _device
from fokker.distributions import HypersphericalUniform, VonMisesFisher


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
