"""Gated activations, embeddings, preconditioning and EDM2's operations of `fokker.denoiser`."""

import math

import pytest
import torch
from conftest import BACKENDS
from torch.nn import functional

import fokker
from fokker import denoiser
from fokker.reference import denoiser_heads as reference

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
HALVES = (torch.float16, torch.bfloat16)


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


@pytest.mark.parametrize("backend", NATIVE)
def test_values_and_which_half_is_the_gate(backend):
    x = torch.randn(5, 148, device=device_of(backend))
    a, b = x.double().chunk(2, -1)
    with fokker.use_backend(backend):
        wanted = {
            "swiglu": (denoiser.swiglu(x), functional.silu(a) * b),
            "swiglu second": (denoiser.swiglu(x, gate_first=False), a * functional.silu(b)),
            "silu_gate": (denoiser.silu_gate(x), a * functional.silu(b)),
            "geglu": (denoiser.geglu(x), a * functional.gelu(b, approximate="tanh")),
            "geglu exact": (denoiser.geglu(x, approximate="none", gate_first=True), functional.gelu(a) * b),
            "gelu": (denoiser.gelu_tanh(x), functional.gelu(x.double(), approximate="tanh")),
            "mp_silu": (denoiser.mp_silu(x), functional.silu(x.double()) / 0.596),
        }
    for name, (got, want) in wanted.items():
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("backend", NATIVE)
def test_tails(backend):
    """Far out the exact GELU keeps its digits (mpmath's, which 1 + erf loses), and nothing overflows."""
    x = torch.tensor([-37.0, -20.0, -8.0, -5.0, -1e-30, 0.0, 5.0, 40.0, 1e30, -1e30, math.nan], dtype=torch.float64)
    x = x.to(device_of(backend)).requires_grad_()
    with fokker.use_backend(backend):
        y = denoiser.gelu_tanh(x, approximate="none")
        (slope,) = torch.autograd.grad(y.sum(), x)
    want = torch.tensor(
        [
            -2.1184613523340935e-298,
            -5.507248237212468e-88,
            -4.976768459417427e-15,
            -1.4332578593959695e-06,
            -5e-31,
            0.0,
            4.999998566742141,
            40.0,
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(y.detach().cpu()[:8], want, rtol=4e-15, atol=0)
    assert y[8] == 1e30 and y[9] == 0 and y[10].isnan() and slope[10].isnan()
    torch.testing.assert_close(slope[[7, 8, 9]].cpu(), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    with fokker.use_backend(backend):
        single = x.detach().float().requires_grad_()
        for f in (denoiser.mp_silu, denoiser.gelu_tanh):
            y = f(single)
            (slope,) = torch.autograd.grad(y.sum(), single)
            assert bool(y[:10].isfinite().all()) and bool(slope[:10].isfinite().all())


@pytest.mark.parametrize("backend", NATIVE)
def test_layouts_and_dimensions(backend):
    x = torch.randn(2, 12, 5, 4, device=device_of(backend))
    bias = torch.randn(12, device=x.device)
    first, second = (x + bias.view(-1, 1, 1)).chunk(2, 1)
    want = first * functional.silu(second)
    views = {
        "contiguous": x,
        "channels_last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "spaced": torch.stack((x, x), -1)[..., 0],
        "odd offset": torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape),
    }
    grad = torch.randn_like(want)
    with fokker.use_backend(backend):
        for name, view in views.items():
            got = denoiser.silu_gate(view, bias, dim=1)
            torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6, msg=name)
            leaf, shift = view.detach().requires_grad_(), bias.clone().requires_grad_()
            found = torch.autograd.grad(denoiser.silu_gate(leaf, shift, dim=1), (leaf, shift), grad)
            again = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
            a, b = (again[0] + again[1].view(-1, 1, 1)).chunk(2, 1)
            plain = torch.autograd.grad(a * functional.silu(b), again, grad)
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        last = views["channels_last"]
        assert denoiser.silu_gate(last, dim=1).is_contiguous(memory_format=torch.channels_last)
        assert denoiser.swiglu(x[:0]).shape == (0, 12, 5, 2)
        out = torch.empty(2, 6, 5, 4, device=x.device)
        assert denoiser.silu_gate(x, bias, dim=1, out=out) is out
        torch.testing.assert_close(out, want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("backend", NATIVE)
def test_halves_are_the_float32_result_rounded_once(backend):
    for dtype in HALVES:
        x = (3 * torch.randn(24, 90)).to(device_of(backend), dtype)
        bias = torch.randn(90).to(x)
        grad = torch.randn(24, 45).to(x)
        with fokker.use_backend(backend):
            for f in (denoiser.swiglu, denoiser.geglu):
                assert torch.equal(f(x, bias), f(x.float(), bias.float()).to(dtype))
                for given in ((x,), (x, bias)):
                    leaves = [t.clone().requires_grad_() for t in given]
                    wide = [t.float().requires_grad_() for t in given]
                    made = torch.autograd.grad(f(*leaves), leaves, grad)
                    want = torch.autograd.grad(f(*wide), wide, grad.float())
                    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(made, want, strict=True))


@pytest.mark.parametrize("backend", NATIVE)
def test_pairs(backend):
    """A gate and a value of two projections, of any strides each: what the packed halves give, to the bit."""
    whole = torch.randn(2, 12, 5, 4, device=device_of(backend))
    bias, grad = torch.randn(12, device=whole.device), torch.randn(2, 6, 5, 4, device=whole.device)
    first, second = whole.chunk(2, 1)
    pairs = {
        "views of one": (first, second),
        "contiguous": (first.contiguous(), second.contiguous()),
        "two layouts": (first.contiguous(memory_format=torch.channels_last), second.transpose(2, 3).contiguous().mT),
    }
    with fokker.use_backend(backend):
        for f in (denoiser.swiglu, denoiser.silu_gate, denoiser.geglu):
            for shift in (None, bias):
                leaves = [t.detach().requires_grad_() for t in (whole, shift) if t is not None]
                want = f(*leaves, gate_first=True, dim=1)
                grads = torch.autograd.grad(want, leaves, grad)
                wanted = [part for t in grads for part in t.chunk(2, int(t.dim() > 1))]
                for name, pair in pairs.items():
                    made = [t.detach().requires_grad_() for t in (*pair, *(() if shift is None else shift.chunk(2)))]
                    got = f(tuple(made[:2]), None if shift is None else tuple(made[2:]), dim=1)
                    assert torch.equal(got, want), name
                    found = torch.autograd.grad(got, made, grad)
                    for a, b in zip(found, wanted, strict=True):  # sums over the channels: in another order
                        close = torch.equal(a, b) if a.dim() > 1 else torch.allclose(a, b, rtol=1e-5, atol=1e-5)
                        assert close, name
        out = torch.empty_like(grad)
        assert denoiser.swiglu((first, second), dim=1, out=out) is out
        assert torch.equal(out, denoiser.swiglu(whole, dim=1))
        alone = first.clone()
        assert torch.equal(denoiser.swiglu((alone, second), dim=1, out=alone), out)  # in place
        assert denoiser.swiglu((first[:0], second[:0])).shape == (0, 6, 5, 4)


@pytest.mark.parametrize("backend", NATIVE)
def test_bias_gradients_do_not_depend_on_the_layout_or_threads(backend):
    """Sums over all but the channels, in several parts of several tiles."""
    g = torch.Generator().manual_seed(6)
    for shape, dim, layout in (
        ((700, 296), 1, torch.contiguous_format),
        ((3, 20, 37, 41), 1, torch.contiguous_format),
        ((3, 20, 37, 41), 1, torch.channels_last),
        ((8, 2305), 0, torch.contiguous_format),
        ((0, 6), 1, torch.contiguous_format),
        ((6,), 0, torch.contiguous_format),
    ):
        x = torch.randn(shape, generator=g).to(device_of(backend)).contiguous(memory_format=layout)
        bias = torch.randn(shape[dim], generator=g).to(x)
        grad = torch.randn_like(denoiser.silu_gate(x, dim=dim))
        found = []
        for chosen, dtype, threads in ((backend, x.dtype, 1), (backend, x.dtype, 2), ("reference", torch.float64, 2)):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            leaf, level = x.detach().to(dtype), bias.detach().to(dtype).requires_grad_()
            with fokker.use_backend(chosen):
                y = denoiser.silu_gate(leaf, level, dim=dim)
                found += torch.autograd.grad(y, level, grad.to(dtype))
            torch.set_num_threads(before)
        assert torch.equal(found[0], found[1])
        torch.testing.assert_close(found[0].double(), found[2], rtol=1e-6, atol=1e-6 * float(found[2].abs().max()))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
def test_results_past_the_cache():
    """The CPU writes results from 16 MB on past the cache: the same bits as those of parts, and of misplaced rows."""
    x = torch.randn(2050, 4096)
    with fokker.use_backend("cpu"):
        whole = denoiser.swiglu(x)
        assert torch.equal(whole, torch.cat([denoiser.swiglu(t) for t in x.chunk(2)]))
        misplaced = torch.empty(2050, 2049)[:, 1:]
        assert torch.equal(whole, denoiser.swiglu(x, out=misplaced))
        once = denoiser.geglu(x, gate_first=True)
        assert torch.equal(once, torch.cat([denoiser.geglu(t, gate_first=True) for t in x.chunk(2)]))


# ---- embeddings and preconditioning ----------------------------------------------------------------------------------
def test_timestep_embedding_is_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.tensor([0.0, 0.5, 17.0, 999.0])
    for flip, shift, dim in ((True, 0.0, 32), (False, 1.0, 33)):
        want = embeddings.get_timestep_embedding(
            t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=2.0, max_period=5000
        )
        got = denoiser.timestep_embedding(
            t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=2.0, max_period=5000
        )
        torch.testing.assert_close(got, want, rtol=0, atol=3e-4)  # whose float32 phase, up to 2000, is off by that


def test_numbers_of_a_compiled_call_may_change():
    """Which Dynamo then traces as symbols."""
    a, b = torch.randn(2, 3, 4), torch.randn(2, 3, 4)

    def f(v):
        embedded = denoiser.timestep_embedding(a[0, 0], 8, scale=v)
        return embedded, denoiser.mp_sum(a, b, v), denoiser.mp_cat(a, b, t=v), denoiser.edm_precondition_out(a, b, v)

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="eager")
    for v in (0.25, 0.5, 0.75):
        torch.testing.assert_close(compiled(v), f(v), rtol=1e-6, atol=1e-6)


def test_fourier_features():
    t, f, phase = torch.rand(3), 16 * torch.randn(5), torch.rand(5)
    turns = 2 * math.pi * t.double()[:, None] * f.double()
    got = denoiser.fourier_embedding(t, f)
    assert torch.equal(got, torch.cat((turns.cos(), turns.sin()), -1).float())
    assert torch.equal(denoiser.fourier_embedding(t, f, flip_sin_to_cos=False), got.roll(5, -1))
    many = denoiser.mp_fourier(t, torch.randn(20000), torch.rand(20000))
    assert bool(((many.square().mean(-1) - 1).abs() < 0.03).all())  # sd of the mean of 2 cos^2: 0.005; six of those
    assert denoiser.mp_fourier(t, f, phase).shape == (3, 5)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_embeddings_by_the_kernel_are_those_of_torch(backend, dtype):
    """Phases of thousands of turns, odd widths, counts beside a vector's; the composed ops carry a gradient."""
    device = device_of(backend)
    t = (2e4 * torch.rand(3, 2, dtype=torch.float64) - 1e4).to(device)
    leaf = t.clone().requires_grad_()
    f, phase = (torch.randn(37, dtype=torch.float64).to(device) for _ in range(2))
    calls = (
        lambda t, dtype: denoiser.timestep_embedding(t, 67, scale=3.0, dtype=dtype),
        lambda t, dtype: denoiser.timestep_embedding(t, 2, flip_sin_to_cos=False, dtype=dtype),
        lambda t, dtype: denoiser.fourier_embedding(t, f, flip_sin_to_cos=False, dtype=dtype),
        lambda t, dtype: denoiser.mp_fourier(t, f, phase, dtype=dtype),
    )
    bound = {torch.float64: 4e-10, torch.float32: 1.5e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    with fokker.use_backend(backend):
        for call in calls:
            got, want = call(t, dtype), call(leaf, torch.float64).detach()
            assert got.dtype is dtype and got.shape == want.shape
            assert float((got.double() - want).abs().max()) <= 1.5 * bound
    assert denoiser.timestep_embedding(t[:0], 6).shape == (0, 2, 6)
    assert denoiser.timestep_embedding(torch.tensor(3.0), 6).shape == (6,)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_pixel_norm_and_its_gradient(backend, dtype):
    bound = {torch.float64: 1e-14, torch.float32: 4e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    g = torch.Generator().manual_seed(3)
    for shape, dim, layout in (
        ((2, 70, 3, 5), 1, torch.contiguous_format),
        ((2, 33, 17, 19), 1, torch.channels_last),
        ((3, 1100), 1, torch.contiguous_format),
        ((4, 5, 6), -1, torch.contiguous_format),
        ((7, 300), 0, torch.contiguous_format),
        ((0, 5, 2), 1, torch.contiguous_format),
    ):
        x, grad = (torch.randn(shape, generator=g).to(device_of(backend), dtype) for _ in range(2))
        x = x.contiguous(memory_format=layout).requires_grad_()
        wide = x.detach().double().requires_grad_()
        with fokker.use_backend(backend):
            y = denoiser.pixel_norm(x, dim)
            (got,) = torch.autograd.grad(y, x, grad)
        want = reference.pixel_norm(wide, dim, 1e-4)
        (expected,) = torch.autograd.grad(want, wide, grad.double())
        assert y.stride() == x.stride() and y.dtype is got.dtype is dtype
        for a, e in ((y, want), (got, expected)):
            torch.testing.assert_close(a.double(), e, rtol=bound, atol=bound)
    strided = torch.randn(3, 8, 5)[:, ::2]
    torch.testing.assert_close(denoiser.pixel_norm(strided), denoiser.pixel_norm(strided.contiguous()), rtol=0, atol=0)
    zero = torch.zeros(1, 3, 2, requires_grad=True)
    assert torch.equal(torch.autograd.grad(denoiser.pixel_norm(zero, eps=0.5).sum(), zero)[0], 2 + zero)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES], ids=str)
def test_concatenation_and_its_gradients(backend, dtype):
    """To the bit the products that torch makes of float32 (float64) numbers, in any layout, rounded once."""
    g = torch.Generator().manual_seed(3)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for shape, dim, layout in (
        ((2, 6, 5, 7), 1, torch.contiguous_format),
        ((2, 6, 5, 7), 1, torch.channels_last),
        ((3, 4, 17_000), -2, torch.contiguous_format),
        ((5, 3), 0, torch.contiguous_format),
        ((0, 3, 2), 1, torch.contiguous_format),
    ):
        a = torch.randn(shape, generator=g).to(device_of(backend), dtype)
        b, a = (t.contiguous(memory_format=layout).requires_grad_() for t in (a.narrow(dim, 0, 3).clone(), a))
        with fokker.use_backend(backend):
            y = denoiser.mp_cat(a, b, dim, 0.3)
            grad = torch.randn(y.shape, generator=g).to(y)
            made = torch.autograd.grad(y, (a, b), grad)
        na, nb = a.shape[dim], b.shape[dim]
        size = math.sqrt((na + nb) / (0.7**2 + 0.3**2))
        w = (size / math.sqrt(na) * 0.7, size / math.sqrt(nb) * 0.3)
        want = torch.cat([(k * t.to(wide)).to(dtype) for k, t in zip(w, (a, b), strict=True)], dim)
        assert y.dtype is dtype and torch.equal(y, want) and y.is_contiguous(memory_format=layout)
        parts = grad.split((na, nb), dim)
        for k, got, part in zip(w, made, parts, strict=True):
            assert torch.equal(got, (k * part.to(wide)).to(dtype))
    strided = torch.randn(3, 8, 5)[:, ::2]
    assert torch.equal(denoiser.mp_cat(strided, strided), denoiser.mp_cat(strided.clone(), strided.contiguous()))


@pytest.mark.parametrize("form", ["edm", "vp", "ve"])
def test_preconditioning(form):
    x, f = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    sigma = torch.tensor([0.002, 1.0, 80.0])
    s, d = sigma.double().view(-1, 1, 1, 1), 0.7
    skip, out, into, noise = {
        "edm": (d**2 / (s**2 + d**2), s * d / (s**2 + d**2).sqrt(), (s**2 + d**2).rsqrt(), s.log() / 4),
        "vp": (1, -s, (s**2 + 1).rsqrt(), 999 * ((0.01 + 39.8 * (1 + s**2).log()).sqrt() - 0.1) / 19.9),
        "ve": (1, s, 1, (s / 2).log()),
    }[form]
    fed, level = denoiser.edm_precondition_in(x, sigma, d, form=form)
    torch.testing.assert_close(fed.double(), into * x.double(), rtol=3e-7, atol=0)
    torch.testing.assert_close(level.double(), noise.flatten(), rtol=1e-6, atol=1e-7)
    got = denoiser.edm_precondition_out(x, f, sigma.view(3, 1, 1, 1), d, form=form)
    torch.testing.assert_close(got.double(), skip * x.double() + out * f.double(), rtol=1e-6, atol=1e-6)
    one = denoiser.edm_precondition_out(x, f, 1.0, d, form=form)
    assert torch.equal(one, denoiser.edm_precondition_out(x, f, torch.tensor([1.0]), d, form=form))
    half = torch.empty_like(x, dtype=torch.bfloat16)
    assert denoiser.edm_precondition_in(x, sigma, d, form=form, out=half)[0] is half
    assert torch.equal(half, fed.bfloat16())


@pytest.mark.parametrize("form", ["edm", "vp", "ve"])
def test_preconditioning_without_noise(form):
    """sigma = 0, where a sampler ends: the image itself, and finite derivatives."""
    x, f, sigma = torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), torch.zeros(1, requires_grad=True)
    out = denoiser.edm_precondition_out(x, f, sigma, 0.5, form=form)
    fed = denoiser.edm_precondition_in(x, sigma, 0.5, form=form)[0]
    assert torch.equal(out, x) and torch.equal(fed, 2 * x if form == "edm" else x)
    (slope,) = torch.autograd.grad(out.sum(), sigma)
    torch.testing.assert_close(slope, (-1 if form == "vp" else 1) * f.sum()[None], rtol=1e-5, atol=1e-5)


def test_magnitudes_are_kept():
    g = torch.Generator().manual_seed(4)
    a, b = torch.randn(64, 30, 50, generator=g), torch.randn(64, 90, 50, generator=g)
    # 96000 squares and more: the mean of squares is off by 0.0046 (sd); six of those
    assert abs(float(denoiser.mp_sum(a, b[:, :30], 0.3).square().mean()) - 1) < 0.028
    whole = denoiser.mp_cat(a, b, t=0.5)
    assert torch.allclose(whole, torch.cat((a * math.sqrt(2), b * math.sqrt(2 / 3)), 1), rtol=1e-6)
    shares = whole[:, :30].square().sum() / whole.square().sum()
    assert abs(float(shares) - 0.5) < 0.02
    last = denoiser.mp_cat(*(t[..., None].contiguous(memory_format=torch.channels_last) for t in (a, b)))
    assert last.shape == (64, 120, 50, 1)
    normed = denoiser.pixel_norm(3 * a)
    torch.testing.assert_close(normed.square().mean(1), torch.ones(64, 50), rtol=1e-3, atol=0)
    assert bool((denoiser.pixel_norm(torch.zeros(2, 3, 4)) == 0).all())
    # 1 / 0.596 makes up for what silu takes: E silu(z)^2 = 0.3557
    assert abs(float(denoiser.mp_silu(b).square().mean()) - 1) < 0.03


def test_coefficients_kept_from_inference_serve_training():
    a = torch.ones(2, 3)
    with torch.inference_mode():
        denoiser.mp_sum(a, a, 0.271)
    leaf = a.clone().requires_grad_()
    denoiser.mp_sum(leaf, a, 0.271).sum().backward()
    assert leaf.grad is not None


X, INF = torch.ones(2, 6), math.inf


def vp(**settings):
    return denoiser.edm_precondition_in(X, 1.0, form="vp", **settings)


@pytest.mark.parametrize(
    ("error", "message", "f"),
    [
        (ValueError, "two halves", lambda: denoiser.swiglu(X[:, :5])),
        (ValueError, r"bias \(3,\)", lambda: denoiser.swiglu(X, torch.ones(3))),
        (ValueError, "dim must be in", lambda: denoiser.swiglu(X, dim=2)),
        (TypeError, "x must have dtype", lambda: denoiser.geglu(X.int())),
        (ValueError, r"pair \(gate, value\), got 3", lambda: denoiser.swiglu((X, X, X))),
        (ValueError, r"gate \(2, 6\) and the value \(2, 3\)", lambda: denoiser.swiglu((X, X[:, :3]))),
        (TypeError, "one dtype, got torch.float32 and torch.float64", lambda: denoiser.geglu((X, X.double()))),
        (TypeError, "the value must be a tensor, got float", lambda: denoiser.silu_gate((X, 1.0))),
        (TypeError, "bias must be a pair of tensors.*got Tensor", lambda: denoiser.swiglu((X, X), torch.ones(12))),
        (
            TypeError,
            "bias must be a pair.*got tuple of Tensor, NoneType",
            lambda: denoiser.swiglu((X, X), (X[0], None)),
        ),
        (ValueError, r"the value's bias \(5,\)", lambda: denoiser.swiglu((X, X), (torch.ones(6), torch.ones(5)))),
        (TypeError, "x must be a tensor, got tuple", lambda: denoiser.gelu_tanh((X, X))),
        (ValueError, "approximate must be", lambda: denoiser.geglu(X, approximate="erf")),
        (ValueError, "out must be", lambda: denoiser.swiglu(X, out=X)),
        (ValueError, "does not record", lambda: denoiser.swiglu(X.clone().requires_grad_(), out=X[:, :3].clone())),
        (ValueError, "sigma must have one entry", lambda: denoiser.edm_precondition_in(X, torch.ones(3))),
        (ValueError, "sigma_data must be positive", lambda: denoiser.edm_precondition_in(X, 1.0, 0.0)),
        (TypeError, "sigma_data must be a number, got str", lambda: denoiser.edm_precondition_out(X, X, 1.0, "0.5")),
        (
            ValueError,
            "sigma_data must be positive and finite, got inf",
            lambda: denoiser.edm_precondition_in(X, 1.0, INF),
        ),
        (TypeError, "sigma must be a tensor, got str", lambda: denoiser.edm_precondition_in(X, "1")),
        (ValueError, "beta_d must be positive and finite, got 0", lambda: vp(beta_d=0)),
        (TypeError, "edm_precondition_in: beta_d must be a number, got str", lambda: vp(beta_d="19.9")),
        (ValueError, "beta_min must be at least 0, got -0.1", lambda: vp(beta_min=-0.1)),
        (ValueError, "beta_min must be finite, got nan", lambda: vp(beta_min=math.nan)),
        (TypeError, "beta_min must be a number, got NoneType", lambda: vp(beta_min=None)),
        (TypeError, "steps must be an int, got float", lambda: vp(steps=1000.0)),
        (ValueError, "steps must be at least 1, got 0", lambda: vp(steps=0)),
        (
            TypeError,
            "timestep_embedding: dtype must be float16, bfloat16, float32 or float64, got torch.int32",
            lambda: denoiser.timestep_embedding(X, 4, dtype=torch.int32),
        ),
        (
            TypeError,
            "fourier_embedding: dtype must be .*, got str 'float32'",
            lambda: denoiser.fourier_embedding(X, X[0], dtype="float32"),
        ),
        (
            TypeError,
            "mp_fourier: dtype must be .*, got NoneType None",
            lambda: denoiser.mp_fourier(X, X[0], X[0], dtype=None),
        ),
        (TypeError, "max_period must be a number, got str", lambda: denoiser.timestep_embedding(X, 4, max_period="1")),
        (ValueError, "max_period must be positive", lambda: denoiser.timestep_embedding(X, 4, max_period=0.0)),
        (TypeError, "scale must be a number, got list", lambda: denoiser.timestep_embedding(X, 4, scale=[1.0])),
        (TypeError, "dim must be an int, got float", lambda: denoiser.timestep_embedding(X, 4.0)),
        (TypeError, "phases must be a tensor, got int", lambda: denoiser.mp_fourier(X, X[0], 1)),
        (TypeError, "t must be a number, got str", lambda: denoiser.mp_sum(X, X, "0.5")),
        (TypeError, "eps must be a number, got str", lambda: denoiser.pixel_norm(X, eps="1")),
        (ValueError, "form must be", lambda: denoiser.edm_precondition_out(X, X, 1.0, form="ddpm")),
        (ValueError, "must have the shape of x", lambda: denoiser.edm_precondition_out(X, X[:1], 1.0)),
        (ValueError, "must be at least 1", lambda: denoiser.timestep_embedding(torch.ones(2), 1)),
        (TypeError, "t must be a tensor", lambda: denoiser.timestep_embedding(3, 8)),
        (ValueError, "t must be in", lambda: denoiser.mp_sum(X, X, 1.5)),
        (ValueError, "must agree outside dim", lambda: denoiser.mp_cat(X, X[:1])),
        (ValueError, "eps must be positive", lambda: denoiser.pixel_norm(X, eps=0.0)),
    ],
)
def test_bad_input(error, message, f):
    with pytest.raises(error, match=message):
        f()
