"""Group norms with FiLM and SiLU: layouts, sizes, dtypes, large means, and what is asked of a bias-free norm."""

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker.cases import CASES
from fokker.denoiser import bias_free_norm, group_norm_silu

ON = [b for b in BACKENDS if b in CASES["denoiser_group_norm"].backends]
F64 = torch.float64


@pytest.fixture(params=ON)
def backend(request):
    with fokker.use_backend(request.param):
        yield request.param


def device(backend):
    return "cuda" if backend == "cuda" else "cpu"


def arguments(shape, dtype=torch.float32, last=False, at="cpu"):
    """x, weight, bias, scale, shift."""
    batch, channels = shape[:2]
    x = torch.randn(shape, dtype=F64) + 2
    w, b = 1 + 0.3 * torch.randn(channels, dtype=F64), torch.randn(channels, dtype=F64)
    film = 0.3 * torch.randn(batch, 2 * channels, dtype=F64)
    x = channels_last(x) if last else x
    return tuple(t.to(dtype).to(at) for t in (x, w, b)) + film.to(dtype).to(at).chunk(2, 1)


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def by_torch(x, groups, w, b, scale, shift, activation="silu"):
    """torch's own group norm, in float64."""
    x, w, b, scale, shift = (t.double().cpu() for t in (x, w, b, scale, shift))
    y = torch.nn.functional.group_norm(x.contiguous(), groups, w, b, 1e-5)
    over = (*x.shape[:2], *(1,) * (x.dim() - 2))
    y = y * (1 + scale.reshape(over)) + shift.reshape(over)
    return torch.nn.functional.silu(y) if activation else y


def worst(got, want):
    return float((got.detach().cpu() - want.detach()).abs().max())


SHAPES = [
    # (shape, groups): no positions, one, odd sizes, a channel a group, one group, groups that are no vector's
    ((3, 12), 3),
    ((3, 40), 1),
    ((2, 6, 1), 6),
    ((2, 6, 17), 2),
    ((1, 64, 5, 7), 8),
    ((2, 20, 3, 11), 4),
    ((2, 36, 4, 4), 12),
    ((2, 33, 9, 9), 11),
    ((2, 7, 33, 5), 7),
    ((1, 6, 3, 5, 7), 2),
    ((1, 4, 61, 67), 2),
    ((1, 130, 3, 3), 65),
]


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_forward_and_backward_equal_torch(backend, shape, groups, last):
    args = tuple(t.requires_grad_() for t in arguments(shape, last=last, at=device(backend)))
    wide = tuple(t.detach().double().cpu().requires_grad_() for t in args)
    grad = torch.randn(shape)
    y, want = group_norm_silu(args[0], groups, *args[1:]), by_torch(wide[0], groups, *wide[1:])
    assert y.stride() == args[0].stride()
    assert worst(y, want) <= 1e-6 * max(1.0, float(want.detach().abs().max()))
    got = torch.autograd.grad(y, args, grad.to(y.device))
    # a gradient is a difference of terms as large as 1 / std: 316 in a group of one number, where it is 0
    rstd = float((wide[0].detach().reshape(shape[0], groups, -1).var(-1, correction=0) + 1e-5).rsqrt().max())
    for g, right, a in zip(got, torch.autograd.grad(want, wide, grad.double()), args, strict=True):
        assert backend == "reference" or a is not args[0] or g.stride() == a.stride()
        assert worst(g, right) <= 2e-6 * max(1.0, float(right.abs().max()), rstd if a is args[0] else 0.0)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_large_means_cost_no_digits(backend, last):
    """A mean of 3000 standard deviations, another in every group; gradients too."""
    x, *rest = arguments((2, 12, 9, 11), last=last, at=device(backend))
    x = (x + torch.tensor([3e3, -1e3, 100.0], device=x.device).repeat_interleave(4)[:, None, None]).requires_grad_()
    wide = x.detach().double().cpu().requires_grad_()
    y, want = group_norm_silu(x, 3, *rest), by_torch(wide, 3, *rest)
    assert worst(y, want) <= 2e-6
    grad = torch.randn(want.shape)
    (got,), (right,) = torch.autograd.grad(y, x, grad.to(x.device)), torch.autograd.grad(want, wide, grad.double())
    assert worst(got, right) <= 2e-6 * float(right.abs().max())


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_a_group_larger_than_a_block_can_keep(backend, last):
    """252,000 bytes: no shared memory holds it, and it is read again."""
    if backend == "reference":
        pytest.skip("keeps nothing")
    x, *rest = arguments((1, 2, 175, 180), last=last, at=device(backend))
    leaf = x.clone().requires_grad_()
    y, wide = group_norm_silu(leaf, 1, *rest), x.double().cpu().requires_grad_()
    want = by_torch(wide, 1, *rest)
    assert worst(y, want) <= 1e-6 * float(want.detach().abs().max())
    grad = torch.randn(want.shape)
    (got,), (right,) = torch.autograd.grad(y, leaf, grad.to(x.device)), torch.autograd.grad(want, wide, grad.double())
    assert worst(got, right) <= 2e-6 * float(right.abs().max())


@pytest.mark.parametrize("first", [1e4, 0.0])
def test_an_outlier_costs_no_digits(backend, first):
    """The first number of a group far from the others, and a drift of the mean along the positions."""
    x, *rest = arguments((1, 4, 40, 41), at=device(backend))
    x = x + torch.linspace(0, 200, 41, device=x.device)
    x[0, 0, 0, 0] += first
    for given in (x, channels_last(x)):
        want = by_torch(given, 2, *rest)
        assert worst(group_norm_silu(given, 2, *rest), want) <= 1e-6 * float(want.detach().abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_halves_are_the_rounded_float32_result(backend, dtype, last):
    x, *rest = arguments((2, 12, 7, 9), dtype, last=last, at=device(backend))
    residual = torch.randn_like(x)
    wide = [t.float() for t in (x, *rest)]
    grad = torch.randn_like(x)
    for parameters in (rest, wide[1:]):  # parameters in float32 beside x in half precision: the same
        y = group_norm_silu(x, 3, *parameters)
        assert y.dtype is dtype and torch.equal(y, group_norm_silu(wide[0], 3, *wide[1:]).to(dtype))
        total, y = group_norm_silu(x, 3, *parameters, residual=residual)
        assert torch.equal(total, x + residual)
        assert torch.equal(y, group_norm_silu(total, 3, *parameters))
    grads = []
    for of in ((x, *rest), wide):
        leaves = [t.clone().requires_grad_() for t in of]
        y = group_norm_silu(leaves[0], 3, *leaves[1:])
        grads.append(torch.autograd.grad(y, leaves, grad.to(y.dtype)))
    for got, want in zip(*grads, strict=True):
        assert got.dtype is dtype and torch.equal(got, want.to(dtype))


def test_cut_and_other_strides(backend):
    """Batches, channels and rows cut out of a tensor, FiLM in one tensor, and strides that are copied."""
    at = device(backend)
    x, *rest = arguments((2, 6, 4, 5), F64, at=at)
    plain = x.clone().requires_grad_()
    want = group_norm_silu(plain, 3, *rest)
    (right,) = torch.autograd.grad(want.sum(), plain)
    big = torch.randn(4, 9, 7, 5, dtype=F64, device=at)
    big[::2, 2:8, 1:5] = x
    views = [big[::2, 2:8, 1:5], channels_last(big)[::2, 2:8, 1:5], channels_last(x), x.mT.contiguous().mT]
    views += [torch.stack([x, x], -1)[..., 0], x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)]
    for view in views:
        leaf = view.detach().requires_grad_()
        got = group_norm_silu(leaf, 3, *rest)
        assert got.stride() == torch.empty_like(view).stride()
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
        (grad,) = torch.autograd.grad(got.sum(), leaf)
        torch.testing.assert_close(grad, right, rtol=1e-12, atol=1e-12)
    expanded = x[:, :, :1, :1].expand(2, 6, 4, 5)
    torch.testing.assert_close(group_norm_silu(expanded, 3), group_norm_silu(expanded.contiguous(), 3))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_residual(backend, last):
    x, *rest = arguments((2, 12, 5, 7), F64, last=last, at=device(backend))
    residual = torch.randn_like(x)
    leaves = [t.clone().requires_grad_() for t in (x, *rest, residual)]
    total, y = group_norm_silu(leaves[0], 3, *leaves[1:5], residual=leaves[5])
    plain = [t.clone().requires_grad_() for t in (x, *rest, residual)]
    want = by_torch(plain[0] + plain[5], 3, *plain[1:5])
    assert torch.equal(total, x + residual) and total.stride() == x.stride() == y.stride()
    torch.testing.assert_close(y.cpu(), want, rtol=1e-12, atol=1e-12)
    a, b = torch.randn_like(x), torch.randn_like(x)
    for use_sum, use_y in ((True, True), (True, False), (False, True)):
        found = (total * a).sum() * use_sum + (y * b).sum() * use_y
        right = ((plain[0] + plain[5]) * a).sum().cpu() * use_sum + (want * b.cpu()).sum() * use_y
        if not use_y:
            found, right = (total * a).sum(), ((plain[0] + plain[5]) * a).sum()
        got = torch.autograd.grad(found, leaves, retain_graph=True, allow_unused=True)
        truth = torch.autograd.grad(right, plain, retain_graph=True, allow_unused=True)
        for g, t in zip(got, truth, strict=True):
            torch.testing.assert_close(torch.zeros(()) if g is None else g.cpu(),
                                       torch.zeros(()) if t is None else t.cpu(), rtol=1e-11, atol=1e-11)  # fmt: skip


def test_nothing_but_the_sum_is_kept_for_backward(backend):
    x, *rest = arguments((2, 12, 5, 7), at=device(backend))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        total, y = group_norm_silu(x.requires_grad_(), 3, *rest, residual=torch.randn_like(x))
    large = [t for t in kept if t.numel() == x.numel()]
    if backend != "reference":
        assert len(large) == 1 and large[0].data_ptr() == total.data_ptr()
        assert sum(t.numel() for t in kept) == x.numel() + 2 * 12 + 2 * 2 * 12 + 2 * 2 * 3
    assert y.requires_grad


def test_out(backend):
    x, *rest = arguments((2, 12, 5, 7), at=device(backend))
    want, residual = group_norm_silu(x, 3, *rest), torch.randn_like(x)
    for out in (torch.empty_like(x), channels_last(x), torch.empty(2, 20, 5, 7, device=x.device)[:, 3:15], x.clone()):
        assert group_norm_silu(x, 3, *rest, out=out) is out
        assert torch.equal(out, want)
    total, y = group_norm_silu(x, 3, *rest, residual=residual)
    outs = (torch.empty_like(x), torch.empty_like(x))
    found = group_norm_silu(x, 3, *rest, residual=residual, out=outs)
    assert found[0] is outs[0] and torch.equal(outs[0], total) and torch.equal(outs[1], y)
    held = x.clone()
    before = held._version
    group_norm_silu(held, 3, *rest, residual=residual, out=(held, torch.empty_like(x)))
    assert torch.equal(held, total) and held._version > before
    itself = x.clone()
    group_norm_silu(itself, 3, *rest, out=itself)
    assert torch.equal(itself, want)


@pytest.mark.parametrize("shape", [(0, 12, 5, 7), (2, 12, 0, 7), (0, 12)], ids=str)
def test_empty(backend, shape):
    at = device(backend)
    x = torch.randn(shape, device=at).requires_grad_()
    w = torch.ones(12, device=at).requires_grad_()
    y = group_norm_silu(x, 3, w, scale=torch.zeros(shape[0], 12, device=at))
    assert y.shape == shape
    y.sum().backward()
    assert x.grad.shape == shape and torch.equal(w.grad, torch.zeros_like(w))
    total, y = group_norm_silu(x, 3, residual=x)
    assert total.shape == y.shape == shape


def test_nan_stays_in_its_group(backend):
    x, *rest = arguments((2, 12, 5, 7), at=device(backend))
    x[1, 5, 2, 3] = float("nan")
    y = group_norm_silu(x, 3, *rest)
    assert bool(y[1, 4:8].isnan().all())
    y[1, 4:8] = 0
    assert not bool(y.isnan().any())


def test_large_numbers_of_the_activation(backend):
    """Far into both tails, where e^-u overflows."""
    at = device(backend)
    u = torch.tensor([-1e4, -200.0, -95.0, -88.0, -20.0, 0.0, 20.0, 95.0, 1e4], device=at)
    std = torch.ones(1, device=at)
    for activation, right in (("silu", torch.nn.functional.silu), ("relu", torch.relu), (None, lambda t: t)):
        got = bias_free_norm(u[None], 1, std=std, activation=activation)[0]
        torch.testing.assert_close(got.double(), right(u.double()), rtol=1e-6, atol=1e-30)
        leaf = u.clone().requires_grad_()
        y = bias_free_norm(leaf[None], 1, std=std, activation=activation)
        wide = u.double().requires_grad_()
        (got,), (want,) = torch.autograd.grad(y.sum(), leaf), torch.autograd.grad(right(wide).sum(), wide)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-30)


# ---- bias-free -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_bias_free_formula(backend, last):
    at = device(backend)
    x, w, _, scale, _ = arguments((2, 12, 5, 7), F64, last=last, at=at)
    y, std = bias_free_norm(x, 3, w, scale, return_std=True)
    own = (x.reshape(2, 3, -1).var(-1, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(std, own)
    gain = (w * (1 + scale))[:, :, None, None] / own.repeat_interleave(4, 1)[:, :, None, None]
    torch.testing.assert_close(y, x * gain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(bias_free_norm(x, 3, w, scale, std=own), y, rtol=1e-12, atol=1e-12)
    running = own.mean(0)
    fixed, used = bias_free_norm(x, 3, w, std=running, activation="relu", return_std=True)
    torch.testing.assert_close(used, running.expand(2, 3))
    want = (x * w[:, None, None] / running.repeat_interleave(4)[:, None, None]).relu()
    torch.testing.assert_close(fixed, want, rtol=1e-12, atol=1e-12)


def test_a_bias_free_network_is_homogeneous(backend):
    """D(k x) = k D(x), k > 0, of convolutions without bias, norms with given deviations, and relu."""
    at = device(backend)
    x, w, *_ = arguments((1, 4, 5, 6), F64, at=at)
    kernels = [torch.randn(4, 4, 3, 3, dtype=F64, device=at) / 6 for _ in range(2)]

    def denoise(x, own=False):
        for kernel in kernels:
            x = torch.nn.functional.conv2d(x, kernel, padding=1)
            std = None if own else torch.linspace(0.5, 2, 4, dtype=F64, device=at)
            x = bias_free_norm(x, 4, w, std=std, eps=1e-30, activation="relu")
        return x

    once, own = denoise(x), denoise(x, own=True)
    assert once.abs().max() > 0.1
    for k in (1e-3, 300.0):
        torch.testing.assert_close(denoise(k * x), k * once, rtol=1e-11, atol=0)
        # with each sample's own deviation: of degree zero
        torch.testing.assert_close(denoise(k * x, own=True), own, rtol=1e-9, atol=1e-12)
    leaf = x.clone().requires_grad_()  # of degree one: the sum of D is its slope times x
    (slope,) = torch.autograd.grad(denoise(leaf).sum(), leaf)
    torch.testing.assert_close((slope * x).sum(), once.sum(), rtol=1e-9, atol=1e-12)


# ---- bad input -----------------------------------------------------------------------------------------------------
X = torch.zeros(2, 12, 4, 4)
C12, BC = torch.zeros(12), torch.zeros(2, 12)


@pytest.mark.parametrize(
    ("error", "words", "args", "options"),
    [
        (ValueError, "groups must divide the 12 channels of x, got 5", (X, 5), {}),
        (ValueError, "groups must divide the 12 channels of x, got 0", (X, 0), {}),
        (TypeError, "groups must be an int, got float", (X, 3.0), {}),
        (ValueError, "x must have shape", (X[0, 0, 0], 1), {}),
        (TypeError, "x must be a tensor, got list", ([1.0], 1), {}),
        (TypeError, "x must have dtype", (X.long(), 3), {}),
        (TypeError, "dense", (X.to_sparse(), 3), {}),
        (ValueError, "eps must be positive", (X, 3), {"eps": 0.0}),
        (ValueError, "eps must be positive", (X, 3), {"eps": -1e-5}),
        (ValueError, "eps must be positive", (X, 3), {"eps": float("nan")}),
        (ValueError, "activation must be 'silu', 'relu' or None", (X, 3), {"activation": "gelu"}),
        (ValueError, "activation must be 'silu', 'relu' or None", (X, 3), {"activation": [None]}),
        (ValueError, r"weight must have shape \(channels,\)", (X, 3, BC), {}),
        (ValueError, "bias must have shape", (X, 3, C12, C12[:11]), {}),
        (ValueError, r"scale must have shape \(batch, channels\)", (X, 3, None, None, C12), {}),
        (ValueError, "shift must have shape", (X, 3, None, None, BC, BC[:, :, None, None]), {}),
        (TypeError, "weight must have dtype torch.float32 beside x of torch.float32", (X, 3, C12.double()), {}),
        (TypeError, "scale must have dtype", (X, 3, None, None, BC.half()), {}),
        (TypeError, "bias must have dtype", (X.half(), 3, None, C12.bfloat16()), {}),
        (TypeError, "weight must be a tensor", (X, 3, 1.0), {}),
        (ValueError, "residual .* must have the shape of x", (X, 3), {"residual": X[:1]}),
        (TypeError, "residual must have dtype", (X, 3), {"residual": X.half()}),
        (TypeError, "residual must have the layout of x", (X, 3), {"residual": channels_last(X)}),
        (TypeError, "residual must be a tensor", (X, 3), {"residual": 1.0}),
        (ValueError, "out .* must have the shape of x", (X, 3), {"out": X[:1]}),
        (TypeError, "out must have dtype", (X, 3), {"out": X.half()}),
        (TypeError, "out must be a tensor", (X, 3), {"out": 3}),
        (ValueError, "out must be a pair", (X, 3), {"residual": X, "out": X}),
        (ValueError, "out= records no gradient", (X.clone().requires_grad_(), 3), {"out": X.clone()}),
    ],
)
def test_bad_input(error, words, args, options):
    with pytest.raises(error, match=words):
        group_norm_silu(*args, **options)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "std must have shape", {"std": torch.ones(12)}),
        (TypeError, "std must have dtype", {"std": torch.ones(3, dtype=F64)}),
        (ValueError, "std is not differentiated", {"std": torch.ones(3).requires_grad_()}),
        (ValueError, "eps must be positive", {"eps": 0}),
    ],
)
def test_bad_input_of_the_bias_free_norm(error, words, options):
    with pytest.raises(error, match=words):
        bias_free_norm(X, 3, **options)


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "last"])
def test_large_batches_are_written_past_the_cache_with_the_same_bits(backend, last):
    """64 MB results are streamed; a sample alone is not, and has the same bits."""
    if backend not in ("cpu", "cuda"):
        pytest.skip("too large")
    x, *rest = arguments((16, 256, 64, 64), last=last, at=device(backend))
    grad, grads = torch.randn_like(x), []
    for pick in (slice(None), slice(5, 6)):
        leaf = x[pick].detach().requires_grad_()
        y = group_norm_silu(leaf, 32, *rest[:2], *(t[pick] for t in rest[2:]))
        grads.append((y.detach(), *torch.autograd.grad(y, leaf, grad[pick])))
    for whole, part in zip(*grads, strict=True):
        assert torch.equal(whole[5:6], part)
