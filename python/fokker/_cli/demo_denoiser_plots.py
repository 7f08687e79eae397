"""The picture of ``demo denoiser``: losses and their differences, times of steps, and where the time goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .demo_plots import _pyplot

NAMES = {"plain": "without fokker", "fokker": "with fokker"}
COLOURS = {"plain": "#d1793a", "fokker": "#2f6db5"}
PARTS = ("#8a8a8a", "#b9b9b9", "#cfcfcf", "#2f6db5", "#e6e6e6")
LEAST = 1e-17  #: where a difference of nothing is drawn


def draw(path: Path, results: dict[str, Any]) -> None:
    """Four panels: losses, their relative differences, seconds a step, milliseconds by part."""
    plt = _pyplot()
    figure, axes = plt.subplots(2, 2, figsize=(12.5, 7.4), layout="constrained", height_ratios=(1, 0.9))
    loss, gap, step, parts = axes.flat
    at = np.arange(1, results["steps"] + 1)
    for name, values in results["float32"]["losses"].items():
        style = {"plain": {"lw": 3.5, "alpha": 0.6}, "fokker": {"lw": 1.2}}[name]
        loss.plot(at, values, color=COLOURS[name], label=NAMES[name], **style)
    loss.set_ylabel("loss")
    loss.set_title("the same losses: float32", fontsize=11)
    loss.legend(frameon=False)
    for dtype, colour, unit in (("float32", "#a04aa8", 2.0**-24), ("float64", "#5b9a4a", 2.0**-53)):
        values = results[dtype]["gap"]
        gap.plot(np.arange(1, len(values) + 1), np.maximum(values, LEAST), "o-", ms=3, lw=1, color=colour, label=dtype)
        gap.axhline(unit, color=colour, lw=0.8, ls=":")
        gap.text(results["steps"], unit, f"rounding of {dtype}", color=colour, fontsize=8, ha="right", va="bottom")
    gap.set_yscale("log")
    gap.set_ylim(0.4 * LEAST, 1e-3)
    gap.set_yticks([LEAST, *(10.0**k for k in range(-15, -2, 2))])
    gap.set_yticklabels(["none", *(f"$10^{{{k}}}$" for k in range(-15, -2, 2))])
    gap.minorticks_off()
    gap.set_ylabel("relative difference of the losses")
    gap.set_title("step by step, from the same weights and noise", fontsize=11)
    gap.legend(frameon=False, loc="upper left")
    for name, seconds in results["seconds"].items():
        step.plot(at, 1e3 * np.asarray(seconds), ".", ms=4, color=COLOURS[name], label=NAMES[name], alpha=0.7)
        step.axhline(1e3 * float(np.median(seconds)), color=COLOURS[name], lw=1.5)
    step.set_ylim(0, 1.15e3 * float(np.quantile(np.concatenate(list(results["seconds"].values())), 0.97)))
    step.set_ylabel("milliseconds a step")
    step.set_title(f"{results['ratio']:.2f} times as fast (medians of pairs; lines: medians)", fontsize=11)
    step.legend(frameon=False, loc="lower left")
    for axis in (loss, gap, step):
        axis.set_xlabel("step")
    for row, name in enumerate(NAMES):
        left = 0.0
        for colour, (part, seconds) in zip(PARTS, results["parts"][name].items(), strict=True):
            width = 1e3 * seconds
            parts.barh(row, width, left=left, color=colour, height=0.55, label=part if row == 0 else None)
            if width > 0.04 * 1e3 * sum(results["parts"]["plain"].values()):
                parts.text(left + width / 2, row, f"{width:.1f}", ha="center", va="center", fontsize=9)
            left += width
    parts.set_yticks(range(len(NAMES)), list(NAMES.values()))
    parts.set_xlabel("milliseconds of forward and backward (torch.profiler)")
    parts.set_title("where the time goes", fontsize=11)
    parts.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower center")
    parts.set_ylim(2.35, -0.5)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
