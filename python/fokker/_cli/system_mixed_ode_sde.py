"""``python -m fokker systems mixed_ode_sde``: a flow of digits fine-tuned towards a reward by MixGRPO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import mixture, sde
from ..systems import mixed_ode_sde as mix
from .demo_plots import _pyplot
from .progress import progress
from .systems_data import around, digits, rows


class Tuned(nn.Module):
    """The exact velocity of a law plus a small network that starts at 0."""

    def __init__(self, law: mixture.Mixture, width: int = 64) -> None:
        super().__init__()
        self.law = law
        self.inner = nn.Sequential(nn.Linear(65, width), nn.SiLU(), nn.Linear(width, 64))
        nn.init.zeros_(self.inner[2].weight)
        nn.init.zeros_(self.inner[2].bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s = float(t[0])
        with torch.no_grad():
            mean = mixture.posterior_mean(x, self.law, alpha=1 - s, sigma=s)
        return (x - mean) / s + self.inner(torch.cat([x, t[:, None]], 1))


def example(out: Path, seed: int, *, iterations: int = 60, batch: int = 128, steps: int = 16) -> dict[str, Any]:
    """Reward: how alike a digit's left and right halves are; noise in four of sixteen steps, sliding to the data."""
    torch.manual_seed(seed)
    data, _ = digits(seed)
    model = Tuned(around(data))
    slide = mix.SlidingWindow(steps - 2, 4, stride=2, interval=max(1, iterations // 12))
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)

    def reward(x: Tensor) -> Tensor:
        image = x.reshape(-1, 8, 8)
        return -(image - image.flip(2)).square().mean((1, 2))

    def look() -> Tensor:
        """Samples without noise, the same starts every time."""
        with torch.no_grad():
            flow = sde.RectifiedFlow()
            return sde.sample(model, flow, sde.FlowWindow(0.0), (256, 64), steps, seed, prediction="flow")

    before, curve = look(), []
    for i in progress(range(iterations), "training"):
        with torch.no_grad():
            found = mix.rollout(model, (batch, 64), steps, slide(i), 1000 * seed + i)
        r = reward(found.x)
        curve.append(float(r.mean()))
        optimiser.zero_grad()
        mix.loss(model, found, mix.advantages(r, batch // 4), clip=1e-3, backward=True)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    after = look()
    values = [float(reward(x).mean()) for x in (data, before, after)]
    print(f"mean reward of the data {values[0]:.3f}, of samples before {values[1]:.3f} and after {values[2]:.3f}")
    title = "MixGRPO: digits before and after training towards left-right symmetry"
    pictures = [rows(out / "mixed_ode_sde.png", [("before", before), ("after", after)], title)]
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot(curve, color="#2f6db5")
    axis.set_xlabel("iteration")
    axis.set_ylabel("mean reward of the rollouts")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "mixed_ode_sde_reward.png", dpi=110)
    plt.close(figure)
    return {"pictures": [*pictures, out / "mixed_ode_sde_reward.png"], "values": values, "curve": curve}
