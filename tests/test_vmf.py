"""fokker.vmf: log densities, mixtures and bad input, on every backend."""

import math

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from sphere import F64, close, log_area, on, unit

import fokker
from fokker import _mixture, vmf
from fokker._cli.check import _device


# ---- log_prob -----------------------------------------------------------------------------------------------------
def test_log_prob_broadcasts(backend):
    device = _device(backend)
    x, mean, k = unit(5, 1, 6).to(device), unit(3, 6).to(device), on(backend, 0.0, 2.0, 500.0)
    got = vmf.log_prob(x, mean, k)
    assert got.shape == (5, 3)
    close(got, vmf.log_normalizer(6, k) + k * (x * mean).sum(-1), rtol=1e-13, atol=1e-13)
    assert vmf.log_prob(x[0, 0], mean[0], 2.0).shape == ()
    assert vmf.log_prob(x[0, 0], mean[0], torch.tensor([1, 2], device=device)).shape == (2,)
    assert vmf.log_prob(x[:0], mean, k).shape == (0, 3)
    columns = torch.empty(6, 5, dtype=F64, device=device).copy_(x[:, 0].T).T  # rows are not adjacent in memory
    close(vmf.log_prob(columns, mean[1], 2.0), got[:, 1], rtol=4e-15)
    close(vmf.log_prob(x.expand(5, 3, 6), mean.expand(5, 3, 6), k.expand(5, 3)), got, rtol=4e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_log_prob_in_narrow_dtypes(backend, dtype):
    """Narrow inputs taken as exact: float32 within the roundings of a sum of terms of size k, halves rounded once."""
    k = torch.tensor([0.0, 3.0, 200.0, 4096.0]).to(dtype)
    for d in (2, 5, 300, 2049):
        x, mean = unit(6, 1, d, dtype=dtype), unit(d, dtype=dtype)
        got = vmf.log_prob(*(t.to(_device(backend)) for t in (x, mean, k)))
        assert got.dtype == dtype
        with fokker.use_backend("reference"):
            want = vmf.log_prob(x.double(), mean.double(), k.double())
        terms = want.abs() + k.double() + abs(log_area(d))
        allowed = {torch.float32: 2e-7 * terms, torch.float16: 1e-3 * terms, torch.bfloat16: 8e-3 * terms}[dtype]
        finite = want.abs() < torch.finfo(dtype).max
        assert bool(((got.cpu().double() - want).abs() <= allowed)[finite].all()), d


def test_mixed_dtypes_promote(backend):
    device = _device(backend)
    x, mean = unit(4, 5, dtype=torch.float32).to(device), unit(5).to(device)
    assert vmf.log_prob(x, mean, 2.0).dtype == F64
    assert vmf.log_prob(x, mean.float(), on(backend, 2.0)[0]).dtype == torch.float32
    assert vmf.kl_divergence(mean, 1.0, mean.float(), 2.0).dtype == F64


@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.float16])
@pytest.mark.parametrize("d", [2, 5, 300, 4100])
def test_infinite_concentration_is_a_point_mass(backend, d, dtype):
    """inf at the mean (and where a length has been divided out), -inf elsewhere, nan where nan is given."""
    mean = unit(d, dtype=dtype)
    eps = torch.finfo(dtype).eps if dtype in (F64, torch.float32) else 0.0
    x = torch.stack([mean, mean * (1 + 2 * eps), -mean, mean.roll(1), mean * math.nan, mean])
    x[5, d - 1] = math.nan
    want = [math.inf, math.inf, -math.inf, -math.inf, math.nan, math.nan]
    mean, x = mean.to(_device(backend)), x.to(_device(backend))
    for k in (math.inf, torch.full((6,), math.inf, dtype=dtype, device=x.device)):
        got = vmf.log_prob(x, mean, k)
        assert got.dtype == dtype
        torch.testing.assert_close(got.cpu().double(), torch.tensor(want, dtype=F64), equal_nan=True, rtol=0, atol=0)
    mixed = torch.tensor([math.inf, 2.0, 0.0, math.inf, 2.0, 3.0], dtype=dtype, device=x.device)
    got, plain = vmf.log_prob(x[[0, 0, 0, 2, 2, 3]], mean, mixed), vmf.log_prob(x[[0, 0, 0, 2, 2, 3]], mean, mixed[1])
    assert got.tolist()[::3] == [math.inf, -math.inf] and torch.equal(got[[1, 4]], plain[[1, 4]])
    assert bool(got[[1, 2, 4, 5]].isfinite().all())


def test_infinite_concentration_leaves_the_gradients_of_other_rows_alone(backend):
    x, mean = unit(3, 4).to(_device(backend)), unit(4).to(_device(backend))
    k = on(backend, 2.0, math.inf, 5.0)
    grads = []
    for kk in (k, torch.where(k.isinf(), 1.0, k)):
        leaves = [t.clone().requires_grad_() for t in (x, kk)]
        grads.append(torch.autograd.grad(vmf.log_prob(leaves[0], mean, leaves[1])[[0, 2]].sum(), leaves))
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]]) and bool(got[[0, 2]].isfinite().all())


# ---- mixtures -----------------------------------------------------------------------------------------------------
def components(n, k, d, dtype=F64):
    log_w = torch.log_softmax(torch.randn(k, dtype=F64), 0)
    return [t.to(dtype) for t in (unit(n, d), unit(k, d), torch.logspace(-1, 2.5, k, dtype=F64), log_w)]


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 2), (37, 5, 9), (200, 17, 64)])
def test_mixture_is_a_log_sum_of_densities(backend, n, k, d):
    args = [t.to(_device(backend)) for t in components(n, k, d)]
    x, means, concentrations, log_w = args
    each = torch.stack([vmf.log_prob(x, means[j], concentrations[j]) + log_w[j] for j in range(k)], 1)
    total, shares = vmf.mixture_log_prob(*args, return_responsibilities=True)
    close(total, torch.logsumexp(each, 1), rtol=1e-12, atol=1e-12)
    close(shares, torch.softmax(each, 1), rtol=1e-11, atol=1e-15)
    close(shares.sum(1), torch.ones(n), rtol=1e-14)
    assert shares.shape == (n, k) and bool((shares >= 0).all())
    close(vmf.mixture_log_prob(*args), total, rtol=1e-14, atol=1e-14)
    assert vmf.mixture_log_prob(x[:0], *args[1:]).shape == (0,)


def test_mixture_weights_may_be_zero_or_unnormalised(backend):
    x, means, k, log_w = (t.to(_device(backend)) for t in components(20, 3, 4))
    close(vmf.mixture_log_prob(x, means, k, log_w + 700.0), vmf.mixture_log_prob(x, means, k, log_w) + 700, rtol=1e-14)
    off = torch.tensor([0.0, -math.inf, -math.inf], dtype=F64).to(x)
    total, shares = vmf.mixture_log_prob(x, means, k, off, return_responsibilities=True)
    close(total, vmf.log_prob(x, means[0], k[0]), rtol=1e-13, atol=1e-13)
    assert torch.equal(shares, torch.tensor([1.0, 0.0, 0.0], dtype=F64).to(x).expand(20, 3))


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_many_tiles_equal_one(backend, dtype, monkeypatch):
    args = [t.to(_device(backend)) for t in components(150, 8, 16, dtype)]
    leaves = [t.clone().requires_grad_() for t in args]
    tolerance = 200 * torch.finfo(dtype).eps  # torch's matrix products may round otherwise at another height

    def run():
        total = vmf.mixture_log_prob(*leaves)
        pair = vmf.mixture_log_prob(*args, return_responsibilities=True)
        return total, *pair, *torch.autograd.grad((total * torch.linspace(0, 1, 150).to(total)).sum(), leaves)

    one = run()
    if backend != "reference":
        monkeypatch.setattr(_mixture, "_tiles", lambda n, k, device: ((i, min(n, i + 32)) for i in range(0, n, 32)))
    for got, want in zip(run(), one, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_mixture_keeps_no_more_than_tiles():
    """n K logits in float32 would be 50 MB; two tiles are 4 MB, the result and its gradient in x 2.4 MB."""
    n, k, d = 50_000, 250, 5
    x, *rest = components(n, k, d, torch.float32)
    leaves = [t.requires_grad_() for t in (x, *rest)]
    with fokker.use_backend("cpu"):
        vmf.mixture_log_prob(x[:8], *rest)
        with torch.profiler.profile(profile_memory=True) as profile:
            torch.autograd.grad(vmf.mixture_log_prob(*leaves).sum(), leaves)
    live = peak = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        live += event.nbytes()
        peak = max(peak, live)
    assert 2e6 < peak < 1.2e7, peak


# ---- bad input ----------------------------------------------------------------------------------------------------
Z = torch.ones(2) * 1j
X, MU = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]), torch.tensor([0.0, 1.0, 0.0])
META = torch.ones(2, device="meta")
BAD = {
    "dim 1": (lambda: vmf.entropy(1, 2.0), ValueError, "dim must be at least 2"),
    "dim float": (lambda: vmf.entropy(3.0, 2.0), TypeError, "dim must be an int, got float"),
    "complex": (lambda: vmf.entropy(3, torch.ones(2, dtype=torch.cfloat)), TypeError, "concentration must be real"),
    "complex numpy": (lambda: vmf.log_normalizer(3, np.ones(2, complex)), TypeError, "concentration must be real"),
    "text": (lambda: vmf.kl_uniform(3, "2"), TypeError, "concentration must be a tensor, a NumPy array or a real"),
    "inverse both": (lambda: vmf.concentration_from_resultant(3, 0.5, complement=0.5), ValueError, "either resultant"),
    "inverse none": (lambda: vmf.concentration_from_resultant(3), ValueError, "either resultant or complement"),
    "inverse complex": (lambda: vmf.concentration_from_resultant(3, Z), TypeError, "resultant must be real"),
    "out shape": (lambda: vmf.entropy(3, torch.ones(2), out=torch.ones(3)), ValueError, r"out must have shape \(2,\)"),
    "log_prob array": (lambda: vmf.log_prob(X.numpy(), MU, 1.0), TypeError, "x must be a tensor, got ndarray"),
    "log_prob dims": (lambda: vmf.log_prob(X, MU[:2], 1.0), ValueError, r"and mean_direction \(2,\) must agree"),
    "log_prob 0-d": (lambda: vmf.log_prob(X[0, 0], MU, 1.0), ValueError, "x must have shape"),
    "log_prob dim 1": (lambda: vmf.log_prob(X[:, :1], MU[:1], 1.0), ValueError, "dim must be at least 2"),
    "log_prob int": (lambda: vmf.log_prob(X.long(), MU, 1.0), TypeError, "x must be float16, bfloat16, float32 or"),
    "log_prob complex": (lambda: vmf.log_prob(X, MU + 0j, 1.0), TypeError, "mean_direction must be float16"),
    "log_prob complex k": (lambda: vmf.log_prob(X, MU, Z), TypeError, "concentration must be real"),
    "log_prob shapes": (lambda: vmf.log_prob(X, MU, torch.ones(3)), ValueError, "batch dimensions do not broadcast"),
    "log_prob device": (lambda: vmf.log_prob(X, MU, META), TypeError, "concentration is on meta, x on cpu"),
    "kl dims": (lambda: vmf.kl_divergence(X, 1.0, MU[:2], 1.0), ValueError, "mean_p .* and mean_q .* must agree"),
    "kl shapes": (lambda: vmf.kl_divergence(X, torch.ones(3), MU, 1.0), ValueError, "do not broadcast"),
    "kl complex": (lambda: vmf.kl_divergence(X, Z, MU, 1.0), TypeError, "concentration_p must be real"),
    "kl text": (lambda: vmf.kl_divergence(X, "1", MU, 1.0), TypeError, "concentration_p must be a tensor"),
    "fit list": (lambda: vmf.fit([[1.0, 0.0]]), TypeError, "x must be a real floating tensor, got list"),
    "fit int": (lambda: vmf.fit(X.long()), TypeError, "x must be a real floating tensor, got torch.int64"),
    "fit complex": (lambda: vmf.fit(X + 0j), TypeError, "x must be a real floating tensor"),
    "fit empty": (lambda: vmf.fit(X[:0]), ValueError, r"n >= 1, got \(0, 3\)"),
    "fit one row": (lambda: vmf.fit(X[0]), ValueError, r"x must have shape \(n, d\)"),
    "fit dim 1": (lambda: vmf.fit(torch.ones(4, 1)), ValueError, "dim must be at least 2"),
    "fit not unit": (lambda: vmf.fit(2 * X), ValueError, "rows of x must be unit vectors"),
    "fit nan": (lambda: vmf.fit(torch.stack([MU, MU * math.nan, MU])), ValueError, "rows of x must be unit vectors"),
    "weights list": (lambda: vmf.fit(X, [1.0, 2.0]), TypeError, "weights must be a tensor, got list"),
    "weights shape": (lambda: vmf.fit(X, torch.ones(3)), ValueError, r"weights \(3,\) must have one entry a row of x"),
    "weights sign": (lambda: vmf.fit(X, torch.tensor([2.0, -1.0])), ValueError, "weights must be non-negative"),
    "weights nan": (lambda: vmf.fit(X, torch.tensor([2.0, math.nan])), ValueError, "weights must be non-negative"),
    "weights inf": (lambda: vmf.fit(X, torch.tensor([2.0, math.inf])), ValueError, "weights must be .*finite"),
    "weights zero": (lambda: vmf.fit(X, torch.zeros(2)), ValueError, "weights must not sum to zero"),
    "weights complex": (lambda: vmf.fit(X, Z), TypeError, "weights must be real"),
    "weights device": (lambda: vmf.fit(X, META), TypeError, "weights is on meta, x on cpu"),
    "mixture shapes": (lambda: vmf.mixture_log_prob(X, X, X[0], X[0, :2]), ValueError, r"log_weights \(K,\) expected"),
    "mixture none": (lambda: vmf.mixture_log_prob(X, X[:0], META[:0], META[:0]), ValueError, "at least one component"),
    "mixture list": (lambda: vmf.mixture_log_prob(X, X, [1.0, 1.0], X[0, :2]), TypeError, "concentrations must be a"),
    "mixture device": (lambda: vmf.mixture_log_prob(X, X, META, torch.ones(2)), TypeError, "concentrations is on meta"),
    "mixture complex": (lambda: vmf.mixture_log_prob(X, X, torch.ones(2), Z), TypeError, "must be real"),
    "mixture dim 1": (lambda: vmf.mixture_log_prob(X[:, :1], X[:, :1], X[0, :2], X[0, :2]), ValueError, "at least 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_named_error(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
