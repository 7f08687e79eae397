"""The op of Gaussian mixtures whose queries each have a noise level: sizes, orders, edges, against its reference."""

import itertools

import pytest
import torch

import fokker
from fokker import _native, mixture
from fokker._gaussian_levels import gaussian_levels, log_density
from fokker._gaussian_tiles import mixture_sums

KINDS = ("isotropic", "diag", "full", "lowrank")
EVERYTHING = 15
#: a forced emulator has no bases
RUNS = [(b, k) for b in ("cpu", "emu") for k in KINDS if getattr(_native, b) and (b == "cpu" or k in KINDS[:2])]


def arguments(kind, n, d, k, shared=False, one=False, rank=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(100 * n + 10 * d + k)
    x, mean, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (k, d), (k,)))
    t = 1.5 * torch.rand(1 if one else n, generator=g, dtype=torch.float64)
    own = 1 if shared else k
    basis = floor = None
    variance = torch.rand(own, 1 if kind == "isotropic" else d, generator=g, dtype=torch.float64) + 0.1
    if kind in ("full", "lowrank"):
        basis = torch.linalg.qr(torch.randn(own, d, d, generator=g, dtype=torch.float64))[0]
    if kind == "lowrank":
        floor, variance = variance[:, 0], variance[:, : min(rank, d)]
        basis = basis[..., : min(rank, d)] * variance.sqrt()[:, None, :]
    values = (x, torch.cos(t), torch.sin(t).square() + 1e-3, bias, mean, variance, basis, floor)
    return tuple(None if v is None else v.to(dtype) for v in values)


def agree(values, outputs, bound, backend="cpu"):
    with fokker.use_backend("reference"):
        want = gaussian_levels(*(None if v is None else v.double() for v in values), outputs)
    with fokker.use_backend(backend):
        got = gaussian_levels(*values, outputs)
    for a, b in zip(got, want, strict=True):
        assert a.is_contiguous() and a.dtype == values[0].dtype
        torch.testing.assert_close(a.double(), b, rtol=bound, atol=bound, equal_nan=True)
    return got


@pytest.mark.parametrize(("backend", "kind"), RUNS)
def test_equals_the_reference(backend, kind):
    """One query, one coordinate, tails of tiles and of panels; one level or one covariance for all; each output."""
    for (n, d, k), (shared, one) in zip(
        ((1, 3, 1), (33, 1, 5), (70, 17, 4), (9, 6, 3)), itertools.product((False, True), repeat=2), strict=True
    ):
        values = arguments(kind, n, d, k, shared, one)
        for outputs in (EVERYTHING, 0, 2, 4, 9):
            agree(values, outputs, 1e-11, backend)
    spread = tuple(None if v is None else v[:0] if i < 3 and v.shape[0] == 9 else v for i, v in enumerate(values))
    with fokker.use_backend(backend):
        assert gaussian_levels(*spread, EVERYTHING)[0].shape == (0,)


def test_instruction_sets(isa):
    """More coordinates than the mantissas of a product that is taken apart; a NaN in one row."""
    for kind, (dtype, bound) in itertools.product(KINDS, ((torch.float64, 1e-12), (torch.float32, 1e-4))):
        x, alpha, noise, *rest = arguments(kind, 40, 131, 3, dtype=dtype)
        rest = (alpha, noise + 0.5, *rest)
        agree((x, *rest), EVERYTHING, bound)
        x[7, 2] = torch.nan
        log_sum, score, _, shares, _ = agree((x, *rest), EVERYTHING, bound)
        assert log_sum.isnan().nonzero().tolist() == [[7]] and score[7].isnan().all() and shares[:, 7].isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_components_in_any_order(kind):
    """The sums are scaled anew as better components come: from far to near, near to far, weights of 0 between."""
    x, alpha, noise, bias, mean, variance, basis, floor = arguments(kind, 50, 4, 12)
    mean = mean + 3.0 * torch.arange(12)[:, None]
    bias[5] = -torch.inf
    far = agree((x, alpha, noise, bias, mean, variance, basis, floor), EVERYTHING, 1e-11)
    turned = (bias, mean, variance, basis, floor)
    near = agree((x, alpha, noise, *(None if t is None else t.flip(0) for t in turned)), EVERYTHING, 1e-11)
    for a, b in zip(far[:3], near[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    nothing = gaussian_levels(x, alpha, noise, torch.full_like(bias, -torch.inf), *turned[1:], EVERYTHING)
    assert (nothing[0] == -torch.inf).all() and not any(t.any() for t in nothing[1:4])


@pytest.mark.parametrize(("backend", "kind"), RUNS)
def test_singular_without_noise(backend, kind):
    x, alpha, noise, bias, mean, variance, basis, floor = arguments(kind, 6, 3, 2, rank=2)
    noise[::2] = 0.0
    if kind == "lowrank":
        floor = torch.zeros_like(floor)
    else:
        variance = variance.clone()
        variance[:, -1] = 0.0
    with fokker.use_backend(backend):
        found = gaussian_levels(x, alpha, noise, bias, mean, variance, basis, floor, 7)
    for t in (*found[:3], found[3].mT):
        assert t[::2].isnan().all() and t[1::2].isfinite().all()


def test_threads_and_batches_change_no_bit():
    for kind in KINDS:
        x, alpha, noise, *rest = arguments(kind, 700, 8, 5)
        before = torch.get_num_threads()
        try:
            found = []
            for threads in (1, 3):
                torch.set_num_threads(threads)
                found.append(gaussian_levels(x, alpha, noise, *rest, EVERYTHING))
        finally:
            torch.set_num_threads(before)
        part = gaussian_levels(x[100:333], alpha[100:333], noise[100:333], *rest, EVERYTHING)
        for i, (a, b, c) in enumerate(zip(*found, part, strict=True)):
            assert torch.equal(a, b)
            if i < 3:
                torch.testing.assert_close(a[100:333], c, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_agree(kind):
    """The public function without gradients takes the kernel, with them torch ops: the same to rounding."""
    g = torch.Generator().manual_seed(11)
    x, means, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 5), (3, 5), (3, 5, 2)))
    t = torch.rand(3, generator=g, dtype=torch.float64) + 0.2
    dense = w @ w.mT + t[:, None, None] * torch.eye(5, dtype=torch.float64)
    covariance = {"isotropic": t, "diag": dense.diagonal(dim1=1, dim2=2), "lowrank": (w, t), "full": dense}[kind]
    m = mixture.Mixture(means, covariance, None, kind)
    alpha, sigma = torch.rand(40, generator=g).double(), torch.rand(40, generator=g).double() + 0.1
    got = mixture.evaluate(x, m, outputs=tuple(mixture.OUTPUTS), alpha=alpha, sigma=sigma)
    want = mixture_sums(x, alpha, sigma.square(), m.log_weights(), means, m.factors(), EVERYTHING, torch.float64)
    names = ("log_prob", "score", "posterior_mean", "responsibilities", "mahalanobis")
    for name, value in zip(names, want, strict=True):
        value = value.sqrt() if name == "mahalanobis" else value
        torch.testing.assert_close(got[name], value, rtol=1e-12, atol=1e-12, msg=lambda s, n=name: f"{n}: {s}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_in_x(kind, monkeypatch):
    """The score of the pass that made the density, to second order by tiles; those alone say the same."""
    g = torch.Generator().manual_seed(12)
    x, means, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 4), (3, 4), (3, 4, 2)))
    t = torch.rand(3, generator=g, dtype=torch.float64) + 0.2
    dense = w @ w.mT + t[:, None, None] * torch.eye(4, dtype=torch.float64)
    covariance = {"isotropic": t, "diag": dense.diagonal(dim1=1, dim2=2), "lowrank": (w, t), "full": dense}[kind]
    m = mixture.Mixture(means, covariance, None, kind)
    level = {"alpha": torch.rand(6, generator=g).double(), "sigma": torch.rand(6, generator=g).double() + 0.2}
    x.requires_grad_()
    passes = []
    monkeypatch.setattr(mixture, "log_density", lambda *a: passes.append(1) or log_density(*a))
    slope = torch.autograd.grad(mixture.log_prob(x, m, **level).sum(), x)[0]
    assert passes
    torch.testing.assert_close(slope, mixture.score(x.detach(), m, **level), rtol=1e-13, atol=1e-13)
    density = lambda v: mixture.log_prob(v, m, **level)  # noqa: E731
    assert torch.autograd.gradcheck(density, (x,)) and torch.autograd.gradgradcheck(density, (x,))
    single = x.detach().float().requires_grad_()
    again = torch.autograd.grad(mixture.log_prob(single, m, **level).sum(), single)[0]
    assert again.dtype == torch.float32
    torch.testing.assert_close(again.double(), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["diag", "lowrank"])
def test_compiled_without_gradients(kind):
    """The kernel where no gradients are recorded; `torch.func` inside, which records its own, gets them."""
    x, alpha, noise, _, means, variance, *_ = arguments("diag", 7, 3, 2)
    covariance = {"diag": variance, "lowrank": (means[..., None], variance[:, 0])}[kind]
    m = mixture.Mixture(means, covariance, None, kind)
    score = lambda v: mixture.score(v, m, alpha=alpha, sigma=noise.sqrt())  # noqa: E731
    slope = torch.func.grad(lambda v: mixture.log_prob(v, m, alpha=alpha, sigma=noise.sqrt()).sum())
    seen = []

    def backend(module, inputs):
        seen.append("gaussian_levels" in module.code)
        return module

    torch.compiler.reset()
    with torch.no_grad():
        for f in (score, slope):
            got = torch.compile(f, fullgraph=True, backend=backend)(x)
            torch.testing.assert_close(got, score(x), rtol=1e-11, atol=1e-11)
    assert seen == [True, False]


def test_bad_input():
    x, alpha, noise, bias, mean, variance, _, _ = arguments("diag", 6, 3, 2)
    module, out = _native.cpu, torch.empty(6, dtype=torch.float64)
    rest = (None, None, None, out, None, None, None, None, False)
    with pytest.raises(ValueError, match=r"alpha \(5,\) must have shape \(6,\)"):
        module.gaussian_levels(x, alpha[:5], noise, bias, mean, variance, *rest)
    with pytest.raises(ValueError, match="variance must have 1 or d = 3 columns, got 2"):
        module.gaussian_levels(x, alpha, noise, bias, mean, variance[:, :2].contiguous(), *rest)
    with pytest.raises(TypeError, match="noise must have dtype float64, got float32"):
        module.gaussian_levels(x, alpha, noise.float(), bias, mean, variance, *rest)
    with pytest.raises(ValueError, match="basis and turned must be given together"):
        module.gaussian_levels(x, alpha, noise, bias, mean, variance, variance, *rest[1:])
