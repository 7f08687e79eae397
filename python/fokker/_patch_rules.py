"""What `fokker.patch` knows how to replace: rules by class name, and what every replacement asks before it fuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._elementwise import FLOATS

HALVES = (torch.float16, torch.bfloat16)
Forward = Callable[..., Any]


class Rule(NamedTuple):
    """How modules of one class are replaced."""

    #: takes the module first, then what its class's forward takes
    forward: Forward
    #: why a module of the class cannot be replaced, or None
    refuse: Callable[[Any], str | None]
    #: what is fused, for the report
    what: str


#: by module and name of the class, so that nothing need be imported to ask
RULES: dict[str, Rule] = {}


def ours(forward: Forward) -> Forward:
    """Marks a forward of ours."""
    forward.fokker_patch = True  # type: ignore[attr-defined]
    return forward


def rule(
    *classes: str, what: str, refuse: Callable[[Any], str | None] = lambda module: None
) -> Callable[[Forward], Forward]:
    """Registers a forward for the classes."""

    def register(forward: Forward) -> Forward:
        RULES.update({name: Rule(ours(forward), refuse, what) for name in classes})
        return forward

    return register


#: where torch makes a class of its own for one module, a child of the module's
_MADE_IN = ("torch.distributed.fsdp._fully_shard", "torch.nn.utils.parametrize")


def class_name(module: nn.Module) -> str:
    cls = type(module)
    if cls.__module__.startswith(_MADE_IN):
        cls = cls.__bases__[-1]
    return f"{cls.__module__}.{cls.__qualname__}"


def plain(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the module's class does. Dynamo does not look into classes that diffusers allows in graphs."""
    forward = getattr(module, "_fokker_plain", None) or type(module).forward
    return forward(module, *args, **kwargs)  # type: ignore[operator]


def put(module: nn.Module, forward: Forward, *more: Any) -> None:
    """Gives the module a forward of ours, which takes the module, ``more`` and then what its class's takes."""
    module._fokker_plain = type(module).forward  # type: ignore[assignment]
    module.forward = partial(forward, module, *more)


def take(module: nn.Module) -> None:
    """Gives the module its class's forward again."""
    del module.forward, module._fokker_plain


def is_ours(module: nn.Module) -> bool:
    """Whether this module's forward is one of ours."""
    function = getattr(module.__dict__.get("forward"), "func", None)
    return getattr(function, "fokker_patch", False)


def foreign(module: nn.Module) -> bool:
    """Whether somebody else replaced this module's forward."""
    return "forward" in module.__dict__ and not is_ours(module)


def quiet(*modules: nn.Module | None) -> bool:
    """Whether nobody would notice that the modules are not called: no hooks, and a forward of their class or ours."""
    return all(
        m is None
        or not (m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks or foreign(m))
        for m in modules
    )


def ready(x: Any, *others: Tensor | None) -> bool:
    """Whether the fused ops take these and give the dtype that torch would: x's.

    Under autocast torch computes norms of half-precision tensors in float32 and returns that: left to it.
    """
    if not ready_gate(x):
        return False
    if x.dtype in HALVES and torch.is_autocast_enabled(x.device.type):
        return False
    return all(t is None or (t.dtype in FLOATS and torch.promote_types(x.dtype, t.dtype) is x.dtype) for t in others)


def ready_gate(x: Any) -> bool:
    """`ready` for activations, whose dtype autocast does not change; a distributed tensor has no rule for our ops."""
    known = isinstance(x, Tensor) and x.dtype in FLOATS and (x.is_cpu or x.is_cuda)
    return known and type(x).__name__ != "DTensor"


def is_layer_norm(module: Any, affine: bool | None = None) -> bool:
    """A layer norm over the last dimension, whose forward is known."""
    known = isinstance(module, nn.Module) and class_name(module) in (
        "torch.nn.modules.normalization.LayerNorm",
        "diffusers.models.normalization.FP32LayerNorm",
        "timm.layers.norm.LayerNorm",
    )
    if not known or len(module.normalized_shape) != 1 or getattr(module, "_fast_norm", False):
        return False
    return affine is None or affine == (module.weight is not None)
