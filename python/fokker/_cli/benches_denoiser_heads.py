"""Attention heads, gated activations and preconditioning beside eager PyTorch and torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import denoiser
from .benches import Bench


def benches() -> Iterator[Bench]:
    """All of them; every contender makes its own results, unless the name says otherwise."""
    yield from _heads()
    yield from _partial()
    yield from _gates()
    yield from _pairs()
    yield from _precondition()
    yield from _small()
    yield from _magnitude()


def _unpack_norm_rope(heads: int, qkv: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Any:
    """As DiT-like models write it: cos and sin (T, D), interleaved pairs."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def turn(x: Tensor, w: Tensor) -> Tensor:
        n = torch.nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-6)
        half = torch.stack((-n[..., 1::2], n[..., ::2]), -1).flatten(-2)
        return n * cos + half * sin

    return turn(q, qw), turn(k, kw), v


def _with_gradient(f: Callable[..., Any], leaf: Tensor, *rest: Any) -> Callable[[], None]:
    x = leaf.clone().requires_grad_()
    with torch.no_grad():
        grads = [torch.randn_like(t) for t in f(x, *rest)]

    def go() -> None:
        torch.autograd.grad(f(x, *rest), x, grads)

    return go


def _heads() -> Iterator[Bench]:
    batch, tokens, heads, dim = 16, 256, 16, 72
    qkv = torch.randn(batch, tokens, 3 * heads * dim)
    qw, kw = torch.rand(dim) + 0.5, torch.rand(dim) + 0.5
    cos, sin = denoiser.rope_table_2d((16, 16), dim)
    whole = [t.repeat_interleave(2, -1) for t in (cos, sin)]
    eager = functools.partial(_unpack_norm_rope, heads)
    compiled = torch.compile(eager)
    ours = functools.partial(_ours, heads)
    elements = 2 * batch * tokens * heads * dim
    yield Bench(
        "QK RMS norm and RoPE of packed qkv, 16 x 256 x 16 heads of 72",
        {
            "fokker": functools.partial(ours, qkv, qw, kw, cos, sin),
            "torch.compile": functools.partial(compiled, qkv, qw, kw, *whole),
            "torch": functools.partial(eager, qkv, qw, kw, *whole),
        },
        {"torch.compile": 3.5, "torch": 7.0},
        elements=elements,
        bytes=8 * elements,
        note="float32, queries and keys read and written once; values stay a view",
    )
    yield Bench(
        "QK RMS norm and RoPE of packed qkv, forward and backward, 16 x 256 x 16 heads of 72",
        {
            "fokker": _with_gradient(ours, qkv, qw, kw, cos, sin),
            "torch.compile": _with_gradient(compiled, qkv, qw, kw, *whole),
            "torch": _with_gradient(eager, qkv, qw, kw, *whole),
        },
        elements=elements,
        note="float32, the gradient of qkv",
    )


def _partial() -> Iterator[Bench]:
    """Phi-2's attention: 32 heads of 80, of which the first 32 elements are turned, half-split."""
    batch, tokens, heads, dim, rotary = 2, 512, 32, 80, 32
    q, k = (torch.randn(batch, tokens, heads, dim).transpose(1, 2) for _ in range(2))  # as a projection leaves them
    cos, sin = denoiser.rope_table(tokens, rotary)

    def ours(q: Tensor, k: Tensor) -> Any:
        return denoiser.qk_norm_rope(q, k, None, None, cos, sin, norm=None, rotary_dim=rotary)

    def turn(x: Tensor) -> Tensor:
        a, b, rest = x[..., : rotary // 2], x[..., rotary // 2 : rotary], x[..., rotary:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), -1)

    def eager(q: Tensor, k: Tensor) -> Any:
        return turn(q), turn(k)

    elements = 2 * q.numel()
    yield Bench(
        "RoPE of 32 of 80 elements, 2 x 512 x 32 heads",
        {
            "fokker": functools.partial(ours, q, k),
            "torch.compile": functools.partial(torch.compile(eager), q, k),
            "torch": functools.partial(eager, q, k),
        },
        elements=elements,
        bytes=8 * elements,
        note="float32, half-split pairs, no norm",
    )


def _ours(heads: int, qkv: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Any:
    return denoiser.qkv_norm_rope(qkv, heads, qw, kw, cos, sin, interleaved=True)


def _swiglu(x: Tensor) -> Tensor:
    g, u = x.chunk(2, -1)
    return torch.nn.functional.silu(g) * u


def _geglu(x: Tensor) -> Tensor:
    u, g = x.chunk(2, -1)
    return u * torch.nn.functional.gelu(g, approximate="tanh")


def _gates() -> Iterator[Bench]:
    """Into a tensor that is there (pages of a fresh one cost more than the activation), then each making its own."""
    x = torch.randn(4096, 6144)
    out = torch.empty(4096, 3072)
    elements = out.numel()
    for name, ours, eager, asked in (
        ("SwiGLU", denoiser.swiglu, _swiglu, {"torch.compile": 3.8, "torch": 6.9}),
        ("GEGLU by tanh", denoiser.geglu, _geglu, {}),
    ):
        compiled = torch.compile(functools.partial(_into, eager))
        yield Bench(
            f"{name} into a tensor, 4096 x 3072",
            {
                "fokker": functools.partial(ours, x, out=out),
                "torch.compile": functools.partial(compiled, x, out),
                "torch": functools.partial(_into, eager, x, out),
            },
            asked,
            elements=elements,
            bytes=12 * elements,
            note="float32; 12 bytes an element",
        )
    yield Bench(
        "SwiGLU, 4096 x 3072",
        {
            "fokker": functools.partial(denoiser.swiglu, x),
            "torch.compile": functools.partial(torch.compile(_swiglu), x),
            "torch": functools.partial(_swiglu, x),
        },
        elements=elements,
        bytes=12 * elements,
        note="float32; each makes its result",
    )


def _pairs() -> Iterator[Bench]:
    """A gate and a value of two projections whose biases are added inside, as LLaMA-like layers have them."""
    gate, value = torch.randn(4096, 3072), torch.randn(4096, 3072)
    biases = torch.randn(3072), torch.randn(3072)
    leaves = [t.clone().requires_grad_() for t in (gate, value, *biases)]
    grad = torch.randn_like(gate)

    def ours(gate: Tensor, value: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return denoiser.swiglu((gate, value), (b, c))

    def eager(gate: Tensor, value: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate + b) * (value + c)

    def backward(f: Callable[..., Tensor]) -> None:
        torch.autograd.grad(f(*leaves), leaves, grad)

    compiled, elements = torch.compile(eager), gate.numel()
    contenders = {"fokker": ours, "torch.compile": compiled, "torch": eager}
    yield Bench(
        "SwiGLU of two tensors with biases, 4096 x 3072",
        {n: functools.partial(f, gate, value, *biases) for n, f in contenders.items()},
        elements=elements,
        bytes=12 * elements,
        note="float32; each makes its result",
    )
    yield Bench(
        "SwiGLU of two tensors with biases, forward and backward, 4096 x 3072",
        {n: functools.partial(backward, f) for n, f in contenders.items()},
        elements=elements,
        bytes=32 * elements,
        note="float32; the gradients of all four",
    )


def _into(f: Callable[[Tensor], Tensor], x: Tensor, out: Tensor) -> None:
    out.copy_(f(x))


def _edm(x: Tensor, f: Tensor, sigma: Tensor) -> Tensor:
    s = sigma.reshape(-1, 1, 1, 1)
    skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
    return skip * x + out * f


def _precondition() -> Iterator[Bench]:
    shape = (64, 3, 64, 64)
    x, f = (torch.randn(shape) for _ in range(2))
    sigma = torch.rand(shape[0]) + 0.1
    yield Bench(
        "EDM preconditioning, 64 x 3 x 64 x 64",
        {
            "fokker": functools.partial(denoiser.edm_precondition_out, x, f, sigma),
            "torch.compile": functools.partial(torch.compile(_edm), x, f, sigma),
            "torch": functools.partial(_edm, x, f, sigma),
        },
        {"torch.compile": 1.3, "torch": 2.5},
        elements=x.numel(),
        bytes=12 * x.numel(),
        note="float32, one sigma a sample; 12 bytes an element",
    )


def _sinusoid(t: Tensor) -> Tensor:
    frequency = torch.exp(torch.arange(128, dtype=torch.float32) * (-9.210340371976184 / 128))
    phase = t[:, None].float() * frequency
    return torch.cat((phase.cos(), phase.sin()), -1)


def _small() -> Iterator[Bench]:
    t = 1000 * torch.rand(64)
    yield Bench(
        "timestep embedding, 64 x 256",
        {
            "fokker": functools.partial(denoiser.timestep_embedding, t, 256),
            "torch": functools.partial(_sinusoid, t),
        },
        elements=64 * 256,
        note="ours with float64 phases; theirs float32",
    )


def _pixel_norm(x: Tensor) -> Tensor:
    return x / (1e-4 + torch.linalg.vector_norm(x, dim=1, keepdim=True) / x.shape[1] ** 0.5)


def _cat(a: Tensor, b: Tensor) -> Tensor:
    w = 2**0.5
    return torch.cat((w * a, w * b), 1)


def _magnitude() -> Iterator[Bench]:
    """EDM2's pixel norm and concatenation, forward, and forward and backward."""
    for name, layout in (("", torch.contiguous_format), (" channels_last", torch.channels_last)):
        x, a, b = (torch.randn(16, n, 32, 32).contiguous(memory_format=layout) for n in (128, 64, 64))
        for what, ours, eager, given in (
            ("pixel norm", denoiser.pixel_norm, _pixel_norm, (x,)),
            ("magnitude-preserving concatenation", denoiser.mp_cat, _cat, (a, b)),
        ):
            runs = {"fokker": ours, "torch.compile": torch.compile(eager, dynamic=False), "torch": eager}
            yield Bench(
                f"{what}{name}, 16 x 128 x 32 x 32",
                {k: functools.partial(f, *given) for k, f in runs.items()},
                elements=x.numel(),
                bytes=8 * x.numel(),
                note="float32; 8 bytes an element",
            )
            yield Bench(
                f"{what}{name}, forward and backward, 16 x 128 x 32 x 32",
                {k: _gradients(f, given, x) for k, f in runs.items()},
                elements=x.numel(),
                note="float32",
            )


def _gradients(f: Callable[..., Tensor], given: tuple[Tensor, ...], grad: Tensor) -> Callable[[], Any]:
    leaves = [t.clone().requires_grad_() for t in given]
    return lambda: torch.autograd.grad(f(*leaves), leaves, grad)
