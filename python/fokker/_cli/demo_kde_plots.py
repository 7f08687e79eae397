"""The three pictures of ``demo kde``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .demo_plots import _pyplot


def draw_photographs(path: Path, found: dict[str, Any]) -> None:
    """A row a noise level: noisy, total variation, and the posterior mean over either source of patches."""
    plt = _pyplot()
    rows = found["rows"]
    names = list(rows[0]["images"])
    figure, axes = plt.subplots(len(rows) + 1, len(names), figsize=(3.4 * len(names), 1.95 * (len(rows) + 1)),
                                layout="constrained")  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].imshow(found["truth"])
    axes[0, 0].set_title("the photograph", fontsize=10)
    for line, row in zip(axes[1:], rows, strict=True):
        for axis, name in zip(line, names, strict=True):
            axis.imshow(np.clip(row["images"][name], 0, 1))
            label = f"noisy, sigma = {row['sigma']}" if name == "noisy" else name
            axis.set_title(f"{label}: {row['psnr'][name]:.1f} dB", fontsize=10)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_digits(path: Path, found: dict[str, Any]) -> None:
    """The digits on their way from noise, and how many training digits share in the score."""
    plt = _pyplot()
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[3, 2])
    stages = [*found["frames"].items(), (0.0, found["x"])]
    axes = top.subplots(len(stages), 16)
    for line, (sigma, x) in zip(axes, stages, strict=True):
        for axis, row in zip(line, x, strict=False):
            axis.imshow(row.reshape(8, 8), cmap="gray_r", vmin=-0.2, vmax=1.2)
            axis.axis("off")
        line[0].set_title(f"sigma = {sigma:.2f}" if sigma else "end", fontsize=8, loc="left")
    left, right = bottom.subplots(1, 2)
    sizes = found["sizes"].numpy()
    left.loglog(found["sigmas"], np.median(sizes, 1), color="#2f6db5")
    left.fill_between(found["sigmas"], *np.quantile(sizes, [0.05, 0.95], axis=1), color="#2f6db5", alpha=0.25)
    left.axvline(found["condensed"], color="black", lw=1, ls="--")
    left.set_xlabel("sigma")
    left.set_ylabel("effective sample size")
    left.set_title("median, 5 to 95%", fontsize=9)
    bins = np.geomspace(1e-12, 3, 60)
    right.hist(np.maximum(found["distance"].numpy(), 1e-12), bins=bins, color="#d1793a", label="generated to training")
    right.hist(found["spacing"].numpy(), bins=bins, color="#5b9a4a", alpha=0.7, label="training to training",
               weights=np.full(len(found["spacing"]), len(found["distance"]) / len(found["spacing"])))  # fmt: skip
    right.set_xscale("log")
    right.set_xlabel("distance to the nearest training digit")
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_regimes(path: Path, rows: list[dict[str, Any]]) -> None:
    """The effective sample size over the bandwidth, with the two boundaries of Biroli and Mezard."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(rows), figsize=(5.6 * len(rows), 4.4), layout="constrained", sharey=True)
    for axis, row in zip(axes, rows, strict=True):
        low, high = row["edges"]
        axis.axvspan(float(row["h"][0]), low, color="#d1793a", alpha=0.16, lw=0)
        axis.axvspan(low, high, color="#e0c04a", alpha=0.16, lw=0)
        axis.axvspan(high, float(row["h"][-1]), color="#5b9a4a", alpha=0.16, lw=0)
        axis.loglog(row["h"], row["sizes"], color="#2f6db5", marker="o", ms=3)
        for edge, name in zip(row["edges"], ("h_G", "h_CLT"), strict=True):
            axis.axvline(edge, color="black", lw=1, ls="--")
            axis.text(edge, row["n"], f" {name}", fontsize=9, va="top")
        axis.set_xlim(float(row["h"][0]), float(row["h"][-1]))
        axis.set_ylim(0.8, 1.4 * row["n"])
        axis.set_title(f"N(0, I), d = {row['dim']}, N = {row['n']:,}", fontsize=10)
        axis.set_xlabel("bandwidth h")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("effective sample size at a new point")
    axes[0].text(0.03, 0.06, "condensed", transform=axes[0].transAxes, fontsize=9)
    axes[0].text(0.97, 0.06, "central limit", transform=axes[0].transAxes, fontsize=9, ha="right")
    figure.savefig(path, dpi=100)
    plt.close(figure)
