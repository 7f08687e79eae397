"""The von Mises-Fisher reference against ball arithmetic (tests/truth/vmf_f64.npz), itself, and its own derivatives."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from fokker.reference import vmf

TABLE = dict(np.load(Path(__file__).parent / "truth" / "vmf_f64.npz"))
# name in the reference -> name in the table, whether |truth| < 1 counts as 1, bound
FORWARD = {
    "log_normalizer": ("log_normalizer", True, 1e-15),
    "mean_resultant": ("mean_resultant_length", False, 2e-15),
    "complement": ("mean_resultant_complement", False, 2e-15),
    "resultant_derivative": ("resultant_derivative", False, 4e-15),
    "resultant_second": ("resultant_second_derivative", False, 5e-14),
    "entropy": ("entropy", True, 4e-15),
    "kl_uniform": ("kl_uniform", False, 4e-15),
}
DIMS = [int(d) for d in np.unique(TABLE["dim"])]


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("name", FORWARD)
def test_scalars_match_the_truth_table(name):
    column, mixed, bound = FORWARD[name]
    for d in DIMS:
        at = TABLE["dim"] == d
        k = torch.from_numpy(TABLE["concentration"][at])
        hi, lo = TABLE[column + "_hi"][at], TABLE[column + "_lo"][at]
        error = np.abs((vmf.scalar(name, d, k).numpy() - hi) - lo)
        scale = np.maximum(np.abs(hi), 1.0 if mixed else 1e-290)
        assert (error <= bound * scale).all(), (d, k[np.argmax(error / scale)], (error / scale).max())


def test_inverse_matches_the_truth_table():
    for d in np.unique(TABLE["inverse_dim"]):
        for complement in (False, True):
            at = (TABLE["inverse_dim"] == d) & (TABLE["inverse_is_complement"] == complement)
            x = torch.from_numpy(TABLE["inverse_input"][at])
            key = "complement" if complement else "resultant"
            k = vmf.concentration_from_resultant(int(d), **{key: x}).numpy()
            truth = TABLE["inverse_concentration_hi"][at]
            assert (np.abs(k - truth) <= 4e-15 * truth).all(), (d, complement, np.abs(k / truth - 1).max())


def test_bregman_matches_the_truth_table():
    for d in np.unique(TABLE["bregman_dim"]):
        at = TABLE["bregman_dim"] == d
        p, q = (torch.from_numpy(TABLE["bregman_" + n][at]) for n in "pq")
        b, truth = vmf.bregman(int(d), p, q).numpy(), TABLE["bregman_hi"][at]
        assert (b >= 0).all()
        assert (np.abs(b - truth) <= 1e-14 * np.maximum(truth, 1e-290)).all()


def test_closed_forms_of_dimension_three():
    k = doubles(0.5, 3.0, 20.0, 31.9, 32.1, 200.0)
    torch.testing.assert_close(
        vmf.log_normalizer(3, k),
        torch.log(k / (2 * math.pi)) - k - torch.log1p(-torch.exp(-2 * k)),
        rtol=1e-14,
        atol=0,
    )
    torch.testing.assert_close(vmf.mean_resultant_length(3, k), 1 / torch.tanh(k) - 1 / k, rtol=1e-14, atol=0)


@pytest.mark.parametrize("d", [2, 3, 7, 64, 65, 66, 67, 1000, 10**6])
def test_edges(d):
    inf, nan = math.inf, math.nan
    k = doubles(0.0, inf, -1.0, nan, 5e-324, 1e300)
    area = math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2)
    log_c, h, kl = vmf.log_normalizer(d, k), vmf.entropy(d, k), vmf.kl_uniform(d, k)
    a, c = vmf.mean_resultant_length(d, k), vmf.mean_resultant_length(d, k, complement=True)
    for value, zero, at_inf in ((log_c, -area, -inf), (a, 0.0, 1.0), (c, 1.0, 0.0), (h, area, -inf), (kl, 0.0, inf)):
        assert value[0].item() == pytest.approx(zero, rel=1e-14)
        assert value[1].item() == at_inf
        assert value[2:4].isnan().all() and not value[4:].isnan().any()
    assert log_c[5].item() == pytest.approx(-1e300) and c[5].item() == pytest.approx((d - 1) / 2 * 1e-300)
    k = vmf.concentration_from_resultant(d, doubles(0.0, 1.0, -1e-9, 1.0 + 1e-9, nan, 1e-300))
    assert k[:2].tolist() == [0.0, inf] and k[2:5].isnan().all() and k[5].item() == pytest.approx(d * 1e-300)
    k = vmf.concentration_from_resultant(d, complement=doubles(0.0, 1.0, -1e-9, 1.0 + 1e-9, nan))
    assert k[:2].tolist() == [inf, 0.0] and k[2:].isnan().all()


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("d", [2, 11, 63, 64])
def test_the_regimes_meet(name, d):
    k = math.sqrt(32.0**2 - (d / 2 - 1) ** 2)
    below, above = vmf.scalar(name, d, doubles(k * (1 - 1e-15), k * (1 + 1e-15)))
    torch.testing.assert_close(below, above, rtol=1e-13, atol=1e-13 if name in ("log_normalizer", "entropy") else 0)


SCALARS = [*FORWARD, "concentration_from_resultant", "concentration_from_complement"]


@pytest.mark.parametrize("name", [n for n in SCALARS if n != "resultant_second"])
@pytest.mark.parametrize("d", [2, 5, 80])
def test_derivatives(name, d):
    inverse = name.startswith("concentration_from")
    k = doubles(0.1, 0.45, 0.8) if inverse else doubles(0.02, 1.5, 9.0, 45.0)
    k.requires_grad_()

    def f(t):
        return vmf.scalar(name, d, t)

    eps = 1e-6 if inverse else 1e-5
    assert gradcheck(f, (k,), eps=eps, check_forward_ad=True, check_batched_grad=True)
    if name != "resultant_derivative":  # its second derivative needs A'''
        assert gradgradcheck(f, (k,), eps=eps, check_fwd_over_rev=True)


def test_third_derivative_of_a_is_an_error():
    k = doubles(2.0).requires_grad_()
    (g,) = torch.autograd.grad(vmf.resultant_derivative(5, k), k, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(g, k)


@pytest.mark.parametrize("d", [2, 3, 10**6])
def test_derivatives_at_zero_are_the_limits(d):
    k = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for f, slope, curvature in ((vmf.log_normalizer, 0, -1 / d), (vmf.entropy, 0, -1 / d), (vmf.kl_uniform, 0, 1 / d)):
        (g,) = torch.autograd.grad(f(d, k), k, create_graph=True)
        (h,) = torch.autograd.grad(g, k)
        assert g.item() == slope and h.item() == pytest.approx(curvature, rel=1e-14)


def test_transforms():
    k = doubles(0.0, 0.3, 5.0, 400.0)
    f = lambda t: vmf.log_normalizer(16, t)  # noqa: E731
    a, slope = vmf.mean_resultant_length(16, k), vmf.resultant_derivative(16, k)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(f))(k), -a)
    torch.testing.assert_close(torch.func.jvp(f, (k,), (torch.ones_like(k),))[1], -a)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(torch.func.grad(f)))(k), -slope)
    torch.testing.assert_close(torch.func.hessian(lambda t: f(t).sum())(k), torch.diag(-slope))
    nested = torch.func.jvp(lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1], (k,), (torch.ones_like(k),))
    torch.testing.assert_close(nested[1], -slope)
    q = doubles(1.0, 2.0)
    rows = torch.func.vmap(lambda p: vmf.bregman(16, p, q))(k)
    torch.testing.assert_close(rows, vmf.bregman(16, k[:, None], q))


@pytest.mark.parametrize("d", [2, 40, 90])
def test_bregman_derivatives(d):
    p = doubles(0.2, 3.0, 50.0, 1.0).requires_grad_()
    q = doubles(0.25, 2.0, 20.0, 60.0).requires_grad_()
    assert gradcheck(lambda p, q: vmf.bregman(d, p, q), (p, q), check_forward_ad=True)
    assert gradcheck(lambda p, q: vmf.bregman_grad(d, p, q), (p, q), check_forward_ad=True)
    assert gradgradcheck(lambda p, q: vmf.bregman(d, p, q), (p, q))


def test_kl_divergence():
    d, mean = 6, unit(2, 6)
    p, q = doubles(3.0, 40.0), doubles(5.0, 0.7)
    a = vmf.mean_resultant_length(d, p)
    by_definition = vmf.log_normalizer(d, p) - vmf.log_normalizer(d, q) + a * (p - q * (mean[0] @ mean[1]))
    torch.testing.assert_close(vmf.kl_divergence(mean[0], p, mean[1], q), by_definition, rtol=1e-12, atol=0)
    assert vmf.kl_divergence(mean[0], p, mean[0], p).tolist() == [0.0, 0.0]
    # to the uniform distribution it is kl_uniform, whatever its mean
    torch.testing.assert_close(vmf.kl_divergence(mean[0], p, mean[1], 0.0), vmf.kl_uniform(d, p), rtol=1e-14, atol=0)
    # close pairs: A' (p - q)^2 / 2, where the definition has lost every digit
    q = p * (1 + 1e-10)
    near = vmf.resultant_derivative(d, p) * (p - q) ** 2 / 2
    torch.testing.assert_close(vmf.kl_divergence(mean[0], p, mean[0], q), near, rtol=1e-9, atol=0)
    args = [t.requires_grad_() for t in (unit(2, 4), doubles(2.0, 7.0), unit(4), doubles(1.5))]
    assert gradcheck(vmf.kl_divergence, args) and gradgradcheck(vmf.kl_divergence, args)


@pytest.mark.parametrize("d", [2, 3, 8, 130])
@pytest.mark.parametrize("k", [0.0, 2.0, 70.0])
def test_density_integrates_to_one(d, k):
    # over the angle to the mean: area of S^{d-2} times the integral of sin^{d-2} f
    nodes, weights = (torch.from_numpy(t) for t in np.polynomial.legendre.leggauss(200))
    angle = (nodes + 1) * math.pi / 2
    x = torch.zeros(len(angle), d, dtype=torch.float64)
    x[:, 0], x[:, 1] = torch.cos(angle), torch.sin(angle)
    log_area = math.log(2) + (d - 1) / 2 * math.log(math.pi) - math.lgamma((d - 1) / 2)
    log_p = vmf.log_prob(x, torch.eye(d, dtype=torch.float64)[0], k) + (d - 2) * torch.log(torch.sin(angle)) + log_area
    total = (weights * math.pi / 2 * torch.exp(log_p)).sum()
    assert total.item() == pytest.approx(1.0, rel=1e-12)


def test_log_prob_derivatives_and_shapes():
    x, mean, k = unit(5, 4), unit(3, 1, 4), doubles(0.0, 2.0, 60.0)[:, None]
    assert vmf.log_prob(x, mean, k).shape == (3, 5)
    args = [t.requires_grad_() for t in (unit(3, 4), unit(4), doubles(0.5, 2.0, 40.0))]
    assert gradcheck(vmf.log_prob, args) and gradgradcheck(vmf.log_prob, args)
    single = [t.detach().float() for t in args]
    out = vmf.log_prob(*single)
    assert out.dtype == torch.float32  # one rounding: the inner product is taken in float64
    torch.testing.assert_close(out, vmf.log_prob(*(t.double() for t in single)).float(), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_result_dtype(dtype):
    k = torch.tensor([0.5, 3.0, 90.0], dtype=dtype)
    for name in FORWARD:
        out = vmf.scalar(name, 20, k)
        assert out.dtype == dtype
        assert torch.equal(out, vmf.scalar(name, 20, k.double()).to(dtype))
    assert vmf.entropy(20, 3).dtype == torch.get_default_dtype()
    assert vmf.entropy(20, torch.tensor([3])).dtype == torch.get_default_dtype()
    with pytest.raises(TypeError, match="real"):
        vmf.entropy(20, torch.tensor([3j]))
    with pytest.raises(ValueError, match="at least 2"):
        vmf.entropy(1, k)


def test_fit():
    d = 12
    x = unit(400, d) + torch.eye(d, dtype=torch.float64)[3]
    x = x / x.norm(dim=1, keepdim=True)
    mean, k = vmf.fit(x)
    length = x.mean(0).norm()
    torch.testing.assert_close(mean, x.mean(0) / length)
    torch.testing.assert_close(vmf.mean_resultant_length(d, k), length, rtol=1e-14, atol=0)

    # the likelihood has its maximum there
    k = k.clone().requires_grad_()
    (slope,) = torch.autograd.grad(vmf.log_prob(x, mean, k).mean(), k)
    assert abs(slope.item()) < 1e-14

    # weights of any scale; whole numbers count repetitions
    w = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(vmf.fit(x[:3], 7 * w), vmf.fit(x[[0, 0, 0, 2]]), rtol=1e-12, atol=1e-14)

    # no resultant: e1, uniform; a single point: a point mass
    mean, k = vmf.fit(torch.stack([x[0], -x[0]]))
    assert mean.tolist() == [1.0] + [0.0] * (d - 1) and k.item() == 0.0
    mean, k = vmf.fit(torch.eye(d)[2:3].expand(5, d))
    assert mean.tolist() == torch.eye(d)[2].tolist() and mean.dtype == torch.float32 and k.item() == math.inf


def test_mixture():
    x, means, k = unit(7, 5), unit(3, 5), doubles(0.0, 4.0, 300.0)
    log_w = torch.log_softmax(doubles(0.3, -1.0, 0.5), 0)
    total, responsibilities = vmf.mixture_log_prob(x, means, k, log_w, return_responsibilities=True)
    each = torch.stack([vmf.log_prob(x, means[j], k[j]) + log_w[j] for j in range(3)], 1)
    torch.testing.assert_close(total, torch.log(torch.exp(each).sum(1)))
    torch.testing.assert_close(responsibilities, torch.softmax(each, 1))
    torch.testing.assert_close(vmf.mixture_log_prob(x, means, k, log_w), total)
    args = [t.requires_grad_() for t in (x, means, doubles(1.0, 4.0, 50.0), log_w)]
    assert gradcheck(vmf.mixture_log_prob, args)
