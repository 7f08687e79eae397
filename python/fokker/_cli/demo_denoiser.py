"""``python -m fokker demo denoiser``: the digits' transformer trained with and without fused layers, side by side."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from .. import sde
from ..denoiser import gate_residual, layer_norm_modulate, residual_gate_norm_modulate
from .demo_sde_model import Block, Denoiser, objective
from .progress import progress

NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
#: what the profiler's names belong to, the first that fits
PARTS: dict[str, Callable[[str], bool]] = {
    "matrix products": lambda n: n in ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": lambda n: "attention" in n,
    "GELU": lambda n: n.startswith("aten::gelu"),
    "norms, modulation, gated sums": lambda n: (
        n in ("aten::mul", "aten::add", "aten::sum")
        or n.startswith("aten::native_layer_norm")
        or n.endswith("_autograd")  # ours, forward
        or n == "FunctionBackward"  # ours, backward
    ),
    "the rest": lambda n: True,
}


class FusedBlock(Block):
    """The block with its norms, modulations and gated sums in three passes."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.time(c).chunk(6, -1)
        h = layer_norm_modulate(x, shift, scale, eps=self.norm.eps)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x, h = residual_gate_norm_modulate(x, self.out(h), gate, shift2, scale2, eps=self.norm.eps)
        return gate_residual(x, self.mlp(h), gate2)


def fused(model: Denoiser) -> Denoiser:
    """A copy with the same weights and blocks on fokker."""
    model = copy.deepcopy(model)
    for block in model.blocks:
        block.__class__ = FusedBlock
    return model


def job(
    out: Path, seed: int, *, steps: int = 80, batch: int = 128, width: int = 128, depth: int = 3, exact: int = 12
) -> dict[str, Any]:
    """All of the demo; the numbers of ``steps``, of ``exact`` steps in float64, and the sizes make it smaller."""
    from sklearn.datasets import load_digits

    from .demo_denoiser_plots import draw

    out.mkdir(parents=True, exist_ok=True)
    data = torch.from_numpy(load_digits().data / 8.0 - 1.0).float()
    process = sde.EDM(0.03, 20.0, sigma_data=float(data.std()))
    torch.manual_seed(seed)
    model = Denoiser(width, depth)
    print(f"a transformer of {sum(p.numel() for p in model.parameters()):,} weights on batches of {batch} digits, "
          f"{torch.get_num_threads()} thread(s); the same weights and noise, step by step in turns")  # fmt: skip
    results: dict[str, Any] = {"steps": steps, "seconds": {}, "parts": {}}
    for dtype, count in ((torch.float32, steps), (torch.float64, min(exact, steps))):
        name = str(dtype).removeprefix("torch.")
        start = copy.deepcopy(model).to(dtype)
        pair = {"plain": start, "fokker": fused(start)}
        losses, seconds = _train(pair, data.to(dtype), process, count, seed, batch)
        gap = [abs(a - b) / a for a, b in zip(losses["plain"], losses["fokker"], strict=True)]
        results[name] = {"losses": losses, "gap": gap}
        shown = sorted({0, min(9, count - 1), count - 1})
        print(f"\n{name}: loss without fokker, with it, relative difference")
        for i in shown:
            print(f"  step {i + 1:4d}  {losses['plain'][i]:.9f}  {losses['fokker'][i]:.9f}  {gap[i]:.1e}")
        apart = results[name]["weights"] = _apart(*pair.values())
        print(f"  the weights are then {apart:.1e} apart (root mean square, relative)")
        if dtype == torch.float32:
            results["seconds"] = seconds
            results["parts"] = _parts(pair, data, process, batch)
    _tell(results)
    results["pictures"] = [out / "denoiser.png"]
    draw(results["pictures"][0], results)
    return results


def _train(
    pair: dict[str, Denoiser], data: Tensor, process: sde.EDM, steps: int, seed: int, batch: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Losses and seconds of every step of both models, which take turns."""
    made = {}
    for name, model in pair.items():
        optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.01)
        made[name] = optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=max(steps, 20))
    losses: dict[str, list[float]] = {name: [] for name in pair}
    seconds: dict[str, list[float]] = {name: [] for name in pair}
    for i in progress(range(steps), "training"):
        order = list(pair) if i % 2 else list(pair)[::-1]
        for name in order:
            optimiser, schedule = made[name]
            start = time.perf_counter()
            loss = objective(pair[name], data, process, i, seed, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            seconds[name].append(time.perf_counter() - start)
            schedule.step()
            losses[name].append(float(loss.detach()))
    return losses, seconds


@torch.no_grad()
def _apart(one: nn.Module, other: nn.Module) -> float:
    """The root mean square difference of the weights over that of the weights."""
    a, b = (torch.cat([p.flatten() for p in m.parameters()]) for m in (one, other))
    return float((a - b).square().mean().sqrt() / a.square().mean().sqrt())


def _parts(
    pair: dict[str, Denoiser], data: Tensor, process: sde.EDM, batch: int, rounds: int = 9
) -> dict[str, dict[str, float]]:
    """Seconds of a forward and a backward pass by `PARTS`, from torch's profiler: medians of rounds in turns."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pair}
    for i in range(rounds + 1):
        for name, model in pair.items():
            with profile(activities=[ProfilerActivity.CPU]) as events:
                objective(model, data, process, i, 0, batch).backward()
            parts = dict.fromkeys(PARTS, 0.0)
            for event in events.key_averages():
                part = next(name for name, fits in PARTS.items() if fits(event.key))
                parts[part] += event.self_cpu_time_total * 1e-6
            found[name].append(parts)
    # the first round warms up
    return {name: {p: statistics.median(r[p] for r in rows[1:]) for p in PARTS} for name, rows in found.items()}


def _tell(results: dict[str, Any]) -> None:
    first = max(1, results["steps"] // 10)  # the first steps warm up
    seconds = {k: statistics.median(v[first:]) for k, v in results["seconds"].items()}
    pairs = zip(results["seconds"]["plain"][first:], results["seconds"]["fokker"][first:], strict=True)
    results["ratio"] = statistics.median(a / b for a, b in pairs)
    print(f"\na step: {1e3 * seconds['plain']:.1f} ms without fokker, {1e3 * seconds['fokker']:.1f} ms with it "
          f"({results['ratio']:.2f} times, median of the pairs)")  # fmt: skip
    print(f"{'milliseconds of forward and backward':40s} {'without':>9} {'with':>9}")
    for part in PARTS:
        before, after = (1e3 * results["parts"][k][part] for k in ("plain", "fokker"))
        print(f"  {part:38s} {before:9.2f} {after:9.2f}")
