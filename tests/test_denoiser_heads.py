"""Attention heads of `fokker.denoiser`: layouts, head dimensions, dtypes, packed and plain forms, tables, bad input."""

import itertools
import math

import pytest
import torch
from conftest import BACKENDS

import fokker
from fokker import _native, denoiser

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
HALVES = (torch.float16, torch.bfloat16)


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def inputs(dim, heads=(2, 1), tokens=3, dtype=torch.float32, device="cpu", whole=False, batched=False):
    g = torch.Generator().manual_seed(dim)
    q, k = (torch.randn(2, h, tokens, dim, generator=g, dtype=torch.float64) for h in heads)
    vectors = [torch.randn(dim, generator=g, dtype=torch.float64) for _ in range(4)]
    shape = ([2] if batched else []) + [tokens, dim if whole else dim // 2]
    angle = 6 * torch.rand(shape, generator=g, dtype=torch.float64)
    return [t.to(device, dtype) for t in (q, k, *vectors, angle.cos(), angle.sin())]


def call(q, k, qw, kw, qb, kb, cos, sin, **settings):
    return denoiser.qk_norm_rope(q, k, qw, kw, cos, sin, q_bias=qb, k_bias=kb, **settings)


def judged(got, args, settings):
    want = call(*(a.double().cpu() for a in args), **settings)
    for y, w in zip(got, want, strict=True):
        torch.testing.assert_close(y.double().cpu(), w, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("backend", NATIVE)
def test_head_dimensions_norms_and_tables(backend):
    dims = (2, 6, 64, 66, 72, 128, 256, 510) if backend == "cpu" else (2, 66, 72, 256)
    for dim, interleaved in itertools.product(dims, (False, True)):
        settings = {"norm": "layer" if dim % 4 else "rms", "interleaved": interleaved}
        args = inputs(dim, device=device_of(backend), whole=dim == 72, batched=dim == 66)
        with fokker.use_backend(backend):
            judged(call(*args, **settings), args, settings)


@pytest.mark.parametrize("backend", NATIVE)
def test_rotation_alone_norm_alone_and_neither(backend):
    q, k, qw, kw, _, _, cos, sin = inputs(72, device=device_of(backend))
    with fokker.use_backend(backend):
        turned = denoiser.qk_norm_rope(q, k, None, None, cos, sin, norm=None)
        for y, x in zip(turned, (q, k), strict=True):  # a rotation keeps lengths
            torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
        normed = denoiser.qk_norm_rope(q, k, qw, kw, eps=1e-5)
        torch.testing.assert_close(normed[0], torch.nn.functional.rms_norm(q, (72,), qw, 1e-5), rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(normed[1], torch.nn.functional.rms_norm(k, (72,), kw, 1e-5), rtol=2e-6, atol=1e-6)
        assert all(torch.equal(y, x) for y, x in zip(denoiser.qk_norm_rope(q, k, norm=None), (q, k), strict=True))


@pytest.mark.parametrize("backend", NATIVE)
def test_layouts_give_the_same_bits(backend):
    args = inputs(72, heads=(2, 2), device=device_of(backend))
    q, k, *rest = args
    views = {
        "transposed": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2),
        "spaced elements": lambda t: torch.stack((t, t), -1)[..., 0],
        "slice": lambda t: torch.cat((t, t), -1)[..., 72:],
        "elements first": lambda t: t.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        "odd offset": lambda t: torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape),
    }
    with fokker.use_backend(backend):
        want = call(q, k, *rest)
        grads = [torch.randn(t.shape, device=t.device) for t in want]
        plain = gradients(q, k, rest, grads)
        for name, view in views.items():
            got = call(view(q), view(k), *rest)
            assert all(torch.allclose(y, w, rtol=1e-6, atol=1e-6) for y, w in zip(got, want, strict=True)), name
            found = gradients(view(q), view(k), rest, [view(g) for g in grads])
            assert all(torch.allclose(y, w, rtol=2e-6, atol=2e-6) for y, w in zip(found, plain, strict=True)), name


def gradients(q, k, rest, grads, **settings):
    leaves = [t.detach().requires_grad_() for t in (q, k, *rest[:4])]
    return torch.autograd.grad(call(*leaves, *rest[4:], **settings), leaves, grads)


@pytest.mark.parametrize("backend", NATIVE)
def test_halves_are_the_float32_result_rounded_once(backend):
    for dtype, interleaved in itertools.product(HALVES, (False, True)):
        args = inputs(72, dtype=dtype, device=device_of(backend))
        with fokker.use_backend(backend):
            got = call(*args, interleaved=interleaved)
            want = call(*(a.float() for a in args), interleaved=interleaved)
            upstream = [torch.randn_like(t) for t in args[:2]]
            found = gradients(*args[:2], args[2:], upstream, interleaved=interleaved)
            wide = [a.float() for a in args]
            single = gradients(*wide[:2], wide[2:], [g.float() for g in upstream], interleaved=interleaved)
        for y, w in zip((*got, *found), (*want, *single), strict=True):
            assert torch.equal(y, w.to(dtype))


@pytest.mark.parametrize("backend", NATIVE)
def test_gradients_against_float64(backend):
    shape = {"heads": (3, 2), "tokens": 40} if backend == "cpu" else {"tokens": 6}
    q, k, *rest = inputs(72, **shape, device=device_of(backend))
    grads = [torch.randn(t.shape, device=t.device) for t in (q, k)]
    with fokker.use_backend(backend):
        found = gradients(q, k, rest, grads)
    wide = [t.double().cpu() for t in (q, k, *rest)]
    with fokker.use_backend("reference"):
        want = gradients(*wide[:2], wide[2:], [g.double().cpu() for g in grads])
    for y, w in zip(found, want, strict=True):
        assert float((y.double().cpu() - w).abs().max() / w.abs().max()) <= 2e-6


@pytest.mark.parametrize("backend", NATIVE)
def test_rotation_of_a_part(backend):
    """Pairs among the first elements (GPT-NeoX's and GPT-J's), the others normed alone; values and gradients."""
    every = backend == "cpu"
    for (dim, rotary), interleaved, whole in itertools.product(
        ((72, 32), (8, 6), (66, 34), *(((80, 32), (256, 64), (510, 2), (64, 64)) if every else ())),
        (False, True),
        (False, True),
    ):
        q, k, *vectors, _, _ = inputs(dim, device=device_of(backend))
        cos, sin = (t[..., :rotary] for t in inputs(rotary, device=device_of(backend), whole=True)[-2:])
        cos, sin = (cos, sin) if whole else (cos[..., : rotary // 2], sin[..., : rotary // 2])
        settings = {"interleaved": interleaved, "rotary_dim": rotary, "norm": "layer" if dim % 4 else "rms"}
        grads = [torch.randn(t.shape, device=q.device) for t in (q, k)]
        with fokker.use_backend(backend):
            got = call(q, k, *vectors, cos, sin, **settings)
            found = gradients(q, k, [*vectors, cos, sin], grads, **settings)
        wide = [t.double().cpu() for t in (q, k, *vectors, cos, sin)]
        first = torch.arange(0, rotary, 2) if interleaved else torch.arange(rotary // 2)
        second = first + 1 if interleaved else first + rotary // 2
        c, s = wide[-2:]
        table = (c[:, first], c[:, second], s[:, first], s[:, second]) if whole else (c, c, s, s)
        with fokker.use_backend("reference"):
            want = gradients(*wide[:2], wide[2:], [g.double().cpu() for g in grads], **settings)
            normed = call(*wide[:6], None, None, norm=settings["norm"])
        for y, n in zip(got, normed, strict=True):
            a, b = n[..., first], n[..., second]
            n[..., first], n[..., second] = a * table[0] - b * table[2], b * table[1] + a * table[3]
            torch.testing.assert_close(y.double().cpu(), n, rtol=1e-6, atol=2e-6)
        for y, w in zip(found, want, strict=True):
            assert float((y.double().cpu() - w).abs().max() / w.abs().max()) <= 2e-6
    with fokker.use_backend(backend):
        qkv = torch.randn(2, 5, 3 * 2 * 24, device=device_of(backend)).requires_grad_()
        cos, sin = (t[:, :4] for t in inputs(8, tokens=5, device=qkv.device)[-2:])
        made = denoiser.qkv_norm_rope(qkv, 2, None, None, cos, sin, rotary_dim=8)
        parts = qkv.detach().view(2, 5, 3, 2, 24).permute(2, 0, 3, 1, 4).contiguous().requires_grad_()
        want = denoiser.qk_norm_rope(parts[0], parts[1], None, None, cos, sin, rotary_dim=8)
        torch.testing.assert_close(made[:2], want, rtol=1e-6, atol=1e-6)
        (packed,) = torch.autograd.grad(made[0].square().sum() + made[1].sum(), qkv)
        (plain,) = torch.autograd.grad(want[0].square().sum() + want[1].sum(), parts)
        packed = packed.view(2, 5, 3, 2, 24).permute(2, 0, 3, 1, 4)
        torch.testing.assert_close(packed[:2], plain[:2], rtol=2e-6, atol=2e-6)
        half = [t.bfloat16() for t in (*inputs(72, device=qkv.device)[:6], *inputs(32, device=qkv.device)[-2:])]
        got, wide = (call(*(t.to(d) for t in half), rotary_dim=32) for d in (torch.bfloat16, torch.float32))
        assert all(torch.equal(y, w.bfloat16()) for y, w in zip(got, wide, strict=True))


@pytest.mark.parametrize("backend", NATIVE)
def test_packed_equals_unpacked(backend):
    g = torch.Generator().manual_seed(1)
    qkv = torch.randn(2, 5, 3 * 2 * 72, generator=g).to(device_of(backend))
    *_, qw, kw, _, _, cos, sin = inputs(72, tokens=5, device=qkv.device)
    q, k, v = qkv.view(2, 5, 3, 2, 72).permute(2, 0, 3, 1, 4).contiguous()
    with fokker.use_backend(backend):
        got = denoiser.qkv_norm_rope(qkv, 2, qw, kw, cos, sin)
        want = (*denoiser.qk_norm_rope(q, k, qw, kw, cos, sin), v)
        assert all(torch.allclose(y, w, rtol=1e-6, atol=1e-6) for y, w in zip(got, want, strict=True))
        assert got[2].untyped_storage().data_ptr() == qkv.untyped_storage().data_ptr()  # no copy
        assert all(t.stride(1) == 72 and t.stride(3) == 1 for t in got)
        leaf, parts = qkv.clone().requires_grad_(), [t.clone().requires_grad_() for t in (q, k, v)]
        grads = [torch.randn(t.shape, generator=g).to(qkv.device) for t in want]
        (packed,) = torch.autograd.grad(denoiser.qkv_norm_rope(leaf, 2, qw, kw, cos, sin), leaf, grads)
        again = (*denoiser.qk_norm_rope(*parts[:2], qw, kw, cos, sin), parts[2].clone())
        unpacked = torch.autograd.grad(again, parts, grads)
    packed = packed.view(2, 5, 3, 2, 72).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(packed, torch.stack(unpacked), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("backend", NATIVE)
def test_out(backend):
    """Into tensors of any strides, in place in packed qkv, and where memory is shared in another way."""
    device = device_of(backend)
    qkv = torch.randn(2, 5, 3, 3, 24, device=device)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    w, tables = torch.randn(24, device=device), [t.to(device) for t in denoiser.rope_table(5, 24)]

    def run(q, k, **options):
        return denoiser.qk_norm_rope(q, k, w, None, *tables, **options)

    with fokker.use_backend(backend):
        want = run(q, k)
        spaced = torch.zeros(2, 3, 24, 5, device=device).mT, torch.zeros_like(k)
        found = run(q, k, out=spaced)
        assert found[0] is spaced[0] and found[1] is spaced[1]
        assert all(torch.equal(a, b) for a, b in zip(spaced, want, strict=True))
        copies = [qkv.clone() for _ in range(3)]
        for packed, order in zip(copies, ((0, 1), (1, 0), (2, 0)), strict=True):
            parts = packed.permute(2, 0, 3, 1, 4).unbind(0)
            got = run(parts[0], parts[1], out=[parts[i] for i in order])
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert torch.equal(copies[0][:, :, 2], qkv[:, :, 2]) and torch.equal(copies[2][:, :, 1], qkv[:, :, 1])
        half = [t.bfloat16().contiguous() for t in (q, k)]
        once = run(*half)
        assert all(torch.equal(a, b) for a, b in zip(run(*half, out=half), once, strict=True))


@pytest.mark.parametrize("backend", NATIVE)
def test_nothing_is_kept_for_backward_but_the_arguments(backend):
    device = device_of(backend)
    qkv = torch.randn(2, 5, 3 * 4 * 8, device=device).requires_grad_()
    w = torch.randn(8, device=device).requires_grad_()
    cos, sin = denoiser.rope_table(torch.arange(5, device=device), 8)
    q, k = qkv[..., :64].unflatten(-1, (2, 4, 8)).permute(2, 0, 3, 1, 4)
    calls = {
        "qk_norm_rope": lambda: denoiser.qk_norm_rope(q, k, w, w, cos, sin),
        "qkv_norm_rope": lambda: denoiser.qkv_norm_rope(qkv, 4, w, w, cos, sin),
        "swiglu": lambda: denoiser.swiglu(qkv),
        "geglu": lambda: denoiser.geglu(qkv),
        "pixel_norm": lambda: denoiser.pixel_norm(qkv),
    }
    memory = {t.untyped_storage().data_ptr() for t in (qkv, w, cos, sin)}
    for name, call in calls.items():
        kept = []
        with (
            fokker.use_backend(backend),
            torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t),
        ):
            call()
        large = [tuple(t.shape) for t in kept if t.numel() > 128 and t.untyped_storage().data_ptr() not in memory]
        assert kept and not large, (name, large)


def test_empty_batches():
    w = torch.ones(8)
    q, k = denoiser.qk_norm_rope(torch.ones(0, 2, 3, 8, requires_grad=True), torch.ones(0, 2, 3, 8), w, w)
    assert q.shape == k.shape == (0, 2, 3, 8)
    q.sum().backward()
    assert denoiser.qkv_norm_rope(torch.ones(2, 0, 48), 2)[0].shape == (2, 2, 0, 8)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_every_instruction_set():
    best = _native.cpu.isa()
    order = ["baseline", "avx2", "avx512"]
    try:
        for isa in order[: order.index(best) + 1]:
            _native.cpu.set_isa(isa)
            for dim, interleaved in ((64, True), (72, False), (72, True), (74, False)):
                args = inputs(dim)
                judged(call(*args, interleaved=interleaved), args, {"interleaved": interleaved})
                gradients(*args[:2], args[2:], [torch.ones_like(t) for t in args[:2]])
            x = torch.linspace(-9, 9, 999)
            for approximate in ("tanh", "none"):
                y = denoiser.gelu_tanh(x, approximate=approximate)
                want = torch.nn.functional.gelu(x.double(), approximate=approximate)
                torch.testing.assert_close(y.double(), want, rtol=1e-6, atol=3e-7)
    finally:
        _native.cpu.set_isa(best)


# ---- tables ----------------------------------------------------------------------------------------------------------
def angle(table):
    return torch.atan2(table[1].double(), table[0].double())


def test_turned_products_depend_on_distance_alone():
    q, k = torch.randn(1, 1, 1, 64, dtype=torch.float64), torch.randn(1, 1, 1, 64, dtype=torch.float64)
    for interleaved in (False, True):
        scores = []
        for at in (0, 5, 100):
            cos, sin = denoiser.rope_table(torch.tensor([at, at + 3]), 64, dtype=torch.float64)
            a = denoiser.qk_norm_rope(q, k, None, None, cos[:1], sin[:1], norm=None, interleaved=interleaved)[0]
            b = denoiser.qk_norm_rope(q, k, None, None, cos[1:], sin[1:], norm=None, interleaved=interleaved)[1]
            scores.append((a * b).sum())
        torch.testing.assert_close(torch.stack(scores), scores[0].expand(3), rtol=1e-12, atol=1e-12)


def test_table_is_rounded_once_far_out():
    cos, sin = denoiser.rope_table(torch.tensor([123457.0]), 8)
    phase = 123457.0 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    assert torch.equal(cos[0], phase.cos().float())
    assert torch.equal(sin[0], phase.sin().float())


def test_interpolations():
    one = torch.ones(1, dtype=torch.float64)
    plain = angle(denoiser.rope_table(one, 64, dtype=torch.float64))[0]
    s = 4.0
    linear = angle(denoiser.rope_table(one, 64, interpolation="linear", scale=s, dtype=torch.float64))[0]
    torch.testing.assert_close(linear, plain / s, rtol=1e-12, atol=0)
    ntk = angle(denoiser.rope_table(one, 64, interpolation="ntk", scale=s, dtype=torch.float64))[0]
    torch.testing.assert_close(ntk[[0, -1]], plain[[0, -1]] / torch.tensor([1, s]), rtol=1e-12, atol=0)
    yarn = denoiser.rope_table(one, 64, interpolation="yarn", scale=s, trained_length=64, dtype=torch.float64)
    keep = (64 * plain / (2 * math.pi) - 1).div(31).clamp(0, 1)
    torch.testing.assert_close(angle(yarn)[0], plain * (keep + (1 - keep) / s), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.hypot(*yarn), torch.full((1, 32), 1 + 0.1 * math.log(s), dtype=torch.float64))
    for name in ("linear", "ntk", "yarn"):  # no longer than in training: as trained
        same = denoiser.rope_table(one, 64, interpolation=name, scale=0.5, trained_length=64, dtype=torch.float64)
        torch.testing.assert_close(angle(same)[0], plain, rtol=1e-12, atol=0)


def test_two_dimensions_are_two_tables():
    cos, sin = denoiser.rope_table_2d((3, 4), 72, interpolation="ntk", scale=(1.0, 2.0))
    rows = denoiser.rope_table(3, 36, interpolation="ntk", scale=1.0)
    columns = denoiser.rope_table(4, 36, interpolation="ntk", scale=2.0)
    for table, r, c in zip((cos, sin), rows, columns, strict=True):
        grid = table.view(3, 4, 36)
        assert torch.equal(grid[..., :18], r[:, None].expand(3, 4, 18))
        assert torch.equal(grid[..., 18:], c[None].expand(3, 4, 18))
    at = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    assert torch.equal(denoiser.rope_table_2d(at[None], 72)[0][0], denoiser.rope_table_2d((3, 4), 72)[0])


# ---- bad input -------------------------------------------------------------------------------------------------------
X = torch.ones(2, 2, 3, 8)
TABLE = torch.ones(3, 4)


def partly(rotary_dim, table=TABLE):
    return denoiser.qk_norm_rope(X, X, None, None, table, table, rotary_dim=rotary_dim)


@pytest.mark.parametrize(
    ("error", "message", "f"),
    [
        (ValueError, "head dimension must be even", lambda: denoiser.qk_norm_rope(X[..., :7], X[..., :7])),
        (ValueError, "head dimension must be even", lambda: denoiser.qkv_norm_rope(torch.ones(2, 3, 42), 2)),
        (ValueError, "q and k must have shape", lambda: denoiser.qk_norm_rope(X, X[:, :, :2])),
        (ValueError, "eps must be positive", lambda: denoiser.qk_norm_rope(X, X, eps=0.0)),
        (TypeError, "one dtype", lambda: denoiser.qk_norm_rope(X, X.double())),
        (TypeError, "q must have dtype", lambda: denoiser.qk_norm_rope(X.int(), X)),
        (TypeError, "k must be a tensor", lambda: denoiser.qk_norm_rope(X, None)),
        (ValueError, r"q_weight \(7,\) must have", lambda: denoiser.qk_norm_rope(X, X, torch.ones(7))),
        (ValueError, "rotary_dim must be even, from 2 to the head dimension 8, got 5", lambda: partly(5)),
        (ValueError, "rotary_dim must be even, from 2 to the head dimension 8, got 10", lambda: partly(10)),
        (ValueError, "rotary_dim must be even, from 2 to the head dimension 8, got 0", lambda: partly(0)),
        (TypeError, "rotary_dim must be an int or None, got float", lambda: partly(4.0)),
        (ValueError, r"cos must have shape \(3, 2\) or \(3, 4\).*got \(3, 1\)", lambda: partly(4, TABLE[:, :1])),
        (ValueError, "rotary_dim belongs to cos and sin", lambda: denoiser.qk_norm_rope(X, X, rotary_dim=4)),
        (ValueError, "cos and sin belong", lambda: denoiser.qk_norm_rope(X, X, cos=TABLE)),
        (ValueError, r"cos must have shape", lambda: denoiser.qk_norm_rope(X, X, None, None, TABLE[:2], TABLE[:2])),
        (ValueError, "one shape", lambda: denoiser.qk_norm_rope(X, X, None, None, TABLE, torch.ones(3, 8))),
        (
            ValueError,
            "cos is a constant",
            lambda: denoiser.qk_norm_rope(X, X, None, None, TABLE.clone().requires_grad_(), TABLE),
        ),
        (ValueError, "out must be 2 tensors, q' and k', got one", lambda: denoiser.qk_norm_rope(X, X, out=X)),
        (ValueError, "out must be torch.float32 of shape", lambda: denoiser.qk_norm_rope(X, X, out=(X, X.double()))),
        (
            ValueError,
            "does not record a gradient",
            lambda: denoiser.qk_norm_rope(X, X, torch.ones(8).requires_grad_(), out=(X.clone(), X.clone())),
        ),
        (ValueError, "norm must be 'rms'", lambda: denoiser.qk_norm_rope(X, X, norm="batch")),
        (ValueError, "belongs to a norm", lambda: denoiser.qk_norm_rope(X, X, torch.ones(8), norm=None)),
        (ValueError, "qkv must have shape", lambda: denoiser.qkv_norm_rope(torch.ones(2, 3, 50), 2)),
        (ValueError, "multiple of 2", lambda: denoiser.rope_table(3, 7)),
        (ValueError, "multiple of 4", lambda: denoiser.rope_table_2d((3, 3), 6)),
        (ValueError, "interpolation must be", lambda: denoiser.rope_table(3, 8, interpolation="cubic")),
        (TypeError, "scale must be a number or one a coo", lambda: denoiser.rope_table_2d((3, 3), 8, scale=None)),
        (TypeError, "trained_length must be", lambda: denoiser.rope_table(3, 8, interpolation="yarn", scale=2.0)),
    ],
)
def test_bad_input(error, message, f):
    with pytest.raises(error, match=message):
        f()
