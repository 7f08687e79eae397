"""The reference von Mises-Fisher sampler: exact distribution, stateless noise, unbiased gradients.

Seeds are fixed, so each statistical test passes or fails for good (tests/sphere.py): about 60 p-values, 1e-4 in all.
"""

import math

import mpmath
import pytest
import scipy.stats
import torch
from sphere import LEVEL, SIGMAS, check_tangent, probability

from fokker.reference import vmf_sample

DOUBLE = torch.float64
DIMS = (2, 3, 5, 128, 4096)
CONCENTRATIONS = (0.0, 0.5, 10.0, 1e3, 1e6, 1e8)


def unit(dim: int, seed: int = 0) -> torch.Tensor:
    v = torch.randn(dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


def draw(dim: int, k: float, n: int, *, seed: int = 1, dtype: torch.dtype = DOUBLE, mean: torch.Tensor | None = None):
    mean = unit(dim) if mean is None else mean
    return vmf_sample.sample_rows(mean[None].to(dtype), torch.tensor([k], dtype=dtype), None, 0, seed, 0, n)


def draw_cosines(dim: int, k: float, n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return vmf_sample.cosines(dim, torch.full((n,), k, dtype=DOUBLE), torch.arange(n), seed)


def mean_resultant(dim: int, k: float) -> float:
    if k == 0:
        return 0.0
    with mpmath.workdps(30):
        return float(mpmath.besseli(dim / 2, k) / mpmath.besseli(dim / 2 - 1, k))


def mean_slope(dim: int, k: float) -> float:
    """dA/dk = 1 - A^2 - (d-1) A / k."""
    if k == 0:
        return 1 / dim
    with mpmath.workdps(60):
        a = mpmath.besseli(mpmath.mpf(dim) / 2, k) / mpmath.besseli(mpmath.mpf(dim) / 2 - 1, k)
        return float(1 - a * a - (dim - 1) * a / k)


# ---- the cosine -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("k", CONCENTRATIONS)
def test_cosine_has_the_exact_distribution(dim: int, k: float) -> None:
    """Kolmogorov-Smirnov at 20,000 samples: a distribution off by 0.02 anywhere is seen."""
    w, one_minus_w = draw_cosines(dim, k, 20_000)
    assert scipy.stats.kstest(probability(dim, k, one_minus_w.numpy()), "uniform").pvalue > LEVEL
    assert ((1 - w - one_minus_w).abs() <= 4e-16).all()


@pytest.mark.parametrize(("dim", "k", "factor"), [(2, 10.0, 1.1), (3, 1e6, 1.1), (128, 50.0, 1.15), (4096, 1e3, 1.03)])
def test_the_distribution_test_can_fail(dim: int, k: float, factor: float) -> None:
    _, one_minus_w = draw_cosines(dim, k, 20_000)
    assert scipy.stats.kstest(probability(dim, k * factor, one_minus_w.numpy()), "uniform").pvalue < LEVEL


def test_one_minus_cosine_keeps_its_digits() -> None:
    """At k -> inf, 2 k (1 - w) is chi-squared with d - 1 degrees: also where w rounds to 1."""
    for dim in (2, 3, 5, 128):
        _, one_minus_w = draw_cosines(dim, 1e30, 20_000)
        p = scipy.stats.chi2(dim - 1).cdf(2e30 * one_minus_w.numpy())
        assert scipy.stats.kstest(p, "uniform").pvalue > LEVEL


def test_million_dimensions() -> None:
    for k in (0.0, 1e4, 1e6, 1e8):
        _, one_minus_w = draw_cosines(10**6, k, 5_000)
        assert scipy.stats.kstest(probability(10**6, k, one_minus_w.numpy()), "uniform").pvalue > LEVEL


def test_acceptance_is_above_0_65(monkeypatch: pytest.MonkeyPatch) -> None:
    """One attempt only: the rejected stay nan. 20,000 tries put 0.64 at four and a half standard errors below 0.655."""
    monkeypatch.setattr(vmf_sample, "MAX_ATTEMPTS", 1)
    rates = [
        1 - draw_cosines(dim, k, 20_000)[0].isnan().double().mean().item()
        for dim in (2, 4, 128, 10**6)
        for k in (0.0, 1.0, 1e3, 1e8)
    ]
    assert min(rates) > 0.64 and rates[0] == 1.0


def test_out_of_range_concentrations() -> None:
    k = torch.tensor([math.inf, -1.0, math.nan, 0.0, 1e-310], dtype=DOUBLE)
    for dim in (2, 3, 4):
        mean = unit(dim)
        x = vmf_sample.sample(mean, k, seed=1, sample_ids=torch.tensor(0))
        assert torch.equal(x[0], mean)
        assert x[1:3].isnan().all() and x[3:].isfinite().all()
        assert torch.equal(x[3], x[4])


# ---- the sample -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("dim", DIMS)
def test_unit_norm_and_cosine(dim: int, dtype: torch.dtype) -> None:
    eps = torch.finfo(dtype).eps
    first = torch.eye(dim, dtype=DOUBLE)[0]
    near_equator = torch.nn.functional.normalize(unit(dim) * torch.where(torch.arange(dim) == 0, -1e-12, 1.0), dim=0)
    for mean in (unit(dim), first, -first, near_equator):
        for k in (0.0, 3.0, 1e8):
            x, w, one_minus_w = draw(dim, k, 50, dtype=dtype, mean=mean)
            assert ((x.double().square().sum(1) - 1).abs() <= 6 * eps).all()
            assert ((x.double() @ mean.to(dtype).double() - w.double()).abs() <= 4 * eps).all()
            distance = (x.double() - mean.to(dtype).double()).square().sum(1)  # |x - mu|^2 = 2 (1 - w)
            assert ((distance - 2 * one_minus_w.double()).abs() <= 8 * eps * distance.sqrt() + 8 * eps**2).all()


def test_float32_takes_the_cosines_of_float64() -> None:
    for dim in (2, 3, 64):
        single, double = draw(dim, 7.0, 500, dtype=torch.float32), draw(dim, 7.0, 500)
        assert torch.equal(single[1], double[1].float()) and torch.equal(single[2], double[2].float())


@pytest.mark.parametrize("dim", [2, 3, 5, 128])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_mean_is_the_resultant(dim: int, dtype: torch.dtype) -> None:
    """The mean of the samples along mu and as a vector, within 5 standard errors."""
    n = 20_000 if dim < 10 else 4_000
    for k in (0.0, 2.0, 100.0):
        x, w, _ = draw(dim, k, n, dtype=dtype)
        a = mean_resultant(dim, k)
        assert abs(w.double().mean() - a) <= SIGMAS * w.double().std() / math.sqrt(n)
        across = (1 - a * a - mean_slope(dim, k)) / (dim - 1)  # the variance of a coordinate orthogonal to mu
        error = x.double().mean(0) - a * unit(dim)
        spread = (mean_slope(dim, k) + (dim - 1) * across) / n
        assert error.norm() <= SIGMAS * math.sqrt(spread) * (1 + 1 / math.sqrt(dim))


@pytest.mark.parametrize("dim", [2, 3, 5, 128])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_tangent_is_uniform(dim: int, dtype: torch.dtype) -> None:
    """xi.v, v orthogonal to mu, has the beta distribution of a uniform unit vector of R^(d-1), independent of w."""
    n, mean = 20_000 if dim < 10 else 4_000, unit(dim).to(dtype)
    x, w, one_minus_w = (t.double() for t in draw(dim, 2.0, n, dtype=dtype))
    sine = (one_minus_w * (2 - one_minus_w)).sqrt()
    xi = (x - w[:, None] * mean) / sine[:, None]
    for seed in (7, 8):
        check_tangent(xi, w, mean.double(), unit(dim, seed))


# ---- the noise ------------------------------------------------------------------------------------------------------
def test_sample_ids_make_the_sample() -> None:
    mean, k = torch.stack([unit(6, 1), unit(6, 2), unit(6, 3)]), torch.tensor([0.5, 4.0, 80.0], dtype=DOUBLE)
    whole = vmf_sample.sample(mean, k, (4,), seed=5, step=9)
    ids = torch.arange(12).reshape(4, 3)
    for row in range(4):
        for j in range(3):
            alone = vmf_sample.sample(mean[j], k[j], seed=5, step=9, sample_ids=ids[row, j])
            assert torch.equal(alone, whole[row, j])
    swapped = vmf_sample.sample(mean, k, (4,), seed=5, step=9, sample_ids=ids.flip(0))
    assert torch.equal(swapped.flip(0), whole)
    assert not torch.equal(vmf_sample.sample(mean, k, (4,), seed=5, step=10), whole)
    assert not torch.equal(vmf_sample.sample(mean, k, (4,), seed=6, step=9), whole)
    tail = vmf_sample.sample_rows(mean, k, None, 6, 5, 9, 6)[0]
    assert torch.equal(tail, whole.reshape(12, 6)[6:])


def test_known_samples() -> None:
    """The noise layout is a promise: these values must never change."""
    mean = torch.tensor([0.5, 0.5, -0.5, 0.5], dtype=DOUBLE)
    x = vmf_sample.sample(mean, torch.tensor(3.0, dtype=DOUBLE), (2,), seed=0x0123456789ABCDEF, step=7)
    known = [
        [0.40403409915604815, 0.36005425673947855, -0.4818830927000316, -0.6891342858201115],
        [0.7351821449033433, 0.4848145809697278, -0.026589204475118866, 0.4730275363019019],
    ]
    torch.testing.assert_close(x, torch.tensor(known, dtype=DOUBLE), rtol=0, atol=1e-14)


def test_shapes_and_errors() -> None:
    k = torch.ones(5, 1)
    assert vmf_sample.sample(unit(3).float().expand(4, 3), k, (2,), seed=1).shape == (2, 5, 4, 3)
    assert vmf_sample.sample(unit(3), torch.tensor(1.0), (0,), seed=1).shape == (0, 3)
    assert vmf_sample.sample(unit(3).half(), torch.tensor(1.0), seed=1).dtype == torch.float16
    with pytest.raises(ValueError, match="d >= 2"):
        vmf_sample.sample(torch.ones(1), torch.tensor(1.0), seed=1)
    with pytest.raises(ValueError, match="step"):
        vmf_sample.sample(unit(3), torch.tensor(1.0), seed=1, step=2**24)
    with pytest.raises(TypeError, match="sample_ids"):
        vmf_sample.sample(unit(3), torch.tensor(1.0), seed=1, sample_ids=torch.zeros(1))


# ---- the gradients --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dim", [2, 3, 4, 10, 1000])
@pytest.mark.parametrize("k", [0.0, 5.0, 1e3, 1e8])
def test_cosine_gradient_against_quadrature(dim: int, k: float) -> None:
    """-(1/f(w)) int (t - A) f dt by mpmath with 30 digits, at a sample and in a tail; 1e-9 (measured 1e-13)."""
    one_minus_w = draw_cosines(dim, k, 1, seed=3)[1].item()
    for point in (one_minus_w, min(1.7 * one_minus_w, 1.95)):
        with mpmath.workdps(30):
            order, kk = mpmath.mpf(dim) / 2, mpmath.mpf(k)
            a = mpmath.besseli(order, kk) / mpmath.besseli(order - 1, kk) if k else mpmath.mpf(0)
            w = 1 - mpmath.mpf(point)
            start = 2 * mpmath.asin(mpmath.sqrt(mpmath.mpf(point) / 2))
            reach = 12 / mpmath.sqrt(dim + kk) if k < 1e4 or dim < 50 else 15 / mpmath.sqrt(kk)
            end = max(start - reach, mpmath.mpf(0)) if w >= a else min(start + reach, mpmath.pi)

            def integrand(phi: mpmath.mpf, start=start, a=a, kk=kk, w=w) -> mpmath.mpf:
                s = mpmath.sin(phi)
                ratio = (s / mpmath.sin(start)) ** (dim - 2)
                change = 2 * (mpmath.sin(start / 2) ** 2 - mpmath.sin(phi / 2) ** 2)  # t - w
                return abs(w - a + change) * ratio * mpmath.exp(kk * change)

            truth = mpmath.sin(start) * abs(mpmath.quad(integrand, mpmath.linspace(start, end, 9)))
        tensors = [torch.tensor([float(v)], dtype=DOUBLE) for v in (k, a, 1 - a, w, point)]
        got = vmf_sample.cosine_gradient(dim, *tensors)
        assert abs(got.item() / float(truth) - 1) < 1e-9
        own = vmf_sample.cosine_gradient(dim, tensors[0], None, None, tensors[3], tensors[4])
        assert abs(own.item() / float(truth) - 1) < 1e-9


def test_cosine_gradient_edges() -> None:
    def at(k: float, w: float) -> float:
        t = [torch.tensor([v], dtype=DOUBLE) for v in (k, w, 1 - w)]
        return vmf_sample.cosine_gradient(5, t[0], None, None, t[1], t[2]).item()

    assert at(2.0, 1.0) == 0.0 and at(2.0, -1.0) == 0.0 and at(math.inf, 1.0) == 0.0
    assert math.isnan(at(-1.0, 0.5)) and math.isnan(at(math.nan, 0.5)) and math.isnan(at(1.0, math.nan))


@pytest.mark.parametrize(
    ("dim", "k", "n"),
    [
        *((2, 1.0, 10_000), (3, 2.0, 10_000), (5, 2.0, 40_000), (10, 5.0, 10_000), (64, 50.0, 10_000)),
        *((5, 0.0, 10_000), (2, 1e6, 10_000), (3, 1e6, 10_000), (5, 1e6, 10_000), (128, 1e6, 10_000)),
    ],
)
def test_gradient_of_the_mean_is_unbiased(dim: int, k: float, n: int) -> None:
    """The average of dw/dk is dA/dk within 5 standard errors; at d = 5, k = 2 that excludes the pathwise 0.1277."""
    w, one_minus_w = draw_cosines(dim, k, n, seed=11)
    kk = torch.full((n,), k, dtype=DOUBLE)
    a, complement = (t.expand(n) for t in vmf_sample._mean(dim, kk[:1]))
    gradient = vmf_sample.cosine_gradient(dim, kk, a, complement, w, one_minus_w)
    truth, error = mean_slope(dim, k), gradient.std().item() / math.sqrt(n)
    assert error < 0.02 * truth
    assert abs(gradient.mean().item() - truth) <= SIGMAS * error
    if (dim, k) == (5, 2.0):
        assert abs(truth - 0.14739) < 1e-5
        assert gradient.mean().item() - 0.1277 > 10 * error


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_gradients_of_a_quadratic_are_unbiased(dim: int) -> None:
    """E (a.x)^2 = c0 + c1 (a.mu)^2 with c1 = 1 - d A / k: gradients in mu (tangent) and k within 5 standard errors."""
    n, k = 20_000, 3.0
    a, mu = 1.5 * unit(dim, 4), unit(dim, 5)
    mean = mu.expand(n, dim).clone().requires_grad_()
    kk = torch.full((n,), k, dtype=DOUBLE, requires_grad=True)
    x = vmf_sample.rsample(mean, kk, seed=13)
    to_mean, to_k = torch.autograd.grad((x @ a).square().sum(), (mean, kk))
    assert (to_mean @ mu).abs().max() < 1e-13
    r, slope, along = mean_resultant(dim, k), mean_slope(dim, k), a @ mu
    truth = 2 * (1 - dim * r / k) * along * (a - along * mu)
    assert ((to_mean.mean(0) - truth).abs() <= SIGMAS * to_mean.std(0) / math.sqrt(n) + 1e-14).all()
    second = (dim - 1) * (r / k**2 - slope / k)  # d E[w^2] / dk, E[w^2] = 1 - (d-1) A / k
    truth_k = second * along**2 - second / (dim - 1) * (a @ a - along**2)
    assert abs(to_k.mean() - truth_k) <= SIGMAS * to_k.std() / math.sqrt(n)


def test_backward_and_jvp_agree() -> None:
    mean, k = torch.stack([unit(7, 1), unit(7, 2)]), torch.tensor([0.7, 300.0], dtype=DOUBLE)
    generator = torch.Generator().manual_seed(3)
    mean_t, k_t = (torch.randn(t.shape, dtype=DOUBLE, generator=generator) for t in (mean, k))

    def function(m: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return vmf_sample.rsample(m, c, (3,), seed=2)

    x, forward = torch.func.jvp(function, (mean, k), (mean_t, k_t))
    g = torch.randn(x.shape, dtype=DOUBLE, generator=generator)
    leaves = mean.clone().requires_grad_(), k.clone().requires_grad_()
    to_mean, to_k = torch.autograd.grad((function(*leaves) * g).sum(), leaves)
    torch.testing.assert_close((forward * g).sum(), (to_mean * mean_t).sum() + (to_k * k_t).sum())
