"""``python -m fokker systems score_sde``: classes, halves and colours by one unconditional score; bits per number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import mixture, sde
from ..systems import score_sde
from .systems_data import around, digits, rows, score


def example(
    out: Path, seed: int, *, steps: int = 100, count: int = 16, patches: int = 2000, measured: int = 16
) -> dict[str, Any]:
    """Digits of a class and digits from their upper halves; photograph patches coloured from grey ones."""
    data, labels = digits(seed)
    known, held = data[:1400], data[1400:]
    process = sde.EDM(0.05, 10.0)
    law = around(known)
    model, options = score(law, process), {"grid": "log_snr", "rule": "std", "snr": 0.2, "corrections": 2}
    options["progress"] = True

    each = score_sde.ClassConditional(model, classifier(known, labels[:1400], process), torch.arange(count) % 10)
    classes = score_sde.predictor_corrector(each, process, (count, 64), steps, seed, **options)
    nearest = labels[:1400][torch.cdist(classes, known).argmin(1)]
    right = float((nearest == torch.arange(count) % 10).double().mean())
    print(f"class-conditional: the nearest digit is of the class asked for in {100 * right:.0f}% of {count}")

    mask = torch.arange(64) < 32
    filled = score_sde.inpaint(model, process, held[:count], mask, (count, 64), steps, seed, **options)
    share = mixture.responsibilities(filled, law, sigma=process.t_min).amax(1).mean()
    print(f"inpainting: samples lie at single digits of the law ({100 * float(share):.0f}% of the posterior on one)")

    bits = score_sde.bits_per_dim(
        prediction(law, process), process, held[:measured], levels=17, ends=(-1.0625, 1.0625), prediction="x0",
        rtol=1e-3, atol=1e-3,
    )  # fmt: skip
    exact = -mixture.log_prob(held[:measured], law, sigma=process.t_min).double() / (64 * torch.log(torch.tensor(2.0)))
    exact = exact + torch.log2(torch.tensor(17 / 2.125, dtype=torch.float64))
    spread = float((bits - exact).std()) / len(bits) ** 0.5
    print(
        f"held-out digits: {float(bits.mean()):.2f} bits per number by one probe a sample (standard error {spread:.2f})"
    )
    print(f"  and {float(exact.mean()):.2f} by the law's own density")

    train, test = photographs(patches, seed)
    fine = sde.EDM(0.02, 10.0)
    colours = score(around(train.flatten(1), 0.04), fine)
    grey = test[:count].mean(1, keepdim=True)
    coloured = score_sde.colorize(colours, fine, grey, (count, *test.shape[1:]), steps, seed, **options)
    error = float((coloured.mean(1, keepdim=True) - grey).abs().max())
    wrong = [float((x - test[:count]).square().mean().sqrt()) for x in (coloured, grey.expand(-1, 3, -1, -1))]
    print(f"colorization: grey kept to {error:.1e}; rms error {wrong[0]:.3f}, of the grey patches {wrong[1]:.3f}")
    pictures = [
        rows(
            out / "score_sde_digits.png",
            [("class 0, 1, 2 ..", classes), ("held-out digits", held),
             ("known half", held.where(mask, torch.tensor(0.0))), ("inpainted", filled)],
            "Score SDE: one unconditional score of digits", count,
        ),
        rows(
            out / "score_sde_colours.png",
            [("photograph", test), ("grey", grey.expand(-1, 3, -1, -1)), ("colorized", coloured)],
            "Score SDE: patches of photographs, colours given grey", count,
        ),
    ]  # fmt: skip
    return {"pictures": pictures, "right": right, "bits": (float(bits.mean()), float(exact.mean())), "wrong": wrong}


def classifier(data: Tensor, labels: Tensor, process: sde.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact log p_t(class | x) of the mixture around the data, up to a constant of x."""
    laws = [(around(data[labels == c]), float((labels == c).double().mean())) for c in range(10)]

    def logs(x: Tensor, t: Tensor) -> Tensor:
        s = float(process.sigma(t[0]))
        joint = [mixture.log_prob(x, law, sigma=s) + torch.log(torch.tensor(share)) for law, share in laws]
        return torch.stack(joint, 1).log_softmax(1)

    return logs


def prediction(law: mixture.Mixture, process: sde.Process) -> Callable[[Tensor, Tensor], Tensor]:
    """E[x_0 | x_t] with a time for each sample."""
    return lambda x, t: mixture.posterior_mean(x, law, alpha=process.alpha(t), sigma=process.sigma(t))


def photographs(count: int, seed: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Patches of scikit-learn's photographs, shrunk four times, in [-1, 1]: ``count`` of the left, 64 of the right."""
    from sklearn.datasets import load_sample_images

    g = torch.Generator().manual_seed(seed)
    left, right = [], []
    for image in load_sample_images().images:
        x = torch.from_numpy(image.astype("float32") / 127.5 - 1).movedim(2, 0)
        x = torch.nn.functional.avg_pool2d(x, 4)
        edge = x.shape[2] * 3 // 4
        for part, found, n in ((x[:, :, :edge], left, count // 2), (x[:, :, edge:], right, 32)):
            rows_at = torch.randint(0, part.shape[1] - size, (n,), generator=g).tolist()
            columns = torch.randint(0, part.shape[2] - size, (n,), generator=g).tolist()
            found += [part[:, i : i + size, j : j + size] for i, j in zip(rows_at, columns, strict=True)]
    test = torch.stack(right)
    return torch.stack(left), test[torch.randperm(len(test), generator=g)]
