"""``python -m fokker systems particle_posterior``: digits from their blurred upper half, and the exact posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .. import sde
from ..systems.particle_posterior import Measurement, ParticlePosterior
from .systems_data import SIGMA, around, digits, rows, score


def example(out: Path, seed: int, *, digit_count: int = 8, count: int = 512, steps: int = 150) -> dict[str, Any]:
    """A prior of known digits, held-out ones measured as means of 2 x 2 pixels of the upper five rows, with noise."""
    data, _ = digits(seed)
    known, held = data[:1400], data[1400 : 1400 + digit_count]
    process, noise_std = sde.EDM(0.05, 10.0), 0.25
    law = around(known)
    operator = torch.zeros(16, 64)
    for i in range(4):
        for j in range(4):
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                operator[4 * i + j, 8 * (i + a) + 2 * j + b] = 0.25
    z = torch.randn(digit_count, 16, generator=torch.Generator().manual_seed(seed))
    measured = held @ operator.T + noise_std * z
    lines: dict[str, list[torch.Tensor]] = {
        n: [] for n in ("exact mean", "particles' mean", "unweighted mean", "drawn")
    }
    errors: dict[str, list[float]] = {"weighted": [], "unweighted": []}
    for k in range(digit_count):
        exact = posterior(known, operator, measured[k], noise_std)
        for name, weigh in (("weighted", True), ("unweighted", False)):
            method = ParticlePosterior(
                score(law, process), Measurement(operator, measured[k], noise_std), guidance=0.5, weigh=weigh
            )
            found = method.sample(
                process, (count, 64), None, seed, times=sde.karras(process, steps, to_zero=False), prediction="score"
            )
            mean = torch.softmax(found.log_weights, 0).float() @ found.x
            errors[name].append(float((mean - exact).square().mean().sqrt()))
            lines["particles' mean" if weigh else "unweighted mean"].append(mean)
            if weigh:
                lines["drawn"].append(found.resampled(seed)[seed % count])
        lines["exact mean"].append(exact)
    typical = float((held - known.mean(0)).square().mean().sqrt())
    print(
        f"root mean square error of the posterior mean, against the exact one ({typical:.2f} from digit to mean digit):"
    )
    for name, values in errors.items():
        print(f"  {name:11} {sum(values) / len(values):.3f}   " + " ".join(f"{v:.3f}" for v in values))
    shown = [("held-out digits", held), ("measured", (measured @ operator * 4).clamp(-1, 1))]
    shown += [(n, torch.stack(v)) for n, v in lines.items()]
    title = "Particle posterior: digits from blurred upper halves"
    return {"pictures": [rows(out / "particle_posterior.png", shown, title, digit_count)], "errors": errors}


def posterior(known: torch.Tensor, a: torch.Tensor, y: torch.Tensor, noise_std: float) -> torch.Tensor:
    """E[x | A x + noise = y] of the mixture of N(datum, SIGMA^2 I)."""
    a, known, y = a.double(), known.double(), y.double()
    total = SIGMA**2 * a @ a.T + noise_std**2 * torch.eye(len(a), dtype=torch.float64)
    left = y - known @ a.T
    solved = torch.linalg.solve(total, left.T).T
    weights = torch.softmax(-0.5 * (left * solved).sum(1), 0)
    return (weights @ (known + SIGMA**2 * solved @ a)).float()
