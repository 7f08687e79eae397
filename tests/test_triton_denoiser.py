"""The denoiser's Triton kernels, interpreted or on a GPU: the tests of the native backends, and the registered ops.

As tests/test_triton.py, which runs the quick ones of this file in its process without a GPU.
"""

import os

import pytest
import test_denoiser_gates as gates
import test_denoiser_heads as heads
import torch
from test_ops import registration_arguments

import fokker
from fokker import denoiser
from fokker._op import REGISTRY

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
RUNS = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a GPU or TRITON_INTERPRET=1")
pytestmark = [RUNS, pytest.mark.filterwarnings("error::RuntimeWarning")]
NATIVE = {
    gates: ["tails", "layouts_and_dimensions", "halves_are_the_float32_result_rounded_once"],
    heads: [
        "head_dimensions_norms_and_tables",
        "rotation_alone_norm_alone_and_neither",
        "layouts_give_the_same_bits",
        "halves_are_the_float32_result_rounded_once",
        "gradients_against_float64",
        "packed_equals_unpacked",
    ],
}
OPS = [
    "qk_norm_rope",
    "qk_norm_rope_vjp",
    "qkv_norm_rope",
    "qkv_norm_rope_vjp",
    "gated_activation",
    "gated_activation_vjp",
]


@pytest.mark.parametrize(
    ("module", "name"), [pytest.param(m, n, id=f"{m.__name__[14:]}-{n}") for m, names in NATIVE.items() for n in names]
)
def test_quick_as_native(module, name, monkeypatch):
    """What the native backends are held to, Triton is too."""
    monkeypatch.setattr(module, "device_of", lambda backend: DEVICE)
    getattr(module, f"test_{name}")("triton")


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


def test_quick_heads_of_several_tiles_a_program(monkeypatch):
    """Sums of weights and biases: the same bits every time, and right where a program takes more than one tile."""
    from fokker.triton_kernels import heads_vjp

    monkeypatch.setattr(heads_vjp, "PROGRAMS", 3)
    q, k, *rest = heads.inputs(72, heads=(3, 2), tokens=17, device=DEVICE)
    grads = [torch.randn_like(t) for t in (q, k)]
    with fokker.use_backend("triton"):
        found, again = (heads.gradients(q, k, rest, grads) for _ in range(2))
    with fokker.use_backend("reference"):
        want = heads.gradients(q.double(), k.double(), [t.double() for t in rest], [g.double() for g in grads])
    for y, same, w in zip(found, again, want, strict=True):
        assert torch.equal(y, same) and float((y - w).abs().max() / w.abs().max()) <= 1e-6
