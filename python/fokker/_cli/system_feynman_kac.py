"""``python -m fokker systems feynman_kac``: digits tilted by a reward, whose exact law is another mixture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import mixture, sde
from ..systems import feynman_kac
from .systems_data import SIGMA, around, digits, rows, score


def example(out: Path, seed: int, *, count: int = 1024, steps: int = 150, strength: float = 1.5) -> dict[str, Any]:
    """e^r with r linear: brighter on the left, darker on the right; proportions of the classes before and after."""
    data, labels = digits(seed)
    process = sde.EDM(0.05, 10.0)
    law = around(data)
    slope = strength * torch.tensor([1.0, 1, 1, 1, -1, -1, -1, -1]).repeat(8) / 8

    def reward(x: Tensor) -> Tensor:
        return x @ slope

    def schedule(t: float) -> float:
        return 1 / (1 + t * t)  # the tilt comes as the noise of the sum goes

    # N(m, v) e^{<u, x>} = e^{<u, m> + v |u|^2 / 2} N(m + v u, v): the same centres with other weights, moved a little
    variance = SIGMA**2 + process.t_min**2
    weights = torch.softmax(data.double() @ slope.double(), 0)
    shares = torch.zeros(10, dtype=torch.float64).index_add(0, labels, weights)
    mean = weights @ (data.double() @ slope.double()) + variance * float(slope.square().sum())
    plain = torch.bincount(labels, minlength=10).double() / len(labels)
    results: dict[str, Any] = {"exact": (shares, float(mean))}
    samples = {}
    for name, correct in (("weighted", True), ("unweighted", False)):
        method = feynman_kac.tilt(score(law, process), reward, schedule=schedule, correct=correct)
        found = method.sample(
            process, (count, 64), None, seed, times=sde.karras(process, steps, to_zero=False), prediction="score",
            progress=True,
        )  # fmt: skip
        w = torch.softmax(found.log_weights, 0)
        nearest = labels[mixture.responsibilities(found.x, law, sigma=process.t_min).argmax(1)]
        results[name] = (
            torch.zeros(10, dtype=torch.float64).index_add(0, nearest, w), float(w @ reward(found.x).double())
        )  # fmt: skip
        samples[name] = found.resampled(seed)[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
        if correct:
            print(f"least effective sample size: {float(found.effective_sample_size.min()):.0f} of {count}")
    print(f"{'':12} mean reward   share of each class, in percent")
    before = float((data @ slope).double().mean())
    for name, (share, value) in {"untilted": (plain, before), **results}.items():
        print(f"{name:12} {value:11.2f}   " + " ".join(f"{100 * p:5.1f}" for p in share.tolist()))
    chosen = data[torch.multinomial(weights, 16, generator=torch.Generator().manual_seed(seed))]
    lines = [("untilted data", data), ("exact tilt", chosen), *samples.items()]
    title = "Feynman-Kac: digits tilted to the left by a reward"
    assert math.isfinite(results["weighted"][1])
    return {"pictures": [rows(out / "feynman_kac.png", lines, title)], "results": results}
