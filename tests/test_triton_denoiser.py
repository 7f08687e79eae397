"""The denoiser's Triton kernels, interpreted or on a GPU: the tests of the native backends, and the registered ops.

As tests/test_triton.py, which runs the quick ones of this file in its process without a GPU.
"""

import inspect
import itertools

import pytest
import test_denoiser_gates as gates
import test_denoiser_heads as heads
import test_denoiser_losses as losses
import test_denoiser_norms as norms
import torch
from interpreting import DEVICE, RUNS
from test_ops import registration_arguments

import fokker
from fokker import denoiser
from fokker._op import REGISTRY
from fokker.triton_kernels import configurations

heads_vjp = pytest.importorskip("fokker.triton_kernels.heads_vjp")
triton_gates = pytest.importorskip("fokker.triton_kernels.gates")
norms_vjp = pytest.importorskip("fokker.triton_kernels.norms_vjp")
pytestmark = [RUNS, pytest.mark.filterwarnings("error::RuntimeWarning")]
QUICK = {
    gates: ["tails", "layouts_and_dimensions", "halves_are_the_float32_result_rounded_once", "pairs"],
    heads: [
        "rotation_alone_norm_alone_and_neither", "rotation_of_a_part", "gradients_against_float64",
        "packed_equals_unpacked",
    ],
    norms: ["a_large_mean_does_not_cancel", "mixed_dtypes", "out", "empty"],
    losses: [
        "reductions", "geometric_brownian_motion_by_the_formula", "gradients_are_those_of_the_table",
        "not_finite_comes_out_as_nan", "mixed_dtypes", "a_sample_does_not_depend_on_its_batch",
        "score_difference_by_autograd",
    ],
}  # fmt: skip
OTHERS = {
    heads: [
        "head_dimensions_norms_and_tables", "layouts_give_the_same_bits", "halves_are_the_float32_result_rounded_once",
    ],
    norms: ["layouts", "torch_computes_the_same"],
    losses: ["kinds_and_weightings", "named_weightings_are_the_papers", "layouts_and_dtypes"],
}  # fmt: skip
F32, F64 = torch.float32, torch.float64
OPS = [n for n in REGISTRY if n.startswith(("denoiser_norm", "denoiser_gate", "qk", "gated_", "loss_"))]


def native(tests):
    """Tests of the native backends with the arguments, but for the backend, of their own parametrize marks."""
    for module, name in ((m, n) for m, names in tests.items() for n in names):
        marks = getattr(getattr(module, f"test_{name}"), "pytestmark", [])
        marks = [m.args for m in marks if m.args[0] != "backend"]
        for values in itertools.product(*(m[1] for m in marks)):
            label = "-".join(str(getattr(v, "__name__", v)) for v in (module.__name__[14:], name, *values))
            yield pytest.param(module, name, dict(zip((m[0] for m in marks), values, strict=True)), id=label)


@pytest.mark.parametrize(("module", "name", "given"), native(QUICK))
def test_quick_as_native(module, name, given, monkeypatch):
    """What the native backends are held to, Triton is too."""
    monkeypatch.setattr(module, "device_of", lambda backend: DEVICE)
    if name == "layouts_and_dtypes":  # small samples, in several pieces of several steps all the same
        monkeypatch.setattr(losses, "SHAPES", losses.SMALL)
        monkeypatch.setitem(configurations.CONFIGURATIONS["losses"], F32, configurations.Configuration(16, 4))
    test = getattr(module, f"test_{name}")
    backend = {k: "triton" for k in ("backend", "native") if k in inspect.signature(test).parameters}
    if DEVICE == "cuda" and not backend:
        pytest.skip("its tensors are on the CPU")
    with fokker.use_backend("triton"):
        test(**given, **backend)


@pytest.mark.parametrize(("module", "name", "given"), native(OTHERS))
def test_as_native(module, name, given, monkeypatch):
    test_quick_as_native(module, name, given, monkeypatch)


@pytest.mark.parametrize("name", OPS)
def test_quick_registered(name):
    """Every op behind the denoiser, results and gradients, has a kernel that equals its reference in float64."""
    op = REGISTRY[name]
    args = [a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in registration_arguments(name)]
    want = op.reference(*args)
    with fokker.use_backend("triton"):
        got = op(*args)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_quick_gates_of_six_dimensions():
    """More dimensions than a kernel walks: results come by way of tensors of their own."""
    x = torch.randn(3, 4, 3, 4, 4, 3, device=DEVICE)[::2, 1::2, ::2, :, ::2, ::2]
    grads = []
    for backend, leaf in (("triton", x), ("reference", x.double())):
        leaf = leaf.detach().requires_grad_()
        with fokker.use_backend(backend):
            y = denoiser.geglu(leaf, dim=3)
            grads += [y.detach().double(), torch.autograd.grad(y.square().sum(), leaf)[0].double()]
    torch.testing.assert_close(grads[:2], grads[2:], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dim", [1, 0])
def test_quick_bias_gradients_of_several_tiles_a_program(dim, monkeypatch):
    monkeypatch.setattr(triton_gates, "PROGRAMS", 2)
    x, bias = torch.randn((50, 90) if dim else (4, 1300), device=DEVICE), torch.randn(90 if dim else 4, device=DEVICE)
    found = []
    for backend, dtype in (("triton", F32), ("triton", F32), ("reference", F64)):
        leaf = bias.to(dtype).requires_grad_()
        with fokker.use_backend(backend):
            y = denoiser.swiglu(x.to(dtype), leaf, dim=dim)
            found.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0].double(), found[2], rtol=2e-6, atol=2e-6 * float(found[2].abs().max()))


def test_quick_heads_of_several_tiles_a_program(monkeypatch):
    """Sums of weights and biases: the same bits every time, and right where a program takes more than one tile."""
    monkeypatch.setattr(heads_vjp, "PROGRAMS", 3)
    q, k, *rest = heads.inputs(72, heads=(3, 2), tokens=17, device=DEVICE)
    grads = [torch.randn_like(t) for t in (q, k)]
    with fokker.use_backend("triton"):
        found, again = (heads.gradients(q, k, rest, grads) for _ in range(2))
    with fokker.use_backend("reference"):
        want = heads.gradients(q.double(), k.double(), [t.double() for t in rest], [g.double() for g in grads])
    for y, same, w in zip(found, again, want, strict=True):
        assert torch.equal(y, same) and float((y - w).abs().max() / w.abs().max()) <= 1e-6


def seam_gradients(shape, kind, norm, affine, dtype, backend):
    """Results and gradients of a gated residual with norm and modulation in every slot."""
    width = shape[-1]
    parts = [norms.normal(*shape, seed=s) for s in (1, 2)]
    parts += [norms.modulation(kind, shape, s) for s in (3, 4, 5)]
    parts += [norms.normal(width, seed=s) if affine else None for s in (6, 7)]
    grads = [norms.normal(*shape, seed=s).to(DEVICE, dtype) for s in (8, 9)]

    def leaf(t):
        if isinstance(t, tuple):
            return tuple(leaf(part) for part in t)
        return None if t is None else t.float().to(DEVICE, dtype).requires_grad_()

    parts = [leaf(t) for t in parts]
    with fokker.use_backend(backend):
        found = denoiser.residual_gate_norm_modulate(*parts, 1e-5, norm=norm)
        return *(y.detach() for y in found), *torch.autograd.grad(found, norms.tensors_of(*parts), grads)


def close(got, want, bound):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert float((a - b).abs().max() / b.abs().max()) <= bound


@pytest.mark.parametrize("long", [False, True], ids=["held", "chunks"])
@pytest.mark.parametrize("kind", norms.KINDS)
def test_quick_norms_of_every_form(kind, long, monkeypatch):
    """Modulations of all kinds, rows in registers and in chunks, tokens in several blocks."""
    monkeypatch.setattr(norms_vjp, "norm_token_block", 2)
    if long:
        for table in ("norms", "norms_vjp"):
            monkeypatch.setitem(configurations.CONFIGURATIONS[table], F32, configurations.Configuration(8, 4))
    form = (2, 3, 19), kind, "rms" if long == (kind in norms.KINDS[::2]) else "layer", kind != "all" or long
    close(seam_gradients(*form, F32, "triton"), seam_gradients(*form, F64, "reference"), 2e-6)


def test_quick_norms_of_the_widest_rows():
    """16,384 columns; the same bits every time."""
    form = (1, 2, 16384), "sample", "layer", True
    found, again = (seam_gradients(*form, F32, "triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    close(found, seam_gradients(*form, F64, "reference"), 2e-6)


def test_quick_losses_of_six_dimensions_and_at_the_edges():
    """The multiplicative residual of more dimensions than a kernel walks; its log of odd ratios."""
    s, x, data = (
        (torch.rand(3, 4, 3, 4, 4, 3, dtype=F64, device=DEVICE) + 0.1)[::2, 1::2, ::2, :, ::2, ::2] for _ in "abc"
    )
    found = []
    for backend in ("triton", "reference"):
        leaf = s.detach().requires_grad_()
        with fokker.use_backend(backend):
            loss = denoiser.multiplicative_score_matching(leaf, x, data, 0.1, 0.5)
            found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)
    ratio = torch.tensor([[1e-310], [5e-324], [0.0], [-1.0], [float("inf")], [float("nan")]], dtype=F64, device=DEVICE)
    one = torch.ones_like(ratio)
    with fokker.use_backend("triton"):
        sums = REGISTRY["loss_lognormal"](one * 0, ratio, one, torch.zeros(1, 2, dtype=F64, device=DEVICE), False)
    torch.testing.assert_close(sums, ratio.log().square()[:, 0], rtol=1e-15, atol=0, equal_nan=True)
