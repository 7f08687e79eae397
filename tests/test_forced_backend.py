"""A forced backend never falls back: where a gradient is wanted its kernel runs too, or an error says what to do."""

import subprocess
import sys

import pytest
import torch
from conftest import BACKENDS
from sphere import F64, unit
from test_ops import registration_arguments

import fokker
from fokker import _backend, _native, _op

FORCED = [b for b in BACKENDS if b != "reference"]
NAMES = sorted(_op.REGISTRY)


def wanting(name):
    """Arguments of an op with a gradient wanted of every floating one."""
    return [
        a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
        for a in registration_arguments(name)
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", FORCED)
def test_the_kernel_runs_where_a_gradient_is_wanted(name, backend, monkeypatch):
    op = _op.REGISTRY[name]
    if backend not in op.kernels:
        pytest.skip(f"{name} has no {backend} kernel")
    calls = []

    def watched(run, label):
        def f(*args, **kwargs):
            calls.append(label)
            return run(*args, **kwargs)

        return f

    with fokker.use_backend(backend):
        monkeypatch.setitem(op._by_device, False, watched(op._by_device[False], backend))
        monkeypatch.setattr(op, "reference", watched(op.reference, "reference"))
        try:
            out = op(*wanting(name))
        except fokker.BackendError as error:
            assert op.backward is None and name in str(error)
        else:
            assert calls == [backend]
            first = out[0] if isinstance(out, tuple) else out
            assert first.requires_grad == first.is_floating_point()  # a choice has no gradient


def without_backward():
    """An op with a kernel and no gradient of its own: x^2 (its kernel adds 100, to be told apart)."""
    name = "test_without_backward"
    if name in _op.REGISTRY:
        return _op.REGISTRY[name]
    return _op.Op(
        f"{name}(Tensor x) -> Tensor",
        tensors=1,
        reference=lambda x: x * x,
        fake=torch.empty_like,
        kernels={"cpu": lambda x: x * x + 100},
        elementwise=True,
    )


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the CPU kernels are not built")
def test_an_op_without_a_gradient_says_so_under_a_forced_backend():
    op, x = without_backward(), torch.tensor([3.0], requires_grad=True)
    try:
        with fokker.use_backend("cpu"):
            with pytest.raises(fokker.BackendError, match="has no gradient on backend 'cpu': detach"):
                op(x)
            assert float(op(x.detach())) == 109.0
            with torch.no_grad():
                assert float(op(x)) == 109.0
            compiled = torch.compile(lambda t: op(t), fullgraph=True, backend="aot_eager")
            with pytest.raises(RuntimeError, match="test_without_backward has no gradient"):  # torch wraps it
                compiled(x).sum().backward()
        for backend in ("auto", "reference"):
            with fokker.use_backend(backend):
                (slope,) = torch.autograd.grad(op(x), x)
                assert float(slope) == 6.0
                torch.compiler.reset()
                compiled = torch.compile(lambda t: op(t), fullgraph=True, backend="aot_eager")
                assert float(torch.autograd.grad(compiled(x), x)[0]) == 6.0
    finally:
        del _op.REGISTRY[op.name]
        _backend._listeners.remove(op._refresh)


COMPOSED = ("affine_logsumexp_backward", "affine_moments", "vmf_resultant")


@pytest.mark.parametrize("name", COMPOSED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_composed_gradients(name, backend):
    """Gradients made of torch's own products around a kernel: by differences, and equal to the reference's."""
    op, args = _op.REGISTRY[name], wanting(name)
    if backend not in op.kernels:
        pytest.skip(f"{name} has no {backend} kernel")
    weights = [torch.randn_like(t) for t in op.reference(*args)] if name != "vmf_resultant" else None

    def value(*values):
        out = op(*values)
        return out[:-1] if weights is None else sum((a * b).sum() for a, b in zip(out, weights, strict=True))

    with fokker.use_backend(backend):
        assert torch.autograd.gradcheck(value, args)
        assert torch.autograd.gradgradcheck(value, args)
        got = torch.autograd.grad(value(*args).sum(), args)
    with fokker.use_backend("reference"):
        want = torch.autograd.grad(value(*args).sum(), args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", FORCED)
def test_resultant_without_weights_or_in_float32(backend):
    op = _op.REGISTRY["vmf_resultant"]
    if backend not in op.kernels:
        pytest.skip(f"no {backend} kernel")
    x = unit(7, 4, dtype=torch.float32).requires_grad_()
    with fokker.use_backend(backend):
        out = op(x, None)
        assert out.dtype == F64 and out.requires_grad
        (slope,) = torch.autograd.grad(out[1], x)
    assert slope.dtype == torch.float32 and torch.equal(slope, torch.tensor([0.0, 1, 0, 0]).expand(7, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_past_the_last_are_an_error(backend):
    k = torch.tensor([0.7, 3.0], dtype=F64, requires_grad=True)
    with fokker.use_backend(backend):
        for name, args in (("bessel_hess", (k, 2 * k.detach(), 0)), ("vmf_resultant_second", (k, 5))):
            out = _op.REGISTRY[name](*args)
            out = out[0] if isinstance(out, tuple) else out
            with pytest.raises(NotImplementedError, match="third derivative"):
                out.sum().backward()


def test_the_import_does_not_start_cuda():
    """A process that has started CUDA cannot use it in forked children: devices are counted by NVML alone."""
    program = "import torch; torch.cuda.is_available = torch.cuda.init = None; import fokker; print(fokker.__version__)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0 and run.stdout.strip() == fokker.__version__, run.stderr


def test_a_driver_older_than_the_build_is_said(monkeypatch):
    module = type("module", (), {"cuda_version": 13000})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for version, why in ((12040, "built with CUDA 13, but the driver ends at CUDA 12.4"), (13010, None), (0, None)):
        monkeypatch.setattr(_native, "_driver_version", lambda version=version: version)
        assert _native._why_no_gpu(module) == why
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "no usable CUDA device" in _native._why_no_gpu(module)
