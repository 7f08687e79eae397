"""Every op of the one table, on every backend that runs here: values, shapes, gradients, transforms, compilation."""

import contextlib
import itertools

import pytest
import torch
from conftest import BACKENDS
from group_calls import group_arguments
from heads_calls import head_arguments
from loss_calls import loss_arguments
from sde_calls import step_arguments
from torch import Tensor

import fokker
from fokker import _native
from fokker._cli.check import _device, _to, judge
from fokker.cases import CASES

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
EVERY = [
    pytest.param(c, b, d, id=f"{c.name}-{b}-{str(d)[6:]}")
    for c, b, d in itertools.product(CASES.values(), BACKENDS, DTYPES)
    if b in c.backends and d in c.tolerance
]
ON_BACKEND = [
    pytest.param(c, b, id=f"{c.name}-{b}") for c, b in itertools.product(CASES.values(), BACKENDS) if b in c.backends
]
ELEMENTWISE = [p for p in ON_BACKEND if p.values[0].elementwise]
DIFFERENTIABLE = [p for p in ON_BACKEND if p.values[0].gradients]
NATIVE = [p for p in DIFFERENTIABLE if p.values[1] in ("cpu", "cuda")]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def gentle(case, backend):
    return _to(case.gentle(generator()), _device(backend))


def leaves(case, backend):
    """Moderate arguments whose differentiable ones ask for a gradient, and a function of those alone."""
    args = list(gentle(case, backend))
    for i in case.gradients:
        args[i] = args[i].clone().requires_grad_()

    def f(*values: Tensor) -> Tensor:
        full = list(args)
        for i, value in zip(case.gradients, values, strict=True):
            full[i] = value
        return case.call(*full)

    return f, tuple(args[i] for i in case.gradients)


@pytest.mark.parametrize(("case", "backend", "dtype"), EVERY)
def test_values(case, backend, dtype):
    row = judge(case, backend, dtype)
    assert row.ok, f"error {row.error:.3g}, allowed {row.tolerance:.3g} ({row.share:.2f} of it) {row.note}"
    assert row.points >= 200


@pytest.mark.parametrize(("case", "backend"), ELEMENTWISE)
def test_layouts(case, backend):
    """0-dimensional, empty, transposed, strided, expanded and broadcast inputs give the same numbers as plain ones."""
    device = _device(backend)
    tensors = [a for a in case.make(60, torch.float64, generator()) if isinstance(a, Tensor)]
    extra = [a for a in case.make(1, torch.float64, generator()) if not isinstance(a, Tensor)]
    tensors = [t.to(device) for t in tensors]
    with fokker.use_backend(backend):
        plain = case.call(*tensors, *extra)
        square = [t.reshape(6, 10) for t in tensors]
        views = {
            "transposed": ([t.t() for t in square], plain.reshape(6, 10).t()),
            "strided": ([torch.stack([t, t + 1], -1)[..., 0] for t in tensors], plain),
            "sliced": ([torch.cat([t, t])[::2] for t in tensors], torch.cat([plain, plain])[::2]),
            "0-d": ([t[3] for t in tensors], plain[3]),
            "4-d": (
                [t.reshape(2, 3, 1, 10).transpose(0, 1) for t in tensors],
                plain.reshape(2, 3, 1, 10).transpose(0, 1),
            ),
        }
        for name, (inputs, want) in views.items():
            got = case.call(*inputs, *extra)
            assert got.shape == want.shape, name
            torch.testing.assert_close(got, want, rtol=2e-15, atol=0, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")
        assert case.call(*(t[:0] for t in tensors), *extra).shape == (0,)
        assert case.call(*(t.reshape(60, 1)[:, :0] for t in tensors), *extra).shape == (60, 0)
        if len(tensors) == 2:
            a, b = tensors[0][:5, None], tensors[1][None, :7]
            torch.testing.assert_close(
                case.call(a, b, *extra),
                case.call(a.expand(5, 7).contiguous(), b.expand(5, 7).contiguous(), *extra),
                rtol=2e-15,
                atol=0,
            )
            assert case.call(tensors[0][0], tensors[1], *extra).shape == (60,)


def one_further(t: Tensor) -> Tensor:
    """The same numbers and strides, one element into a memory of their own: no pack of them is aligned."""
    reach = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    memory = torch.zeros(reach + 1, dtype=t.dtype, device=t.device)
    return memory.as_strided(t.shape, t.stride(), 1).copy_(t)


@pytest.mark.parametrize(("case", "backend"), [p for p in ON_BACKEND if p.values[1] not in ("reference", "cpu")])
def test_odd_storage_offsets(case, backend):
    """Views that start between two aligned packs, as slices do: the same numbers, forward and backward."""
    for dtype in (torch.float32, torch.bfloat16):
        if dtype not in case.tolerance:
            continue
        args = _to(case.make(64, dtype, generator()), _device(backend))
        moved = [one_further(a) if isinstance(a, Tensor) else a for a in args]
        found = []
        for inputs in (args, moved):
            with fokker.use_backend(backend):
                found.append([case.call(*inputs)])
                if case.gradients and dtype is torch.float32:
                    leaves = [a.detach().requires_grad_() if i in case.gradients else a for i, a in enumerate(inputs)]
                    wanted = [leaves[i] for i in case.gradients]
                    with contextlib.suppress(fokker.BackendError):  # no gradient on this backend
                        found[-1] += torch.autograd.grad(case.call(*leaves).sum(), wanted, allow_unused=True)
        for got, want in zip(*reversed(found), strict=True):
            torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(p.values[0], id=p.id) for p in ON_BACKEND if p.values[1] == "emu"])
def test_order_of_the_cuda_threads_does_not_matter(case):
    """Threads and blocks forward, in reverse and at random: the same bits, of results and of gradients."""
    found = []
    for dtype in (torch.float32, torch.float64):
        args = case.make(90, dtype, generator()) if dtype in case.tolerance else ()
        for k, order in enumerate((("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)) if args else ()):
            leaves = [a.detach().requires_grad_() if i in case.gradients else a for i, a in enumerate(args)]
            try:
                _native.emu.set_order(*order)
                with fokker.use_backend("emu"):
                    out = [case.call(*leaves)]
                    if case.gradients:
                        wanted = [leaves[i] for i in case.gradients]
                        out += torch.autograd.grad(out[0].sum(), wanted, allow_unused=True)
            finally:
                _native.emu.set_order("forward", 0)
            if k == 0:
                found = out
            for got, want in zip(out, found, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("case", "backend"), DIFFERENTIABLE)
def test_gradient(case, backend):
    f, at = leaves(case, backend)
    with fokker.use_backend(backend):
        assert torch.autograd.gradcheck(f, at, eps=1e-6, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(("case", "backend"), [p for p in DIFFERENTIABLE if p.values[0].order == 2])
def test_second_gradient(case, backend):
    f, at = leaves(case, backend)
    with fokker.use_backend(backend):
        assert torch.autograd.gradgradcheck(f, at, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("case", "backend"), [p for p in DIFFERENTIABLE if p.values[1] != "reference"])
def test_gradient_equals_the_reference(case, backend):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        grads = {}
        for name in (backend, "reference"):
            args = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in gentle(case, name)]
            for i in case.gradients:
                args[i] = args[i].clone().requires_grad_()
            with fokker.use_backend(name):
                case.call(*args).sum().backward()
            grads[name] = [args[i].grad for i in case.gradients]
        for got, want in zip(*grads.values(), strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got.cpu(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("case", "backend"), NATIVE)
def test_function_transforms(case, backend):
    f, at = leaves(case, backend)
    at = tuple(a.detach() for a in at)
    tangents = tuple(torch.linspace(0.1, 1.0, a.numel(), dtype=a.dtype, device=a.device).reshape(a.shape) for a in at)
    with fokker.use_backend(backend):
        value, slope = torch.func.jvp(f, at, tangents)
        torch.testing.assert_close(value, f(*at), rtol=1e-13, atol=1e-13)
        numeric = (
            f(*(a + 1e-6 * t for a, t in zip(at, tangents, strict=True)))
            - f(*(a - 1e-6 * t for a, t in zip(at, tangents, strict=True)))
        ) / 2e-6
        torch.testing.assert_close(slope, numeric, rtol=1e-6, atol=1e-7)
        assert slope.abs().max() > 0
        grads = torch.func.grad(lambda *a: f(*a).sum(), argnums=tuple(range(len(at))))(*at)
        leaf = tuple(a.clone().requires_grad_() for a in at)
        want = torch.autograd.grad(f(*leaf).sum(), leaf)
        torch.testing.assert_close(grads, want, rtol=1e-12, atol=1e-12)
        twice = torch.func.vmap(lambda s: f(*(a * s for a in at)))(torch.tensor([1.0, 0.9], dtype=torch.float64))
        torch.testing.assert_close(twice, torch.stack([f(*at), f(*(a * 0.9 for a in at))]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("case", "backend"), NATIVE)
def test_compile_fullgraph(case, backend):
    f, at = leaves(case, backend)
    torch.compiler.reset()
    compiled = torch.compile(lambda *a: (f(*(1.0 * t for t in a)) * 2).sum(), fullgraph=True, backend="aot_eager")
    with fokker.use_backend(backend):
        got = torch.autograd.grad(compiled(*at), at)
        want = torch.autograd.grad((f(*at) * 2).sum(), at)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", sorted(fokker._op.REGISTRY))
def test_registration(name):
    """torch.library's own checks of schema, fake kernel and autograd registration, on every registered op."""
    op = fokker._op.REGISTRY[name]
    args = registration_arguments(name)
    torch.library.opcheck(
        op.torch_op, args, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


def registration_arguments(name: str):
    g = generator()
    unit = torch.nn.functional.normalize(torch.randn(6, 5, generator=g, dtype=torch.float64), dim=1)
    k = torch.rand(6, generator=g, dtype=torch.float64) + 0.5
    special = {
        "bessel_grad": (k, 2 * k, 0, True, True),
        "bessel_hess": (k, 2 * k, 0),
        "vmf_bregman": (k, 2 * k, 5),
        "vmf_bregman_grad": (k, 2 * k, 5),
        "vmf_log_prob": (unit, unit[0], k),
        "vmf_resultant": (unit, k),
        "vmf_sample": (unit, k, None, 0, 5, 0, 6),
        "vmf_sample_backward": (unit, unit.flip(0), unit, k / 2, 1 - k / 2),
        "vmf_cosine_gradient": (k, k / 2, 1 - k / 2, k / 2, 1 - k / 2, 5),
        "random_fill": (unit[:0, 0], None, None, torch.arange(6), 2, [6, 5], 3, 1, 0, 0, 2),
        "random_normal_sum": (unit[:0, 0], None, None, unit[:1], torch.arange(5)[None], [6, 5], 3, 0, 2),
        "affine_logsumexp": (unit, unit[:3], k[:3]),
        "affine_softmax": (unit, unit[:3], k[:3]),
        "affine_logsumexp_backward": (unit, unit[:3], k[:3], k),
        "affine_moments": (unit, unit[:3], k[:3], k),
        "gaussian_log_sum": (unit, unit[:3], unit[:3, :, None] * unit[:3, None], k[:3], True),
        "gaussian_joint": (unit, unit[:3], k[:5].expand(1, 5), k[:3], False, True),
        "gaussian_pull": (torch.outer(k[:3], k), unit, unit[:3], unit[:3], unit[3:]),
        "gaussian_moments": (torch.outer(k[:3], k), unit, unit[:3], True),
        "gaussian_levels": (unit, k, k, k[:3], unit[:3], unit[:3].square(), None, None, 15),
        "denoiser_mp_cat": (unit, unit[:, :2] + 1, 0.7, 0.8, 1),
        "denoiser_mp_cat_vjp": (unit, 0.7, 0.8, 1, 2),
        "denoiser_pixel_norm": (unit, 1, 0.1),
        "denoiser_pixel_norm_vjp": (unit, unit.flip(0), 1, 0.1),
        "pair_distances": (unit[None], unit[None, :4] + 0.1, k[None, :4], True),
    }
    if name == "kde_nearest":
        return unit[None], unit[None, :4] + 0.1, 0, False
    if name.startswith("kde_"):
        return density_arguments(name, unit)
    if name.startswith("sde_"):
        return step_arguments(name)
    if name.startswith("loss_"):
        return loss_arguments(name)
    if name.startswith("denoiser_group"):
        return group_arguments(name)
    if name in special:
        return special[name]
    if name.startswith(("qk", "gated_")):
        return head_arguments(name)
    if name.startswith(("denoiser_norm", "denoiser_gate")):
        return norm_arguments(name)
    return (k / 2, 5) if name.startswith("vmf_") else (k, 2 * k)


def norm_arguments(name: str):
    x, branch = torch.randn(2, 2, 3, 5, generator=generator(), dtype=torch.float64)
    rows, table = x[:, :1] / 2, x[0, 0]
    norm = 0 if name == "denoiser_gate" else 1
    if name == "denoiser_norm":
        return (x, *(None,) * 3, rows, table, branch, None, table, table, 1e-6, norm)
    full = (x, branch, rows, table, *((rows, table, branch, None, table, table) if norm else (None,) * 6))
    return (*full, x, branch, 1e-6, norm, 1023) if name.endswith("vjp") else (*full, 1e-6, norm)


def density_arguments(name: str, x: Tensor):
    x, settings = x[None], (0, 1.0, 0, 13, True)  # gaussian, leaving out j = i; values, squares and spreads
    h = torch.ones(1, 1, 1, dtype=torch.float64)
    row, bias = x[..., 0], torch.zeros(1, 6, dtype=torch.float64)
    inputs = (x, x + 0.1, h, bias, None) if "sums" in name else (x, x + 0.1, h, bias, row, row)
    if not name.endswith("_vjp"):
        return (*inputs, *settings)
    grads = (row, x, row, row) if "sums" in name else (x, row, row)
    return (*inputs, *grads, *settings)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES.values() if "cpu" in c.backends])
def test_bits_do_not_depend_on_threads_or_split(case):
    args = case.make(20000, torch.float32, generator())
    before = torch.get_num_threads()
    try:
        with fokker.use_backend("cpu"):
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(case.call(*args))
            assert torch.equal(*(r.nan_to_num() for r in results))
            if case.elementwise:
                parts = [
                    case.call(*(a[i : i + 777] if isinstance(a, Tensor) else a for a in args))
                    for i in range(0, 20000, 777)
                ]
                assert torch.equal(torch.cat(parts).nan_to_num(), results[0].nan_to_num())
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("emu" not in BACKENDS, reason="the emulator is not built (FOKKER_EMU=ON)")
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES.values() if "emu" in c.backends])
def test_emulated_thread_order_does_not_matter(case):
    args = case.make(300, torch.float32, generator())
    try:
        with fokker.use_backend("emu"):
            results = []
            for order in ("forward", "reverse", "random"):
                _native.emu.set_order(order, 7)
                results.append(case.call(*args).nan_to_num())
        assert all(torch.equal(results[0], r) for r in results[1:])
    finally:
        _native.emu.set_order("forward", 0)
