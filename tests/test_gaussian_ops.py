"""The ops of Gaussian mixtures against their reference: sizes beside the tiles, one matrix for all, gradients."""

import itertools

import pytest
import torch

import fokker
from fokker import _gaussian_ops, _native, mixture
from fokker._gaussian_ops import gaussian_joint, gaussian_log_sum, gaussian_moments, gaussian_pull

BACKENDS = [b for b in ("cpu", "emu") if getattr(_native, b) is not None]


def arguments(n, k, d, kind, shared, dtype=torch.float64):
    g = torch.Generator().manual_seed(1000 * n + 10 * d + k)
    x, mean, bias = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, d), (k, d), (k,)))
    root = torch.randn(1 if shared else k, d, *(() if kind == "diag" else (d,)), generator=g, dtype=torch.float64)
    root = root.tril() if kind == "triangular" else root
    return tuple(t.to(dtype) for t in (x, mean, root, bias)), kind == "triangular"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "shared"), list(itertools.product(("diag", "dense", "triangular"), (False, True))))
def test_equals_the_reference(kind, shared, backend):
    for (n, d), k in itertools.product(((1, 3), (33, 1), (70, 17), (300, 4)), (1, 5)):
        (x, mean, root, bias), triangular = arguments(n, k, d, kind, shared)
        offset = torch.randn(k, root.shape[1], dtype=torch.float64)
        calls = [
            lambda: (gaussian_log_sum(x, mean, root, bias, triangular),),  # noqa: B023
            lambda: gaussian_joint(x, mean, root, bias, triangular, False),  # noqa: B023
            lambda: gaussian_joint(x, mean, root, bias, triangular, True),  # noqa: B023
            lambda: (gaussian_pull(w, x, mean, root, None),),  # noqa: B023
            lambda: (gaussian_pull(w, x, mean, root, offset),),  # noqa: B023
            lambda: gaussian_moments(w, x, mean, kind != "diag"),  # noqa: B023
        ]
        w = torch.rand(k, n, dtype=torch.float64)
        w[:, ::3] = 0.0
        if kind == "dense":
            root_rows = torch.randn(root.shape[0], 2 * d + 1, d, dtype=torch.float64)
            calls.append(lambda: (gaussian_pull(w, x, mean, root_rows, None),))  # noqa: B023
        for call in calls:
            with fokker.use_backend("reference"):
                want = call()
            with fokker.use_backend(backend):
                got = call()
            for a, b in zip(got, want, strict=True):
                assert a.is_contiguous()
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_instruction_sets(isa):
    (x, mean, root, bias), _ = arguments(50, 3, 6, "triangular", False)
    with fokker.use_backend("reference"):
        want = gaussian_joint(x, mean, root, bias, True, True)
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 2e-5)):
        got = gaussian_joint(*(t.to(dtype) for t in (x, mean, root, bias)), True, True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=bound, atol=bound)
        odd = x.to(dtype).clone()
        odd[7, 2] = torch.nan
        log_sum, shares = gaussian_joint(odd, *(t.to(dtype) for t in (mean, root, bias)), True, True)
        assert log_sum.isnan().nonzero().tolist() == [[7]] and shares[:, 7].isnan().all()


@pytest.mark.parametrize(("kind", "shared"), [("diag", False), ("diag", True), ("triangular", False)])
def test_gradients_to_second_order(kind, shared):
    values, triangular = arguments(5, 2, 3, kind, shared)
    values = [v.requires_grad_() for v in values]
    for call in (
        lambda *a: gaussian_log_sum(*a, triangular),
        lambda *a: gaussian_joint(*a, triangular, False),
        lambda *a: gaussian_joint(*a, triangular, True),
    ):
        assert torch.autograd.gradcheck(call, values, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, values, fast_mode=True)
    x, mean, root, _ = values
    w = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    pull = root.detach().requires_grad_()
    offset = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gaussian_pull, (w, x, mean, pull, offset), fast_mode=True)
    assert torch.autograd.gradgradcheck(gaussian_pull, (w, x, mean, pull, offset), fast_mode=True)
    moments = lambda *a: gaussian_moments(*a, triangular)  # noqa: E731
    assert torch.autograd.gradcheck(moments, (w, x, mean), fast_mode=True)
    assert torch.autograd.gradgradcheck(moments, (w, x, mean), fast_mode=True)


def test_tiles_change_nothing(monkeypatch):
    values, _ = arguments(300, 4, 3, "triangular", False)
    values = [v.requires_grad_() for v in values]
    found = []
    for size in (1 << 19, 1):
        monkeypatch.setattr(_gaussian_ops, "_JOINT", size)
        monkeypatch.setattr(_gaussian_ops, "_ELEMENTS", size)
        value = gaussian_log_sum(*values, True)
        found.append((value, *torch.autograd.grad(value.sum(), values)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_rows_that_do_not_count():
    (x, mean, root, bias), _ = arguments(40, 3, 2, "diag", False)
    odd = x.clone()
    odd[7] = torch.nan
    for backend in BACKENDS:
        with fokker.use_backend(backend):
            _, shares = gaussian_joint(odd, mean, root, bias, False, True)
            nothing = gaussian_joint(x, mean, root, torch.full_like(bias, -torch.inf), False, True)
            w = shares.clone()
            w[:, 7] = 0.0
            pulled = gaussian_pull(w, odd, mean, root, None)
            first = gaussian_moments(w, odd, mean, False)[1]
        assert shares[:, 7].isnan().all() and shares[:, :7].isfinite().all() and shares[:, 8:].isfinite().all()
        assert (nothing[0] == -torch.inf).all() and (nothing[1] == 0).all()
        assert (pulled[7] == 0).all() and pulled.isfinite().all() and first.isfinite().all()


def test_singular_covariances_are_nan_without_noise():
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).expand(1, 2, 2)
    x, m = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    for c, kind in ((flat, "full"), (flat.diagonal(dim1=-2, dim2=-1), "diag")):
        found = mixture.Mixture(m, c.contiguous(), covariance_type=kind)
        assert mixture.log_prob(x, found).isnan().all()
        assert mixture.log_prob(x, found, sigma=0.1).isfinite().all()


@pytest.mark.parametrize("form", ["levels", "tiles", "roots"])
def test_low_rank_at_any_condition(form, monkeypatch):
    """C = 25 W W^T + sigma^2 I of orthogonal W, whose inverse is written down: conditions from 1 to 1e12."""
    monkeypatch.setattr(mixture, "takes", lambda *a: form == "levels")
    monkeypatch.setattr(mixture, "root_pays", lambda n, d: form == "roots")
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float64) / 2
    spread = torch.tensor([3.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    m = mixture.Mixture(torch.zeros(1, 4).double(), ((signs * spread)[:, :2], torch.zeros(())), None, "lowrank")
    for sigma in (1.0, 1e-2, 1e-5):
        x = (torch.randn(20, 4, dtype=torch.float64) * (5 * spread + sigma)) @ signs.T
        variance = 25 * spread**2 + sigma**2
        along = x @ signs
        want = -0.5 * (along**2 / variance + torch.log(2 * torch.pi * variance)).sum(1)
        found = mixture.evaluate(x, m, outputs=("log_prob", "score", "posterior_mean"), alpha=5.0, sigma=sigma)
        # x is up to 60 and is rounded here and there: 60 u * 2 in numbers whose deviation is sigma, squared (|z| < 4)
        slack = 1e-13 / sigma
        torch.testing.assert_close(found["log_prob"], want, rtol=0, atol=1e-13 + slack)
        torch.testing.assert_close(found["score"], -(along / variance) @ signs.T, rtol=0, atol=(1e-12 + slack) / sigma)
        shrunk = (5 * spread**2 * along / variance) @ signs.T
        torch.testing.assert_close(found["posterior_mean"], shrunk, rtol=0, atol=1e-13 + slack)


def test_low_rank_takes_the_faster_form(monkeypatch):
    """The two agree, and their gradients; EM too."""
    from fokker import _gaussian_em

    g = torch.Generator().manual_seed(3)
    x, mean, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((40, 6), (3, 6), (3, 6, 2)))
    t, share = (torch.rand(3, generator=g, dtype=torch.float64) + 0.1 for _ in range(2))
    values = [v.requires_grad_() for v in (x, mean, w, t, share)]
    weights, means, *covariance = (v.detach() for v in (share / share.sum(), mean, w, t))
    now = _gaussian_em.Parameters("lowrank", weights, means, tuple(covariance))
    rows = _gaussian_em.Rows(x.detach(), torch.ones(40, dtype=torch.float64), None)
    found = []
    for pays in (False, True):
        monkeypatch.setattr(mixture, "root_pays", lambda n, d: pays)  # noqa: B023
        monkeypatch.setattr(_gaussian_em, "takes", lambda *a: pays)  # noqa: B023
        m = mixture.Mixture(mean, (w, t), share, "lowrank")
        value = mixture.evaluate(x, m, outputs=tuple(mixture.OUTPUTS), alpha=0.8, sigma=0.6)
        slopes = torch.autograd.grad(sum((v**2).sum() for v in value.values()), values)
        found.append([*value.values(), *slopes, *_gaussian_em.expect(rows, now)[:4]])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["isotropic", "diag", "lowrank", "full"])
def test_queries_at_a_few_noise_levels(kind, monkeypatch):
    """Each level by itself, results in the queries' order, as by tiles of one level a query; so are gradients."""
    monkeypatch.setattr(mixture, "_A_LEVEL", 2)
    monkeypatch.setattr(mixture, "_A_LEVEL_TRACKED", 2)
    g = torch.Generator().manual_seed(4)
    x, mean, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((3, 5, 4), (3, 4), (3, 4, 2)))
    t = torch.rand(3, generator=g, dtype=torch.float64) + 0.2
    alpha, sigma = torch.tensor([[0.9], [0.5], [0.9]]).double(), torch.tensor([0.3, 0.7, 0.3, 0.3, 0.7]).double()
    leaves = [v.requires_grad_() for v in (x, mean, w, t)]
    dense = w @ w.mT + t[:, None, None] * torch.eye(4, dtype=torch.float64)
    covariance = {"isotropic": t, "diag": dense.diagonal(dim1=1, dim2=2), "lowrank": (w, t), "full": dense}[kind]
    m = mixture.Mixture(mean, covariance, None, kind)
    found, split = [], mixture._levels  # leaves want gradients: not by the kernel of many levels
    for levels in (split, lambda *a: None):
        seen = []
        monkeypatch.setattr(mixture, "_levels", lambda *a: seen.append(levels(*a)) or seen[-1])  # noqa: B023
        value = mixture.evaluate(x, m, outputs=tuple(mixture.OUTPUTS), alpha=alpha, sigma=sigma)
        total = sum((v**2).sum() for v in value.values())
        slopes = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        found.append([*value.values(), *(s for s in slopes if s is not None)])
        assert [len(v) for v in seen[0] or ()] == ([3, 2, 6, 4] if levels is split else [])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert split(m, False, alpha.expand(3, 5).reshape(-1), sigma.clone().requires_grad_().repeat(3)) is None
    assert [len(v) for v in split(m, False, torch.ones(1).double(), torch.full((7,), 0.5).double())] == [7]


def test_bad_input():
    (x, mean, root, bias), _ = arguments(6, 2, 3, "diag", False)
    module, out = _native.cpu, torch.empty(6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"root \(2, 2\) must be \(2 or 1, 3\) or panels"):
        module.gaussian_joint(x, mean, root[:, :2].contiguous(), bias, False, None, out, False)
    with pytest.raises(ValueError, match=r"bias \(1,\) must have shape \(2,\)"):
        module.gaussian_joint(x, mean, root, bias[:1], False, None, out, False)
    with pytest.raises(TypeError, match="mean must have dtype float64, got float32"):
        module.gaussian_joint(x, mean.float(), root, bias, False, None, out, False)
    with pytest.raises(ValueError, match="joint must be given"):
        module.gaussian_joint(x, mean, root, bias, False, None, None, False)
