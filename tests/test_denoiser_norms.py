"""Modulated norms and gated residuals: the reference in every form, one rounding, layouts, out=, bad input."""

import itertools

import pytest
import torch
from conftest import BACKENDS
from torch.nn import functional as F

import fokker
from fokker import _native, denoiser
from fokker.reference import denoiser_norms as reference

NATIVE = [b for b in BACKENDS if b in ("cpu", "cuda", "emu")]
WIDTHS = (1, 7, 64, 75)
#: scale, shift and gate: for all, by sample, by token, tokens alike in all samples, a table and its part by sample
KINDS = ("none", "all", "sample", "token", "tokens alike", "pair", "pair by token")


def device_of(backend):
    return "cuda" if backend == "cuda" else "cpu"


def normal(*shape, seed=0, dtype=torch.float64, device="cpu"):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def modulation(kind, shape, seed, dtype=torch.float64, device="cpu"):
    batch, *middle, width = shape
    sizes = {
        "all": (width,), "sample": (batch, width), "token": (batch, *middle, width), "tokens alike": (1, *middle, width)
    }  # fmt: skip
    if kind == "none":
        return None
    if kind.startswith("pair"):
        part = modulation("token" if "token" in kind else "sample", shape, seed, dtype, device)
        return normal(width, seed=seed + 50, dtype=dtype, device=device), part
    return normal(*sizes[kind], seed=seed, dtype=dtype, device=device)


def aligned(m, x):
    """A modulation as the reference wants it: broadcast to x by its leading dimensions."""
    if isinstance(m, tuple):
        return tuple(aligned(part, x) for part in m)
    return m if m is None or m.dim() != 2 else m.reshape(m.shape[0], *(1,) * (x.dim() - 2), m.shape[1])


def tensors_of(*values):
    flat = [t for v in values for t in (v if isinstance(v, tuple) else (v,))]
    return [t for t in flat if t is not None]


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_and_its_gradients(kind, backend):
    """Against torch's own gradients of the reference, float64."""
    device = device_of(backend)
    for width, norm, affine in itertools.product((3, 75), ("layer", "rms"), (False, True)):
        shape = (2, 35, width) if width == 3 else (2, 2, 3, width)
        x, branch = (normal(*shape, seed=s, device=device).requires_grad_() for s in (1, 2))
        gate, shift, scale = (modulation(kind, shape, s, device=device) for s in (3, 4, 5))
        weight, bias = (normal(width, seed=s, device=device) if affine else None for s in (6, 7))
        leaves = tensors_of(x, branch, gate, shift, scale, weight, bias)
        for t in leaves:
            t.requires_grad_()
        grads = [normal(*shape, seed=s, device=device) for s in (8, 9)]
        want = reference.residual_gate_norm_modulate(
            x, branch, *(aligned(m, x) for m in (gate, shift, scale)), weight, bias, 1e-5, norm=norm
        )
        with fokker.use_backend(backend):
            got = denoiser.residual_gate_norm_modulate(x, branch, gate, shift, scale, weight, bias, 1e-5, norm=norm)
            torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
            for pick in ((0, 1), (0,), (1,)):  # both results used, or one of them
                a, b = (
                    torch.autograd.grad(
                        [r[i] for i in pick], leaves, [grads[i] for i in pick], retain_graph=True, allow_unused=True
                    )
                    for r in (got, want)
                )
                for mine, theirs in zip(a, b, strict=True):
                    expected = torch.zeros_like(mine) if theirs is None and mine is not None else theirs
                    torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("width", WIDTHS)
def test_torch_computes_the_same(width, backend):
    device = device_of(backend)
    x, weight, bias = normal(2, 5, width, device=device), normal(width, seed=1, device=device), None
    with fokker.use_backend(backend):
        got = denoiser.layer_norm_modulate(x, weight=weight, bias=weight, eps=1e-5)
        torch.testing.assert_close(got, F.layer_norm(x, (width,), weight, weight, 1e-5), rtol=1e-12, atol=1e-12)
        got = denoiser.rms_norm_modulate(x, weight=weight, eps=1e-5)
        torch.testing.assert_close(got, F.rms_norm(x, (width,), weight, 1e-5), rtol=1e-12, atol=1e-12)
        assert torch.equal(denoiser.gate_residual(x, x, bias), x + x)


@pytest.mark.parametrize("backend", NATIVE)
def test_float32_gradients(backend):
    """2e-6 of the largest entry, against float64; 1152 columns as DiT-XL has them, 100 tokens."""
    shape = (1, 20, 40) if backend == "emu" else (2, 100, 1152)
    parts = [normal(*shape, seed=s, dtype=torch.float32) for s in (1, 2)]
    parts += [normal(shape[0], shape[2], seed=s, dtype=torch.float32) for s in (3, 4, 5)]
    grads = [normal(*shape, seed=s, dtype=torch.float32) for s in (6, 7)]
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        device = device_of(name)
        leaves = [t.to(device, dtype).requires_grad_() for t in parts]
        with fokker.use_backend(name):
            results = denoiser.residual_gate_norm_modulate(*leaves)
            found.append(torch.autograd.grad(results, leaves, [g.to(device, dtype) for g in grads]))
    for got, want in zip(*found, strict=True):
        assert (got.cpu() - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("backend", NATIVE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_halves_are_rounded_once(dtype, backend):
    """Ours: the rounded float32 result, no more than 1.02 single roundings; torch's eager layers are further off.

    Gradients likewise.
    """
    shape = (2, 4, 96) if backend == "emu" else (4, 32, 1152)
    device = device_of(backend)
    x, h = (normal(*shape, seed=s, dtype=dtype, device=device) for s in (1, 2))
    gate, shift, scale = (normal(shape[0], shape[2], seed=s, dtype=dtype, device=device) for s in (3, 4, 5))
    with fokker.use_backend(backend):
        mine = denoiser.residual_gate_norm_modulate(x, h, gate, shift, scale)
        single = denoiser.residual_gate_norm_modulate(*(t.float() for t in (x, h, gate, shift, scale)))
        grads = []
        for of in ((x, h, gate, shift, scale), [t.float() for t in (x, h, gate, shift, scale)]):
            leaves = [t.detach().requires_grad_() for t in of]
            found = denoiser.residual_gate_norm_modulate(*leaves)
            grads.append(torch.autograd.grad(found, leaves, [t.to(of[0].dtype) for t in (h, x)]))
    for halves, floats in ((mine, single), grads):
        assert all(torch.equal(a, b.to(dtype)) for a, b in zip(halves, floats, strict=True))
    summed = x + gate[:, None] * h
    eager = summed, F.layer_norm(summed, shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    wide = [t.double() for t in (x, h, gate[:, None], shift[:, None], scale[:, None])]
    for got, theirs, truth in zip(mine, eager, reference.residual_gate_norm_modulate(*wide), strict=True):
        once = (truth.to(dtype) - truth).square().mean().sqrt()
        assert (got - truth).square().mean().sqrt() <= 1.02 * once
        assert (theirs - truth).square().mean().sqrt() > 1.2 * once


@pytest.mark.parametrize("backend", NATIVE)
def test_a_large_mean_does_not_cancel(backend):
    """float32 rows about 1e4 with deviation 1: the digits that x has are kept; also behind an outlying beginning."""
    x = normal(1, 3, 300, dtype=torch.float32, device=device_of(backend)) + 1e4
    x[:, 1] -= 1e4
    x[:, 1, :80] += 1e5
    x[:, 2] = 7.0
    with fokker.use_backend(backend):
        got = denoiser.layer_norm_modulate(x)
    want = reference.layer_norm_modulate(x.double())
    assert (got - want).abs().max() <= 2e-6
    assert (got[:, 2] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_dtypes(backend):
    """Float32 modulation of bfloat16 rows, and the gradients in the dtype of each argument."""
    device = device_of(backend)
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float32)
    shapes = ((2, 3, 24), (2, 3, 24), (2, 24), (2, 3, 24), (24,))
    leaves = [
        normal(*n, seed=s, dtype=d, device=device).requires_grad_()
        for s, (n, d) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    with fokker.use_backend(backend):
        found = denoiser.residual_gate_norm_modulate(*leaves)
        assert all(t.dtype is torch.bfloat16 for t in found)
        grads = torch.autograd.grad(sum(t.float().square().sum() for t in found), leaves)
    assert [g.dtype for g in grads] == list(dtypes)
    wide = [t.detach().float() for t in leaves]
    wide[2] = wide[2][:, None]
    want = reference.residual_gate_norm_modulate(*wide)
    torch.testing.assert_close(found, tuple(t.bfloat16() for t in want), rtol=8e-3, atol=1e-6)


@pytest.mark.parametrize("backend", NATIVE)
def test_layouts(backend):
    """Rows that are columns of memory, every other one, chunks of a projection, an expanded gradient."""
    device = device_of(backend)
    plain = normal(2, 6, 40, device=device)
    projection = normal(2, 3 * 40, seed=2, device=device)
    shift, scale, gate = projection.chunk(3, 1)
    views = [plain.mT.contiguous().mT, torch.stack([plain, plain], 1)[:, 0], plain.repeat(1, 1, 2)[..., ::2][..., :20]]
    for x in views:
        width = x.shape[-1]
        parts = [t[:, :width] for t in (gate, shift, scale)]
        with fokker.use_backend(backend):
            leaf = x.detach().requires_grad_()
            got = denoiser.residual_gate_norm_modulate(leaf, x.flip(0), *parts)
            (grad,) = torch.autograd.grad(sum(t.sum() for t in got), leaf)
            copy = x.contiguous().requires_grad_()
            want = denoiser.residual_gate_norm_modulate(copy, x.flip(0).contiguous(), *(t.contiguous() for t in parts))
            (same,) = torch.autograd.grad(sum(t.sum() for t in want), copy)
        assert all(t.is_contiguous() for t in got)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(grad, same, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa):
    before = _native.cpu.isa()
    try:
        _native.cpu.set_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for width, dtype in itertools.product((5, 200), (torch.float32, torch.float64, torch.bfloat16)):
            leaves = [normal(2, 3, width, seed=s, dtype=dtype).requires_grad_() for s in (1, 2)]
            leaves += [normal(2, width, seed=s, dtype=dtype).requires_grad_() for s in (3, 4, 5)]
            with fokker.use_backend("cpu"):
                found = denoiser.residual_gate_norm_modulate(*leaves)
                grads = torch.autograd.grad(sum(t.square().sum() for t in found), leaves)
            with fokker.use_backend("reference"):
                want = denoiser.residual_gate_norm_modulate(*leaves)
                others = torch.autograd.grad(sum(t.square().sum() for t in want), leaves)
            bound = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
            torch.testing.assert_close((*found, *grads), (*want, *others), rtol=bound, atol=10 * bound)
    finally:
        _native.cpu.set_isa(before)


@pytest.mark.parametrize("backend", NATIVE)
def test_bits_do_not_depend_on_the_batch(backend):
    x, h = (normal(4, 70, 33, seed=s, dtype=torch.float32, device=device_of(backend)) for s in (1, 2))
    parts = [normal(4, 33, seed=s, dtype=torch.float32, device=device_of(backend)) for s in (3, 4, 5)]

    def run(at):
        leaves = [t[at].clone().requires_grad_() for t in (x, h, *parts)]
        found = denoiser.residual_gate_norm_modulate(*leaves)
        return (*found, *torch.autograd.grad(sum(t.square().sum() for t in found), leaves))

    before = torch.get_num_threads()
    try:
        with fokker.use_backend(backend):
            whole = run(slice(0, 4))
            torch.set_num_threads(1)
            halves = [run(slice(0, 1)), run(slice(1, 4))]
    finally:
        torch.set_num_threads(before)
    for a, *b in zip(whole, *halves, strict=True):
        assert torch.equal(a, torch.cat(b))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_past_the_cache(dtype):
    """The CPU writes results from 16 MB on past the cache: the same bits as those of parts, which it does not."""
    shape = (8 * 4 // dtype.itemsize, 512, 1024)
    x, h, above, grad = (normal(*shape, seed=s, dtype=dtype) for s in (1, 2, 3, 4))
    parts = [normal(shape[0], shape[2], seed=s, dtype=dtype) for s in (5, 6, 7)]

    def run(at):
        leaves = [t[at].requires_grad_() for t in (x, h, *parts)]
        found = denoiser.residual_gate_norm_modulate(*leaves)
        alone = denoiser.layer_norm_modulate(x[at], *(t[at] for t in parts[1:]))
        return (*found, alone, *torch.autograd.grad(found, leaves, (above[at], grad[at])))

    with fokker.use_backend("cpu"):
        whole = run(slice(0, shape[0]))
        for at in (slice(0, 2), slice(2, shape[0] // 2)):
            assert all(torch.equal(a[at], b) for a, b in zip(whole, run(at), strict=True))


@pytest.mark.skipif("cpu" not in NATIVE, reason="the CPU module is not built")
@pytest.mark.parametrize("width", [15, 16, 31, 96, 100])
def test_halves_read_as_they_lie(width):
    """Rows of one half-precision dtype are read in vectors, others copied first: the same bits, also NaN and inf."""
    for dtype in (torch.bfloat16, torch.float16):
        x, h, grad = (normal(2, 5, width, seed=s, dtype=dtype) for s in (1, 2, 3))
        x[0, 0, 1], x[0, 1, 2], h[1, 4, 0], x[1, 3] = torch.inf, -torch.nan, torch.nan, 65504.0
        parts = [normal(2, width, seed=s, dtype=dtype) for s in (5, 6, 7)]
        found = []
        for copied in (False, True):
            a, b = (torch.stack((t, t), -1)[..., 0] if copied else t.clone() for t in (x, h))
            leaves = [t.requires_grad_() for t in (a, b, *(p.clone() for p in parts))]
            with fokker.use_backend("cpu"):
                y = denoiser.residual_gate_norm_modulate(*leaves)
                found.append((*y, *torch.autograd.grad(y, leaves, (grad, grad))))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_out(backend):
    device = device_of(backend)
    x, h = (normal(2, 3, 20, seed=s, dtype=torch.float32, device=device) for s in (1, 2))
    shift, scale, gate = (normal(2, 20, seed=s, dtype=torch.float32, device=device) for s in (3, 4, 5))
    with fokker.use_backend(backend):
        want = denoiser.residual_gate_norm_modulate(x, h, gate, shift, scale)
        ours = torch.empty_like(x), torch.empty(2, 20, 3, dtype=torch.bfloat16, device=device).mT
        got = denoiser.residual_gate_norm_modulate(x, h, gate, shift, scale, out=ours)
        assert got[0] is ours[0] and got[1] is ours[1]
        assert torch.equal(ours[0], want[0]) and torch.equal(ours[1], want[1].bfloat16())
        a, b = x.clone(), h.clone()  # in place
        denoiser.residual_gate_norm_modulate(a, b, gate, shift, scale, out=(b, a))
        assert torch.equal(b, want[0]) and torch.equal(a, want[1])
        a = x.clone()
        assert denoiser.layer_norm_modulate(a, shift, scale, out=a) is a
        assert torch.equal(a, denoiser.layer_norm_modulate(x, shift, scale))
        a = x.clone()  # overlapping, but not the same
        denoiser.rms_norm_modulate(a[:, :2], out=a[:, 1:])
        assert torch.equal(a[:, 1:], denoiser.rms_norm_modulate(x[:, :2]))
        row = shift.clone()
        assert torch.equal(
            denoiser.layer_norm_modulate(x[:, 0], row, scale, out=row),
            denoiser.layer_norm_modulate(x[:, 0], shift, scale),
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0), (0, 8)])
def test_empty(shape, backend):
    device = device_of(backend)
    x = torch.zeros(shape, device=device, requires_grad=True)
    shift = torch.zeros(shape[0], shape[-1], device=device, requires_grad=True)
    with fokker.use_backend(backend):
        summed, y = denoiser.residual_gate_norm_modulate(x, x, shift, shift, None)
        assert summed.shape == y.shape == shape
        grads = torch.autograd.grad((summed + y).sum(), (x, shift))
        assert grads[0].shape == shape and (grads[1] == 0).all()


def test_nothing_is_kept_but_the_arguments():
    """The tensors that autograd saves are the arguments' own memory."""
    x, h = (normal(2, 3, 8, seed=s).requires_grad_() for s in (1, 2))
    parts = [normal(2, 8, seed=s).requires_grad_() for s in (3, 4, 5)]
    arguments = {t.untyped_storage().data_ptr() for t in (x, h, *parts)}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        found = denoiser.residual_gate_norm_modulate(x, h, *parts)
    assert not any(t._is_view() for t in found)  # FSDP warns of a view
    assert saved and {t.untyped_storage().data_ptr() for t in saved} <= arguments


# ---- bad input ------------------------------------------------------------------------------------------------------
X = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: denoiser.layer_norm_modulate(X, torch.zeros(3)),
            r"shift \(3,\) must be \(4,\), \(2, 4\) or broadcast",
        ),
        (lambda: denoiser.layer_norm_modulate(X, torch.zeros(3, 4)), r"shift \(3, 4\) must be .* to x \(2, 3, 4\)"),
        (lambda: denoiser.layer_norm_modulate(X, None, torch.zeros(2, 2, 4)), r"scale \(2, 2, 4\) must be"),
        (lambda: denoiser.layer_norm_modulate(X, None, (X[0, 0],)), "scale must be a tensor or a pair .* got 1"),
        (
            lambda: denoiser.layer_norm_modulate(X, (X[0], X)),
            r"shift\[0\] \(the table\) \(3, 4\) must have shape \(4,\)",
        ),
        (lambda: denoiser.layer_norm_modulate(X, weight=torch.zeros(3)), r"weight \(3,\) must have shape \(4,\)"),
        (lambda: denoiser.rms_norm_modulate(X, eps=0.0), "eps must be positive and finite, got 0.0"),
        (lambda: denoiser.rms_norm_modulate(X, eps=-1e-6), "eps must be positive and finite, got -1e-06"),
        (lambda: denoiser.rms_norm_modulate(X, eps=float("nan")), "eps must be positive and finite, got nan"),
        (lambda: denoiser.rms_norm_modulate(X[0, 0]), r"x must have shape \(B, ..., C\), got \(4,\)"),
        (lambda: denoiser.gate_residual(X, X[:1], None), r"branch \(1, 3, 4\) must have the shape of x \(2, 3, 4\)"),
        (lambda: denoiser.gate_residual(X, X, X[..., :1]), r"gate \(2, 3, 1\) must be"),
        (
            lambda: denoiser.residual_gate_norm_modulate(X, X, None, None, None, norm="batch"),
            "norm must be 'layer' or 'rms', got 'batch'",
        ),
        (lambda: denoiser.residual_gate_norm_modulate(X, X, None, None, None, out=X), "out must be 2 tensors"),
        (lambda: denoiser.rms_norm_modulate(X, out=X[:1].clone()), r"out \(1, 3, 4\) must have the shape of x"),
        (lambda: denoiser.rms_norm_modulate(X.clone().requires_grad_(), out=X.clone()), "out= records no gradient"),
    ],
)
def test_bad_values(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: denoiser.layer_norm_modulate([1.0]), "x must be a tensor, got list"),
        (lambda: denoiser.layer_norm_modulate(X.long()), "x must have dtype float32, .* got torch.int64"),
        (lambda: denoiser.layer_norm_modulate(X, X.long()), "shift must have dtype float32, .* got torch.int64"),
        (lambda: denoiser.layer_norm_modulate(X, 1.0), "shift must be a tensor, got float"),
        (lambda: denoiser.layer_norm_modulate(X.to_sparse()), "x must be a dense"),
        (lambda: denoiser.layer_norm_modulate(X, X.to("meta")), "shift is on meta, x on cpu: one device expected"),
        (lambda: denoiser.gate_residual(X, None, None), "branch must be a tensor, got NoneType"),
        (lambda: denoiser.rms_norm_modulate(X, eps="small"), "eps must be a number, got str"),
    ],
)
def test_bad_types(call, text):
    with pytest.raises(TypeError, match=text):
        call()


@pytest.mark.parametrize("backend", NATIVE)
def test_wide_rows(backend):
    """Rows of 16,384 and more, by every kernel for long ones."""
    for width, dtype in ((16384, torch.float32), (20000, torch.float32), (9000, torch.float64)):
        if backend == "emu" and width == 16384:
            continue
        device = device_of(backend)
        leaves = [normal(1, 2, width, seed=s, dtype=dtype, device=device).requires_grad_() for s in (1, 2)]
        leaves += [normal(1, width, seed=s, dtype=dtype, device=device).requires_grad_() for s in (3, 4, 5)]
        grads = [normal(1, 2, width, seed=s, dtype=dtype, device=device) for s in (6, 7)]
        with fokker.use_backend(backend):
            found = denoiser.residual_gate_norm_modulate(*leaves)
            got = (*found, *torch.autograd.grad(found, leaves, grads))
        wide = [t.detach().double().requires_grad_() for t in leaves]
        want = reference.residual_gate_norm_modulate(*wide[:2], *(t[:, None] for t in wide[2:]))
        want = (*want, *torch.autograd.grad(want, wide, [g.double() for g in grads]))
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() <= (3e-6 if dtype is torch.float32 else 1e-13) * b.abs().max()
