r"""Fused layers put into a model that exists, and taken out again: the model keeps its classes and parameters.

    from fokker import patch
    print(patch.apply(model))     # what was replaced, what was not, and why
    patch.verify(model, *inputs)  # both ways, the largest difference of each module
    patch.remove(model)

`apply` gives instances of known classes another ``forward``: RMS norms, group norms with a SiLU after them (also the
last of diffusers' U-Nets and autoencoders), diffusers' adaptive norms, gates and activations, its transformer blocks
(DiT, PixArt, SD3, Flux, Sana, and those inside U-Nets), attention with normed queries and keys (Flux, SD3, timm),
residual blocks of U-Nets, timm's blocks, and blocks of the plain forms of DiT, FiT and EDM's U-Nets. A layer or group
norm that stands alone is one pass in torch too, and stays.
State dict, parameters, hooks, types and signatures stay. A forward that somebody else replaced is left alone, and where
the fused ops would not compute what torch does (another dtype, a hook on a layer that a fused block does not call,
half-precision streams under autocast), a replaced module does what its class does. A model that nothing is known of is
not changed.

Written for diffusers 0.42 and timm 1.0. Classes are known by their names; blocks of plain forms, which are known by
their parts, are first held against their own forward on random parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from . import _patch_attention, _patch_blocks, _patch_gates  # noqa: F401  (they register their rules)
from ._patch_forms import form_of, refused
from ._patch_norms import last_pair, left_to_the_activation, norm_and_activation
from ._patch_rules import RULES, class_name, foreign, is_ours, put, take
from ._patch_verify import Verification, compare

__all__ = ["Report", "Verification", "applied", "apply", "remove", "verify"]

_ALONE = "alone one pass in torch already"
#: modules that look like those known, and why there is nothing to fuse
_LEFT = {
    "torch.nn.modules.normalization.LayerNorm": _ALONE,
    "torch.nn.modules.normalization.GroupNorm": _ALONE,
    "timm.layers.norm.LayerNorm": _ALONE,
    "timm.layers.norm.GroupNorm": _ALONE,
    "diffusers.models.normalization.AdaLayerNormSingle": "makes modulations, normalises nothing",
}
_LOOKS = ("Norm", "GLU", "GELU", "AdaLN", "TransformerBlock", "ResnetBlock", "DiTBlock")


@dataclass
class Report:
    """What `apply` did: names of modules (the root is ""), and what was fused or why not."""

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    #: class of each module named above
    classes: dict[str, str] = field(default_factory=dict)
    modules: int = 0

    def __bool__(self) -> bool:
        return bool(self.replaced)

    def __str__(self) -> str:
        head = f"fokker.patch: {len(self.replaced)} of {self.modules} modules replaced"
        if not self.replaced:
            head = f"fokker.patch: nothing replaced, none of {self.modules} modules is known: the model is unchanged"
        lines = [head]
        for label, names in (("replaced", self.replaced), ("kept", self.kept)):
            groups: dict[tuple[str, str], list[str]] = {}
            for name, text in names.items():
                groups.setdefault((self.classes[name], text), []).append(name or "(the model)")
            for (cls, text), found in groups.items():
                more = f" and {len(found) - 1} more" if len(found) > 1 else ""
                lines.append(f"  {label} {len(found)} {cls}: {text} ({found[0]}{more})")
        return "\n".join(lines)


def apply(model: nn.Module) -> Report:
    """Replaces what is known in ``model`` and in everything under it; applying twice changes nothing more.

    Args:
        model: any module. One block of a plain form in each configuration is called, on random numbers.

    Returns:
        a `Report`: it prints as a table, and is false where nothing was replaced.

    A patched model can be copied, pickled, compiled and trained; its state dict is what it was. TypeError: ``model`` is
    no module.
    """
    _check(model)
    report, held, pairs = Report(), {}, {}
    for name, module in model.named_modules():
        report.modules += 1
        pairs.update(_pair(module))
        found = pairs.get(module) or _decide(module, held)
        if found is None:
            continue
        forward, text, *more = found
        report.classes[name] = type(module).__name__
        if more and forward is left_to_the_activation:
            report.kept[name] = text
            put(module, forward, *more)
        elif forward is None:  # modules come after those they are in
            inside = text == _ALONE and name.rpartition(".")[0] in report.replaced
            report.kept[name] = "in a fused module" if inside and name else text
        else:
            report.replaced[name] = text
            put(module, forward, *more)
    return report


def remove(model: nn.Module) -> int:
    """Gives every module that `apply` changed its class's forward again; returns how many there were.

    A forward that somebody has put around ours since (offloading hooks) stays, with ours inside: take that off first.
    """
    _check(model)
    ours = [m for m in model.modules() if is_ours(m)]
    for module in ours:
        take(module)
    return len(ours)


@contextmanager
def applied(model: nn.Module) -> Iterator[Report]:
    """``with applied(model) as report:`` the fused model inside, as it was before afterwards."""
    _check(model)
    before = _ours(model)
    report = apply(model)
    try:
        yield report
    finally:
        _restore(model, before)


def verify(model: nn.Module, *args: Any, gradients: bool = False, show: bool = True, **kwargs: Any) -> Verification:
    """Runs ``model(*args, **kwargs)`` as it is and fused, from the same random state, and compares the results.

    Args:
        model: patched or not; it is left as it was.
        gradients: also compares the gradients of a weighted sum of the output in every parameter that wants one.
        show: prints the table.

    A compiled model is compared without torch.compile, and named from the module inside.

    Returns:
        a `Verification`: of each replaced module that was called, and of the whole, the largest difference and that
        over the largest number. Differences accumulate from module to module: in float32 expect about 1e-6, in
        bfloat16 about 1e-2. Buffers that a forward changes (batch norms in training) are changed twice.

    TypeError: ``model`` is no module.
    """
    _check(model)
    model = getattr(model, "_orig_mod", model)
    before = _ours(model)
    remove(model)
    try:
        found = compare(model, lambda: applied(model), args, kwargs, gradients)
    finally:
        _restore(model, before)
    if show:
        print(found)
    return found


def _ours(model: nn.Module) -> dict[nn.Module, Any]:
    return {m: m.forward for m in model.modules() if is_ours(m)}


def _restore(model: nn.Module, before: dict[nn.Module, Any]) -> None:
    """The model with the forwards of ours that it had before, and no others of ours."""
    remove(model)
    for module, forward in before.items():
        put(module, forward.func, *forward.args[1:])


def _check(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _pair(model: nn.Module) -> dict[nn.Module, tuple[Any, ...]]:
    """What becomes of the last norm and activation of a model that is known to call them one after the other."""
    pair = last_pair(model)
    if pair is None or any(foreign(m) for m in pair):
        return {}
    norm, act = pair
    if sum(m is norm or m is act for _, m in model.named_modules(remove_duplicate=False)) > 2:
        return {}  # one of them has another place too
    return {
        norm: (left_to_the_activation, "in a fused module", model),
        act: (norm_and_activation, "group norm and SiLU", model),
    }


def _decide(module: nn.Module, held: dict[Any, str | None]) -> tuple[Callable[..., Any] | None, str] | None:
    """The forward to give a module and what it fuses; or None and why not; or nothing to say."""
    name = class_name(module)
    rule, form = RULES.get(name), None
    if rule is None:
        form = form_of(module)
        if form is None:
            if not any(w in type(module).__name__ for w in _LOOKS):
                return None
            return None, "fokker's own" if name.startswith("fokker.") else _LEFT.get(name, f"no rule for {name}")
    if foreign(module):
        return None, "its forward was replaced by somebody else"
    if rule is not None:
        why = rule.refuse(module)
        if why == "":
            return None
        return (rule.forward, rule.what) if why is None else (None, why)
    assert form is not None
    key = (type(module), module.training, tuple((n, p.shape, p.dtype, p.device) for n, p in module.named_parameters()))
    if key not in held:
        held[key] = refused(module, form)
    why = held[key]
    return (form.forward, form.what) if why is None else (None, why)
