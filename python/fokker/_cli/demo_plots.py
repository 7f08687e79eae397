"""The demo's two pictures: fitted log densities, and errors of log I over (v, x)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

_COLOURS = {"unseen": "#2f6db5", "other": "#d1793a", "digits": "#5b9a4a"}


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw_densities(path: Path, results: dict[str, Any], photos: dict[str, np.ndarray]) -> None:
    """Histograms of log density per dimension, the EM curve, and the photographs with heat maps of log density."""
    plt = _pyplot()
    dims = list(results["scores"])
    figure = plt.figure(figsize=(3.1 * max(len(dims), 4), 11.5), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[5.2, 3.1, 3.1])
    top.suptitle(
        "log density under a mixture of vMF fitted to the left half of a photograph (nats per patch and "
        "dimension, over the uniform density)",
        fontsize=11,
    )
    axes = top.subplots(2, len(dims), squeeze=False)
    for row, name in enumerate(("china", "flower")):
        for axis, dim in zip(axes[row], dims, strict=True):
            _histograms(axis, results["scores"][dim][name], name, dim)
        axes[row, 0].set_ylabel(f"fitted to {name}.jpg")
    _photographs(middle, results, photos)
    left, right = bottom.subfigures(1, 2)
    _curve(left.subplots(), results["curve"])
    _fits(right.subplots(), results["fits"])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _histograms(axis: Any, row: dict[str, Any], name: str, dim: int) -> None:
    other = "flower" if name == "china" else "china"
    auroc = row["auroc"]
    labels = {
        "unseen": f"{name}, unseen half",
        "other": f"{other}, AUROC {auroc['other']:.2f}",
        "digits": f"digits, AUROC {auroc['digits']:.2f}",
    }
    every = np.concatenate(list(row["logs"].values())) / dim
    bins = np.linspace(*np.quantile(every, [0.002, 0.998]), 45)
    for key, logs in row["logs"].items():
        style = {"bins": bins, "density": True, "color": _COLOURS[key]}
        axis.hist(logs / dim, histtype="stepfilled", alpha=0.45, label=labels[key], **style)
        axis.hist(logs / dim, histtype="step", lw=1.2, **style)
    axis.set_title(f"d = {dim}", fontsize=10)
    axis.set_yticks([])
    # Headroom, so that the legend covers no curve.
    axis.set_ylim(0, axis.get_ylim()[1] * 1.6)
    axis.legend(fontsize=8, loc="upper left", framealpha=0.0)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _photographs(figure: Any, results: dict[str, Any], photos: dict[str, np.ndarray]) -> None:
    axes = figure.subplots(1, 4)
    maps = results["maps"]
    both = np.concatenate([m[np.isfinite(m)] for m in maps.values()])
    low, high = np.quantile(both, [0.02, 0.98])
    shown = None
    for i, name in enumerate(("flower", "china")):
        axes[2 * i].imshow(photos[name])
        axes[2 * i].set_title(f"{name}.jpg" + (" (fitted left of the line)" if name == "flower" else ""), fontsize=10)
        if name == "flower":
            axes[2 * i].axvline(photos[name].shape[1] // 2, color="white", lw=1, ls="--")
        shown = axes[2 * i + 1].imshow(maps[name], cmap="viridis", vmin=low, vmax=high)
        axes[2 * i + 1].set_facecolor("#bbbbbb")
        axes[2 * i + 1].set_title("log density under flower.jpg's mixture", fontsize=10)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=list(axes), shrink=0.7, label="nats, 8 x 8 patch\n(grey: flat)")


def _curve(axis: Any, curve: np.ndarray) -> None:
    axis.plot(np.arange(len(curve)), curve, "-o", ms=2.5, lw=1.2, color="#2f6db5")
    axis.set_xlabel("EM step")
    axis.set_ylabel("nats a patch")
    axis.set_title("mean log-likelihood while fitting, flower.jpg, d = 192", fontsize=10)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _fits(axis: Any, fits: list[dict[str, Any]]) -> None:
    dims = [row["dim"] for row in fits]
    axis.loglog(dims, [row["kappa"] for row in fits], "-o", color="#2f6db5", label="fokker.vmf.fit")
    answered = [(row["dim"], row["scipy"]["kappa"]) for row in fits if row["scipy"] is not None]
    style = {"color": "#b04040", "mfc": "none", "ms": 9, "label": "scipy.stats.vonmises_fisher.fit"}
    axis.loglog(*zip(*answered, strict=True), "--s", **style)
    axis.set_xticks(dims, [str(d) for d in dims])
    axis.minorticks_off()
    axis.set_xlabel("dimension")
    axis.set_ylabel("fitted concentration")
    axis.set_title("one vMF on patches of flower.jpg", fontsize=10)
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw_errors(path: Path, errors: dict[str, np.ndarray]) -> None:
    """Errors at the truth table's points: colour is log10 of the error, a grey cross nan or inf."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(14, 6), sharey=True, layout="constrained")
    v, x = errors["v"], errors["x"]
    zero = 10.0**-4.2  # where v = 0 is drawn on the logarithmic axis
    at = np.where(v > 0, v, zero)
    shown = None
    titles = {"fokker": "fokker.bessel.log_iv(v, x)", "scipy": "log(scipy.special.ive(v, x)) + x"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        e = errors[name]
        good = np.isfinite(e)
        colour = np.log10(np.maximum(e[good], 1e-17))
        shown = axis.scatter(at[good], x[good], c=colour, s=16, cmap="plasma", vmin=-17, vmax=-13.5, lw=0)
        axis.scatter(at[~good], x[~good], marker="x", s=16, color="#9a9a9a", lw=0.9)
        axis.set(xscale="log", yscale="log", xlabel="order v")
        axis.set_title(
            f"{title}\nmedian {np.median(e[good]):.1e}, worst {e[good].max():.1e}; "
            f"nan or inf (x): {np.mean(~good):.0%} of {len(e)} points",
            fontsize=11,
        )
        axis.axvline(10**-3.6, color="black", lw=0.5)
        axis.set_xticks([zero, *(10.0**k for k in range(-3, 7))], ["0", *(f"$10^{{{k}}}$" for k in range(-3, 7))])
        axis.minorticks_off()
    axes[0].set_ylabel("argument x")
    figure.suptitle("Error of log I_v(x), |e| / max(|truth|, 1), against ball arithmetic", fontsize=12)
    figure.colorbar(shown, ax=list(axes), label="log10 of the error", extend="both", pad=0.01)
    figure.savefig(path, dpi=100)
    plt.close(figure)
