"""The two pictures of ``demo sde``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .demo_plots import _pyplot

COLOURS = ("#2f6db5", "#d1793a", "#e0a04a", "#5b9a4a", "#a04aa8", "#c86fb0", "#b03a3a", "#6b6b6b")

LEAST = 0.012  #: what is drawn of smaller distances (an unbiased square can be negative)


def _tile(rows: Any, columns: int) -> np.ndarray:
    """Digits (N, 64) side by side, one line, white between them."""
    out = np.full((9, 9 * columns), -1.0)
    for k, row in enumerate(rows[:columns]):
        out[:8, 9 * k : 9 * k + 8] = np.asarray(row).reshape(8, 8)
    return out


def draw_samples(path: Path, results: dict[str, Any]) -> None:
    """A line a sampler: few calls on the left, many on the right; held-out digits on top, the exact score below."""
    plt = _pyplot()
    few, many = results["calls"][min(1, len(results["calls"]) - 1)], results["calls"][-1]
    names = list(results["network"]["rows"])
    figure, axes = plt.subplots(len(names) + 2, 2, figsize=(13, 0.5 * (len(names) + 2) + 0.3), layout="constrained")
    lines = [("held-out digits", [results["held"][:16], results["held"][16:32]])]
    lines += [(name, [results["network"]["samples"][name][c] for c in (few, many)]) for name in names]
    lines += [("exact score, UniPC 3", [results["exact"]["samples"]["UniPC 3"][c] for c in (few, many)])]
    for pair, (name, blocks) in zip(axes, lines, strict=True):
        for axis, block in zip(pair, blocks, strict=True):
            axis.imshow(_tile(block, 16), cmap="gray_r", vmin=-1, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        pair[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    axes[1][0].set_title(f"{few} calls of the network", fontsize=11)
    axes[1][1].set_title(f"{many} calls", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_distances(path: Path, results: dict[str, Any]) -> None:
    """The distance of samples to real ones over the calls they took, for the exact score and for the network."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", sharey=True)
    titles = {"exact": "the digits' exact score, to fresh draws", "network": "trained denoiser, to held-out digits"}
    for axis, (kind, title) in zip(axes, titles.items(), strict=True):
        for colour, (name, rows) in zip(COLOURS, results[kind]["rows"].items(), strict=True):
            calls, distances = zip(*rows, strict=True)
            noisy = "--" if any(w in name for w in ("churn", "ancestral", "SDE", "Langevin")) else "-"
            axis.plot(calls, np.maximum(distances, LEAST), noisy, color=colour, marker="o", ms=4, label=name)
        axis.axhspan(LEAST, max(results[kind]["floor"], LEAST), color="black", alpha=0.08, lw=0)
        axis.text(results["calls"][0], 1.05 * LEAST, "as real ones are (95% of them)", fontsize=9, va="bottom")
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_ylim(bottom=LEAST)
        axis.set_xticks(results["calls"], [str(c) for c in results["calls"]])
        axis.minorticks_off()
        axis.set_xlabel("calls of the model")
        axis.set_title(title, fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("MMD (three Gaussian kernels)")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
