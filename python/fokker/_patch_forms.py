"""Replacements of blocks known by their parts, not by their class: the plain forms of DiT, FiT and EDM's U-Nets.

A class of that shape could compute anything, so each is held, with random parameters, against its own forward first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ._patch_rules import class_name, is_layer_norm, ours, plain, quiet, ready
from .denoiser import gate_residual, group_norm_silu, layer_norm_modulate, residual_gate_norm_modulate

#: how far apart two correct forwards may be, relative to the largest number
_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


class Form(NamedTuple):
    """A block's shape."""

    parts: tuple[str, ...]
    forward: Callable[..., Any]
    #: arguments to hold it on, from the module and a function that draws normal numbers; None: not of this form
    arguments: Callable[[Any, Callable[..., Tensor]], tuple[Any, ...] | None]
    what: str


# ---- transformer blocks ---------------------------------------------------------------------------------------------
def _sixfold(module: Any) -> int:
    """The width of the stream that a modulation of six chunks belongs to, or 0."""
    last = list(module.adaLN_modulation.modules())[-1]
    width: int = module.norm1.normalized_shape[0] if is_layer_norm(module.norm1) else 0
    fits = is_layer_norm(module.norm2) and isinstance(last, nn.Linear) and last.out_features == 6 * width
    return width if fits else 0


def _block_arguments(module: Any, normal: Callable[..., Tensor]) -> tuple[Any, ...] | None:
    width = _sixfold(module)
    names = list(inspect.signature(type(module).forward).parameters)
    if not width or len(names) < 3:
        return None
    first: tuple[Any, ...] = (normal(2, 3, width), normal(2, width))
    if len(names) == 3:
        return first
    if names[3:] != ["mask", "freqs_cos", "freqs_sin", "global_adaln"]:  # whlzy/FiT's
        return None
    head, mask = width // module.attn.num_heads, torch.ones_like(first[0][..., 0])
    return (*first, mask, normal(2, 1, 3, head), normal(2, 1, 3, head), normal(2, 6 * width))


def _norms(norm: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm_modulate(x, shift, scale, norm.weight, norm.bias, norm.eps)


@ours
def transformer_block(self: Any, x: Tensor, c: Tensor, *rest: Any, **named: Any) -> Any:
    if named:
        return plain(self, x, c, *rest, **named)
    shared = rest[3] if len(rest) == 4 else 0.0
    first, second = self.norm1, self.norm2
    six = self.adaLN_modulation(c) + shared
    if not ready(x, six, first.weight, second.weight) or x.dim() != 3 or not quiet(first, second):
        return plain(self, x, c, *rest)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = six.chunk(6, dim=1)
    branch = self.attn(_norms(first, x, shift, scale), *rest[:3])
    x, h = residual_gate_norm_modulate(x, branch, gate, shift_mlp, scale_mlp, second.weight, second.bias, second.eps)
    return gate_residual(x, self.mlp(h), gate_mlp)


def _final_arguments(module: Any, normal: Callable[..., Tensor]) -> tuple[Any, ...] | None:
    if not is_layer_norm(module.norm_final) or len(inspect.signature(type(module).forward).parameters) != 3:
        return None
    width = module.norm_final.normalized_shape[0]
    return normal(2, 3, width), normal(2, width)


@ours
def final_layer(self: Any, x: Tensor, c: Tensor) -> Tensor:
    m = self.adaLN_modulation(c)
    if not ready(x, m, self.norm_final.weight) or x.dim() != 3 or not quiet(self.norm_final):
        return plain(self, x, c)
    shift, scale = m.chunk(2, dim=1)
    return self.linear(_norms(self.norm_final, x, shift, scale))


# ---- EDM's residual block -------------------------------------------------------------------------------------------
def _unet_arguments(module: Any, normal: Callable[..., Tensor]) -> tuple[Any, ...] | None:
    norms = [module.norm0, module.norm1, *([module.norm2] if module.num_heads else [])]
    if not all(hasattr(n, "num_groups") and hasattr(n, "eps") and n.weight is not None for n in norms):
        return None
    channels, emb = module.norm0.weight.shape[0], module.affine.weight.shape[1]
    return normal(2, channels, 4, 4), normal(2, emb)


def _group(norm: Any, x: Tensor, *film: Tensor, activation: str | None = "silu") -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, *film, eps=norm.eps, activation=activation)


@ours
def unet_block(self: Any, x: Tensor, emb: Tensor) -> Tensor:
    norms = (self.norm0, self.norm1, *((self.norm2,) if self.num_heads else ()))
    m = self.affine(emb)
    if not ready(x, m, self.norm0.weight) or x.dim() != 4 or x.numel() == 0 or not quiet(*norms):
        return plain(self, x, emb)
    h = self.conv0(_group(self.norm0, x))
    if self.adaptive_scale:
        h = _group(self.norm1, h, *m.to(h.dtype).chunk(2, dim=1))
    else:
        h = _group(self.norm1, h + m[:, :, None, None])
    h = self.conv1(nn.functional.dropout(h, p=self.dropout, training=self.training))
    x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
    if self.num_heads:
        qkv = self.qkv(_group(self.norm2, x, activation=None))
        q, k, v = qkv.reshape(x.shape[0], self.num_heads, -1, 3, x.shape[2] * x.shape[3]).transpose(2, 4).unbind(3)
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        x = (self.proj(a) + x) * self.skip_scale
    return x


FORMS = (
    Form(
        ("norm1", "norm2", "attn", "mlp", "adaLN_modulation"),
        transformer_block,
        _block_arguments,
        "gated sums, norms and modulations",
    ),
    Form(("norm_final", "linear", "adaLN_modulation"), final_layer, _final_arguments, "layer norm and modulation"),
    Form(
        ("norm0", "conv0", "affine", "norm1", "conv1", "skip", "num_heads", "skip_scale", "adaptive_scale", "dropout"),
        unet_block,
        _unet_arguments,
        "group norms, modulation and SiLU",
    ),
)


def form_of(module: nn.Module) -> Form | None:
    """The form whose parts a module has; none of torch's or a library's own classes."""
    if class_name(module).split(".")[0] in ("torch", "diffusers", "timm", "fokker"):
        return None
    return next((f for f in FORMS if all(hasattr(module, p) for p in f.parts)), None)


def refused(module: nn.Module, form: Form) -> str | None:
    """Why the module is not of the form after all, or None: its forward and ours agree on random parameters."""
    some = next(module.parameters(), None)
    if type(some).__name__ == "DTensor":
        return "it is sharded already: put the patch in before"
    if some is None or some.dtype not in _BOUNDS or some.device.type not in ("cpu", "cuda"):
        return "it has no parameters of a floating dtype on a CPU or GPU to hold it on"
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(some)

    try:
        arguments = form.arguments(module, normal)
        if arguments is None:
            return f"it has the parts of {form.forward.__name__}, but not its sizes or arguments"
        drawn = {n: 0.4 * normal(*p.shape) / max(1, p[:1].numel()) ** 0.5 for n, p in module.named_parameters()}
        got, want = (_held(module, f, drawn, arguments) for f in (form.forward, plain))
        bound = _BOUNDS[some.dtype] * float(want.abs().max())
        worst = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    except Exception as error:
        return f"holding it against its own forward failed: {type(error).__name__}: {error}"
    return None if worst <= bound else f"it computes something else than {form.forward.__name__} (off by {worst:.1e})"


class _Caller(nn.Module):
    """A module whose forward is ``function(inner, ...)``, for `functional_call`."""

    def __init__(self, inner: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.inner, self.function = inner, function

    def forward(self, *args: Any) -> Any:
        return self.function(self.inner, *args)


def _held(
    module: nn.Module, function: Callable[..., Any], drawn: dict[str, Tensor], arguments: tuple[Any, ...]
) -> Tensor:
    devices = [arguments[0].device] if arguments[0].is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        inner = {f"inner.{n}": t for n, t in drawn.items()}
        out: Tensor = functional_call(_Caller(module, function), inner, arguments)
    return out.double()
