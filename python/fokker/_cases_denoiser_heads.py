"""Heads, activations, embeddings and preconditioning of `fokker.denoiser` in the table of ops (see `fokker.cases`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import _denoiser_embeddings as embeddings
from . import _denoiser_gates as gates
from . import _denoiser_magnitude as magnitude
from ._denoiser_heads import qk_norm_rope, qkv_norm_rope
from ._denoiser_precondition import edm_precondition_in, edm_precondition_out


def _normal(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


# ---- queries and keys ------------------------------------------------------------------------------------------------
def _tables(shape: tuple[int, ...], dtype: torch.dtype, g: torch.Generator) -> tuple[Tensor, Tensor]:
    angle = 10 * torch.rand(shape, generator=g, dtype=torch.float64)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _heads(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype, g: torch.Generator) -> Any:
    q, k = (_normal((batch, heads, tokens, dim), dtype, g) for _ in range(2))
    weights = [1 + 0.3 * _normal((dim,), torch.float64, g) for _ in range(2)]
    return q, k, *(w.to(dtype) for w in weights), *_tables((tokens, dim // 2), dtype, g)


def _packed(batch: int, heads: int, tokens: int, dim: int, dtype: torch.dtype, g: torch.Generator) -> Any:
    q, _, *rest = _heads(batch, heads, tokens, dim, dtype, g)
    del q
    cos, sin = (t[None].expand(batch, tokens, dim // 2) for t in rest[2:])
    return _normal((batch, tokens, 3 * heads * dim), dtype, g), *rest[:2], cos, sin


def _rms(q: Tensor, k: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.stack(qk_norm_rope(q, k, qw, kw, cos, sin, eps=1e-5))


def _layer(q: Tensor, k: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    found = qk_norm_rope(
        q, k, qw, kw, cos, sin, q_bias=kw, k_bias=qw, norm="layer", eps=1e-5, interleaved=True
    )  # fmt: skip
    return torch.stack(found)


def _partly(q: Tensor, k: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half of the pairs turned, the others normed alone."""
    pairs = cos.shape[-1] // 2
    found = qk_norm_rope(q, k, qw, kw, cos[..., :pairs], sin[..., :pairs], eps=1e-5, rotary_dim=2 * pairs)
    return torch.stack(found)


def _whole(heads: int, qkv: Tensor, qw: Tensor, kw: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.stack(qkv_norm_rope(qkv, heads, qw, kw, cos, sin, eps=1e-5, interleaved=True))


# ---- the others ------------------------------------------------------------------------------------------------------
def _rows(
    columns: int, *more: tuple[int, ...], batch: bool = False
) -> Callable[[int, torch.dtype, torch.Generator], Any]:
    """x (size / columns, columns) and tensors of the shapes ``more`` (with ``batch``: one row of them a row of x)."""

    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        n = max(1, size // columns)
        return tuple(_normal(s, dtype, g) for s in ((n, columns), *((n, *s) if batch else s for s in more)))

    return make


def _pair(columns: int) -> Callable[[int, torch.dtype, torch.Generator], Any]:
    """Gate and value (size / columns, columns), a bias of each."""

    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        n = max(1, size // columns)
        return tuple(_normal(s, dtype, g) for s in ((n, columns), (n, columns), (columns,), (columns,)))

    return make


def _images(channels: int) -> Callable[[int, torch.dtype, torch.Generator], Any]:
    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        n = max(1, size // (3 * channels))
        return (_normal((n, channels, 3), dtype, g), _normal((channels,), dtype, g))

    return make


def _levels(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
    n = max(1, size // 12)
    sigma = torch.exp(_normal((n,), torch.float64, g)).to(dtype)
    return _normal((n, 3, 4), dtype, g), _normal((n, 3, 4), dtype, g), sigma


def _in(settings: dict[str, Any], x: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
    y, noise = edm_precondition_in(x, sigma, **settings)
    return torch.cat((y.flatten(1), noise[:, None].to(y.dtype)), 1)


def _out(form: str, x: Tensor, prediction: Tensor, sigma: Tensor) -> Tensor:
    return edm_precondition_out(x, prediction, sigma, form=form)


def _waves(phases: bool) -> Callable[[int, torch.dtype, torch.Generator], Any]:
    """Noise levels, and 16 frequencies (and phases) in float64, whatever the levels are."""

    def make(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
        t = _normal((max(1, size // 16),), dtype, g)
        return t, *(_normal((16,), torch.float64, g) for _ in range(1 + phases))

    return make


def _timesteps(size: int, dtype: torch.dtype, g: torch.Generator) -> Any:
    return ((1000 * torch.rand(max(1, size // 16), generator=g, dtype=torch.float64)).to(dtype),)


def _swiglu_pair(gate: Tensor, value: Tensor, gate_bias: Tensor, value_bias: Tensor) -> Tensor:
    return gates.swiglu((gate, value), (gate_bias, value_bias))


def _gentle(make: Callable[..., Any], size: int = 8) -> Callable[[torch.Generator], Any]:
    return lambda g: make(size, torch.float64, g)


def add_rows(case: Callable[..., Any], add: Callable[[Any], None], half: Mapping[torch.dtype, float]) -> None:
    """Enter the rows."""
    # results of order one to ten; a half is the rounded float32 result
    common = {"tolerance": {torch.float64: 4e-15, torch.float32: 1e-6, **half}, "elementwise": False}
    for name, call, arguments in (
        ("denoiser_qk_rms_rope", _rms, _heads),
        ("denoiser_qk_layer_rope", _layer, _heads),
        ("denoiser_qk_partial_rope", _partly, _heads),
        ("denoiser_qkv_rms_rope", functools.partial(_whole, 2), _packed),
    ):
        packed = arguments is _packed
        add(
            case(
                name=name,
                call=call,
                make=lambda n, dtype, g, f=arguments: f(max(1, n // 432), 2, 3, 72, dtype, g),
                gentle=lambda g, f=arguments: f(1, 2, 2, 4, torch.float64, g),
                gradients=(0, 1, 2) if packed else (0, 1, 2, 3),
                flops=12.0,
                **common,
            )
        )
    tanh, exact = gates.geglu, functools.partial(gates.geglu, approximate="none", gate_first=True)
    activations: dict[str, tuple[Callable[..., Any], Any, float]] = {
        # name: (call, arguments, operations of one result)
        "swiglu": (gates.swiglu, _rows(74, (74,)), 24.0),
        "geglu": (tanh, _rows(74, (74,)), 28.0),
        "geglu_exact": (exact, _rows(74, (74,)), 50.0),
        "gelu_tanh": (gates.gelu_tanh, _rows(37, (37,)), 28.0),
        "silu_gate": (functools.partial(gates.silu_gate, dim=1), _images(6), 24.0),
        "mp_silu": (lambda x, *_: gates.mp_silu(x), _rows(37), 24.0),
    }
    for name, (call, make, flops) in activations.items():
        add(
            case(
                name=f"denoiser_{name}",
                call=call,
                make=make,
                gentle=_gentle(_images(4) if name == "silu_gate" else _rows(6, (6,)), 12),
                gradients=(0, 1) if name != "mp_silu" else (0,),
                flops=flops,
                **common,
            )
        )
    add(
        case(
            name="denoiser_swiglu_pair",
            call=_swiglu_pair,
            make=_pair(37),
            gentle=_gentle(_pair(3), 6),
            gradients=(0, 1, 2, 3),
            flops=24.0,
            **common,
        )
    )
    schedule = {"form": "vp", "beta_d": 11.0, "beta_min": 0.0, "steps": 3}
    # affine steps, which have rows of their own on the other backends, and the pixel norm
    composed = {
        "precondition_in": (functools.partial(_in, {}), _levels, (0, 2)),
        "precondition_in_vp": (functools.partial(_in, schedule), _levels, (0, 2)),
        "precondition_out_vp": (functools.partial(_out, "vp"), _levels, (0, 1, 2)),
        "precondition_out": (functools.partial(_out, "edm"), _levels, (0, 1, 2)),
        "mp_sum": (functools.partial(magnitude.mp_sum, t=0.3), _rows(37, (37,), batch=True), (0, 1)),
        "mp_cat": (functools.partial(magnitude.mp_cat, t=0.3), _rows(37, (20,), batch=True), (0, 1)),
        "pixel_norm": (magnitude.pixel_norm, _rows(37), (0,)),
    }
    for name, (call, make, gradients) in composed.items():
        add(
            case(
                name=f"denoiser_{name}",
                call=call,
                make=make,
                gentle=_gentle(make, 24),
                gradients=gradients,
                backends=("reference", "cpu", "cuda", *(("emu",) if name in ("pixel_norm", "mp_cat") else ())),
                flops=8.0,
                **common,
            )
        )
    sinusoids = {
        "timestep_embedding": (lambda t: embeddings.timestep_embedding(t, 16, dtype=t.dtype), _timesteps, 1),
        "fourier_embedding": (lambda t, f: embeddings.fourier_embedding(t, f, dtype=t.dtype), _waves(False), 2),
        "mp_fourier": (lambda t, f, p: embeddings.mp_fourier(t, f, p, dtype=t.dtype), _waves(True), 3),
    }
    for name, (call, make, count) in sinusoids.items():
        add(
            case(
                name=f"denoiser_{name}",
                call=call,
                make=make,
                gentle=_gentle(make, 32) if count > 1 else lambda g: (torch.tensor([0.5, 3.0], dtype=torch.float64),),
                gradients=tuple(range(count)),
                backends=("reference", "cpu", "cuda"),
                flops=40.0,
                **{**common, "tolerance": {torch.float64: 1e-12, torch.float32: 1e-6, **half}},
            )
        )
