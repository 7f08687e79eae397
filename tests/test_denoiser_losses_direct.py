"""Losses whose gradients are made with their values: against the reference, scaled, taken again, and a second time."""

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _denoiser_losses_direct as direct
from fokker import _native, denoiser
from fokker.reference import denoiser_losses as reference

F64 = torch.float64
NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
SHAPES = [(3,), (40, 2), (3, 7), (2, 3, 5, 9), (2, 3, 37, 41), (1, 33_000)]


@pytest.fixture(params=NATIVE)
def native(request):
    with fokker.use_backend(request.param):
        yield request.param


def tensors(count, *shape, backend="cpu", dtype=F64, layout=lambda t: t):
    g = torch.Generator().manual_seed(5)
    found = [torch.randn(shape, generator=g, dtype=F64) for _ in range(count)]
    device = "cuda" if backend == "cuda" else "cpu"
    return [layout(t.to(device, dtype)).requires_grad_() for t in found]


def channels_last(t):
    return t.to(memory_format=torch.channels_last) if t.dim() == 4 else t


def levels(like, seed=9):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(like.shape[0], generator=g, dtype=F64) + 0.3).to(like.device, like.dtype)


def inputs(*shape, backend="cpu", dtype=F64, layout=lambda t: t):
    """What the losses below are of; y, r and f are leaves."""
    y, r, f = tensors(3, *shape, backend=backend, dtype=dtype, layout=layout)
    s, w = levels(y), levels(y, seed=3)
    data, noise = r.detach(), f.detach()
    column = s.reshape(-1, *(1,) * (y.dim() - 1))
    return {
        **{"y": y, "r": r, "f": f, "s": s, "w": w, "data": data, "noise": noise},
        **{"x": data.exp(), "x0": noise.exp(), "noisy": 0.7 * data + column * noise},
    }


def widened(given):
    """The same numbers in float64, leaves of their own."""
    return {k: t.detach().double().requires_grad_(t.requires_grad) for k, t in given.items()}


def losses(v, reduction="mean"):
    """name -> (loss, its leaves)."""
    y, r, f, s, w, data, noise, x, x0, noisy = v.values()
    dsm, mult, tail = (
        denoiser.denoising_score_matching,
        denoiser.multiplicative_score_matching,
        {"reduction": reduction},
    )
    return {
        "v": (dsm(y, s, 0.7, data=data, noise=noise, kind="v", weighting="edm", weight=w, **tail), (y,)),
        "x0": (dsm(y, s, data=data, kind="x0", weighting="edm", **tail), (y,)),
        "noisy": (dsm(y, s, 0.7, data=data, noisy=noisy, **tail), (y,)),
        "lognormal": (mult(y, x, x0, 0.1, s, weight=w, **tail), (y,)),
        "hyvarinen": (mult(y, x, x0, s, 0.4, hyvarinen=True, **tail), (y,)),
        "vsd": (denoiser.score_difference(y, data, noise, weight=w, **tail), (y,)),
        "sid": (denoiser.score_difference(y, r, f, kind="sid", alpha=s, weight=w, **tail), (y, r, f)),
        "sim": (denoiser.score_difference(y, data, f, kind="sim", weight=w, scale=s, **tail), (y, f)),
    }


def expected(v, reduction="mean"):
    """The same by the reference, which gives means over samples."""
    y, r, f, s, w, data, noise, x, x0, noisy = v.values()
    eps = (noisy - 0.7 * data) / s.reshape(-1, *(1,) * (y.dim() - 1))
    dsm, mult = reference.denoising_score_matching, reference.multiplicative_score_matching
    found = {
        "v": (dsm(y, data, noise, s, 0.7, "v", "edm", w), (y,)),
        "x0": (dsm(y, data, noise, s, 1.0, "x0", "edm"), (y,)),
        "noisy": (dsm(y, data, eps, s, 0.7, "epsilon"), (y,)),
        "lognormal": (mult(y, x, x0, 0.1, s, w), (y,)),
        "hyvarinen": (mult(y, x, x0, s, 0.4, 1.0, True), (y,)),
        "vsd": (reference.score_difference(y, data, noise, "vsd", weight=w), (y,)),
        "sid": (reference.score_difference(y, r, f, "sid", s, w), (y, r, f)),
        "sim": (reference.score_difference(y, data, f, "sim", weight=w, scale=s), (y, f)),
    }
    return {k: (t.mean() if reduction == "mean" else t.sum() * y[0].numel(), own) for k, (t, own) in found.items()}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_values_and_gradients(native, dtype, reduction):
    layout = channels_last if reduction == "sum" else lambda t: t
    unit = 1e-12 if dtype is F64 else 4e-7
    for shape in SHAPES[:4] if native == "emu" else SHAPES:
        given = inputs(*shape, backend=native, dtype=dtype, layout=layout)
        want = expected(widened(given), reduction)
        for name, (loss, leaves) in losses(given, reduction).items():
            assert "_Kept" in loss.grad_fn.name(), name
            value, own = want[name]
            torch.testing.assert_close(loss.double(), value, rtol=unit, atol=0.1 * unit, msg=name)
            found, far = torch.autograd.grad(loss, leaves), torch.autograd.grad(value, own)
            for g, e in zip(found, far, strict=True):
                assert g.dtype is dtype and g.stride() == given["y"].stride()
                torch.testing.assert_close(g.double(), e, rtol=unit, atol=unit * float(e.abs().max()), msg=name)


def test_a_scaled_loss_and_a_second_backward(native):
    given = inputs(4, 3, 5, backend=native)
    want = expected(given)
    for name, (loss, leaves) in losses(given).items():
        far = torch.autograd.grad(3.0 * want[name][0], leaves, retain_graph=True)
        for again in range(2):  # the first gives away what was made, the second makes it anew
            found = torch.autograd.grad(3.0 * loss, leaves, retain_graph=again == 0)
            for g, e in zip(found, far, strict=True):
                torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-15, msg=f"{name} {again}")


def test_gradients_of_gradients(native):
    given = inputs(2, 3, backend=native)
    want = expected(given, "sum")
    for name, (loss, leaves) in losses(given, "sum").items():
        both = []
        for of in (loss, want[name][0]):
            first = torch.autograd.grad(of, leaves, create_graph=True)
            if name == "vsd":  # of a target that is a constant: there is no second derivative to compare
                both.append(first)
                continue
            bent = sum((g**2).sum() for g in first)
            both.append(torch.autograd.grad(bent, leaves, allow_unused=True, materialize_grads=True))
        for g, e in zip(*both, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-11, atol=1e-13, msg=name)


def test_gradcheck():
    y, r, f = tensors(3, 2, 3)
    s = levels(y)
    dsm, sid = denoiser.denoising_score_matching, denoiser.score_difference
    calls = (
        (lambda p: dsm(p, s, 0.3, data=r.detach(), noise=f.detach(), kind="v"), (y,)),
        (lambda p: denoiser.multiplicative_score_matching(p, r.detach().exp(), f.detach().exp(), 0.1, s), (y,)),
        (lambda p, q, t: sid(p, q, t, kind="sid", scale=s), (y, r, f)),
    )
    for call, leaves in calls:
        assert "_Kept" in call(*leaves).grad_fn.name()
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="wants the CPU kernels")
def test_the_same_bits_on_two_threads():
    threads = torch.get_num_threads()
    for shape in ((6, 3, 60, 61), (2, 70_001)):
        given, found = inputs(*shape, dtype=torch.float32), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                made = losses(given)
                found.append([t for loss, own in made.values() for t in (loss, *torch.autograd.grad(loss, own))])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_out_of_the_ordinary_takes_the_op():
    y, r = tensors(2, 4, 5)
    s = levels(y)
    dsm = denoiser.denoising_score_matching
    half = y.detach().bfloat16().requires_grad_()
    for loss in (
        dsm(y, s, data=r, kind="x0"),  # a gradient in the data
        dsm(y, s.clone().requires_grad_(), data=r.detach(), kind="x0", weighting="edm"),
        dsm(half, s, data=r.detach(), kind="x0"),  # whose gradient would be rounded before it is scaled
        dsm(y, s, data=r.detach(), kind="x0", reduction="none"),
    ):
        assert "_Kept" not in str(loss.grad_fn.name())
    with fokker.use_backend("reference"):
        assert direct.module_for((y.detach(),), (), "mean") is None


@pytest.mark.skipif(_native.emu is None, reason="wants the emulator")
@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_rescale(dtype):
    x = torch.arange(3000, dtype=dtype).reshape(60, 50).mT.contiguous().mT
    y = x.clone()
    _native.emu.loss_rescale(y, torch.ones((), dtype=dtype))
    assert torch.equal(x, y)
    _native.emu.loss_rescale(y, torch.tensor(0.5, dtype=dtype))
    assert torch.equal(0.5 * x, y)
    with pytest.raises(ValueError, match=r"factor must have one entry, got \(2,\)"):
        _native.emu.loss_rescale(y, torch.ones(2, dtype=dtype))
