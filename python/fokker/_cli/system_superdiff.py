"""``python -m fokker systems superdiff``: digits of either of two classes, and digits that both classes find likely."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import mixture, sde
from ..systems.superdiff import SuperDiff
from .systems_data import around, digits, rows, score


def example(out: Path, seed: int, *, count: int = 64, steps: int = 200) -> dict[str, Any]:
    """Threes and eights by the exact scores of the digits of each class."""
    data, labels = digits(seed)
    process = sde.VP(t_min=1e-3)
    laws = [around(data[labels == c]) for c in (3, 8)]
    models = [score(law, process) for law in laws]
    lines, table = [(f"digits {c}", data[labels == c]) for c in (3, 8)], {}
    print(f"{'':6} log density under 3, under 8, exact (mean)   gap, exact   the same by the estimator")
    for mode in ("or", "and", "mean"):
        found = SuperDiff(models, mode).sample(
            process, (count, 64), steps, seed, grid="log_snr", prediction="score", progress=True
        )
        a, s = float(process.alpha(found.time)), float(process.sigma(found.time))
        exact = torch.stack([mixture.log_prob(found.x, law, alpha=a, sigma=s).double() for law in laws], 1)
        log_q = found.carried["log_density"]
        gaps = [float((v[:, 0] - v[:, 1]).abs().mean()) for v in (exact, log_q)]
        table[mode] = (*exact.mean(0).tolist(), *gaps)
        print(f"{mode:6} {table[mode][0]:10.1f} {table[mode][1]:10.1f} {gaps[0]:27.2f} {gaps[1]:15.2f}")
        lines.append((mode.upper(), found.x))
    eights = float((exact_share(lines[2][1], laws)).mean())
    print(f"OR: {100 * eights:.0f}% of the samples are likelier as eights")
    picture = rows(
        out / "superdiff.png", lines, "SuperDiff: samples of either class (OR), of both (AND), of mean scores"
    )
    return {"pictures": [picture], "table": table, "eights": eights}


def exact_share(x: torch.Tensor, laws: list[mixture.Mixture]) -> torch.Tensor:
    """Whether a sample is likelier under the second law."""
    return (mixture.log_prob(x, laws[1]) > mixture.log_prob(x, laws[0])).double()
