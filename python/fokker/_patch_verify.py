"""A model as it is beside the same model fused: the largest difference of every replaced module's results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves


@dataclass
class Verification:
    """Differences by module name ("" is the whole): the largest, and that over the largest number of the plain run."""

    largest: dict[str, float] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)
    #: of gradients, by parameter name, over the largest gradient of all
    gradients: dict[str, float] = field(default_factory=dict)
    #: replaced modules that a fused block computes without calling them
    inside: list[str] = field(default_factory=list)
    replaced: int = 0

    @property
    def worst(self) -> float:
        """The largest relative difference of the model's own results."""
        return self.relative[""]

    def __str__(self) -> str:
        lines = [f"fokker.patch.verify: {self.replaced} modules replaced; difference, and over the largest number"]
        for name, largest in self.largest.items():
            lines.append(f"  {name or 'the whole model':58s} {largest:.2e}  {self.relative[name]:.2e}")
        if self.gradients:
            name = max(self.gradients, key=lambda k: self.gradients[k])
            lines.append(f"  gradients of {len(self.gradients)} parameters, worst {name}: {self.gradients[name]:.2e}")
        if self.inside:
            lines.append(f"  {len(self.inside)} replaced modules are computed inside fused blocks")
        return "\n".join(lines)


def compare(
    model: nn.Module, fused: Callable[[], Any], args: Any, kwargs: dict[str, Any], gradients: bool
) -> Verification:
    """Both runs; ``fused()`` is a context in which the model is fused."""
    with fused() as report:
        names = list(report.replaced)
    wanted = {m: n for n, m in model.named_modules() if n in names or n == ""}
    plain, plain_grads = _run(model, wanted, args, kwargs, gradients)
    with fused():
        ours, our_grads = _run(model, wanted, args, kwargs, gradients)
    found = Verification(replaced=len(names))
    found.inside = [n for n in names if n in plain and n not in ours]
    for name in sorted(ours):
        if name in plain:
            found.largest[name], found.relative[name] = _difference(plain[name], ours[name])
    size = max((float(g.abs().max()) for g in plain_grads.values() if g.numel()), default=1.0)
    for name, g in plain_grads.items():
        found.gradients[name] = _difference([g], [our_grads[name]] if name in our_grads else [])[0] / (size or 1.0)
    return found


def _run(
    model: nn.Module, wanted: dict[nn.Module, str], args: Any, kwargs: dict[str, Any], gradients: bool
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Results of the wanted modules, every call of them, and gradients of the parameters."""
    results: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if module in wanted:
            tensors = [t.detach().clone() for t in tree_leaves(_plain(output)) if isinstance(t, Tensor)]
            results.setdefault(wanted[module], []).extend(tensors)

    wrt = {n: p for n, p in model.named_parameters() if p.requires_grad} if gradients else {}
    # A hook on the modules themselves would be seen by fused blocks, which would then call what they leave out.
    handle = register_module_forward_hook(keep)
    try:
        with _same_numbers(model), torch.set_grad_enabled(gradients), torch.compiler.set_stance("force_eager"):
            out = model(*args, **kwargs)
    finally:
        handle.remove()
    if not gradients:
        return results, {}
    total = torch.zeros((), dtype=torch.float64)
    for t in tree_leaves(_plain(out)):
        if isinstance(t, Tensor) and t.requires_grad:
            weights = torch.linspace(-1, 1, t.numel(), dtype=torch.float64, device=t.device).reshape(t.shape)
            total = total.to(t.device) + (t.double() * weights).sum()
    found = torch.autograd.grad(total, list(wrt.values()), allow_unused=True)
    return results, {n: g for n, g in zip(wrt, found, strict=True) if g is not None}


def _plain(output: Any) -> Any:
    """diffusers' output classes as tuples."""
    return output.to_tuple() if hasattr(output, "to_tuple") else output


@contextmanager
def _same_numbers(model: nn.Module) -> Any:
    """Random numbers that start from the same state, and go on as before afterwards."""
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


def _difference(plain: list[Tensor], ours: list[Tensor]) -> tuple[float, float]:
    """The largest difference, and that over the largest number; infinite where shapes or dtypes differ."""
    largest, size = 0.0, 0.0
    for a, b in zip(plain, ours, strict=False):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf"), float("inf")
        if a.numel():
            largest = max(largest, float((a.double() - b.double()).abs().max()))
            size = max(size, float(a.double().abs().max()))
    if len(plain) != len(ours):
        return float("inf"), float("inf")
    return largest, largest / size if size else largest
