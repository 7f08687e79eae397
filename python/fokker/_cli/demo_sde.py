"""``python -m fokker demo sde``: digits by eight samplers, with a trained denoiser and with the exact score."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import mixture, pairwise, sde

NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}
#: sampler by name, and its calls of the network for n steps
SAMPLERS: dict[str, tuple[Any, Callable[[int], int]]] = {
    "Euler": (sde.Euler(), lambda n: n),
    "Heun (EDM)": (sde.EDMHeun(), lambda n: 2 * n - 1),
    "Heun (EDM), churn": (sde.EDMHeun(churn=6.0), lambda n: 2 * n - 1),
    "Euler ancestral": (sde.EulerAncestral(), lambda n: n),
    "DPM-Solver++ 2M": (sde.DPMSolver(2), lambda n: n),
    "DPM-Solver++ 2M SDE": (sde.DPMSolver(2, eta=1.0), lambda n: n),
    "UniPC 3": (sde.UniPC(3), lambda n: n),
    "Langevin corrector": (sde.PredictorCorrector(sde.Ancestral(), snr=0.12, rule="std"), lambda n: 2 * n),
}
CALLS = (5, 9, 16, 32)
SIGMA = 0.15  #: of the Gaussians around the digits, whose mixture has an exact score


def job(out: Path, seed: int, *, steps: int = 1500, count: int = 200, calls: tuple[int, ...] = CALLS) -> dict[str, Any]:
    """All of the demo; training ``steps``, the number of samples and of ``calls`` make it smaller."""
    from sklearn.datasets import load_digits

    from .demo_sde_model import train
    from .demo_sde_plots import draw_distances, draw_samples

    out.mkdir(parents=True, exist_ok=True)
    data = torch.from_numpy(load_digits().data / 8.0 - 1.0).float()
    # the file is sorted by who wrote: shuffled, the two parts have one law
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))]
    held, known = data[1400:], data[:1400]
    process = sde.EDM(0.03, 20.0, sigma_data=float(known.std()))
    began = time.perf_counter()
    network, losses = train(known, process, steps, seed)
    print(f"a transformer of {sum(p.numel() for p in network.parameters()):,} weights on {len(known)} digits: loss")
    print(f"  {_mean(losses[: len(losses) // 20]):.3f} to {_mean(losses[-len(losses) // 10 :]):.3f} in {steps} steps, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    law = mixture.Mixture(known, torch.tensor(SIGMA**2), None, "isotropic")

    def exact(x: Tensor, t: Tensor) -> Tensor:
        return mixture.posterior_mean(x, law, sigma=float(t[0]))

    width = float(pairwise.median_bandwidth(known, held))
    # fresh draws of the law; the digits that were not trained on
    targets = {"exact": mixture.sample(law, (len(held),), seed=seed + 1), "network": held}
    results: dict[str, Any] = {"losses": losses, "calls": calls, "held": held}
    for kind, model, prediction in (("exact", exact, "x0"), ("network", network, "edm")):
        real = mixture.sample(law, (20 * count,), seed=seed + 2) if kind == "exact" else known
        results[kind] = _compare(model, process, prediction, targets[kind], real, width, count, calls, seed, kind)
    results["ks"] = _marginals(exact, process, law, seed)
    results["pictures"] = [out / "sde_samples.png", out / "sde_distances.png"]
    draw_samples(results["pictures"][0], results)
    draw_distances(results["pictures"][1], results)
    return results


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _steps(count: Callable[[int], int], calls: int) -> int:
    """The most steps that take no more calls."""
    n = 1
    while count(n + 1) <= calls:
        n += 1
    return n


def _compare(
    model: Any, process: sde.EDM, prediction: str, target: Tensor, real: Tensor, width: float, count: int,
    calls: tuple[int, ...], seed: int, kind: str,
) -> dict[str, Any]:  # fmt: skip
    """MMD of each sampler's samples to ``target``, and what 95% of as many ``real`` ones stay below."""

    def distance(x: Tensor) -> float:
        bandwidths = pairwise.bandwidth_ladder(width, 3)
        found = pairwise.mmd2(x.double(), target.double(), bandwidth=bandwidths, estimator="unbiased")
        return max(float(found), 0.0) ** 0.5

    picks = torch.Generator().manual_seed(seed)
    reals = [distance(real[torch.randperm(len(real), generator=picks)[:count]]) for _ in range(40)]
    floor = float(torch.tensor(reals).quantile(0.95))
    label = "the digits' exact score" if kind == "exact" else "the trained network"
    print(f"\n{label}: MMD to {len(target)} {'fresh draws' if kind == 'exact' else 'held-out digits'}"
          f" by calls of the model; 95% of {count} real ones: below {floor:.3f}")  # fmt: skip
    print(f"{'':22}" + "".join(f"{c:>9}" for c in calls))
    rows: dict[str, list[tuple[int, float]]] = {}
    samples: dict[str, dict[int, Tensor]] = {}
    for name, (sampler, cost) in SAMPLERS.items():
        rows[name], samples[name] = [], {}
        for c in calls:
            out = sde.sample(
                model, process, sampler, (count, 64), _steps(cost, c), seed, prediction=prediction, full=True
            )
            rows[name].append((out.calls, distance(out.x)))
            samples[name][c] = out.x
        print(f"{name:22}" + "".join(f"{d:9.3f}" for _, d in rows[name]), flush=True)
    return {"rows": rows, "samples": samples, "floor": floor}


def _marginals(exact: Any, process: sde.EDM, law: mixture.Mixture, seed: int, count: int = 600) -> dict[str, float]:
    """Each pixel's marginal against the exact one: the largest of 64 Kolmogorov-Smirnov distances, times n^{1/2}."""
    means, width = law.means.double(), (SIGMA**2 + process.t_min**2) ** 0.5
    times = sde.karras(process, 40, to_zero=False)
    rank = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = {}
    for name in ("DPM-Solver++ 2M", "UniPC 3", "DPM-Solver++ 2M SDE"):
        x = sde.sample(exact, process, SAMPLERS[name][0], (count, 64), times=times, seed=seed + 3)
        worst = 0.0
        for pixel, mean in zip(x.double().T, means.T, strict=True):
            cdf = torch.special.ndtr((pixel.sort().values[:, None] - mean) / width).mean(1)
            worst = max(worst, float((cdf - rank).abs().max()) + 0.5 / count)
        found[name] = worst * count**0.5
    print("\nexact score, 40 calls: the largest of 64 pixels' KS distances times n^1/2; 2.18 is passed by 1% of laws")
    print("  " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    return found
