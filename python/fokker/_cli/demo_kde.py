"""``python -m fokker demo kde``: photographs denoised, digits regenerated, and the regimes of a density estimate."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import kde
from ..systems import kde_regimes
from .progress import progress

NEEDED = {"sklearn": "scikit-learn", "skimage": "scikit-image", "matplotlib": "matplotlib", "PIL": "pillow"}
SIGMAS = (0.05, 0.1, 0.2)
_SIDE = 8


def job(out: Path, seed: int, *, count: int = 20_000, height: int = 96, images: int = 48) -> dict[str, Any]:
    """All of the demo; ``count`` patches, a strip of ``height`` rows and the number of digits make it smaller."""
    from .demo_kde_plots import draw_digits, draw_photographs, draw_regimes

    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "photographs": _denoise(seed, count, height),
        "digits": _digits(seed, images),
        "regimes": _regimes(seed),
    }
    results["pictures"] = [out / f"{name}.png" for name in ("denoised", "digits", "regimes")]
    for draw, key, path in zip(
        (draw_photographs, draw_digits, draw_regimes), results, results["pictures"], strict=False
    ):
        draw(path, results[key])
    return results


# ---- photographs ---------------------------------------------------------------------------------------------------
def _patches(image: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(image, (_SIDE, _SIDE), axis=(0, 1))[::stride, ::stride]
    return windows.reshape(-1, 3 * _SIDE * _SIDE)


def _average(rows: np.ndarray, shape: tuple[int, ...], stride: int) -> np.ndarray:
    """The image that overlapping patches agree on."""
    total, hits = np.zeros(shape), np.zeros(shape)
    down = range(0, shape[0] - _SIDE + 1, stride)
    along = range(0, shape[1] - _SIDE + 1, stride)
    blocks = iter(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
    for i in down:
        for j in along:
            total[i : i + _SIDE, j : j + _SIDE] += next(blocks)
            hits[i : i + _SIDE, j : j + _SIDE] += 1
    return total / np.maximum(hits, 1)


def _colour(rows: Tensor) -> Tensor:
    """The mean colour of each patch, in every pixel."""
    return rows.reshape(-1, 3, _SIDE * _SIDE).mean(2).repeat_interleave(_SIDE * _SIDE, 1)


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in decibels, for values in [0, 1]."""
    return -10 * math.log10(float(np.square(np.clip(image, 0, 1) - truth).mean()))


def _denoise(seed: int, count: int, height: int) -> dict[str, Any]:
    """A strip of a photograph, noised at three levels, by E[clean patch | noisy patch] over patches of elsewhere."""
    from skimage.restoration import denoise_tv_chambolle

    from .demo_data import photographs

    random = np.random.default_rng(seed)
    photos = photographs()
    width = 2 * height // _SIDE * _SIDE
    top, left = 200, 240
    truth = photos["flower"][top : top + height, left : left + width].astype(np.float64)
    own = np.concatenate([_patches(photos["flower"][:top], 2), _patches(photos["flower"][top + height :], 2)])
    sources = {"its own other patches": own, "the other photograph": _patches(photos["china"], 2)}
    sources = {k: v[random.choice(len(v), min(count, len(v)), replace=False)] for k, v in sources.items()}
    print(f"flower.jpg, {height} x {width} pixels; the ideal denoiser over {count} patches of d = 192 (PSNR in dB)")
    print(f"{'sigma':>6} {'noisy':>7} {'total variation':>16} " + " ".join(f"{name:>22}" for name in sources))
    rows = []
    for sigma in SIGMAS:
        noisy = truth + sigma * random.normal(size=truth.shape)
        smooth = denoise_tv_chambolle(noisy, weight=sigma, channel_axis=-1)
        x = torch.from_numpy(_patches(noisy, 2)).float()
        images = {"noisy": noisy, "total variation": smooth}
        for name, rows_of in sources.items():
            # the mean colour apart: patches without it match far more of each other
            y = torch.from_numpy(rows_of).float()
            mean = kde.posterior_mean(x - _colour(x), y - _colour(y), sigma) + _colour(x)
            images[name] = _average(mean.numpy(), truth.shape, 2)
        found = {name: psnr(image, truth) for name, image in images.items()}
        print(f"{sigma:6.2f} " + " ".join(f"{v:{w}.2f}" for v, w in zip(found.values(), (7, 16, 22, 22), strict=True)))
        rows.append({"sigma": sigma, "images": images, "psnr": found})
    return {"truth": truth, "rows": rows}


# ---- digits --------------------------------------------------------------------------------------------------------
def _digits(seed: int, images: int) -> dict[str, Any]:
    """The probability flow dx/dsigma = -sigma score of the digits' diffused empirical measure, from noise to data."""
    from sklearn.datasets import load_digits

    data = torch.from_numpy(load_digits().data / 16.0).double()
    generator = torch.Generator().manual_seed(seed)
    sigmas = torch.logspace(math.log10(20.0), math.log10(0.01), 60, dtype=torch.float64)
    x = data.mean(0) + sigmas[0] * torch.randn(images, data.shape[1], generator=generator, dtype=torch.float64)
    sizes, frames = [], {}

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return (x - kde.posterior_mean(x, data, float(sigma))) / sigma

    for k, (now, then) in enumerate(itertools.pairwise(sigmas)):
        sizes.append(kde.effective_sample_size(x, data, float(now)))
        if k % 12 == 0:
            frames[float(now)] = x.clone()
        first = slope(x, now)
        x = x + 0.5 * (then - now) * (first + slope(x + (then - now) * first, then))
    x = kde.posterior_mean(x, data, float(sigmas[-1]))
    distance = torch.cdist(x, data).amin(1)
    spacing = torch.cdist(data, data).fill_diagonal_(math.inf).amin(1)
    sizes_now = torch.stack(sizes)
    condensed = float(sigmas[:-1][(sizes_now.mean(1) < 2).nonzero()[0, 0]])
    typical, apart = float(distance.median()), float(spacing.median())
    memorised = float((distance < 0.1 * apart).double().mean())
    print(f"\n{images} digits by the exact score of {len(data)} training digits; distance to the nearest of those:")
    print(f"  {typical:.1e} (median), where training digits are {apart:.2f} apart: {memorised:.0%} memorised;")
    print(f"  the effective sample size falls below 2 at sigma = {condensed:.2f}: from there each has one to go to")
    return {
        "x": x,
        "frames": frames,
        "sigmas": sigmas[:-1],
        "sizes": sizes_now,
        "distance": distance,
        "spacing": spacing,
        "condensed": condensed,
    }


# ---- regimes -------------------------------------------------------------------------------------------------------
def _regimes(seed: int) -> list[dict[str, Any]]:
    rows = []
    print("\nnormal data: condensation and central-limit bandwidths, and the mean effective sample size there")
    for dim in (20, 40):
        n = 20_000
        g = torch.Generator().manual_seed(seed + dim)
        y = torch.randn(n, dim, generator=g)
        x = torch.randn(200, dim, generator=g)
        alpha = math.log(n) / dim
        edges = kde_regimes.condensation_bandwidth(alpha), kde_regimes.clt_bandwidth(alpha)
        h = torch.logspace(math.log10(0.4 * edges[0]), math.log10(2.5 * edges[1]), 25, dtype=torch.float64)
        sizes = torch.stack([kde_regimes.effective_sizes(x, y, h[i : i + 1])[0] for i in progress(range(len(h)), "h")])
        at = kde_regimes.effective_sizes(x, y, torch.tensor(edges))
        low, high = edges
        print(f"  d = {dim}, N = {n}: h_G = {low:.3f} ({float(at[0]):.1f}), h_CLT = {high:.3f} ({float(at[1]):.1f})")
        rows.append({"dim": dim, "n": n, "h": h, "sizes": sizes, "edges": edges, "at": at})
    return rows
